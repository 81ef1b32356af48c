"""Images of any shape, and of several in one set: fitted or padded, never stretched, and padding decides nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_classes import table
from test_run import TINY, do

from segsweep.core.errors import DataError
from segsweep.report import __main__ as report
from segsweep.segmentation import predictions
from segsweep.segmentation.data import cache, images
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.folder import Folder
from segsweep.segmentation.data.labels import ONE, PADDED, VOID, sizes
from segsweep.segmentation.data.source import Stack
from segsweep.segmentation.evaluate import Evaluation, patient_table
from segsweep.segmentation.metrics import hd95

SHAPES = [(40, 36), (28, 44), (33, 30), (40, 36), (24, 24), (37, 41)]
FOLDER = ["data=folder", "data.image_size=null", "optim.lr=0.02", "batch_size=2", "eval_batch_size=3", "epochs=8"]


def write(root, shapes=SHAPES, slices=2) -> None:
    """A patient of each shape, with a bright bar to be found."""
    for n, (height, width) in enumerate(shapes):
        for k in range(slices):
            rng = np.random.default_rng([n, k])
            y, x = np.mgrid[:height, :width]
            bar = (abs(y - rng.integers(8, height - 8)) < 4) & (abs(x - width // 2) < width // 3)
            image = (np.where(bar, 170, 60) + rng.normal(0, 20, bar.shape)).clip(1, 255).astype(np.uint8)
            for folder, array in (("images", image), ("masks", bar.astype(np.uint8) * 255)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / folder / f"p{n}_{k}.png")


def train(place, root, *overrides):
    tiny = [o for o in TINY if not o.startswith("data.")]
    return do(place, *tiny, *FOLDER, f"data.root={root}", *overrides, tiny=False)


def folder(root, **changes):
    given = {"images": "images/*", "masks": "masks/*", "image_size": None, "normalise": "zscore", "model_width": 4}
    given["patient"] = r"(?P<patient>\w+)_(?P<slice>\d+)"
    return Folder(root=str(root), **given | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("sizes") / "data"
    write(place)
    return place


@pytest.fixture(scope="module", params=["null", "[32,40]"])
def made(request, root, tmp_path_factory):
    outcome = train(tmp_path_factory.mktemp("padded"), root, f"data.image_size={request.param}")
    assert outcome.status == "finished", outcome.error
    return outcome.folder


def test_a_run_of_several_sizes_learns_and_predicts_its_tests_numbers_at_the_files_sizes(made, root, tmp_path):
    info = json.loads((made / "run.json").read_text())
    assert info["data"]["padded"] is True
    assert info["data"]["image_shape"] in ([40, 44, 1], [32, 40, 1])
    tested = {row["patient"]: row for row in table(made / "patients.csv")}
    assert max(float(row["dice"]) for row in tested.values()) > 0.5
    assert (
        predictions.main([str(made), str(root), "--out", str(tmp_path / "out"), "--overlays", "--format", "png"]) == 0
    )
    found = {row["patient"]: row for row in table(tmp_path / "out" / "predictions.csv")}
    for name, row in tested.items():
        assert {key: found[name][key] for key in row} == row
        height, width = images.target(SHAPES[int(name[1])], [32, 40] if info["data"]["image_shape"][0] == 32 else None)
        assert sum(int(row[key]) for key in ("tp", "fp", "fn", "tn")) == 2 * height * width
    for file in (tmp_path / "out").rglob("*.png"):
        with Image.open(file) as image:
            assert image.size[::-1] == SHAPES[int(file.parent.name[1])]
    assert report.main([str(made), "--out", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    assert "left out: " not in text


def test_padding_enters_no_statistic_no_input_no_count_and_no_distance(root, tmp_path):
    known = folder(root)
    manifest = known.scan(tmp_path)
    assert manifest.room == (40, 44)
    tight, roomy = (cache.load(known, replace(manifest, room=room, digest=str(room)), tmp_path, 1)
                    for room in ((40, 44), (75, 140)))  # fmt: skip
    assert roomy.images.shape == (12, 75, 140, 1)
    assert (roomy.masks == PADDED).sum() == 12 * 75 * 140 - 2 * sum(h * w for h, w in SHAPES)
    np.testing.assert_array_equal(tight.shift, roomy.shift)
    np.testing.assert_array_equal(tight.scale, roomy.scale)
    for patient in range(len(SHAPES)):  # as if they had never been padded
        alone, _ = images.decode("p", manifest.files[f"p{patient}"], None)
        np.testing.assert_array_equal(tight.shift[patient], cache.statistics(alone)[:, 0].astype(np.float32))
    np.testing.assert_array_equal(tight.pixels[:, :-1], roomy.pixels[:, :-1])
    (x, y, _), (wide, labels, _) = (next(iter(Batches(v, np.arange(12), batch_size=12, device="cpu").epoch(0)))
                                    for v in (tight, roomy))  # fmt: skip
    assert torch.equal(x, wide[..., :40, :44])
    assert torch.equal(y, labels[..., :40, :44])
    assert not wide[..., 40:, :].any()
    assert (labels[..., 44:] == VOID).all()
    counts = np.ones((len(SHAPES), 4), int)
    tables = []
    for volumes in (tight, roomy):
        masks = np.zeros(volumes.masks.shape, bool)
        masks[:, 5:9, 5:9] = True
        masks[2:4] = False  # missed: the volume's diagonal
        masks[volumes.masks == PADDED] = True  # what a network says of padding is nothing
        tables.append(patient_table(Evaluation(0.0, counts, 0.0, masks), volumes, np.arange(12)).rows)
    assert tables[0] == tables[1]
    assert tables[0][1]["hd95"] == pytest.approx((2**2 + 28**2 + 44**2) ** 0.5)


def test_a_height_and_a_width_are_fitted_into_and_a_number_is_stretched_to():
    assert images.target((40, 36), [20, 24]) == (20, 18)
    assert images.target((584, 565, 3), [292, 300]) == (292, 282)
    assert images.target((10, 40), [32, 40]) == (10, 40)
    assert images.target((10, 20), [30, 30]) == (15, 30)
    assert images.target((40, 36), 24) == (24, 24)
    assert images.target((40, 36), None) == (40, 36)
    assert images.target((1000, 1), [8, 8]) == (8, 1)
    ramp = np.arange(32, dtype=np.uint8).reshape(4, 8, 1)
    assert images.resize(ramp, [2, 8])[..., 0].tolist() == [[5, 7, 9, 11], [21, 23, 25, 27]]
    found, masks = images.padded([images.resize(ramp, [4, 4])], [np.ones((2, 4), np.uint8)], (4, 4))
    assert found[0, :2, :, 0].tolist() == [[5, 7, 9, 11], [21, 23, 25, 27]]
    assert masks[0].tolist() == [[1] * 4, [1] * 4, [PADDED] * 4, [PADDED] * 4]
    assert sizes(masks).tolist() == [[2, 4]]


def test_images_of_one_size_are_not_padded(tmp_path):
    write(tmp_path / "data", [(40, 36)] * 3)
    known = folder(tmp_path / "data")
    manifest = known.scan(tmp_path)
    assert manifest.room is None
    volumes = cache.load(known, manifest, tmp_path, 1)
    assert (volumes.sizes, volumes.pixels, volumes.void) == (None, None, False)


def test_the_sizes_of_files_are_remembered_and_found_again_where_a_record_of_them_is_older(root, tmp_path):
    manifest = folder(root).scan(tmp_path)
    (memory,) = (tmp_path / "digests").iterdir()
    assert folder(root).scan(tmp_path) == manifest
    memory.write_text(json.dumps({name: entry[:4] for name, entry in json.loads(memory.read_text()).items()}))
    assert folder(root).scan(tmp_path) == manifest


def test_a_set_whose_images_have_several_numbers_of_channels_is_refused(root, tmp_path):
    write(tmp_path / "data")
    Image.new("RGB", (40, 30)).save(tmp_path / "data" / "images" / "p1_1.png")
    outcome = train(tmp_path, tmp_path / "data")
    assert "expected one number of channels, and of bits, for all slices of a patient" in outcome.error
    outcome = train(tmp_path, root, "data.image_size=32")
    assert outcome.status == "finished"  # each patient of one size: stretched, as ever


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ([40], r"data\.image_size=\[40\]: expected a number of pixels, or a height and a width, such as \[584,565\]"),
        ([40, 4], r"data\.image_size=4: expected a whole number of pixels from 8 to 4096"),
        ([40, "b"], r"data\.image_size=b: expected a whole number"),
        ("40,36", r"data\.image_size=40,36: expected a whole number"),
    ],
)
def test_a_size_that_is_none_is_told(size, says):
    with pytest.raises(DataError, match=says):
        folder("nowhere", image_size=size)


def test_slices_that_do_not_lie_on_one_another_have_each_a_distance_of_their_own(root, tmp_path):
    pattern = r"(?P<patient>p\d+)_(?P<volume>\d+)"
    manifest = folder(root, patient=pattern).scan(tmp_path)
    assert manifest.patients["p0"] == ["0", "1"]
    assert manifest.stacks["p0"] == [Stack(1, None)] * 2
    both = folder(root, patient=r"(?P<patient>p\d+)_(?P<volume>\d)(?P<slice>)").scan(tmp_path)
    assert both.stacks == manifest.stacks
    truth, found = np.zeros((2, 2, 20, 20), bool)
    truth[0, 2:6, 2:6], found[0, 2:6, 2:6] = True, True
    truth[1, 2:6, 2:6], found[1, 2:6, 9:13] = True, True
    about = {"patients": ["ann"], "patient": np.zeros(2, int), "masks": truth.astype(np.uint8), "void": False}
    about |= {"labels": ONE, "sizes": None, "spacing": None}
    scored = Evaluation(0.0, np.ones((1, 4), int), 0.0, found)
    rows = [patient_table(scored, SimpleNamespace(stack=stack, **about), np.arange(2)).rows[0]["hd95"]
            for stack in (None, np.arange(2))]  # fmt: skip
    assert rows[1] == (0 + hd95(truth[1:], found[1:])) / 2 == 3.5
    assert rows[0] != rows[1]  # through the first slice the second's surface is nearer
    outcome = train(tmp_path, root, f"data.patient='{pattern}'", "epochs=4")
    assert outcome.status == "finished", outcome.error
    assert predictions.main([str(outcome.folder), str(root), "--out", str(tmp_path / "out")]) == 0
    predicted = {row["patient"]: row for row in table(tmp_path / "out" / "predictions.csv")}
    for row in table(outcome.folder / "patients.csv"):
        assert {key: predicted[row["patient"]][key] for key in row} == row
