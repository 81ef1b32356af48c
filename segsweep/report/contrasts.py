"""What one factor does, from all pairs of configurations that differ in it alone; and the pairs that can say nothing.

A key that only one option of a group has (`optim.momentum` under SGD) is part of that option, not a second difference.
A key that both have (`optim.lr`) is a factor of its own. Differing data or split files count as a difference too, but
where a setting that decides them (`Spec.inputs` of the task) differs.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from segsweep.core.program import pasted
from segsweep.report import statistics
from segsweep.report.comparison import Comparison, Configuration, digest, key, ordered, scale, scales, show
from segsweep.report.record import Run
from segsweep.report.statistics import LEVEL, Interval

CONTINUUM = 20
PSEUDO = ("content of the data", "content of the split", "whether the split leaks", "version of the program")
"""Differences that no setting shows; the seed, and a task's other kinds of repeat, are such too."""


@dataclass(frozen=True)
class Pair:
    """Two rows that differ in one factor; `values` (units,) is b minus a, the mean over their common seeds."""

    a: int
    b: int
    seeds: int
    values: np.ndarray


@dataclass
class Contrast:
    """Level `b` of a factor minus level `a`, in the primary metric, over all matched pairs; `repeats`: seeds or pairs.

    `alone`: no unit has a score, so `values` are of seeds. `where`: the settings that set the scale of the metric, if
    rows differ in them."""

    factor: str
    a: str
    b: str
    pairs: list[Pair]
    values: np.ndarray  # (units,) mean over pairs and seeds
    interval: Interval | None
    p: float
    signed_rank: float
    over_repeats: Interval | None
    repeats: str
    alone: bool = False
    where: str = ""
    p_holm: float = float("nan")
    p_repeats_holm: float = float("nan")

    @property
    def units(self) -> int:
        return int((~np.isnan(self.values)).sum())

    @property
    def mean(self) -> float:
        return float(statistics.nanmean(self.values))

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest mean difference of the matched pairs."""
        means = [float(statistics.nanmean(pair.values)) for pair in self.pairs]
        return min(means), max(means)

    @property
    def seeds(self) -> int:
        return max(pair.seeds for pair in self.pairs)

    @property
    def verdict(self) -> str:
        """none: not shown; trained: these networks differ, repeats unknown; chance: within repeats; shown: both; seeds:
        shown over seeds, other units unknown."""
        if self.interval is None or not (self.p_holm < LEVEL and (self.interval.low > 0 or self.interval.high < 0)):
            return "none"
        if self.over_repeats is None:
            return "seeds" if self.alone else "trained"
        agrees = self.over_repeats.mean * self.mean > 0  # it may rest on fewer pairs, those with the most seeds
        return "shown" if self.p_repeats_holm < LEVEL and agrees else "chance"


@dataclass(frozen=True)
class Confounded:
    """Two rows that differ in several things at once, and the run that would settle `factor`, if any can."""

    a: int
    b: int
    differs: list[str]
    factor: str
    command: str | None


@dataclass
class Analysis:
    contrasts: list[Contrast]
    confounded: list[Confounded]  # one for each two levels of a factor that no matched pair compares, at most `limit`
    unsettled: int  # how many there are in all
    unpaired: int  # pairs that differ in one factor but share no unit
    continuous: list[str]  # drawn from an interval, or of more than CONTINUUM levels: not meant to be compared in pairs
    scales: list[str]  # the scale of the primary metric depends on them: not comparable


def analyse(comparison: Comparison, limit: int = 12) -> Analysis:
    """All contrasts with Holm's correction over them all, by factor, and what stays confounded."""
    rows = comparison.rows
    if len(rows) < 2:
        return Analysis([], [], 0, 0, [], [])
    names, differs = differences(rows)
    pseudo = names[names.index(PSEUDO[0]) :]
    count = differs.sum(-1)
    pooled: dict[tuple[str, str, str, str], list[Pair]] = {}
    unpaired = 0
    levels = {name: len({key(row.factors[name]) for row in rows if name in row.factors}) for name in names}
    searched = comparison.record.searched
    continuous = [name for name in names if levels[name] > (1 if name in searched else CONTINUUM)]
    apart = [name for name in names if levels[name] > 1 and scales(name, comparison.metric)]
    for i, j in zip(*np.nonzero(np.triu(count == 1, 1)), strict=True):
        factor = names[int(np.argmax(differs[i, j]))]
        if factor in (*pseudo, *continuous, *apart):
            continue
        a, b = sorted((int(i), int(j)), key=lambda row: _order(level(rows[row], factor)))
        both = comparison.less(b, a)  # (seeds, units): NaN unless both have this unit at this seed
        if np.isnan(both).all():
            unpaired += 1
            continue
        pair = Pair(a, b, int((~np.isnan(both)).any(1).sum()), statistics.nanmean(both, 0))
        levels_of = key(level(rows[a], factor)), key(level(rows[b], factor))
        pooled.setdefault((factor, *levels_of, scale(rows[a].factors, comparison.metric)), []).append(pair)
    contrasts = [over_pairs(factor, pairs, comparison) for (factor, *_), pairs in pooled.items()]
    for contrast in contrasts:
        row = rows[contrast.pairs[0].a]
        contrast.where = ", ".join(f"{name}={show(row.factors[name])}" for name in apart if name in row.factors)
    correct(contrasts)
    contrasts.sort(key=lambda c: (names.index(c.factor), c.p_holm, -abs(c.mean)))
    confounded = _confounded(rows, names, differs, {found[:3] for found in pooled}, {*pseudo, *continuous, *apart})
    return Analysis(contrasts, confounded[:limit], len(confounded), unpaired, continuous, apart)


def correct(contrasts: list[Contrast]) -> None:
    """Holm's correction over all of them, of the test over units and of that over repeats."""
    for contrast, p, again in zip(
        contrasts,
        statistics.holm(np.array([c.p for c in contrasts])),
        statistics.holm(np.array([c.over_repeats.p if c.over_repeats else np.nan for c in contrasts])),
        strict=True,
    ):
        contrast.p_holm, contrast.p_repeats_holm = float(p), float(again)


def over_pairs(factor: str, pairs: list[Pair], comparison: Comparison) -> Contrast:
    """The contrast that matched pairs of the same two levels give together, not yet corrected."""
    rows = comparison.rows
    values = statistics.nanmean(np.array([pair.values for pair in pairs]), 0)
    named = isinstance(level(rows[pairs[0].a], factor), str)
    if (
        named and comparison.metric.sign * statistics.nanmean(values) < 0
    ):  # options have no order: the better one is `b`, so that the sign reads well
        pairs, values = [Pair(p.b, p.a, p.seeds, -p.values) for p in pairs], -values
    matched = np.array(
        [comparison.less(p.b, p.a) for p in pairs if p.seeds == max(q.seeds for q in pairs)]
    )  # (pairs, seeds, units)
    seeds = statistics.nanmean(matched, 0)
    seeds = seeds[~np.isnan(seeds).all(1)]
    over, repeats = statistics.crossed_interval(seeds), "seeds"
    apart = len({p.a for p in pairs}) == len({p.b for p in pairs}) == len(pairs)  # else one training counts in several
    if over is None and apart and not comparison.alone and len(pairs) >= statistics.FEWEST_REPEATS:
        over, repeats = statistics.crossed_interval(np.array([p.values for p in pairs])), "pairs"
    least, most = comparison.span
    if over:
        over = over._replace(low=max(over.low, least), high=min(over.high, most))  # no two values differ by more
    interval = statistics.mean_interval(values, symmetric=True, bounds=comparison.span)
    a, b = (show(level(rows[row], factor)) for row in (pairs[0].a, pairs[0].b))
    p, rank = float(statistics.sign_flip(values)[0]), statistics.signed_rank(values)
    return Contrast(factor, a, b, pairs, values, interval, p, rank, over, repeats, comparison.alone)


def _order(value: Any) -> tuple[int, Any]:
    return (0, float(value)) if isinstance(value, int | float) else (1, key(value))


def differences(rows: list[Configuration]) -> tuple[list[str], np.ndarray]:
    """(names of factors, (rows, rows, factors) whether two rows differ in it), last the PSEUDO differences, the
    seed and a task's other kinds of repeat."""
    names = list(dict.fromkeys(name for row in rows for name in row.factors))
    levels: dict[str, int] = {}
    codes = np.array(
        [[levels.setdefault(key(r.factors[n]), len(levels)) if n in r.factors else -1 for n in names] for r in rows]
    )
    codes = codes.reshape(len(rows), len(names))
    differs = codes[:, None] != codes[None]
    one_sided = (codes[:, None] < 0) != (codes[None] < 0)
    for f, name in enumerate(names):
        group = name.split(".")[0]
        if "." in name and group in names:
            differs[..., f] &= ~(one_sided[..., f] & differs[..., names.index(group)])

    def any_of(some: set[str]) -> np.ndarray:
        return differs[..., [n in some for n in names]].any(-1)

    inputs = set().union(*(row.inputs for row in rows))
    of_data = {name for name in inputs if name.split(".")[0] == "data"}  # a task with this group says which data there
    nested = {kind.split(".")[0] for kind in rows[0].runs[0].spec.repeats if "." in kind}
    of_repeats = {name for name in names if name.split(".")[0] in nested}
    seeds = _shared(rows, lambda run: run.seed)
    folds = _shared(rows, lambda run: (run.seed, run.repeat))
    kinds = rows[0].runs[0].spec.repeats
    splits = np.zeros((len(rows), len(rows)), bool)
    for repeat in {(run.seed, run.repeat) for row in rows for run in row.runs}:
        splits |= _unequal([digest(r, "split") if (r := _at(row, repeat)) else "" for row in rows])
    pseudo = [
        _unequal([digest(row.runs[0], "data") for row in rows]) & ~any_of(of_data or inputs),
        splits & ~any_of(inputs),
        _unequal([str(row.leaks) for row in rows]) & ~any_of(inputs - of_data or inputs),
        _programs([row.runs[0] for row in rows]),
        ~seeds,
        *([seeds & ~folds & ~any_of(of_repeats)] if kinds else []),
    ]
    return [*names, *PSEUDO, "seed", *([" or ".join(kinds)] if kinds else [])], np.concatenate(
        [differs, np.stack(pseudo, -1)], -1
    )


def _programs(runs: list[Run]) -> np.ndarray:
    """(n, n) whether two runs were computed by different code: this program's, a module that both have, or torch. A run
    that was accepted for other code is of that code, too."""
    made = [(i, run, run.info.get("files") or {}, str(run.info.get("code") or "")) for i, run in enumerate(runs)]
    for i, run, files, _ in made[:]:
        for entry in run.accepted:
            changed = {name: new or "" for name, (_, new) in entry["files"].items()}
            made.append((i, run, files | changed, str(entry["code"])))
    texts = [[code for *_, code in made]]
    texts.append([str((run.info.get("versions") or {}).get("torch") or "") for _, run, _, _ in made])
    texts += [[files.get(name, "") for _, _, files, _ in made] for name in set().union(*(f for _, _, f, _ in made))]
    owners = np.array([i for i, *_ in made])
    differ = np.ones((len(runs), len(runs)), bool)
    np.logical_and.at(differ, (owners[:, None], owners[None]), np.any([_unequal(values) for values in texts], axis=0))
    return differ


def _shared(rows: list[Configuration], of: Callable[[Any], Any]) -> np.ndarray:
    """(rows, rows) whether two rows have a repeat in common."""
    repeats = list({of(run) for row in rows for run in row.runs})
    present = np.array(
        [[any(of(run) == repeat for run in row.runs) for repeat in repeats] for row in rows], int
    ).reshape(len(rows), -1)
    return present @ present.T > 0


def _at(row: Configuration, repeat: tuple[Any, Any]) -> Any:
    return next((run for run in row.runs if (run.seed, run.repeat) == repeat), None)


def _unequal(values: list[str]) -> np.ndarray:
    """(n, n) whether two values are known and differ."""
    known = np.array([value != "" for value in values])
    text = np.array(values)
    return (text[:, None] != text[None]) & known[:, None] & known[None]


def _confounded(
    rows: list[Configuration],
    names: list[str],
    differs: np.ndarray,
    settled: set[tuple[str, str, str]],
    without: set[str],
) -> list[Confounded]:
    """For every two levels of a factor that no matched pair compares, the closest two rows; the nearest pairs first."""
    count = differs.sum(-1)
    closest: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for f, factor in enumerate(names):
        if factor in without or factor.split(".")[0] == "data":
            continue  # scores on other data do not compare
        order = [_order(level(row, factor)) for row in rows]
        keys = [key(level(row, factor)) for row in rows]
        for i, j in np.argwhere(np.triu(differs[..., f] & (count > 1), 1)).tolist():
            a, b = (i, j) if order[i] <= order[j] else (j, i)
            levels = (factor, keys[a], keys[b])
            if levels not in settled and (levels not in closest or count[a, b] < closest[levels][0]):
                closest[levels] = (
                    int(count[a, b]),
                    j,
                    i,
                )  # the lower row is the one to start from: what of the better one does it lack?
    merged: dict[tuple[int, int], Confounded] = {}
    for (factor, _, _), (_, a, b) in sorted(closest.items(), key=lambda item: item[1]):
        different = [name for name, differ in zip(names, differs[a, b], strict=True) if differ]
        possible = not set(different) & set(PSEUDO) and factor in rows[b].factors
        merged.setdefault(
            (a, b),
            Confounded(a, b, different, factor, settling_command(rows[a], rows[b], factor) if possible else None),
        )
    return list(merged.values())


def settling_command(a: Configuration, b: Configuration, factor: str) -> str:
    """The command of `a` with `factor` as in `b`: against `a`, the new run differs in that factor alone."""
    words = shlex.split(a.runs[0].command)
    start = 3 if words[1:2] == ["-m"] else 2 if words[0] == "python" else 1  # `python -m NAME`, a script, a command
    taking = ("--config-dir", "--config-name", "--config-path")
    options = [i for i, word in enumerate(words) if i >= start and (word in taking or words[i - 1] in taking)]
    overrides = [word for i, word in enumerate(words) if i >= start and "=" in word and i not in options]
    named = [words[i] for i in options]
    head = [*words[:start], *named]
    changed = {factor: exact(b.factors[factor])}
    classes = {name for row in (a, b) for name in row.factors if typed_as(row, name) == f"{name}._target_"}
    lost = set()
    if "." not in factor:  # another option brings its own defaults: what both have stays, what only the old has goes
        under = [name for name in a.factors if name.startswith(factor + ".")]
        changed |= {name: exact(a.factors[name]) for name in under if name in b.factors and name not in classes}
        lost = {name for name in under if name not in b.factors}
        typed = {word.split("=")[0].lstrip("+") for word in shlex.split(b.runs[0].command)}
        changed |= {
            name: exact(b.factors[name])
            for name in typed
            if name.startswith(factor + ".") and name in b.factors and name not in {*a.factors, *classes}
        }
    seeds = sorted({*a.seeds} & {*b.seeds}, key=ordered) or a.seeds
    first = dict(zip(a.runs[0].spec.repeats, a.runs[0].repeat, strict=True)) | {a.runs[0].seed_key: a.runs[0].seed}
    for name, values in {a.runs[0].seed_key: seeds, **a.repeats}.items():
        if len(values) > 1 or (values and values[0] != first[name]):
            changed[name] = ",".join(exact(value) for value in values)
            head[start:] = ["-m"] * (len(values) > 1 or "-m" in head[start:]) + named
    changed = {typed_as(a, name): value for name, value in changed.items()}
    kept = [word for word in overrides if word.split("=")[0].lstrip("+~") not in {*changed, *lost}]
    return pasted([*head, *kept, *(f"{name}={value}" for name, value in changed.items())])


def typed_as(row: Configuration, factor: str) -> str:
    """The key by which the command line sets a factor: of a mapping that is told by its class, that class."""
    run, group = row.runs[0], factor.replace(".", "/")
    if group in run.choices:
        return group
    made = any(name.startswith(f"{factor}.") for name in run.settings) and "." in str(row.factors.get(factor))
    return f"{factor}._target_" if made or f"{factor}._target_" in run.typed else factor


def level(row: Configuration, factor: str) -> Any:
    return row.factors.get(factor, "not recorded")


def exact(value: Any) -> str:
    """A value as an override of the command line takes it."""
    return value if isinstance(value, str) else "null" if value is None else json.dumps(value)
