"""The side that is compared against: networks, data set and loop as most people write them.

float32, NCHW, two files opened and decoded an item, a DataLoader of workers, an optimizer that is not fused, and
`loss.item()` after every step. The networks compute what segsweep's do with the same weights.
"""

from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Double(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((before, after, after)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Recurrent(nn.Module):
    def __init__(self, before: int, after: int, t: int = 2) -> None:
        super().__init__()
        self.t = t
        self.project = nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(after, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        projected = state = self.project(x)
        for _ in range(self.t):
            state = torch.relu(self.norm(self.conv(state)) + projected)
        return state + self.shortcut(x)


class Network(nn.Module):
    """`block`: "unet" or "r2unet"; images (B, 3, H, W) with H and W multiples of 16 to logits (B, 1, H, W)."""

    def __init__(self, block: str, width: int) -> None:
        super().__init__()
        make = {"unet": Double, "r2unet": Recurrent}[block]
        channels = [width * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(make(a, b) for a, b in pairwise([3, *channels]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.decoder = nn.ModuleList(make(2 * c, c) for c in reversed(channels[:-1]))
        self.head = nn.Conv2d(width, 1, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoder[:-1]:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.encoder[-1](x)
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


class Slices(Dataset):
    """`files`: (image, mask) of each slice."""

    def __init__(self, files: list[tuple[str, str]], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (Image.open(file) for file in self.files[index])
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
            mask = mask.resize((self.size, self.size), Image.Resampling.NEAREST)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return x, torch.from_numpy(np.array(mask))[None].float() / 255


def loader(files: list[tuple[str, str]], size: int, batch: int, workers: int, pin: bool = False) -> DataLoader:
    """`pin`: the batches go to a GPU."""
    return DataLoader(
        Slices(files, size), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin
    )


def epoch(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader, device: torch.device
) -> float:
    """The mean loss."""
    model.train()
    total = 0.0
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)
