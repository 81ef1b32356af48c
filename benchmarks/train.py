"""Images a second of a training epoch, segsweep's against the plain loop's.

    python -m benchmarks.train [--data-root LGG] [--cases unet:16:64:16 ...]

Both train on the same files, in turn in one process, and the median of the rounds' ratios is reported. Segsweep's side
is `train.fit` on what conf/ composes; benchmarks/plain.py is the other. Peak memory is taken in a process of its own,
above what the imports take; on a CPU without the plain loop's workers.
"""

import multiprocessing
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
from torch import nn

from benchmarks import common, plain
from segsweep import components, environment, plugins
from segsweep.artifacts import Checkpoints
from segsweep.config import conf_dir
from segsweep.data import cache
from segsweep.data.batches import Batches
from segsweep.evaluate import flops
from segsweep.run import _autocast, compiled, pick_device, pick_precision
from segsweep.train import fit


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

    def load(self, until: int) -> None:
        return None

    def save(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        pass


def ours(case: Case, root: str, decoded: Path, slices: int, device: str, options: list[str]) -> Callable[[], float]:
    """An epoch of `slices` slices in segsweep, to be called again and again: its seconds."""
    overrides = [f"model={case.network}", f"model.width={case.width}", f"batch_size={case.batch}", "scheduler=constant"]
    overrides += ["data=lgg", f"data.root={root}", f"data.image_size={case.size}", f"device={device}", *options]
    plugins.register()
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=overrides)
    place = pick_device(cfg.device)
    dataset = components.build(cfg.data)
    volumes = cache.load(dataset, dataset.scan(decoded), decoded, 2)
    batches = partial(Batches, volumes, batch_size=case.batch, device=place)
    chosen = np.resize(np.arange(len(volumes.slices)), slices)
    torch.manual_seed(0)
    model = components.build(cfg.model, in_channels=3).to(place, memory_format=torch.channels_last)
    optimizer = components.build(cfg.optim)(model.parameters())
    once = partial(
        fit,
        model,
        components.build(cfg.loss).to(place),
        optimizer,
        components.build(cfg.scheduler)(optimizer),
        batches(chosen, augment=components.build(cfg.augment), shuffle=True),
        batches(chosen[:2]),
        part="test",
        patients=len(volumes.patients),
        epochs=1,
        seed=0,
        autocast=_autocast(place, pick_precision(cfg.precision, place)),
        clip_norm=cfg.clip_norm,
        checkpoints=NoCheckpoints(decoded / "none"),
        forward=compiled(model, case.batch) if cfg.compile else None,
    )

    def epoch() -> float:
        pick_device(str(place))
        return once()[0][0]["seconds"]

    return epoch


def theirs(case: Case, root: str, decoded: Path, slices: int, device: str, options: list[str]) -> Callable[[], float]:
    """The same of the plain loop."""
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    files = [pair for pairs in common.lgg(root, case.size).scan(decoded).files.values() for pair in pairs]
    torch.manual_seed(0)
    model = plain.Network(case.network, case.width).to(place)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    batches = plain.loader([files[i % len(files)] for i in range(slices)], case.size, case.batch)
    criterion = nn.BCEWithLogitsLoss()

    def epoch() -> float:
        torch.set_float32_matmul_precision("highest")  # torch's defaults, which segsweep's side changes
        torch.backends.cudnn.benchmark = False
        return common.seconds(lambda: plain.epoch(model, criterion, optimizer, batches, place))

    return epoch


SIDES = {"ours": ours, "plain": theirs}


def peak_memory(side: str, *given: Any) -> int:
    """MiB above what the imports take, over one epoch of a fresh process; of tensors on a GPU."""
    base = 0 if torch.cuda.is_available() else environment.peak_memory(torch.device("cpu"))
    SIDES[side](*given)()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return round((environment.peak_memory(device) - base) / 2**20)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product, the best of ten."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    product()
    return 2 * n**3 / min(common.seconds(product) for _ in range(10)) / 1e9


def measure(case: Case, root: str, decoded: Path, args: Any, rates: dict[str, float]) -> dict[str, Any]:
    gflop = 3 * flops(plain.Network(case.network, case.width), 3, case.size, case.size)  # backward is twice forward
    expected = gflop / rates["fp32"] * 2  # seconds an image, of the plain loop
    slices = case.batch * max(1, min(32, round(args.seconds / expected / case.batch)))
    given = case, root, decoded, slices, args.device, args.options
    sides = {name: make(*given) for name, make in SIDES.items()}
    for epoch in sides.values():
        epoch()  # warm up: memory, kernels, worker processes
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            times[name].append(sides[name]())
    found = {name: slices / statistics.median(values) for name, values in times.items()}
    row: dict[str, Any] = case._asdict() | {"slices": slices, "gflop": gflop, "images_per_second": found}
    row |= common.ratio(times["plain"], times["ours"])
    row["share"] = {"ours": found["ours"] * gflop / rates["bf16"], "plain": found["plain"] * gflop / rates["fp32"]}
    del sides
    if not args.no_memory:
        few = case, root, decoded, case.batch, args.device, args.options
        spawn = multiprocessing.get_context("spawn")
        row["memory_mib"] = {}
        for name in SIDES:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                row["memory_mib"][name] = pool.submit(peak_memory, name, *few).result()
    return row


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=5)
    parser.add_argument("--cases", nargs="+", help="network:width:size:batch; default: those of the README")
    parser.add_argument("--seconds", type=float, default=4, help="about what an epoch of the plain loop is to take")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--options", nargs="*", default=[], help="more overrides for segsweep's side: optim=sgd ...")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.set_float32_matmul_precision("highest")  # the matrix product in fp32, not in TF32
    result: dict[str, Any] = {"machine": common.machine(device), "options": args.options, "cases": []}
    result["matrix_gflops"] = rates = {
        name: matrix_rate(device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    print(f"matrix product: {rates['fp32']:.0f} GFLOP/s in fp32, {rates['bf16']:.0f} in bf16", flush=True)
    with common.lgg_files(args.data_root, patients=8) as root, tempfile.TemporaryDirectory() as decoded:
        result["data"] = "LGG" if args.data_root else "phantom"
        for text in args.cases or CASES[device.type]:
            row = measure(Case.parse(text), root, Path(decoded), args, rates)
            result["cases"].append(row)
            print(f"{text:18}", *(f"{name} {value:.2f}/s " for name, value in row["images_per_second"].items()), end="")
            print(f" {row['ratio']:.2f} times ({min(row['ratios']):.2f}-{max(row['ratios']):.2f})", end="  ")
            print(*(f"{name} {row[name]}" for name in ("share", "memory_mib") if name in row), flush=True)
            common.write(args.out, f"train-{device.type}", result)


if __name__ == "__main__":
    main()
