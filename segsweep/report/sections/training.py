"""The sections that show: curves, overfitting, convergence, learning rate, and which settings mattered."""

import numpy as np

from segsweep.report import figures
from segsweep.report.comparison import Configuration
from segsweep.report.content import Block, Cell, Figure, Section, Table, inside, joined, number, plural, plus, slug
from segsweep.report.findings import Findings
from segsweep.report.learning import start
from segsweep.report.statistics import LEVEL, nanmean, sign_flip_leader

# rows with curves of their own; coloured, drawn at all in the joint panels
EACH, COLOURED, DRAWN = 8, len(figures.COLOURS), 100


def _panels(found: Findings) -> dict[str, str]:
    """Metric -> its name; those that some run has epochs of."""
    metrics = {name: inside(metric.title) for name, metric in found.others.items() if name != found.spec.primary}
    metrics[found.spec.primary] = found.metric.title
    seen = {key for row in found.rows for run in row.runs for key in run.history}
    return {m: found.word(m, t) for m, t in metrics.items() if {f"train/{m}", f"val/{m}", f"test/{m}"} & seen}


def _legend(found: Findings, metric: str) -> str:
    """Where curves are not, in the end."""
    return "lower right" if found.spec.metrics[metric].sign > 0 else "upper right"


def curves(found: Findings) -> Section | None:
    """Metrics by epoch: all rows together, then each."""
    rows = [(i, row) for i, row in enumerate(found.rows) if any("/" in key for run in row.runs for key in run.history)]
    panels = _panels(found)
    if not rows or not panels:
        return None
    part = rows[0][1].runs[0].evaluated_on
    others = rows[COLOURED:DRAWN]
    blocks: list[Block] = []
    together = []
    for metric, title in panels.items():
        joint = [("", row.curves(f"{row.runs[0].evaluated_on}/{metric}"), figures.GREY, "-") for _, row in others]
        joint += [
            (f"row {i + 1}", row.curves(f"{row.runs[0].evaluated_on}/{metric}"), figures.COLOURS[k], "-")
            for k, (i, row) in enumerate(rows[:COLOURED])
        ]
        if not (joint := [line for line in joint if line[1].size]):  # it is followed in training alone
            continue
        words = _ends(found, [(found.title(i), row, row.runs[0].evaluated_on) for i, row in rows[:COLOURED]], metric)
        together.append(
            figures.curves(
                f"all-{slug(metric)}",
                f"{title} on {part} against the epoch, all rows. {words}",
                f"{title}, {part}",
                f"{title} ({part})",
                joint,
                _legend(found, metric),
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
        *_unmeasured(found, rows),
    ]
    blocks.append(
        "Each row, training dashed and evaluation"
        f" solid{f'; the best {EACH} of {len(rows)}' if len(rows) > EACH else ''}:"
    )
    for i, row in rows[:EACH]:
        blocks += [f"**{found.title(i)}**", [_each(found, i, row, metric, title) for metric, title in panels.items()]]
    return Section("curves", "How did they learn?", blocks)


def _unmeasured(found: Findings, rows: list[tuple[int, Configuration]]) -> list[Block]:
    """The rows with epochs in which the metric that is compared by was not measured."""
    lost = []
    for i, row in rows if found.metric.by_epoch else ():
        column = f"{row.runs[0].evaluated_on}/{found.spec.primary}"
        epochs = sum(len(run.history.get("epoch", ())) for run in row.runs)
        if lacking := sum(run.lacks(column) for run in row.runs):
            lost.append(f"{lacking} of {epochs} epochs of {found.title(i)}")
    more = [f"{len(lost) - EACH} more rows"] * (len(lost) > EACH)
    return [f"{found.metric.title} was not measured in {joined(lost[:EACH] + more)}."] if lost else []


def _each(found: Findings, i: int, row: Configuration, metric: str, title: str) -> Figure:
    part = row.runs[0].evaluated_on
    series = [
        ("train", row.curves(f"train/{metric}"), figures.COLOURS[1], "--"),
        (part, row.curves(f"{part}/{metric}"), figures.COLOURS[0], "-"),
    ]
    series = [line for line in series if line[1].size]
    words = " ".join(_ends(found, [(found.title(i), row, side)], metric, side) for side in ("train", part))
    alt = f"{title} of {found.title(i)} against the epoch. {words}"
    name = f"row{i + 1}-{slug(metric)}"
    return figures.curves(name, alt, f"{title}, row {i + 1}", title, series, _legend(found, metric))


def _ends(found: Findings, rows: list[tuple[str, Configuration, str]], metric: str, side: str = "") -> str:
    """First and last values of curves in words."""
    about = found.spec.metrics[metric]
    texts, form = [], about.mean_format or about.format
    for title, row, part in rows:
        column = f"{part}/{metric}"
        each = [run.history[column] for run in row.runs if column in run.history and len(run.history[column])]
        none = "not measured" if any(run.lacks(column) for run in row.runs) else "undefined"
        if each:
            ends = (float(nanmean(np.array([values[place] for values in each]))) for place in (0, -1))
            first, last = (none if np.isnan(value) else f"{value:{form}}" for value in ends)
            texts.append(f"{side or title}: {first} in the first epoch, {last} in the last")
    return "; ".join(texts) + "." if texts else ""


def overfitting(found: Findings) -> Section | None:
    """Gap of train to evaluation, and epochs to convergence, by row."""
    if not any(found.overfitting) and not any(found.convergence):
        return None
    spec, followed = found.spec, found.followed
    about = spec.metrics[followed]
    title, form = inside(about.title) if followed != spec.primary else about.title, about.mean_format or about.format
    losses = [gap.loss for gap in found.overfitting if gap and gap.loss is not None]
    apart = "loss" in spec.metrics and followed != "loss" and any(loss == loss for loss in losses)
    rows: list[list[Cell | str]] = []
    for i, (gap, reached) in enumerate(zip(found.overfitting, found.convergence, strict=True)):
        row = found.rows[i]
        mean = nanmean(row.curves(f"{row.runs[0].evaluated_on}/{spec.primary}"), 0)
        line = figures.sparkline(mean, f"{found.metric.title} by epoch, row {i + 1}", found.metric.bounds)
        cells: list[Cell | str] = [Cell(found.title(i), i), Cell("" if line else "–", "", svg=line)]
        cells.append(_gap(gap.score if gap else None, form))
        cells += [_gap(gap.loss if gap else None, spec.metrics["loss"].format)] if apart else []
        cells.append(gap.trend if gap else "–")
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
        found.title(i) for i, gap in enumerate(found.overfitting) if gap and gap.trend == "widening" and gap.score > 0
    ]
    rising = sum(bool(reached and reached.rising) for reached in found.convergence)
    sentences = []
    if gaps:
        listed = ", ".join(wide[:6]) + (f" and {len(wide) - 6} more" if len(wide) > 6 else "")
        told = (
            f"In {plural(len(wide), 'row')} training {title} is ahead of evaluation and the gap widens with the epochs:"
            f" {listed}."
            if wide
            else ""
        )
        sentences.append(told or "No row shows a gap in favour of training that widens with the epochs.")
        sentences += found.own.sentences.get("overfitting", [])
    if rising:
        sentences.append(
            f"{rising} of {len(found.rows)} rows gained over 1 % in their last epoch: they were stopped, not converged,"
            " and a ranking there may change."
        )
    zero = start(found.metric)
    gained = (
        f"95 % of final {found.metric.title}"
        if zero == 0 < found.metric.sign
        else f"95 % of the gain in {found.metric.title}"
    )
    since = (
        ""
        if zero == 0 < found.metric.sign
        else f", counted from {'the first epoch' if np.isnan(zero) else f'{zero:g}'}"
    )
    notes = {
        f"{title} gap": f"{_less(about.sign)}, last epoch; positive: better on what it was trained on",
        "loss gap": f"{_less(spec.metrics['loss'].sign)}, last epoch" if apart else "",
        "trend of the gap": f"Kendall's test of the {title} gap against the epoch, 5 %",
        gained: f"first epoch that reached it, lowest to highest over the runs{since}",
    }
    notes = {name: text for name, text in notes.items() if text or name != "loss gap"}
    head = ["row", f"{found.metric.title} by epoch", f"{title} gap", *(["loss gap"] if apart else [])]
    head += ["trend of the gap", gained, "still rising" if found.metric.sign > 0 else "still falling"]
    return Section(
        "overfitting",
        "Overfitting and convergence",
        [*([sentences] if sentences else []), Table("By row.", head, rows, notes)],
    )


def _gap(value: float | None, form: str) -> Cell:
    return number(None) if value is None or value != value else Cell(plus(value, form), value)


def _less(sign: int) -> str:
    return "train minus evaluation" if sign > 0 else "evaluation minus train"


def learning_rate(found: Findings) -> Section | None:
    """Scores over the learning rates that were tried with all else equal."""
    if not found.rates:
        return None
    comparison, sentences = found.comparison, []
    for series in found.rates[:8]:
        best = series.best(comparison)
        means = [float(found.means[row]) for row in series.rows]
        cells, form = comparison.cells[comparison.spec.primary], found.form
        p = np.delete(sign_flip_leader(cells[series.rows], best), best) * len(found.rates)
        less = np.array([nanmean(nanmean(comparison.less(series.rows[best], row), 0)) for row in series.rows])
        ahead = found.metric.sign * less > 0
        tied = int(((p >= LEVEL) | ~np.delete(ahead, best)).sum())
        text = (
            f"{series.label}: {found.score} {min(means):{form}} to {max(means):{form}} over"
            f" {len({*series.rates})} learning rates, {found.best} at {series.rates[best]:g}"
        )
        text += (
            f"; cannot be told from {tied} of the others"
            if tied
            else f"; each of the others is {found.worse} on these {found.units} (sign-flip, corrected over all series)"
        )
        if len(means) > 2 and best in (0, len(means) - 1):
            text += (
                f". The best is at the {'lower' if best == 0 else 'upper'} end of what was tried, so a better one may"
                " lie beyond"
            )
        sentences.append(text + ".")
    drawn = found.rates[: len(figures.COLOURS)]
    known = any(found.intervals[row] for series in drawn for row in series.rows)
    spans = f", with 95 % intervals over {found.units}" if known else ""
    plot = figures.rates(
        "learning-rate",
        f"{found.score} against the learning rate. {' '.join(sentences)}",
        f"{found.score} against the learning rate, all else equal{spans}.",
        f"mean {found.score} of the {found.units}",
        [
            (s.label, s.rates, [float(found.means[r]) for r in s.rows], [found.intervals[r] for r in s.rows])
            for s in drawn
        ],
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
        f"Over {plural(weights.runs, 'finished run')}, how much each factor matters for {_final(found)}, by two of"
        " Optuna's evaluators: fANOVA over all runs, PED-ANOVA for what tells the best tenth."
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
        f"Importance of the factors for {_final(found)}.",
        weights.factors,
        weights.shares,
    )
    return Section(
        "importance",
        "Which settings mattered over the whole sweep?",
        [text, Table("Importance, as shares.", ["factor", *weights.shares], rows), [plot]],
    )


def _final(found: Findings) -> str:
    return f"{'validation' if found.comparison.part == 'val' else 'test'} {found.metric.title}"
