"""What others on the machine cost a training on several threads, by how its threads wait for one another.

    python -m benchmarks.neighbour [--rounds 3] [--waits bound unbound passive N ...] [--beside none busy twin]

Threads that share a step's work wait for the slowest of them. The same run of the command, in turn, its first epoch
left out: `bound` as segsweep has it, each thread on a processor of its own; `unbound` as the system places them, where
who waits spins; `passive` unbound and asleep at once; a number is unbound, its GOMP_SPINCOUNT. Beside it nothing, one
process that computes all the time, or the same run once more.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

RUN = ["epochs=4", "tracking=none", "report=false", "paths.runs=runs", "paths.cache=../cache", "reuse=false"]
WAYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND")
BUSY = [sys.executable, "-c", "while True: pass"]


def environment(wait: str) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name not in WAYS}
    if wait == "bound":
        return given
    how = {"unbound": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}.get(wait, {"GOMP_SPINCOUNT": wait})
    return given | {"OMP_PROC_BIND": "false"} | how


def start(folder: Path, wait: str, seed: int) -> subprocess.Popen:
    folder.mkdir()
    command = [sys.executable, "-m", "segsweep", f"seed={seed}", *RUN]
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment(wait), **silent)


@contextlib.contextmanager
def beside(what: str, folder: Path, wait: str) -> Iterator[None]:
    if what == "none":
        yield
        return
    process = subprocess.Popen(BUSY) if what == "busy" else start(folder, wait, 1)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def rate(folder: Path, wait: str, what: str) -> float:
    """Images a second of the training steps, the median of the epochs after the first."""
    folder.mkdir()
    with beside(what, folder / "twin", wait):
        if start(folder / "own", wait, 0).wait():
            raise SystemExit(f"{wait}, {what}: the run did not end well")
    (run,) = folder.glob("own/runs/runs/*")
    epochs = [json.loads(line)["seconds"] for line in (run / "history.jsonl").read_text().splitlines()]
    samples = json.loads((run / "run.json").read_text())["split"]["train"]
    return samples / statistics.median(epochs[1:])


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--waits", nargs="+", default=["bound", "unbound", "passive"])
    parser.add_argument("--beside", nargs="+", default=["none", "busy", "twin"], choices=["none", "busy", "twin"])
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "data": "phantom", "rows": []}
    cases = [(wait, what) for what in args.beside for wait in args.waits]
    found: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.rounds):
            for wait, what in cases:
                found[wait, what].append(rate(Path(name) / f"{number}-{wait}-{what}", wait, what))
                print(f"{wait:10} beside {what}: {found[wait, what][-1]:.1f} images/s", flush=True)
    for (wait, what), rates in found.items():
        unbound = found.get(("unbound", what), rates)
        row = {"wait": wait, "beside": what, "images_per_second": statistics.median(rates)}
        result["rows"].append(row | {"range": [min(rates), max(rates)]} | common.ratio(rates, unbound))
    common.write(args.out, "neighbour", result)


if __name__ == "__main__":
    main()
