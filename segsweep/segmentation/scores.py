"""Scores beside those that every run has, chosen by `metrics`: each is a class, asked of one structure in one patient.

One's own is any class with `metric`, a `task.Metric`, and a call that takes a `Seen` and gives a number, NaN where it
is undefined, which is left out of means. Its name is its class's in small letters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segsweep.core import child
from segsweep.core.errors import ConfigError, nearest
from segsweep.task import Metric


@dataclass(frozen=True)
class Seen:
    """One structure, or class against all others, in a patient's volume, all (D, H, W).

    truth, predicted: bool, False where it is not `known`, which void pixels are not. probability: float16, 0 to 1.
    stacks: of slices that lie on one another, which of the D these are, and the spacing (3,) in mm, None where nobody
    knows it."""

    truth: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    known: np.ndarray
    stacks: Sequence[tuple[Any, Any]] = ((slice(None), None),)


def _share(title: str, meaning: str) -> Metric:
    return Metric(
        title=title,
        direction="max",
        mean_format=".3f",
        bounds=(0.0, 1.0),
        by_unit=True,
        meaning=f"{meaning}, mean over patients",
    )


class Sensitivity:
    metric = _share("Sensitivity", "share of a structure's pixels that are predicted; undefined without the structure")

    def __call__(self, seen: Seen) -> float:
        return _ratio((seen.truth & seen.predicted).sum(), seen.truth.sum())


class Specificity:
    metric = _share("Specificity", "share of the other pixels that are not predicted")

    def __call__(self, seen: Seen) -> float:
        others = seen.known & ~seen.truth
        return _ratio((others & ~seen.predicted).sum(), others.sum())


class AUC:
    metric = _share("AUC", "area under the ROC curve over a patient's pixels; undefined without the structure")

    def __call__(self, seen: Seen) -> float:
        tp, fp = _by_threshold(seen)
        if not tp[-1] or not fp[-1]:
            return math.nan
        return float(np.trapezoid(tp / tp[-1], fp / fp[-1]))


class AP:
    metric = _share("Average precision", "precision averaged over the steps of recall; undefined without the structure")

    def __call__(self, seen: Seen) -> float:
        tp, fp = _by_threshold(seen)
        if not tp[-1]:
            return math.nan
        return float((np.diff(tp) / tp[-1] * tp[1:] / (tp[1:] + fp[1:])).sum())


class ASSD:
    metric = Metric(
        title="ASSD",
        direction="min",
        format=".2f",
        bounds=(0.0, math.inf),
        by_unit=True,
        by_epoch=False,
        meaning="mean distance between the two surfaces, from each to the other, in millimetres where the files say "
        "their spacing and else in pixels, mean over patients; the volume's diagonal where one of the two is empty",
    )

    def __call__(self, seen: Seen) -> float:
        return _mean([_assd(seen.truth[own], seen.predicted[own], spacing) for own, spacing in seen.stacks])


class ClDice:
    metric = _share(
        "clDice",
        "harmonic mean of the share of the prediction's skeleton that lies in the truth and that of the truth's in the "
        "prediction (Shit et al. 2021), of all of a patient's slices, each with a 2-D skeleton of its own; 0 where one "
        "of the two is empty, undefined where both are",
    )

    def __init__(self) -> None:
        if not child.installed("skimage"):
            raise ConfigError(
                "metrics=cldice: skeletons take scikit-image, which is not installed: pip install 'segsweep[vessels]'"
            )

    def __call__(self, seen: Seen) -> float:
        if not seen.truth.any() or not seen.predicted.any():
            return 0.0 if seen.truth.any() or seen.predicted.any() else math.nan
        precision, sensitivity = _lying(seen.predicted, seen.truth), _lying(seen.truth, seen.predicted)
        return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _lying(one: np.ndarray, other: np.ndarray) -> float:
    """The share of the skeletons of `one`'s slices (D, H, W), not all empty, that lies in `other`."""
    from skimage.morphology import skeletonize  # here, since nobody else needs it, and it takes half a second to import

    skeletons = np.stack([skeletonize(plane) for plane in one])
    return _ratio((skeletons & other).sum(), skeletons.sum())


def _assd(truth: np.ndarray, predicted: np.ndarray, spacing: Any) -> float:
    if not truth.any() or not predicted.any():
        return math.nan if not truth.any() and not predicted.any() else diagonal(truth, spacing)
    return float(np.concatenate(surface_distances(truth, predicted, spacing)).mean())


BUILT_IN = {each.__name__.lower(): each for each in (Sensitivity, Specificity, AUC, AP, ASSD, ClDice)}


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan


def _by_threshold(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each threshold from above all probabilities down, the first 0."""
    values, place = np.unique(-seen.probability[seen.known], return_inverse=True)
    tp = np.bincount(place, weights=seen.truth[seen.known], minlength=len(values))
    both = np.bincount(place, minlength=len(values))
    return np.r_[0.0, np.cumsum(tp)], np.r_[0.0, np.cumsum(both - tp)]


def diagonal(volume: np.ndarray, spacing: Any = None) -> float:
    """Of a volume, farther than any two of its voxels can be apart."""
    return float(np.linalg.norm(volume.shape if spacing is None else np.array(volume.shape) * spacing))


def surface_distances(truth: np.ndarray, prediction: np.ndarray, spacing: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """From each surface's voxels to the nearest of the other's, of two volumes (D, H, W) of bool, none of them empty,
    in pixels, or in mm by the spacing (3,); see `metrics.hd95`."""
    from scipy import ndimage  # here, since tables that read metrics need no scipy, which takes 0.3 s to import
    from scipy.spatial import KDTree

    # Outside the box around both everything is empty, so cutting it off changes no surface.
    (box,) = ndimage.find_objects((truth | prediction).astype(np.int8))
    surfaces = [np.argwhere(volume[box] & ~ndimage.binary_erosion(volume[box])) for volume in (truth, prediction)]
    if spacing is not None:
        surfaces = [places * np.array(spacing) for places in surfaces]
    # A k-d tree of the surfaces' voxels is as exact as a distance transform of the box and, with a few stray voxels,
    # many times faster.
    first, second = surfaces
    return KDTree(second).query(first)[0], KDTree(first).query(second)[0]


def chosen(entries: Any, taken: Sequence[str] = ()) -> dict[str, Any]:
    """Name -> score, of what `metrics` has: names of this module, and nodes with a `_target_` of one's own.

    taken: names that are none of these. Raises ConfigError."""
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"metrics={entries}: a list is needed, as in 'metrics=[auc,specificity]'")
    found: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry, Mapping):
            from segsweep.config import components  # here, since tables that read metrics need no Hydra
            from segsweep.segmentation.kinds import KINDS

            if wrong := components.mistakes(KINDS, "metrics", entry, option="[auc]"):
                raise ConfigError(wrong[0])
            try:
                made = components.build(KINDS, "metrics", entry)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"metrics: {entry['_target_']}: {error}") from error
            name, by = type(made).__name__.lower(), _digest(entry)
        elif isinstance(entry, str) and entry in BUILT_IN:
            name, made, by = entry, BUILT_IN[entry](), ""
        else:
            raise ConfigError(
                f"metrics={entry}: allowed are {', '.join(BUILT_IN)}, and one of your own as "
                f"{{_target_: my_package.MyScore}}{nearest(str(entry), BUILT_IN)}"
            )
        if not isinstance(getattr(made, "metric", None), Metric) or not callable(made):
            raise ConfigError(f"metrics: {type(made).__name__} needs `metric`, a task.Metric, and a __call__")
        if name in found or name in taken:
            raise ConfigError(f"metrics: {name} is there already; a score of your own has its class's name")
        found[name] = Own(made, replace(made.metric, measured=by)) if by else made
    return found


@dataclass(frozen=True)
class Own:
    """A score of one's own; its metric says by which code and arguments it is measured."""

    score: Any
    metric: Metric

    def __call__(self, seen: Seen) -> float:
        return float(self.score(seen))


def _digest(entry: Mapping[str, Any]) -> str:
    """Of the arguments of a score of one's own, and of the code that it reaches."""
    from segsweep.config import whitelist
    from segsweep.core import signature, source

    files = source.hashes(source.reached(*whitelist.modules({"metrics": entry})))
    return signature.digest([entry, signature.fingerprint(files)])


def described(scores: Mapping[str, Any], structures: Sequence[str]) -> dict[str, Metric]:
    """Of a Spec: as means over the classes too, where there are several, and NAME/CLASS of each."""
    found = {}
    for name, score in scores.items():
        plain = replace(score.metric, by_unit=True)
        count = len(structures)
        over = f" of {count} classes" if count > 1 else f" of {structures[0]}" if count else ""
        found[name] = replace(plain, title=f"{plain.title}{over}")
        for one in structures:
            title = f"{plain.title} of {f'class {one}' if one.isdecimal() else one}"
            found[f"{name}/{one}"] = replace(plain, title=title, column="")
    return found


def of_patients(
    scores: Mapping[str, Any], evaluation: Any, volumes: Any, indices: np.ndarray, epoch: bool = False
) -> dict[str, dict[str, float]]:
    """Patient -> NAME, and NAME/CLASS -> value, of an evaluation that kept its masks and probabilities. epoch: those
    alone that are measured after each epoch. Of several classes NAME is the mean over those of which it is defined."""
    asked = {name: score for name, score in scores.items() if score.metric.by_epoch or not epoch}
    names, owner = volumes.labels.structures, volumes.patient[indices]
    found: dict[str, dict[str, float]] = {}
    for p in np.unique(owner) if asked else ():
        at = owner == p
        height, width = volumes.masks.shape[1:] if volumes.sizes is None else volumes.sizes[indices[at]].max(0)
        truth, predicted = (each[:, :height, :width] for each in (volumes.masks[indices[at]], evaluation.masks[at]))
        known = truth < max(2, volumes.labels.outputs)
        stacks = stacks_of(volumes, indices[at])
        row = found[volumes.patients[p]] = {}
        for k, one in enumerate(names or [""], 1):
            share = evaluation.probabilities[at, k if names else 0, :height, :width]
            seen = Seen((truth == k) & known, (predicted == k) & known, share, known, stacks)
            row |= {f"{name}/{one}" if one else name: float(score(seen)) for name, score in asked.items()}
        for name in asked if names else ():
            row[name] = _mean([row[f"{name}/{one}"] for one in names])
    return found


def stacks_of(volumes: Any, indices: np.ndarray) -> list[tuple[Any, Any]]:
    """See `Seen`, of a patient's slices."""
    if volumes.stack is None:
        return [(slice(None), None)]
    found = [volumes.stack[indices] == stack for stack in np.unique(volumes.stack[indices])]
    return [(own, None if volumes.spacing is None else volumes.spacing[indices[own][0]]) for own in found]


def means(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Over the patients of which each is defined; NaN where it is of none."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: _mean([row[name] for row in rows.values()]) for name in names}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
