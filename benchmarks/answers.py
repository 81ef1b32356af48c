"""What many jobs cost that train nothing: those that are all in the record, and those that are only planned.

    python -m benchmarks.answers [--jobs 1000] [--planned 10000] [--rounds 3]

The jobs are trained once, each some milliseconds long; then the same command is asked again, to its table, its report
and MLflow, and a larger grid is planned, with the most memory that its process held.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

TINY = ["epochs=1", "data.patients=8", "data.slices=4", "data.image_size=16", "model.width=1"]
RATES = "1e-4,2e-4,3e-4,5e-4,1e-3,2e-3,3e-3,5e-3,1e-2,2e-2"
GRID = ["model=unet,r2unet", "optim=sgd,adam", f"optim.lr={RATES}", "batch_size=4,8,16,32,64"]


def command(folder: Path, *arguments: str) -> tuple[float, float, str]:
    """Seconds from the command to the prompt, the most MiB that its process held, and what it said."""
    began = time.perf_counter()
    given = [sys.executable, "-m", "segsweep", "-m", *arguments, *TINY, "paths.runs=multirun", "paths.cache=cache"]
    with (folder / "said.txt").open("w+") as said:
        process = subprocess.Popen(given, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        said.seek(0)
        text = said.read()
    if status:
        raise SystemExit(text)
    return seconds, used.ru_maxrss / 1024, text


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--planned", type=int, default=10000, help="jobs of the plan, in two hundreds")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "data": "phantom"}
    with tempfile.TemporaryDirectory() as name:
        folder, jobs = Path(name), f"seed=range({args.jobs})"
        trained, _, _ = command(folder, jobs, "report=false")
        print(f"trained in {trained:.0f} s", flush=True)
        rounds: dict[str, list[tuple[float, float]]] = {"answered": [], "planned": []}
        for _ in range(args.rounds):
            again, held, _ = command(folder, jobs)
            *_, sweep = sorted(folder.glob("multirun/2*"))
            statuses = [json.loads(file.read_text())["status"] for file in sweep.glob("*/job.json")]
            assert statuses == ["reused"] * args.jobs
            rounds["answered"].append((again, held))
            many = f"seed=range({args.planned // 200})"
            seconds, held, text = command(folder, *GRID, many, "hydra/launcher=plan")
            assert f"{args.planned} jobs" in text
            rounds["planned"].append((seconds, held))
            print("  ".join(f"{kind} {took[-1][0]:.1f} s" for kind, took in rounds.items()), flush=True)
    for kind, number in (("answered", args.jobs), ("planned", args.planned)):
        seconds, held = (statistics.median(values) for values in zip(*rounds[kind], strict=True))
        result[kind] = {"jobs": number, "seconds": seconds, "mib": held}
    common.write(args.out, "answers", result)


if __name__ == "__main__":
    main()
