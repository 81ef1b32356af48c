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
class Flips:
    """Mirrors an image left to right with probability `horizontal`, top to bottom with probability `vertical`."""

    horizontal: float
    vertical: float

    def __post_init__(self) -> None:
        for key in ("horizontal", "vertical"):
            check_range(f"augment.{key}", getattr(self, key), 0.0, 1.0)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Batch:
        """x (B, C, H, W) float and y (B, 1, H, W) in {0, 1} to the same shapes, in the memory layout of x."""
        for axis, probability in ((3, self.horizontal), (2, self.vertical)):
            if probability:
                chosen = (_uniform(x, generator) < probability)[:, None, None, None]
                x, y = (torch.where(chosen, t.flip(axis), t) for t in (x, y))
        return x, y


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Each image, with probability `p`, mirrored, turned, scaled and shifted at once, and its intensity changed.

    flip: probability of mirroring left to right. degrees: largest turn either way. scale: largest relative change of
    size. shift: largest shift, as a share of the side. intensity: largest relative change of contrast and largest
    shift, in units of the normalised image, of each channel. Images are interpolated bilinearly, masks are taken from
    the nearest pixel, and what enters from outside repeats the border in both."""

    p: float
    flip: float
    degrees: float
    scale: float
    shift: float
    intensity: float

    def __post_init__(self) -> None:
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
        return x, y


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
