"""`python -m segsweep.sync FOLDER...`: brings MLflow up to date with run folders after it was out of reach or off."""

import argparse
import sys
from pathlib import Path

from segsweep.config.schema import engine
from segsweep.config.start import start
from segsweep.core import artifacts, locks
from segsweep.core.masks import first_line, learn, masked
from segsweep.core.program import typed
from segsweep.tracking import mirrors
from segsweep.tracking.recall import configuration
from segsweep.tracking.store import STATE, vouched


def run_folders(folder: Path) -> list[Path]:
    """The run folders of a run folder, a sweep folder, or the folder of all runs."""
    if (folder / "run.json").exists():
        return [folder]
    found = [job["folder"] for job in artifacts.jobs(folder) if job["folder"]]
    found = found or [path.parent for path in sorted([*folder.glob("*/run.json"), *folder.glob("runs/*/run.json")])]
    return list(dict.fromkeys(path.resolve() for path in found if (path / "run.json").exists()))


def _take_place(run: Path) -> None:
    """As the next command would: a folder that holds files of two runs is a copy of neither."""
    from segsweep.runs import record

    with locks.lock(run):
        record.take_place(run)


def main() -> int:
    start()
    parser = argparse.ArgumentParser(prog=typed("sync"), description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="sweep or run folders under multirun/")
    parser.add_argument(
        "--uri",
        help="MLflow's store; default: the one in each run's folder, if it "
        "is that of MLFLOW_TRACKING_URI or a file below this folder",
    )
    parser.add_argument("--experiment", help="MLflow's experiment; default: the one in each run's config.yaml")
    args = parser.parse_args()
    failed = 0
    learn(args.uri)
    for folder in args.folders:
        runs = run_folders(folder)
        if not runs:
            print(f"{folder}: no run folder here (a run folder holds run.json)", file=sys.stderr)
            failed += 1
        asked_by = folder if (folder / "sweep.json").exists() else None
        for run in runs:
            try:
                if artifacts.result(run / artifacts.NEXT) and not locks.held(run):
                    _take_place(run)
                settings = engine(configuration(run)).tracking
            except Exception as error:  # missing, or no YAML, or of another program
                print(f"{run}/config.yaml is missing or damaged: {first_line(error)}", file=sys.stderr)
                failed += 1
                continue
            state = artifacts.read_json(run / STATE) or {}  # a run of another machine: the store it came from
            uri = args.uri or state.get("uri") or settings.uri
            experiment = args.experiment or state.get("experiment") or settings.experiment
            if uri is None:
                print(f"{run}: ran with tracking=none; say where to: --uri sqlite:///mlruns/mlflow.db", file=sys.stderr)
                failed += 1
            elif locks.held(run):
                print(f"{run.name}: still running, left alone")
            else:
                try:
                    run_id = mirrors.push(run, vouched(uri, args.uri), experiment, asked_by, final=True)
                    print(f"{run.name}: MLflow run {run_id}")
                except Exception as error:  # whatever the store raises: the other runs are still copied
                    print(f"{run}: {masked(uri)} did not take it: {first_line(error)}", file=sys.stderr)
                    failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
