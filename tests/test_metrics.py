import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU, compute_hausdorff_distance
from scipy import ndimage
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score
from torch import nn

from segsweep.segmentation.data.labels import labels
from segsweep.segmentation.metrics import (
    METRICS,
    SPEC,
    confusion,
    hd95,
    mean,
    of_classes,
    per_patient,
    spec_for,
    spec_of,
    summarise,
)
from segsweep.task import Spec

NAN = math.nan
# tp, fp, fn, tn of five patients of 100 pixels each, the last without a slice in this part.
COUNTS = np.array([[8, 2, 4, 86], [0, 0, 5, 95], [0, 3, 0, 97], [0, 0, 0, 100], [0, 0, 0, 0]])


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[float(pixel) for pixel in row] for row in rows])


def test_confusion_of_four_pixels_by_hand():
    # slice:   0 (patient 2)   1 (patient 0)   2 (patient 2)
    logits = torch.stack([mask("19", "00"), mask("11", "11"), mask("00", "01")])[:, None] - 0.5
    truth = torch.stack([mask("10", "10"), mask("10", "00"), mask("00", "11")])[:, None]
    patient = torch.tensor([2, 0, 2])
    expected = [[1, 3, 0, 0], [0, 0, 0, 0], [1 + 1, 1 + 0, 1 + 1, 1 + 2]]
    for prediction in (logits, logits > 0):
        counts = confusion(prediction, truth, patient, patients=3)
        assert counts.dtype == torch.int64
        assert counts.tolist() == expected


def test_a_logit_of_zero_is_background():
    assert confusion(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([0]), 1).tolist() == [
        [0, 0, 1, 1]
    ]


def test_bf16_counts_beyond_256_pixels_are_exact():
    logits = torch.ones(1, 1, 100, 100, dtype=torch.bfloat16)
    assert confusion(logits, torch.ones(1, 1, 100, 100), torch.tensor([0]), 1).tolist() == [[10_000, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", [16 / 22, 0, 0, NAN, NAN]),
        ("iou", [8 / 14, 0, 0, NAN, NAN]),
        ("precision", [0.8, 0, 0, NAN, NAN]),
        ("recall", [8 / 12, 0, 0, NAN, NAN]),
        ("accuracy", [0.94, 0.95, 0.97, 1, NAN]),
    ],
)
def test_per_patient_by_hand_with_the_empty_mask_rule(name, expected):
    np.testing.assert_allclose(per_patient(COUNTS)[name], expected)


def test_summary_is_the_mean_of_the_defined_patients_and_accuracy_of_all_pixels():
    assert summarise(COUNTS) == pytest.approx(
        {
            "accuracy": 386 / 400,
            "dice": 16 / 22 / 3,
            "iou": 8 / 14 / 3,
            "precision": 0.8 / 3,
            "recall": 8 / 12 / 3,
            "undefined": 1,
        }
    )


def test_a_patient_counts_once_however_many_slices_it_has():
    assert summarise(np.array([[10, 0, 10, 980], [1000, 0, 0, 99_000]]))["dice"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("counts", [COUNTS[3:], COUNTS[4:]])
def test_nothing_defined_is_nan_and_no_warning(counts):
    summary = summarise(counts)
    assert all(math.isnan(summary[name]) for name in ("dice", "iou", "precision", "recall"))
    assert summary["undefined"] == len(counts) - 1


def test_predicting_nothing_has_a_high_accuracy_and_no_dice():
    summary = summarise(np.array([[0, 0, 1, 99]] * 3))
    assert (summary["accuracy"], summary["dice"]) == (0.99, 0)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 1, 8, 8, generator=generator)
    truth = (torch.rand(6, 1, 8, 8, generator=generator) < 0.2).float()
    patient = torch.tensor([0, 0, 1, 2, 2, 2])
    counts = confusion(logits, truth, patient, 3).numpy()
    found = per_patient(counts)
    for p in range(3):
        y, z = truth[patient == p].flatten().numpy() > 0, (logits[patient == p] > 0).flatten().numpy()
        assert found["dice"][p] == pytest.approx(f1_score(y, z))
        assert found["iou"][p] == pytest.approx(jaccard_score(y, z))
        assert found["precision"][p] == pytest.approx(precision_score(y, z))
        assert found["recall"][p] == pytest.approx(recall_score(y, z))
        assert found["accuracy"][p] == pytest.approx(accuracy_score(y, z))
    everything = accuracy_score(truth.flatten().numpy() > 0, (logits > 0).flatten().numpy())
    assert summarise(counts)["accuracy"] == pytest.approx(everything)


def test_mean_leaves_out_what_is_undefined():
    assert mean(np.array([1.0, NAN, 3.0])) == 2
    assert math.isnan(mean(np.array([NAN])))
    assert math.isnan(mean(np.array([])))


CLASSES = ("background", "a", "b")
# Of [truth, prediction] for patients: all right but two pixels; b neither there nor predicted; b there and missed, a
# predicted and not there; without a slice in this part.
MATRICES = np.array(
    [
        [[80, 1, 0], [0, 8, 1], [0, 0, 10]],
        [[90, 2, 0], [0, 8, 0], [0, 0, 0]],
        [[90, 5, 0], [0, 0, 0], [5, 0, 0]],
        np.zeros((3, 3)),
    ]
)


def matrix(truth: np.ndarray, predicted: np.ndarray, patient: np.ndarray, patients: int, classes: int) -> np.ndarray:
    """Pixel by pixel."""
    found = np.zeros((patients, classes, classes), int)
    for p, ts, qs in zip(patient, truth, predicted, strict=True):
        for t, q in zip(ts.flat, qs.flat, strict=True):
            if t != 255:
                found[p, t, q] += 1
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confusion_of_classes_is_counted_pixel_by_pixel(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 6, 7, generator=generator).to(dtype)
    truth = torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (5, 1, 6, 7), generator=generator)].float()
    patient = torch.tensor([2, 0, 2, 2, 0])
    counts = confusion(logits, truth, patient, 3)
    assert counts.dtype == torch.int64
    expected = matrix(truth[:, 0].long().numpy(), logits.argmax(1).numpy(), patient.numpy(), 3, 4)
    np.testing.assert_array_equal(counts.numpy(), expected)


def test_void_of_one_structure_is_not_counted():
    truth = mask("10", "10")[None, None]
    truth[0, 0, 1, :] = 255
    assert confusion(mask("11", "11")[None, None], truth, torch.tensor([0]), 1, void=True).tolist() == [[1, 1, 0, 0]]
    assert confusion(mask("00", "11")[None, None], truth, torch.tensor([0]), 1, void=True).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice/a", [16 / 18, 16 / 18, 0, NAN]),
        ("dice/b", [20 / 21, NAN, 0, NAN]),
        ("dice", [(16 / 18 + 20 / 21) / 2, 16 / 18, 0, NAN]),
        ("iou/a", [0.8, 0.8, 0, NAN]),
        ("precision/b", [10 / 11, NAN, 0, NAN]),
        ("recall/a", [8 / 9, 1, 0, NAN]),
        ("recall", [(8 / 9 + 1) / 2, 1, 0, NAN]),
        ("accuracy", [0.98, 0.98, 0.9, NAN]),
    ],
)
def test_classes_of_patients_by_hand_with_the_empty_mask_rule(name, expected):
    np.testing.assert_allclose(per_patient(MATRICES, CLASSES[1:])[name], expected)


def test_summary_of_classes_is_over_a_patients_classes_and_then_over_patients():
    found = summarise(MATRICES, CLASSES[1:])
    assert found["dice/a"] == pytest.approx((16 / 18 + 16 / 18 + 0) / 3)
    assert found["dice/b"] == pytest.approx(20 / 21 / 2)
    assert found["dice"] == pytest.approx(((16 / 18 + 20 / 21) / 2 + 16 / 18 + 0) / 3)
    assert found["accuracy"] == pytest.approx(286 / 300)
    assert (found["undefined"], found["undefined/a"], found["undefined/b"]) == (1, 0, 1)
    assert set(found) == {name for name in spec_of(labels(list(CLASSES))).metrics if "hd95" not in name} - {
        "loss", "missed", "missed/a", "missed/b"
    }  # fmt: skip


def test_classes_are_scored_as_one_structure_each_would_be():
    counts = of_classes(MATRICES)
    for k, name in enumerate(CLASSES[1:]):
        for metric in ("dice", "iou", "precision", "recall"):
            np.testing.assert_array_equal(
                per_patient(MATRICES, CLASSES[1:])[f"{metric}/{name}"], per_patient(counts[:, k])[metric]
            )


@pytest.mark.parametrize("seed", range(3))
def test_classes_agree_with_monai_where_neither_mask_is_empty(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 12, 12, generator=generator)
    truth = torch.randint(4, (2, 1, 12, 12), generator=generator)
    one_hot = [nn.functional.one_hot(x, 4).movedim(-1, 1) for x in (logits.argmax(1), truth[:, 0])]
    found = per_patient(confusion(logits, truth.float(), torch.arange(2), 2).numpy(), "abc")
    for name, expected in (
        ("dice", DiceMetric(include_background=False, reduction="none")(*one_hot)),
        ("iou", MeanIoU(include_background=False, reduction="none")(*one_hot)),
    ):
        for k, one in enumerate("abc"):
            np.testing.assert_allclose(found[f"{name}/{one}"], expected[:, k], atol=1e-5)
        np.testing.assert_allclose(found[name], expected.mean(1), atol=1e-5)


def test_what_a_task_of_classes_measures_says_its_rule():
    spec = spec_of(labels(["background", "rv", "myo"]))
    assert (spec.primary, spec.select) == ("dice", "val/dice")
    assert spec.metrics["dice"].title == "Dice of 2 classes"
    assert "but the background (rv, myo), then over patients" in spec.metrics["dice"].meaning
    assert spec.metrics["dice/rv"].title == "Dice of rv"
    assert spec.metrics["dice/rv"].column == ""
    assert spec.metrics["dice/rv"].by_unit
    assert not spec.metrics["hd95/rv"].by_epoch
    assert spec_of(labels(3)).metrics["dice/1"].title == "Dice of class 1"
    assert list(Spec.from_json(json.loads(json.dumps(spec.to_json()))).scores) == list(spec.scores)
    assert spec_of(labels(None)) is SPEC
    assert spec_for({"data": {"classes": "nonsense"}}) is spec_for({}) is SPEC
    assert set(spec_of(labels(None, [255])).metrics) == set(SPEC.metrics)


def box(*bounds: tuple[int, int], shape: tuple[int, int, int] = (12, 20, 20)) -> np.ndarray:
    volume = np.zeros(shape, dtype=bool)
    volume[tuple(slice(*b) for b in bounds)] = True
    return volume


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0, 1, 3, 5])
def test_hd95_of_a_shifted_box_is_the_shift(axis, shift):
    bounds = [(2, 6), (4, 9), (5, 11)]
    moved = [(low + shift * (i == axis), high + shift * (i == axis)) for i, (low, high) in enumerate(bounds)]
    assert hd95(box(*bounds), box(*moved)) == shift


def test_hd95_of_two_voxels_is_their_distance_in_pixels_and_slices():
    assert hd95(box((1, 2), (2, 3), (3, 4)), box((3, 4), (5, 6), (9, 10))) == 7  # sqrt(2^2 + 3^2 + 6^2)


def test_hd95_takes_the_worse_direction_and_is_symmetric():
    point, bar = box((5, 6), (5, 6), (0, 1)), box((5, 6), (5, 6), (0, 20))
    # From the bar to the point it is 0, 1, ..., 19, of which the 95th percentile is 0.95 * 19; back it is 0.
    assert hd95(point, bar) == hd95(bar, point) == pytest.approx(18.05)


def test_hd95_leaves_a_few_stray_voxels_to_the_other_five_percent():
    truth = box((2, 10), (2, 10), (2, 10))
    stray = truth | box((11, 12), (19, 20), (19, 20))
    assert hd95(truth, stray) == 0


def test_hd95_counts_the_inside_of_a_hole_as_surface():
    solid = box((2, 9), (5, 12), (5, 12))
    hollow = solid & ~box((5, 6), (8, 9), (8, 9))
    assert hd95(solid, hollow) < 3  # the six voxels around the hole are 2 from the outside, few of all
    shell = solid & ~box((3, 8), (6, 11), (6, 11))
    assert hd95(solid, shell) == 0  # the same outer surface; the inner one of a shell of one voxel is the same voxels


def test_hd95_of_one_empty_is_the_diagonal_and_of_two_empty_undefined():
    something, nothing = box((0, 1), (0, 1), (0, 1)), np.zeros((12, 20, 20), dtype=bool)
    diagonal = math.sqrt(12**2 + 20**2 + 20**2)
    assert hd95(something, nothing) == hd95(nothing, something) == pytest.approx(diagonal)
    assert math.isnan(hd95(nothing, nothing))
    full = np.ones((12, 20, 20), dtype=bool)
    assert hd95(something, full) < diagonal


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # monai warns of its own call
@pytest.mark.parametrize("seed", range(6))
def test_hd95_agrees_with_monai(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = (ndimage.gaussian_filter(rng.normal(size=(8, 16, 16)), 1.5) > 0.1 for _ in range(2))
    prediction |= rng.random(truth.shape) < 0.005
    y, z = (torch.from_numpy(volume)[None, None] for volume in (truth, prediction))
    expected = compute_hausdorff_distance(z, y, include_background=True, percentile=95)
    assert hd95(truth, prediction) == pytest.approx(expected.item(), rel=1e-6)


def test_every_metric_formats_and_says_what_it_is():
    assert {"loss", "accuracy", "dice", "iou", "precision", "recall", "hd95", "missed", "undefined"} <= set(METRICS)
    for name, metric in METRICS.items():
        assert format(0.5, metric.format), name
        assert metric.meaning, name
    assert {name for name, metric in METRICS.items() if metric.direction == "min"} == {
        "loss",
        "hd95",
        "missed",
        "undefined",
    }


def test_the_table_of_metrics_needs_no_torch():
    program = "import sys, segsweep.segmentation.metrics; print('torch' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
