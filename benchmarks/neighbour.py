"""What another busy process on the machine costs a training on several threads, by how its threads wait.

    python -m benchmarks.neighbour [--rounds 3] [--waits as_it_is spin passive N ...] [--neighbours 0 1]

Threads that share a step's work wait for the slowest of them. Who waits by spinning takes from a busy machine the time
that this one needs; who goes to sleep at once has to be woken, which costs a step of many small parts. The same run of
the command, in turn, its first epoch left out: `as_it_is` as segsweep has it, `spin` as the library of the threads
does it by itself, `passive` sleeping at once, a number as its GOMP_SPINCOUNT.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

RUN = ["epochs=4", "tracking=none", "report=false", "paths.runs=runs", "paths.cache=cache"]
WAYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
BUSY = "while True: pass"


def environment(wait: str) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name not in WAYS}
    named = {"as_it_is": {}, "spin": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "passive"}}
    return given | named.get(wait, {"GOMP_SPINCOUNT": wait})


def rate(folder: Path, wait: str, neighbours: int, seed: int) -> float:
    """Images a second of the training steps, the median of the epochs after the first."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    try:
        command = [sys.executable, "-m", "segsweep", f"seed={seed}", "reuse=false", *RUN]
        done = subprocess.run(command, cwd=folder, env=environment(wait), capture_output=True, text=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    if done.returncode:
        raise SystemExit(done.stderr)
    run = max(folder.glob("runs/runs/*"), key=lambda place: (place / "result.json").stat().st_mtime)
    epochs = [json.loads(line)["seconds"] for line in (run / "history.jsonl").read_text().splitlines()]
    samples = json.loads((run / "run.json").read_text())["split"]["train"]
    return samples / statistics.median(epochs[1:])


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--waits", nargs="+", default=["as_it_is", "spin", "passive"])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "data": "phantom", "rows": []}
    cases = [(wait, neighbours) for neighbours in args.neighbours for wait in args.waits]
    found: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.rounds):
            for wait, neighbours in cases:
                found[wait, neighbours].append(rate(Path(name), wait, neighbours, number))
                print(f"{wait:10} {neighbours} busy: {found[wait, neighbours][-1]:.1f} images/s", flush=True)
    for (wait, neighbours), rates in found.items():
        spinning = found.get(("spin", neighbours), rates)
        row = {"wait": wait, "neighbours": neighbours, "images_per_second": statistics.median(rates)}
        result["rows"].append(row | {"range": [min(rates), max(rates)]} | common.ratio(rates, spinning))
    common.write(args.out, "neighbour", result)


if __name__ == "__main__":
    main()
