"""What epochs and settings tell: overfitting, convergence, sensitivity to the learning rate, importance of factors."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import stats

from segsweep.report import statistics
from segsweep.report.comparison import Comparison, Configuration, digest, key, labels
from segsweep.report.records import Run

FEWEST_RUNS = 4  # below this many finished runs, no importance is worked out


@dataclass(frozen=True)
class Overfitting:
    """Gap of train to evaluation in the last epoch, mean over the runs: positive = better on what it was trained on."""

    part: str  # val or test
    dice: float
    loss: float
    trend: str


def overfitting(row: Configuration) -> Overfitting | None:
    """None where the histories lack one side. The trend is Kendall's test of the Dice gap against the epoch, at 5 %."""
    part = row.runs[0].evaluated_on
    train, other = row.curves("train/dice"), row.curves(f"{part}/dice")
    if train.shape != other.shape or not train.size:
        return None
    gap = statistics.nanmean(train - other, 0)
    loss_gap = statistics.nanmean(row.curves(f"{part}/loss") - row.curves("train/loss"), 0)
    seen = np.flatnonzero(~np.isnan(gap))
    if not len(seen):
        return None
    trend = "too few epochs"
    if len(seen) >= 5:
        tau, p = stats.kendalltau(seen, gap[seen]) if np.ptp(gap[seen]) > 0 else (0.0, 1.0)
        trend = ("widening" if tau > 0 else "closing") if p < statistics.LEVEL else "no trend shown"
    return Overfitting(part, float(gap[seen[-1]]), float(loss_gap[seen[-1]]), trend)


@dataclass(frozen=True)
class Convergence:
    """Epochs until the evaluation Dice first reached 95 % of its final value, one figure a run, of how many."""

    part: str
    epochs: list[int]
    of: int
    rising: bool  # some run had its best Dice in the last epoch and gained over 1 % there


def convergence(row: Configuration) -> Convergence | None:
    part = row.runs[0].evaluated_on
    reached, rising, longest = [], False, 0
    for run in row.runs:
        dice = run.history.get(f"{part}/dice", np.empty(0))
        if not len(dice) or not dice[-1] > 0:
            continue
        reached.append(int(np.argmax(dice >= 0.95 * dice[-1])) + 1)
        rising |= len(dice) > 1 and bool(dice[-1] >= np.nanmax(dice) and dice[-1] > 1.01 * dice[-2])
        longest = max(longest, len(dice))
    return Convergence(part, sorted(reached), longest, rising) if reached else None


@dataclass(frozen=True)
class RateSeries:
    """Rows that are the same but for the learning rate, in its order."""

    label: str
    rates: list[float]
    rows: list[int]

    def best(self, comparison: Comparison) -> int:
        return int(np.argmax([comparison.mean(row) for row in self.rows]))


def learning_rates(comparison: Comparison) -> list[RateSeries]:
    """Series of at least two learning rates with all else equal; the longest first."""
    series: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, row in enumerate(comparison.rows):
        if isinstance(row.factors.get("optim.lr"), int | float) and not np.isnan(comparison.mean(i)):
            others = tuple((k, key(v)) for k, v in row.factors.items() if k != "optim.lr")
            series.setdefault(others, []).append(i)
    found = [
        sorted(rows, key=lambda i: comparison.rows[i].factors["optim.lr"]) for rows in series.values() if len(rows) > 1
    ]
    names = labels([comparison.rows[rows[0]] for rows in found], without=("optim.lr",))
    rates = [[float(comparison.rows[i].factors["optim.lr"]) for i in rows] for rows in found]
    return sorted(map(RateSeries, names, rates, found), key=lambda s: -len(s.rows))


@dataclass(frozen=True)
class Importance:
    """How much each factor matters for test Dice, as shares of one; what it rests on, and what was left out."""

    factors: list[str]
    shares: dict[str, list[float]]  # evaluator -> share of each factor
    runs: int
    left_out: list[str]
    full_grid: bool


def importance(runs: list[Run]) -> Importance | None:
    """Importance of the varied factors over all finished runs, by Optuna's evaluators; None where nothing can be said.

    fANOVA (Hutter, Hoos and Leyton-Brown 2014, ICML) over the whole range, PED-ANOVA (Watanabe, Bansal and Hutter 2023,
    arXiv:2304.10255) for what tells the better runs from the rest. Only the runs of the data and kind of split that
    most have in common take part, and only factors that all of them have. The seed is one of the factors: a measure of
    chance.
    """
    scored = [
        (run, float(run.metrics["test/dice"]))
        for run in runs
        if run.status == "finished" and _finite(run.metrics.get("test/dice"))
    ]
    tests = Counter((digest(run, "data"), run.leaks) for run, _ in scored)
    scored = [(run, dice) for run, dice in scored if (digest(run, "data"), run.leaks) == tests.most_common(1)[0][0]]
    names = dict.fromkeys(name for run, _ in scored for name in run.factors)
    levels = {name: {key(run.factors[name]) if name in run.factors else None for run, _ in scored} for name in names}
    several = [name for name in names if len(levels[name]) > 1 and name != "split.fold"]
    usable = [name for name in several if None not in levels[name]]
    if len(scored) < FEWEST_RUNS or len(usable) < 2 or len({dice for _, dice in scored}) < 2:
        return None
    import optuna  # 3 s: only when there is something to weigh

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    values = {name: [run.factors[name] for run, _ in scored] for name in usable}
    spaces = {name: _distribution(values[name]) for name in usable}
    categorical = optuna.distributions.CategoricalDistribution
    for i, (_, dice) in enumerate(scored):
        params = {n: key(values[n][i]) if isinstance(spaces[n], categorical) else values[n][i] for n in usable}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=dice))
    shares = {}
    for name, evaluator in (
        ("fANOVA", optuna.importance.FanovaImportanceEvaluator(seed=0, n_trees=32)),
        ("PED-ANOVA", optuna.importance.PedAnovaImportanceEvaluator()),
    ):
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=usable)
        shares[name] = [float(found[factor]) for factor in usable]
    order = np.argsort(shares["fANOVA"])[::-1]
    full = len({tuple(key(run.factors[n]) for n in usable) for run, _ in scored}) == int(
        np.prod([len(levels[n]) for n in usable])
    )
    left_out = [name for name in several if name not in usable and len(levels[name] - {None}) > 1]
    return Importance(
        [usable[i] for i in order], {k: [v[i] for i in order] for k, v in shares.items()}, len(scored), left_out, full
    )


def _distribution(values: list[object]) -> "optuna.distributions.BaseDistribution":  # type: ignore[name-defined] # noqa: F821
    """A numeric range where there are many numbers (on a log scale over two decades), else a choice of the levels."""
    import optuna

    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and len(set(values)) > 5:
        low, high = float(min(values)), float(max(values))  # type: ignore[type-var,arg-type]
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 100)
    return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(key(v) for v in values)))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
