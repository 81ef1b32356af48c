"""The sections of plain fact: what is missing, what was compared, what each row scored."""

from collections import Counter

import numpy as np

from segsweep.report import figures
from segsweep.report.comparison import show, telling
from segsweep.report.content import Block, Cell, Section, Table, a, inside, joined, many, number, slug
from segsweep.report.findings import Findings, ranged, shared
from segsweep.report.statistics import nanmean

FOREST_ROWS = 20
COSTS = (
    ("training time (s)", "training_seconds", ",.1f", 1),
    ("parameters", "parameters", ",.0f", 1),
    ("GFLOPs", "gflops", ".3g", 1),
    ("peak memory (MiB)", "peak_memory_bytes", ",.0f", 2**20),
)
"""Heading, key of result.json, format, divisor."""


def missing(found: Findings) -> Section | None:
    """Jobs without a finished run, incomplete repeats, and damaged records."""
    lost = found.record.lost
    blocks: list[Block] = []
    if lost:
        counts = joined([f"{many} {status}" for status, many in Counter(job.status for job in lost).items()])
        rows: list[list[Cell | str]] = [
            [
                Cell(job.name, job.number),
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
    if since := [job for job in found.record.jobs if job.since]:
        later = [f"{job.name} ({job.status}) in {job.since}" for job in since[:12]]
        later += [f"{len(since) - 12} more"] if len(since) > 12 else []
        blocks.append(f"Did not finish, but with the same settings since: {joined(later)}.")
    repeats = {(run.seed, run.repeat) for row in found.rows for run in row.runs}
    most = max((len(row.runs) for row in found.rows), default=0)
    uneven = [
        found.title(i) + f" ({len(row.runs)} of {most})" for i, row in enumerate(found.rows) if len(row.runs) < most
    ]
    if uneven and len(repeats) > 1:
        more = f" and {len(uneven) - 12} more" if len(uneven) > 12 else ""
        blocks.append(
            f"Fewer repeats than the rest: {', '.join(uneven[:12])}{more}. Comparisons use the seeds"
            f"{'' if found.comparison.alone else f' and {found.units}'} that both sides have."
        )
    if others := found.record.others:
        tasks = Counter(f"{run.spec.metrics[run.spec.primary].title} of {many(run.spec.unit)}" for run in others)
        told = joined([f"{count} of one that is measured by {task}" for task, count in tasks.items()])
        blocks.append(
            f"Runs of another task, which do not compare with these: {told}. They take no part in any figure below;"
            " runs.csv has them."
        )
    if found.record.problems:
        blocks += ["Damaged or missing files, left out:", found.record.problems[:50]]
    if found.own.problems:
        blocks += ["Of what the task adds to this report, left out:", found.own.problems[:50]]
    return Section("missing", "What is missing", blocks) if blocks else None


def hyperparameters(found: Findings) -> Section | None:
    """What the rows were: the settings that differ, the rest in the caption."""
    if not found.rows:
        return None
    names, same = found.varied
    same = telling(same, found.spec)
    repeated = len(found.comparison.seeds) > 1 or any(row.repeats for row in found.rows)
    files = list(dict.fromkeys(file for row in found.rows for file in row.versions))
    rows = []
    for i, row in enumerate(found.rows):
        cells: list[Cell | str] = [Cell(found.title(i), i)]
        cells += [row.versions.get(file, "–") for file in files]
        for name in names:
            value = row.factors.get(name)
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            cells.append(Cell("–", "") if name not in row.factors else number(value, "g") if plain else show(value))
        if repeated:
            kinds = [f"; {many(k.split('.')[-1])} {', '.join(map(str, values))}" for k, values in row.repeats.items()]
            cells.append(", ".join(map(str, row.seeds)) + "".join(kinds))
        rows.append(cells)
    caption = f"Hyperparameters. All rows share {shared(same)}." if same else "Hyperparameters."
    return Section(
        "hyperparameters",
        "What was compared",
        [Table(caption, ["row", *files, *names, *(["seeds"] if repeated else [])], rows)],
    )


def results(found: Findings) -> Section | None:
    """The report's training statistics, and beside them what they leave out."""
    if not found.rows:
        return None
    comparison = found.comparison
    marks: dict[str, dict[int, str]] = {name: {} for name in comparison.best}
    for name, bests in comparison.best.items():
        for best in bests:
            if len(best.tied) < best.rivals:
                marks[name] |= dict.fromkeys([best.row, *best.tied], "tied" if best.tied else "best")
    primary, part = found.spec.primary, comparison.part
    compared = found.score + found.measured_in(primary)
    head = ["row", compared, "SD of seeds"]
    scores = {name: metric for name, metric in found.spec.scores.items() if name != primary and metric.column != ""}
    titles = {name: found.word(name, metric.title) + found.measured_in(name) for name, metric in scores.items()}
    # of what has no value for each unit: the compared number itself is in the second column already
    plain = [(f"{p}/{name}", m) for p in ("train", part) for name, m in found.others.items()]
    plain = [(key, m) for key, m in plain if key != f"{part}/{primary}" and _known(found, key)]
    head += [*titles.values(), *(f"{name.split('/')[0]} {inside(m.title)}" for name, m in plain)]
    costs = [
        (title, name, spec, by) for title, name, spec, by in COSTS if name == "training_seconds" or _known(found, name)
    ]
    head += [title for title, *_ in costs]
    rows: list[list[Cell | str]] = []
    for i, row in enumerate(found.rows):
        mean = float(found.means[i])
        scored = Cell(found.scored(i), mean, marks[primary].get(i, ""))
        by_seed = comparison.by_unit(i) if comparison.alone else nanmean(comparison.primary[i], 1)
        spread = float(np.nanstd(by_seed, ddof=1)) if (~np.isnan(by_seed)).sum() > 1 else None
        cells: list[Cell | str] = [Cell(found.title(i), i), scored, number(spread, found.form)]
        for name, metric in scores.items():
            mean = comparison.mean(i, name)
            cells.append(
                Cell(
                    ranged(comparison.interval(i, name), mean, metric.mean_format or metric.format),
                    mean if mean == mean else "",
                    marks[name].get(i, ""),
                )
            )
        cells += [number(row.metric(key), metric.format) for key, metric in plain]
        cells += [number(row.metric(name) / by, spec) for _, name, spec, by in costs]
        rows.append(cells)
    counts = "so that each counts once" if comparison.alone else f"so that {a(found.unit)} counts once"
    over = "the seeds" if comparison.alone else f"the test {found.units}"
    known = any(found.intervals)
    means = f"mean over {over}{' with its 95 % interval' * known}; repeats pooled {counts}"
    notes = {
        compared: "; ".join(filter(None, [found.footnote(primary), means])),
        "SD of seeds": f"how far the mean {found.score} moves from seed to seed",
    }
    for column in found.own.columns:
        if len(column.cells) == len(rows):
            at = head.index(column.before) if column.before in head else len(head)
            head.insert(at, column.head)
            for cells, cell in zip(rows, column.cells, strict=True):
                cells.insert(at, cell)
            notes |= {column.head: column.note} if column.note else {}
    notes |= {title: text for name, title in titles.items() if (text := found.footnote(name))}
    table = Table(
        f"Training statistics, and {'scores' if comparison.alone else f'per-{found.unit} scores'}"
        f"{' with 95 % intervals' * known}."
        f" {_legend(found)}",
        head,
        rows,
        notes,
    )
    drawn = [not np.isnan(comparison.by_unit(i)).all() for i in range(len(found.rows))]
    shown = list(range(min(len(found.rows), FOREST_ROWS))) if any(drawn[:FOREST_ROWS]) else []
    words = "; ".join(f"{found.title(i)}: {found.scored(i)}" for i in shown[:8])
    words += "; and more, as in the table" if len(shown) > 8 else ""
    plot = shown and figures.forest(
        slug(primary),
        f"{f'Mean {found.score} with its 95 % interval' if known else found.score} by row. {words}.",
        f"{f'Mean {found.score} and 95 % interval' if known else found.score}"
        f"{f', the best {FOREST_ROWS} rows of {len(found.rows)}' if len(found.rows) > FOREST_ROWS else ''};"
        f" each tick is {a(found.unit)}; {found.better} is better.",
        [found.title(i) for i in shown],
        [[found.intervals[i]] for i in shown],
        points=[comparison.by_unit(i) for i in shown],
        xlabel=compared,
    )
    return Section("results", "How each row scored", [table, *_remarks(found), *([[plot]] if plot else [])])


def _known(found: Findings, name: str) -> bool:
    """Whether a run has this number."""
    return any(name in run.metrics for row in found.rows for run in row.runs)


def _legend(found: Findings) -> str:
    titles = [inside(metric.title) for name, metric in found.others.items() if name != found.spec.primary]
    plain = joined([*titles, "time", "memory"])
    return (
        "★ marks a value that is better than all others of its kind by a paired test (corrected over all pairs of"
        " rows, 5 %), ≈ those that cannot be told from the best; no mark, no claim."
        f" {plain[0].upper()}{plain[1:]} carry no interval and are not marked."
    )


def _remarks(found: Findings) -> list[str]:
    remarks = []
    for metric in found.spec.metrics.values():
        for name in metric.scale:
            if len({str(row.factors.get(name)) for row in found.rows}) > 1:
                remarks.append(
                    f"Rows with different {many(name)} cannot be compared by their {inside(metric.title)}: each is on a"
                    " scale of its own."
                )
    scaled = f", with the same {joined(found.analysis.scales)}" if found.analysis.scales else ""
    if found.arenas > 1:
        remarks.append(
            f"Rows were not all tested on the same data under the same kind of split{scaled}. Values are marked only"
            " among those that were."
        )
    if len(found.devices) > 1:
        remarks.append(f"Times are from different devices ({joined(found.devices)}) and do not compare.")
    return remarks + found.own.sentences.get("results", [])
