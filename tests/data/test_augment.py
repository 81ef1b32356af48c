"""Augmentation against transforms done by hand."""

import dataclasses
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
    "all": still(flip=0.5, degrees=20.0, noise=0.5, blur=0.5, brightness=0.5, contrast=0.5, gamma=0.5),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_shapes_layout_and_masks_stay_as_they_are(name):
    x, y = AUGMENTS[name](*batch(), generator())
    assert x.shape == (64, 3, 6, 8)
    assert y.shape == (64, 1, 6, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert set(y.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["flips", "affine", "all"])
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
        (lambda: still(noise=1.5), r"augment\.noise=1\.5: expected a number from 0 to 1"),
        (lambda: Flips(horizontal=0.0, vertical=0.0, contrast_max=2), r"augment\.contrast_max=2"),
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


VALUES = ("noise", "blur", "brightness", "contrast", "gamma")


def changed(x, **given):
    """What changes of values alone make of images."""
    y = torch.zeros(len(x), 1, *x.shape[2:])
    fx, fy = Flips(horizontal=0.0, vertical=0.0, **given)(x, y, generator())
    assert torch.equal(fy, y)
    return fx


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("make", [Flips, Affine])
def test_a_change_of_values_has_its_own_probability(make, name):
    x, y = batch(12, 16)
    zero = {"horizontal": 0.0, "vertical": 0.0} if make is Flips else {"p": 0.0} | dict.fromkeys(
        ("flip", "degrees", "scale", "shift", "intensity"), 0.0
    )  # fmt: skip
    before, _ = make(**zero)(x, y, generator())
    for p, low, high in ((0.5, 16, 48), (1.0, 64, 64)):
        after, masks = make(**zero, **{name: p})(x, y, generator())
        assert torch.equal(masks, make(**zero)(x, y, generator())[1])
        kept = sum(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert 64 - high <= kept <= 64 - low


def test_at_0_nothing_is_drawn_and_no_bit_changes():
    for name in ("flips", "affine"):
        plain, zero = generator(3), generator(3)
        x, _ = AUGMENTS[name](*batch(), plain)
        more = {f"{key}_max": 1.0 for key in VALUES}
        z, _ = dataclasses.replace(AUGMENTS[name], **more)(*batch(), zero)
        assert torch.equal(x, z)
        assert torch.equal(plain.get_state(), zero.get_state())


def test_noise_has_no_mean_and_a_deviation_up_to_its_greatest():
    found = changed(torch.zeros(200, 2, 16, 16), noise=1.0, noise_max=0.4)
    deviation = found.flatten(1).std(1)
    assert found.mean().abs() < 0.01
    assert deviation.max() < 0.45
    assert deviation.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.2)  # uniform


def test_a_blur_is_a_gaussian_of_each_image_and_keeps_what_is_even():
    from scipy.ndimage import gaussian_filter

    x = torch.randn(6, 2, 24, 20, generator=generator(1)).contiguous(memory_format=torch.channels_last)
    found = changed(x, blur=1.0, blur_max=2.0)
    draws = generator()
    torch.rand(6, generator=draws)  # whether
    for image, blurred, deviation in zip(x, found, 1 + torch.rand(6, generator=draws), strict=True):
        for c in range(2):
            expected = gaussian_filter(image[c].numpy(), float(deviation), mode="nearest", radius=6)
            torch.testing.assert_close(blurred[c], torch.from_numpy(expected), atol=1e-5, rtol=1e-4)
    even = torch.full((3, 1, 5, 5), 7.0)
    torch.testing.assert_close(changed(even, blur=1.0, blur_max=20.0), even)  # wider than the image


def test_brightness_shifts_and_contrast_stretches_each_channel_about_its_mean():
    x = torch.randn(300, 2, 8, 8, generator=generator(1))
    shift = (changed(x, brightness=1.0, brightness_max=0.5) - x).flatten(2)
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), atol=1e-5, rtol=0)
    stretched = changed(x, contrast=1.0, contrast_max=0.5)
    torch.testing.assert_close(stretched.mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)
    factor = stretched.flatten(2).std(2) / x.flatten(2).std(2) - 1
    for amounts in (shift[..., 0], factor):
        assert 0.45 < amounts.abs().max() <= 0.5 + 1e-5
        assert amounts.std() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)
        assert not torch.allclose(amounts[:, 0], amounts[:, 1], atol=0.05)


def test_gamma_keeps_range_and_order_and_is_as_often_above_as_below():
    x = torch.linspace(-2, 6, 65).expand(400, 1, 1, 65).contiguous()
    found = changed(x, gamma=1.0, gamma_max=0.5)
    torch.testing.assert_close(found[..., [0, -1]], x[..., [0, -1]])
    assert (found.diff() > 0).all()
    power = ((found[..., 32] + 2) / 8).log() / math.log(0.5)
    assert power.min() >= 1 / 1.5 - 1e-3
    assert power.max() <= 1.5 + 1e-3
    assert 150 < (power > 1).sum() < 250
    flat = torch.full((4, 1, 3, 3), 2.0)
    assert torch.equal(changed(flat, gamma=1.0), flat)


def test_the_settings_at_rest_are_those_of_conf_and_of_the_classes():
    from omegaconf import OmegaConf

    from segsweep.config.schema import conf_dir
    from segsweep.segmentation.metrics import SPEC

    rest = {key.partition(".")[2]: value for key, value in SPEC.neutral.items() if key.startswith("augment.")}
    assert rest == dict.fromkeys(VALUES, 0)
    for name, made in (("flips", Flips), ("affine", Affine)):
        given = OmegaConf.load(conf_dir() / "augment" / f"{name}.yaml")
        defaults = {field.name: field.default for field in dataclasses.fields(made)}
        assert {key: given[key] for key in VALUES} == {key: defaults[key] for key in VALUES} == rest
