"""What a segmentation is scored by: pixel counts per patient, the metrics made of them, and the surface distance HD95.
Of several classes each but the background is scored as one structure is, and a patient's value is the mean over them.

Every metric is one entry of `METRICS`, which tables, searches and the report read; nothing here imports torch, so that
they need not.

The empty-mask rule: where a patient's truth and prediction are both empty, an overlap (Dice, IoU, precision, recall) is
undefined: NaN, left out of means and counted. Where exactly one of them is empty it is 0, also for precision without a
prediction and recall without a truth. The same holds by patient and class.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from segsweep.core.errors import ConfigError, DataError
from segsweep.segmentation.data.labels import VOID, Labels, labels_of
from segsweep.segmentation.kinds import NETWORKS
from segsweep.segmentation.scores import chosen, described, diagonal, surface_distances
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
        meaning="95th percentile of the distances between the two surfaces, in pixels, or in millimetres where files "
        "say their spacing, mean over patients; the volume's diagonal where one of the two is empty",
    ),
    "missed": PixelMetric(
        title="Missed",
        column="",
        direction="min",
        format=".0f",
        by_epoch=False,
        meaning="patients, or where they have several volumes these, with a tumour of which no pixel was predicted",
    ),
    "undefined": PixelMetric(
        title="Undefined",
        column="",
        direction="min",
        format=".0f",
        meaning="patients with neither tumour nor prediction, left out of the means",
    ),
}
CODE = ("task", *(f"models.{name}" for name in NETWORKS), "losses", "schedules", "scores")
CODE += ("data.phantom", "data.lgg", "data.folder", "data.nifti", "data.augment")
"""All that the configuration may name; with what these import, the code that decides a number."""
SPEC = Spec(
    metrics=METRICS,
    select="val/dice",
    unit="patient",
    sample="slice",
    repeats=("split.fold",),
    neutral=dict.fromkeys(("data.classes", "data.roi", "data.patch", "loss.weights", "deep_supervision"))
    | {"data.ignore": [], "scheduler.by": "epoch", "metrics": [], "ema": None, "early_stopping": None}
    | dict.fromkeys((f"augment.{key}" for key in ("noise", "blur", "brightness", "contrast", "gamma")), 0)
    | {"test_weights": "last"},
    describing=("metrics",),
    endings={"metrics": (), "early_stopping": (), "test_weights": ("last", "best")},
    ignored=("workers", "compile", "data.root", "data.model_width", "split.file", "task.cache"),
    pace=("model*", "augment", "batch_size", "data", "data.image_size", "data.patch", "precision"),
    inputs=("data", "split", "precision", "device", "cache"),
    code=tuple(f"segsweep.segmentation.{name}" for name in CODE),
    alike=("data.image_size",),
    validation="split=patient split.val=0.15",
    sections=("segsweep.segmentation.sections",),
)
"""What the record says of this task, where there is one structure."""
CONFUSION = "confusion.json"
"""File of a run of several classes: the test's pixels, a list for each class that they are of, by the class that they
were taken for."""
DISTANCES = ("hd95", "assd")
"""In pixels, or in millimetres where files say their spacing."""
SCORES = ("dice", "iou", "hd95", "precision", "recall")
"""What a patient has of each class."""


def called(name: str) -> str:
    """A class in a title: one without a name is known by its number."""
    return f"class {name}" if name.isdecimal() else name


def spec_of(labels: Labels, scores: Mapping[str, Any] | None = None) -> Spec:
    """`SPEC`, with the `scores` that were chosen beside; of several classes its metrics are means over them, and those
    of each are there as METRIC/NAME. What is averaged over other classes is no score to compare by."""
    more = described(scores or {}, labels.structures)
    if not labels.names and not labels.ignore:
        return replace(SPEC, metrics={**METRICS, **more}) if more else SPEC
    metrics: dict[str, Metric] = dict(METRICS)
    if several := labels.structures:
        count, named = len(several), ", ".join(map(called, several))
        over = f" of {count} classes" if count > 1 else f" of {named}"
        counted = {"missed": "times that a class is in a volume and no pixel of it was predicted"}
        counted |= {"undefined": "pairs of patient and class with neither truth nor prediction, left out of the means"}
        for name in (*SCORES, *counted):
            plain = METRICS[name]
            what = plain.meaning.removesuffix(", mean over patients").replace("tumour", "class")
            what = what.replace(", mean over patients;", ";")
            rule = f"{what}; mean over a patient's classes but the background ({named}), then over patients"
            metrics[name] = replace(
                plain, title=f"{plain.title}{over}", meaning=counted.get(name, rule), by_unit=name in SCORES
            )
        for name in (*SCORES, *counted):
            for one in several:
                of_one = replace(metrics[name], title=f"{METRICS[name].title} of {called(one)}", column="")
                what = f"{METRICS[name].meaning.replace('tumour', 'class')}: of {called(one)} alone"
                metrics[f"{name}/{one}"] = replace(of_one, meaning=what)
    scale = ("data.classes", "data.ignore")
    metrics |= more
    return replace(SPEC, metrics={name: replace(m, scale=(*m.scale, *scale)) for name, m in metrics.items()})


def spec_for(given: Mapping[str, Any]) -> Spec:
    """Of a configuration's settings; where its classes are none, which their data set tells, that of one structure."""
    try:
        return spec_of(labels_of(given.get("data") or {}), chosen(given.get("metrics") or [], tuple(METRICS)))
    except (ConfigError, DataError):
        return SPEC


def decide(logits: Tensor) -> Tensor:
    """Logits (B, C, H, W) to the predicted mask (B, H, W): bool of one structure, uint8 of the likeliest class."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1).byte()


def confusion(prediction: Tensor, target: Tensor, patient: Tensor, patients: int, void: bool = False) -> Tensor:
    """Pixel counts of one batch by patient, on the batch's device: (P, 4) int64, columns tp, fp, fn, tn, of one
    structure; (P, C, C) of C classes, of [p, t, q] the pixels of t that were taken for q.

    Args:
        prediction: (B, 1, H, W) logits, tumour where above 0, or a bool mask; (B, C, H, W) logits of C classes.
        target: (B, 1, H, W) in {0, 1}, or 0 to C - 1, and VOID, which is not counted.
        patient: (B,) int64, which patient each slice is of, 0 to patients - 1.
        patients: P, number of patients in the data set.
        void: whether VOID is to be looked for where there is one structure.
    """
    if (classes := prediction.shape[1]) > 1:
        truth, places = target[:, 0].long(), patients * classes**2
        index = (patient[:, None, None] * classes + truth) * classes + prediction.argmax(1)
        index = index.where(truth != VOID, places).flatten()  # beyond all, and cut off: nothing waits for a device
        found = patient.new_zeros(places + 1).scatter_add_(0, index, index.new_ones(1).expand_as(index))
        return found[:-1].view(patients, classes, classes)
    predicted, truth = (prediction > 0).flatten(1), (target > 0.5).flatten(1)
    known = (target != VOID).flatten(1) if void else None
    if known is not None:
        predicted, truth = predicted & known, truth & known
    counts = patient.new_empty(len(patient), 4)
    counts[:, 0] = tp = (predicted & truth).sum(1)
    counts[:, 1] = fp = predicted.sum(1) - tp
    counts[:, 2] = truth.sum(1) - tp
    counts[:, 3] = (predicted.shape[1] if known is None else known.sum(1)) - fp - counts[:, 2] - tp
    return patient.new_zeros(patients, 4).index_add_(0, patient, counts)


def of_classes(counts: np.ndarray) -> np.ndarray:
    """Counts (P, C, C) of all classes as those of each but the background against all others: (P, C - 1, 4), columns
    tp, fp, fn, tn."""
    tp = counts.diagonal(axis1=1, axis2=2)[:, 1:]
    fp, fn = counts.sum(1)[:, 1:] - tp, counts.sum(2)[:, 1:] - tp
    return np.stack([tp, fp, fn, counts.sum((1, 2))[:, None] - tp - fp - fn], axis=-1)


def per_patient(counts: np.ndarray, structures: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Each metric that counts give, by patient: name -> (P,) float64; NaN by the empty-mask rule, and for a patient
    without pixels. Of counts (P, C, C) it is the mean over the classes but the background, `structures`, which are
    there or predicted, and NAME/CLASS that of each."""
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim == 2:
        tp, fp, fn, tn = counts.T
        return {name: _ratio(metric, tp, fp, fn, tn) for name, metric in METRICS.items() if metric.ratio}
    each = np.moveaxis(of_classes(counts), -1, 0)
    found: dict[str, np.ndarray] = {}
    single: dict[str, np.ndarray] = {}
    for name, metric in METRICS.items():
        if metric.pooled:
            pixels = counts.sum((1, 2))
            right = counts.trace(axis1=1, axis2=2)
            found[name] = np.where(pixels > 0, right / np.maximum(pixels, 1), np.nan)
        elif metric.ratio:
            values = _ratio(metric, *each)
            found[name] = means(values)
            single |= {f"{name}/{one}": values[:, k] for k, one in enumerate(structures)}
    return found | single


def means(values: np.ndarray) -> np.ndarray:
    """(P, K) to (P,): the mean of what is defined, NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=1)


def summarise(counts: np.ndarray, structures: Sequence[str] = ()) -> dict[str, float]:
    """One number a metric for a part of the data, from counts (P, 4), columns tp, fp, fn, tn, or (P, C, C).

    Dice, IoU, precision and recall are the means over patients of the value for the patient's whole volume; accuracy is
    over all pixels, as in the report. `undefined` counts the patients without a Dice, or pairs of patient and class.
    Patients without pixels (not in this part) do not count. NaN where nothing is left to average.
    """
    counts = np.asarray(counts, dtype=np.float64)
    counts = counts[counts.reshape(len(counts), -1).sum(axis=1) > 0]
    values = per_patient(counts, structures)
    pooled = per_patient(counts.sum(axis=0, keepdims=True), structures)
    kinds = {name: METRICS[name.partition("/")[0]] for name in values}
    found = {name: pooled[name].item() if kinds[name].pooled else mean(value) for name, value in values.items()}
    if not structures:
        return {**found, "undefined": int(np.isnan(values["dice"]).sum())}
    lacks = {f"undefined/{one}": int(np.isnan(values[f"dice/{one}"]).sum()) for one in structures}
    return {**found, "undefined": sum(lacks.values()), **lacks}


def mean(values: np.ndarray) -> float:
    """Mean of the values that are defined (not NaN); NaN, without a warning, where none is."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return values.mean().item() if len(values) else float("nan")


def hd95(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float] | None = None) -> float:
    """95 % Hausdorff distance between two volumes (D, H, W) of bool, in pixels, a slice's thickness counted as one, or
    in the unit of the `spacing` between slices, rows and columns.

    A surface is the voxels of a volume with a neighbour (of 6) that is outside it or outside the image. The distances
    from each surface to the nearest voxel of the other have a 95th percentile; the larger of the two is the result.
    Both empty: NaN. One empty: the volume's diagonal, sqrt(D^2 + H^2 + W^2), farther than any two voxels can be apart.
    """
    if not truth.any() and not prediction.any():
        return float("nan")
    if not truth.any() or not prediction.any():
        return diagonal(truth, spacing)
    found = surface_distances(truth, prediction, spacing)
    return max(np.percentile(distances, 95).item() for distances in found)


def _ratio(metric: PixelMetric, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    assert metric.ratio is not None
    numerator, denominator = metric.ratio(tp, fp, fn, tn)
    defined = tp + fp + fn + (tn if metric.pooled else 0) > 0
    return np.where(defined, numerator / np.where(denominator > 0, denominator, 1), np.nan)
