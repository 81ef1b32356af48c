"""What epochs and settings tell: overfitting, convergence, sensitivity to the learning rate, importance of factors."""

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from segsweep.report import statistics
from segsweep.report.comparison import Comparison, Configuration, digest, key, labels, scale
from segsweep.task import Metric

if TYPE_CHECKING:
    import optuna

FEWEST_RUNS = 10  # below this many finished runs, no importance is worked out


@dataclass(frozen=True)
class Overfitting:
    """Gap of train to evaluation in each run's last epoch, mean over the runs: positive = better on what it was trained
    on."""

    part: str  # val or test
    score: float  # of the primary metric
    loss: float
    trend: str


def overfitting(row: Configuration, metric: str) -> Overfitting | None:
    """By `metric` and by the loss, if the task has one. None where the histories lack one side of `metric`. The trend
    is Kendall's test of the mean gap against the epoch, at 5 %, over the epochs that all runs have."""
    part, spec = row.runs[0].evaluated_on, row.runs[0].spec

    def gaps(name: str) -> np.ndarray:
        """(runs, epochs), of the runs that have any."""
        train, other = row.curves(f"train/{name}"), row.curves(f"{part}/{name}")
        if train.shape != other.shape or name not in spec.metrics:
            return np.empty((0, 0))
        several = spec.metrics[name].sign * (train - other)
        return several[~np.isnan(several).all(1)]

    def last(several: np.ndarray) -> float:
        return float(statistics.nanmean(np.array([run[~np.isnan(run)][-1] for run in several] or [np.nan])))

    several = gaps(metric)
    if not len(several):
        return None
    gap = several.mean(0)
    seen = np.flatnonzero(~np.isnan(gap))
    trend = "too few epochs"
    if len(seen) >= 5:
        tau, p = stats.kendalltau(seen, gap[seen]) if np.ptp(gap[seen]) > 0 else (0.0, 1.0)
        trend = ("widening" if tau > 0 else "closing") if p < statistics.LEVEL else "no trend shown"
    return Overfitting(part, last(several), last(gaps("loss")), trend)


@dataclass(frozen=True)
class Convergence:
    """Epochs until the evaluation first had 95 % of what it gained, one figure a run, of how many."""

    part: str
    epochs: list[int]
    of: int
    rising: bool  # some run was best in the last epoch and gained over 1 % there


def start(metric: Metric) -> float:
    """From where a gain is counted: the worst value that there can be, such as 0 of a share; NaN where there is none,
    and it is counted from the first epoch."""
    worst = metric.bounds[0] if metric.sign > 0 else metric.bounds[1]
    return worst if np.isfinite(worst) else float("nan")


def convergence(row: Configuration) -> Convergence | None:
    """By the primary metric. A run that ends no better than it started has no figure."""
    part, spec = row.runs[0].evaluated_on, row.runs[0].spec
    metric = spec.metrics[spec.primary]
    reached, rising, longest = [], False, 0
    for run in row.runs:
        values = run.history.get(f"{part}/{spec.primary}", np.empty(0))
        defined = values[~np.isnan(values)]
        if not len(defined):
            continue
        zero = defined[0] if np.isnan(start(metric)) else start(metric)
        gain = metric.sign * (values - zero)
        if not gain[-1] > 0:
            continue
        reached.append(int(np.argmax(gain >= 0.95 * gain[-1])) + 1)
        rising |= len(gain) > 1 and bool(gain[-1] >= np.nanmax(gain) and gain[-1] > 1.01 * gain[-2])
        longest = max(longest, len(gain))
    return Convergence(part, sorted(reached), longest, rising) if reached else None


@dataclass(frozen=True)
class RateSeries:
    """Rows that are the same but for the learning rate, in its order."""

    label: str
    rates: list[float]
    rows: list[int]

    def best(self, comparison: Comparison) -> int:
        return int(np.argmax([comparison.metric.sign * comparison.mean(row) for row in self.rows]))


def learning_rates(comparison: Comparison) -> list[RateSeries]:
    """Series of at least two learning rates (any factor that is called `lr`) with all else equal, the code and the data
    too; the longest first."""
    series: dict[tuple[str, tuple[tuple[str, str], ...]], list[int]] = {}
    for i, row in enumerate(comparison.rows):
        for name, value in row.factors.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name.split(".")[-1] == "lr" and number and not np.isnan(comparison.mean(i)):
                apart = (*row.versions.items(), ("data", digest(row.runs[0], "data")), ("arena", str(row.arena)))
                others = (*((k, key(v)) for k, v in row.factors.items() if k != name), *apart)
                series.setdefault((name, others), []).append(i)
    made: list[RateSeries] = []
    for name in dict.fromkeys(name for name, _ in series):
        found = [rows for (other, _), rows in series.items() if other == name]
        found = [rows for rows in found if len({comparison.rows[i].factors[name] for i in rows}) > 1]
        found = [sorted(rows, key=lambda i: comparison.rows[i].factors[name]) for rows in found]
        names = labels([comparison.rows[rows[0]] for rows in found], without=(name,))
        rates = [[float(comparison.rows[i].factors[name]) for i in rows] for rows in found]
        made += map(RateSeries, names, rates, found)
    return sorted(made, key=lambda s: -len(s.rows))


@dataclass(frozen=True)
class Importance:
    """How much each factor matters for the final score, as shares of one; what it rests on, and what was left out."""

    factors: list[str]
    shares: dict[str, list[float]]  # evaluator -> share of each factor
    runs: int
    left_out: list[str]
    full_grid: bool


def importance(comparison: Comparison) -> Importance | None:
    """Importance of the varied factors over all finished runs, by Optuna's evaluators; None where nothing can be said.

    fANOVA (Hutter, Hoos and Leyton-Brown 2014, ICML) over the whole range, PED-ANOVA (Watanabe, Bansal and Hutter 2023,
    arXiv:2304.10255) for what tells the better runs from the rest. Only the runs of the data, kind of split and scale
    that most have in common take part, and only factors that all of them have. The seed is one of the factors: a
    measure of chance.
    """
    metric, final = comparison.metric, f"{comparison.part}/{comparison.spec.primary}"
    runs = [run for run in comparison.record.runs if run.status == "finished" and _finite(run.metrics.get(final))]
    tests = [(digest(run, "data"), run.leaks, scale(run.factors, metric)) for run in runs]
    most = Counter(tests).most_common(1)
    scored = [(run, float(run.metrics[final])) for run, test in zip(runs, tests, strict=True) if test == most[0][0]]
    names = dict.fromkeys(name for run, _ in scored for name in run.factors)
    levels = {name: {key(run.factors[name]) if name in run.factors else None for run, _ in scored} for name in names}
    several = [name for name in names if len(levels[name]) > 1 and name not in comparison.spec.repeats]
    usable = [name for name in several if None not in levels[name]]
    if len(scored) < FEWEST_RUNS or len(usable) < 2 or len({score for _, score in scored}) < 2:
        return None
    import optuna  # 3 s: only when there is something to weigh

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if metric.sign > 0 else "minimize")
    values = {name: [run.factors[name] for run, _ in scored] for name in usable}
    spaces = {name: _distribution(values[name]) for name in usable}
    categorical = optuna.distributions.CategoricalDistribution
    for i, (_, score) in enumerate(scored):
        params = {n: key(values[n][i]) if isinstance(spaces[n], categorical) else values[n][i] for n in usable}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=score))
    found = weighed(study, usable, usable)
    shares = {name: [share[factor] for factor in usable] for name, share in found.items()}
    order = np.argsort(shares["fANOVA"])[::-1]
    full = len({tuple(key(run.factors[n]) for n in usable) for run, _ in scored}) == int(
        np.prod([len(levels[n]) for n in usable])
    )
    left_out = [name for name in several if name not in usable and len(levels[name] - {None}) > 1]
    return Importance(
        [usable[i] for i in order], {k: [v[i] for i in order] for k, v in shares.items()}, len(scored), left_out, full
    )


def weighed(study: "optuna.Study", everywhere: list[str], varied: list[str]) -> dict[str, dict[str, float]]:
    """Evaluator -> parameter -> share of one; an evaluator of fewer than two parameters is left out. `everywhere`:
    those that all trials have, which fANOVA needs."""
    import optuna

    with warnings.catch_warnings(action="ignore"):  # of what is experimental in Optuna, and of few trials
        evaluators = {
            "fANOVA": (optuna.importance.FanovaImportanceEvaluator(seed=0, n_trees=32), everywhere),
            "PED-ANOVA": (optuna.importance.PedAnovaImportanceEvaluator(), varied),
        }
        found = {
            name: optuna.importance.get_param_importances(study, evaluator=evaluator, params=params)
            for name, (evaluator, params) in evaluators.items()
            if len(params) > 1
        }
    return {name: {key: float(value) for key, value in shares.items()} for name, shares in found.items()}


def _distribution(values: list[object]) -> "optuna.distributions.BaseDistribution":
    """A numeric range where there are many numbers (on a log scale over two decades), else a choice of the levels."""
    import optuna

    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and len(set(values)) > 5:
        low, high = float(min(values)), float(max(values))  # type: ignore[type-var,arg-type]
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 100)
    return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(key(v) for v in values)))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
