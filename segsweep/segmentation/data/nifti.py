"""NIfTI volumes and their labels, cut into slices along an axis of the patient; see `volume` for which is which."""

import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from segsweep.core.errors import DataError
from segsweep.segmentation.data import images, source, volume
from segsweep.segmentation.data.folder import Folder
from segsweep.segmentation.data.source import Manifest, Stack


@dataclass(frozen=True, kw_only=True)
class Nifti(Folder):
    """Volumes (.nii, .nii.gz) of three dimensions, or of four with channels, and label volumes of the same shape.

    axis: along which they are cut: 0 from left to right, 1 from back to front, 2 from the feet to the head, whatever
    the order in the file. patient: a regular expression as in `Folder`, with a group `volume` in the place of `slice`
    where a patient has several. The rest as in `Folder`."""

    axis: int
    parts: ClassVar[tuple[str, ...]] = ("volume",)

    def __post_init__(self) -> None:
        super().__post_init__()
        source.check_range("data.axis", self.axis, 0, 2)
        if self.roi:
            raise DataError(
                f"data.roi={self.roi}: volumes have no files of regions; give what lies outside a label value of its "
                "own, and name that in data.ignore"
            )

    def scan(self, cache: Path) -> Manifest:
        """The manifest of all matched volumes. Raises DataError naming files that do not go together."""
        pairs = self._pairs()
        for file in (file for volumes in pairs.values() for _, *files in volumes for file in files):
            if not volume.is_volume(file):
                raise DataError(
                    f"{file}: expected files {' or '.join(volume.SUFFIXES)}; change data.images or data.masks"
                )
        made = self._manifest(cache, pairs, lambda data: (False, None), partial(self._values, threading.Lock()))
        names: dict[str, list[str]] = {}
        files: dict[str, list[tuple[str, ...]]] = {}
        stacks: dict[str, list[Stack]] = {}
        shapes = set()
        for patient, volumes in pairs.items():
            first = volume.header(volumes[0][1], self.axis)
            for name, *several in volumes:
                head = volume.header(several[0], self.axis)
                self._check(patient, several, head, volumes[0][1], first)
                depth, *shape = head.shape
                shapes.add((shape[0], shape[1]))
                before = f"{name}_" * (name != patient)
                names.setdefault(patient, []).extend(f"{before}{k + 1:03}" for k in range(depth))
                files.setdefault(patient, []).extend(
                    tuple(volume.address(file, self.axis, k) for file in several) for k in range(depth)
                )
                small = images.target(shape, self.image_size)
                stacks.setdefault(patient, []).append(Stack(depth, head.at(small)))
        self._check_patch(shapes)
        room = source.room(self.image_size, shapes)
        return replace(made, patients=names, files=files, stacks=stacks, shapes=tuple(sorted(shapes)), room=room)

    def _values(self, alone: threading.Lock, file: str) -> list[int]:
        """As `images.values`, of a label volume: one after another, since one may be large."""
        with alone:
            depth, *_ = volume.header(file, self.axis).shape  # which refuses what would not fit
            each = (images.values(volume.address(file, self.axis, place)) for place in range(depth))
            return sorted(set().union(*each))

    def _check(self, patient: str, several: list[str], head: volume.Header, file: str, first: volume.Header) -> None:
        if head.spacing != first.spacing and not np.allclose(head.spacing or 0, first.spacing or 0, rtol=1e-3):
            raise DataError(
                f"patient {patient}: {several[0]} has the spacing {told(head)}, {file} {told(first)}; expected one for "
                "all volumes of a patient: resample them, or give each volume a patient of its own"
            )
        if several[0] != file and (head.stored != first.stored or head.stored not in ("uint8", "uint16", "int16")):
            raise DataError(
                f"patient {patient}: {several[0]} has {head.stored}, {file} {first.stored}: each would be brought to "
                "16 bit by itself, and both normalised together; save all volumes of a patient as int16, or give each "
                "volume a patient of its own"
            )
        if self.normalise == "unit" and head.stored not in ("uint8", "uint16"):
            raise DataError(
                f"{several[0]}: data.normalise=unit takes whole numbers of 8 or 16 bit without a sign; its are "
                f"{head.stored}: choose zscore or percentile"
            )
        for other in several[1:]:
            volume.check_mask(other, several[0], head, self.axis)


def told(head: volume.Header) -> str:
    return "of none" if head.spacing is None else " x ".join(f"{side:g}" for side in head.spacing) + " mm"
