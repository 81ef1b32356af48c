"""The real files of eight patients, as they are and broken in every way that has a message."""

import shutil

import numpy as np
import pytest
from PIL import Image

from segsweep.core.errors import DataError
from segsweep.segmentation.data import source
from segsweep.segmentation.data.folder import Folder
from segsweep.segmentation.data.lgg import LGG

SMALL, OTHER = "TCGA_CS_4943_20000902", "TCGA_CS_6188_20010812"  # 20 and 24 slices


def data_set(root, **changes):
    return LGG(**{"root": str(root), "image_size": 64, "normalise": "zscore", "model_width": 64} | changes)


def decode(root, tmp_path, patient=SMALL, **changes):
    dataset = data_set(root, **changes)
    return dataset.decode(dataset.scan(tmp_path / "cache"), patient)


@pytest.fixture
def copy(lgg, tmp_path):
    """A copy of two patients to break."""
    for patient in (SMALL, OTHER):
        shutil.copytree(lgg / "kaggle_3m" / patient, tmp_path / "kaggle_3m" / patient)
    return tmp_path / "kaggle_3m"


def test_patients_and_slices_in_numeric_order(lgg, tmp_path):
    manifest = data_set(lgg).scan(tmp_path)
    assert len(manifest.patients) == 8
    assert list(manifest.patients) == sorted(manifest.patients)
    assert manifest.patients[SMALL] == [f"{SMALL}_{k}" for k in range(1, 21)]
    assert [image.rsplit("_", 1)[1] for image, _ in manifest.files[SMALL]] == [f"{k}.tif" for k in range(1, 21)]


def test_the_root_may_be_any_of_its_places_and_other_files_are_ignored(copy, tmp_path):
    archive = tmp_path / "archive"
    shutil.copytree(copy, archive / "kaggle_3m")
    shutil.copytree(copy, archive / "lgg-mri-segmentation" / "kaggle_3m")
    for place in (archive, archive / "kaggle_3m"):
        (place / "data.csv").write_text("Patient\n")
        (place / "README.md").write_text("")
    (archive / "kaggle_3m" / SMALL / "Thumbs.db").write_bytes(b"x")
    (archive / "kaggle_3m" / "notes").mkdir()
    places = [
        archive,
        archive / "kaggle_3m",
        archive / "lgg-mri-segmentation",
        archive / "lgg-mri-segmentation/kaggle_3m",
    ]
    manifests = [data_set(place).scan(tmp_path / "cache") for place in (*places, copy)]
    assert len({manifest.digest for manifest in manifests}) == 1
    assert all(list(manifest.patients) == [SMALL, OTHER] for manifest in manifests)
    shutil.rmtree(archive / "kaggle_3m")
    assert data_set(archive).scan(tmp_path / "cache").digest == manifests[0].digest


def test_pixels_are_those_of_the_files(lgg, tmp_path):
    images, masks = decode(lgg, tmp_path, image_size=None)
    assert images.shape == (20, 256, 256, 3)
    assert images.dtype == masks.dtype == np.uint8
    for k in (1, 10, 20):
        file = lgg / "kaggle_3m" / SMALL / f"{SMALL}_{k}.tif"
        np.testing.assert_array_equal(images[k - 1], np.asarray(Image.open(file)))
        mask = np.asarray(Image.open(str(file).replace(".tif", "_mask.tif")))
        np.testing.assert_array_equal(masks[k - 1], mask == 255)
    assert masks.any()


def test_area_mean_and_majority_against_plain_arithmetic(lgg, tmp_path):
    full, full_masks = decode(lgg, tmp_path, image_size=None)
    images, masks = decode(lgg, tmp_path, image_size=64)
    mean = full.reshape(20, 64, 4, 64, 4, 3).astype(float).mean(axis=(2, 4))
    np.testing.assert_array_equal(images, np.floor(mean + 0.5))
    np.testing.assert_array_equal(masks, full_masks.reshape(20, 64, 4, 64, 4).astype(int).sum(axis=(2, 4)) >= 8)


def test_an_unchanged_tree_is_not_read_again_and_a_changed_one_is(copy, tmp_path, monkeypatch):
    before = data_set(copy).scan(tmp_path / "cache")
    read = []
    digests = source._digests
    monkeypatch.setattr(source, "_digests", lambda odd, files: read.extend(files) or digests(odd, files))
    assert data_set(copy).scan(tmp_path / "cache") == before
    assert read == []
    file = copy / SMALL / f"{SMALL}_3.tif"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1  # a pixel, so the size stays
    file.write_bytes(data)
    after = data_set(copy).scan(tmp_path / "cache")
    assert read == [str(file)]
    assert after.digest != before.digest
    next((tmp_path / "cache" / "digests").iterdir()).write_text("{broken")
    assert data_set(copy).scan(tmp_path / "cache") == after


def test_names_are_part_of_the_digest(copy, tmp_path):
    before = data_set(copy).scan(tmp_path / "cache").digest
    for suffix in (".tif", "_mask.tif"):
        (copy / SMALL / f"{SMALL}_20{suffix}").rename(copy / SMALL / f"{SMALL}_21{suffix}")
    assert data_set(copy).scan(tmp_path / "cache").digest != before


def image(copy, k=7):
    return copy / SMALL / f"{SMALL}_{k}.tif"


def mask(copy, k=7):
    return copy / SMALL / f"{SMALL}_{k}_mask.tif"


def edit(file, change):
    Image.fromarray(change(np.array(Image.open(file)))).save(file)


def spoil(pixels):
    pixels[100, 100] = 128
    return pixels


BROKEN = {
    "image without mask": (lambda c: mask(c).unlink(), rf"patient {SMALL}: image without its mask: .*{SMALL}_7\.tif"),
    "mask without image": (lambda c: image(c).unlink(), rf"patient {SMALL}: mask without its image: .*_7_mask\.tif"),
    "truncated": (lambda c: image(c).write_bytes(image(c).read_bytes()[:100_000]), rf"{SMALL}_7\.tif: truncated"),
    "truncated mask": (lambda c: mask(c).write_bytes(mask(c).read_bytes()[:60_000]), r"_7_mask\.tif: truncated"),
    "empty": (lambda c: image(c).write_bytes(b""), rf"{SMALL}_7\.tif: the file is empty"),
    "no image": (
        lambda c: image(c).write_bytes(b"not an image" * 1000),
        rf"{SMALL}_7\.tif: truncated, or not an image",
    ),
    "unreadable": (lambda c: (image(c).unlink(), image(c).mkdir()), rf"{SMALL}_7\.tif: cannot be read: Is a directory"),
    "dangling": (lambda c: (image(c).unlink(), image(c).symlink_to("gone")), rf"{SMALL}_7\.tif: cannot be read"),
    "third value": (lambda c: edit(mask(c), spoil), r"_7_mask\.tif: a mask with the values 0, 128.*expected 0 and 255"),
    "image as mask": (
        lambda c: edit(image(c), lambda p: Image.fromarray(p[..., 1]).save(mask(c)) or p),
        r"_7_mask\.tif: a mask with the values .* more; .*is it an image",
    ),
    "mask as image": (
        lambda c: shutil.copy(mask(c, 10), image(c, 10)),
        rf"{SMALL}_10\.tif: found 256 x 256 x 1; .*a mask",
    ),
    "mask as RGB image": (
        lambda c: Image.open(mask(c, 12)).convert("RGB").save(image(c, 12)),
        rf"{SMALL}_12\.tif: .*a mask was given as the image",
    ),
    "another shape": (
        lambda c: edit(image(c), lambda p: p[:200]),
        rf"patient {SMALL}: .*_7\.tif is 200 x 256 x 3, .*_1\.tif is 256 x 256 x 3",
    ),
    "another shape than its image": (
        lambda c: edit(mask(c), lambda p: p[:, :128]),
        r"_7_mask\.tif is 256 x 128, its image .*_7\.tif is 256 x 256 x 3",
    ),
    "no slices": (lambda c: [f.unlink() for f in (c / SMALL).iterdir()], rf"patient {SMALL}: .* has no files"),
    "no patients": (
        lambda c: [shutil.rmtree(p) for p in list(c.iterdir())],
        r"data\.root=.*: no patients found; .*TCGA_",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(copy, tmp_path, case):
    damage, message = BROKEN[case]
    decode(copy, tmp_path)  # whole before
    damage(copy)
    with pytest.raises(DataError, match=message):
        decode(copy, tmp_path)


def test_a_file_that_goes_after_the_scan_is_named(copy, tmp_path):
    manifest = data_set(copy).scan(tmp_path / "cache")
    image(copy).unlink()
    with pytest.raises(DataError, match=rf"{SMALL}_7\.tif: cannot be read: No such file"):
        data_set(copy).decode(manifest, SMALL)


def test_a_wrong_root_says_what_is_there(copy, tmp_path):
    with pytest.raises(DataError, match=r"data\.root=.*no such folder: .* has no kaggle_2m; did you mean kaggle_3m\?"):
        data_set(tmp_path / "kaggle_2m").scan(tmp_path)
    with pytest.raises(DataError, match=r"no such folder: .*kaggle_3m has no a"):
        data_set(copy / "a" / "b").scan(tmp_path)
    with pytest.raises(DataError, match="this is a file"):
        data_set(image(copy)).scan(tmp_path)
    with pytest.raises(DataError, match=r"no patients found \(this is one patient's folder: give the one above\)"):
        data_set(copy / SMALL).scan(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, r"data\.root=None: expected the folder"),
        ({"image_size": 4}, r"data\.image_size=4: expected a whole number of pixels from 8 to 4096"),
        ({"image_size": "big"}, r"data\.image_size=big"),
        ({"normalise": "z-score"}, r"data\.normalise=z-score: allowed are .*; did you mean zscore\?"),
        ({"model_width": 0}, r"data\.model_width=0"),
    ],
)
def test_wrong_values_name_their_key(changes, message):
    with pytest.raises(DataError, match=message):
        LGG(**{"root": "nowhere", "image_size": 64, "normalise": "unit", "model_width": 16} | changes)


def test_a_folder_with_the_same_files_is_the_same_data(lgg, tmp_path):
    expression = r"(?P<patient>[^/]+)_(?P<slice>\d+)(_mask)?\.tif$"
    generic = Folder(
        root=str(lgg), images="**/*.tif", masks="**/*_mask.tif", patient=expression,
        image_size=64, normalise="zscore", model_width=16,
    )  # fmt: skip
    manifest = generic.scan(tmp_path)
    assert manifest.files == data_set(lgg).scan(tmp_path).files
    for ours, theirs in zip(decode(lgg, tmp_path), generic.decode(manifest, SMALL), strict=True):
        np.testing.assert_array_equal(ours, theirs)
