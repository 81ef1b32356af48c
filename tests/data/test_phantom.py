"""The made-up data set: what it promises about itself, with conf/'s values."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from segsweep.core.errors import DataError
from segsweep.segmentation.data.phantom import Phantom

CONF = Path(__file__).resolve().parents[2] / "conf" / "data" / "phantom.yaml"


def data_set(**changes):
    given = yaml.safe_load(CONF.read_text())
    del given["_target_"]
    return Phantom(**given | changes)


def decode(dataset, count=None):
    manifest = dataset.scan(Path("unused"))
    pairs = [dataset.decode(manifest, patient) for patient in list(manifest.patients)[:count]]
    images, masks = zip(*pairs, strict=True)
    return np.stack(images), np.stack(masks)


@pytest.fixture(scope="module")
def default():
    return decode(data_set())


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def best_threshold(values, masks):
    """Highest Dice over all pixels that x > t or x < t reaches, t at 1000 quantiles."""
    bins = np.digitize(values, np.unique(np.quantile(values, np.linspace(0, 1, 1001)))).ravel()
    chosen, hit = np.bincount(bins), np.bincount(bins, weights=masks.ravel())
    below = 2 * hit.cumsum() / (chosen.cumsum() + hit.sum())
    above = 2 * hit[::-1].cumsum() / (chosen[::-1].cumsum() + hit.sum())
    return max(below.max(), above.max())


def test_shapes_names_and_shares(default):
    images, masks = default
    assert images.shape == (54, 8, 64, 64, 3)
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert masks.any(axis=(1, 2, 3)).all()  # every patient has a tumour
    assert 0.30 <= masks.any(axis=(2, 3)).mean() <= 0.40
    assert 0.01 <= masks.mean() <= 0.03
    assert (images == 255).mean() < 0.001
    manifest = data_set().scan(Path("unused"))
    assert list(manifest.patients)[-1] == "phantom_0053"
    assert manifest.patients["phantom_0000"][6] == "phantom_0000_7"


def test_best_threshold_is_found_where_there_is_one():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    assert best_threshold(values, values > 5) == 1
    assert best_threshold(values, values < 3) == 1
    assert best_threshold(values, values % 2 == 0) == pytest.approx(8 / 11)  # 2 to 8: all 4, and 3 more


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_no_single_threshold_finds_the_tumour(default, channel):
    images, masks = default
    raw = images[..., channel].astype(np.float32)
    scaled = (raw - raw.mean((1, 2, 3), keepdims=True)) / raw.std((1, 2, 3), keepdims=True)
    assert best_threshold(raw, masks) < 0.6
    assert best_threshold(scaled, masks) < 0.6


def test_channels_relate_as_pre_contrast_flair_and_post_contrast_do(default):
    images, masks = (array.reshape(-1, *array.shape[2:]) for array in default)
    tumour, head = masks == 1, images[..., 0] > 60
    inside, outside = (images[where].mean(axis=0) for where in (tumour, head & ~tumour))
    assert inside[1] > 1.3 * outside[1]  # bright in FLAIR
    assert inside[0] < 0.9 * outside[0]  # dark before contrast
    assert inside[2] > 1.1 * inside[0]  # some take it up
    bright = (images[..., 1] > np.median(images[tumour][:, 1])) & ~tumour
    assert bright.sum() > 0.5 * tumour.sum()  # as bright in FLAIR, and no tumour


def test_neighbouring_slices_belong_to_one_anatomy():
    images, masks = decode(data_set(slices=16), 12)
    step = np.corrcoef(images[:, 7, ..., 0].ravel(), images[:, 8, ..., 0].ravel())[0, 1]
    stranger = np.corrcoef(images[:-1, 7, ..., 0].ravel(), images[1:, 8, ..., 0].ravel())[0, 1]
    assert step > stranger + 0.05
    for mask in masks:  # slices with tumour are few stretches, not scattered
        assert np.abs(np.diff(mask.any(axis=(1, 2)).astype(int))).sum() <= 4


def test_the_seed_alone_decides():
    first, again = (decode(data_set(), 2) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(decode(data_set(seed=1), 2)[1], first[1])
    assert not np.array_equal(first[1][0], first[1][1])
    np.testing.assert_array_equal(decode(data_set(patients=3), 2)[0], first[0])  # more patients change none


def test_size_and_slices_sample_one_anatomy():
    masks = decode(data_set(), 4)[1]
    large = decode(data_set(image_size=128), 4)[1]
    reduced = large.reshape(4, 8, 64, 2, 64, 2).mean(axis=(3, 5)) > 0.4
    assert dice(masks == 1, reduced) > 0.95
    dense = decode(data_set(slices=24), 4)[1][:, 1::3]  # their middles are those of 8
    assert dice(masks == 1, dense == 1) > 0.99


def test_the_digest_is_of_what_decides_the_pixels():
    def digest(**changes):
        return data_set(**changes).scan(Path("unused")).digest

    assert digest() == digest(normalise="unit", model_width=8)
    changed = [{"seed": 1}, {"patients": 25}, {"slices": 17}, {"noise": 0.1}, {"bias": 0.1}, {"image_size": 65}]
    assert len({digest(), *(digest(**change) for change in changed)}) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patients": 1}, r"data\.patients=1: expected a whole number from 2 to 9999"),
        ({"slices": 2.5}, r"data\.slices=2\.5"),
        ({"noise": -0.1}, r"data\.noise=-0\.1: expected a number from 0 to 1"),
        ({"image_size": None}, r"data\.image_size=None: expected a whole number of pixels"),
        ({"seed": -1}, r"data\.seed=-1"),
    ],
)
def test_wrong_values_name_their_key(changes, message):
    with pytest.raises(DataError, match=message):
        data_set(**changes)
