"""From files to batches: decoding into the cache, a warm start, and batches a second.

    python -m benchmarks.data [--data-root LGG]

The other side of decoding is Pillow in a loop in one process, that of batches a DataLoader over benchmarks/plain.py's
data set. All files are read once before, so that none is measured from the disk.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import common, plain
from segsweep.segmentation.data import cache, images
from segsweep.segmentation.data.batches import Batches


def pillow(files: list[tuple[str, str]], size: int) -> None:
    """All slices into two arrays."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for pair in files:
        for file, arrays, filter_ in zip(pair, found, (Image.Resampling.BOX, Image.Resampling.NEAREST), strict=True):
            with Image.open(file) as image:
                same = image.size == (size, size)
                arrays.append(np.asarray(image if same else image.resize((size, size), filter_)))
    np.stack(found[0])
    np.stack(found[1])


def decode(root: str, size: int, rounds: int) -> dict[str, Any]:
    """`cold` is all of it: listing and hashing files, decoding, statistics, writing. `warm`: the same call again."""
    dataset = common.lgg(root, size)
    times: dict[str, list[float]] = {"pillow": [], "cold": [], "warm": []}

    def ours(place: Path) -> None:
        cache.load(dataset, dataset.scan(place), place, os.cpu_count() or 1)

    with tempfile.TemporaryDirectory() as folder:
        manifest = dataset.scan(Path(folder))
        files = [pair for pairs in manifest.files.values() for pair in pairs]
        for number in range(rounds):
            times["pillow"].append(common.seconds(lambda: pillow(files, size)))
            images._layouts.clear()
            place = Path(folder) / str(number)
            times["cold"].append(common.seconds(lambda: ours(place)))  # noqa: B023 - called at once
            times["warm"].append(common.seconds(lambda: ours(place)))  # noqa: B023
    row = {"size": size, "patients": len(manifest.patients), "slices": len(files)}
    row["seconds"] = {name: statistics.median(values) for name, values in times.items()}
    return row | common.ratio(times["pillow"], times["cold"])


def batches(root: str, size: int, rounds: int, batch: int, workers: int) -> dict[str, Any]:
    """Images a second of batches that are ready for a network, shuffled; no network runs beside them."""
    dataset = common.lgg(root, size)
    with tempfile.TemporaryDirectory() as folder:
        manifest = dataset.scan(Path(folder))
        volumes = cache.load(dataset, manifest, Path(folder), os.cpu_count() or 1)
        files = [pair for pairs in manifest.files.values() for pair in pairs]
        own = Batches(volumes, np.arange(len(files)), batch_size=batch, device="cpu", shuffle=True)
        sides = {"ours": lambda: own.epoch(0)}
        for count in (0, workers):
            loader = plain.loader(files, size, batch, count)
            sides[f"loader{count}"] = lambda loader=loader: iter(loader)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, make in sides.items():
                spent = common.seconds(lambda: [None for _ in make()])  # noqa: B023 - called at once
                if number:  # the first starts the workers
                    times[name].append(spent)
    row: dict[str, Any] = {"size": size, "batch": batch}
    row["images_per_second"] = {name: len(files) / statistics.median(values) for name, values in times.items()}
    best = min((name for name in times if name != "ours"), key=lambda name: statistics.median(times[name]))
    return row | common.ratio(times[best], times["ours"])


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "workers": args.workers}
    result |= {"data": "LGG" if args.data_root else "phantom", "decode": [], "batches": []}
    with common.lgg_files(args.data_root, patients=24) as root:
        with tempfile.TemporaryDirectory() as folder:  # reads every file
            common.lgg(root, 256).scan(Path(folder))
        for size in args.sizes:
            row = decode(root, size, args.rounds)
            result["decode"].append(row)
            print(f"{size:4} px  {row['seconds']}  {row['ratio']:.2f} times", flush=True)
        for size in args.sizes:
            row = batches(root, size, args.rounds, args.batch, args.workers)
            result["batches"].append(row)
            print(f"{size:4} px  {row['images_per_second']}  {row['ratio']:.2f} times the best other", flush=True)
    common.write(args.out, "data", result)


if __name__ == "__main__":
    main()
