"""Other people's layouts."""

import re
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segsweep.core.errors import DataError
from segsweep.segmentation.data import images
from segsweep.segmentation.data.folder import Folder
from segsweep.segmentation.data.split import PARTS, ByPatient, BySlice

RNG = np.random.default_rng(0)


def data_set(root, **changes):
    given = {
        "root": str(root), "images": "images/*", "masks": "masks/*", "patient": r"(?P<patient>\w+)-(?P<slice>\d+)",
        "image_size": None, "normalise": "unit", "model_width": 16,
    }  # fmt: skip
    return Folder(**given | changes)


def write(root, name, mask_name=None, shape=(12, 16), mask_values=(0, 255)):
    pixels = RNG.integers(1, 255, shape, np.uint8)
    mask = np.full(shape[:2], mask_values[0], np.uint8)
    mask[3:6, 4:9] = mask_values[1]
    for path, array in ((root / name, pixels), (root / (mask_name or name.replace("images", "masks")), mask)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return pixels, mask


def test_two_trees_grey_images_and_masks_of_0_and_1(tmp_path):
    written = {k: write(tmp_path, f"images/ann-{k}.png", mask_values=(0, 1)) for k in (2, 10, 1)}
    write(tmp_path, "images/bob-1.png")
    dataset = data_set(tmp_path)
    manifest = dataset.scan(tmp_path / "cache")
    assert manifest.patients == {"ann": ["1", "2", "10"], "bob": ["1"]}
    images, masks = dataset.decode(manifest, "ann")
    assert images.shape == (3, 12, 16, 1)
    np.testing.assert_array_equal(images[2, ..., 0], written[10][0])
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks[1], written[2][1])


def test_image_and_mask_side_by_side_with_other_suffixes(tmp_path):
    write(tmp_path, "scans/a/p1_3.jpg", "scans/a/p1_3_label.png", shape=(12, 16, 3))
    dataset = data_set(
        tmp_path, images="scans/**/*.*", masks="**/*_label.png", patient=r"(?P<patient>\w+?)_(?P<slice>\d+)"
    )
    manifest = dataset.scan(tmp_path / "cache")
    assert manifest.patients == {"p1": ["3"]}
    assert dataset.decode(manifest, "p1")[0].shape == (1, 12, 16, 3)


def test_without_a_slice_group_each_file_is_a_patient(tmp_path):
    for name in ("x", "y"):
        write(tmp_path, f"images/{name}.png")
    manifest = data_set(tmp_path, patient=r"/(?P<patient>\w+)\.").scan(tmp_path / "cache")
    assert manifest.patients == {"x": ["x"], "y": ["y"]}


def signed(pixels: np.ndarray) -> bytes:
    """A TIFF of 16 bit with a sign, which Pillow does not write."""
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: pixels.nbytes, 339: 2}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    body = pixels.astype("<i2").tobytes()
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("suffix", "spoil", "says"),
    [
        ("png", lambda file: file.write_bytes(file.read_bytes()[:-40]), "truncated, or not an image"),
        ("tif", lambda file: file.write_bytes(file.read_bytes()[:-40]), "truncated, or not an image"),
        ("jpg", lambda file: file.write_bytes(file.read_bytes()[:-40]), "truncated, or not an image"),
        ("bmp", lambda file: file.write_bytes(file.read_bytes()[:-40]), "truncated, or not an image"),
        ("tif", lambda file: Image.fromarray(np.ones((12, 16), np.float32)).save(file), "pixels of type float32"),
        ("tif", lambda file: file.write_bytes(signed(np.full((12, 16), -7))), "pixels of type int32 from -7 to -7;"),
        ("tif", lambda file: Image.open(file).save(file, save_all=True, append_images=[Image.new("L", (16, 12))]),
         "2 images in one file"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_decoded_is_told_by_the_scan_and_not_by_each_job(tmp_path, suffix, spoil, says):
    for name in (1, 2):
        write(tmp_path, f"images/a-{name}.{suffix}", f"masks/a-{name}.png")
    spoil(tmp_path / "images" / f"a-2.{suffix}")
    with warnings.catch_warnings(action="error"):
        for _ in range(2):  # it is not remembered as read
            with pytest.raises(DataError, match=rf"a-2\.{suffix}: {says}"):
                data_set(tmp_path).scan(tmp_path / "cache")


def test_a_scan_decodes_no_image_that_is_whole_and_each_mask_once(tmp_path, monkeypatch):
    for name, suffix in enumerate(("png", "tif", "jpg")):
        write(tmp_path, f"images/a-{name}.{suffix}", f"masks/a-{name}.png")
    (tmp_path / "images" / "a-3.tif").write_bytes(signed(np.ones((12, 16))))
    write(tmp_path, "x.png", "masks/a-3.png")
    decoded, read = [], images.read

    def noting(file, mask=False):
        decoded.append("/".join(Path(file).parts[-2:]))
        return read(file, mask)

    monkeypatch.setattr(images, "read", noting)
    for _ in range(2):
        assert len(data_set(tmp_path).scan(tmp_path / "cache").patients["a"]) == 4
    assert sorted(decoded) == ["images/a-3.tif", *(f"masks/a-{k}.png" for k in range(4))]  # might have been below 0


@pytest.mark.parametrize(
    ("values", "changes", "says"),
    [
        (
            (0, 3),
            {"classes": 3},
            r"masks/a-2\.png: label values outside the classes: 3; data\.classes has the values 0 to 2",
        ),
        ((0, 7), {"ignore": [5]}, r"masks/a-2\.png: a mask with the values 0, 7; expected"),
        ((0, 1), {}, r"masks/a-2\.png: a mask with the value 1 where the patient's other masks have 255"),
    ],
)
def test_values_of_a_mask_that_are_none_are_told_by_the_scan_whether_they_are_remembered_or_not(
    tmp_path, values, changes, says
):
    write(tmp_path, "images/a-1.png", mask_values=(0, 2) if "classes" in changes else (0, 255))
    write(tmp_path, "images/a-2.png", mask_values=values)
    for _ in range(2):
        with pytest.raises(DataError, match=says):
            data_set(tmp_path, **changes).scan(tmp_path / "cache")
    with_all = data_set(tmp_path, classes=list(map(str, range(256)))[:253], ignore=[255])
    assert len(with_all.scan(tmp_path / "cache").patients) == 1  # of the same files, by other classes


def test_a_file_whose_name_is_not_utf_8_is_told(tmp_path):
    write(tmp_path, "images/a-1.png")
    write(tmp_path, "images/\xe4-1.png")
    assert [*data_set(tmp_path).scan(tmp_path / "cache").patients] == ["a", "\xe4"]
    write(tmp_path, "images/b\udce4-1.png")
    with pytest.raises(DataError, match=r"images/b\\udce4-1\.png: a name that is not UTF-8, in which records are"):
        data_set(tmp_path, patient=r"(?P<patient>[^/]+)-(?P<slice>\d+)").scan(tmp_path / "cache")


def test_a_mask_compressed_as_jpeg_is_refused_with_the_reason(tmp_path):
    write(tmp_path, "images/a-1.png", "masks/a-1.jpg")
    dataset = data_set(tmp_path)
    with pytest.raises(DataError, match=r"masks/a-1\.jpg: a mask with the values .*compressed with loss as JPEG"):
        dataset.decode(dataset.scan(tmp_path / "cache"), "a")


def test_labels_of_several_structures_are_refused(tmp_path):
    write(tmp_path, "images/a-1.png", mask_values=(0, 2))
    dataset = data_set(tmp_path)
    with pytest.raises(DataError, match=r"masks/a-1\.png: a mask with the values 0, 2; expected 0 and 255, or 0 and 1"):
        dataset.decode(dataset.scan(tmp_path / "cache"), "a")


def test_labels_of_several_structures_work_with_classes_and_else_name_the_key(tmp_path):
    _, mask = write(tmp_path, "images/a-1.png", mask_values=(0, 3))
    mask[0, :4], mask[1, :2] = 1, 255
    Image.fromarray(mask).save(tmp_path / "masks/a-1.png")
    dataset = data_set(tmp_path, classes=4, ignore=[255])
    masks = dataset.decode(dataset.scan(tmp_path / "cache"), "a")[1]
    np.testing.assert_array_equal(masks[0], mask)  # 255 is what void is, too
    named = data_set(tmp_path, classes=["background:0", "rim:1", "core:3"], ignore=255)
    np.testing.assert_array_equal(named.decode(named.scan(tmp_path / "cache"), "a")[1][0], np.where(mask == 3, 2, mask))
    for changes, says in (
        ({}, r"a-1\.png: a mask with the values 0, 1, 3, 255; expected 0 and 255, or 0 and 1$"),
        ({"classes": 4}, r"a-1\.png: label values outside the classes: 255; .*data\.ignore=\[255\]"),
        ({"classes": 3, "ignore": [255]}, r"label values outside the classes: 3; data\.classes has the values 0 to 2"),
        ({"ignore": [255]}, r"a mask with the values 0, 1, 3; .*; a label image of several classes: data\.classes=4$"),
    ):
        wrong = data_set(tmp_path, **changes)
        with pytest.raises(DataError, match=says):
            wrong.decode(wrong.scan(tmp_path / "cache"), "a")


@pytest.mark.parametrize("inside", [1, 255])
def test_a_mask_of_one_structure_may_have_void(tmp_path, inside):
    _, mask = write(tmp_path, "images/a-1.png", mask_values=(0, inside))
    mask[0, :4] = 128
    Image.fromarray(mask).save(tmp_path / "masks/a-1.png")
    dataset = data_set(tmp_path, ignore=[128])
    masks = dataset.decode(dataset.scan(tmp_path / "cache"), "a")[1]
    np.testing.assert_array_equal(masks[0], np.where(mask == 128, 255, mask > 0))


def test_masks_of_one_patient_use_one_value(tmp_path):
    write(tmp_path, "images/a-1.png", mask_values=(0, 1))
    write(tmp_path, "images/a-2.png", mask_values=(0, 255))
    dataset = data_set(tmp_path)
    with pytest.raises(DataError, match=r"a-2\.png: a mask with the value 255 where .* have 1"):
        dataset.decode(dataset.scan(tmp_path / "cache"), "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient": "(?P<patient>"}, r"data\.patient=.*: not a regular expression"),
        ({"patient": r"(?P<name>\w+)"}, r"data\.patient=.*expected a group \(\?P<patient>.*found name"),
        ({"images": "/abs/*.png"}, r"data\.images=/abs/\*\.png: expected a pattern"),
        ({"masks": "../*.png"}, r"data\.masks=\.\./\*\.png: expected a pattern"),
    ],
)
def test_wrong_patterns_are_refused_before_anything_is_read(changes, message):
    with pytest.raises(DataError, match=message):
        data_set("nowhere", **changes)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("im/*.png", r"no such files: .* has no folder im; its folders: images, masks$"),
        ("image/*.png", r"no such files: .* has no folder image; did you mean images\?$"),
        ("images/a/b/**/*.png", r"no such files: .*images has no folder a, and no folder at all$"),
        ("images/*.tif", r"no such files under .*images$"),
    ],
)
def test_a_pattern_without_files_names_the_nearest_folder_that_is_there(tmp_path, pattern, says):
    write(tmp_path, "images/a-1.png")
    with pytest.raises(DataError, match=rf"data\.images={re.escape(pattern)}: {says}"):
        data_set(tmp_path, images=pattern).scan(tmp_path / "cache")


def test_patterns_that_do_not_fit_the_files_are_refused(tmp_path):
    write(tmp_path, "images/a-1.png")
    scan = [tmp_path / "cache"]
    with pytest.raises(DataError, match=r"data\.images=\*\.png: no such files under .*[^s]$"):
        data_set(tmp_path, images="*.png").scan(*scan)
    with pytest.raises(
        DataError, match=r"data\.images=masks/\*: no such files under .* but those that data\.masks takes"
    ):
        data_set(tmp_path, images="masks/*").scan(*scan)
    with pytest.raises(
        DataError, match=r"a-1\.png: matches data\.masks=masks/\*, but .* finds no patient in masks/a-1"
    ):
        data_set(tmp_path, patient=r"(?P<patient>\d{5})").scan(*scan)
    write(tmp_path, "images/a-2.png")
    with pytest.raises(DataError, match=r"a-2\.png and .*a-1\.png: .* the same patient and slice in both \(a, a\)"):
        data_set(tmp_path, patient=r"/(?P<patient>\w+)-").scan(*scan)
    (tmp_path / "masks/a-2.png").unlink()
    with pytest.raises(DataError, match=r"patient a: image without its mask: .*images/a-2\.png"):
        data_set(tmp_path).scan(*scan)


def test_the_two_eyes_of_a_child_stay_together_and_a_split_that_parts_them_leaks(tmp_path):
    for child in range(1, 8):
        for eye in "LR":
            write(tmp_path, f"Image_{child:02}{eye}.jpg", f"Image_{child:02}{eye}_1stHO.gif")
    eyes = data_set(tmp_path, images="*.jpg", masks="*_1stHO.gif", patient=r"Image_(?P<patient>\d+)(?P<slice>[LR])")
    patients = eyes.scan(tmp_path / "cache").patients
    assert patients == {f"{child:02}": ["L", "R"] for child in range(1, 8)}
    whole, parted = (kind(val=0.2, test=0.3, seed=0)(patients) for kind in (ByPatient, BySlice))
    assert not whole.leaks
    assert {len(names) for part in PARTS for names in whole.names[part].values()} == {2}
    assert parted.leaks
    assert set(parted.patients["test"]) & set(parted.patients["train"])


def test_slices_of_two_volumes_that_lie_between_one_another_are_refused(tmp_path):
    expression = r"(?P<patient>\w)-(?P<volume>\w+?)_(?P<slice>\d+)\."
    for name in ("ED_1", "ED_2", "ES_1"):
        write(tmp_path, f"images/a-{name}.png")
    dataset = data_set(tmp_path, patient=expression)
    assert [stack.slices for stack in dataset.scan(tmp_path / "cache").stacks["a"]] == [2, 1]
    for name in ("1_1", "01_1", "1_2", "01_2"):
        write(tmp_path, f"images/b-{name}.png")
    with pytest.raises(DataError, match="slices of two volumes of patient b lie between one another"):
        dataset.scan(tmp_path / "cache")


@pytest.mark.parametrize(
    ("given", "says"),
    [({"roi": 5}, "data.roi=5: expected a pattern"), ({"patient": ["a"]}, "not a regular expression")],
)
def test_patterns_of_another_type_are_told_with_their_key(tmp_path, given, says):
    with pytest.raises(DataError, match=says):
        data_set(tmp_path, **given)


def test_a_file_called_as_a_slice_of_a_volume_is_refused(tmp_path):
    write(tmp_path, "images/a-1.png")
    (tmp_path / "images" / "a-2.nii#2:1").write_bytes(b"x")
    with pytest.raises(DataError, match="kept for slices of volumes"):
        data_set(tmp_path).scan(tmp_path / "cache")


def test_the_working_folder_as_the_root_is_the_folder_that_it_is(tmp_path, monkeypatch):
    """Two patients' files of one name are two files, also in what is remembered of them."""
    for patient, side in (("01", 8), ("02", 8), ("03", 9)):
        (tmp_path / "data" / patient).mkdir(parents=True)
        for name, value in (("1.png", 90), ("1_mask.png", 255)):
            Image.fromarray(np.full((side, 8), value, np.uint8)).save(tmp_path / "data" / patient / name)
    monkeypatch.chdir(tmp_path / "data")

    def scan(root):
        given = {"images": "*/*.png", "masks": "*/*_mask.png", "patient": r"(?P<patient>\d+)/(?P<slice>\d)"}
        return Folder(root=root, image_size=None, normalise="zscore", model_width=4, **given).scan(tmp_path / "cache")

    before = scan(".")
    assert before.digest == scan(str(tmp_path / "data")).digest == scan(".").digest
    assert (before.shapes, before.room) == (((8, 8), (9, 8)), (9, 8))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("02/1_mask.png")
    assert scan(".").digest == scan(str(tmp_path / "data")).digest != before.digest
