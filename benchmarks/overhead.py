"""What a launcher costs: the wall time of a sweep, less the training steps in it, and less the whole jobs.

    python -m benchmarks.overhead [--jobs 20] [--long] [--rounds 3] [--launchers local local2 basic joblib]

Every sweep starts in a fresh folder with the data decoded and an MLflow store made, as the second sweep on a machine
does. The launchers take turns, so that a machine that slows down slows all of them. Joblib is an extra of the package.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

SLOTS = {"local": 1, "local2": 2, "basic": 1, "joblib": 1, "joblib2": 2}
OPTIONS = {
    "local": ["hydra/launcher=local", "hydra.launcher.jobs_per_device=1"],
    "local2": ["hydra/launcher=local", "hydra.launcher.jobs_per_device=2"],
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"],
    "joblib2": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}
JOBS = {
    "overhead": ["epochs=2", "data.patients=12", "data.slices=16", "data.image_size=64", "model.width=8"],
    "overhead_long": [],  # what conf/ gives
}


def sweep(folder: Path, cache: Path, *arguments: str) -> tuple[float, float, list[dict]]:
    """Seconds of the whole command, of its processes' CPU time, and the records of its runs."""
    command = [sys.executable, "-m", "segsweep", "-m", *arguments, "paths.runs=multirun", f"paths.cache={cache}"]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, [json.loads(file.read_text()) for file in folder.glob("multirun/runs/*/result.json")]


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--long", action="store_true", help="jobs of ten seconds and more: those of conf/")
    parser.add_argument("--launchers", nargs="+", default=["local", "local2", "basic", "joblib"], choices=OPTIONS)
    args = parser.parse_args()
    name = "overhead_long" if args.long else "overhead"
    job = [*JOBS[name], *(["data=lgg", f"data.root={args.data_root}"] if args.data_root else [])]
    result: dict[str, Any] = {"machine": common.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}
    result |= {"data": "LGG" if args.data_root else "phantom", "jobs": args.jobs, "job": JOBS[name]}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in args.launchers}
    with tempfile.TemporaryDirectory() as place:
        start, cache = Path(place) / "start", Path(place) / "cache"
        start.mkdir()
        sweep(start, cache, *job, "seed=1000", "hydra/launcher=basic")  # decodes the data and makes the store
        shutil.rmtree(start / "multirun")
        for number in range(args.rounds):
            for launcher in args.launchers:
                folder = Path(place) / f"{launcher}{number}"
                shutil.copytree(start, folder)
                seconds, cpu, runs = sweep(folder, cache, *job, f"seed=range({args.jobs})", *OPTIONS[launcher])
                assert len(runs) == args.jobs
                steps = sum(run["training_seconds"] for run in runs) / SLOTS[launcher]
                tests = sum(run["evaluation_seconds"] for run in runs) / SLOTS[launcher]
                whole = sum(run["total_seconds"] for run in runs) / SLOTS[launcher]
                row = {"seconds": seconds, "cpu": cpu, "steps": steps, "evaluation": tests, "whole_jobs": whole}
                row["over_steps_a_job"] = (seconds - steps) / args.jobs
                row["launcher_a_job"] = (seconds - whole) / args.jobs
                rows[launcher].append(row)
                print(f"{launcher:8}", "  ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
    result["launchers"] = {
        launcher: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for launcher, found in rows.items()
    }
    common.write(args.out, name, result)


if __name__ == "__main__":
    main()
