"""The decoded data set on disk: written once by several processes, then memory-mapped by every job on the machine.

Decoding processes are plain subprocesses that import no torch: unlike those of `multiprocessing` they run the caller's
main module for no one, and may be started from inside any worker of a launcher.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segsweep.data.source import Manifest
from segsweep.errors import DataError

FORMAT = 1
"""Changes with the meaning of the cached files, so that older ones are not read."""
QUANTILES = (0.005, 0.995)
WORTH_A_PROCESS = 0.5
"""Seconds of decoding below which another process, which takes 0.15 s to start, does not pay."""


class DataSet(Protocol):
    """What `load` needs of a data set: a frozen dataclass, importable, that pickles."""

    normalise: str

    def scan(self, cache: Path) -> Manifest: ...

    def decode(self, manifest: Manifest, patient: str) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass
class Volumes:
    """All slices of a data set, patient after patient; N slices, P patients.

    images: (N, H, W, C) uint8 or uint16, memory map. masks: (N, H, W) uint8 of {0, 1}, memory map.
    patient: (N,) int64, index into patients. patients: P sorted names. slices: N names.
    shift, scale: (P, C) float32, clip: bounds or None: a network's input is clip((raw - shift) * scale).
    digest: of the files. key: of the files and the preprocessing; the same key means the same images and masks."""

    images: np.ndarray
    masks: np.ndarray
    patient: np.ndarray
    patients: list[str]
    slices: list[str]
    shift: np.ndarray
    scale: np.ndarray
    clip: tuple[float, float] | None
    digest: str
    key: str


def load(dataset: DataSet, manifest: Manifest, cache: Path, workers: int) -> Volumes:
    """The decoded data set from `<cache>/<key>`, decoded first by up to `workers` processes if it is not there.

    A damaged copy is written anew. Two callers at once decode once: the second waits. Raises DataError naming the file
    that cannot be decoded, or the cache folder that cannot be written."""
    key = _key(dataset, manifest)
    place = cache / key
    opened = _open(place, manifest)
    if opened is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{key}.lock"):
                opened = _open(place, manifest)
                if opened is None:
                    _build(dataset, manifest, place, workers)
                    opened = _open(place, manifest)
        except OSError as error:
            free = shutil.disk_usage(next(p for p in (cache, *cache.absolute().parents) if p.exists())).free
            raise DataError(
                f"{cache}: the decoded data set cannot be written ({error.strerror or error}); {free / 1e6:.0f} MB are "
                "free there. Make room, or set paths.cache to another folder"
            ) from error
        if opened is None:
            raise DataError(f"{place}: the decoded data set was written and cannot be read again; set paths.cache elsewhere")
    images, masks, statistics = opened
    shift, scale, clip = normalisation(statistics, dataset.normalise, images.dtype)
    names = list(manifest.patients)
    counts = [len(slices) for slices in manifest.patients.values()]
    return Volumes(
        images=images,
        masks=masks,
        patient=np.repeat(np.arange(len(names)), counts),
        patients=names,
        slices=[name for slices in manifest.patients.values() for name in slices],
        shift=shift,
        scale=scale,
        clip=clip,
        digest=manifest.digest,
        key=key,
    )


def _key(dataset: DataSet, manifest: Manifest) -> str:
    """Everything that decides the cached bytes: not where the files lie, nor how they are normalised."""
    own = {f.name: getattr(dataset, f.name) for f in fields(dataset)}  # type: ignore[arg-type]
    for name in ("root", "normalise", "model_width"):
        own.pop(name, None)
    parts = [FORMAT, type(dataset).__module__, type(dataset).__qualname__, own, manifest.digest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def statistics(images: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and the QUANTILES of each channel of (D, H, W, C): (C, 4) float64.

    Of large images every k-th row and column, so that at least 128 are used a side: the volume still has 10^5 pixels."""
    step = max(1, min(images.shape[1:3]) // 128)
    found = []
    for channel in range(images.shape[3]):
        histogram = np.bincount(np.ascontiguousarray(images[:, ::step, ::step, channel]).ravel())
        values, total = np.arange(len(histogram)), histogram.sum()
        mean = (histogram * values).sum() / total
        deviation = np.sqrt((histogram * (values - mean) ** 2).sum() / total)
        low, high = np.searchsorted(np.cumsum(histogram), np.array(QUANTILES) * total)
        found.append((mean, deviation, low, high))
    return np.array(found)


def normalisation(
    statistics: np.ndarray, mode: str, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, tuple[float, float] | None]:
    """shift, scale (P, C) float32 and clip, from statistics (P, C, 4).

    zscore: mean 0 and standard deviation 1 in each channel of a patient. percentile: the QUANTILES to 0 and 1, clipped.
    unit: the type's range to 0 and 1, the same for all (the report's). A constant channel becomes 0."""
    mean, deviation, low, high = np.moveaxis(statistics, -1, 0)
    if mode == "unit":
        shift, width = np.zeros_like(mean), np.full_like(mean, np.iinfo(dtype).max)
    elif mode == "zscore":
        shift, width = mean, deviation
    else:
        shift, width = low, high - low
    scale = 1 / np.where(width > 0, width, 1)
    return shift.astype(np.float32), scale.astype(np.float32), (0.0, 1.0) if mode == "percentile" else None


def _open(place: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The memory maps and the statistics, or None where something is missing or not as it was written.

    Sizes cannot show pages that a crash of the machine lost: the first reader after a restart looks at the pixels."""
    try:
        arrays = [np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("images", "masks")]
        images, masks = (np.asarray(array) for array in arrays)  # plain arrays over the maps: cheaper to index
        known = np.load(place / "statistics.npy", allow_pickle=False)
        count = sum(map(len, manifest.patients.values()))
        whole = (
            images.ndim == 4
            and images.dtype in (np.uint8, np.uint16)
            and masks.dtype == np.uint8
            and len(images) == count
            and masks.shape == images.shape[:3]
            and known.shape == (len(manifest.patients), images.shape[3], 5)
        )
        if not whole:
            return None
        boot = place / f"checked-{_boot()}"
        if not boot.exists():
            stops = np.cumsum([len(slices) for slices in manifest.patients.values()])
            for index, stop in enumerate(stops):
                part = slice(stop - len(list(manifest.patients.values())[index]), stop)
                if not np.array_equal(_summary(images[part], masks[part]), known[index]):
                    return None
            with contextlib.suppress(OSError):
                boot.touch()
        return images, masks, known[..., :4]
    except (OSError, ValueError, EOFError):
        return None
