"""Augmentation of a whole batch on its device: what happens to an image happens to its mask.

Random numbers come from the generator that is passed in, so an epoch can be made again.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from segsweep.segmentation.data.source import check_range

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class NoAugment:
    """Leaves the batch as it is."""

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Batch:
        return x, y


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Changes of an image's values alone, each with a probability of its own; where that is 0 nothing is drawn.

    noise: normal, of a deviation up to `noise_max`. blur: by a Gaussian of a deviation of half `blur_max` to all of it,
    in pixels, the border repeated. brightness: a shift of each channel by up to `brightness_max` either way. contrast:
    each channel's distance from its mean times 1 - `contrast_max` to 1 + `contrast_max`. gamma: each channel's values,
    as shares of their range, to the power of 1 / (1 + `gamma_max`) to 1 + `gamma_max`, as often above 1 as below. They
    come in this order, nnU-Net's, in amounts about its own (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).
    Deviations and shifts are in units of the normalised image."""

    noise: float = 0.0
    blur: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise_max: float = 0.3
    blur_max: float = 1.0
    brightness_max: float = 0.25
    contrast_max: float = 0.25
    gamma_max: float = 0.5

    def __post_init__(self) -> None:
        limits = {"noise": 10.0, "blur": 20.0, "brightness": 10.0, "contrast": 1.0, "gamma": 10.0}
        for key, most in limits.items():
            check_range(f"augment.{key}", getattr(self, key), 0.0, 1.0)
            check_range(f"augment.{key}_max", getattr(self, f"{key}_max"), 0.0, most)

    def change(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """x (B, C, H, W) float in channels-last memory; an image that is not chosen keeps its bits."""
        makes = {"noise": _noise, "blur": _blur, "brightness": _shift, "contrast": _contrast, "gamma": _gamma}
        for key, make in makes.items():
            if probability := getattr(self, key):
                chosen = (_uniform(x, generator) < probability)[:, None, None, None]
                x = torch.where(chosen, make(x, getattr(self, f"{key}_max"), generator), x)
                x = x.contiguous(memory_format=torch.channels_last)
        return x


@dataclass(frozen=True, kw_only=True)
class Flips(Intensity):
    """Mirrors an image left to right with probability `horizontal`, top to bottom with probability `vertical`; then see
    `Intensity`."""

    horizontal: float
    vertical: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("horizontal", "vertical"):
            check_range(f"augment.{key}", getattr(self, key), 0.0, 1.0)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Batch:
        """x (B, C, H, W) float and y (B, 1, H, W) in {0, 1} to the same shapes, in the memory layout of x."""
        for axis, probability in ((3, self.horizontal), (2, self.vertical)):
            if probability:
                chosen = (_uniform(x, generator) < probability)[:, None, None, None]
                x, y = (torch.where(chosen, t.flip(axis), t) for t in (x, y))
        return self.change(x, generator), y


@dataclass(frozen=True, kw_only=True)
class Affine(Intensity):
    """Each image, with probability `p`, mirrored, turned, scaled and shifted at once, and its intensity changed.

    flip: probability of mirroring left to right. degrees: largest turn either way. scale: largest relative change of
    size. shift: largest shift, as a share of the side. intensity: largest relative change of contrast and largest
    shift, in units of the normalised image, of each channel. Images are interpolated bilinearly, masks are taken from
    the nearest pixel, and what enters from outside repeats the border in both. Then see `Intensity`."""

    p: float
    flip: float
    degrees: float
    scale: float
    shift: float
    intensity: float

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {"p": 1.0, "flip": 1.0, "degrees": 180.0, "scale": 0.9, "shift": 1.0, "intensity": 1.0}
        for key, most in limits.items():
            check_range(f"augment.{key}", getattr(self, key), 0.0, most)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Batch:
        """x (B, C, H, W) float and y (B, 1, H, W) in {0, 1} to the same shapes."""
        mirror, angle, size, right, down, chosen = (_uniform(x, generator) for _ in range(6))
        on = (chosen < self.p).to(x.dtype)
        matrix = affine(
            turn=on * (2 * angle - 1) * math.radians(self.degrees),
            size=1 + on * (2 * size - 1) * self.scale,
            right=on * (2 * right - 1) * self.shift,
            down=on * (2 * down - 1) * self.shift,
            mirror=1 - 2 * on * (mirror < self.flip),
            ratio=x.shape[2] / x.shape[3],
        )
        x, y = warp(x, y, matrix)
        if self.intensity:
            contrast, offset = (
                (2 * torch.rand(x.shape[:2], generator=generator, device=x.device) - 1) * on[:, None] * self.intensity
                for _ in range(2)
            )
            x = torch.addcmul(offset[:, :, None, None], x, 1 + contrast[:, :, None, None])
        return self.change(x, generator), y


def affine(
    turn: torch.Tensor,
    size: torch.Tensor,
    right: torch.Tensor,
    down: torch.Tensor,
    mirror: torch.Tensor,
    ratio: float,
) -> torch.Tensor:
    """(B, 2, 3) for `warp`, from (B,) each: turn clockwise in radians, size as a factor, shifts as shares of width and
    height, mirror -1 or 1 (left to right, first of all); ratio: height / width of the image."""
    cos, sin = torch.cos(turn) / size, torch.sin(turn) / size
    # From a place in the result to where it is read: in coordinates of -1 to 1, y down, pixels not square.
    rows = [[cos * mirror, ratio * sin * mirror], [-sin / ratio, cos]]
    back = [-2 * (a * right + b * down) for a, b in rows]
    return torch.stack([torch.stack([a, b, c], dim=-1) for (a, b), c in zip(rows, back, strict=True)], dim=1)


def warp(x: torch.Tensor, y: torch.Tensor, matrix: torch.Tensor) -> Batch:
    """Images and masks read at the places that `matrix` (B, 2, 3) gives, x in channels-last memory."""
    grid = F.affine_grid(matrix, list(y.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    y = F.grid_sample(y, grid, mode="nearest", padding_mode="border", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last), y


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(len(x), generator=generator, device=x.device)


def _amounts(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, C, 1, 1), -1 to 1."""
    return 2 * torch.rand(x.shape[:2], generator=generator, device=x.device)[:, :, None, None] - 1


def _noise(x: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    deviation = most * _uniform(x, generator)[:, None, None, None]
    return x + deviation * torch.randn(x.shape, generator=generator, device=x.device)


def _shift(x: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    return x + most * _amounts(x, generator)


def _contrast(x: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * (1 + most * _amounts(x, generator))


def _gamma(x: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    share = (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    return low + (high - low) * share ** ((1 + most) ** _amounts(x, generator))


def _blur(x: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    """Row by row and column by column, each image by a Gaussian of its own."""
    reach = max(1, math.ceil(3 * most))
    deviation = (most * (1 + _uniform(x, generator)) / 2).clamp_min(1e-3)
    places = torch.arange(-reach, reach + 1, device=x.device)
    kernel = torch.exp(-((places / deviation[:, None]) ** 2) / 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)[:, None]  # B * C, 1, places
    y = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(F.pad(y, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=y.shape[1])
    y = F.conv2d(F.pad(y, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=y.shape[1])
    return y.reshape(x.shape)
