"""A network over images in overlapping windows of the size that it was trained on, blended by a Gaussian.

As nnU-Net does (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): windows that overlap by half, evenly spread from
edge to edge, and the mean of their logits, with weights that fall from the middle of a window, where a network sees
most around a pixel. A slice's windows follow from its own size alone, so that its logits are the same in any company.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

STEP = 0.5
"""Between two windows, as a share of their side, at most."""
SIGMA = 0.125
"""Standard deviation of the Gaussian, as a share of the side."""
LEAST = 1e-3
"""Weight below which none falls: in a corner a window may be the only one."""

Patch = tuple[int, int]


def starts(length: int, side: int) -> list[int]:
    """Where the windows of `side` pixels begin along `length`; one window where that is no longer."""
    free = max(0, length - side)
    count = math.ceil(free / (side * STEP)) + 1
    return [round(free * k / max(1, count - 1)) for k in range(count)]


def weights(patch: Patch, device: torch.device | str = "cpu") -> torch.Tensor:
    """Of the pixels of a window, (h, w) float32, 1 in the middle."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2 for side in patch)
    one, other = (
        (-((offset / (SIGMA * side)) ** 2) / 2).exp() for offset, side in zip((rows, columns), patch, strict=True)
    )
    return (one[:, None] * other).clamp(min=LEAST)


def slide(
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sizes: np.ndarray | Sequence[Sequence[int]],
    patch: Patch,
    at_once: int,
) -> torch.Tensor:
    """Logits (B, C, H, W) float32 of x (B, channels, H, W), which is no smaller than `patch`; sizes (B, 2): the height
    and width of each image in it. `at_once`: windows of an image that go through the network together. Beyond an image
    and its windows the logits are 0."""
    height, width = patch
    share = weights(patch, x.device)
    found = []
    for image, size in zip(x, sizes, strict=True):
        corners = [(top, left) for top in starts(int(size[0]), height) for left in starts(int(size[1]), width)]
        total, known = None, share.new_zeros(image.shape[1:])
        for n in range(0, len(corners), at_once):
            part = corners[n : n + at_once]
            cut = torch.stack([image[:, top : top + height, left : left + width] for top, left in part])
            logits = model(cut.contiguous(memory_format=torch.channels_last)).float()
            if total is None:
                total = logits.new_zeros(logits.shape[1], *image.shape[1:])
            for (top, left), one in zip(part, logits, strict=True):
                total[:, top : top + height, left : left + width] += share * one
                known[top : top + height, left : left + width] += share
        assert total is not None
        found.append(total / known.where(known > 0, 1))
    return torch.stack(found)
