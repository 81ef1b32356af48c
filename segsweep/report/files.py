"""From sources to files: reads, compares, renders, and writes each file whole or not at all."""

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from segsweep.core import accepted, artifacts
from segsweep.report import render
from segsweep.report.comparison import Comparison, compare
from segsweep.report.findings import Findings
from segsweep.report.record import Record
from segsweep.report.records import read
from segsweep.report.sections import make
from segsweep.report.settle import by


def write(sources: Sequence[Path | str], out: Path, metric: str | None = None) -> Path:
    """Write report.html, report.md, runs.csv and figures/ on `sources` into `out`; returns the page. metric: what the
    runs are compared by, in place of what their task says.

    A source is a sweep folder, a run folder, or an MLflow experiment or run id. Raises SegsweepError where one holds no
    runs."""
    record = read(sources)
    if metric:
        by(record, metric)
    found = Findings(compare(record))
    sections = make(found)
    names = ", ".join(record.names[:4]) + (f" and {len(record.names) - 4} more" if len(record.names) > 4 else "")
    title, made = (
        f"Comparison of {names}",
        f"Made {datetime.now():%Y-%m-%d %H:%M} from the record on disk. Nothing was trained for it.",
    )
    for name, png in render.pictures(sections).items():
        with artifacts.atomic(out / "figures" / name) as partial:
            partial.write_bytes(png)
    artifacts.write_text(out / "runs.csv", table_of_runs(record, found.comparison))
    artifacts.write_text(out / "report.md", render.markdown(title, made, sections))
    artifacts.write_text(out / "report.html", render.html(title, made, sections))
    return out / "report.html"


def table_of_runs(record: Record, comparison: Comparison) -> str:
    """`lines_of_runs` as CSV; an empty cell = not recorded."""
    lines, text = lines_of_runs(record, comparison), io.StringIO()
    names = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writerow({name: artifacts.cell(name) for name in names})
    writer.writerows({name: artifacts.cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


REPORTS = frozenset(
    ("sweep", "job", "status", "row", "signature", "group", "folder", "split.leaks", "command", "device", "commit")
    + ("stopped", "accepted", "error", "error_class")
)
"""Columns of the report's own; a task's settings may have the same names."""


def lines_of_runs(record: Record, comparison: Comparison) -> list[dict[str, Any]]:
    """One a job: where it is, its settings and all its final metrics. A setting that is called as a column of REPORTS
    is `setting.NAME` here, a number of the result that is called as one or as a setting `result.NAME`."""
    titles = {id(run): row.label for row in comparison.rows for run in row.runs}
    lines = []
    for job in record.jobs:
        run = job.run
        line: dict[str, Any] = {"sweep": job.sweep, "job": job.number if job.number >= 0 else "", "status": job.status}
        line["row"] = titles.get(id(run), "")
        if run:
            line |= {"signature": run.signature, "group": run.group, "folder": str(run.folder)}
            line |= {f"setting.{k}" if k in REPORTS else k: value for k, value in run.settings.items()}
            line |= {
                f"result.{k}" if k in run.settings or k in REPORTS else k: value for k, value in run.metrics.items()
            }
            line |= {"split.leaks": run.leaks, "command": run.command}
            line |= {"device": run.info.get("device"), "commit": run.info.get("commit")}
            line |= {"stopped": stopped} if (stopped := artifacts.stopped(run.result)) else {}
            line |= {"accepted": accepted.told(run.accepted[-1])} if run.accepted else {}
        line |= {"error": job.error, "error_class": job.error_class}
        lines.append(line)
    return lines
