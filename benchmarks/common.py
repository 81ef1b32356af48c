"""What the measurements share: the machine's facts, the data they run on, where results go."""

import argparse
import ctypes
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segsweep.core import environment
from segsweep.core.source import PACKAGE
from segsweep.segmentation.data.lgg import LGG
from segsweep.segmentation.data.phantom import Phantom

M_MMAP_THRESHOLD = -3
RESULTS = Path(__file__).parent / "results"


def arguments(doc: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    without = "without it phantoms are written as such files"
    parser.add_argument("--data-root", type=os.path.abspath, help=f"folder of the LGG archive; {without}")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each side is timed, in turn")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def machine(device: torch.device) -> dict[str, Any]:
    """The load is the system's over the last minute, before the measurement: above 0 others were at work."""
    return environment.facts(device, (), PACKAGE) | {
        "date": datetime.date.today().isoformat(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def usual_memory() -> None:
    """glibc's allocator as it is without `environment.keep_memory`, after a program has freed large tensors.

    Setting these ends its own adjusting: its largest threshold, which it comes to by itself, is set (mallopt(3))."""
    with suppress(OSError, AttributeError, TypeError):
        for option, value in (
            (environment.M_MMAP_MAX, 65536),
            (M_MMAP_THRESHOLD, 2**25),
            (environment.M_TRIM_THRESHOLD, 2**26),
        ):
            ctypes.CDLL(None).mallopt(option, value)
    environment.give_memory_back()


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """`name`.json in `folder`; on a machine with CUDA `name`-cuda.json, so that what a CPU took stays."""
    if torch.cuda.is_available() and not name.endswith("-cuda"):
        name += "-cuda"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_rounded(result), indent=1) + "\n")
    print(f"{folder / name}.json")


def _rounded(value: Any) -> Any:
    """Four digits: no measurement here has more."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def seconds(task: Callable[[], Any]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def ratio(plain: list[float], ours: list[float]) -> dict[str, Any]:
    """How many times as fast: the median over rounds, and every round's. Both in seconds, a round's side by side."""
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    return {"ratio": statistics.median(ratios), "ratios": ratios}


@contextmanager
def lgg_files(root: str | None, patients: int) -> Iterator[str]:
    """`root`, or a temporary folder with phantoms in LGG's layout: uncompressed TIFFs of 256 x 256, 16 a patient."""
    if root:
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        phantom = Phantom(
            seed=0, patients=patients, slices=16, noise=0.03, bias=0.15, image_size=256, normalise="zscore",
            model_width=16,
        )  # fmt: skip
        manifest = phantom.scan(Path(folder))
        for index, patient in enumerate(manifest.patients):
            name = f"TCGA_PH_{index:04}_20000101"
            place = Path(folder) / "kaggle_3m" / name
            place.mkdir(parents=True)
            for k, (image, mask) in enumerate(zip(*phantom.decode(manifest, patient), strict=True), 1):
                Image.fromarray(image).save(place / f"{name}_{k}.tif")
                Image.fromarray(mask * np.uint8(255)).save(place / f"{name}_{k}_mask.tif")
        yield folder


def lgg(root: str, size: int) -> LGG:
    return LGG(root=root, image_size=size, normalise="zscore", model_width=64)
