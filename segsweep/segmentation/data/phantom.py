"""A made-up brain MRI data set: heads with a tumour in three sequences, learnable in seconds and not trivial.

The tumour is bright in FLAIR, but so are fat, the ventricles' edges and lesions of small vessels; noise, a bias field
and a gain that differs from patient to patient leave no single threshold that finds it. A patient is one function of
space: `image_size` and `slices` change how it is sampled, not the anatomy.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from segsweep.segmentation.data import source
from segsweep.segmentation.data.source import Manifest

VERSION = 1
"""Changes whenever the same parameters give other pixels."""

# Signal in pre-contrast T1, FLAIR and post-contrast T1; the brightest is about 1.
AIR = (0.0, 0.0, 0.0)
FAT = (0.85, 0.80, 0.88)
BONE = (0.08, 0.06, 0.08)
FLUID = (0.16, 0.10, 0.17)
GREY = (0.44, 0.49, 0.47)
WHITE = (0.60, 0.42, 0.62)
GLIOSIS = (0.50, 0.64, 0.52)  # ventricles' edges and small-vessel lesions: bright in FLAIR, and no tumour
VESSEL = (0.25, 0.15, 0.95)
TUMOUR = (0.34, 0.84, 0.36)
CORE = (0.32, 0.74, 0.92)  # takes up contrast, in some patients


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Axial slices of `patients` heads, (D, H, W, 3) uint8, every one with a tumour.

    seed: of everything. slices: a patient. noise: standard deviation, of the brightest tissue's 1. bias: standard
    deviation of the logarithm of the bias field. image_size: pixels a side. normalise, model_width, patch: as in
    `lgg.LGG`."""

    seed: int
    patients: int
    slices: int
    noise: float
    bias: float
    image_size: int
    normalise: str
    model_width: int
    patch: source.Size = None

    def __post_init__(self) -> None:
        source.check_range("data.seed", self.seed, 0, 2**31)
        source.check_range("data.patients", self.patients, 2, 9999)
        source.check_range("data.slices", self.slices, 4, 256)
        source.check_range("data.noise", self.noise, 0.0, 1.0)
        source.check_range("data.bias", self.bias, 0.0, 1.0)
        source.check_range("data.image_size", self.image_size, 16, 1024, "pixels")
        source.check_common(self.image_size, self.normalise, self.model_width, self.patch)

    def scan(self, cache: Path) -> Manifest:
        """The manifest: its digest is of the parameters, for there are no files."""
        own = {key: value for key, value in asdict(self).items() if key not in ("normalise", "model_width", "patch")}
        digest = hashlib.sha256(json.dumps([VERSION, own]).encode()).hexdigest()
        names = [f"phantom_{index:04}" for index in range(self.patients)]
        return Manifest(digest, {name: [f"{name}_{k}" for k in range(1, self.slices + 1)] for name in names})

    def decode(self, manifest: Manifest, patient: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (D, H, W, 3) uint8 and masks (D, H, W) uint8 of {0, 1} of one patient."""
        rng = np.random.default_rng([self.seed, list(manifest.patients).index(patient)])
        shape = (self.slices, self.image_size, self.image_size)
        signal, tumour = _anatomy(rng, shape)
        common = rng.uniform(0.75, 1.0)
        for channel in signal:
            channel *= common * rng.uniform(0.85, 1.0) * np.exp(self.bias * _field(rng, shape, 2))
        # Magnitude of a complex signal: Rician noise, so that air is not 0.
        real, imaginary = (self.noise * rng.standard_normal(signal.shape, np.float32) for _ in range(2))
        raw = np.clip(np.hypot(signal + real, imaginary) * 230, 0, 255).round().astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(raw, 0, -1)), tumour.astype(np.uint8)


def _anatomy(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Signal (3, D, H, W) float32 and tumour (D, H, W) bool; x to the left, y to the back, z up, from about -1 to 1.

    Random numbers are plain floats here, so that the volumes stay float32."""
    depth, height, width = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in shape)
    z, y, x = np.meshgrid(1.65 * depth - 0.8, 2 * height - 1, 2 * width - 1, indexing="ij", sparse=True)
    x, y = x - rng.normal(0, 0.03), y - rng.normal(0, 0.03)
    turn = rng.normal(0, 0.08)
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = cos * x - sin * y, sin * x + cos * y
    rz, ry, rx = rng.uniform((0.95, 0.84, 0.68), (1.10, 0.94, 0.78)).tolist()
    # Distance from the centre, 1 on the skin; the brain's surface has folds besides.
    skin = _norm(z / rz, y / ry, x / rx) * (1 + 0.03 * _field(rng, shape, 3))
    folds = _field(rng, shape, 18, least=8)
    brain = skin + 0.025 * folds
    signal = np.zeros((3, *shape), np.float32)
    for distance, edge, tissue in (
        (skin, 1.0, FAT),
        (skin, 0.93, BONE),
        (skin, 0.87, FLUID),
        (brain, 0.82, GREY),
        (skin + 0.05 * folds, 0.72, WHITE),
    ):
        _fill(signal, edge - distance, 0.04, tissue)
    side = np.abs(x)
    _fill(signal, 1 - _norm(z / 0.22, (y - 0.02) / 0.22, (side - 0.22) / 0.10), 0.3, GREY)
    # Lateral ventricles, with a bright rim in FLAIR.
    large = rng.uniform(0.8, 1.4)
    ventricle = _norm((z - 0.1) / 0.26, y / 0.36, (side - 0.11) / 0.075) / large * (1 + 0.1 * _field(rng, shape, 4))
    _fill(signal, 1 + rng.uniform(0.1, 0.6) * np.abs(_field(rng, shape, 4)) - ventricle, 0.3, GLIOSIS)
    for _ in range(rng.integers(2, 8)):
        at = rng.uniform((-0.3, -0.5, -0.4), (0.5, 0.5, 0.4)).tolist()
        _fill(signal, 1 - _norm(z - at[0], y - at[1], x - at[2]) / rng.uniform(0.04, 0.09), 0.5, GLIOSIS)

    tumour = np.zeros(shape, bool)
    for _ in range(rng.choice((1, 2), p=(0.85, 0.15))):
        half = float(rng.choice((-1, 1)))
        at = rng.uniform((-0.35, -0.45, 0.2), (0.45, 0.45, 0.45)).tolist()
        radii = (rng.uniform(0.25, 0.36) * rng.uniform((0.75, 0.8, 0.8), (1.0, 1.2, 1.2))).tolist()
        distance = _norm((z - at[0]) / radii[0], (y - at[1]) / radii[1], (half * x - at[2]) / radii[2])
        distance *= 1 + 0.2 * _field(rng, shape, 5)
        # It keeps to its half of the brain and out of the ventricles; all in units of about its radius.
        outside = np.maximum(distance - 1, np.maximum(brain - 0.83, 0.04 - half * x) / 0.2)
        outside = np.maximum(outside, 1 - ventricle)
        _fill(signal, -outside, 0.12, (TUMOUR[0], TUMOUR[1] + rng.uniform(-0.06, 0.08), TUMOUR[2]))
        if rng.random() < 0.4:
            _fill(signal, np.minimum(rng.uniform(0.3, 0.6) - distance, -outside), 0.25, CORE)
        tumour |= outside < 0
    signal *= 1 + 0.06 * _field(rng, shape, 10, least=3)
    _fill(signal, 1 - ventricle, 0.2, FLUID)
    for _ in range(rng.integers(3, 7)):
        at, lean = rng.uniform(-0.6, 0.6, 2).tolist(), rng.normal(0, 0.5, 2).tolist()
        tube = _norm(y - at[0] - lean[0] * z, x - at[1] - lean[1] * z) + 0.03 * _field(rng, shape, 4)
        _fill(signal, np.minimum(rng.uniform(0.03, 0.05) - tube, 0.84 - brain), 0.03, VESSEL)
    _fill(signal, np.minimum(0.015 - side, np.minimum(0.85 - brain, z)), 0.03, VESSEL)  # falx
    return signal, tumour


def _norm(*axes: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(axis * axis for axis in axes))


def _fill(signal: np.ndarray, depth: np.ndarray, width: float, tissue: tuple[float, float, float]) -> None:
    """Blend `tissue` in where depth > 0, over an edge of `width`: a voxel may hold two tissues."""
    share = np.clip(depth / width + 0.5, 0, 1)
    for channel, value in zip(signal, tissue, strict=True):
        channel += (value - channel) * share


def _field(rng: np.random.Generator, shape: tuple[int, int, int], order: int, least: int = 1) -> np.ndarray:
    """A smooth random field of standard deviation about 1: cosines of `least` to `order` half periods along an axis."""
    k = np.arange(order + 1)
    size = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)
    field = rng.standard_normal(size.shape) * ((size >= least) & (size <= order)) / np.maximum(size, 1)
    field /= np.sqrt((field**2 / 2 ** (np.indices(size.shape) > 0).sum(0)).sum())  # a cosine's mean square is a half
    field = field.astype(np.float32)
    for n in reversed(shape):  # the last axis is summed over and its pixels come first, three times
        waves = np.cos(np.pi * np.outer((np.arange(n) + 0.5) / n, k)).astype(np.float32)
        field = np.moveaxis(field @ waves.T, -1, 0)
    return np.ascontiguousarray(field)
