"""Reading and resizing, on files written by Pillow and values worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from segsweep.core.errors import DataError
from segsweep.segmentation.data import images

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return str(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_rgb_and_grey_are_read_as_they_are(tmp_path, suffix):
    np.testing.assert_array_equal(images.read(save(tmp_path / f"rgb.{suffix}", RAMP)), RAMP)
    np.testing.assert_array_equal(images.read(save(tmp_path / f"l.{suffix}", RAMP[..., 0])), RAMP[..., :1])


def test_jpeg_is_read_within_its_loss(tmp_path):
    smooth = np.full((16, 16, 3), 90, np.uint8)
    assert np.abs(images.read(save(tmp_path / "a.jpg", smooth, quality=95)).astype(int) - 90).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_values(tmp_path, suffix):
    pixels = np.array([[0, 300], [40_000, 65_535]], np.uint16)
    found = images.read(save(tmp_path / f"a.{suffix}", pixels))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[..., 0], pixels)


def test_alpha_is_dropped_and_a_palette_gives_colours_or_indices(tmp_path):
    rgba = np.dstack([RAMP, np.full((4, 4), 7, np.uint8)])
    np.testing.assert_array_equal(images.read(save(tmp_path / "rgba.png", rgba)), RAMP)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode=None).convert("P")
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putdata([0, 1, 1, 0])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(images.read(str(tmp_path / "p.png"))[0], [[9, 8, 7], [200, 100, 50]])
    np.testing.assert_array_equal(images.read(str(tmp_path / "p.png"), mask=True), [[0, 1], [1, 0]])


def test_a_mask_may_be_one_bit_or_grey_saved_as_rgb(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "one.png")
    np.testing.assert_array_equal(images.read(str(tmp_path / "one.png"), mask=True), [[255, 0]])
    grey = save(tmp_path / "grey.png", np.dstack([np.array([[255, 0]], np.uint8)] * 3))
    np.testing.assert_array_equal(images.read(grey, mask=True), [[255, 0]])
    with pytest.raises(DataError, match="in colour"):
        images.read(save(tmp_path / "colour.png", RAMP), mask=True)


def test_files_alike_but_for_their_pixels_are_read_without_pillow_and_the_same(tmp_path, monkeypatch):
    files = [save(tmp_path / f"{k}.tif", np.roll(RAMP, k)) for k in range(3)]
    images._layouts.clear()
    images.read(files[0])
    tampered = tmp_path / "other.tif"  # the same length, and another header: SamplesPerPixel says so
    data = bytearray((tmp_path / "1.tif").read_bytes())
    assert data[:4] == b"II*\0"
    data[4:8] = (10_000).to_bytes(4, "little")
    tampered.write_bytes(data)
    with pytest.raises(DataError, match="truncated, or not an image"):
        images.read(str(tampered))
    monkeypatch.setattr(Image, "open", None)
    for k, file in enumerate(files):
        np.testing.assert_array_equal(images.read(file), np.roll(RAMP, k))


def test_a_compressed_file_never_takes_the_short_way(tmp_path):
    images._layouts.clear()
    file = save(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), compression="tiff_lzw")
    np.testing.assert_array_equal(images.read(file), np.zeros((64, 64, 1)))
    assert not images._layouts


def test_several_images_in_one_file_are_refused(tmp_path):
    pages = [Image.fromarray(RAMP + k) for k in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"stack\.tif: 3 images in one file"):
        images.read(str(tmp_path / "stack.tif"))


def test_floating_point_pixels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.tif: pixels of type float32"):
        images.read(save(tmp_path / "a.tif", np.ones((2, 2), np.float32)))


def test_area_mean_by_hand():
    grey = np.array([[10, 20, 1, 1], [30, 41, 1, 2], [0, 0, 255, 255], [0, 0, 255, 255]], np.uint8)[..., None]
    # 101 / 4 = 25.25, 5 / 4 = 1.25
    np.testing.assert_array_equal(images.resize(grey, 2)[..., 0], [[25, 1], [0, 255]])
    colour = np.concatenate([grey, 255 - grey, grey], axis=2)
    np.testing.assert_array_equal(images.resize(colour, 2)[..., 1], [[230, 254], [255, 0]])
    wide = (grey.astype(np.uint16) * 200).repeat(2, axis=1)  # (4, 8): stretched, 20200 / 4
    np.testing.assert_array_equal(images.resize(wide, 2)[..., 0], [[5050, 250], [0, 51_000]])
    assert images.resize(wide, 2).dtype == np.uint16


def test_area_mean_of_a_size_that_does_not_divide():
    column = np.array([[0], [92], [61]], np.uint8).repeat(3, axis=1)[..., None]
    # each half takes a row and a half: (0 + 92 / 2) / 1.5 = 30.7, (92 / 2 + 61) / 1.5 = 71.3
    np.testing.assert_array_equal(images.resize(column, 2)[..., 0], [[31, 31], [71, 71]])


@pytest.mark.parametrize("side", [4, 2])
def test_majority_takes_half_and_not_less(side):
    blocks = {7: 0, 8: 1, 9: 1} if side == 4 else {1: 0, 2: 1, 3: 1}
    for inside, expected in blocks.items():
        mask = (np.random.default_rng(0).permutation(side * side) < inside).reshape(side, side)
        assert images.resize_mask(np.tile(mask, (2, 2)), 2).tolist() == [[expected] * 2] * 2


def test_majority_of_a_size_that_does_not_divide():
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    # corner: (1 + .5 + .5) / 2.25; right: .5 / 2.25
    assert images.resize_mask(mask, 2).tolist() == [[1, 0], [0, 0]]
    half = np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0]])  # 1.5 / 2.25, and with row 2 as well 0
    assert images.resize_mask(half, 2).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("palette", [[0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]])
def test_a_gif_mask_is_white_in_the_structure_however_its_palette_is_ordered(tmp_path, palette):
    white = palette[0] == 0
    image = Image.fromarray(np.array([[0, 1, 1], [1, 0, 1]], np.uint8)).convert("P")
    image.putpalette(palette)
    image.putdata([0, 1, 1, 1, 0, 1])
    image.save(tmp_path / "m.gif", optimize=False)
    expected = np.array([[0, 1, 1], [1, 0, 1]]) == white
    np.testing.assert_array_equal(images.read(str(tmp_path / "m.gif"), mask=True), expected * 255)


def test_gifs_are_read_grey_in_colour_and_as_labels_and_a_film_is_refused(tmp_path):
    grey = RAMP[..., 0]
    np.testing.assert_array_equal(images.read(save(tmp_path / "grey.gif", grey))[..., 0], grey)
    colours = Image.fromarray(RAMP).quantize(48)
    colours.save(tmp_path / "colour.gif")
    np.testing.assert_array_equal(images.read(str(tmp_path / "colour.gif")), np.asarray(colours.convert("RGB")))
    labels = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    labels.putpalette([0, 0, 0, 9, 9, 9, 200, 9, 9])
    labels.putdata([0, 1, 2, 1])
    labels.save(tmp_path / "labels.gif", optimize=False)
    np.testing.assert_array_equal(images.read(str(tmp_path / "labels.gif"), mask=True), [[0, 1], [2, 1]])
    pages = [Image.fromarray(grey + k) for k in range(2)]
    pages[0].save(tmp_path / "film.gif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"film\.gif: 2 images in one file"):
        images.read(str(tmp_path / "film.gif"))


def test_what_pillow_would_start_a_program_for_is_no_image(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.check_call", lambda *given, **more: pytest.fail(f"started {given}"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    with pytest.raises(DataError, match="not an image"):
        images.read(str(tmp_path / "a.png"))
    assert images.look((tmp_path / "a.png").read_bytes()) == (True, None)


@pytest.mark.parametrize("kind", ["bmp", "rgb", "turned"])
@pytest.mark.parametrize("first", ["empty", "symmetric"])
def test_one_file_whose_pixels_do_not_tell_how_they_lie_decides_of_no_other(tmp_path, kind, first):
    """Upside down in the file, three bytes a pixel, or to be turned when it is shown: all three are the same in a mask
    that is empty, or the same from below."""
    options = {"tiffinfo": {images.ORIENTATION: 3}} if kind == "turned" else {}
    plain, mask = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    plain[4:12, 4:12] = 255 * (first == "symmetric")
    mask[1:4, 2:5] = 255
    suffix = "bmp" if kind == "bmp" else "tif"
    files = [tmp_path / f"{n}.{suffix}" for n in range(2)]
    for file, pixels in zip(files, (plain, mask), strict=True):
        save(file, np.dstack([pixels] * 3) if kind == "rgb" else pixels, **options)
    images._layouts.clear()
    alone = images.read(str(files[1]), mask=True)
    images._layouts.clear()
    images.read(str(files[0]), mask=True)
    np.testing.assert_array_equal(images.read(str(files[1]), mask=True), alone)
    np.testing.assert_array_equal(alone, mask[::-1, ::-1] if kind == "turned" else mask)
