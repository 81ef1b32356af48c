"""A sweep from nothing to its table, with where the time went; and what a command takes until it trains.

    python -m benchmarks.sweep [OVERRIDES ...] [--slots 1 2 4]

Everything is new: no decoded data, no MLflow store. The parts are read off the files' times and the records, so that
nothing is measured that a user's sweep does not do. After it, with decoded data and a store: `--cfg job`, and the time
from the command to the end of the first training step, of a single run and of a sweep. `--slots`: the same grid with so
many jobs at once on a device, in turn each round, 0 what the launcher makes of it; the parts and what comes after them
are those of the first.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

GRID = ["model=unet,r2unet", "optim=sgd,adam"]
SLOTS = "hydra.launcher.jobs_per_device"


def command(folder: Path, *arguments: str) -> tuple[float, float, float]:
    """Run `python -m segsweep` in `folder`: when it began (seconds since 1970), its wall time and its CPU time."""
    began, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = os.environ | {"SEGSWEEP_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "segsweep", *arguments], cwd=folder, env=environ, capture_output=True, text=True
    )
    spent = time.time() - began
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return began, spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parts(folder: Path, began: float, wall: float) -> dict[str, float]:
    """Seconds by what was done in them, in the order in which a job comes to them; they add up to `wall`. And `slots`:
    the processes over which the parts of the jobs are shared out."""
    (sweep,) = (file.parent for file in folder.glob("multirun/*/sweep.json"))
    jobs = [json.loads(file.read_text()) | {"folder": file.parent} for file in sweep.glob("*/job.json")]
    spent = dict.fromkeys(("start", "decode", "build", "steps", "evaluation", "checkpoints", "records"), 0.0)
    lock = next((folder / "cache").glob("*.lock"))
    spent["decode"] = _written(next(lock.with_suffix("").glob("checked-*"))) - _written(lock)
    starts = [_written(job["folder"] / ".hydra" / "overrides.yaml") for job in jobs]
    for job, start in zip(jobs, starts, strict=True):
        run = job["folder"] / job["run"]
        own = json.loads((run / "result.json").read_text())["trained_epochs"]  # those before are of another run
        history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        history = history[len(history) - own :]
        ready, trained, done = (_written(run / name) for name in ("run.json", "history.jsonl", "result.json"))
        steps, evaluation = (sum(row[key] for row in history) for key in ("seconds", "eval_seconds"))
        spent["build"] += ready - start
        spent["steps"] += steps
        spent["evaluation"] += evaluation
        spent["checkpoints"] += trained - ready - steps - evaluation
        spent["records"] += done - trained
    spent["build"] -= spent["decode"]
    slots = len({job.get("pid") for job in jobs})
    spent = {name: value / slots for name, value in spent.items()}
    spent["start"] = min(starts) - began
    spent["end"] = began + wall - max(_written(job["folder"] / job["run"] / "result.json") for job in jobs)
    return spent | {"between": wall - sum(spent.values()), "slots": slots}


def _written(file: Path) -> float:
    return file.stat().st_mtime


def first_step(folder: Path, *arguments: str) -> float:
    """Seconds from the command to the end of the first training step."""
    before = set(folder.glob("multirun/runs/*"))
    began, _, _ = command(folder, *arguments)
    (run,) = set(folder.glob("multirun/runs/*")) - before
    (epoch,) = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    steps = -(-json.loads((run / "run.json").read_text())["split"]["train"] // 16)
    return _written(run / "run.json") - began + epoch["seconds"] / steps


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("overrides", nargs="*", help=f"default: {' '.join(GRID)}")
    parser.add_argument("--slots", type=int, nargs="+", default=[0], help="jobs at once on a device; 0: auto")
    parser.add_argument("--name", help="of the result; default: sweep, and sweep-other of overrides of one's own")
    args = parser.parse_args()
    if any(override.startswith(SLOTS) for override in args.overrides):
        parser.error(f"{SLOTS}: say how many with --slots, the parts are shared out by it")
    grid = (["data=lgg", f"data.root={args.data_root}"] if args.data_root else []) + (args.overrides or GRID)
    rounds: dict[int, list[dict[str, Any]]] = {slots: [] for slots in args.slots}
    answers: dict[str, list[float]] = {"cfg": [], "run": [], "sweep": []}
    for number in range(args.rounds):
        for slots, rows in rounds.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                began, wall, cpu = command(folder, "-m", *grid, *([f"{SLOTS}={slots}"] if slots else []))
                row = {"seconds": wall, "cpu": cpu} | parts(folder, began, wall)
                row |= {"jobs": len(list(folder.glob("multirun/*/*/job.json")))}
                row |= {"decoded": len(list(folder.glob("cache/*/images.npy")))}
                rows.append(row)
                print(*(f"{key} {value:.2f}" for key, value in row.items()), sep="  ", flush=True)
                if args.overrides or args.data_root or slots != args.slots[0]:
                    continue
                answers["cfg"].append(command(folder, "--cfg", "job")[1])
                answers["run"].append(first_step(folder, "epochs=1", f"seed={100 + number}"))
                answers["sweep"].append(first_step(folder, "-m", "epochs=1", f"seed={200 + number}"))
                print("  ".join(f"{key} {values[-1]:.2f}" for key, values in answers.items()), flush=True)
    result: dict[str, Any] = {"machine": common.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}
    result |= {"overrides": args.overrides or GRID, "data": "LGG" if args.data_root else "phantom"}
    first = rounds[args.slots[0]]
    result["sweep"] = {key: statistics.median(row[key] for row in first) for key in first[0]}
    result["first"] = {key: statistics.median(values) for key, values in answers.items() if values}
    walls = {slots: [row["seconds"] for row in rows] for slots, rows in rounds.items()}
    result["slots"] = [
        {"slots": slots or rounds[slots][0]["slots"], "seconds": statistics.median(wall)}
        | common.ratio(walls[args.slots[0]], wall)
        for slots, wall in walls.items()
    ]
    common.write(args.out, args.name or ("sweep-other" if args.overrides else "sweep"), result)


if __name__ == "__main__":
    main()
