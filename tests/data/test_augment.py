"""Augmentation against transforms done by hand."""

import math

import pytest
import torch

from segsweep.core.errors import DataError
from segsweep.segmentation.data.augment import Affine, Flips, NoAugment, affine, warp


def batch(height=6, width=8, count=64):
    """Images whose first channel is their mask, so that the two can be compared after."""
    generator = torch.Generator().manual_seed(5)
    y = (torch.rand(count, 1, height, width, generator=generator) > 0.6).float()
    x = torch.cat([y, torch.rand(count, 2, height, width, generator=generator)], dim=1)
    return x.contiguous(memory_format=torch.channels_last), y


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def still(**changes):
    given = {"p": 1.0, "flip": 0.0, "degrees": 0.0, "scale": 0.0, "shift": 0.0, "intensity": 0.0}
    return Affine(**given | changes)


AUGMENTS = {
    "none": NoAugment(),
    "flips": Flips(horizontal=0.5, vertical=0.5),
    "affine": still(p=0.8, flip=0.5, degrees=20.0, scale=0.2, shift=0.1, intensity=0.1),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_shapes_layout_and_masks_stay_as_they_are(name):
    x, y = AUGMENTS[name](*batch(), generator())
    assert x.shape == (64, 3, 6, 8)
    assert y.shape == (64, 1, 6, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert set(y.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["flips", "affine"])
def test_the_generator_alone_decides(name):
    first, again, other = (AUGMENTS[name](*batch(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_each_image_is_flipped_by_itself_with_its_mask():
    x, y = batch()
    fx, fy = AUGMENTS["flips"](x, y, generator())
    assert torch.equal(fx[:, :1], fy)
    options = {
        "same": x, "left-right": x.flip(3), "upside down": x.flip(2), "both": x.flip(2, 3),
    }  # fmt: skip
    counts = {name: sum(torch.equal(a, b) for a, b in zip(fx, option, strict=True)) for name, option in options.items()}
    assert sum(counts.values()) == 64
    assert all(6 <= count <= 28 for count in counts.values())  # 16 each, give or take


@pytest.mark.parametrize(
    ("p", "axis"), [({"horizontal": 1.0, "vertical": 0.0}, 3), ({"horizontal": 0.0, "vertical": 1.0}, 2)]
)
def test_certain_flips(p, axis):
    x, y = batch()
    fx, fy = Flips(**p)(x, y, generator())
    assert torch.equal(fx, x.flip(axis))
    assert torch.equal(fy, y.flip(axis))


def moved(size=(6, 6), turn=0.0, factor=1.0, right=0.0, down=0.0, mirror=1.0):
    x, y = batch(*size, count=2)
    one = torch.ones(2)
    ratio = size[0] / size[1]
    matrix = affine(turn * one, factor * one, right * one, down * one, mirror * one, ratio)
    return x, y, *warp(x, y, matrix)


def test_a_quarter_turn_is_clockwise():
    x, y, wx, wy = moved(turn=math.pi / 2)
    torch.testing.assert_close(wx, torch.rot90(x, -1, (2, 3)))
    assert torch.equal(wy, torch.rot90(y, -1, (2, 3)))


def test_a_half_turn_of_an_oblong_image():
    x, y, wx, wy = moved(size=(6, 8), turn=math.pi)
    torch.testing.assert_close(wx, x.flip(2, 3))
    assert torch.equal(wy, y.flip(2, 3))


def test_an_oblong_image_is_turned_without_shear():
    y = torch.zeros(1, 1, 21, 41)
    y[..., 8:13, 15:26] = 1  # 11 pixels across, 5 down
    one = torch.ones(1)
    _, turned = warp(y, y, affine(math.pi / 2 * one, one, 0 * one, 0 * one, one, 21 / 41))
    expected = torch.zeros_like(y)
    expected[..., 5:16, 18:23] = 1
    assert torch.equal(turned, expected)


def test_a_mirror_comes_before_the_turn():
    x, _, wx, _ = moved(turn=math.pi / 2, mirror=-1.0)
    torch.testing.assert_close(wx, torch.rot90(x.flip(3), -1, (2, 3)))


def test_a_shift_is_a_share_of_the_side_and_repeats_the_border():
    x, y, wx, wy = moved(size=(6, 8), right=0.25, down=-1 / 6)
    torch.testing.assert_close(wx[:, :, :5, 2:], x[:, :, 1:, :6])
    torch.testing.assert_close(wx[:, :, :5, 0], x[:, :, 1:, 0])
    assert torch.equal(wy[:, :, :5, 2:], y[:, :, 1:, :6])


def test_twice_the_size_shows_the_middle_half():
    y = torch.zeros(1, 1, 8, 8)
    y[..., 3:5, 3:5] = 1
    one = torch.ones(1)
    _, larger = warp(y, y, affine(0 * one, 2 * one, 0 * one, 0 * one, one, 1.0))
    expected = torch.zeros_like(y)
    expected[..., 2:6, 2:6] = 1
    assert torch.equal(larger, expected)


def test_image_and_mask_are_moved_alike():
    x, y = AUGMENTS["affine"](*batch(24, 32), generator())
    x, _ = still(p=0.8, flip=0.5, degrees=20.0, scale=0.2, shift=0.1)(*batch(24, 32), generator())
    agree = (x[:, :1] > 0.5) == (y > 0.5)  # the first channel, interpolated, is the mask but for ties at edges
    assert agree.float().mean() > 0.85
    elsewhere = (x.roll(1, dims=0)[:, :1] > 0.5) == (y > 0.5)
    assert elsewhere.float().mean() < 0.6


def test_p_of_0_changes_nothing_and_of_1_everything():
    x, y = batch()
    wx, wy = still(p=0.0, flip=1.0, degrees=90.0, scale=0.5, shift=0.5, intensity=0.5)(x, y, generator())
    torch.testing.assert_close(wx, x)
    assert torch.equal(wy, y)
    wx, _ = still(degrees=90.0)(x, y, generator())
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(wx, x, strict=True))


def test_intensity_changes_contrast_and_brightness_of_each_channel_within_its_range():
    x, y = batch()
    wx, wy = still(intensity=0.2)(x, y, generator())
    assert torch.equal(wy, y)
    offsets = torch.stack([w[c][x[i, c] == 0].mean() for i, w in enumerate(wx) for c in (0,)])
    gains = torch.stack([w[0][x[i, 0] == 1].mean() for i, w in enumerate(wx)]) - offsets
    assert offsets.abs().max() <= 0.2 + 1e-5
    assert (gains - 1).abs().max() <= 0.2 + 1e-5
    assert offsets.std() > 0.08  # uniform on -0.2 to 0.2 has 0.115
    assert gains.std() > 0.08
    assert not torch.allclose(wx[:, 1] - x[:, 1], wx[:, 2] - x[:, 2], atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flips(horizontal=1.5, vertical=0.0), r"augment\.horizontal=1\.5: expected a number from 0 to 1"),
        (lambda: still(degrees=-5.0), r"augment\.degrees=-5"),
        (lambda: still(scale=1.0), r"augment\.scale=1"),
        (lambda: still(p="often"), r"augment\.p=often"),
    ],
)
def test_wrong_values_name_their_key(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_labels_of_classes_and_void_stay_what_they_are():
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0.0, 1, 2, 255])[torch.randint(4, (8, 1, 17, 23), generator=generator)]
    x = y.clone()
    turned = Affine(p=1.0, flip=0.5, degrees=90, scale=0.3, shift=0.2, intensity=0.0)
    for augment in (Flips(horizontal=0.5, vertical=0.5), turned):
        found = augment(x, y, torch.Generator().manual_seed(1))[1]
        assert not torch.equal(found, y)
        assert set(found.unique().tolist()) == {0, 1, 2, 255}
