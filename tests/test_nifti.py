"""NIfTI volumes: the patient's axes whatever the file's, millimetres where they are known, and back into a file."""

import gzip
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_classes import table
from test_run import TINY, do

from segsweep.core.errors import DataError
from segsweep.report import __main__ as report
from segsweep.segmentation import predictions
from segsweep.segmentation.data import cache, volume
from segsweep.segmentation.data.nifti import Nifti
from segsweep.segmentation.evaluate import Evaluation, patient_table
from segsweep.segmentation.inputs import find
from segsweep.segmentation.metrics import hd95

nibabel = pytest.importorskip("nibabel")
from nibabel import orientations  # noqa: E402

SPACING = (1.5, 2.0, 6.0)
ORIENTATIONS = ("RAS", "LPS", "SAR", "ILP")


def save(file, array, orientation="RAS", spacing=SPACING, origin=(-20.0, 5.0, 80.0)):
    """An array whose axes run to the right, to the front and up, in a file that has it in another order."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    image = nibabel.Nifti1Image(array, affine)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(orientation))
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), file)


def body(n: int, k: int, shape=(24, 28, 6)):
    """A ball with a core, int16 with negative values, and its labels."""
    rng = np.random.default_rng([n, k])
    x, y, z = np.mgrid[: shape[0], : shape[1], : shape[2]]
    middle = rng.uniform(9, 15, 2)
    radius = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (3 * (z - 2.5)) ** 2)
    labels = (radius < 8).astype(np.int16) + (radius < 4)
    return (labels * 300 - 600 + rng.normal(0, 60, shape)).astype(np.int16), labels.astype(np.uint8)


def write(root, **changes) -> None:
    """Six patients with two volumes each, each in an orientation of its own."""
    for n in range(6):
        for k in (1, 12):
            image, labels = body(n, k)
            for name, array in ((f"p{n}_frame{k:02}", image), (f"p{n}_frame{k:02}_gt", labels)):
                save(root / f"{name}.nii.gz", array, ORIENTATIONS[(n + k) % 4], **changes)


PATTERNS = {"images": "*.nii.gz", "masks": "*_gt.nii.gz", "patient": r"(?P<patient>p\d)_(?P<volume>frame\d+)"}
NIFTI = ["data=nifti", "data.image_size=null", "data.classes=[background,shell,core]", "optim.lr=0.02", "batch_size=4"]
NIFTI += [f"data.{key}='{value}'" for key, value in PATTERNS.items()]


def data(root, **changes):
    given = {"image_size": None, "normalise": "zscore", "model_width": 4, "axis": 2}
    given |= {"classes": ["background", "shell", "core"], **PATTERNS}
    return Nifti(root=str(root), **given | changes)


def train(place, root, *overrides):
    tiny = [o for o in TINY if not o.startswith("data.")]
    return do(place, *tiny, *NIFTI, f"data.root={root}", *overrides, tiny=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("nifti") / "data"
    write(place)
    return place


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_the_patients_whatever_the_order_in_the_file_and_go_back_to_it(axis, tmp_path):
    array = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    first, second = (k for k in range(3) if k != axis)
    for orientation in ORIENTATIONS:
        file = tmp_path / f"{orientation}.nii.gz"
        save(file, array, orientation)
        cut = volume.slices(str(file), axis, True, 0)
        assert cut.shape == tuple(array.shape[k] for k in (axis, second, first))
        place = [1, 1, 1]
        place[axis], place[first], place[second] = 2, 3, 0
        assert cut[2, -1, 3] == array[tuple(place)]  # the last row is the one at the back, or at the feet
        head = volume.header(str(file), axis)
        assert head.spacing == tuple(SPACING[k] for k in (axis, second, first))
        volume.write(cut, str(file), axis, tmp_path / "out.nii.gz")
        again, there = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(file)
        np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(there.dataobj))
        np.testing.assert_allclose(again.affine, there.affine)


def test_values_become_whole_numbers_of_16_bit(tmp_path):
    values = {
        "int16": (np.array([-1000, 0, 5], np.int16), [31768, 32768, 32773]),
        "uint16": (np.array([0, 7, 65535], np.uint16), [0, 7, 65535]),
        "whole": (np.array([-3, 0, 4], np.float32), [32765, 32768, 32772]),
        "real": (np.array([0.5, 1.0, 2.5], np.float32), [0, 16384, 65535]),
        "large": (np.array([0, 100_000, 50_000], np.int32), [0, 65535, 32768]),
    }
    for name, (array, expected) in values.items():
        save(tmp_path / f"{name}.nii", array.reshape(3, 1, 1))
        found = volume.slices(str(tmp_path / f"{name}.nii"), 0, False, 0)
        assert (found.dtype, found.ravel().tolist()) == (np.uint16, expected), name


def test_distances_of_a_volume_are_in_its_spacing_and_of_several_volumes_their_mean(root, tmp_path):
    truth, found = np.zeros((2, 3, 10, 10), bool)
    truth[1, 4:6, 2], found[1, 4:6, 5] = True, True
    assert hd95(truth, found) == 3
    assert hd95(truth, found, (6.0, 2.0, 1.5)) == 4.5
    assert hd95(truth, ~truth & False, (6.0, 2.0, 1.5)) == pytest.approx((18**2 + 20**2 + 15**2) ** 0.5)
    known = data(root)
    volumes = cache.load(known, known.scan(tmp_path), tmp_path, 1)
    assert volumes.stack.tolist() == np.repeat(np.arange(12), 6).tolist()
    np.testing.assert_allclose(volumes.spacing, [[6, 2, 1.5]] * 72)
    masks = volumes.masks.copy()
    masks[:6] = np.roll(masks[:6], 2, axis=2)  # two columns aside in the first volume of the first patient
    counts = np.zeros((6, 3, 3), int)
    row = patient_table(Evaluation(0.0, counts, 0.0, masks[:12]), volumes, np.arange(12)).rows[0]
    assert row["hd95/shell"] == pytest.approx(3.0 / 2)
    assert row["truth_ml/core"] == pytest.approx((volumes.masks[:12] == 2).sum() * 0.018)
    small = data(root, image_size=14)
    volumes = cache.load(small, small.scan(tmp_path), tmp_path, 1)
    np.testing.assert_allclose(volumes.spacing[0], [6, 2 * 28 / 14, 1.5 * 24 / 14])


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    outcome = train(tmp_path_factory.mktemp("volumes"), root, "epochs=15", "data.patch=16")
    assert outcome.status == "finished", outcome.error
    return outcome.folder


def test_a_run_is_tested_in_millimetres_and_predicts_volumes_in_their_place(made, root, tmp_path, capsys):
    assert json.loads((made / "run.json").read_text())["data"]["unit"] == "mm"
    split = json.loads((made / "split.json").read_text())
    assert next(iter(split["test"].values()))[:2] == ["frame01_001", "frame01_002"]
    tested = {row["patient"]: row for row in table(made / "patients.csv")}
    assert max(float(row["dice"]) for row in tested.values()) > 0.5
    assert report.main([str(made), "--out", str(tmp_path / "page")]) == 0
    assert "HD95 (mm)" in (tmp_path / "page" / "report.md").read_text()
    out = tmp_path / "out"
    assert predictions.main([str(made), str(root), "--out", str(out), "--overlays"]) == 0
    found = {row["patient"]: row for row in table(out / "predictions.csv")}
    for name, row in tested.items():
        assert {key: found[name][key] for key in row} == row
        assert float(found[name]["volume_ml/core"]) == float(row["predicted_ml/core"])
    for n in range(6):
        truth = nibabel.load(root / f"p{n}_frame12_gt.nii.gz")
        mask = nibabel.load(out / f"p{n}" / f"p{n}_frame12_mask.nii.gz")
        np.testing.assert_allclose(mask.affine, truth.affine)
        one, other = np.asarray(mask.dataobj), np.asarray(truth.dataobj)
        assert one.shape == other.shape
        assert (one == other).mean() > 0.8  # in another place, or mirrored, the ball would be elsewhere
    assert len(list(out.rglob("*_overlay.png"))) == 72


def test_a_single_volume_has_the_truth_that_the_runs_pattern_finds_beside_it_and_else_none(made, root, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(root / "p0_frame01.nii.gz", tmp_path / "alone")
    for folder, truth in ((root, True), (tmp_path / "alone", False)):
        out = tmp_path / f"out_{truth}"
        assert predictions.main([str(made), str(folder / "p0_frame01.nii.gz"), "--out", str(out)]) == 0
        (row,) = table(out / "predictions.csv")
        assert (row["patient"], row["slices"], "dice" in row) == ("p0", "6", truth)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "p1_frame01.nii.gz").write_bytes(b"no volume")
    assert predictions.main([str(made), str(tmp_path / "bad"), "--out", str(tmp_path / "none")]) == 1


def test_without_a_spacing_distances_are_in_voxels_and_the_report_says_so(tmp_path):
    for n in range(6):
        image, labels = body(n, 1)
        for name, array in (("p", image), ("p_gt", labels)):
            place = tmp_path / "data" / f"{name.replace('p', f'p{n}_frame1')}.nii.gz"
            save(place, array, spacing=(1, 1, 1), origin=(0, 0, 0))
    outcome = train(tmp_path, tmp_path / "data", "epochs=1", "data.axis=1", "augment=flips")
    assert outcome.status == "finished", outcome.error
    info = json.loads((outcome.folder / "run.json").read_text())
    assert "unit" not in info["data"]
    assert info["data"]["image_shape"] == [6, 24, 1]
    assert "truth_ml/core" not in table(outcome.folder / "patients.csv")[0]
    assert report.main([str(outcome.folder), "--out", str(tmp_path / "page")]) == 0
    assert "HD95 (px)" in (tmp_path / "page" / "report.md").read_text()


def other_spacing(root):
    save(root / "p1_frame12.nii.gz", body(1, 12)[0], spacing=(1.5, 2.0, 8.0))
    save(root / "p1_frame12_gt.nii.gz", body(1, 12)[1], spacing=(1.5, 2.0, 8.0))


def other_shape(root):
    save(root / "p1_frame12_gt.nii.gz", body(1, 12)[1][:, :20], ORIENTATIONS[1])


def elsewhere(root):
    save(root / "p1_frame12_gt.nii.gz", body(1, 12)[1], ORIENTATIONS[1], origin=(-20.0, 5.0, 70.0))


def fractions(root):
    save(root / "p1_frame12_gt.nii.gz", body(1, 12)[1].astype(np.float32) / 2, ORIENTATIONS[1])


def truncated(root):
    whole = gzip.decompress((root / "p1_frame12.nii.gz").read_bytes())
    (root / "p1_frame12.nii.gz").write_bytes(gzip.compress(whole[:2000]))


def nan(root):
    for file in root.glob("p1_frame01*"):
        file.unlink()
    save(root / "p1_frame12.nii.gz", np.full((24, 28, 6), np.nan, np.float32), ORIENTATIONS[1])


def two_types(root):
    save(root / "p1_frame12.nii.gz", body(1, 12)[0].astype(np.float32) + 0.25, ORIENTATIONS[1])


def nowhere(root):
    image = nibabel.load(root / "p1_frame12.nii.gz")
    image.header.set_sform(np.diag([1.0, 0, 1, 1]), code=1)
    nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header).to_filename(root / "p1_frame12.nii.gz")


def a_bomb(root):
    whole = gzip.decompress((root / "p1_frame12.nii.gz").read_bytes())
    sides = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    (root / "p1_frame12.nii.gz").write_bytes(gzip.compress(whole[:40] + sides + whole[48:]))


def cut_short(root):
    for file in root.glob("p1_frame12.nii.gz"):
        (root / "p1_frame12.nii").write_bytes(gzip.decompress(file.read_bytes())[:2000])
        file.unlink()


def a_class_more(root):
    save(root / "p1_frame12_gt.nii.gz", body(1, 12)[1] + np.uint8(1), ORIENTATIONS[1])


@pytest.mark.parametrize(
    ("spoil", "overrides", "says"),
    [
        (other_spacing, [], "patient p1: "),
        (other_spacing, [], "p1_frame12.nii.gz has the spacing 8 x 2 x 1.5 mm, "),
        (other_shape, [], "p1_frame12_gt.nii.gz is 6 x 20 x 24 along data.axis=2, its image "),
        (elsewhere, [], "p1_frame12_gt.nii.gz: lies elsewhere in the patient than its image "),
        (fractions, [], "p1_frame12_gt.nii.gz: 24 x 28 x 6, values from 0 to 1; expected labels: three dimensions"),
        (truncated, [], "p1_frame12.nii.gz: truncated, or damaged: "),
        (nan, [], "p1_frame12.nii.gz: some values are no numbers, or infinite"),
        (two_types, [], "each would be brought to 16 bit by itself, and both normalised together"),
        (nowhere, [], "p1_frame12.nii.gz: its affine gives its voxels no place"),
        (a_bomb, [], "p1_frame12.nii.gz: its header tells of 27,000,000,000,000 values, which are not there"),
        (cut_short, ["data.images=*.nii*"], "p1_frame12.nii: its header tells of "),
        (a_class_more, [], "label values outside the classes: 3"),
        (lambda root: (root / "p1_frame12.nii.gz").write_bytes(b"x"), [], "p1_frame12.nii.gz: not a NIfTI volume: "),
        (lambda root: None, ["data.normalise=unit"], "data.normalise=unit takes whole numbers of 8 or 16 bit"),
        (lambda root: None, ["data.axis=3"], "data.axis=3: expected a whole number from 0 to 2"),
        (lambda root: None, ["+data.roi=x/*"], "data.roi=x/*: volumes have no files of regions"),
        (lambda root: None, ["data.patch=30"], "data.patch=30: larger than any image: they are 28 x 24"),
    ],
)  # fmt: skip
def test_volumes_that_do_not_go_together_are_one_sentence_before_training(spoil, overrides, says, root, tmp_path):
    import shutil

    shutil.copytree(root, tmp_path / "data")
    spoil(tmp_path / "data")
    outcome = train(tmp_path, tmp_path / "data", *overrides)
    assert outcome.status == "failed"
    assert says in outcome.error
    assert "\n" not in outcome.error
    assert not list((tmp_path / "runs").glob("*/history.jsonl"))


def test_where_nibabel_is_not_installed_the_extra_is_named(root, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"reading NIfTI takes nibabel, which is not installed: pip install"):
        volume.header(str(root / "p0_frame01.nii.gz"), 2)


def test_distances_in_millimetres_are_monais():
    hausdorff = pytest.importorskip("monai.metrics").compute_hausdorff_distance
    truth, found = (body(0, k)[1] > 0 for k in (1, 2))
    for spacing in ((1.0, 1.0, 1.0), (1.5, 2.0, 6.0), (0.4, 3.0, 1.1)):
        one, other = (torch.from_numpy(volume)[None, None].float() for volume in (found, truth))
        expected = hausdorff(one, other, include_background=True, percentile=95, spacing=spacing).item()
        assert hd95(truth, found, spacing) == pytest.approx(expected, abs=1e-5)


def test_a_patients_distances_are_in_the_runs_unit_whoever_is_predicted_with_it(made, root, tmp_path):
    """And the columns are of all patients, not of the first."""
    given = tmp_path / "data"
    for name in ("p0_frame01", "p0_frame01_gt"):
        given.mkdir(exist_ok=True)
        shutil.copy(root / f"{name}.nii.gz", given)
    assert predictions.main([str(made), str(given), "--out", str(tmp_path / "alone")]) == 0
    (alone,) = table(tmp_path / "alone" / "predictions.csv")
    assert float(alone["truth_ml/core"]) > 0
    for company, shape in (("a0", (24, 28, 6)), ("a1", (26, 28, 6))):  # of the same group but for the spacing, and not
        for name, array in zip((f"{company}_frame01", f"{company}_frame01_gt"), body(1, 1, shape), strict=True):
            save(given / f"{name}.nii.gz", array, spacing=(1, 1, 1), origin=(0, 0, 0))
    patterns = OmegaConf.load(made / "config.yaml")
    patterns.data.patient = patterns.data.patient.replace(r"p\d", r"[ap]\d")
    run = shutil.copytree(made, tmp_path / "run")
    OmegaConf.save(patterns, run / "config.yaml")
    assert predictions.main([str(run), str(given), "--out", str(tmp_path / "all")]) == 0
    found = {row["patient"]: row for row in table(tmp_path / "all" / "predictions.csv")}
    assert {key: found["p0"][key] for key in alone} == alone
    assert [found[name]["truth_ml/core"] for name in ("a0", "a1")] == ["", ""]


def test_a_patients_folder_has_the_masks_that_the_run_finds_in_it(tmp_path):
    """The patterns and the expression begin above it."""
    image, truth = body(0, 1)
    for name, array in (("img/t1", image), ("img/t1_2", image), ("seg/t1", truth), ("seg/t1_2", truth)):
        save(tmp_path / "data" / "p0" / f"{name}.nii", array)
    node = {"_target_": "segsweep.segmentation.data.nifti.Nifti", "axis": 2}
    node |= {"images": "*/img/*.nii", "masks": "*/seg/*.nii"}
    node |= {"patient": r"(?P<patient>p\d)/\w+/(?P<volume>\w+)\.nii"}
    trained = data(tmp_path / "data", **{key: node[key] for key in ("images", "masks", "patient")}).scan(tmp_path)
    for given in (["data"], ["data/p0"], ["data/p0/img"], ["data/p0/img/t1_2.nii", "data/p0/img/t1.nii"]):
        found, problems = find([tmp_path / place for place in given], node)
        assert problems == []
        assert [item.name for item in found["p0"]] == trained.patients["p0"]
        assert {item.truth.parent.name for item in found["p0"]} == {"seg"}


def test_a_truth_that_cannot_be_used_costs_no_image(tmp_path, capsys):
    image, truth = body(0, 1)
    node = {"_target_": "segsweep.segmentation.data.nifti.Nifti", "axis": 2}
    save(tmp_path / "x.nii.gz", image)
    for spoil, said in (
        (lambda file: file.write_bytes(b"nothing"), "not a NIfTI volume"),
        (lambda file: save(file, truth, spacing=(3.0, 3.0, 3.0)), "lies elsewhere in the patient"),
        (lambda file: save(file, truth), ""),
    ):
        spoil(tmp_path / "x_mask.nii.gz")
        for given in ([tmp_path], [tmp_path / "x.nii.gz"], sorted(tmp_path.glob("*.nii.gz"))):
            found, problems = find(given, node)
            (slices,) = found.values()
            assert (len(slices), len(problems)) == (6, bool(said))
            assert all((item.truth is None) == bool(said) for item in slices)
            assert all(said in problem and "The image is predicted" in problem for problem in problems)


def test_the_order_of_bytes_in_a_file_changes_nothing(tmp_path):
    for name, array in (("int16", np.array([-3, 7, 300])), ("uint16", np.array([0, 7, 40_000]))):
        values = np.broadcast_to(array, (4, 5, 3))
        for order in "<>":
            kind = np.dtype(name).newbyteorder(order)
            head = nibabel.Nifti1Header(endianness=order)
            image = nibabel.Nifti1Image(values.astype(kind), np.diag([2.0, 2, 2, 1]), head)
            image.set_data_dtype(kind)
            nibabel.save(image, tmp_path / f"{name}{order}.nii")
        little, big = (str(tmp_path / f"{name}{order}.nii") for order in "<>")
        assert volume.header(little, 2).stored == volume.header(big, 2).stored == name
        np.testing.assert_array_equal(volume.slices(little, 2, False, 0), volume.slices(big, 2, False, 0))
