"""Networks as other people write them, each with one habit of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """in_chans images to classes maps, whatever the size."""

    def __init__(self, in_chans: int, classes: int, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head, self.aux = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor):
        return self.head(self.body(x))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The second at half the size."""
        found = self.body(x)
        return self.head(found), self.aux(F.avg_pool2d(found, 2, ceil_mode=True))


class Dictionary(Plain):
    def forward(self, x: Tensor):
        main, aux = self.both(x)
        return {"aux": aux, "out": main}


class Features(Plain):
    def forward(self, x: Tensor):
        found = self.body(x)
        return {"out": self.head(found), "features": found}


class Listed(Plain):
    def forward(self, x: Tensor):
        return [*self.both(x)]


class Stacked(Plain):
    """In training alone."""

    def forward(self, x: Tensor):
        main = self.head(self.body(x))
        return torch.stack([main, self.aux(self.body(x))], 1) if self.training else main


class Eight(Plain):
    """Down to an eighth and up again; without padding it gives other sizes."""

    def forward(self, x: Tensor):
        found = F.avg_pool2d(self.body(x), 8)
        return self.head(F.interpolate(found, scale_factor=8))


class Patches(Plain):
    """Of 14 pixels a side, those at the border left out."""

    def forward(self, x: Tensor):
        found = F.avg_pool2d(self.body(x), 14)
        return self.head(F.interpolate(found, scale_factor=14))


class Thirds(Plain):
    def forward(self, x: Tensor):
        return self.head(F.interpolate(F.avg_pool2d(self.body(x), 33), scale_factor=33))


class Fixed(Plain):
    def forward(self, x: Tensor):
        if x.shape[-2:] != (32, 32):
            raise RuntimeError("images of 32 x 32 only")
        return super().forward(x)


class Numbers(Plain):
    """Looks at numbers when it is built, and when it runs."""

    def __init__(self, in_chans: int, classes: int, width: int = 4):
        super().__init__(in_chans, classes, width)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.5, 3)]

    def forward(self, x: Tensor):
        return super().forward(x) * (2 if x.abs().max().item() > 9 else 1)


class Unnamed(Plain):
    def forward(self, x: Tensor):
        return dict(zip(("mask", "edge"), self.both(x), strict=True))


class WithText(Plain):
    def forward(self, x: Tensor):
        return super().forward(x), "why"


class Half(Plain):
    def forward(self, x: Tensor):
        return F.avg_pool2d(super().forward(x), 2)


class Three(nn.Module):
    """Images of three channels to one map, and says neither."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor):
        return self.conv(x)


class OfOne(Three):
    """Of grey images."""

    def forward(self, x: Tensor):
        if x.shape[1] != 1:
            raise RuntimeError("grey images only")
        return self.conv(x.expand(-1, 3, -1, -1))
