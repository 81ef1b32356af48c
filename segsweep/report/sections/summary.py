"""The first section: what was found, in sentences, each no stronger than its test."""

import shlex

import numpy as np

from segsweep.core import artifacts
from segsweep.core.program import pasted
from segsweep.core.signature import OWN
from segsweep.report.comparison import show
from segsweep.report.content import Section, joined, many, plural, plus
from segsweep.report.contrasts import Contrast
from segsweep.report.findings import Findings, p_value
from segsweep.report.statistics import FEWEST, FEWEST_REPEATS, LEVEL, Interval


def summary(found: Findings) -> Section:
    """Sentences, each no stronger than its test."""
    if not found.rows:
        return Section(
            "summary",
            "In short",
            ["No run has finished, so there is nothing to compare yet. What happened instead is below."],
        )
    sentences = [_scope(found), *_versions(found), *_leaders(found), *_contrasts(found), *_cautions(found)]
    return Section("summary", "In short", [sentences])


def _scope(found: Findings) -> str:
    runs = sum(len(row.runs) for row in found.rows)
    tested = sorted({found.comparison.tested(i) for i in range(len(found.rows))})
    noun = f"test {found.unit}"
    units = plural(tested[0], noun) if len(tested) == 1 else f"{tested[0]} to {plural(tested[-1], noun)}"
    each = "each " if runs > 1 else ""
    on = "on" if found.comparison.alone else f"{each}tested on {units} of"
    names = {found.data(i).removesuffix(" data").split()[0] for i in range(len(found.rows))}
    names = {"data without a name" if name == "unknown" else name for name in names}
    text = (
        f"{plural(runs, 'finished run')} in {plural(len(found.rows), 'configuration')}, {on} {joined(sorted(names))}."
    )
    lacking = len(found.record.lost)
    verb = "is" if lacking == 1 else "are"
    if lacking:
        text += f" **{plural(lacking, 'job')} did not finish** and {verb} listed under What is missing."
    if early := [run for row in found.rows for run in row.runs if artifacts.stopped(run.result)]:
        are = "is" if len(early) == 1 else "are"
        text += f" {plural(len(early), 'run')} stopped early, and {are} tested like the others."
    if found.comparison.part == "val":
        text += (
            " **No run has a number of a test.** Compared are those of the validation part, by which epochs and"
            " settings are chosen, so that the best of many is too good."
        )
    text += f" {found.open}" if found.comparison.alone else ""
    if any(found.intervals) or any(c.interval for c in found.analysis.contrasts):
        text += (
            f" Intervals are of 95 %, over {found.units}{' where nothing else is said' * (not found.comparison.alone)}."
        )
    return text


def _versions(found: Findings) -> list[str]:
    """Which files of the code are not the same in all rows."""
    files = list(dict.fromkeys(file for row in found.rows for file in row.versions))
    if not files:
        return []
    told = []
    for file in files[:4]:
        rows: dict[str, list[str]] = {}
        for i, row in enumerate(found.rows):
            if file in row.versions:
                rows.setdefault(row.versions[file], []).append(str(i + 1))
        each = [f"{v} in {'row' if len(r) == 1 else 'rows'} {joined(r)}" for v, r in sorted(rows.items())]
        told.append(f"`{file}` ({'; '.join(each)})")
    more = [f"{len(files) - 4} more files"] if len(files) > 4 else []
    return [
        f"**The rows are of different versions of the code**: {joined([*told, *more])}. A difference between such rows"
        " may be the code's, and is put down to no setting."
    ]


def _leaders(found: Findings) -> list[str]:
    sentences = []
    same = f"same {found.units}, corrected, 5 %"
    for best in found.comparison.best[found.spec.primary]:
        scored = found.scored(best.row)
        text = f"**{found.title(best.row)}** has the {found.best} mean {found.score}{_among(found, best.row)}, {scored}"
        others = "the other row" if best.rivals == 1 else f"each of the {best.rivals} other rows"
        if not best.tied:
            text += f", and scores {found.better} than {others} ({same})."
            if not best.repeats and not found.comparison.alone:
                text += (
                    f" This speaks of the networks as trained here: with fewer than {FEWEST_REPEATS} common seeds, luck"
                    " in training is not part of the test."
                )
        elif len(best.tied) == best.rivals:
            text += f", but **cannot be told from {others.replace('each', 'any')}** ({same})."
        else:
            named = [found.title(i) for i in best.tied[:3]] + (
                [f"{len(best.tied) - 3} more"] if len(best.tied) > 3 else []
            )
            text += f", but **cannot be told from {joined(named)}** (of {best.rivals} others; {same})."
        sentences.append(text)
    if len(found.rows) == 1:
        sentences.append(
            f"**{found.title(0)}**: mean {found.score} {found.scored(0)}. One row alone compares with nothing."
        )
    most = max(int((~np.isnan(found.comparison.by_unit(i))).sum()) for i in range(len(found.rows)))
    if most < FEWEST and not _too_few(found):
        sentences.append(
            f"Fewer than {FEWEST} {found.units} with a defined {found.score}: no interval and no test can be given, the"
            " figures only describe."
        )
    return sentences


def _among(found: Findings, row: int) -> str:
    """Which rows were tested as this one was, where not all were."""
    if found.arenas == 1:
        return ""
    factors = found.rows[row].factors
    several = len({found.data(i) for i in range(len(found.rows))}) > 1
    told = [f"data {found.data(row)}"] if several else []
    inputs = [name for name in found.varied[0] if name in found.rows[row].inputs and name.startswith("task.")]
    named = ("split", *inputs, *found.analysis.scales)
    told += [f"{name}={show(factors[name])}" for name in named if name in factors]
    return f" among the rows with {joined(told)}" if told else " among the rows that were tested alike"


def _contrasts(found: Findings, most: int = 6) -> list[str]:
    contrasts = [c for c in found.analysis.contrasts if c.factor.split(".")[0] != "split"]
    strong = sorted((c for c in contrasts if c.verdict != "none"), key=lambda c: -abs(c.mean))
    sentences = [claim(found, c) for c in strong[:most]]
    if len(strong) > most:
        sentences.append(f"{len(strong) - most} more differences are in the table of contrasts.")
    weak = [c for c in contrasts if c.verdict == "none"]
    if weak and not _too_few(found):
        named = [
            f"{found.setting(c.factor, c.b)} against {found.setting(c.factor, c.a)} ({widest(found, c)})"
            for c in weak[:3]
        ]
        more = f", and {len(weak) - 3} more" if len(weak) > 3 else ""
        sentences.append(
            f"**No difference is shown** for {joined(named)}{more}: the corrected test is not below 5 %. That is no"
            " proof of equality."
        )
    return sentences


def claim(found: Findings, c: Contrast) -> str:
    """One contrast in words, as strong as its verdict and no stronger."""
    sign, form = found.metric.sign, found.form
    better, worse = (c.b, c.a) if sign * c.mean > 0 else (c.a, c.b)
    on_average = " on average" if len(c.pairs) > 1 else ""
    where = f" ({c.where})" if c.where else ""
    names = f"**{found.setting(c.factor, better)} against {found.setting(c.factor, worse)}**{where}"
    size = f"{abs(c.mean):{form}} {_sizes(found, c.interval)}"
    rests = f"{plural(len(c.pairs), 'matched pair')}, {plural(c.units, found.unit)}, p {p_text(c.p_holm)} after Holm"
    if c.range[0] < 0 < c.range[1]:
        rests += (
            f"; pair by pair from {plus(c.range[0], form)} to {plus(c.range[1], form)}, of both signs: it may depend on"
            " the other settings"
        )
    differs = f"{names}: {found.score} {found.better} by {size}{on_average}"
    if c.verdict == "shown" and c.over_repeats:
        over = "seeds" if c.repeats == "seeds" else "matched pairs"
        return (
            f"{differs} ({rests}); the difference holds over {over} as well as {found.units},"
            f" {_sizes(found, c.over_repeats)} when both are left to chance."
        )
    if c.verdict == "seeds":
        return f"{differs} over seeds ({rests}); what another test sample would give is open."
    if c.verdict == "chance":
        return (
            f"{differs} on these {found.units} ({rests}), but **no more than {c.repeats} differ among themselves**: not"
            " shown for newly trained networks."
        )
    return (
        f"{differs} for the networks as trained ({rests}); with"
        f" {plural(c.seeds, 'seed')} it stays open whether training again would agree."
    )


def _sizes(found: Findings, interval: Interval | None) -> str:
    """An interval of a difference without its sign."""
    low, high = sorted((abs(interval.low), abs(interval.high))) if interval else (0, 0)
    return f"[{low:{found.form}}, {high:{found.form}}]"


def widest(found: Findings, c: Contrast) -> str:
    """A contrast's difference with the interval that leaves most open: over units and repeats where there is one."""
    over = c.over_repeats
    if over is None or (c.interval and over.high - over.low < c.interval.high - c.interval.low):
        return found.signed(c)
    span = found.span(over.low, over.high)
    return f"{plus(c.mean, found.form)}, over {found.units} and {c.repeats} {span}"


def _least(found: Findings, units: int) -> float:
    """The least p after Holm that the sign-flip test over so many units can give the first of all contrasts."""
    return 2 * 0.5**units * len(found.analysis.contrasts)


def _shared(found: Findings) -> int:
    return max((c.units for c in found.analysis.contrasts), default=FEWEST)


def _too_few(found: Findings) -> bool:
    """Whether seeds stand in the place of units and are too few for any test: said once, with what would be enough."""
    return found.comparison.alone and _least(found, _shared(found)) >= LEVEL


def _enough(found: Findings) -> str:
    """How many seeds could show a difference, and the commands that train them; what is finished is reused."""
    need = next(n for n in range(FEWEST, 64) if _least(found, n) < LEVEL)
    text = f" {need} seeds are the least that can."
    run, seeds = found.rows[0].runs[0], list(found.comparison.seeds)
    commands = [shlex.split(found.record.commands.get(name, "")) for name in dict.fromkeys(found.record.names)]
    if not all({"-m", "--multirun"} & {*words} for words in commands) or len(commands) > 3:
        return text
    if found.spec.repeats or not all(isinstance(seed, int) for seed in seeds):
        return text
    seeds += [seed for seed in range(max(seeds) + need) if seed not in seeds][: max(need - len(seeds), 0)]
    told = []
    for words in commands:
        key = next((k for k in ("seed", f"{OWN}.seed") if any(w.startswith(f"{k}=") for w in words)), run.seed_key)
        kept = [word for word in words if not word.startswith(f"{key}=")]
        values = ",".join(map(str, seeds))
        told.append(f"`{pasted([*kept, f'{key}={values}'])}`")
    return f"{text} They come with {joined(told)}; what has finished is not trained again."


def _cautions(found: Findings) -> list[str]:
    sentences = []
    contrasts = found.analysis.contrasts
    units = _shared(found)
    least = _least(found, units)
    if least >= LEVEL:
        sentences.append(
            f"**{plural(units, f'shared {found.unit}')} cannot show a difference**: over"
            f" {plural(len(contrasts), 'contrast')} the test gives no p below {min(least, 1):.2f}, whatever the scores."
            f"{_enough(found) if found.comparison.alone else ''}"
        )
    if found.analysis.unsettled:
        first = found.analysis.confounded[0]
        sentences.append(
            f"{plural(found.analysis.unsettled, 'comparison')} of settings"
            f" {'is' if found.analysis.unsettled == 1 else 'are'} **confounded**: for one, {found.title(first.a)}"
            f" against {found.title(first.b)} differs in {joined(first.differs)}, not attributable. The runs that would"
            " settle them are listed."
        )
    few = [row for row in found.rows if len(row.seeds) < FEWEST_REPEATS]
    if few and not _too_few(found):
        which = "Every row rests" if len(few) == len(found.rows) else f"{len(few)} of {len(found.rows)} rows rest"
        seeds = sorted({len(row.seeds) for row in few})
        known = "not measured" if seeds == [1] else f"not known well enough to test, which takes {FEWEST_REPEATS}"
        sentences.append(
            f"{which} on {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}: how far training again would move"
            f" the figures is {known}."
        )
    if any(row.leaks for row in found.rows):
        leak = next(iter(found.of_leaks), None)
        effect = f" Measured on the same {plural(leak.units, found.unit)}: {leak.b} less {leak.a}," if leak else ""
        none = ", not shown to differ" if leak and leak.verdict == "none" else ""
        effect += f" {found.score} {widest(found, leak)}{none}." if leak else ""
        sentences.append(f"**{_leaking(found)}, so their scores say little of new {many(found.spec.unit)}.{effect}")
    return sentences + found.own.sentences.get("summary", [])


def _leaking(found: Findings) -> str:
    """How many rows leak, and what that means."""
    count, unit, sample = sum(row.leaks for row in found.rows), found.spec.unit, found.spec.sample
    verb = "leaks" if count == 1 else "leak"
    if unit == sample:
        return f"{plural(count, 'row')} {verb}**: {many(unit)} of the test were trained on"
    was = "was" if count == 1 else "were"
    meaning = found.word("leaks", f"{many(sample)} of tested {many(unit)} were trained on")
    return f"{plural(count, 'row')} {was} split by {sample} and {verb}**: {meaning}"


def p_text(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
