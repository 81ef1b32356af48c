"""What the workers of a sweep hold in memory: the decoded data, which all share, and what each has for itself.

    python -m benchmarks.memory --data-root LGG [--size 128] [OVERRIDES ...]

One job on one slot, then two such jobs on two slots; the workers' memory is read from the system every 0.05 s (Linux),
so a job has to last longer than that: `--epochs`. *Own*: the most private pages of a worker above what it holds after
its imports. *One batch*: the same quantity, read in the same way, of a process that trains a single batch again and
again for some seconds, so that looks meet each of its moments: weights, gradients, the optimizer's moments and one
batch's activations. *Set*: pages of the decoded files, each counted once however many processes map it (PSS).
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.train import Case, composed, ours
from segsweep.segmentation.data import cache

MIB = 2**20
LOOK = 0.05
"""Seconds between two looks at a process's memory."""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def held(pid: int, decoded: Path) -> tuple[int, int]:
    """Bytes of a process: private ones, and its share of the decoded files (PSS)."""
    private = shared = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            ours = bool(rest) and rest[-1].startswith(str(decoded))
        elif key == "Pss:" and ours:
            shared += int(rest[0]) * 1024
        elif key in ("Private_Dirty:", "Private_Clean:") and not ours:
            private += int(rest[0]) * 1024
    return private, shared


def sweep(folder: Path, decoded: Path, slots: int, overrides: list[str]) -> dict[str, Any]:
    """The most that each worker held for itself above its imports, and what all together held of the decoded files."""
    jobs = [f"seed=range({slots})", f"hydra.launcher.jobs_per_device={slots}", "tracking.uri=null"]
    command = [sys.executable, "-m", "segsweep", "-m", *overrides, *jobs, "report=false", f"paths.cache={decoded}"]
    done = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    first: dict[int, int] = {}
    most: dict[int, int] = {}
    sets: dict[int, list[int]] = {}  # how many workers map the files -> what these hold of them together
    while done.poll() is None:
        sizes = {}
        for pid in children(done.pid):
            try:
                if b"worker.main()" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    sizes[pid] = held(pid, decoded)
            except (OSError, ProcessLookupError):  # it ended between two looks
                continue
        for pid, (private, _) in sizes.items():
            if not list(folder.glob("multirun/2*/*/job.json")):  # no job yet: what the imports take
                first[pid] = private
            most[pid] = max(most.get(pid, 0), private)
        mapped = {pid: shared for pid, (_, shared) in sizes.items() if shared}
        with suppress(OSError, ProcessLookupError):
            if all(held(pid, decoded)[1] == shared for pid, shared in mapped.items()):
                # else one mapped or let go of pages between the looks at two, and they count twice
                sets.setdefault(len(mapped), []).append(sum(mapped.values()))
        time.sleep(LOOK)
    if done.returncode:
        raise SystemExit(done.returncode)
    imports = max(first.values())
    return {
        "slots": slots,
        "imports_mib": imports / MIB,
        "own_mib": [(value - imports) / MIB for value in most.values()],
        "set_mib": max(sets[max(sets)]) / MIB,
        "usual_set_mib": statistics.median(sets[max(sets)]) / MIB,
    }


def one_batch(case: Case, root: str, decoded: Path, seconds: float = 5) -> float:
    """MiB of private pages that a process held at most while it trained one batch, above what it held before."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_train_one_batch, args=(there, case, root, decoded, seconds))
    process.start()
    there.close()
    here.recv()
    assert process.pid
    before = most = held(process.pid, decoded)[0]
    here.send("go")
    while process.is_alive():
        with suppress(OSError):  # it ended between two looks
            most = max(most, held(process.pid, decoded)[0])
        time.sleep(LOOK)
    if process.exitcode:
        raise SystemExit(process.exitcode)
    return (most - before) / MIB


def _train_one_batch(parent: Connection, case: Case, root: str, decoded: Path, seconds: float) -> None:
    composed(case, root, "cpu", [])  # what Hydra takes is no part of a batch: a worker has it before its job
    parent.send("ready")
    parent.recv()
    epoch, end = ours(case, root, decoded, case.batch, "cpu", []), time.perf_counter() + seconds
    epoch()
    while time.perf_counter() < end:
        epoch()


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=1)
    parser.add_argument("--network", default="unet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    case = Case(args.network, args.width, args.size, args.batch)
    overrides = [f"model={case.network}", f"model.width={case.width}", f"batch_size={case.batch}", "data=lgg"]
    overrides += ["device=cpu"]
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "look": LOOK} | case._asdict()
    result["sweeps"] = []
    with common.lgg_files(args.data_root, patients=8) as root, tempfile.TemporaryDirectory() as name:
        result["data"] = "LGG" if args.data_root else "phantom"
        decoded = Path(name).resolve() / "cache"
        overrides += [f"data.root={root}", f"data.image_size={case.size}", f"epochs={args.epochs}"]
        dataset = common.lgg(root, case.size)
        volumes = cache.load(dataset, dataset.scan(decoded), decoded, os.cpu_count() or 1)
        result["slices"] = len(volumes.slices)
        result["decoded_mib"] = (volumes.images.nbytes + volumes.masks.nbytes) / MIB
        result["one_batch_mib"] = one_batch(case, root, decoded)
        print({key: result[key] for key in ("slices", "decoded_mib", "one_batch_mib")}, flush=True)
        for slots in (1, 2):
            folder = Path(name) / str(slots)
            folder.mkdir()
            result["sweeps"].append(sweep(folder, decoded, slots, overrides))
            print(result["sweeps"][-1], flush=True)
    common.write(args.out, "memory", result)


if __name__ == "__main__":
    main()
