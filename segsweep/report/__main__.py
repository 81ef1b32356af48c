"""python -m segsweep.report SWEEP... [--out DIR]"""

import argparse
import sys
from pathlib import Path

from segsweep.config.start import start
from segsweep.core.errors import SegsweepError
from segsweep.core.program import typed
from segsweep.report.files import write


def main(arguments: list[str] | None = None) -> int:
    """Build the report and say where it is; 1 and a plain message where there is nothing to build it from."""
    start()
    parser = argparse.ArgumentParser(
        prog=typed("report"),
        description=(
            "Compare finished runs: tables, curves, overlays, and which differences are real."
            " Reads the record on disk, trains nothing."
        ),
    )
    parser.add_argument(
        "sweep",
        nargs="+",
        help=(
            "a sweep folder (multirun/<sweep>), a run folder, an MLflow experiment's name or a run id; several are"
            " pooled"
        ),
    )
    parser.add_argument(
        "--out", type=Path, help="where to write (default: into the sweep's folder; outputs/report for anything else)"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="the score that runs are compared by, of each unit of the test (default: the first of their task)",
    )
    options = parser.parse_args(arguments)
    single = Path(options.sweep[0])
    out = options.out or (
        single if len(options.sweep) == 1 and (single / "sweep.json").exists() else Path("outputs/report")
    )
    try:
        page = write(options.sweep, out, options.metric)
    except (SegsweepError, OSError) as error:  # the second: --out cannot be written
        print(error, file=sys.stderr)
        return 1
    print(f"{page}\n{page.with_suffix('.md')}\n{page.with_name('runs.csv')}\n{page.with_name('figures')}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
