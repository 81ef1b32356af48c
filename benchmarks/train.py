"""Images a second of a training epoch, segsweep's against the plain loop's.

    python -m benchmarks.train [--data-root LGG] [--cases unet:16:64:16 ...]

Both train on the same files, in turn in one process, and the median of the rounds' ratios is reported. Segsweep's side
is `train.fit` on what conf/ composes; benchmarks/plain.py is the other. Peak memory is taken in a process of its own,
above what the imports take; on a CPU without the plain loop's workers.
"""

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from benchmarks import common, plain
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.core import environment
from segsweep.core.checkpoints import Checkpoints
from segsweep.core.device import autocast, compiled, pick_device, pick_precision
from segsweep.runs.loop import Loop
from segsweep.segmentation import groups, schedules
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.evaluate import flops
from segsweep.segmentation.metrics import SPEC
from segsweep.segmentation.train import fit, sizes


class Case(NamedTuple):
    network: str
    width: int
    size: int
    batch: int

    @staticmethod
    def parse(text: str) -> "Case":
        network, *numbers = text.split(":")
        return Case(network, *map(int, numbers))


CASES = {
    device: [f"{network}:{rest}" for rest in shapes for network in ("unet", "r2unet")]
    for device, shapes in {
        "cpu": ("16:64:16", "16:128:16", "64:256:16"),
        "cuda": ("16:64:16", "64:256:16", "64:256:32"),
    }.items()
}


class NoCheckpoints(Checkpoints):
    """Nothing is kept: writing is no part of an epoch's time."""

    def load(self, until: int, *given: Any) -> None:
        return None

    def save(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        pass


def composed(case: Case, root: str, device: str, options: list[str]) -> DictConfig:
    overrides = [f"model={case.network}", f"model.width={case.width}", f"batch_size={case.batch}", "scheduler=constant"]
    overrides += ["data=lgg", f"data.root={root}", f"data.image_size={case.size}", f"device={device}", *options]
    start()
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=overrides)


def ours(case: Case, root: str, decoded: Path, slices: int, device: str, options: list[str]) -> Callable[[], float]:
    """An epoch of `slices` slices in segsweep, to be called again and again: its seconds."""
    cfg = composed(case, root, device, options)
    place = pick_device(cfg.device)
    dataset = groups.build("data", cfg.data)
    volumes = cache.load(dataset, dataset.scan(decoded), decoded, 2)
    batches = partial(Batches, volumes, batch_size=case.batch, device=place)
    chosen = np.resize(np.arange(len(volumes.slices)), slices)
    torch.manual_seed(0)
    model = groups.build("model", cfg.model, in_channels=3).to(place, memory_format=torch.channels_last)
    optimizer = groups.build("optim", cfg.optim)(model.parameters())
    once = partial(
        fit,
        model=model,
        loss=groups.build("loss", cfg.loss).to(place),
        optimizer=optimizer,
        scheduler=schedules.schedule(cfg.scheduler, optimizer, 1),
        train=batches(chosen, augment=groups.build("augment", cfg.augment), shuffle=True),
        held_out=batches(chosen[:2]),
        part="test",
        patients=len(volumes.patients),
        autocast=autocast(place, pick_precision(cfg.precision, place)),
        clip_norm=cfg.clip_norm,
        parts=cfg.micro_batches,
        forward=compiled(model, sizes(case.batch, cfg.micro_batches)) if cfg.compile else None,
    )

    def epoch() -> float:
        pick_device(str(place))
        loop = Loop(SPEC, "test", epochs=1, seed=0, checkpoints=NoCheckpoints(decoded / "none"))
        once(loop)
        return loop.history[0]["seconds"]

    return epoch


def theirs(case: Case, root: str, decoded: Path, slices: int, device: str, workers: int) -> Callable[[], float]:
    """The same of the plain loop, whose DataLoader has `workers` workers."""
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    files = [pair for pairs in common.lgg(root, case.size).scan(decoded).files.values() for pair in pairs]
    torch.manual_seed(0)
    model = plain.Network(case.network, case.width).to(place)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    files = [files[i % len(files)] for i in range(slices)]
    batches = plain.loader(files, case.size, case.batch, workers, pin=place.type == "cuda")
    criterion = nn.BCEWithLogitsLoss()

    def epoch() -> float:
        torch.set_float32_matmul_precision("highest")  # defaults, which segsweep's side changes
        torch.backends.cudnn.benchmark = False
        common.usual_memory()
        return common.seconds(lambda: plain.epoch(model, criterion, optimizer, batches, place))

    return epoch


SIDES = {"ours": ours, "plain": theirs}


def peak_memory(side: str, case: Case, root: str, decoded: Path, slices: int, device: str, own: Any) -> int:
    """MiB above what the imports take, over one epoch of a fresh process; of tensors on a GPU. `own`: the side's."""
    place = pick_device(device)
    base = 0 if place.type == "cuda" else environment.peak_memory(place)
    SIDES[side](case, root, decoded, slices, device, own)()
    return round((environment.peak_memory(place) - base) / 2**20)


def precisions(asked: str, device: torch.device) -> dict[str, str]:
    """What each side's convolutions are computed in; on CUDA torch's default for float32 ones is TF32."""
    fp32 = "tf32" if device.type == "cuda" else "fp32"
    return {"ours": fp32 if pick_precision(asked, device) == "fp32" else "bf16", "plain": fp32}


def matrix_rate(device: torch.device, precision: str) -> float:
    """GFLOP/s of a matrix product in fp32, tf32 (CUDA) or bf16, the best of ten."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    product()
    best = min(common.seconds(product) for _ in range(10))
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * n**3 / best / 1e9


def steps(seconds: float, expected: float, device: torch.device) -> int:
    """Of an epoch that is to take `seconds` where a step takes about `expected`: 400 at most on CUDA, 32 on a CPU."""
    return max(1, min(400 if device.type == "cuda" else 32, round(seconds / expected)))


def measure(case: Case, root: str, decoded: Path, args: Any, rates: dict[str, float]) -> dict[str, Any]:
    """`rates`: each side's, GFLOP/s of a matrix product in its precision."""
    gflop = 3 * flops(plain.Network(case.network, case.width), 3, case.size, case.size)  # backward is twice forward
    expected = gflop / rates["plain"] * 2 * case.batch  # seconds a step, of the plain loop
    slices = case.batch * steps(args.seconds, expected, pick_device(args.device))
    own = {"ours": args.options, "plain": args.workers}
    sides = {name: make(case, root, decoded, slices, args.device, own[name]) for name, make in SIDES.items()}
    for epoch in sides.values():
        epoch()  # warm up: memory, kernels, worker processes
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            times[name].append(sides[name]())
    found = {name: slices / statistics.median(values) for name, values in times.items()}
    row: dict[str, Any] = case._asdict() | {"slices": slices, "gflop": gflop, "images_per_second": found}
    row |= common.ratio(times["plain"], times["ours"])
    row["share"] = {name: found[name] * gflop / rates[name] for name in ("ours", "plain")}
    del sides
    if not args.no_memory:
        few = case, root, decoded, case.batch, args.device
        spawn = multiprocessing.get_context("spawn")
        row["memory_mib"] = {}
        for name in SIDES:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                row["memory_mib"][name] = pool.submit(peak_memory, name, *few, own[name]).result()
    return row


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=5)
    parser.add_argument("--cases", nargs="+", help="network:width:size:batch; default: those of the README")
    parser.add_argument("--seconds", type=float, default=4, help="about what an epoch of the plain loop is to take")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="of the plain loop; default: 2, on CUDA one a core, 8 at most")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--options", nargs="*", default=[], help="more overrides for segsweep's side: optim=sgd ...")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.set_float32_matmul_precision("highest")  # the matrix product in fp32, not in TF32
    cases = [Case.parse(text) for text in args.cases or CASES[device.type]]
    if args.workers is None:
        args.workers = min(8, os.cpu_count() or 1) if device.type == "cuda" else 2
    result: dict[str, Any] = {"machine": common.machine(device), "options": args.options, "workers": args.workers}
    result |= {"precision": precisions(composed(cases[0], "", args.device, args.options).precision, device)}
    kinds = ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16")
    result |= {"matrix_gflops": {kind: matrix_rate(device, kind) for kind in kinds}, "cases": []}
    rates = {side: result["matrix_gflops"][kind] for side, kind in result["precision"].items()}
    print(
        "matrix product, GFLOP/s:",
        *(f"{kind} {rate:.0f}" for kind, rate in result["matrix_gflops"].items()),
        flush=True,
    )
    with common.lgg_files(args.data_root, patients=8) as root, tempfile.TemporaryDirectory() as decoded:
        result["data"] = "LGG" if args.data_root else "phantom"
        for case in cases:
            row = measure(case, root, Path(decoded), args, rates)
            result["cases"].append(row)
            print(
                f"{':'.join(map(str, case)):18}",
                *(f"{name} {value:.2f}/s " for name, value in row["images_per_second"].items()),
                end="",
            )
            print(f" {row['ratio']:.2f} times ({min(row['ratios']):.2f}-{max(row['ratios']):.2f})", end="  ")
            print(*(f"{name} {row[name]}" for name in ("share", "memory_mib") if name in row), flush=True)
            common.write(args.out, f"train-{device.type}", result)


if __name__ == "__main__":
    main()
