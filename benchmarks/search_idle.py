"""How long workers stand idle in a search of trials of unequal length, beside the published Optuna sweeper's.

    python -m benchmarks.search_idle [--trials 20] [--slots 2] [--patients 28] [--epochs 1,2,4,8]

Both search the same space with TPE on the same launcher, one after the other, each in a fresh folder with the data
decoded. A worker is busy from the start of a job until its record is closed. `idle` is the share of the workers' time
from the first job's start until the last job starts: what a sweeper can be blamed for, and the start of the other
workers, whose first job begins `all_busy` seconds after the first. `idle_whole` goes on until the last job ends: then
workers are free because no trial is left.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

SPACE = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model=unet,r2unet"]
Jobs = dict[int, list[tuple[float, float]]]


def commands(trials: int, slots: int) -> dict[str, list[str]]:
    ours = ["hydra/sweeper=search", f"search.trials={trials}"]
    theirs = ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.n_jobs={slots}"]
    theirs += ["hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0", "hydra.sweeper.sampler.seed=0"]
    startup = "hydra.sweeper.sampler.n_startup_trials=5"
    return {"search": [*ours, startup], "optuna": [*theirs, startup]}


def intervals(folder: Path) -> Jobs:
    """Worker's process -> (start, end) of its jobs in seconds, in order."""
    found: Jobs = defaultdict(list)
    for file in folder.glob("multirun/2*/*/job.json"):
        job = json.loads(file.read_text())
        assert job["status"] == "finished", job
        end = file.stat().st_mtime  # written when the job ends
        found[job["pid"]].append((end - job["seconds"], end))
    return {pid: sorted(jobs) for pid, jobs in found.items()}


def idle(jobs: Jobs, slots: int) -> dict[str, float]:
    """The slots' time without a job, as shares, and the gaps between two jobs of one worker, in seconds."""
    flat = sorted(job for of_one in jobs.values() for job in of_one)
    first, last, end = flat[0][0], flat[-1][0], max(stop for _, stop in flat)
    gaps = [b[0] - a[1] for of_one in jobs.values() for a, b in zip(of_one, of_one[1:], strict=False)]

    def share(until: float) -> float:
        busy = sum(max(0.0, min(stop, until) - start) for start, stop in flat)
        return 1 - busy / (slots * (until - first))

    lengths = [stop - start for start, stop in flat]
    return {
        "trials": len(flat),
        "seconds": end - first,
        "idle": share(last),
        "idle_whole": share(end),
        "all_busy": max(of_one[0][0] for of_one in jobs.values()) - first,
        "median_gap": statistics.median(gaps),
        "longest_gap": max(gaps),
        "shortest_trial": min(lengths),
        "longest_trial": max(lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--patients", type=int, default=28, help="phantoms of the embedded data")
    parser.add_argument("--epochs", default="1,2,4,8", help="of a trial: searched too, so that trials differ in length")
    parser.add_argument("overrides", nargs="*", help="of every trial, such as data.image_size=16")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the results")
    args = parser.parse_args()
    job = [f"hydra.launcher.jobs_per_device={args.slots}", f"data.patients={args.patients}", *args.overrides]
    # not scheduler=constant: there a trial of 2 epochs is the beginning of one of 4, and what is known is not trained
    swept = [f"epochs={args.epochs}", *SPACE]
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "data": "phantom", "slots": args.slots}
    result |= {"job": [*swept, *job], "sweepers": {}}
    with tempfile.TemporaryDirectory() as name:
        places = ["paths.runs=multirun", f"paths.cache={name}/cache", "tracking=none", "report=false"]
        for sweeper, own in ({"warm": []} | commands(args.trials, args.slots)).items():
            folder = Path(name) / sweeper
            folder.mkdir()
            what = ["-m", *own, *swept, *job] if own else [*job[1:], "epochs=1"]  # the first decodes the data
            command = [sys.executable, "-m", "segsweep", *what, *places]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{sweeper}: {done.stdout}{done.stderr}")
            if own:
                result["sweepers"][sweeper] = idle(intervals(folder), args.slots)
                print(sweeper, json.dumps(result["sweepers"][sweeper], indent=1), flush=True)
    common.write(args.out, "search_idle", result)


if __name__ == "__main__":
    main()
