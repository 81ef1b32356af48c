"""Image and mask files to arrays: read, checked, and brought to one size.

Pillow reads every format; files that differ from one that it has read in their pixels alone are taken as they lie.
"""

import warnings

import numpy as np
from PIL import Image

from segsweep.data.source import listed
from segsweep.errors import DataError

# Opening a file in Pillow costs more than copying its pixels, and the files of one data set are often uncompressed and
# alike. Where every byte before and after the pixels equals that of a file which Pillow has read, so does the result.
_layouts: dict[tuple[int, bool], tuple[bytes, bytes, tuple[int, ...]]] = {}


def read(file: str, mask: bool = False) -> np.ndarray:
    """Pixels of an image file as (H, W, C), or of a mask file as (H, W); uint8 or uint16, not to be written to.

    Alpha is dropped; a palette gives colours for an image and indices for a mask; a mask saved as RGB must be grey.
    Raises DataError naming the file."""
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
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # of odd tags: what cannot be read raises
            tiles, frames, pixels = list(image.tile), getattr(image, "n_frames", 1), _pixels(image, mask)
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise DataError(f"{file}: truncated, or not an image: {error}. Copy it again from the original") from error
    if frames != 1:
        raise DataError(f"{file}: {frames} images in one file; expected one slice a file")
    if pixels.dtype == np.int32 and 0 <= pixels.min() and pixels.max() < 1 << 16:  # some Pillows read 16 bit as 32
        pixels = pixels.astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{file}: pixels of type {pixels.dtype}; expected 8 or 16 bit whole numbers")
    if mask and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{file}: a mask in colour; expected one channel with two values (is it an image?)")
        pixels = pixels[..., 0]
    elif not mask and pixels.ndim == 2:
        pixels = pixels[..., None]
    if tiles and all(tile[0] == "raw" for tile in tiles) and pixels.dtype == np.uint8:
        start, end = tiles[0][2], tiles[0][2] + pixels.size
        if data[start:end] == pixels.tobytes():
            _layouts[len(data), mask] = data[:start], data[end:], pixels.shape
    return pixels


def _pixels(image: Image.Image, mask: bool) -> np.ndarray:
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L"))
    if image.mode in ("RGBA", "RGBX", "PA") or (image.mode == "P" and not mask):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("L", "P", "RGB", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        return pixels.astype(pixels.dtype.newbyteorder("="))
    raise ValueError(f"its colour mode is {image.mode}; expected grey, RGB or a palette")


def resize(image: np.ndarray, size: int | None) -> np.ndarray:
    """(H, W, C) to (size, size, C) by area mean, rounded; an image that is not square is stretched."""
    height, width, channels = image.shape
    if size is None or (height, width) == (size, size):
        return image
    if image.dtype == np.uint8 and channels in (1, 3):
        small = _area_mean(Image.fromarray(image[..., 0] if channels == 1 else image), size)
        return np.asarray(small).reshape(size, size, channels)
    planes = [_area_mean(Image.fromarray(image[..., c].astype(np.float32)), size) for c in range(channels)]
    return np.stack(planes, axis=-1).round().astype(image.dtype)


def resize_mask(mask: np.ndarray, size: int | None) -> np.ndarray:
    """(H, W) of {0, 1} to (size, size) uint8 by majority: 1 where at least half of the area is."""
    if size is None or mask.shape == (size, size):
        return mask.astype(np.uint8)
    if mask.shape[0] % size or mask.shape[1] % size:
        return (np.asarray(_area_mean(Image.fromarray(mask.astype(np.float32)), size)) > 0.5 - 1e-6).astype(np.uint8)
    # `reduce` takes the exact mean and rounds once, halves up: 127.5 of 255, one half, becomes 128.
    return (np.asarray(_area_mean(Image.fromarray(mask.astype(np.uint8) * 255), size)) >= 128).astype(np.uint8)


def _area_mean(image: Image.Image, size: int) -> Image.Image:
    if image.width % size or image.height % size:
        return image.resize((size, size), Image.Resampling.BOX)
    return image.reduce((image.width // size, image.height // size))


def decode(
    patient: str, files: list[tuple[str, str]], size: int | None, channels: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One patient's (image file, mask file) pairs to images (D, H, W, C) uint8 or uint16 and masks (D, H, W) of {0, 1}.

    channels: how many the images must have; None: as many as the patient's first.
    Raises DataError naming the file: unreadable, another shape, or a mask that is none."""
    images, masks = [], []
    first: tuple[np.ndarray, str] | None = None
    inside = 0  # the mask's value in the structure, 1 or 255
    for image_file, mask_file in files:
        image, mask = read(image_file), read(mask_file, mask=True)
        if channels and image.shape[2] != channels:
            raise DataError(
                f"{image_file}: an image of {image.shape[2]} channel{'s'[: image.shape[2] > 1]}; expected {channels}"
                + (" (is it a mask?)" if len(np.unique(image)) <= 2 else "")
            )
        first = first or (image, image_file)
        if (image.shape, image.dtype) != (first[0].shape, first[0].dtype):
            raise DataError(
                f"patient {patient}: {image_file} is {_shape(image)}, {first[1]} is {_shape(first[0])}; "
                "the slices of a patient must have one shape"
            )
        if mask.shape != image.shape[:2]:
            raise DataError(f"{mask_file} is {_shape(mask)}, its image {image_file} is {_shape(image)}; expected the same")
        inside = _check_mask(mask, mask_file, inside)
        if inside and mask.any() and (image.astype(bool) == mask.astype(bool)[..., None]).all():
            raise DataError(f"{image_file}: its pixels are those of its mask {mask_file}; a mask was given as the image")
        images.append(resize(image, size))
        masks.append(resize_mask(mask > 0, size))
    return np.stack(images), np.stack(masks)


def _check_mask(mask: np.ndarray, file: str, inside: int) -> int:
    """Raise DataError unless the mask has 0 and at most one of 1, 255 (or 65535), the same in all of a patient's."""
    top = int(mask.max())
    if top == 0:
        return inside
    if top not in (1, 255, 65535) or np.count_nonzero(mask) != np.count_nonzero(mask == top):
        values = np.unique(mask)
        raise DataError(
            f"{file}: a mask with {len(values)} values ({listed(map(str, values), 4)}); expected 0 and 255, or 0 and 1"
            + (" (is it an image, or compressed with loss as JPEG is?)" if len(values) > 8 else "")
        )
    if inside not in (0, top):
        raise DataError(f"{file}: the mask's value is {top}, in the patient's other masks {inside}; expected one of them")
    return top


def _shape(pixels: np.ndarray) -> str:
    return " x ".join(map(str, pixels.shape)) + (" 16 bit" if pixels.dtype == np.uint16 else "")
