import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from segsweep.core.errors import ConfigError
from segsweep.segmentation.data.labels import ONE, VOID, labels
from segsweep.segmentation.evaluate import Evaluation, evaluate, flops, patient_table
from segsweep.segmentation.losses import CE, Counted, Dice
from segsweep.segmentation.models.r2unet import R2UNet
from segsweep.segmentation.models.unet import UNet


class Batches:
    """Seven slices of three patients in batches, as the real ones hand them out."""

    device, labels, void, patch = torch.device("cpu"), ONE, False, None

    def __init__(self, batch_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(7, 3, 8, 8, generator=generator)
        self.y = (torch.rand(7, 1, 8, 8, generator=generator) < 0.3).float()
        self.patient = torch.tensor([0, 0, 1, 1, 1, 3, 3])
        self.images, self.batch_size = 7, batch_size

    def epoch(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        yield from zip(*(t.split(self.batch_size) for t in (self.x, self.y, self.patient)), strict=True)


class First(nn.Module):
    """The first channel as logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return x[:, :1]


BCE = nn.BCEWithLogitsLoss()
run = partial(evaluate, patients=4, autocast=nullcontext)


def test_loss_and_counts_are_those_of_all_slices_at_once():
    batches = Batches(3)
    logits = batches.x[:, :1]
    found = run(First(), BCE, batches)
    assert found.loss == pytest.approx(BCE(logits, batches.y).item(), rel=1e-6)
    assert found.counts.dtype == np.int64
    assert found.counts.sum(axis=1).tolist() == [2 * 64, 3 * 64, 0, 2 * 64]
    for p in range(4):
        y, z = batches.y[batches.patient == p] > 0, logits[batches.patient == p] > 0
        expected = [(y & z).sum(), (~y & z).sum(), (y & ~z).sum(), (~y & ~z).sum()]
        assert found.counts[p].tolist() == [int(n) for n in expected]
    assert found.masks is None
    assert found.seconds > 0


@pytest.mark.parametrize("network", [UNet, R2UNet])
def test_the_batch_size_does_not_matter(network):
    torch.manual_seed(0)
    model = network(width=2, depth=2)
    whole, small = (run(model, BCE, Batches(size), keep=True) for size in (7, 2))
    assert small.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (small.counts == whole.counts).all()
    assert (small.masks == whole.masks).all()


def test_a_loss_over_the_batch_is_averaged_by_slices():
    batches = Batches(4)
    parts = [Dice()(batches.x[s, :1], batches.y[s]).item() for s in (slice(0, 4), slice(4, 7))]
    assert run(First(), Dice(), batches).loss == pytest.approx((4 * parts[0] + 3 * parts[1]) / 7)


def test_masks_come_in_the_order_of_the_slices():
    batches = Batches(2)
    masks = run(First(), BCE, batches, keep=True).masks
    assert masks.dtype == bool
    assert (masks == (batches.x[:, 0] > 0).numpy()).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before_also_after_an_error(training):
    model = First().train(training)
    run(model, BCE, Batches(7))
    assert model.training is training

    def fails(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(model, fails, Batches(7))
    assert model.training is training


def test_where_pixels_are_void_the_loss_is_of_all_others_whatever_the_batch():
    losses = []
    for size in (2, 3, 7):
        batches = Batches(size)
        batches.void = True
        batches.y[:3, :, 2:] = VOID
        losses.append(run(First(), Counted(BCE), batches).loss)
    known = batches.y != VOID
    assert losses == pytest.approx([BCE(batches.x[:, :1][known], batches.y[known]).item()] * 3)


def test_nothing_is_learned_from_an_evaluation():
    model = UNet(width=2, depth=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, BCE, Batches(7))
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_the_forward_pass_is_under_autocast_and_the_loss_is_of_float32():
    seen = []

    @contextmanager
    def autocast() -> Iterator[None]:
        seen.append("entered")
        with torch.autocast("cpu", torch.bfloat16):
            yield

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return logits.mean()

    model = nn.Conv2d(3, 1, 1)
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    evaluate(model, loss, Batches(7), patients=4, autocast=autocast)
    assert seen == ["entered", torch.bfloat16, torch.float32]


def test_an_infinite_loss_is_told():
    assert math.isinf(run(First(), lambda logits, target: logits.sum() / 0, Batches(7)).loss)


def test_patient_table_by_hand():
    """Slices of 2 x 4 pixels; patients: two pixels off, missed, empty and predicted so, not in this part."""
    truth = np.zeros((7, 2, 4), np.uint8)
    truth[0, 0, 0] = truth[3, 1, 2] = 1
    predicted = np.zeros((5, 2, 4), bool)
    predicted[0, 0, 2] = True
    volumes = SimpleNamespace(
        sizes=None,
        stack=None,
        spacing=None,
        patients=["ann", "bob", "cy", "dee"],
        patient=np.array([0, 0, 1, 1, 2, 3, 3]),
        masks=truth,
        labels=ONE,
        void=False,
    )
    counts = np.array([[0, 1, 1, 14], [0, 0, 1, 15], [0, 0, 0, 8], [0, 0, 0, 0]])
    table = patient_table(Evaluation(0.0, counts, 0.0, predicted), volumes, np.arange(5))
    pixels, scores = "truth_pixels,predicted_pixels,tp,fp,fn,tn", "dice,iou,precision,recall,accuracy,hd95,missed"
    assert [",".join(row) for row in table.rows] == [f"patient,slices,{pixels},{scores}"] * 3
    ann, bob, cy = table.rows
    assert (ann["patient"], ann["slices"], ann["truth_pixels"], ann["predicted_pixels"]) == ("ann", 2, 1, 1)
    assert (ann["tp"], ann["fp"], ann["fn"], ann["tn"]) == (0, 1, 1, 14)
    assert (ann["dice"], ann["accuracy"], ann["hd95"], ann["missed"]) == (0, 14 / 16, 2, 0)
    diagonal = math.sqrt(2**2 + 2**2 + 4**2)
    assert (bob["dice"], bob["hd95"], bob["missed"]) == (0, pytest.approx(diagonal), 1)
    assert math.isnan(cy["dice"])
    assert math.isnan(cy["hd95"])
    assert (cy["slices"], cy["missed"]) == (1, 0)
    assert table.summary == {"hd95": pytest.approx((2 + diagonal) / 2), "missed": 1}


def test_patient_table_takes_the_slices_of_the_part_only():
    truth = np.zeros((4, 1, 3), np.uint8)
    truth[1, 0, 0] = 1
    patient = np.array([0, 0, 1, 1])
    volumes = SimpleNamespace(
        sizes=None,
        stack=None,
        spacing=None,
        patients=["ann", "bob"],
        patient=patient,
        masks=truth,
        labels=ONE,
        void=False,
    )
    predicted = np.zeros((2, 1, 3), bool)
    predicted[0, 0, 2] = True
    counts = np.array([[0, 1, 1, 1], [0, 0, 0, 3]])
    rows = patient_table(Evaluation(0.0, counts, 0.0, predicted), volumes, np.array([1, 3])).rows
    assert [(row["patient"], row["slices"]) for row in rows] == [("ann", 1), ("bob", 1)]
    assert rows[0]["hd95"] == 2
    assert math.isnan(rows[1]["hd95"])


@pytest.mark.parametrize(("network", "expected"), [(UNet, 96.3), (R2UNet, 102.1)])
def test_flops_of_the_reports_networks(network, expected):
    assert round(flops(network(), 3, 256, 256), 1) == expected


def test_flops_are_twice_the_multiply_adds():
    model = nn.Conv2d(3, 8, 3, padding=1).train()
    assert flops(model, 3, 10, 20) == pytest.approx(2 * 200 * 3 * 8 * 9 / 1e9)
    assert model.training


def test_t_costs_flops_and_no_parameters():
    once, twice, thrice = (flops(R2UNet(t=t), 3, 64, 64) for t in (1, 2, 3))
    assert thrice - twice == pytest.approx(twice - once)
    assert once < twice


class OfClasses(Batches):
    """Of three classes and void, in pixels of random logits."""

    labels, void = labels(["background", "a", "b"]), True

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        generator = torch.Generator().manual_seed(1)
        self.y = torch.tensor([0.0, 1, 2, 255])[torch.randint(4, (7, 1, 8, 8), generator=generator)]
        self.y[self.patient == 3] = torch.where(self.y[self.patient == 3] == 2, 0.0, self.y[self.patient == 3])


class Itself(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_an_evaluation_of_classes_keeps_masks_and_probabilities():
    batches = OfClasses(3)
    loss = Counted(CE())
    found = run(Itself(), loss, batches, keep=True, probabilities=True)
    assert found.counts.shape == (4, 3, 3)
    assert found.counts.sum() == (batches.y != 255).sum()
    assert found.masks.dtype == np.uint8
    np.testing.assert_array_equal(found.masks, batches.x.argmax(1))
    np.testing.assert_allclose(found.probabilities, batches.x.softmax(1), atol=1e-3)
    np.testing.assert_allclose(
        run(First(), BCE, Batches(3), probabilities=True).probabilities, batches.x[:, :1].sigmoid(), atol=1e-3
    )


def test_the_table_of_classes_is_that_of_each_class_as_one_structure_with_void_taken_out():
    batches = OfClasses(7)
    found = run(Itself(), Counted(CE()), batches, keep=True)
    truth = batches.y[:, 0].byte().numpy()
    about = {"patients": ["ann", "bob", "cy", "dee"], "patient": batches.patient.numpy()}
    table = patient_table(
        found,
        SimpleNamespace(sizes=None, stack=None, spacing=None, masks=truth, labels=batches.labels, void=True, **about),
        np.arange(7),
    )
    assert [row["patient"] for row in table.rows] == ["ann", "bob", "dee"]
    ann = table.rows[0]
    assert ann["pixels"] == (truth[:2] != 255).sum()
    for k, name in enumerate("ab", start=1):
        known = truth != 255
        masks = (found.masks == k) & known
        counts = np.zeros((4, 4), np.int64)
        for p, t, q, v in zip(about["patient"], truth == k, masks, known, strict=True):
            counts[p] += [(t & q).sum(), (~t & q & v).sum(), (t & ~q).sum(), (~t & ~q & v).sum()]
        alone = SimpleNamespace(
            sizes=None, stack=None, spacing=None, masks=(truth == k).astype(np.uint8), labels=ONE, void=False, **about
        )
        single = patient_table(Evaluation(0.0, counts, 0.0, masks), alone, np.arange(7))
        for one, row in zip(single.rows, table.rows, strict=True):
            for key in one.keys() - {"patient", "slices", "accuracy"}:
                assert row[f"{key}/{name}"] == one[key], key
        assert table.summary[f"hd95/{name}"] == single.summary["hd95"]
    for row in table.rows:
        for key in ("dice", "hd95", "iou"):
            assert row[key] == pytest.approx(np.mean([row[f"{key}/a"], row[f"{key}/b"]]))


def test_void_of_one_structure_is_in_no_table():
    truth = np.array([[[1, 0, 255, 0]]], np.uint8)
    predicted = np.array([[[True, False, True, False]]])
    volumes = SimpleNamespace(
        sizes=None,
        stack=None,
        spacing=None,
        patients=["ann"],
        patient=np.array([0]),
        masks=truth,
        labels=ONE,
        void=True,
    )
    (row,) = patient_table(Evaluation(0.0, np.array([[1, 0, 0, 2]]), 0.0, predicted), volumes, np.arange(1)).rows
    assert (row["truth_pixels"], row["dice"], row["hd95"]) == (1, 1, 0)


def test_a_network_with_another_number_of_outputs_is_told():
    with pytest.raises(
        ConfigError, match=r"model: UNet gives 3 maps of logits, tried on images of 8 x 8, where 4 are needed: data\.cl"
    ):
        flops(UNet(out_channels=3, width=2, depth=1), 3, 8, 8, outputs=4)
    with pytest.raises(
        ConfigError, match=r"gives 3 maps of logits, tried on images of 8 x 8, where 1 is needed: one structure needs"
    ):
        flops(UNet(out_channels=3, width=2, depth=1), 3, 8, 8, outputs=1)
