"""The first section: what was found, in sentences, each no stronger than its test."""

import numpy as np

from segsweep.artifacts import WHOLE
from segsweep.report.content import Section, joined, plural
from segsweep.report.contrasts import Contrast
from segsweep.report.findings import Findings, p_value, ranged, signed
from segsweep.report.statistics import FEWEST, FEWEST_REPEATS, LEVEL


def summary(found: Findings) -> Section:
    """Sentences, each no stronger than its test."""
    if not found.rows:
        return Section(
            "summary",
            "In short",
            ["No run has finished, so there is nothing to compare yet. What happened instead is below."],
        )
    sentences = [_scope(found), *_leaders(found), *_contrasts(found), *_cautions(found)]
    return Section("summary", "In short", [sentences])


def _scope(found: Findings) -> str:
    runs = sum(len(row.runs) for row in found.rows)
    tested = sorted({found.comparison.tested(i) for i in range(len(found.rows))})
    patients = plural(tested[0], "test patient") if len(tested) == 1 else f"{tested[0]} to {tested[-1]} test patients"
    each = "each " if runs > 1 else ""
    text = (
        f"{plural(runs, 'finished run')} in {plural(len(found.rows), 'configuration')}, {each}tested on {patients} of"
        f" {joined(sorted({found.data(i).split()[0] for i in range(len(found.rows))}))}."
    )
    lacking = sum(job.status not in WHOLE for job in found.record.jobs)
    verb = "is" if lacking == 1 else "are"
    if lacking:
        text += f" **{plural(lacking, 'job')} did not finish** and {verb} listed under What is missing."
    return text + " Intervals are of 95 %, over patients where nothing else is said."


def _leaders(found: Findings) -> list[str]:
    sentences = []
    for best in found.comparison.best["dice"]:
        scored = ranged(found.dice[best.row], float(found.means[best.row]))
        text = f"**{found.title(best.row)}** has the highest mean Dice{_among(found, best.row)}, {scored}"
        others = "the other row" if best.rivals == 1 else f"each of the {best.rivals} other rows"
        if not best.tied:
            text += f", and scores higher than {others} (same patients, corrected, 5 %)."
            if not best.repeats:
                text += (
                    f" This speaks of the networks as trained here: with fewer than {FEWEST_REPEATS} common seeds, luck"
                    " in training is not part of the test."
                )
        elif len(best.tied) == best.rivals:
            text += f", but **cannot be told from {others.replace('each', 'any')}** (same patients, corrected, 5 %)."
        else:
            named = [found.title(i) for i in best.tied[:3]] + (
                [f"{len(best.tied) - 3} more"] if len(best.tied) > 3 else []
            )
            text += f", but **cannot be told from {joined(named)}** (of {best.rivals} others; same patients, corrected,"
            text += " 5 %)."
        sentences.append(text)
    if len(found.rows) == 1:
        sentences.append(
            f"**{found.title(0)}**: mean Dice {ranged(found.dice[0], float(found.means[0]))}. One row alone compares"
            " with nothing."
        )
    if all(interval is None for interval in found.dice):
        sentences.append(
            f"Fewer than {FEWEST} patients with a defined Dice: no interval and no test can be given, the figures only"
            " describe."
        )
    return sentences


def _among(found: Findings, row: int) -> str:
    """Which rows were tested as this one was, where not all were."""
    if found.arenas == 1:
        return ""
    split = f"split={found.rows[row].factors.get('split', 'unknown')}"
    data = found.data(row)
    several = len({found.data(i) for i in range(len(found.rows))}) > 1
    return f" among the rows with {f'data {data} and ' if several else ''}{split}"


def _contrasts(found: Findings, most: int = 6) -> list[str]:
    contrasts = [c for c in found.analysis.contrasts if c.factor.split(".")[0] != "split"]
    strong = sorted((c for c in contrasts if c.verdict != "none"), key=lambda c: -abs(c.mean))
    sentences = [claim(found, c) for c in strong[:most]]
    if len(strong) > most:
        sentences.append(f"{len(strong) - most} more differences are in the table of contrasts.")
    weak = [c for c in contrasts if c.verdict == "none"]
    if weak:
        named = [
            f"{found.setting(c.factor, c.b)} against {found.setting(c.factor, c.a)} ({widest(c)})" for c in weak[:3]
        ]
        more = f", and {len(weak) - 3} more" if len(weak) > 3 else ""
        sentences.append(
            f"**No difference is shown** for {joined(named)}{more}: the corrected test is not below 5 %. That is no"
            " proof of equality."
        )
    return sentences


def claim(found: Findings, c: Contrast) -> str:
    """One contrast in words, as strong as its verdict and no stronger."""
    better, worse = (c.b, c.a) if c.mean > 0 else (c.a, c.b)
    on_average = " on average" if len(c.pairs) > 1 else ""
    names = f"**{found.setting(c.factor, better)} against {found.setting(c.factor, worse)}**"
    interval = c.interval
    sizes = sorted((abs(interval.low), abs(interval.high))) if interval else [0, 0]
    size = f"{abs(c.mean):.3f} [{sizes[0]:.3f}, {sizes[1]:.3f}]"
    rests = f"{plural(len(c.pairs), 'matched pair')}, {plural(c.patients, 'patient')}, p {p_text(c.p_holm)} after Holm"
    if c.range[0] < 0 < c.range[1]:
        rests += (
            f"; pair by pair from {c.range[0]:+.3f} to {c.range[1]:+.3f}, of both signs: it may depend on the other"
            " settings"
        )
    if c.verdict == "shown" and c.over_repeats:
        over = "seeds" if c.repeats == "seeds" else "matched pairs"
        low, high = sorted((abs(c.over_repeats.low), abs(c.over_repeats.high)))
        return (
            f"{names}: Dice higher by {size}{on_average} ({rests}); the difference holds over {over} as well as"
            f" patients, [{low:.3f}, {high:.3f}] when both are left to chance."
        )
    if c.verdict == "chance":
        return (
            f"{names}: Dice higher by {size}{on_average} on these patients ({rests}), but **no more than {c.repeats}"
            " differ among themselves**: not shown for newly trained networks."
        )
    return (
        f"{names}: the networks as trained differ in Dice by {size}{on_average} ({rests}); with"
        f" {plural(c.seeds, 'seed')} it stays open whether training again would agree."
    )


def widest(c: Contrast) -> str:
    """A contrast's difference with the interval that leaves most open: over patients and repeats where there is one."""
    over = c.over_repeats
    if over is None or (c.interval and over.high - over.low < c.interval.high - c.interval.low):
        return signed(c)
    return f"{c.mean:+.3f}, over patients and {c.repeats} [{over.low:+.3f}, {over.high:+.3f}]"


def _cautions(found: Findings) -> list[str]:
    sentences = []
    contrasts = found.analysis.contrasts
    patients = max((c.patients for c in contrasts), default=FEWEST)
    least = 2 * 0.5**patients * len(contrasts)
    if least >= LEVEL:
        sentences.append(
            f"**{plural(patients, 'shared patient')} cannot show a difference**: over"
            f" {plural(len(contrasts), 'contrast')} the test gives no p below {min(least, 1):.2f}, whatever the scores."
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
    if few:
        which = "Every row rests" if len(few) == len(found.rows) else f"{len(few)} of {len(found.rows)} rows rest"
        seeds = sorted({len(row.seeds) for row in few})
        known = "not measured" if seeds == [1] else f"not known well enough to test, which takes {FEWEST_REPEATS}"
        sentences.append(
            f"{which} on {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}: how far training again would move"
            f" the figures is {known}."
        )
    if any(row.leaks for row in found.rows):
        leak = next((c for c in found.analysis.contrasts if c.factor == "split"), None)
        effect = f" Measured on the same {plural(leak.patients, 'patient')}: {leak.b} less {leak.a}," if leak else ""
        effect += f" Dice {widest(leak)}{', not shown to differ' * (leak.verdict == 'none')}." if leak else ""
        leaking = sum(row.leaks for row in found.rows)
        verb = "was split by slice and leaks" if leaking == 1 else "were split by slice and leak"
        sentences.append(
            f"**{plural(leaking, 'row')} {verb}**: neighbours of test slices were trained on, so their scores say"
            f" little of new patients.{effect}"
        )
    if len(found.sizes) > 1:
        sentences.append(
            f"Rows of {joined([f'{size} px' for size in found.sizes])} are **scored at their own size**, against truth"
            " resized to it: what they differ in may be the measure as well as the network, and HD95 is in pixels of"
            " another size."
        )
    accuracy = np.array([row.metric("test/accuracy") for row in found.rows])
    nothing = _accuracy_of_nothing(found)
    if nothing is not None and not np.isnan(accuracy).all():
        accuracies, dices = (
            f"is {low}" if low == high else f"lies between {low} and {high}"
            for low, high in (
                (f"{np.nanmin(accuracy):.4f}", f"{np.nanmax(accuracy):.4f}"),
                (f"{np.nanmin(found.means):.3f}", f"{np.nanmax(found.means):.3f}"),
            )
        )
        sentences.append(
            f"Pixel accuracy {accuracies} while mean Dice {dices}; predicting no tumour anywhere would have an accuracy"
            f" of {nothing:.4f} and a Dice of 0 on every patient with a tumour."
        )
    return sentences


def _accuracy_of_nothing(found: Findings) -> float | None:
    """On the first row's patients; None where other rows were tested on other data."""
    if len({found.data(i) for i in range(len(found.rows))}) > 1:
        return None
    patients = {
        (i, p): values for i, row in enumerate(found.rows[:1]) for run in row.runs for p, values in run.patients.items()
    }
    truth = sum(v.get("truth_pixels", np.nan) for v in patients.values())
    pixels = sum(v.get(k, np.nan) for v in patients.values() for k in ("tp", "fp", "fn", "tn"))
    return float(1 - truth / pixels) if patients and pixels > 0 and truth == truth else None


def p_text(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
