"""The sections that show: curves, overlays, overfitting, convergence, learning rate, and which settings mattered."""

import numpy as np

from segsweep.report import figures
from segsweep.report.comparison import Configuration
from segsweep.report.content import Block, Cell, Figure, Section, Table, joined, number, plural
from segsweep.report.findings import Findings
from segsweep.report.records import Run
from segsweep.report.statistics import LEVEL, nanmean, sign_flip_leader

EACH, COLOURED, DRAWN, OVERLAID = (
    8,
    len(figures.COLOURS),
    100,
    12,
)  # rows with curves of their own; coloured, drawn at all in the joint panels; with overlays
PANELS = (("loss", "loss"), ("accuracy", "pixel accuracy"), ("dice", "Dice"))


def curves(found: Findings) -> Section | None:
    """Loss, accuracy and Dice by epoch: all rows together, then each."""
    rows = [(i, row) for i, row in enumerate(found.rows) if row.curves("train/loss").size]
    if not rows:
        return None
    part = rows[0][1].runs[0].evaluated_on
    others = rows[COLOURED:DRAWN]
    blocks: list[Block] = []
    together = []
    for metric, title in PANELS:
        joint = [("", row.curves(f"{row.runs[0].evaluated_on}/{metric}"), figures.GREY, "-") for _, row in others]
        joint += [
            (f"row {i + 1}", row.curves(f"{row.runs[0].evaluated_on}/{metric}"), figures.COLOURS[k], "-")
            for k, (i, row) in enumerate(rows[:COLOURED])
        ]
        joint = [line for line in joint if line[1].size]
        words = _ends([(found.title(i), row, row.runs[0].evaluated_on) for i, row in rows[:COLOURED]], metric)
        together.append(
            figures.curves(
                f"all-{metric}",
                f"{title} on {part} against the epoch, all rows. {words}",
                f"{title}, {part}",
                f"{title} ({part})",
                joint,
            )
        )
    limit = f" The best {COLOURED} rows have a colour, the others are grey." if len(rows) > COLOURED else ""
    limit += f" {len(rows) - DRAWN} more are not drawn." if len(rows) > DRAWN else ""
    blocks += [
        (
            f"All rows together, on {part}.{limit} With repeats a line is their mean and its band runs from the lowest"
            " to the highest."
        ),
        together,
    ]
    blocks.append(
        "Each row, training dashed and evaluation"
        f" solid{f'; the best {EACH} of {len(rows)}' if len(rows) > EACH else ''}:"
    )
    for i, row in rows[:EACH]:
        blocks += [f"**{found.title(i)}**", [_each(found, i, row, metric, title) for metric, title in PANELS]]
    return Section("curves", "How did they learn?", blocks)


def _each(found: Findings, i: int, row: Configuration, metric: str, title: str) -> Figure:
    part = row.runs[0].evaluated_on
    series = [
        ("train", row.curves(f"train/{metric}"), figures.COLOURS[1], "--"),
        (part, row.curves(f"{part}/{metric}"), figures.COLOURS[0], "-"),
    ]
    series = [line for line in series if line[1].size]
    words = " ".join(_ends([(found.title(i), row, side)], metric, side) for side in ("train", part))
    alt = f"{title} of {found.title(i)} against the epoch. {words}"
    return figures.curves(f"row{i + 1}-{metric}", alt, f"{title}, row {i + 1}", title, series)


def _ends(rows: list[tuple[str, Configuration, str]], metric: str, side: str = "") -> str:
    """First and last values of curves in words."""
    texts = []
    for title, row, part in rows:
        mean = nanmean(row.curves(f"{part}/{metric}"), 0)
        if mean.size:
            texts.append(f"{side or title}: {mean[0]:.3f} in the first epoch, {mean[-1]:.3f} in the last")
    return "; ".join(texts) + "." if texts else ""


def overlays(found: Findings) -> Section | None:
    """Best, median and worst patient, the same for all rows; of repeats, the first run's prediction."""
    shown: dict[int, dict[str, tuple[Run, dict[str, np.ndarray]]]] = {}
    common: set[str] = set()
    for i, row in enumerate(found.rows[: 4 * OVERLAID]):  # a few more than are shown, in case some have none
        kept = {
            patient: (run, p)
            for run in reversed(row.runs)
            for patient, p in run.overlays.items()
            if patient in run.patients
        }
        same = (common or set(kept)) & set(kept) if found.data(i) == found.data(next(iter(shown), i)) else set()
        if len(same) >= min(3, len(common) or 1) and len(shown) < OVERLAID:
            shown[i], common = kept, same
    dice = {p: float(nanmean(np.array([kept[p][0].patients[p]["dice"] for kept in shown.values()]))) for p in common}
    ranked = sorted((p for p in dice if dice[p] == dice[p]), key=lambda p: (-dice[p], p))
    if not ranked:
        return None
    blocks: list[Block] = [
        "Each patient's slice with the largest tumour; truth dashed green, prediction solid orange. Best, median and"
        f" worst by the mean Dice of the rows shown ({plural(len(ranked), 'patient')} in common)."
    ]
    if len(shown) < len(found.rows):
        blocks.append(
            f"Shown are {len(shown)} of {len(found.rows)} rows: the best that kept overlays of these patients, at most"
            f" {OVERLAID}."
        )
    places = {0: "best", (len(ranked) - 1) // 2: "median", len(ranked) - 1: "worst"}
    if len(ranked) < 3:
        places = dict(enumerate(["best", "worst"][: len(ranked)]))
    for place, role in places.items():
        patient = ranked[place]
        picture = next(iter(shown.values()))[patient][1]
        alt = f"Slice {picture['slice']} of the {role} patient, {patient}, with the true tumour outlined"
        panel = [figures.overlay(f"overlay-{role}-truth", alt, "truth alone", picture["image"], picture["truth"], None)]
        for i, kept in shown.items():
            run, picture = kept[patient]
            title = found.title(i) + (f", seed {run.seed}" if len(found.rows[i].seeds) > 1 else "")
            score = f"{title}: Dice {run.patients[patient]['dice']:.3f}"
            alt = f"Slice {picture['slice']} of the {role} patient with truth and prediction outlined; {score}"
            arrays = (picture["image"], picture["truth"], picture["prediction"])
            panel.append(figures.overlay(f"overlay-{role}-row{i + 1}", alt, score, *arrays))
        blocks += [f"**{role.capitalize()} patient**: {patient}, mean Dice {dice[patient]:.3f}", panel]
    return Section("overlays", "What does it look like?", blocks)


def overfitting(found: Findings) -> Section | None:
    """Gap of train to evaluation, and epochs to convergence, by row."""
    if not any(found.overfitting) and not any(found.convergence):
        return None
    rows: list[list[Cell | str]] = []
    for i, (gap, reached) in enumerate(zip(found.overfitting, found.convergence, strict=True)):
        row = found.rows[i]
        mean = nanmean(row.curves(f"{row.runs[0].evaluated_on}/dice"), 0)
        line = figures.sparkline(mean, f"Dice by epoch, row {i + 1}")
        cells: list[Cell | str] = [Cell(found.title(i), i), Cell("" if line else "–", "", svg=line)]
        cells += [
            number(gap.dice if gap else None, "+.3f"),
            number(gap.loss if gap else None, "+.4f"),
            gap.trend if gap else "–",
        ]
        if reached:
            span = (
                f"{reached.epochs[0]}"
                if reached.epochs[0] == reached.epochs[-1]
                else f"{reached.epochs[0]}–{reached.epochs[-1]}"
            )
            cells += [
                Cell(f"{span} of {reached.of}", float(np.median(reached.epochs))),
                "yes" if reached.rising else "no",
            ]
        else:
            cells += [Cell("–", ""), "–"]
        rows.append(cells)
    gaps = [gap for gap in found.overfitting if gap]
    wide = [
        found.title(i) for i, gap in enumerate(found.overfitting) if gap and gap.trend == "widening" and gap.dice > 0
    ]
    rising = sum(bool(reached and reached.rising) for reached in found.convergence)
    sentences = []
    if gaps:
        listed = ", ".join(wide[:6]) + (f" and {len(wide) - 6} more" if len(wide) > 6 else "")
        told = (
            f"In {plural(len(wide), 'row')} training Dice is ahead of evaluation and the gap widens with the epochs:"
            f" {listed}."
            if wide
            else ""
        )
        sentences.append(told or "No row shows a gap in favour of training that widens with the epochs.")
        sentences.append(
            "Training figures are gathered while the weights still move, evaluation after the epoch: early on, a test"
            " loss below the training loss is no sign of generalisation."
        )
    if rising:
        sentences.append(
            f"{rising} of {len(found.rows)} rows gained over 1 % in their last epoch: they were stopped, not converged,"
            " and a ranking there may change."
        )
    notes = {
        "Dice gap": "train minus evaluation, last epoch; positive: better on what it was trained on",
        "loss gap": "evaluation minus train, last epoch",
        "trend of the gap": "Kendall's test of the Dice gap against the epoch, 5 %",
        "95 % of final Dice": "first epoch that reached it, lowest to highest over the runs",
    }
    head = ["row", "Dice by epoch", "Dice gap", "loss gap", "trend of the gap", "95 % of final Dice", "still rising"]
    return Section(
        "overfitting",
        "Overfitting and convergence",
        [*([sentences] if sentences else []), Table("By row.", head, rows, notes)],
    )


def learning_rate(found: Findings) -> Section | None:
    """Dice over the learning rates that were tried with all else equal."""
    if not found.rates:
        return None
    comparison, sentences = found.comparison, []
    for series in found.rates[:8]:
        best = series.best(comparison)
        means = [float(found.means[row]) for row in series.rows]
        scores = comparison.scores["dice"]
        p = np.delete(sign_flip_leader(scores[series.rows], best), best) * len(found.rates)
        ahead = np.array([nanmean(nanmean(scores[series.rows[best]] - scores[row], 0)) for row in series.rows]) > 0
        tied = int(((p >= LEVEL) | ~np.delete(ahead, best)).sum())
        text = (
            f"{series.label}: Dice {min(means):.3f} to {max(means):.3f} over {len(means)} learning rates, highest at"
            f" {series.rates[best]:g}"
        )
        text += (
            f"; cannot be told from {tied} of the others"
            if tied
            else "; each of the others is lower on these patients (sign-flip, corrected over all series)"
        )
        if len(means) > 2 and best in (0, len(means) - 1):
            text += (
                f". The best is at the {'lower' if best == 0 else 'upper'} end of what was tried, so a better one may"
                " lie beyond"
            )
        sentences.append(text + ".")
    drawn = found.rates[: len(figures.COLOURS)]
    plot = figures.rates(
        "learning-rate",
        f"Dice against the learning rate. {' '.join(sentences)}",
        "Dice against the learning rate, all else equal, with 95 % intervals over patients.",
        [(s.label, s.rates, [float(found.means[r]) for r in s.rows], [found.dice[r] for r in s.rows]) for s in drawn],
    )
    more = f"{len(found.rates) - 8} more series are not shown." if len(found.rates) > 8 else ""
    return Section(
        "learning-rate", "How much does the learning rate matter?", [sentences, [plot], *([more] if more else [])]
    )


def importance(found: Findings) -> Section | None:
    """Optuna's importance of the factors, with what it rests on."""
    weights = found.importance
    if weights is None:
        return None
    text = (
        f"Over {plural(weights.runs, 'finished run')}, how much each factor matters for test Dice, by two of Optuna's"
        " evaluators: fANOVA over all runs, PED-ANOVA for what tells the best tenth."
    )
    text += (
        " The runs fill the grid of these factors."
        if weights.full_grid
        else (
            " The runs do not fill the grid of these factors, so factors that vary together share their weight"
            " arbitrarily."
        )
    )
    if weights.runs < 10 * len(weights.factors):
        text += f" That is few for {len(weights.factors)} factors: read it as a hint, not as a test."
    if "seed" in weights.factors:
        text += " The seed is among them: what weighs no more than it is chance."
    if weights.left_out:
        text += f" Left out, because only some runs have them: {joined(weights.left_out)}."
    rows: list[list[Cell | str]] = [
        [name, *(number(shares[i]) for shares in weights.shares.values())] for i, name in enumerate(weights.factors)
    ]
    words = ", ".join(f"{name} {weights.shares['fANOVA'][i]:.2f}" for i, name in enumerate(weights.factors))
    plot = figures.bars(
        "importance",
        f"Importance by fANOVA: {words}.",
        "Importance of the factors for test Dice.",
        weights.factors,
        weights.shares,
    )
    return Section(
        "importance",
        "Which settings mattered over the whole sweep?",
        [text, Table("Importance, as shares.", ["factor", *weights.shares], rows), [plot]],
    )
