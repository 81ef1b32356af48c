"""The sections of plain fact: what is missing, what was compared, what each row scored."""

from collections import Counter

import numpy as np

from segsweep.artifacts import WHOLE
from segsweep.report import figures
from segsweep.report.comparison import show
from segsweep.report.content import Block, Cell, Section, Table, joined, number
from segsweep.report.findings import Findings, ranged, shared
from segsweep.report.statistics import nanmean

FOREST_ROWS = 20


def missing(found: Findings) -> Section | None:
    """Jobs without a finished run, incomplete repeats, and damaged records."""
    lost = [job for job in found.record.jobs if job.status not in WHOLE]
    blocks: list[Block] = []
    if lost:
        counts = joined([f"{many} {status}" for status, many in Counter(job.status for job in lost).items()])
        rows: list[list[Cell | str]] = [
            [
                Cell(f"{job.sweep} / {job.number}" if job.number >= 0 else job.sweep, job.number),
                Cell(job.status, mark="bad"),
                ", ".join(f"{k}={show(v)}" for k, v in job.varied.items()) or " ".join(job.overrides) or "not recorded",
                f"{job.error_class + ': ' if job.error_class else ''}{job.error}" or "–",
            ]
            for job in lost
        ]
        blocks.append(
            Table(
                f"Jobs without a finished run: {counts}. They take no part in any figure below.",
                ["job", "status", "settings", "error"],
                rows,
            )
        )
    repeats = {(run.seed, run.fold) for row in found.rows for run in row.runs}
    most = max((len(row.runs) for row in found.rows), default=0)
    uneven = [
        found.title(i) + f" ({len(row.runs)} of {most})" for i, row in enumerate(found.rows) if len(row.runs) < most
    ]
    if uneven and len(repeats) > 1:
        more = f" and {len(uneven) - 12} more" if len(uneven) > 12 else ""
        blocks.append(
            f"Fewer repeats than the rest: {', '.join(uneven[:12])}{more}. Comparisons use the seeds and patients that"
            " both sides have."
        )
    if found.record.problems:
        blocks += ["Damaged or missing files, left out:", found.record.problems[:50]]
    return Section("missing", "What is missing", blocks) if blocks else None


def hyperparameters(found: Findings) -> Section | None:
    """What the rows were: the settings that differ, the rest in the caption."""
    if not found.rows:
        return None
    names, same = found.varied
    repeated = len(found.comparison.seeds) > 1 or any(row.folds for row in found.rows)
    rows = []
    for i, row in enumerate(found.rows):
        cells: list[Cell | str] = [Cell(found.title(i), i)]
        for name in names:
            value = row.factors.get(name)
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            cells.append(Cell("–", "") if name not in row.factors else number(value, "g") if plain else show(value))
        if repeated:
            cells.append(
                ", ".join(map(str, row.seeds)) + (f"; folds {', '.join(map(str, row.folds))}" if row.folds else "")
            )
        rows.append(cells)
    caption = f"Hyperparameters. All rows share {shared(same)}." if same else "Hyperparameters."
    return Section(
        "hyperparameters",
        "What was compared",
        [Table(caption, ["row", *names, *(["seeds"] if repeated else [])], rows)],
    )


def results(found: Findings) -> Section | None:
    """The report's training statistics, and beside them what they leave out."""
    if not found.rows:
        return None
    comparison = found.comparison
    marks: dict[str, dict[int, str]] = {metric: {} for metric in comparison.best}
    for metric, bests in comparison.best.items():
        for best in bests:
            if len(best.tied) < best.rivals:
                marks[metric] |= dict.fromkeys([best.row, *best.tied], "tied" if best.tied else "best")
    head = [
        "row",
        "Dice",
        "SD of seeds",
        "IoU",
        "HD95 (px)",
        "missed",
        "train loss",
        "train accuracy",
        "test loss",
        "test accuracy",
        "training time (s)",
    ]
    head += ["parameters", "GFLOPs", "images/s", "peak memory (MiB)"]
    rows: list[list[Cell | str]] = []
    for i, row in enumerate(found.rows):
        dice = Cell(ranged(found.dice[i], float(found.means[i])), float(found.means[i]), marks["dice"].get(i, ""))
        by_seed = nanmean(comparison.scores["dice"][i], 1)
        spread = float(np.nanstd(by_seed, ddof=1)) if (~np.isnan(by_seed)).sum() > 1 else None
        cells: list[Cell | str] = [Cell(found.title(i), i), dice, number(spread)]
        for metric, spec in (("iou", ".3f"), ("hd95", ".1f")):
            mean = comparison.mean(i, metric)
            cells.append(
                Cell(
                    ranged(comparison.interval(i, metric), mean, spec),
                    mean if mean == mean else "",
                    marks[metric].get(i, ""),
                )
            )
        lost = sum(run.metrics.get("test/missed") or 0 for run in row.runs) / max(len(row.seeds), 1)
        cells.append(number(lost, "g" if lost == int(lost) else ".1f"))
        cells += [
            number(row.metric(name), ".4f") for name in ("train/loss", "train/accuracy", "test/loss", "test/accuracy")
        ]
        cells += [
            number(row.metric("training_seconds"), ",.1f"),
            number(row.metric("parameters"), ",.0f"),
            number(row.metric("gflops"), ".3g"),
        ]
        cells += [
            number(row.metric("images_per_second"), ",.0f"),
            number(row.metric("peak_memory_bytes") / 2**20, ",.0f"),
        ]
        rows.append(cells)
    notes = {
        "Dice": "mean over the test patients with its 95 % interval; repeats pooled so that a patient counts once",
        "SD of seeds": "how far the mean Dice moves from seed to seed",
        "missed": "patients with a tumour and none predicted, a mean over the seeds",
        "HD95 (px)": "95th percentile of the surface distance; a missed tumour counts as the volume's diagonal",
    }
    table = Table(
        "Training statistics, and per-patient scores with 95 % intervals. " + _legend(found), head, rows, notes
    )
    shown = list(range(min(len(found.rows), FOREST_ROWS)))
    words = "; ".join(f"{found.title(i)}: {ranged(found.dice[i], float(found.means[i]))}" for i in shown[:8])
    plot = figures.forest(
        "dice",
        f"Mean Dice with its 95 % interval by row. {words}{'; and more, as in the table' if len(shown) > 8 else ''}.",
        "Mean Dice and 95 %"
        f" interval{f', the best {FOREST_ROWS} rows of {len(found.rows)}' if len(found.rows) > FOREST_ROWS else ''};"
        " each tick is a patient.",
        [found.title(i) for i in shown],
        [[found.dice[i]] for i in shown],
        points=[comparison.by_patient(i) for i in shown],
    )
    return Section("results", "How each row scored", [table, *_remarks(found), [plot]])


def _legend(found: Findings) -> str:
    return (
        "★ marks a value that is better than all others of its kind by a paired test (corrected over all pairs of"
        " rows, 5 %), ≈ those that cannot be told from the best; no mark, no claim. Loss, accuracy, time and memory"
        " carry no interval and are not marked."
    )


def _remarks(found: Findings) -> list[str]:
    remarks = []
    if len({row.factors.get("loss") for row in found.rows}) > 1:
        remarks.append("Rows with different losses cannot be compared by their loss: each is on a scale of its own.")
    if found.arenas > 1:
        remarks.append(
            "Rows were not all tested on the same data under the same kind of split. Values are marked only among those"
            " that were."
        )
    if len(found.devices) > 1:
        remarks.append(f"Times are from different devices ({joined(found.devices)}) and do not compare.")
    divided = {found.title(i): run.parts for i, row in enumerate(found.rows) for run in row.runs if run.parts}
    if divided:
        named = joined([f"{title} in {parts}" for title, parts in list(divided.items())[:6]])
        more = f" and {len(divided) - 6} more" if len(divided) > 6 else ""
        remarks.append(
            f"For want of memory batches went through the network in parts: {named}{more}. The loss is that of the"
            " whole batch, but BatchNorm saw the parts, and training took longer: these rows differ in that too."
        )
    undefined = sum(run.metrics.get("test/undefined") or 0 for row in found.rows for run in row.runs)
    if undefined:
        remarks.append(
            f"{undefined:g} times a patient had neither tumour nor prediction: Dice is undefined there and left out of"
            " the means."
        )
    return remarks
