"""Batches on the device from the decoded set: gathered, normalised and augmented there, without worker processes.

On a GPU the raw set (1 GB for all of LGG at 256 px) is uploaded once per process and shared by its jobs; on a CPU a
batch is gathered from the memory map in less time than a process would take to hand it over.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.data.labels import VOID, unseen

FITS = 0.5
"""Largest share of a GPU's free memory that the raw set may take to live there."""

PIECE = 64_000_000
"""Bytes uploaded at a time, so that the host holds no second set."""

_on_gpu: dict[torch.device, tuple[str, torch.Tensor, torch.Tensor]] = {}
"""device -> key of the set, images and masks: one set a device, so that a sweep over sets does not fill it."""

Augment = Callable[[torch.Tensor, torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


class Batches:
    """The slices `indices` of `volumes` in batches of `batch_size`.

    The last batch may be smaller; where it would be one slice, too few for BatchNorm in the deepest level, the batch
    before takes it in. shuffle: another order each epoch. augment: called on each batch (see `augment`). patch: height
    and width of what the network sees: with `shuffle` of crops, anew in each epoch, as many of a slice as it takes to
    cover it; without, batches are whole slices, of `sizes`, for `windows.slide`."""

    def __init__(
        self,
        volumes: Volumes,
        indices: np.ndarray,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Augment | None = None,
        shuffle: bool = False,
        patch: tuple[int, int] | None = None,
    ) -> None:
        self.volumes, self.augment, self.shuffle = volumes, augment, shuffle
        self.labels, self.void = volumes.labels, volumes.void
        self.device = torch.device(device)
        indices = np.asarray(indices, dtype=np.int64)
        shape = np.array([volumes.masks.shape[1:]])
        self.sizes = shape.repeat(len(indices), 0) if volumes.sizes is None else volumes.sizes[indices]
        self.patch, self.batch_size, self.free = patch, batch_size, None
        if patch and shuffle:
            crops = np.ceil(self.sizes / np.array(patch)).astype(np.int64).prod(1)
            indices, self.sizes = indices.repeat(crops), self.sizes.repeat(crops, 0)
            self.free = torch.from_numpy((self.sizes - np.array(patch)).clip(0)).to(self.device)
        self.images = len(indices)
        self.bounds = list(range(0, self.images, batch_size)) + [self.images]
        if len(self.bounds) > 2 and batch_size > 1 and self.images % batch_size == 1:
            del self.bounds[-2]
        self.indices = torch.from_numpy(indices).to(self.device)
        self.patient = torch.from_numpy(volumes.patient).to(self.device)
        scale = torch.from_numpy(volumes.scale)
        self.scale = scale[:, :, None, None].to(self.device)  # P C 1 1
        self.offset = (-torch.from_numpy(volumes.shift) * scale)[:, :, None, None].to(self.device)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def epoch(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """x (B, C, H, W) float32 normalised, channels last; y (B, 1, H, W) float32 of {0, 1}, or of the classes of
        `labels`, and of VOID where `void`; patient (B,) int64. Outside a region of interest, and of an image
        that is padded, x is 0 and y VOID.

        Order, crops and augmentation come from `seed` alone: the same seed gives the same epoch on the same kind of
        device."""
        generator = torch.Generator(self.device).manual_seed(seed)
        order, corners = self.indices, None
        if self.shuffle:
            chosen = torch.randperm(self.images, generator=generator, device=self.device)
            order = order[chosen]
            if self.free is not None:
                free = self.free[chosen]
                share = torch.rand(self.images, 2, generator=generator, device=self.device)
                corners = torch.minimum((share * (free + 1)).long(), free)
        resident = self.resident()
        host = None if resident else (order.cpu(), None if corners is None else corners.cpu())
        for start, stop in zip(self.bounds, self.bounds[1:], strict=False):
            index = order[start:stop]
            if host:
                raw, mask = self._gather(self._places(*host, start, stop))
            else:
                raw, mask = (t[self._places(order, corners, start, stop)] for t in resident or ())
            patient = self.patient[index]
            if raw.dtype == torch.int16:
                raw = raw.int() & 0xFFFF
            x = raw.permute(0, 3, 1, 2).float()  # N H W C in memory is channels last
            x.mul_(self.scale[patient]).add_(self.offset[patient])
            if self.volumes.clip:
                x.clamp_(*self.volumes.clip)
            y = mask[:, None].float()
            partly = bool(self.labels.roi) or self.volumes.sizes is not None
            x = x.masked_fill(unseen(y), 0) if partly else x
            if self.augment is not None:
                x, y = self.augment(x, y, generator)
            if partly:  # which augmentation turns with the images, and gives values
                outside = unseen(y)
                x, y = x.masked_fill(outside, 0), y.masked_fill(outside, VOID)
            yield x, y, patient

    def resident(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The raw set on the GPU, uploaded if it is not there yet; None on a CPU, or where it is too large."""
        return _upload(self.volumes, self.device) if self.device.type == "cuda" else None

    def _places(
        self, order: torch.Tensor, corners: torch.Tensor | None, start: int, stop: int
    ) -> tuple[torch.Tensor, ...]:
        """The index of a batch in images and masks: of whole slices, or of crops by their upper left corners (N, 2)."""
        if corners is None:
            return (order[start:stop],)
        assert self.patch is not None
        rows, columns = (
            corners[start:stop, axis, None] + torch.arange(side, device=order.device)
            for axis, side in enumerate(self.patch)
        )
        return order[start:stop, None, None], rows[:, :, None], columns[:, None]

    def _gather(self, places: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        chosen = tuple(place.numpy() for place in places)
        found = [torch.from_numpy(_bits(array)[chosen]) for array in (self.volumes.images, self.volumes.masks)]
        if self.device.type == "cuda":  # from pinned memory a copy does not wait for the steps before it
            return tuple(t.pin_memory().to(self.device, non_blocking=True) for t in found)
        return tuple(found)


def _upload(volumes: Volumes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The raw set on a GPU, images and masks, or None if it is too large."""
    device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)
    if (known := _on_gpu.get(device)) and known[0] == volumes.key:
        return known[1], known[2]
    _on_gpu.pop(device, None)
    if volumes.images.nbytes + volumes.masks.nbytes > FITS * torch.cuda.mem_get_info(device)[0]:
        return None
    try:
        images, masks = (_copy(array, device) for array in (volumes.images, volumes.masks))
    except torch.OutOfMemoryError:  # another process was quicker
        return None
    _on_gpu[device] = volumes.key, images, masks
    return images, masks


def _bits(array: np.ndarray) -> np.ndarray:
    """uint16 as the int16 of the same bits: torch indexes few unsigned types on every device."""
    return array.view(np.int16) if array.dtype == np.uint16 else array


def _copy(array: np.ndarray, device: torch.device) -> torch.Tensor:
    array = _bits(array)
    there = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, device=device)
    step = max(1, PIECE // array[:1].nbytes)
    for start in range(0, len(array), step):
        there[start : start + step].copy_(torch.from_numpy(array[start : start + step].copy()))
    return there
