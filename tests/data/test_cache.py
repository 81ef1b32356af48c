"""The decoded set on disk: what is in it, who writes it, and what damage does."""

import errno
import importlib
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from segsweep.core.errors import DataError
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.lgg import LGG
from segsweep.segmentation.data.phantom import Phantom
from segsweep.segmentation.data.source import Manifest


def data_set(**changes):
    given = {
        "seed": 0, "patients": 5, "slices": 4, "noise": 0.05, "bias": 0.1, "image_size": 32, "normalise": "zscore",
        "model_width": 16,
    }  # fmt: skip
    return Phantom(**given | changes)


def load(place, workers=1, **changes):
    dataset = data_set(**changes)
    return cache.load(dataset, dataset.scan(place), place, workers)


@pytest.fixture
def decoded(monkeypatch):
    """The patients that this process decodes, in order."""
    seen, decode = [], Phantom.decode
    monkeypatch.setattr(Phantom, "decode", lambda self, m, patient: seen.append(patient) or decode(self, m, patient))
    return seen


NAMES = [f"phantom_{k:04}" for k in range(5)]


def test_contents(tmp_path):
    volumes = load(tmp_path)
    assert volumes.images.shape == (20, 32, 32, 3)
    assert volumes.masks.shape == (20, 32, 32)
    assert volumes.patients == NAMES
    assert volumes.patient.tolist() == [p for p in range(5) for _ in range(4)]
    assert volumes.slices[4:6] == ["phantom_0001_1", "phantom_0001_2"]
    dataset = data_set()
    for p, patient in enumerate(NAMES):
        images, masks = dataset.decode(dataset.scan(tmp_path), patient)
        np.testing.assert_array_equal(volumes.images[4 * p : 4 * p + 4], images)
        np.testing.assert_array_equal(volumes.masks[4 * p : 4 * p + 4], masks)


def test_arrays_are_maps_of_the_file_and_cannot_be_written(tmp_path):
    volumes = load(tmp_path)
    assert isinstance(volumes.images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        volumes.images[0, 0, 0, 0] = 1


def test_decoded_once_whatever_the_normalisation(tmp_path, decoded):
    for mode in ("zscore", "percentile", "unit", "zscore"):
        load(tmp_path, normalise=mode, model_width=8)
    assert decoded == NAMES
    load(tmp_path, image_size=16)
    assert decoded == NAMES * 2


def test_normalisation_by_hand():
    images = np.zeros((1, 2, 2, 2), np.uint8)
    images[0, ..., 0] = [[0, 0], [10, 10]]
    images[0, ..., 1] = 7
    known = cache.statistics(images)[None]
    assert known[0].tolist() == [[5, 5, 0, 10], [7, 0, 7, 7]]
    shift, scale, clip = cache.normalisation(known, "zscore", images.dtype)
    np.testing.assert_allclose((images[0] - shift[0]) * scale[0], [[[-1, 0], [-1, 0]], [[1, 0], [1, 0]]])
    assert clip is None
    shift, scale, clip = cache.normalisation(known, "percentile", images.dtype)
    np.testing.assert_allclose((images[0, :, 0] - shift[0]) * scale[0], [[0, 0], [1, 0]])
    assert clip == (0, 1)
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        shift, scale, clip = cache.normalisation(known, "unit", np.dtype(dtype))
        np.testing.assert_allclose((top - shift) * scale, 1)


def test_percentiles_leave_out_the_rarest():
    values = np.repeat([3, 100, 250], [2, 994, 4]).astype(np.uint8).reshape(1, 10, 100, 1)
    assert cache.statistics(values)[0, 2:].tolist() == [100, 100]
    values = np.repeat([3, 100, 250], [5, 989, 6]).astype(np.uint8).reshape(1, 10, 100, 1)
    assert cache.statistics(values)[0, 2:].tolist() == [3, 250]


def test_statistics_are_those_of_numpy(tmp_path):
    volumes = load(tmp_path)
    first = volumes.images[:4].reshape(-1, 3).astype(float)
    np.testing.assert_allclose(volumes.shift[0], first.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(1 / volumes.scale[0], first.std(axis=0), rtol=1e-6)


def test_statistics_of_large_images_are_of_a_grid():
    images = np.random.default_rng(0).integers(0, 255, (2, 130, 200, 1), np.uint8)
    mean, deviation, _, _ = cache.statistics(images)[0]
    assert mean == pytest.approx(images[:, ::2, ::2].mean())
    assert deviation == pytest.approx(images[:, ::2, ::2].std())
    assert mean != images.mean()


def test_helpers_decode_without_torch_and_to_the_same_bytes(tmp_path, monkeypatch, decoded):
    alone = load(tmp_path / "alone")
    decoded.clear()
    monkeypatch.setattr(cache, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(cache, "_work", lambda task: {})  # this process leaves all but the first to the helpers
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or popen(*a, **k))
    helped = load(tmp_path / "helped", workers=3)
    assert decoded == NAMES[:1]
    assert len(started) == 2
    np.testing.assert_array_equal(helped.images, alone.images)
    np.testing.assert_array_equal(helped.masks, alone.masks)
    np.testing.assert_array_equal(helped.shift, alone.shift)


def test_what_decodes_imports_no_torch():
    code = "from segsweep.segmentation.data import cache, folder, lgg, phantom, split"
    code = f"import sys; {code}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_helper_that_dies_is_done_without(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(cache, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(cache, "_work", lambda task: {})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert load(tmp_path, workers=2).images.any(axis=(1, 2, 3)).all()
    assert decoded == NAMES


def test_an_error_in_a_helper_reaches_the_user(lgg, tmp_path, monkeypatch):
    patients = ["TCGA_CS_4943_20000902", "TCGA_CS_6188_20010812"]
    for patient in patients:
        shutil.copytree(lgg / "kaggle_3m" / patient, tmp_path / patient)
    dataset = LGG(root=str(tmp_path), image_size=32, normalise="unit", model_width=8)
    manifest = dataset.scan(tmp_path / "cache")
    broken = tmp_path / patients[1] / f"{patients[1]}_3.tif"
    broken.write_bytes(broken.read_bytes()[:1000])  # since it was looked at
    monkeypatch.setattr(cache, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(cache, "_work", lambda task: {})
    with pytest.raises(DataError, match=rf"{patients[1]}_3\.tif: truncated"):
        cache.load(dataset, manifest, tmp_path / "cache", 2)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.name != "digests"] == [".lock"]


def test_two_callers_at_once_decode_once(tmp_path, decoded):
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == NAMES
    assert len({volumes.key for volumes in found}) == 1
    assert len(found) == 3


def test_without_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    def unlocked(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", unlocked)
    place, store, overtook = tmp_path / load(tmp_path / "first").key, cache._store, []

    def overtaken(task, index, *arrays):
        if index == 4 and not place.exists():
            shutil.copytree(folder_of(tmp_path / "first"), place)
            overtook.append(place.stat().st_ino)
        return store(task, index, *arrays)

    monkeypatch.setattr(cache, "_store", overtaken)
    assert load(tmp_path).images.any()
    assert [place.stat().st_ino] == overtook
    assert not list(tmp_path.glob("*.tmp-*"))


def folder_of(place):
    return next(path for path in place.iterdir() if path.is_dir())


def zero_pages(folder):
    """As after a power cut: the file's length is right, pages are not."""
    with open(folder / "images.npy", "r+b") as stream:
        stream.seek(128 + 8192)
        stream.write(bytes(4096))
    for mark in folder.glob("checked-*"):
        mark.unlink()


class Planted:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def pickled(folder):
    np.save(folder / "statistics.npy", np.array([Planted()], dtype=object), allow_pickle=True)


DAMAGE = {
    "short images": lambda folder: os.truncate(folder / "images.npy", 5000),
    "short masks": lambda folder: os.truncate(folder / "masks.npy", 200),
    "no header": lambda folder: os.truncate(folder / "images.npy", 10),
    "other bytes": lambda folder: (folder / "masks.npy").write_bytes(b"something else" * 100),
    "another shape": lambda folder: np.save(folder / "masks.npy", np.zeros((20, 8, 8), np.uint8)),
    "another type": lambda folder: np.save(folder / "masks.npy", np.zeros((20, 32, 32), np.float32)),
    "no masks": lambda folder: (folder / "masks.npy").unlink(),
    "empty statistics": lambda folder: (folder / "statistics.npy").write_bytes(b""),
    "lost pages": zero_pages,
    "pickled": pickled,
    "not a folder": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_copy_is_written_anew(tmp_path, monkeypatch, decoded, case):
    monkeypatch.chdir(tmp_path)
    whole = load(tmp_path / "cache").images.copy()
    decoded.clear()
    DAMAGE[case](folder_of(tmp_path / "cache"))
    again = load(tmp_path / "cache")
    assert decoded == NAMES
    np.testing.assert_array_equal(again.images, whole)
    assert not Path("unpickled").exists()


def test_after_a_restart_a_whole_copy_is_checked_and_kept(tmp_path, monkeypatch, decoded):
    load(tmp_path)
    decoded.clear()
    monkeypatch.setattr(cache, "_boot", lambda: "next")
    load(tmp_path)
    assert decoded == []
    assert (folder_of(tmp_path) / "checked-next").exists()


def test_what_a_killed_process_left_is_cleared(tmp_path):
    key = load(tmp_path).key
    shutil.rmtree(tmp_path / key)
    left = tmp_path / f"{key}.tmp-1-1"
    left.mkdir()
    (left / "images.npy").write_bytes(b"x")
    load(tmp_path)
    assert not left.exists()


def test_a_full_disk_is_said_with_the_place_and_leaves_nothing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        DataError, match=r"cache: .* cannot be written \(No space left on device: it takes 0 MB\).*paths"
    ):
        load(tmp_path / "cache")
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_store", full)
    with pytest.raises(
        DataError, match=r"cannot be written \(No space left on device\); \d+ MB are free .* paths\.cache"
    ):
        load(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"cache: the decoded data set cannot be written"):
        load(tmp_path / "cache")


class TwoShapes(Phantom):
    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        return (images[:, 1:], masks[:, 1:]) if patient == NAMES[3] else (images, masks)


def test_patients_of_different_shapes_are_named(tmp_path):
    dataset = TwoShapes(**vars(data_set()))
    message = r"patient phantom_0003: slices \(31, 32, 3\) uint8, patient phantom_0000: \(32, 32, 3\).*data\.image_size"
    with pytest.raises(DataError, match=message):
        cache.load(dataset, dataset.scan(tmp_path), tmp_path, 1)


class OneShort(Phantom):
    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        return images[:3], masks[:3]


def test_a_data_set_that_gives_fewer_slices_than_it_said_is_named(tmp_path):
    dataset = OneShort(**vars(data_set()))
    with pytest.raises(
        DataError, match=r"patient phantom_0000: OneShort\.decode gave images \(3, 32, 32, 3\).* 4 of both"
    ):
        cache.load(dataset, dataset.scan(tmp_path), tmp_path, 1)


class Labels(Phantom):
    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        if patient == NAMES[3]:
            masks[0, 0, :2] = 2, 3
        return images, masks


@pytest.mark.parametrize("helped", [False, True])
def test_masks_with_several_labels_are_refused_whoever_decodes_them(tmp_path, monkeypatch, helped):
    if helped:
        monkeypatch.setattr(cache, "WORTH_A_PROCESS", 0)
        monkeypatch.setattr(cache, "_work", lambda task: {})
    dataset = Labels(**vars(data_set()))
    message = r"phantom_0003: Labels\.decode gave masks with the labels 0, 1, 2, 3; allowed is one structure, 1 in it"
    with pytest.raises(DataError, match=message):
        cache.load(dataset, dataset.scan(tmp_path), tmp_path, 1 + helped)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@dataclass(frozen=True, kw_only=True)
class Several(Phantom):
    classes: object = None

    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        masks[0, 0, :3] = 2, 3, 255
        return images, masks


def test_a_data_set_of_ones_own_that_has_classes_may_give_their_labels_and_void(tmp_path):
    dataset = Several(**vars(data_set()), classes=4)
    volumes = cache.load(dataset, dataset.scan(tmp_path), tmp_path, 1)
    assert np.unique(volumes.masks).tolist() == [0, 1, 2, 3, 255]
    assert volumes.void
    assert volumes.pixels.shape == (20, 5)
    assert volumes.pixels[:, 2:].sum(0).tolist() == [5, 5, 5]
    assert not load(tmp_path).void
    few = Several(**vars(data_set()), classes=["background", "a", "b"])
    with pytest.raises(
        DataError, match=r"labels 0, 1, 2, 3, 255; data\.classes allows 0 to 2, and 255 for what is not"
    ):
        cache.load(few, few.scan(tmp_path), tmp_path, 1)


def test_masks_with_several_labels_that_an_older_version_decoded_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FORMAT", 1)
    masks = load(tmp_path).masks.copy()
    np.save(folder_of(tmp_path) / "masks.npy", 3 * masks)
    assert load(tmp_path).masks.max() == 3  # they passed
    monkeypatch.undo()
    np.testing.assert_array_equal(load(tmp_path).masks, masks)


class Typed(Phantom):
    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        images, masks = {
            1: (images / np.float32(255), masks),
            2: (images.astype(np.int64), masks),
            3: (images[..., 0], masks),
            4: (images, np.where(masks, 1, np.nan)),
        }[self.seed]
        return images, masks


@pytest.mark.parametrize(
    ("seed", "found"),
    [
        (1, r"images \(4, 32, 32, 3\) float32 and"),
        (2, r"images \(4, 32, 32, 3\) int64 and"),
        (3, r"images \(4, 32, 32\) uint8 and"),
        (4, r"masks \(4, 32, 32\) float64; expected"),
    ],
)
def test_pixels_of_a_type_or_shape_that_is_not_taken_are_named(tmp_path, seed, found):
    dataset = Typed(**vars(data_set(seed=seed)))
    with pytest.raises(DataError, match=rf"phantom_0000: Typed\.decode gave .*{found}.* of uint8 or uint16"):
        cache.load(dataset, dataset.scan(tmp_path), tmp_path, 1)


def test_the_key_knows_the_kind_of_data_set(tmp_path):
    manifest = data_set().scan(tmp_path)
    other = TwoShapes(**vars(data_set()))
    assert cache._key(other, manifest) != cache._key(data_set(), manifest)
    assert len(cache._key(other, manifest)) == 32


class Attack:
    """Pickled, it makes a folder where it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_what_others_put_into_the_folder_is_not_unpickled(tmp_path, monkeypatch):
    def plant(task):
        for name in ("task", "done-1"):
            (task.folder / "work" / name).write_bytes(pickle.dumps(Attack(tmp_path / "mark")))
        return {}

    monkeypatch.setattr(cache, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(cache, "_work", plant)
    assert load(tmp_path / "cache", workers=2).images.any(axis=(1, 2, 3)).all()
    assert not (tmp_path / "mark").exists()


def test_helpers_take_no_module_from_the_working_folder(tmp_path, monkeypatch, decoded):
    for name in ("json", "numpy", "queue"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a')\nraise ImportError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(cache, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(cache, "_work", lambda task: {})
    load(tmp_path / "cache", workers=2)
    assert not (tmp_path / "ran").exists()
    assert decoded == NAMES[:1]


def test_nobody_else_can_enter_the_folders(lgg, tmp_path):
    dataset = LGG(root=str(lgg), image_size=16, normalise="unit", model_width=8)
    before = os.umask(0)
    try:
        cache.load(dataset, dataset.scan(tmp_path / "cache"), tmp_path / "cache", 1)
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "cache", *(tmp_path / "cache").iterdir()) if path.is_dir()]
    assert len(made) == 3
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


def test_what_a_data_set_of_ones_own_has_decides_its_pixels_and_so_does_the_code_of_its_parts(tmp_path, monkeypatch):
    """Its decoding may look at any argument; a part may be a class of another module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    part, own = f"part_{tmp_path.name}", f"own_{tmp_path.name}"
    (tmp_path / f"{part}.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Window:\n    width: int = 1\n"
    )
    (tmp_path / f"{own}.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Any\n"
        "@dataclass(frozen=True)\nclass Own:\n    normalise: str\n    window: Any = None\n"
    )
    window = importlib.import_module(part).Window()
    made, manifest = importlib.import_module(own).Own, Manifest(digest="d", patients={}, files={})
    keys = [cache._key(made(normalise=kind, window=window), manifest) for kind in ("unit", "zscore")]
    assert len(set(keys)) == 2
    (tmp_path / f"{part}.py").write_text((tmp_path / f"{part}.py").read_text().replace("= 1", "= 2"))
    assert cache._key(made(normalise="unit", window=window), manifest) != keys[0]
