"""What the masks of a data set hold, class by class: counted once, told, and what a loss is weighted by."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segsweep.core.errors import ConfigError, DataError
from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.data.labels import RULES, Labels, weights
from segsweep.segmentation.data.source import listed
from segsweep.segmentation.data.split import Split
from segsweep.segmentation.metrics import called


def scan(volumes: Volumes, split: Split) -> dict[str, Any]:
    """Facts for the record: the label values of the classes, their pixels, those that are void, and who lacks a class.
    Raises DataError naming a class that no training patient has."""
    labels, pixels = volumes.labels, volumes.pixels
    assert pixels is not None
    by_patient = np.zeros((len(volumes.patients), pixels.shape[1]), np.int64)
    np.add.at(by_patient, volumes.patient, pixels)
    lacks = [[volumes.patients[p] for p in np.flatnonzero(column == 0)] for column in by_patient.T]
    for n, count in enumerate(pixels[split.train].sum(0)[:-1]):
        if not count:
            owners = [name for name in volumes.patients if name not in lacks[n]]
            where = f"{listed(owners)} of the other parts {'has' if len(owners) == 1 else 'have'} it" * bool(owners)
            raise DataError(
                f"data.classes: no training patient has {called(labels.names[n])} (label value {labels.values[n]}), so "
                f"it cannot be learnt; {where or 'nobody has it'}: take it out of data.classes, or split in another way"
            )
    counts = [int(n) for n in by_patient.sum(0)]
    return {
        "classes": dict(zip(labels.names, labels.values, strict=True)),
        "pixels": dict(zip(labels.names, counts, strict=False)),
        "void": counts[-1] - _padding(volumes),
        "lacking": {name: who for name, who in zip(labels.names, lacks, strict=False) if who},
    }


def told(facts: Mapping[str, Any]) -> str:
    """In one line: the share of each class, what is void, and who lacks which."""
    counted, void = facts["pixels"], facts["void"]
    total = sum(counted.values())
    shares = ", ".join(f"{called(name)} {count / max(total, 1):.2%}" for name, count in counted.items())
    text = f"Classes: {shares}" + f"; void {void / (total + void):.2%} of all pixels" * bool(void)
    lacking = "; ".join(f"{called(name)}: {listed(who)}" for name, who in facts["lacking"].items())
    return text + (f". Patients without {lacking}" if lacking else ". Every patient has all")


def _padding(volumes: Volumes) -> int:
    """Pixels that are no image's, which the count of void has too."""
    return 0 if volumes.sizes is None else int(volumes.masks.size - volumes.sizes.prod(1).sum())


def void(volumes: Volumes) -> tuple[dict[str, Any], str]:
    """Of one structure: how many pixels are void, for the record and in one line."""
    assert volumes.pixels is not None
    beside = _padding(volumes)
    count, total = int(volumes.pixels[:, -1].sum()) - beside, int(volumes.pixels.sum()) - beside
    reasons = [f"data.roi={volumes.labels.roi}"] if volumes.labels.roi else []
    reasons += [f"data.ignore={list(volumes.labels.ignore)}"] if volumes.labels.ignore else []
    return {"void": count}, f"Void: {count / total:.2%} of all pixels, by {' and '.join(reasons)}"


def with_weights(loss: Mapping[str, Any], volumes: Volumes, split: Split) -> dict[str, Any]:
    """A loss's node with numbers for a rule of weights, from the slices of the training part."""
    if loss.get("weights") not in RULES:
        return dict(loss)
    pixels = volumes.pixels
    if pixels is None:  # one structure
        inside = volumes.masks[split.train].sum((1, 2), dtype=np.int64)
        pixels = np.stack([volumes.masks[0].size - inside, inside], axis=1)
    else:
        pixels = pixels[split.train, :-1]
    if not pixels.sum(0).all():
        raise DataError(
            f"loss.weights={loss['weights']}: the training part has one class alone, which no rule can weigh"
        )
    return dict(loss) | {"weights": [round(n, 6) for n in weights(loss["weights"], pixels)]}


def check_weights(loss: Mapping[str, Any], labels: Labels) -> None:
    """Raises ConfigError where a loss has another number of weights than there are classes."""
    given, expected = loss.get("weights"), max(2, labels.outputs)
    if isinstance(given, list) and len(given) != expected:
        said = f"{expected} classes ({labels.told})" if labels.names else "background and structure"
        raise ConfigError(f"loss.weights={given}: {len(given)} given for {said}; one a class, the background first")
