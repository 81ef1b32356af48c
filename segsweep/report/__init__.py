"""The comparison report: tables, curves, overlays and tested contrasts, from records alone; it never trains."""

from collections.abc import Sequence
from pathlib import Path


def build(sources: Sequence[Path | str], out: Path) -> Path:
    """Write report.html, report.md, runs.csv and figures/ on `sources` into `out`; returns the page.

    A source is a sweep folder, a run folder, or an MLflow experiment or run id. Raises SegsweepError where one holds no
    runs.
    """
    # lazily: scipy and matplotlib take a second, and who imports this package may only want the table
    from segsweep.report.files import write

    return write(sources, out)
