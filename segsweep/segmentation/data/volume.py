"""NIfTI volumes as slices: turned so that their axes are the patient's, cut along one, and put together again.

A slice is addressed as `scan.nii.gz#2:17`, the 18th along the axis 2, so that what reads image files reads it as one.
Axes are those of the patient, whatever order the file has them in: 0 from left to right, 1 from back to front, 2 from
the feet to the head; a slice's rows begin in front, or at the head.
"""

import functools
import gzip
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core import child
from segsweep.core.errors import DataError
from segsweep.core.masks import first_line

SUFFIXES = (".nii", ".nii.gz")
ADDRESS = re.compile(r"^(?P<file>.*\.nii(?:\.gz)?)#(?P<axis>[012]):(?P<place>\d+)$", re.DOTALL)
MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Units of a header that are others than millimetres, which the rest is taken for."""
MOST = 1 << 31
"""Values of a volume."""
SIGNED = 32768
"""Added to whole numbers with a sign, which become whole numbers of 16 bit."""


@dataclass(frozen=True)
class Header:
    """What a volume says of itself. shape: slices, rows and columns along an axis. spacing: of the same, millimetres;
    None where the file has none, as its affine is the identity. affine: once its axes are the patient's. stored: the
    type of its values."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    affine: np.ndarray
    stored: str

    def at(self, size: tuple[int, int]) -> tuple[float, float, float] | None:
        """The spacing where slices are brought to rows and columns of a `size`."""
        if self.spacing is None:
            return None
        depth, row, column = self.spacing
        return depth, row * self.shape[1] / size[0], column * self.shape[2] / size[1]


def is_volume(file: str | Path) -> bool:
    return str(file).endswith(SUFFIXES)


def address(file: str | Path, axis: int, place: int) -> str:
    return f"{file}#{axis}:{place}"


def stem(path: Path) -> str:
    """Of a file's name, and the number of the slice from 1 where it is a slice's address."""
    found = ADDRESS.match(path.name)
    name = found["file"] if found else path.name
    base = re.sub(r"\.nii(\.gz)?$", "", name) if is_volume(name) else path.stem
    return f"{base}_{int(found['place']) + 1:03}" if found else base


def file_of(address: str | Path) -> str:
    """The file that a slice is of; another file is itself."""
    found = ADDRESS.match(str(address))
    return found["file"] if found else str(address)


def _load(file: str) -> Any:
    """A nibabel image, its values not yet read. Raises DataError naming the file."""
    if not child.installed("nibabel"):
        raise DataError(f"{file}: reading NIfTI takes nibabel, which is not installed: pip install 'segsweep[nifti]'")
    import nibabel

    try:
        return nibabel.load(file)
    except Exception as error:  # nibabel, gzip and zlib raise a dozen kinds
        raise DataError(f"{file}: not a NIfTI volume: {first_line(error)}. Copy it again from the original") from error


def header(file: str, axis: int) -> Header:
    """Raises DataError naming the file."""
    image = _load(file)
    if len(image.shape) not in (3, 4) or min(image.shape) < 1:
        found = " x ".join(map(str, image.shape))
        raise DataError(f"{file}: {found}; expected three dimensions, or four with channels")
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import inv_ornt_aff, io_orientation

    values = math.prod(image.shape)
    needed = 0 if file.endswith(".gz") else image.dataobj.offset + values * image.get_data_dtype().itemsize
    if values > MOST or max(image.shape) > SIGNED or os.path.getsize(file) < needed:
        raise DataError(
            f"{file}: its header tells of {values:,} values, which are not there, or too many ({MOST:,} at most). Copy "
            "it again from the original"
        )
    sides = voxel_sizes(image.affine) if np.isfinite(image.affine).all() else np.zeros(3)
    if not (sides > 0).all() or abs(np.linalg.det(image.affine[:3, :3] / sides)) < 1e-6:
        raise DataError(f"{file}: its affine gives its voxels no place (zero, flat, or no numbers); mend the header")
    orientation = io_orientation(image.affine)
    places = [list(orientation[:, 0]).index(k) for k in _order(axis)]
    spacing = None
    if not np.allclose(image.affine, np.eye(4)):
        factor = MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)
        spacing = tuple(float(sides[k]) * factor for k in places)
    stored, scaled = image.get_data_dtype().newbyteorder("=").name, image.header.get_slope_inter()
    plain = scaled[0] in (None, 1) and scaled[1] in (None, 0)
    affine = image.affine @ inv_ornt_aff(orientation, image.shape[:3])
    shape = tuple(image.shape[k] for k in places)
    return Header(shape, spacing, affine, stored if plain else "scaled numbers")  # type: ignore[arg-type]


def check_mask(file: str, image: str, head: Header, axis: int) -> None:
    """Raise DataError naming a label volume that does not lie where its `image` does, whose header is `head`."""
    its = header(file, axis)
    if its.shape != head.shape:
        raise DataError(
            f"{file} is {' x '.join(map(str, its.shape))} along data.axis={axis}, its image {image} is "
            f"{' x '.join(map(str, head.shape))}; expected the same shape"
        )
    if not np.allclose(its.affine, head.affine, atol=1e-2):
        raise DataError(
            f"{file}: lies elsewhere in the patient than its image {image} (their affines differ by up to "
            f"{np.abs(its.affine - head.affine).max():.3g}); resample it, or mend the header"
        )


def _order(axis: int) -> tuple[int, int, int]:
    """The axes of a volume that slices, rows and columns lie along."""
    first, second = (k for k in range(3) if k != axis)
    return axis, second, first


@functools.lru_cache(maxsize=2)  # an image and its mask
def slices(file: str, axis: int, mask: bool, stamp: int) -> np.ndarray:
    """All slices of an image (D, H, W, C) or a mask (D, H, W), uint8 or uint16. Of an image whole numbers with a sign
    have SIGNED added, and numbers that are not whole, or larger, go from the least to the greatest to 0 to 65535; a
    mask's are as they are. `stamp`: when the file was written, so that a new one is read. Raises DataError naming the
    file."""
    image = _load(file)
    from nibabel.orientations import apply_orientation, io_orientation

    try:
        pixels = apply_orientation(np.asanyarray(image.dataobj), io_orientation(image.affine))
        if pixels.dtype.kind not in "iufb":
            raise ValueError(f"values of type {pixels.dtype}; expected plain numbers")
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        low, high = pixels.min(), pixels.max()
        whole = pixels.dtype.kind in "iu" or bool(np.isfinite([low, high]).all() and (pixels == np.rint(pixels)).all())
    except Exception as error:  # nibabel, gzip and zlib raise a dozen kinds
        raise DataError(
            f"{file}: truncated, or damaged: {first_line(error)}. Copy it again from the original"
        ) from error
    if not np.isfinite([low, high]).all():
        raise DataError(f"{file}: some values are no numbers, or infinite; mend the volume")
    if mask and pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if mask and (pixels.ndim != 3 or not whole or low < 0 or high > 65535):
        found = f"{' x '.join(map(str, pixels.shape))}, values from {low:g} to {high:g}"
        raise DataError(f"{file}: {found}; expected labels: three dimensions of whole numbers from 0 to 65535")
    if pixels.dtype == np.uint8 or mask:
        pixels = pixels.astype(np.uint8 if high < 256 else np.uint16)
    elif pixels.dtype != np.uint16 and whole and low >= -SIGNED and high < SIGNED:
        pixels = (pixels.astype(np.int64) + SIGNED).astype(np.uint16)
    elif pixels.dtype != np.uint16:
        share = (pixels.astype(np.float64) - low) / max(float(high - low), 1e-30)
        pixels = np.rint(share * 65535).astype(np.uint16)
    cut = pixels.transpose(*_order(axis), *range(3, pixels.ndim))[:, ::-1]
    cut = np.ascontiguousarray(cut if mask or cut.ndim == 4 else cut[..., None])
    cut.setflags(write=False)
    return cut


def read(address: str, mask: bool) -> np.ndarray | None:
    """The pixels of a slice as `images.read` gives those of a file; None where it is no slice's address."""
    found = ADDRESS.match(address)
    if not found:
        return None
    file = found["file"]
    stamp = os.stat(file).st_mtime_ns if os.path.exists(file) else 0
    return slices(file, int(found["axis"]), mask, stamp)[int(found["place"])]


def write(masks: np.ndarray, like: str, axis: int, file: Path) -> None:
    """Write the slices (D, H, W) of a volume, compressed, in the place and with the affine of the volume `like`."""
    import nibabel

    original: Any = nibabel.load(like)
    order = _order(axis)
    whole = masks[:, ::-1].transpose(*(order.index(k) for k in range(3)))
    turned = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.io_orientation(original.affine)
    )
    pixels = nibabel.orientations.apply_orientation(whole, turned)
    made = nibabel.Nifti1Image(np.ascontiguousarray(pixels), original.affine)
    made.header["xyzt_units"] = original.header["xyzt_units"]
    file.write_bytes(gzip.compress(made.to_bytes(), mtime=0))
