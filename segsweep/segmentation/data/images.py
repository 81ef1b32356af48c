"""Image and mask files to arrays: read, checked, and brought to one size.

Pillow reads every format; files that differ from one that it has read in their pixels alone are taken as they lie.
"""

import functools
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from segsweep.core.errors import DataError
from segsweep.segmentation.data import volume
from segsweep.segmentation.data.labels import MOST, ONE, OUTSIDE, PADDED, VOID, Labels
from segsweep.segmentation.data.source import Size, listed

# Opening a file in Pillow costs more than copying its pixels, and the files of one data set are often uncompressed and
# alike. Where every byte before and after the pixels equals that of a file which Pillow has read, so does the result.
_layouts: dict[tuple[int, bool], tuple[bytes, bytes, tuple[int, ...]]] = {}


FORMATS = ("PNG", "TIFF", "GIF", "JPEG", "BMP", "PPM")
"""Of Pillow's: it goes by contents, and of some others it starts programs."""


def read(file: str, mask: bool = False) -> np.ndarray:
    """Pixels of an image file as (H, W, C), or of a mask file as (H, W); uint8 or uint16, not to be written to.

    Alpha is dropped; a palette gives colours for an image and indices for a mask, but black and white of a GIF are 0
    and 255; a mask saved as RGB must be grey.
    Raises DataError naming the file."""
    if (pixels_of_slice := volume.read(file, mask)) is not None:
        return pixels_of_slice
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if known := _layouts.get((len(data), mask)):
        head, tail, shape = known
        if data.startswith(head) and data.endswith(tail):
            return np.frombuffer(data, np.uint8, len(data) - len(head) - len(tail), len(head)).reshape(shape)
    try:
        with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # of odd tags: what cannot be read raises
            turned = getattr(image, "tag_v2", {}).get(ORIENTATION, 1) != 1  # Pillow turns it, and has forgotten then
            tiles, mode = list(image.tile), image.mode
            frames, pixels = getattr(image, "n_frames", 1), _pixels(image, mask)
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise DataError(f"{file}: truncated, or not an image: {error}. Copy it again from the original") from error
    if frames != 1:
        raise DataError(f"{file}: {frames} images in one file; expected one slice a file")
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() < 1 << 16:  # some Pillows read 16 bit as 32
        pixels = pixels.astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        found = f" from {pixels.min():g} to {pixels.max():g}"
        raise DataError(f"{file}: pixels of type {pixels.dtype}{found}; expected 8 or 16 bit whole numbers, at least 0")
    if mask and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{file}: a mask in colour; expected one channel with two values (is it an image?)")
        pixels = pixels[..., 0]
    elif not mask and pixels.ndim == 2:
        pixels = pixels[..., None]
    if tiles and not turned and pixels.dtype == np.uint8 and _lies(tiles, mode, pixels):
        start, end = tiles[0][2], tiles[0][2] + pixels.size
        if data[start:end] == pixels.tobytes():
            _layouts[len(data), mask] = data[:start], data[end:], pixels.shape
    return pixels


def _lies(tiles: Sequence[Any], mode: str, pixels: np.ndarray) -> bool:
    """Whether a file has `pixels` as they are, row after row from the first: what they are does not tell, where they
    are all alike, or the same upside down."""
    start, row = tiles[0][2], pixels[0].size
    return row == pixels.shape[1] * {"L": 1, "P": 1, "RGB": 3}.get(mode, 0) and all(
        (codec, left, right, place) == ("raw", 0, pixels.shape[1], start + top * row) and args in (mode, (mode, 0, 1))
        for codec, (left, top, right, _), place, args in tiles
    )


ORIENTATION = 274
"""Tag of a TIFF: where the first row and column are, 1 at the top and left."""
_STRIPS = ((273, 324), (279, 325))
"""Tags of a TIFF: where its strips, or tiles, begin, and how long they are."""


def look(data: bytes) -> tuple[bool, tuple[int, int] | None]:
    """Whether an image file's content may be none that `read` takes, by all that can be told without decoding it: its
    header, a PNG's checksums, where a TIFF's strips and a JPEG end. And its height and width, None where even these
    cannot be read."""
    shape = None
    try:
        # in threads: whoever starts them has warnings of odd tags ignored
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            shape = image.size[1], image.size[0]
            odd = image.mode in ("F", "I") or getattr(image, "n_frames", 1) != 1
            if odd or image.format not in ("TIFF", "JPEG", "PNG"):
                return True, shape
            if image.format == "JPEG":
                return b"\xff\xd9" not in data[-4096:], shape
            if image.format == "PNG":
                image.verify()
                return False, shape
            tags: Any = vars(image)["tag_v2"]
            starts, counts = (tags.get(strips) or tags.get(tiles) or () for strips, tiles in _STRIPS)
            return max(map(sum, zip(starts, counts, strict=True))) > len(data), shape
    except Exception:  # Pillow raises a dozen kinds for broken files
        return True, shape


def _pixels(image: Image.Image, mask: bool) -> np.ndarray:
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L"))
    if mask and image.format == "GIF" and image.mode == "P":
        grey = np.asarray(image.convert("L"))
        colours = np.asarray(image.convert("RGB"))
        if (colours == grey[..., None]).all() and set(np.unique(grey)) <= {0, 255}:
            return grey  # black and white, in whatever order the palette has them
    if image.mode in ("RGBA", "RGBX", "PA") or (image.mode == "P" and not mask):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("L", "P", "RGB", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        return pixels.astype(pixels.dtype.newbyteorder("="))
    raise ValueError(f"its colour mode is {image.mode}; expected grey, RGB or a palette")


def target(shape: Sequence[int], size: Size) -> tuple[int, int]:
    """The height and width that an image of `shape` gets: both `size`, what fits into a height and a width with the
    image's own ratio, or its own."""
    if size is None or isinstance(size, int):
        return (shape[0], shape[1]) if size is None else (size, size)
    ratio = min(size[0] / shape[0], size[1] / shape[1])
    height, width = (max(1, min(most, round(side * ratio))) for side, most in zip(shape, size, strict=False))
    return height, width


def resize(image: np.ndarray, size: Size, region: np.ndarray | None = None) -> np.ndarray:
    """(H, W, C) to its `target` by area mean, rounded; to a number an image that is not square is stretched. Of a
    `region` (H, W) of bool the mean is over what lies in it, and 0 where nothing does."""
    (height, width, channels), (rows, columns) = image.shape, target(image.shape, size)
    if region is not None:
        image = np.where(region[..., None], image, 0)
    if (height, width) == (rows, columns):
        return image
    if region is not None:
        share = _area_mean(region[..., None], rows, columns)
        mean = np.zeros((rows, columns, channels))
        np.divide(_area_mean(image, rows, columns), share, where=share > 1e-9, out=mean)
        return np.floor(mean.clip(0, np.iinfo(image.dtype).max) + 0.5).astype(image.dtype)
    if image.dtype == np.uint8 and channels in (1, 3) and height % rows == width % columns == 0:
        small = Image.fromarray(image[..., 0] if channels == 1 else image).reduce((width // columns, height // rows))
        return np.asarray(small).reshape(rows, columns, channels)
    return np.floor(_area_mean(image, rows, columns) + 0.5).astype(image.dtype)


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) of {0, 1} to its `target`, uint8, by majority: 1 where at least half of the area is."""
    (height, width), (rows, columns) = mask.shape, target(mask.shape, size)
    if (height, width) == (rows, columns):
        return mask.astype(np.uint8)
    if not mask.any():
        return np.zeros((rows, columns), np.uint8)
    if height % rows == width % columns == 0:  # `reduce` takes the exact mean, halves up: one half of 255 becomes 128
        small = Image.fromarray(mask.astype(np.uint8) * 255).reduce((width // columns, height // rows))
        return (np.asarray(small) >= 128).astype(np.uint8)
    return (_area_mean(mask[..., None], rows, columns)[..., 0] > 0.5 - 1e-6).astype(np.uint8)


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) uint8 of classes, OUTSIDE and VOID to its `target`: what has the largest share of the area; of equal
    shares the later class, VOID last of all. OUTSIDE where more than half of the area is, whatever the classes."""
    rows, columns = target(labels.shape, size)
    if labels.shape == (rows, columns):
        return labels
    present = np.unique(labels)
    ordered = [*present[present < OUTSIDE][::-1], *present[present == VOID]]
    shares = _area_mean(labels[..., None] == np.array(ordered, np.uint8), rows, columns)
    small = np.array(ordered, np.uint8)[(shares + np.linspace(1e-6, 0, len(ordered))).argmax(axis=2)]
    return np.where(resize_mask(labels != OUTSIDE, size), small, np.uint8(OUTSIDE))


def padded(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Images (h, w, C) of one type and masks (h, w) uint8 as (D, *room, C) and (D, *room): each in the upper left, 0
    and PADDED beside it."""
    whole = np.zeros((len(images), *room, images[0].shape[2]), images[0].dtype)
    codes = np.full((len(images), *room), PADDED, np.uint8)
    for place, (image, mask) in enumerate(zip(images, masks, strict=True)):
        whole[place, : mask.shape[0], : mask.shape[1]] = image
        codes[place, : mask.shape[0], : mask.shape[1]] = mask
    return whole, codes


def _area_mean(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """For sizes that do not divide, where Pillow's box filter gives a pixel wholly to one side."""
    rows, columns = (_overlap(*lengths) for lengths in zip(image.shape, (height, width), strict=False))
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns, optimize=True)


@functools.cache
def _overlap(length: int, size: int) -> np.ndarray:
    """(size, length): how much of each new pixel each old one covers."""
    edges, old = np.linspace(0, length, size + 1), np.arange(length)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.maximum(covered, 0) * size / length


def decode(
    patient: str,
    files: list[tuple[str, ...]],
    size: Size,
    channels: int | None = None,
    labels: Labels = ONE,
    room: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One patient's (image file, mask file) pairs to images (D, H, W, C) uint8 or uint16 and masks (D, H, W) uint8, of
    {0, 1}, or of the classes of `labels`; VOID where those ignore what is there. Where a third file has the region of
    interest, what is outside it is read no further: masks are OUTSIDE there, and images 0.

    channels: how many the images must have; None: as many as the patient's first. room: to which images are padded,
    which may then be of several sizes; masks are PADDED there.
    Raises DataError naming the file: unreadable, another shape, or a mask that is none."""
    first = read(files[0][0])
    found: list[tuple[np.ndarray, np.ndarray]] = []
    inside = 0  # the masks' value in the structure
    for image_file, mask_file, *region_file in files:
        image, mask = read(image_file), read(mask_file, mask=True)
        if channels and image.shape[2] != channels:
            hint = " (is it a mask?)" if len(np.unique(image)) <= 2 else ""
            raise DataError(f"{image_file}: found {_shape(image)}; expected images of {channels} channels{hint}")
        start = 0 if room is None else 2
        if (image.shape[start:], image.dtype) != (first.shape[start:], first.dtype):
            one = "shape" if room is None else "number of channels, and of bits,"
            several = f"; data.image_size=null or [{size},{size}] takes several sizes" if isinstance(size, int) else ""
            raise DataError(
                f"patient {patient}: {image_file} is {_shape(image)}, {files[0][0]} is {_shape(first)}; "
                f"expected one {one} for all slices of a patient{several}"
            )
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{mask_file} is {_shape(mask)}, its image {image_file} is {_shape(image)}; expected the same size"
            )
        region = region_of(region_file[0], image_file, image) if region_file else None
        known = mask if region is None else mask[region]
        codes, inside = _codes(known, mask_file, labels, inside)
        if region is not None:
            mask, image = np.where(region, mask, 0), np.where(region[..., None], image, 0)
        found.append(sized(image, codes, size, labels, region, mask_file))
        if mask.any() and not mask.all():
            filled = np.count_nonzero(image) == np.count_nonzero(mask) * image.shape[2]
            if filled and np.array_equal(image.any(axis=2), mask > 0):
                raise DataError(
                    f"{image_file}: only where its mask {mask_file} is, it is not 0; a mask was given as the image"
                )
    images, masks = zip(*found, strict=True)
    return (np.stack(images), np.stack(masks)) if room is None else padded(images, masks, room)


def _codes(known: np.ndarray, file: str, labels: Labels, inside: int) -> tuple[np.ndarray, int]:
    """Values of a mask's file as what the program has for them, and the structure's, which is one in all of a patient's
    masks, 0 where nobody knows it yet. Raises DataError naming the file."""
    if labels.names:
        return labels.read(known, file), inside
    void = np.isin(known, labels.ignore)
    inside = _check_mask(np.where(void, 0, known), file, inside) or inside
    return np.where(void, VOID, known > 0).astype(np.uint8) if labels.ignore else known > 0, inside


def values(file: str) -> list[int]:
    """That a mask has, in order. Raises DataError naming the file."""
    return np.flatnonzero(np.bincount(read(file, mask=True).ravel())).tolist()


def check_values(masks: Sequence[tuple[str, Sequence[int]]], labels: Labels) -> None:
    """Raise DataError as `decode` does of a patient's masks, each with its `values`."""
    inside = 0
    for file, known in masks:
        _, inside = _codes(np.array(known), file, labels, inside)


def sized(
    image: np.ndarray, codes: np.ndarray, size: Size, labels: Labels, region: np.ndarray | None, file: str
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, C) and its mask at `size`; `codes`: of the classes of `labels`, (H, W), or of what lies in the
    `region` (H, W) of bool alone. Raises DataError naming the mask's file where nothing of a region is left."""
    if region is None:
        several = labels.names or labels.ignore
        return resize(image, size), (resize_labels if several else resize_mask)(codes, size)
    whole = np.full(region.shape, OUTSIDE, np.uint8)
    whole[region] = codes
    small = resize_labels(whole, size)
    if (small == OUTSIDE).all():
        raise DataError(f"{file}: its region of interest (data.roi) has no pixel left at data.image_size={size}")
    return np.where(small[..., None] == OUTSIDE, 0, resize(image, size, region)), small


def region_of(file: str, image_file: str, image: np.ndarray) -> np.ndarray:
    """Where an image counts, (H, W) of bool, by the file of its region of interest. Raises DataError naming it."""
    found = read(file, mask=True)
    if found.shape != image.shape[:2]:
        raise DataError(f"{file} is {_shape(found)}, its image {image_file} is {_shape(image)}; expected the same size")
    if not _check_mask(found, file, 0):
        raise DataError(
            f"{file}: a region of interest (data.roi) without pixels, so that nothing of {image_file} would count; "
            "expected 255, or 1, where it does: mend the file, or take the slice away"
        )
    return found > 0


def _check_mask(mask: np.ndarray, file: str, inside: int) -> int:
    """The mask's one value beside 0, or 0. Raise DataError for more, or another than `inside` where that is not 0."""
    top = int(mask.max(initial=0))
    if top == 0:
        return 0
    if top not in (1, 255, 65535) or np.count_nonzero(mask) != np.count_nonzero(mask == top):
        values = np.unique(mask)
        hint = f"; a label image of several classes: data.classes={values[-1] + 1}" if values[-1] < MOST - 1 else ""
        hint = " (is it an image, or compressed with loss as JPEG is?)" if len(values) > 8 else hint
        found = listed(map(str, values), 4)
        raise DataError(f"{file}: a mask with the values {found}; expected 0 and 255, or 0 and 1{hint}")
    if inside not in (0, top):
        raise DataError(
            f"{file}: a mask with the value {top} where the patient's other masks have {inside}; expected one of them"
        )
    return top


def _shape(pixels: np.ndarray) -> str:
    return " x ".join(map(str, pixels.shape)) + (" of 16 bit" if pixels.dtype == np.uint16 else "")
