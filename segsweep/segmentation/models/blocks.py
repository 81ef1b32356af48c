"""The blocks of the U-Net, the R2U-Net and those between and beyond, and the U-shaped encoder-decoder that all are.

The networks differ in their block, and in what is at the skip connections, so the path down, the path up, and what
happens to sizes that do not divide are here once.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DoubleConv(nn.Sequential):
    """Twice (3x3 convolution, BatchNorm, ReLU): (B, in_channels, H, W) -> (B, out_channels, H, W).

    BatchNorm and the zero padding are the usual additions to Ronneberger et al. 2015 (arXiv 1505.04597), whose
    convolutions crop.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise((in_channels, out_channels, out_channels)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Residual(nn.Module):
    """`DoubleConv` plus a 1x1 shortcut of the input: (B, in_channels, H, W) -> (B, out_channels, H, W). As
    `RecurrentResidual` has it, and without recurrence; Alom et al. 2018 (arXiv 1802.06955), figure 4c."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = DoubleConv(in_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x).add_(self.convs(x))


class RecurrentResidual(nn.Module):
    """Recurrent residual block: (B, in_channels, H, W) -> (B, out_channels, H, W).

    A 1x1 projection of the input gives p. One shared 3x3 convolution and one shared BatchNorm then refine a state s,
    from s = p, `t` times: s <- relu(bn(conv(s)) + p). The result is s plus a 1x1 shortcut of the input. So `t` costs
    time, and no parameters. Alom et al. 2018 (arXiv 1802.06955).
    """

    def __init__(self, in_channels: int, out_channels: int, t: int) -> None:
        super().__init__()
        self.t = t
        self.project = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        projected = state = self.project(x)
        for _ in range(self.t):
            # In place: nothing needs BatchNorm's result for the gradient, but the next step needs ReLU's as it is.
            state = self.norm(self.conv(state)).add_(projected).relu_()
        return self.shortcut(x).add_(state)


class AttentionGate(nn.Module):
    """Additive attention: skip and up, both (B, channels, H, W), -> skip times a weight of 0 to 1 a pixel, which is
    sigmoid(psi(relu(a(skip) + b(up)))) of 1x1 convolutions with BatchNorm, in half the channels. Oktay et al. 2018
    (arXiv 1804.03999)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(1, channels // 2)
        self.skip, self.up, self.psi = (
            nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after))
            for before, after in ((channels, between), (channels, between), (between, 1))
        )

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        return skip * self.psi((self.skip(skip) + self.up(up)).relu()).sigmoid()


class Join(torch.autograd.Function):
    """cat((skip, up(x))) of a 2x2 transposed convolution of stride 2, with a gradient that suits a CPU.

    autograd's own gives the next operations channels cut out of a wider tensor, which take ten times as long as whole
    ones, and a bias's gradient that in bf16 takes longer than the convolution."""

    @staticmethod
    def forward(ctx: Any, skip: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """skip (B, C, 2H, 2W), x (B, 2C, H, W), weight (2C, C, 2, 2), bias (C,) -> (B, 2C, 2H, 2W)."""
        weight = weight.to(x.dtype)  # what autocast does outside
        ctx.save_for_backward(x, weight)
        return torch.cat((skip, F.conv_transpose2d(x, weight, bias.to(x.dtype), stride=2)), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        last = grad.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        skip, up = (part.contiguous(memory_format=layout) for part in grad.chunk(2, dim=1))
        needed = (*ctx.needs_input_grad[1:3], False)
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            up, x, weight, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, needed
        )
        return skip, of_x, of_weight, up.sum((0, 2, 3), dtype=torch.float32)


class AnySize(nn.Module):
    """A network for images (B, C, H, W) of any H and W of at least 1: what `body` makes of them, logits (B, K, H, W),
    or in training a tuple of `heads` such maps with the main one first.

    A size that is no multiple of `multiple`, or is below `least`, is padded by repeating the border, and the logits are
    cropped back, so that what is added enters no loss and no score.
    """

    multiple: int
    least: int
    heads = 1

    def body(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        height, width = x.shape[-2:]
        top, bottom = _padding(height, self.multiple, self.least)
        left, right = _padding(width, self.multiple, self.least)
        if not (top or bottom or left or right):
            return self.body(x)
        found = self.body(F.pad(x, (left, right, top, bottom), mode="replicate"))
        if isinstance(found, tuple):
            return tuple(each[..., top : top + height, left : left + width] for each in found)
        return found[..., top : top + height, left : left + width]


class EncoderDecoder(AnySize):
    """U-shaped network: (B, in_channels, H, W) -> logits (B, out_channels, H, W), for any H and W of at least 1.

    `depth` times 2x2 max-pooling with the channels doubling from `width`; as often up by a 2x2 transposed convolution,
    whose result is joined to the encoder's at that level, or to what a `gate` for its channels makes of both, where
    there is one. Padded to a multiple of 2**depth, and to two of them, as a single pixel at the bottom has no
    statistics for BatchNorm.
    """

    def __init__(
        self,
        block: Callable[[int, int], nn.Module],
        in_channels: int,
        out_channels: int,
        width: int,
        depth: int,
        gate: Callable[[int], nn.Module] | None = None,
    ) -> None:
        check_range(in_channels=(in_channels, 1, None), out_channels=(out_channels, 1, None))
        check_range(width=(width, 1, None), depth=(depth, 1, 8))
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        self.multiple, self.least = 2**depth, 2 * 2**depth
        self.encoder = nn.ModuleList(block(before, after) for before, after in pairwise([in_channels, *channels]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.decoder = nn.ModuleList(block(2 * c, c) for c in reversed(channels[:-1]))
        self.head = nn.Conv2d(width, out_channels, 1)
        self.gates = nn.ModuleList(map(gate, reversed(channels[:-1]))) if gate else None

    def body(self, x: Tensor) -> Tensor:
        x = self.encoder[0](x)
        skips = []
        for block in self.encoder[1:]:
            skips.append(x)  # (B, width * 2**level, H / 2**level, W / 2**level)
            x = block(F.max_pool2d(x, 2))
        own = self.training and x.device.type == "cpu" and not torch.compiler.is_compiling()
        for up, block, gate in zip(self.up, self.decoder, self.gates or [None] * len(self.up), strict=True):
            skip = skips.pop()
            if gate is not None:
                risen = up(x)
                x = block(torch.cat((gate(skip, risen), risen), dim=1))
                continue
            x = block(Join.apply(skip, x, up.weight, up.bias) if own else torch.cat((skip, up(x)), dim=1))
        return self.head(x)


def _padding(size: int, multiple: int, least: int) -> tuple[int, int]:
    """Pixels to add (before, after) so that `size` becomes a multiple of `multiple`, and at least `least`."""
    missing = max(-size % multiple, least - size)
    return missing // 2, missing - missing // 2


def check_range(**arguments: tuple[int, int, int | None]) -> None:
    """Raises ValueError for the first argument, given as name=(value, least, most), that is no such whole number."""
    for name, (value, least, most) in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
        if most is not None and value > most:
            raise ValueError(f"{name} must be at most {most}, got {value}")
