"""Runs gathered into configurations: repeats (seeds) and folds pooled, so that a unit of the test counts once in each.

Scores lie in one array (configurations, trainings, units) with NaN where a unit was not tested, a training being a seed
and a fold: a comparison of the same units is then a subtraction, in which what one side alone has takes no part. A task
without a score for each unit is compared by its runs' own numbers: its seeds then stand in the place of units.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core.signature import OWN
from segsweep.report import statistics
from segsweep.report.record import Record, Run
from segsweep.task import Metric, Spec


@dataclass
class Configuration:
    """The finished runs that differ in nothing but seed and fold; one row of the report's tables.

    `arena`: rows of one arena were tested on the same data under the same kind of split, on one scale. `versions`: file
    of which rows have different contents -> which of them this row has, `version 1` the first."""

    runs: list[Run]
    label: str = ""
    arena: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @cached_property
    def factors(self) -> dict[str, Any]:
        apart = ("seed", f"{OWN}.seed", *self.runs[0].spec.repeats)
        return {k: v for k, v in self.runs[0].factors.items() if k not in apart}

    @cached_property
    def inputs(self) -> set[str]:
        """Those of the factors that decide what is trained and tested on, as the task says. What it only resolves with
        the data at hand, such as the arithmetic of a device, decides nothing of them."""
        run = self.runs[0]
        named = {*run.spec.inputs} - {*(run.info.get("resolved") or ("precision",))}
        return {name for name in self.factors if name.removeprefix("task.").split(".")[0] in named}

    @property
    def seeds(self) -> list[Any]:
        return sorted({run.seed for run in self.runs}, key=ordered)

    @property
    def repeats(self) -> dict[str, list[Any]]:
        """Beside the seed: the key of a kind of repeat, such as a fold, -> its values in these runs."""
        values = zip(self.runs[0].spec.repeats, zip(*(run.repeat for run in self.runs), strict=True), strict=False)
        found = {key: sorted({value for value in several if value is not None}, key=ordered) for key, several in values}
        return {key: several for key, several in found.items() if several}

    @property
    def leaks(self) -> bool:
        return any(run.leaks for run in self.runs)

    @property
    def lent(self) -> bool:
        return any(run.lent for run in self.runs)

    def metric(self, name: str) -> float:
        """Mean over the runs of a final metric of result.json; NaN where none has it."""
        return float(statistics.nanmean(np.array([_float(run.metrics.get(name)) for run in self.runs])))

    def curves(self, name: str) -> np.ndarray:
        """(runs, epochs) of a column of the histories, NaN after a run's end; no rows where no run has it."""
        found = [run.history[name] for run in self.runs if name in run.history]
        if not found:
            return np.empty((0, 0))
        longest = max(len(column) for column in found)
        return np.array([np.pad(column, (0, longest - len(column)), constant_values=np.nan) for column in found])


@dataclass
class Best:
    """The leading row of an arena for one metric, and the rows that cannot be told from it."""

    row: int
    tied: list[int]
    rivals: int  # rows that it was tested against
    repeats: bool  # whether every rival was tested over repeats too, not over units alone


@dataclass
class Comparison:
    """Everything that the sections write about, worked out once. `metric` is the primary one where none is named.

    Args:
        part: which part the compared numbers are of: `test`, and `val` where no run has a number of a test.
        units: (digest of the data, unit).
        cells: metric -> (rows, trainings, units); seed_of: (trainings,) which of the seeds a training has.
        scores: metric -> (rows, seeds, units), means over a seed's trainings; where seeds stand in the place of units,
            (rows, 1, seeds).
        best: metric -> one an arena.
    """

    record: Record
    rows: list[Configuration]
    part: str
    seeds: list[Any]
    units: list[tuple[str, str]]
    cells: dict[str, np.ndarray]
    seed_of: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    best: dict[str, list[Best]] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return self.record.spec

    @property
    def metric(self) -> Metric:
        """The primary one."""
        return self.spec.metrics[self.spec.primary]

    @property
    def primary(self) -> np.ndarray:
        """Its scores."""
        return self.scores[self.spec.primary]

    def less(self, a: Any, b: Any, metric: str | None = None) -> np.ndarray:
        """(..., seeds, units): row `a`, or rows, minus `b`, of each seed the mean over the trainings that both have."""
        cells = self.cells[metric or self.spec.primary]
        return self._of_seeds(cells[a] - cells[b])

    def _of_seeds(self, cells: np.ndarray) -> np.ndarray:
        seeds = range(int(self.seed_of.max(initial=-1)) + 1)
        if len(self.seed_of) == len(seeds):  # one training each
            return cells
        return np.stack([statistics.nanmean(cells[..., self.seed_of == seed, :], -2) for seed in seeds], -2)

    @property
    def alone(self) -> bool:
        """Whether no unit has a score, so that seeds stand in their place."""
        return not self.spec.scores

    @property
    def span(self) -> tuple[float, float]:
        """Bounds of a difference between two values of the primary metric."""
        low, high = self.metric.bounds
        return low - high, high - low

    def by_unit(self, row: int, metric: str | None = None) -> np.ndarray:
        """(units,) mean over the seeds; NaN = not tested or undefined."""
        return statistics.nanmean(self.scores[metric or self.spec.primary][row], axis=0)

    def interval(self, row: int, metric: str | None = None) -> statistics.Interval | None:
        bounds = self.spec.metrics[metric or self.spec.primary].bounds
        return statistics.mean_interval(self.by_unit(row, metric), bounds=bounds)

    def mean(self, row: int, metric: str | None = None) -> float:
        """Over the units of the pooled repeats; the runs' own figure where no unit was recorded."""
        values = self.by_unit(row, metric)
        own = f"{self.part}/{metric or self.spec.primary}"
        return float(statistics.nanmean(values)) if not np.isnan(values).all() else self.rows[row].metric(own)

    def tested(self, row: int) -> int:
        """Units that the row was tested on, those with an undefined score included."""
        return len({unit for run in self.rows[row].runs for unit in run.units})


def compare(record: Record) -> Comparison:
    """Pool the record's finished runs; rows come best first by the primary metric, those that leak last."""
    spec, sign = record.spec, record.spec.metrics[record.spec.primary].sign
    groups: dict[str, dict[tuple[Any, ...], Run]] = {}
    for run in sorted(
        (r for r in record.runs if r.status == "finished"), key=lambda r: str(r.info.get("created") or "")
    ):
        groups.setdefault(run.group, {})[run.seed, run.repeat] = run  # the same repeat twice: the later one counts
    rows = [Configuration(list(runs.values())) for runs in groups.values()]
    arenas: dict[Any, int] = {}
    for row in rows:
        of_data = {k: row.factors[k] for k in row.inputs if k.split(".")[0] != "data"}  # whose digest says more
        alike = digest(row.runs[0], "data"), row.leaks, key(of_data), scale(row.factors, spec.metrics[spec.primary])
        row.arena = arenas.setdefault(alike, len(arenas))
    _number_versions(rows)
    for row, label in zip(rows, labels(rows), strict=True):
        row.label = label

    tested = any(f"test/{spec.primary}" in run.metrics or run.units for row in rows for run in row.runs)
    part = "test" if tested or spec.scores else "val"
    seeds = sorted({run.seed for row in rows for run in row.runs}, key=ordered)

    def training(run: Run) -> tuple[int, Any]:
        """The place of its seed, and its fold."""
        return seeds.index(run.seed) if spec.scores else 0, run.repeat

    trainings = sorted({training(run) for row in rows for run in row.runs}, key=lambda cell: (cell[0], key(cell[1])))
    each = {id(run): _scores(run, spec, part) for row in rows for run in row.runs}
    units = sorted({(digest(run, "data"), unit) for row in rows for run in row.runs for unit in each[id(run)]})
    place = {unit: i for i, unit in enumerate(units)}
    number = {cell: i for i, cell in enumerate(trainings)}
    shape = len(rows), len(trainings), len(units)
    cells = {metric: np.full(shape, np.nan) for metric in spec.scores or (spec.primary,)}
    for i, row in enumerate(rows):
        for run in row.runs:
            data, cell = digest(run, "data"), number[training(run)]
            for unit, values in each[id(run)].items():
                for metric, known in cells.items():
                    known[i, cell, place[data, unit]] = values.get(metric, np.nan)
    comparison = Comparison(record, rows, part, seeds, units, cells, np.array([seed for seed, _ in trainings], int))
    comparison.scores = {metric: comparison._of_seeds(known) for metric, known in cells.items()}
    means = [comparison.mean(i) for i in range(len(rows))]
    ranks = [(row.leaks, mean != mean, -sign * np.nan_to_num(mean)) for row, mean in zip(rows, means, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (*ranks[i], rows[i].label))
    comparison.rows = [rows[i] for i in order]
    comparison.cells = {metric: values[order] for metric, values in cells.items()}
    comparison.scores = {metric: values[order] for metric, values in comparison.scores.items()}
    comparison.best = {metric: _best(comparison, metric) for metric in cells}
    return comparison


def _number_versions(rows: list[Configuration]) -> None:
    """Say which version of a file each row has, where rows were computed by different ones, in the order of `rows`. A
    run that was accepted for other code is of that code, too."""
    seen: dict[
        str, list[tuple[Configuration, list[str]]]
    ] = {}  # module -> the row, its hashes, the last to be named by
    for row in rows:
        files = [run.info.get("files") or {"code": run.info.get("code")} for run in row.runs]
        files += [{k: new for k, (_, new) in e["files"].items()} for run in row.runs for e in run.accepted]
        for module in dict.fromkeys(name for known in files for name in known):
            hashes = [str(known[module]) for known in files if known.get(module)]
            seen.setdefault(module, []).append((row, hashes))
    for module, found in seen.items():
        known = [{*hashes} for _, hashes in found if hashes]
        if known and set.intersection(*known):
            continue
        if any(a and b and not {*a} & {*b} for _, a in found for _, b in found):
            last = list(dict.fromkeys(hashes[-1] for _, hashes in found if hashes))
            for row, hashes in found:
                if hashes:
                    row.versions[_file(row, module)] = f"version {last.index(hashes[-1]) + 1}"


def _file(row: Configuration, module: str) -> str:
    place = (row.runs[0].info.get("places") or {}).get(module)
    return Path(place).name if place else module


def _scores(run: Run, spec: Spec, part: str) -> dict[str, dict[str, float]]:
    """Unit -> metric -> score; of a task without any, the run's own number under its seed."""
    if spec.scores:
        return run.units
    return {str(run.seed): {spec.primary: _float(run.metrics.get(f"{part}/{spec.primary}"))}}


def scale(factors: dict[str, Any], metric: Metric) -> str:
    """What the scale of a metric's values depends on, as in `factors`; a key stands for those below it, too."""
    return key({k: v for k, v in factors.items() if scales(k, metric)})


def scales(factor: str, metric: Metric) -> bool:
    return any(factor == name or factor.startswith(f"{name}.") for name in metric.scale)


def _best(comparison: Comparison, metric: str) -> list[Best]:
    """For each arena with several scored rows: the leader, and those not shown to be worse at 5 %.

    Shown means: worse on the same units and seeds, by the sign-flip test and, where there are enough common seeds, over
    units and seeds; both corrected over all pairs of rows, since the leader was picked by its score.
    """
    found = []
    about = comparison.spec.metrics[metric]
    sign, scores = about.sign, comparison.scores[metric]
    scored = ~np.isnan(scores).all((1, 2))
    arenas = [(row.arena, scale(row.factors, about)) for row in comparison.rows]
    for arena in sorted(set(arenas)):
        members = [i for i, other in enumerate(arenas) if other == arena and scored[i]]
        if len(members) < 2:
            continue
        leader = max(members, key=lambda i: sign * comparison.mean(i, metric))
        unscored = [comparison.mean(i, metric) for i, other in enumerate(arenas) if other == arena and not scored[i]]
        if any(sign * mean > sign * comparison.mean(leader, metric) for mean in unscored):
            continue  # who leads has no score of a unit left, and is tested against nobody
        rivals = [i for i in members if i != leader]
        paired = comparison.less([leader], rivals, metric)  # (rivals, seeds, units)
        over = [statistics.crossed_interval(d[~np.isnan(d).all(1)]) for d in paired]
        ahead = sign * statistics.nanmean(statistics.nanmean(paired, 1), 1) > 0  # on the units that both have
        p = np.delete(
            statistics.sign_flip_leader(comparison.cells[metric][members], members.index(leader)), members.index(leader)
        )
        pairs = len(members) * len(rivals) // 2
        again = statistics.holm(np.array([o.p if o else np.nan for o in over]), pairs)
        tied = [
            i
            for i, better, *both in zip(rivals, ahead, p, again, strict=True)
            if not better or np.nanmax(both) >= statistics.LEVEL
        ]
        found.append(Best(leader, tied, len(rivals), all(o is not None for o in over)))
    return found


def ordered(value: Any) -> tuple[int, float, str]:
    """Sort key of a seed or a fold: numbers as numbers, and before words."""
    if isinstance(value, int | float) and value == value:
        return 0, float(value), ""
    return 1, 0.0, str(value)


def digest(run: Run, part: str) -> str:
    return str((run.info.get(part) or {}).get("digest") or "")


def key(value: Any) -> str:
    """A level of a factor as text that can be compared: 1 and 1.0 are the same, lists and objects count as a whole."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


def telling(settings: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Those that rows share, without what decides nothing at its value (`Spec.neutral`)."""
    return {k: v for k, v in settings.items() if k not in spec.neutral or key(v) != key(spec.neutral[k])}


def show(value: Any) -> str:
    """A level of a factor as a person writes it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else "none" if value is None else str(value)


def varied(rows: list[Configuration]) -> tuple[list[str], dict[str, Any]]:
    """(factors that differ between the rows, those that all share with their value), in the order of the record."""
    names = list(dict.fromkeys(name for row in rows for name in row.factors))
    levels = {name: {key(row.factors[name]) if name in row.factors else None for row in rows} for name in names}
    return [n for n in names if len(levels[n]) > 1], {n: rows[0].factors[n] for n in names if len(levels[n]) == 1}


def labels(rows: list[Configuration], without: tuple[str, ...] = ()) -> list[str]:
    """A short distinct name for each row: its experiment, if any, and the factors (but `without`) that set it apart."""
    experiments = [str((row.runs[0].info.get("choices") or {}).get("experiment") or "") for row in rows]
    names = [name for name in varied(rows)[0] if name not in without]
    last = Counter(name.split(".")[-1] for name in names)
    telling = {}  # experiment -> factors with several levels among the rows that have them
    usual = {}  # factor -> the level that three rows in four share: not worth saying, save for the model
    for name in names:
        common, many = Counter(key(row.factors[name]) for row in rows if name in row.factors).most_common(1)[0]
        usual[name] = common if many >= 0.75 * len(rows) and name != "model" else None
    for experiment in set(experiments):
        peers = [row for row, other in zip(rows, experiments, strict=True) if not experiment or other == experiment]
        telling[experiment] = [n for n in names if len({key(row.factors[n]) for row in peers if n in row.factors}) > 1]
    texts = []
    for row, experiment in zip(rows, experiments, strict=True):
        parts = [experiment] if experiment else []
        for name in telling[experiment]:
            if name in row.factors and key(row.factors[name]) != usual[name]:
                value, short = row.factors[name], name.split(".")[-1]
                bare = name in ("model", "loss", "optim")
                parts.append(show(value) if bare else f"{short if last[short] == 1 else name}={show(value)}")
        parts += _told_versions(row, rows)
        groups = [f"{name}={row.factors[name]}" for name in row.runs[0].choices if name in row.factors][:2]
        usual_name = row.factors.get("model", row.factors.get("task", ", ".join(groups) or row.runs[0].signature))
        texts.append(", ".join(parts) or show(usual_name))
    seen: Counter[str] = Counter()
    counts = Counter(texts)
    for i, text in enumerate(texts):
        seen[text] += 1
        texts[i] = f"{text} #{seen[text]}" if counts[text] > 1 else text
    return texts


def _told_versions(row: Configuration, rows: list[Configuration]) -> list[str]:
    """Of the files whose version is not the same in all rows; one word for more than two of them."""
    several = {file for other in rows for file in other.versions if len({r.versions.get(file) for r in rows}) > 1}
    told = {file: version for file, version in row.versions.items() if file in several}
    if len(told) <= 2:
        return [f"{file}: {version}" for file, version in told.items()]
    kinds = list(dict.fromkeys(tuple(sorted(other.versions.items())) for other in rows))
    return [f"code: version {kinds.index(tuple(sorted(row.versions.items()))) + 1}"]


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
