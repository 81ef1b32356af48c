"""Runs gathered into configurations: repeats (seeds) and folds pooled, so that a patient counts once in each.

Scores lie in one array (configurations, seeds, patients) with NaN where a patient was not tested: a comparison of the
same patients is then a subtraction.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from segsweep.report import statistics
from segsweep.report.records import SCORES, Record, Run

LOWER_IS_BETTER = ("hd95",)
REPEATS = ("seed", "split.fold")


@dataclass
class Configuration:
    """The finished runs that differ in nothing but seed and fold; one row of the report's tables."""

    runs: list[Run]
    label: str = ""
    arena: int = 0  # rows of one arena were tested on the same data under the same kind of split

    @cached_property
    def factors(self) -> dict[str, Any]:
        return {k: v for k, v in self.runs[0].factors.items() if k not in REPEATS}

    @property
    def seeds(self) -> list[Any]:
        return sorted({run.seed for run in self.runs}, key=str)

    @property
    def folds(self) -> list[Any]:
        return sorted({run.fold for run in self.runs if run.fold is not None}, key=str)

    @property
    def leaks(self) -> bool:
        return any(run.leaks for run in self.runs)

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
    repeats: bool  # whether every rival was tested over repeats too, not over patients alone


@dataclass
class Comparison:
    """Everything that the sections write about, worked out once."""

    record: Record
    rows: list[Configuration]
    seeds: list[Any]
    patients: list[tuple[str, str]]  # (digest of the data, patient)
    scores: dict[str, np.ndarray]  # metric -> (rows, seeds, patients)
    best: dict[str, list[Best]] = field(default_factory=dict)  # metric -> one an arena

    def by_patient(self, row: int, metric: str = "dice") -> np.ndarray:
        """(patients,) mean over the seeds; NaN = not tested or undefined."""
        return statistics.nanmean(self.scores[metric][row], axis=0)

    def interval(self, row: int, metric: str = "dice") -> statistics.Interval | None:
        bounds = (0.0, np.inf if metric in LOWER_IS_BETTER else 1.0)
        return statistics.mean_interval(self.by_patient(row, metric), bounds=bounds)

    def mean(self, row: int, metric: str = "dice") -> float:
        """Over the patients of the pooled repeats; the runs' own figure where no patient was recorded."""
        values = self.by_patient(row, metric)
        return (
            float(statistics.nanmean(values)) if not np.isnan(values).all() else self.rows[row].metric(f"test/{metric}")
        )

    def tested(self, row: int) -> int:
        """Patients that the row was tested on, those with an undefined Dice included."""
        return len({patient for run in self.rows[row].runs for patient in run.patients})


def compare(record: Record) -> Comparison:
    """Pool the record's finished runs; rows come best Dice first, those that leak last."""
    groups: dict[str, dict[tuple[Any, Any], Run]] = {}
    for run in sorted(
        (r for r in record.runs if r.status == "finished"), key=lambda r: str(r.info.get("created") or "")
    ):
        groups.setdefault(run.group, {})[run.seed, run.fold] = run  # the same repeat twice: the later one counts
    rows = [Configuration(list(runs.values())) for runs in groups.values()]
    arenas: dict[Any, int] = {}
    for row in rows:
        split = {k: v for k, v in row.factors.items() if k.split(".")[0] == "split"}
        row.arena = arenas.setdefault((digest(row.runs[0], "data"), row.leaks, key(split)), len(arenas))
    for row, label in zip(rows, labels(rows), strict=True):
        row.label = label

    seeds = sorted({run.seed for row in rows for run in row.runs}, key=str)
    patients = sorted({(digest(run, "data"), p) for row in rows for run in row.runs for p in run.patients})
    place = {patient: i for i, patient in enumerate(patients)}
    scores = {metric: np.full((len(rows), len(seeds), len(patients)), np.nan) for metric in SCORES}
    for i, row in enumerate(rows):
        for run in row.runs:
            data, seed = digest(run, "data"), seeds.index(run.seed)
            for patient, values in run.patients.items():
                for metric in SCORES:
                    scores[metric][i, seed, place[data, patient]] = values.get(metric, np.nan)
    comparison = Comparison(record, rows, seeds, patients, scores)
    means = [np.nan_to_num(comparison.mean(i), nan=-1.0) for i in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda i: (rows[i].leaks, -means[i], rows[i].label))
    comparison.rows = [rows[i] for i in order]
    comparison.scores = {metric: values[order] for metric, values in scores.items()}
    comparison.best = {metric: _best(comparison, metric) for metric in SCORES}
    return comparison


def _best(comparison: Comparison, metric: str) -> list[Best]:
    """For each arena with several scored rows: the leader, and those not shown to be worse at 5 %.

    Shown means: lower on the same patients and seeds, by the sign-flip test and, where there are enough common seeds,
    over patients and seeds; both corrected over all pairs of rows, since the leader was picked by its score.
    """
    found = []
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    scores = comparison.scores[metric]
    scored = ~np.isnan(scores).all((1, 2))
    for arena in sorted({row.arena for row in comparison.rows}):
        members = [i for i, row in enumerate(comparison.rows) if row.arena == arena and scored[i]]
        if len(members) < 2:
            continue
        leader = max(members, key=lambda i: sign * comparison.mean(i, metric))
        rivals = [i for i in members if i != leader]
        paired = scores[leader][None] - scores[rivals]  # (rivals, seeds, patients)
        over = [statistics.crossed_interval(d[~np.isnan(d).all(1)]) for d in paired]
        ahead = sign * statistics.nanmean(statistics.nanmean(paired, 1), 1) > 0  # on the patients that both have
        p = np.delete(statistics.sign_flip_leader(scores[members], members.index(leader)), members.index(leader))
        pairs = len(members) * len(rivals) // 2
        again = statistics.holm(np.array([o.p if o else np.nan for o in over]), pairs)
        tied = [
            i
            for i, better, *both in zip(rivals, ahead, p, again, strict=True)
            if not better or np.nanmax(both) >= statistics.LEVEL
        ]
        found.append(Best(leader, tied, len(rivals), all(o is not None for o in over)))
    return found


def digest(run: Run, part: str) -> str:
    return str((run.info.get(part) or {}).get("digest") or "")


def key(value: Any) -> str:
    """A level of a factor as text that can be compared: 1 and 1.0 are the same, lists and objects count as a whole."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


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
        texts.append(", ".join(parts) or show(row.factors.get("model", row.runs[0].signature)))
    seen: Counter[str] = Counter()
    counts = Counter(texts)
    for i, text in enumerate(texts):
        seen[text] += 1
        texts[i] = f"{text} #{seen[text]}" if counts[text] > 1 else text
    return texts


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
