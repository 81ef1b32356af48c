"""How long workers stand idle in a search of trials of unequal length, beside the published Optuna sweeper's.

    python benchmarks/search_idle.py [--trials 20] [--slots 2] [--patients 28] [--epochs 1,2,4,8]

Both search the same space with TPE on the same launcher, one after the other in one run, each in a fresh folder with
the data decoded. A worker is busy from the start of a job to the moment its record is closed. `idle` is the share of
the workers' time, from the first job's start, until the last job starts: what a sweeper can be blamed for. `idle_whole`
goes on until the last job ends: then workers are free because no trial is left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from overhead import _machine

SPACE = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model=unet,r2unet"]


def commands(trials: int, slots: int) -> dict[str, list[str]]:
    ours = ["hydra/sweeper=search", f"search.trials={trials}", "hydra.sweeper.sampler.n_startup_trials=5"]
    theirs = ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.n_jobs={slots}"]
    theirs += ["hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0"]
    theirs += ["hydra.sweeper.sampler.seed=0", "hydra.sweeper.sampler.n_startup_trials=5"]
    return {"search": ours, "optuna": theirs}


def intervals(folder: Path) -> dict[int, list[tuple[float, float]]]:
    """Worker's process -> (start, end) of its jobs in seconds, in order."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for file in folder.glob("multirun/2*/*/job.json"):
        job = json.loads(file.read_text())
        assert job["status"] == "finished", job
        end = file.stat().st_mtime  # written when the job ends
        found[job["pid"]].append((end - job["seconds"], end))
    return {pid: sorted(jobs) for pid, jobs in found.items()}


def idle(jobs: dict[int, list[tuple[float, float]]], slots: int) -> dict[str, float]:
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
        "median_gap_seconds": statistics.median(gaps),
        "longest_gap_seconds": max(gaps),
        "shortest_trial_seconds": min(lengths),
        "longest_trial_seconds": max(lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--patients", type=int, default=28)
    parser.add_argument("--epochs", default="1,2,4,8")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search_idle.json")
    args = parser.parse_args()
    shared = [f"hydra.launcher.jobs_per_device={args.slots}", f"data.patients={args.patients}"]
    shared += ["tracking=none", "paths.runs=multirun"]
    job = [f"epochs={args.epochs}", *SPACE, *shared]
    result = {"slots": args.slots, "cpus": os.cpu_count(), "load": os.getloadavg(), "job": job} | _machine()
    with tempfile.TemporaryDirectory() as name:
        for sweeper, own in ({"warm": []} | commands(args.trials, args.slots)).items():
            folder = Path(name) / sweeper
            folder.mkdir()
            arguments = ["-m", *own, f"epochs={args.epochs}", *SPACE] if own else ["epochs=1"]  # that decodes the data
            command = [sys.executable, "-m", "segsweep", *arguments, *shared, f"paths.cache={name}/cache"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{sweeper}: {done.stderr}")
            if own:
                result[sweeper] = idle(intervals(folder), args.slots)
                print(sweeper, json.dumps(result[sweeper], indent=1), flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
