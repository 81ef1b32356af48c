"""Crops in training, overlapping windows in evaluation, prediction and export; and that both come again to the bit."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from test_classes import table
from test_run import TINY, do, same, weights
from test_sizes import SHAPES, write

from segsweep.segmentation import export, predictions
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.data.labels import PADDED, counted, sizes
from segsweep.segmentation.evaluate import evaluate, flops
from segsweep.segmentation.models.unet import UNet
from segsweep.segmentation.windows import slide, starts
from segsweep.segmentation.windows import weights as gaussian

FOLDER = ["data=folder", "data.image_size=null", "data.patch=16", "optim.lr=0.02", "batch_size=8", "eval_batch_size=3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("patches") / "data"
    write(place)
    return place


def train(place, root, *overrides):
    tiny = [o for o in TINY if not o.startswith("data.")]
    outcome = do(place, *tiny, *FOLDER, f"data.root={root}", *overrides, tiny=False)
    assert outcome.status in ("finished", "continued"), outcome.error
    return outcome


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained"), root, "epochs=6").folder


def test_windows_overlap_by_half_at_least_and_reach_both_edges():
    assert starts(100, 40) == [0, 20, 40, 60]
    assert starts(110, 40) == [0, 18, 35, 52, 70]
    assert starts(40, 40) == starts(9, 40) == [0]
    for length in range(16, 200):
        found = starts(length, 16)
        assert (found[0], found[-1]) == (0, length - 16)
        assert max(np.diff(found), default=0) <= 8


def test_a_pixelwise_network_gives_in_windows_what_it_gives_of_the_whole():
    model = torch.nn.Conv2d(2, 3, 1)
    x = torch.randn(2, 2, 50, 41)
    with torch.inference_mode():
        found = slide(model, x, [(50, 41), (23, 9)], (16, 12), at_once=4)
        torch.testing.assert_close(found[0], model(x)[0])
        torch.testing.assert_close(found[1, :, :23, :12], model(x)[1, :, :23, :12])
    assert not found[1, :, 23:].any()
    assert not found[1, :, :, 12:].any()


def test_the_blend_is_monais():
    inferers = pytest.importorskip("monai.inferers")
    model = UNet(1, 2, width=4, depth=2).eval()
    x = torch.randn(2, 1, 64, 96)
    with torch.inference_mode():
        found = slide(model, x, [(64, 96)] * 2, (32, 32), at_once=3)
        expected = inferers.sliding_window_inference(x, (32, 32), 4, model, overlap=0.5, mode="gaussian")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gaussian((32, 16))[15:17, 7:9].min() > 0.9
    assert gaussian((32, 16))[0, 0] == pytest.approx(1e-3)


def test_a_slice_has_the_same_logits_in_any_company_and_any_room():
    model = UNet(1, 1, width=4, depth=2).eval()
    x = torch.randn(3, 1, 40, 44)
    own = [(40, 44), (28, 30), (12, 44)]
    for n, (height, width) in enumerate(own):
        x[n, :, height:] = x[n, :, :, width:] = 0
    with torch.inference_mode():
        together = slide(model, x, own, (16, 16), at_once=4)
        for n, (height, width) in enumerate(own):
            alone = slide(model, x[n : n + 1, :, : max(16, height), : max(16, width)], [own[n]], (16, 16), at_once=4)
            assert torch.equal(together[n, :, :height, :width], alone[0, :, :height, :width])


def made_up() -> Volumes:
    """Six slices of several sizes whose pixels say where they are: slice, row and column."""
    own = [(20, 30), (33, 17), (8, 9), (16, 16), (40, 41), (25, 25)]
    images, masks = np.zeros((6, 40, 41, 3), np.uint8), np.full((6, 40, 41), PADDED, np.uint8)
    for n, (height, width) in enumerate(own):
        rows, columns = np.mgrid[:height, :width]
        images[n, :height, :width] = np.stack([np.full_like(rows, n), rows, columns], axis=2)
        masks[n, :height, :width] = (rows + columns) % 2
    names = [str(n) for n in range(6)]
    shift, scale = np.zeros((6, 3), np.float32), np.ones((6, 3), np.float32)
    return Volumes(
        images, masks, np.arange(6), names, names, shift, scale, None, "", "",
        pixels=counted(masks, 2), sizes=sizes(masks),
    )  # fmt: skip


def test_an_epoch_has_as_many_crops_of_a_slice_as_cover_it_each_within_it(monkeypatch):
    volumes = made_up()
    batches = Batches(volumes, np.arange(6), batch_size=4, device="cpu", shuffle=True, patch=(16, 16))
    first = list(batches.epoch(1))
    x, y, patient = (torch.cat(parts) for parts in zip(*first, strict=True))
    assert [int((patient == n).sum()) for n in range(6)] == [4, 6, 1, 1, 9, 4]
    assert batches.images == len(x) == 25
    assert x.shape[1:] == (3, 16, 16)
    seen = set()
    for crop, label, n in zip(x, y, patient.tolist(), strict=True):
        height, width = (int(min(16, side)) for side in volumes.sizes[n])
        top, left = int(crop[1, 0, 0]), int(crop[2, 0, 0])
        rows, columns = np.mgrid[top : top + height, left : left + width]
        expected = np.stack([np.full_like(rows, n), rows, columns])
        np.testing.assert_array_equal(crop[:, :height, :width], expected)
        np.testing.assert_array_equal(label[0, :height, :width], (rows + columns) % 2)
        assert (label[0, height:] == 255).all()
        assert (label[0, :, width:] == 255).all()
        seen.add((n, top, left))
    assert len(seen) > 18
    again = list(batches.epoch(1))
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )
    other = torch.cat([x for x, _, _ in batches.epoch(2)])
    assert not torch.equal(x, other)
    here = torch.from_numpy(volumes.images), torch.from_numpy(volumes.masks)  # as a set that lives on a GPU
    monkeypatch.setattr(Batches, "resident", lambda self: here)
    again = list(batches.epoch(1))
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_every_place_of_a_slice_comes_up():
    volumes = made_up()
    batches = Batches(volumes, np.arange(1), batch_size=4, device="cpu", shuffle=True, patch=(16, 16))
    corners = {(int(c[1, 0, 0]), int(c[2, 0, 0])) for seed in range(300) for x, _, _ in batches.epoch(seed) for c in x}
    assert corners == {(top, left) for top in range(5) for left in range(15)}


def test_a_run_on_crops_learns_is_tested_on_whole_slices_and_predicts_the_same(made, root, tmp_path):
    info = json.loads((made / "run.json").read_text())
    assert info["data"]["patch"] == [16, 16]
    assert info["gflops"] == 20 * flops(UNet(1, 1, width=4, depth=2), 1, 16, 16)  # 4 x 5 windows of 40 x 44 pixels
    tested = {row["patient"]: row for row in table(made / "patients.csv")}
    assert max(float(row["dice"]) for row in tested.values()) > 0.5
    out = tmp_path / "out"
    assert predictions.main([str(made), str(root), "--out", str(out), "--format", "png", "--probabilities"]) == 0
    found = {row["patient"]: row for row in table(out / "predictions.csv")}
    for name, row in tested.items():
        height, width = SHAPES[int(name[1])]
        assert sum(int(row[key]) for key in ("tp", "fp", "fn", "tn")) == 2 * height * width
        assert {key: found[name][key] for key in row} == row
    one = next(iter(tested))
    file = root / "images" / f"{one}_0.png"
    with Image.open(file) as image, Image.open(out / one / f"{one}_0_mask.png") as mask:
        assert image.size == mask.size


def test_a_larger_image_than_any_of_the_training_is_predicted_in_more_windows(made, tmp_path):
    write(tmp_path / "large", [(70, 90)])
    assert predictions.main([str(made), str(tmp_path / "large"), "--out", str(tmp_path / "out")]) == 0
    (row,) = table(tmp_path / "out" / "predictions.csv")
    assert float(row["dice"]) > 0.3
    with Image.open(next((tmp_path / "out").rglob("*_mask.tif"))) as mask:
        assert mask.size == (90, 70)


def test_an_export_takes_windows_and_says_how_to_lay_them(made, tmp_path):
    assert export.main([str(made), "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "model.json").read_text())
    assert "(batch, 1, 16, 16)" in about["input"]
    assert "ceil((n - s) / (0.5 s)) + 1" in about["windows"]
    assert "Gaussian around the middle of standard deviation 0.125 s" in about["windows"]


def test_epochs_that_are_shared_and_gone_on_with_are_those_of_one_run(root, tmp_path):
    asked = ["scheduler=constant", "augment=affine", "micro_batches=2"]
    train(tmp_path / "a", root, *asked, "epochs=1")
    outcome = train(tmp_path / "a", root, *asked, "epochs=3")
    assert outcome.status == "continued"
    whole = train(tmp_path / "b", root, *asked, "epochs=3")
    assert whole.status == "finished"
    assert same(weights(outcome), weights(whole))
    assert table(outcome.folder / "patients.csv") == table(whole.folder / "patients.csv")


def test_a_batch_of_crops_in_parts_has_the_loss_of_the_whole(root, tmp_path):
    """But for BatchNorm, which sees the parts: evaluation has none of them, and is equal to the bit."""
    known = Batches(made_up(), np.arange(6), batch_size=6, device="cpu", patch=(16, 16))
    model = UNet(3, 1, width=4, depth=2)
    plain = partial(torch.autocast, "cpu", enabled=False)
    asked = partial(evaluate, model, torch.nn.BCEWithLogitsLoss(), known, patients=6, autocast=plain)
    counts = [asked(parts=parts).counts.tolist() for parts in (1, 3)]
    assert counts[0] == counts[1]
    assert np.sum(counts[0]) == made_up().sizes.prod(1).sum()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.patch=42"],
            "data.patch=42: larger than any image: they are 40 x 44, or padded to it, and padding allows",
        ),
        (["data.patch=[16,45]"], "data.patch=[16, 45]: larger than any image: they are 40 x 44"),
        (["data.image_size=[32,40]", "data.patch=33"], "data: data.patch=33: larger than any image: they are 32 x 40"),
        (["data.patch=4"], "data.patch=4: expected a whole number of pixels from 8 to 4096"),
    ],
)
def test_a_patch_larger_than_padding_allows_is_one_sentence_before_training(overrides, says, root, tmp_path):
    tiny = [o for o in TINY if not o.startswith("data.")]
    outcome = do(tmp_path, *tiny, *FOLDER, f"data.root={root}", *overrides, tiny=False)
    assert outcome.status == "failed"
    assert says.removeprefix("data: ") in outcome.error
    assert "\n" not in outcome.error


def test_a_patch_decides_no_decoded_pixel(root, tmp_path):
    from test_sizes import folder

    whole, crops = folder(root), folder(root, patch=16)
    manifest = whole.scan(tmp_path)
    assert cache._key(whole, manifest) == cache._key(crops, crops.scan(tmp_path))
    assert do(tmp_path, "data.patch=16", "epochs=1").status == "finished"
