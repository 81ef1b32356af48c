"""Any pairs of image and mask files: two patterns say which files, one regular expression says whose slices they are.

Image and mask are matched by what the expression finds in their paths, so they may lie in one folder or in two trees.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segsweep.core.errors import DataError
from segsweep.segmentation.data import images, source, volume
from segsweep.segmentation.data.labels import Labels, labels_of
from segsweep.segmentation.data.source import Manifest, Stack


@dataclass(frozen=True, kw_only=True)
class Folder:
    """PNG, TIFF, GIF or JPEG images, grey or RGB, 8 bit or 16 bit grey, and masks of two values (0 and 255, or 0 and
    1), or label images of several classes.

    root: folder that holds both. images, masks: patterns of paths under it, as in pathlib (`**` for any depth); a file
    that both match is a mask. patient: regular expression, searched in each path (under root, with /), with a group
    named `patient` and, where a patient has several slices, one named `slice`: a mask belongs to the image for which
    both are the same; one named `volume` where the slices of a patient do not all lie on one another. Slices are sorted
    as numbers where they are numbers. classes: of label images, see `labels.labels`; ignore: values of masks that are
    void. roi: pattern of a third kind of files, matched as masks are: 0 where neither image nor label counts. Images of
    several sizes are padded to the largest height and width where image_size is None. The rest as in `lgg.LGG`."""

    root: str
    images: str
    masks: str
    patient: str
    image_size: source.Size
    normalise: str
    model_width: int
    classes: int | Sequence[str] | None = None
    ignore: Any = ()
    roi: str | None = None
    patch: source.Size = None
    parts: ClassVar[tuple[str, ...]] = ("slice", "volume")

    def __post_init__(self) -> None:
        source.check_root(self.root)
        source.check_common(self.image_size, self.normalise, self.model_width, self.patch)
        object.__setattr__(self, "ignore", self.labels.ignore)
        for key in ("images", "masks", "roi"):
            pattern = getattr(self, key)
            if pattern is None and key == "roi":
                continue
            if not source.is_pattern(pattern):
                raise DataError(
                    f"data.{key}={pattern}: expected a pattern of paths under data.root, such as {key}/**/*.png"
                )
        try:
            groups = re.compile(self.patient).groupindex
        except (re.error, TypeError) as error:
            raise DataError(f"data.patient={self.patient}: not a regular expression: {error}") from error
        if "patient" not in groups or set(groups) - {"patient", *self.parts}:
            raise DataError(
                f"data.patient={self.patient}: expected a group (?P<patient>...) and at most "
                f"{' and '.join(f'(?P<{part}>...)' for part in self.parts)}; "
                f"found {source.listed(groups) or 'no named group'}"
            )

    @property
    def labels(self) -> Labels:
        return labels_of(self)

    def scan(self, cache: Path) -> Manifest:
        """The manifest of all matched files. Raises DataError."""
        made = self._manifest(cache, self._pairs(), images.look, images.values)
        self._check_patch(made.shapes)
        return replace(made, room=source.room(self.image_size, made.shapes), stacks=self._stacks(made))

    def _manifest(
        self,
        cache: Path,
        pairs: source.Pairs,
        look: Callable[[bytes], tuple[bool, tuple[int, int] | None]],
        values: Callable[[str], list[int]],
    ) -> Manifest:
        """With the masks' values held against the classes; not where a region decides which of them count."""
        check = partial(images.check_values, labels=self.labels)
        known = None if self.roi else values
        return source.manifest(source.folder(self.root), pairs, cache, look, images.read, known, check)

    def _stacks(self, made: Manifest) -> dict[str, list[Stack]]:
        """Of each patient the runs of slices of one volume, where the expression tells volumes."""
        if "volume" not in re.compile(self.patient).groupindex:
            return {}
        start = len(os.path.join(source.folder(self.root), ""))
        found = {}
        for patient, files in made.files.items():
            paths = (re.search(self.patient, Path(image[start:]).as_posix()) for image, *_ in files)
            volumes = groupby(source.named(match)[1] for match in paths if match)
            runs = [(name, len(list(several))) for name, several in volumes]
            if len({name for name, _ in runs}) < len(runs):
                raise DataError(
                    f"data.patient={self.patient}: in the order of names, slices of two volumes of patient {patient} "
                    f"lie between one another ({source.listed(dict(runs))}); rename the volumes"
                )
            found[patient] = [Stack(count, None) for _, count in runs]
        return found

    def _check_patch(self, shapes: Iterable[tuple[int, int]]) -> None:
        if self.image_size is None:
            source.patch_of(self.patch, [max(lengths) for lengths in zip(*shapes, strict=True)])

    def _pairs(self) -> source.Pairs:
        root = source.folder(self.root)
        regions = self._find(root, "roi", set()) if self.roi else {}
        masks = self._find(root, "masks", {*regions.values()})
        found = self._find(root, "images", {*regions.values(), *masks.values()})
        return source.pair(found, masks, regions if self.roi else None)

    def _find(self, root: Path, key: str, taken: set[str]) -> dict[tuple[str, str], str]:
        pattern = getattr(self, key)
        keyed: dict[tuple[str, str], str] = {}
        for path in sorted(root.glob(pattern)):
            if str(path) in taken or not path.is_file():
                continue
            if volume.ADDRESS.match(str(path)):
                raise DataError(f"{path}: such names are kept for slices of volumes; rename the file")
            match = re.search(self.patient, path.relative_to(root).as_posix())
            if not match or not match["patient"]:
                raise DataError(
                    f"{path}: matches data.{key}={pattern}, but data.patient={self.patient} finds no patient in "
                    f"{path.relative_to(root).as_posix()}; change either"
                )
            name = source.named(match)[::2]
            if name in keyed:
                raise DataError(
                    f"{path} and {keyed[name]}: data.patient={self.patient} finds the same patient and {self.parts[0]} "
                    f"in both ({name[0]}, {name[1]}); let the group `{self.parts[0]}` tell them apart"
                )
            keyed[name] = str(path)
        if not keyed:
            others = "data.masks or data.roi" if self.roi else "data.masks"
            but = f" but those that {others} takes" if taken and any(root.glob(pattern)) else ""
            raise DataError(f"data.{key}={pattern}: {source.unmatched(root, pattern)}{but}")
        return keyed

    def decode(self, manifest: Manifest, patient: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (D, H, W, C) and masks (D, H, W) uint8 of one patient, see `images.decode`. Raises DataError."""
        files, room = manifest.files[patient], manifest.room
        return images.decode(patient, files, self.image_size, labels=self.labels, room=room)
