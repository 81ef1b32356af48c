"""LGG MRI Segmentation as downloaded from Kaggle: brain MRI of lower-grade glioma, three sequences and a FLAIR mask.

Source: Buda, Saha, Mazurowski, "Association of genomic subtypes of lower-grade gliomas with shape features
automatically extracted by a deep learning algorithm", 2019 (doi:10.1016/j.compbiomed.2019.05.002), on the images of
TCGA-LGG, Pedano et al. 2016 (doi:10.7937/K9/TCIA.2016.L4LTD3TK). The archive has a copy of FLAIR where a patient lacks
a sequence, and it is left so.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segsweep.core.errors import DataError
from segsweep.segmentation.data import images, source
from segsweep.segmentation.data.source import Manifest

PLACES = ("", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m")
"""Where the patients' folders may be under `data.root`; the archive holds them twice."""


@dataclass(frozen=True, kw_only=True)
class LGG:
    """Folders <patient>/ with <patient>_<k>.tif, RGB (pre-contrast, FLAIR, post-contrast), and <patient>_<k>_mask.tif.

    root: the archive's root, its kaggle_3m/ or the nested copy. image_size: pixels a side, or height and width, area
    mean; None: the files'. normalise: zscore, percentile or unit. model_width: the network width that suits the images,
    for `model.width`. patch: pixels a side, or height and width, of the crops that a network is trained on; None: whole
    images."""

    root: str
    image_size: source.Size
    normalise: str
    model_width: int
    patch: source.Size = None

    def __post_init__(self) -> None:
        source.check_root(self.root)
        source.check_common(self.image_size, self.normalise, self.model_width, self.patch)

    def scan(self, cache: Path) -> Manifest:
        """The manifest of the patients' folders; other files are ignored. Raises DataError."""
        root = source.folder(self.root)
        for place in PLACES:
            found, masks, empty = _patients(root / place)
            if found or masks:
                break
        else:
            inside = (
                " (this is one patient's folder: give the one above)" if _patients(root.absolute().parent)[0] else ""
            )
            raise DataError(
                f"data.root={self.root}: no patients found{inside}; expected folders such as TCGA_CS_4941_19960909 "
                f"with files <folder>_<k>.tif and <folder>_<k>_mask.tif, in it or in {' or '.join(PLACES[1:])}"
            )
        if empty:
            raise DataError(f"patient {empty[0]}: {root / place / empty[0]} has no files {empty[0]}_<k>.tif")
        made = source.manifest(root / place, source.pair(found, masks), cache, images.look, images.read)
        return replace(made, room=source.room(self.image_size))

    def decode(self, manifest: Manifest, patient: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (D, H, W, 3) uint8 and masks (D, H, W) uint8 of {0, 1} of one patient. Raises DataError."""
        return images.decode(patient, manifest.files[patient], self.image_size, channels=3, room=manifest.room)


def _patients(place: Path) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str], list[str]]:
    """Image files and mask files under (patient, slice), and the patients' folders that have neither."""
    found: tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]] = {}, {}
    empty = []
    try:
        folders = sorted(entry.name for entry in os.scandir(place) if entry.is_dir()) if place.is_dir() else []
        for patient in folders:
            name = re.compile(re.escape(patient) + r"_(\d+)(_mask)?\.tif")
            before = len(found[0]) + len(found[1])
            for entry in os.scandir(place / patient):
                if match := name.fullmatch(entry.name):
                    found[match[2] is not None][patient, f"{patient}_{match[1]}"] = entry.path
            if patient.startswith("TCGA_") and len(found[0]) + len(found[1]) == before:
                empty.append(patient)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return *found, empty
