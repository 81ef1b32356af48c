"""What a segmentation is scored by: pixel counts per patient, the metrics made of them, and the surface distance HD95.

Every metric is one entry of `METRICS`, which tables, searches and the report read; nothing here imports torch, so that
they need not.

The empty-mask rule: where a patient's truth and prediction are both empty, an overlap (Dice, IoU, precision, recall) is
undefined: NaN, left out of means and counted. Where exactly one of them is empty it is 0, also for precision without a
prediction and recall without a truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segsweep.task import Metric, Spec

if TYPE_CHECKING:
    from torch import Tensor

Ratio = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class PixelMetric(Metric):
    """A metric that pixel counts give.

    Args:
        ratio: (tp, fp, fn, tn) -> (numerator, denominator); None where counts do not give the metric.
        pooled: computed once over the pixels of all patients, instead of per patient and then averaged.
    """

    ratio: Ratio | None = None
    pooled: bool = False


METRICS: dict[str, PixelMetric] = {
    "loss": PixelMetric(
        title="Loss",
        direction="min",
        format=".4f",
        mean_format=".3f",
        meaning="mean over slices of the loss trained with",
        scale=("loss", "eval_batch_size"),
    ),
    "accuracy": PixelMetric(
        title="Accuracy",
        column="acc.",
        direction="max",
        format=".4f",
        mean_format=".3f",
        bounds=(0.0, 1.0),
        meaning="share of all pixels that are right; mostly background, so nearly 1 for predicting nothing",
        ratio=lambda tp, fp, fn, tn: (tp + tn, tp + fp + fn + tn),
        pooled=True,
    ),
    "dice": PixelMetric(
        title="Dice",
        direction="max",
        format=".4f",
        mean_format=".3f",
        bounds=(0.0, 1.0),
        by_unit=True,
        meaning="2 |T and P| / (|T| + |P|) of a patient's volume, mean over patients",
        ratio=lambda tp, fp, fn, tn: (2 * tp, 2 * tp + fp + fn),
    ),
    "iou": PixelMetric(
        title="IoU",
        direction="max",
        format=".4f",
        mean_format=".3f",
        bounds=(0.0, 1.0),
        by_unit=True,
        meaning="|T and P| / |T or P| of a patient's volume (Jaccard), mean over patients",
        ratio=lambda tp, fp, fn, tn: (tp, tp + fp + fn),
    ),
    "precision": PixelMetric(
        title="Precision",
        column="",
        direction="max",
        format=".4f",
        bounds=(0.0, 1.0),
        meaning="share of the predicted pixels that are tumour, mean over patients",
        ratio=lambda tp, fp, fn, tn: (tp, tp + fp),
    ),
    "recall": PixelMetric(
        title="Recall",
        column="",
        direction="max",
        format=".4f",
        bounds=(0.0, 1.0),
        meaning="share of the tumour's pixels that are predicted, mean over patients",
        ratio=lambda tp, fp, fn, tn: (tp, tp + fn),
    ),
    "hd95": PixelMetric(
        title="HD95",
        direction="min",
        format=".2f",
        mean_format=".1f",
        bounds=(0.0, math.inf),
        by_unit=True,
        by_epoch=False,
        meaning="95th percentile of the distances between the two surfaces, in pixels, mean over patients; "
        "the volume's diagonal where one of the two is empty",
    ),
    "missed": PixelMetric(
        title="Missed",
        column="",
        direction="min",
        format=".0f",
        by_epoch=False,
        meaning="patients with a tumour of which no pixel was predicted",
    ),
    "undefined": PixelMetric(
        title="Undefined",
        column="",
        direction="min",
        format=".0f",
        meaning="patients with neither tumour nor prediction, left out of the means",
    ),
}
SPEC = Spec(
    metrics=METRICS,
    select="val/dice",
    unit="patient",
    sample="slice",
    repeats=("split.fold",),
    ignored=("workers", "compile", "data.root", "data.model_width", "split.file", "task.cache"),
    pace=("model*", "augment", "batch_size", "data", "data.image_size", "precision"),
    inputs=("data", "split", "precision", "device", "cache"),
    sections=("segsweep.segmentation.sections",),
)
"""What the record says of this task."""


def confusion(prediction: Tensor, target: Tensor, patient: Tensor, patients: int) -> Tensor:
    """Pixel counts of one batch by patient: (P, 4) int64, columns tp, fp, fn, tn, on the batch's device.

    Args:
        prediction: (B, 1, H, W) logits, tumour where above 0, or a bool mask.
        target: (B, 1, H, W) in {0, 1}.
        patient: (B,) int64, which patient each slice is of, 0 to patients - 1.
        patients: P, number of patients in the data set.
    """
    predicted, truth = (prediction > 0).flatten(1), (target > 0.5).flatten(1)
    counts = patient.new_empty(len(patient), 4)
    counts[:, 0] = tp = (predicted & truth).sum(1)
    counts[:, 1] = fp = predicted.sum(1) - tp
    counts[:, 2] = truth.sum(1) - tp
    counts[:, 3] = predicted.shape[1] - fp - counts[:, 2] - tp
    return patient.new_zeros(patients, 4).index_add_(0, patient, counts)


def per_patient(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric that counts give, by patient: name -> (P,) float64; NaN by the empty-mask rule, and for a patient
    without pixels."""
    tp, fp, fn, tn = np.asarray(counts, dtype=np.float64).T
    return {name: _ratio(metric, tp, fp, fn, tn) for name, metric in METRICS.items() if metric.ratio}


def summarise(counts: np.ndarray) -> dict[str, float]:
    """One number a metric for a part of the data, from counts (P, 4), columns tp, fp, fn, tn.

    Dice, IoU, precision and recall are the means over patients of the value for the patient's whole volume; accuracy is
    over all pixels, as in the report. `undefined` counts the patients without a Dice. Patients without pixels (not in
    this part) do not count. NaN where nothing is left to average.
    """
    counts = np.asarray(counts, dtype=np.float64)
    counts = counts[counts.sum(axis=1) > 0]
    values = per_patient(counts)
    pooled = per_patient(counts.sum(axis=0, keepdims=True))
    means = {name: pooled[name].item() if METRICS[name].pooled else mean(value) for name, value in values.items()}
    return {**means, "undefined": int(np.isnan(values["dice"]).sum())}


def mean(values: np.ndarray) -> float:
    """Mean of the values that are defined (not NaN); NaN, without a warning, where none is."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return values.mean().item() if len(values) else float("nan")


def hd95(truth: np.ndarray, prediction: np.ndarray) -> float:
    """95 % Hausdorff distance between two volumes (D, H, W) of bool, in pixels, a slice's thickness counted as one.

    A surface is the voxels of a volume with a neighbour (of 6) that is outside it or outside the image. The distances
    from each surface to the nearest voxel of the other have a 95th percentile; the larger of the two is the result.
    Both empty: NaN. One empty: the volume's diagonal, sqrt(D^2 + H^2 + W^2), farther than any two voxels can be apart.
    """
    from scipy import ndimage  # here, since tables that read METRICS need no scipy, which takes 0.3 s to import
    from scipy.spatial import KDTree

    if not truth.any() and not prediction.any():
        return float("nan")
    if not truth.any() or not prediction.any():
        return float(np.linalg.norm(truth.shape))
    # Outside the box around both everything is empty, so cutting it off changes no surface.
    (box,) = ndimage.find_objects((truth | prediction).astype(np.int8))
    surfaces = [np.argwhere(volume[box] & ~ndimage.binary_erosion(volume[box])) for volume in (truth, prediction)]
    # A k-d tree of the surfaces' voxels is as exact as a distance transform of the box and, with a few stray voxels,
    # many times faster.
    return max(np.percentile(KDTree(to).query(of)[0], 95).item() for of, to in (surfaces, reversed(surfaces)))


def _ratio(metric: PixelMetric, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    assert metric.ratio is not None
    numerator, denominator = metric.ratio(tp, fp, fn, tn)
    defined = tp + fp + fn + (tn if metric.pooled else 0) > 0
    return np.where(defined, numerator / np.where(denominator > 0, denominator, 1), np.nan)
