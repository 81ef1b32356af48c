import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from segsweep.segmentation.metrics import METRICS, confusion, hd95, mean, per_patient, summarise

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
