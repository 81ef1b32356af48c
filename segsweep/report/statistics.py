"""Intervals and tests over units: pure functions of numbers, knowing nothing of runs or files.

A unit is what a test draws at random: the samples of one unit are not independent, so they are never counted as
separate evidence.

Which interval, measured on 1500 simulated samples of 20 units from each of ten skewed distributions of scores between 0
and 1 and of differences (nominal 95 %): the usual BCa covers 87 to 93 %, Student's t 91 to 96 %, the studentised
bootstrap used here 94 to 97 % (equal-tailed for a mean, symmetric for a difference). Where 5 to 10 % of the units are
missed outright (score 0) no method can do well with 20 of them: BCa covers 85 to 89 %, this one about 90 %.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.05
RESAMPLES, FLIPS, EXACT_UP_TO = 4000, 20_000, 15
FLIPPED = 100_000_000  # most sums of flipped pairs that are formed for one leader
FEWEST, FEWEST_REPEATS = 5, 3  # units and repeats below which nothing is said of their spread


class Interval(NamedTuple):
    """A 95 % interval of a mean; `p` tests a mean of zero where the method has a test, else NaN."""

    mean: float
    low: float
    high: float
    p: float = float("nan")


def _finite(make: Callable[..., Interval | None]) -> Callable[..., Interval | None]:
    """No interval where an end of it is infinite or no number, as of values that are so, or that overflow."""

    @wraps(make)
    def made(*given: Any, **named: Any) -> Interval | None:
        with np.errstate(all="ignore"):
            found = make(*given, **named)
        return found if found and np.isfinite(found[:3]).all() else None

    return made


@lru_cache(maxsize=16)
def _resamples(n: int) -> np.ndarray:
    """How often each of `n` units is drawn, (RESAMPLES, n); the same for every sample of `n`, so that a report can
    be repeated.
    """
    return np.random.default_rng([20, n]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def nanmean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Mean over `axis` without the NaNs; NaN, and no warning, where nothing is left."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(axis) / np.where(there.any(axis), there.sum(axis), np.nan)


@_finite
def mean_interval(
    values: np.ndarray, *, symmetric: bool = False, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval | None:
    """95 % interval of the mean of `values` (n,), by a studentised bootstrap over units; NaN is left out.

    Equal-tailed (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 12.5), or `symmetric` (Hall 1988,
    Journal of the Royal Statistical Society B 50:35-45), which suits differences: their tails are heavy on both sides.
    The result is cut off at `bounds` of a value, and where one unit carries nearly all of the spread, so that t runs
    wild, at the distribution-free bound that they give (`_anderson`); equal values within finite bounds get that alone.
    None below FEWEST units, and where t runs wild and the values have no bound: that says nothing of a spread.
    """
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    n = len(x)
    if n < FEWEST:
        return None
    mean, error = x.mean(), x.std(ddof=1) / np.sqrt(n)
    least, most = _anderson(x, bounds)
    if error < _rounding(x):  # no spread to resample; that all are 0 does not show that the next one would be
        known = not symmetric and np.isfinite([least, most]).all()
        return Interval(mean, least, most) if known else Interval(mean, mean, mean)
    weights, centred = _resamples(n), x - mean
    shift = weights @ centred / n
    errors = np.sqrt(np.maximum(weights @ centred**2 / n - shift**2, 0) / (n - 1))
    flat = errors < 1e-9 * error  # one unit drawn n times: infinitely far out, unless it is no shift at all
    t = np.where(flat, np.copysign(np.inf, shift), shift / np.where(flat, 1, errors))
    if symmetric:
        low = high = np.quantile(np.abs(t), 0.95, method="inverted_cdf")
    else:
        low, high = np.quantile(t, [0.975, 0.025], method="inverted_cdf") * [1, -1]
    ends = max(mean - low * error, least), min(mean + high * error, most)
    return Interval(mean, *ends)


def _rounding(values: np.ndarray) -> float:
    """What a difference of them may be by rounding alone, with room to spare."""
    return 1e-12 * max(1.0, float(np.abs(values).max()))


def _anderson(x: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float]:
    """95 % limits of the mean of values that are known to lie within `bounds`, whatever their distribution (Anderson
    1969, with Massart's constant, doi:10.1214/aop/1176990746): each end has its share of the sample moved to the bound.
    """
    n = len(x)
    share = min(np.sqrt(np.log(1 / 0.025) / (2 * n)), 1.0)
    weights = np.clip(np.arange(1, n + 1) / n - share, 0, 1 / n)
    ends = ((bounds[0], np.sort(x)[::-1]), (bounds[1], np.sort(x)))
    least, most = (bound if np.isinf(bound) else bound * share + float(weights @ values) for bound, values in ends)
    return least, most


@lru_cache(maxsize=16)
def _signs(n: int) -> tuple[np.ndarray, bool]:
    """Sign vectors (flips, n) and whether they are all that there are; the first sign is fixed in the full list, by
    symmetry.
    """
    if n <= EXACT_UP_TO:
        bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)[None] & 1
        return 1.0 - 2.0 * bits, True
    return np.random.default_rng([30, n]).choice([-1.0, 1.0], size=(FLIPS, n)), False


def sign_flip(differences: np.ndarray) -> np.ndarray:
    """Two-sided sign-flip permutation test of the mean of paired differences (n,) or (n, tests): the p values, one a
    test.

    Exact up to EXACT_UP_TO units, else FLIPS random flips with the observed one counted (Phipson and Smyth 2010,
    doi:10.2202/1544-6115.1585). NaN (a unit that one of the two lacks) takes no part.
    """
    d = np.nan_to_num(np.asarray(differences, float).reshape(len(differences), -1))
    signs, exact = _signs(len(d))
    observed = np.abs(d.sum(0)) * (1 - 1e-9) - 1e-12  # equal sums must count as equal in spite of rounding
    parts = [np.abs(signs @ d[:, i : i + 64]) for i in range(0, d.shape[1], 64)]
    hits = np.concatenate([(part >= observed[i * 64 : i * 64 + 64]).sum(0) for i, part in enumerate(parts)])
    return hits / len(signs) if exact else (hits + 1) / (len(signs) + 1)


def sign_flip_leader(scores: np.ndarray, leader: int) -> np.ndarray:
    """Two-sided sign-flip tests of the row `leader` of `scores` (rows, repeats, units) against every other, where it
    was picked because it leads: p values (rows,), NaN for itself, corrected over all pairs of rows.

    The units' differences, means over common repeats, are flipped in all pairs at once, and of each flip the largest
    |sum| / sqrt(sum of squares) counts: single-step maxT (Westfall and Young 1993, Resampling-Based Multiple Testing).
    A correction over the leader's own pairs alone would leave out that chance chose the leader.
    """
    rows, _, units = scores.shape
    signs, exact = _signs(units)
    pairs = rows * (rows - 1) // 2
    if pairs * len(signs) > FLIPPED:
        signs = np.random.default_rng([40, units]).choice(signs, max(FLIPPED // pairs, 999))
        exact = False
    largest, against = np.zeros(len(signs)), np.full(rows, np.nan)
    for row in range(rows):
        d = np.nan_to_num(nanmean(scores[row + 1 :] - scores[row], 1))  # (rows after, units)
        scale = np.sqrt((d**2).sum(1))
        t = np.abs(d @ signs.T) / np.where(scale > 0, scale, 1)[:, None]
        largest = np.maximum(largest, t.max(0, initial=0))
        alone = np.abs(d.sum(1)) / np.where(scale > 0, scale, 1)
        if row == leader:
            against[row + 1 :] = alone
        elif row < leader:
            against[row] = alone[leader - row - 1]
    hits = (largest >= against[:, None] * (1 - 1e-9) - 1e-12).sum(1)
    return np.where(np.isnan(against), np.nan, hits / len(signs) if exact else (hits + 1) / (len(signs) + 1))


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (scipy's; zero differences dropped); 1 where nothing differs, NaN
    without units.
    """
    d = np.asarray(differences, float)
    d = d[~np.isnan(d)]
    if len(d) == 0:
        return float("nan")
    from scipy import stats  # here, as it takes half a second, and a run's table compares nothing

    return float(stats.wilcoxon(d).pvalue) if np.any(d != 0) else 1.0


def holm(p: np.ndarray, family: int = 0) -> np.ndarray:
    """p values adjusted over their family, (n,) (Holm 1979, Scandinavian Journal of Statistics 6:65-70); a NaN is no
    test and stays NaN. `family`: number of tests that were possible, where `p` are those that were picked of them.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    adjusted = np.full(len(p), np.nan)
    left = max(family, len(order)) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * left), 1)
    return adjusted


@_finite
def crossed_interval(differences: np.ndarray) -> Interval | None:
    """Mean, 95 % interval and p over units *and* repeats, from `differences` (repeats, units).

    Both are random and crossed, as readers and cases are in radiology: the variance of the mean is (MS_repeats +
    max(MS_units - MS_rest, 0)) / (repeats x units), with the degrees of freedom of its two parts (Dorfman,
    Berbaum and Metz 1992, doi:10.1097/00004424-199209000-00015; Hillis 2007, doi:10.1002/sim.2532). Measured coverage
    with 3 or 5 repeats, 10 to 60 units and any amount of training noise: 93 to 97 %; the interval over units
    alone falls to 50 %. Only units with every repeat are used; None below FEWEST_REPEATS or FEWEST.
    """
    d = np.asarray(differences, float)
    d = d[:, ~np.isnan(d).any(0)]
    repeats, units = d.shape
    if repeats < FEWEST_REPEATS or units < FEWEST:
        return None
    mean, by_unit, by_repeat = d.mean(), d.mean(0), d.mean(1)
    ms_rest = ((d - by_unit - by_repeat[:, None] + mean) ** 2).sum() / ((repeats - 1) * (units - 1))
    ms_repeats = units * by_repeat.var(ddof=1)
    ms_units = max(repeats * by_unit.var(ddof=1) - ms_rest, 0)
    total = ms_repeats + ms_units
    least = _rounding(d)
    if total < np.square(100 * least):  # no spread but that of rounding
        return Interval(mean, mean, mean, float(abs(mean) < least))
    from scipy import stats

    error = np.sqrt(total / d.size)
    df = total**2 / (ms_repeats**2 / (repeats - 1) + ms_units**2 / (units - 1))
    half = stats.t.ppf(0.975, df) * error
    return Interval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, df)))


def pareto(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """Indices of the points that no other beats in `value` at the same or a lower `cost`, cheapest first; a NaN takes
    no part.
    """
    front: list[int] = []
    for i in sorted(np.flatnonzero(~np.isnan(cost) & ~np.isnan(value)).tolist(), key=lambda i: (cost[i], -value[i])):
        if not front or value[i] > value[front[-1]]:
            front.append(i)
    return front
