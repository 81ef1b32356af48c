"""What label images say: classes, their values in files, and what is void."""

import numpy as np
import pytest

from segsweep.core.errors import DataError
from segsweep.segmentation.data.images import resize_labels
from segsweep.segmentation.data.labels import VOID, counted, labels, weights


def test_classes_are_a_number_names_or_names_with_values():
    assert labels(3) == labels(["0", "1", "2"])
    assert labels(3).values == (0, 1, 2)
    named = labels(["background:0", "cup:128", "disc:255"], [7])
    assert (named.names, named.values, named.ignore) == (("background", "cup", "disc"), (0, 128, 255), (7,))
    assert named.structures == ("cup", "disc")
    assert (labels(None).outputs, labels(2).outputs, named.outputs) == (1, 2, 3)
    assert labels(1) == labels(None) == labels(["tumour"]) == labels(None, [])
    assert labels(4, 255).ignore == (255,)


@pytest.mark.parametrize(
    ("classes", "ignore", "says"),
    [
        (0, (), r"data\.classes=0: 1 to 253 are possible"),
        (254, (), r"data\.classes=254: 1 to 253"),
        (True, (), r"data\.classes=True: expected a number"),
        ("rv", (), r"data\.classes=rv: expected a number of them, the background included"),
        (2.5, (), r"data\.classes=2\.5: expected a number"),
        (["background", "right ventricle"], (), "a name is of letters, digits"),
        (["background", 3], (), "a name is of letters, digits"),
        ([], (), "there is one at least"),
        (["a:0", "b:x"], (), "x is no label value"),
        (["a:0", "b:"], (), " is no label value"),
        ({"a": 0, "b": 1}, (), "expected a number of them"),
        (["a", "a"], (), "two classes have the same name or value"),
        (["a:0", "b:0"], (), "two classes have the same name or value"),
        (["a:0", "b:70000"], (), "70000 is no label value; expected whole numbers from 0 to 65535"),
        (3, [-1], r"data\.ignore=-1: expected label values"),
        (3, ["x"], r"data\.ignore=x: expected label values"),
        (3, [2, 255], r"data\.ignore=\[2, 255\]: 2 is the value of a class"),
        (None, [0], r"data\.ignore=\[0\]: 0 is the value of a class"),
    ],
)
def test_what_is_none_is_told_with_its_key(classes, ignore, says):
    with pytest.raises(DataError, match=says):
        labels(classes, ignore)


def test_files_have_values_and_masks_places():
    given = labels(["background:0", "cup:300", "disc:2"], [9])
    values = np.array([[0, 300], [2, 9]], np.uint16)
    found = given.read(values, "f.png")
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1], [2, VOID]]
    assert given.write(np.array([[0, 1, 2]], np.uint8)).tolist() == [[0, 300, 2]]
    assert given.write(np.array([[0]], np.uint8)).dtype == np.uint16
    assert labels(3).write(np.array([[2]], np.uint8)).dtype == np.uint8
    assert labels(None).write(np.array([[True, False]])).tolist() == [[255, 0]]


def test_values_outside_the_classes_are_told_with_the_file():
    says = (
        r"f\.png: label values outside the classes: 3, 255; data\.classes has the values 0 to 2: .*data\.ignore=\[3\]$"
    )
    with pytest.raises(DataError, match=says):
        labels(3).read(np.array([[0, 3, 255]]), "f.png")
    with pytest.raises(DataError, match=r"data\.classes has background 0, cup 128: give more"):
        labels(["background:0", "cup:128"]).read(np.array([[1]]), "f.png")
    with pytest.raises(DataError, match=r"1, 2, 3, 4 and 6 more.*compressed with loss as JPEG"):
        labels(["background:0", "cup:128"]).read(np.arange(11)[None], "f.png")


@pytest.mark.parametrize(("side", "size"), [(12, 4), (13, 5), (9, 9), (7, 10)])
def test_a_smaller_label_image_has_what_covers_most(side, size):
    """Against every pixel's share of every new pixel, counted on a grid of the two sizes' multiple."""
    mask = np.random.default_rng(side).choice([0, 1, 2, VOID], (side, side)).astype(np.uint8)
    fine = np.repeat(np.repeat(mask, size, 0), size, 1)
    expected = np.empty((size, size), np.uint8)
    for i, j in np.ndindex(size, size):
        part = fine[i * side : (i + 1) * side, j * side : (j + 1) * side]
        shares = {label: int((part == label).sum()) for label in (2, 1, 0, VOID)}
        expected[i, j] = max(shares, key=lambda label: shares[label])  # of equal ones the first
    np.testing.assert_array_equal(resize_labels(mask, size), expected)
    assert resize_labels(mask, None) is mask


def test_pixels_are_counted_by_slice_and_void_apart():
    masks = np.array([[[0, 1], [2, VOID]], [[0, 0], [0, 0]]], np.uint8)
    assert counted(masks, 3).tolist() == [[1, 1, 1, 1], [4, 0, 0, 0]]


def test_weights_by_hand():
    pixels = np.array([[60, 30, 10], [100, 0, 0]])
    # 200 pixels of 3 classes, which have 160, 30 and 10
    assert weights("inverse", pixels) == pytest.approx([200 / 480, 200 / 90, 200 / 30])
    # of the slices that have the class: 160 of 200, 30 of 100, 10 of 100; the median is 0.3
    assert weights("median", pixels) == pytest.approx([0.3 / 0.8, 1, 3])
