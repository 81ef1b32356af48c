"""Masks and, where there is truth, metrics, by a trained run.

Everything up to the logits is training's own code with the run's own values, in batches made as its test made them: on
patients that the run tested, the numbers are those of its patients.csv, to the last digit. Only where a device has less
memory than the run had, a batch goes through the network in more parts.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from torch import nn

from segsweep.core.device import out_of_memory
from segsweep.core.errors import ConfigError, SegsweepError
from segsweep.segmentation.data import cache, volume
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.images import padded, sized, target
from segsweep.segmentation.data.images import read as read_pixels
from segsweep.segmentation.data.labels import ONE, Labels, counted
from segsweep.segmentation.data.labels import sizes as sizes_of
from segsweep.segmentation.evaluate import evaluate, patient_table
from segsweep.segmentation.inputs import Patient, Slice, find, read
from segsweep.segmentation.metrics import METRICS
from segsweep.segmentation.scores import chosen, of_patients
from segsweep.segmentation.trained import Trained

HELD = 1 << 30
"""Bytes of decoded pixels held at a time; a batch goes over patients as in training, but not over this border."""
_count = itertools.count()
"""Numbers the groups of images of this process: an address would come again for others once its array is freed."""


class Prediction(NamedTuple):
    """masks: (N, H, W) bool, or uint8 of classes, at the network's size, slices in order. rows: of patients.csv, for
    each patient with truth. probabilities: (N, C, H, W) float16 where they were asked for."""

    masks: np.ndarray
    rows: list[dict[str, Any]]
    probabilities: np.ndarray | None = None


def predict(
    trained: Trained,
    patients: list[Patient],
    device: torch.device,
    probabilities: bool = False,
    measured: Mapping[str, Any] | None = None,
) -> Prediction:
    """The patients' images have one shape and type; `trained.model` is on `device`. measured: the run's `metrics`, see
    `scores.chosen`."""
    stacked = np.concatenate([patient.images for patient in patients])
    counts = [len(patient.images) for patient in patients]
    truths = [p.empty if p.truth is None else p.truth for p in patients]
    known = np.stack([cache.statistics(p.images, masks) for p, masks in zip(patients, truths, strict=True)])
    shift, scale, clip = cache.normalisation(known, trained.config.data.normalise, stacked.dtype)
    volumes = cache.Volumes(
        images=stacked,
        masks=np.concatenate(truths),
        patient=np.repeat(np.arange(len(patients)), counts),
        patients=[patient.name for patient in patients],
        slices=[item.name for patient in patients for item in patient.slices],
        shift=shift,
        scale=scale,
        clip=clip,
        digest="",
        key=f"predict-{next(_count)}",
        labels=trained.labels,
        **stacks(patients, trained.size, trained.millimetres),
    )
    if trained.room:
        volumes.sizes = sizes_of(volumes.masks)
    if trained.labels.void or trained.room:
        volumes.pixels = counted(volumes.masks, max(2, trained.labels.outputs))
    index = np.arange(len(stacked))
    batches = Batches(volumes, index, batch_size=trained.config.eval_batch_size, device=device, patch=trained.patch)
    asked = partial(evaluate, trained.model, _Zero(), batches, patients=len(patients), keep=True)
    scored = np.repeat([patient.truth is not None for patient in patients], counts)
    wanted = probabilities or (bool(measured) and bool(scored.any()))
    found, parts = None, trained.parts
    while found is None:
        try:
            found = asked(autocast=trained.autocast(device), parts=parts, probabilities=wanted)
        except RuntimeError as error:
            if not out_of_memory(error) or parts >= trained.config.eval_batch_size:
                raise
            parts *= 2
    assert found.masks is not None
    rows: list[dict[str, Any]] = []
    if scored.any():
        shares = None if found.probabilities is None else found.probabilities[scored]
        part = dataclasses.replace(found, masks=found.masks[scored], probabilities=shares)
        rows = patient_table(part, volumes, index[scored]).rows
        more = of_patients(measured or {}, part, volumes, index[scored])
        rows = [row | more.get(row["patient"], {}) for row in rows]
    return Prediction(found.masks, rows, found.probabilities if probabilities else None)


def measured_by(trained: Trained) -> tuple[dict[str, Any], list[str]]:
    """The scores that the run has beside those of every run, by name, and a sentence for each that cannot be had here,
    which keeps no mask from being predicted."""
    entries = trained.config.get("metrics")  # a run of before these has none
    found: dict[str, Any] = {}
    lacking: list[str] = []
    for entry in entries if isinstance(entries, ListConfig) else ():
        try:
            plain = OmegaConf.to_container(entry) if isinstance(entry, DictConfig) else entry
            found |= chosen([plain], (*METRICS, *found))
        except ConfigError as error:
            lacking.append(f"Not measured: {error}")
    return found, lacking


def stacks(patients: list[Patient], size: Any, millimetres: bool) -> dict[str, np.ndarray]:
    """As in `cache.Volumes`, where slices of a patient may not all lie on one another. millimetres: where the run has
    its distances in them."""
    items = [(patient.name, item) for patient in patients for item in patient.slices]
    if not any(item.stack for _, item in items):
        return {}
    known = [(name, item.stack) for name, item in items]
    found = {"stack": np.array([list(dict.fromkeys(known)).index(one) for one in known])}
    if not millimetres:
        return found
    heads = _headers(item for _, item in items)
    spacing = {one[0]: head.at(target(head.shape[1:], size)) for one, head in heads.items()}
    if None in spacing.values() or not spacing:
        return found
    return found | {"spacing": np.array([spacing[item.stack] for _, item in items])}


def _headers(slices: Iterable[Slice]) -> dict[tuple[str, int], volume.Header]:
    """Of the volumes that slices are of, by file and axis."""
    several = [volume.ADDRESS.match(str(item.file)) for item in slices]
    return {one: volume.header(*one) for one in {(m["file"], int(m["axis"])) for m in several if m}}


class _Zero(nn.Module):
    """In the place of a loss, which a prediction has none of."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.new_zeros(())


def groups(patients: Iterable[Patient], millimetres: bool = False) -> Iterator[list[Patient]]:
    """Patients that are predicted together: of one shape and type, no more than memory should hold, and, where a run
    has its distances in millimetres, all with a spacing or none."""
    held: list[Patient] = []
    before: Any = None
    for patient in patients:
        spaced = millimetres and all(head.spacing for head in _headers(patient.slices).values())
        kind, size = (patient.images.shape[1:], patient.images.dtype, spaced), patient.images.nbytes
        if held and (kind != before or size + sum(p.images.nbytes for p in held) > HELD):
            yield held
            held = []
        held.append(patient)
        before = kind
    if held:
        yield held


def at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (h, w) bool or uint8 at another (height, width), the nearest pixel."""
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def as_given(
    patient: Patient, masks: np.ndarray, labels: Labels = ONE
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Of the masks (D, h, w) of a patient each at its file's size, and its region of interest there, of bool."""
    for place, (item, size) in enumerate(zip(patient.slices, patient.sizes, strict=True)):
        height, width = sizes_of(patient.empty[place : place + 1])[0]
        mask = at_size(masks[place, :height, :width], size)
        region = read_pixels(str(item.region), mask=True) > 0 if labels.roi else None
        yield (mask if region is None else mask * region), region


def predict_array(trained: Trained, given: np.ndarray, device: torch.device) -> np.ndarray:
    """Masks (N, H, W) of bool, or uint8 of the classes' numbers, of images (N, H, W, C), or (N, H, W) of one channel,
    uint8 or uint16, taken as the slices of one patient. Raises SegsweepError where they are not such images."""
    stack = given[..., None] if given.ndim == 3 else given
    wanted = f"(N, H, W, {trained.channels})" + ", or (N, H, W)" * (trained.channels == 1)
    if stack.ndim != 4 or stack.shape[3] != trained.channels or not stack.size:
        raise SegsweepError(f"an array of shape {given.shape}: the run was trained on images of {wanted}")
    if given.dtype not in (np.uint8, np.uint16):
        raise SegsweepError(f"an array of {given.dtype}: images are uint8 or uint16, as in files, not normalised")
    if trained.labels.roi:
        raise SegsweepError(
            f"the run has regions of interest (data.roi={trained.labels.roi}): give files, not an array"
        )
    blank = np.zeros(stack.shape[1:3], np.uint8)
    pairs = [sized(image, blank, trained.size, trained.labels, None, "an array") for image in stack]
    images, empty = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    if trained.room is not None:
        height, width = (max(sides) for sides in zip(trained.room, images.shape[1:3], strict=True))
        images, empty = padded(list(images), list(empty), (height, width))
    slices = [Slice(Path("array"), "array", str(n), None) for n in range(len(stack))]
    patient = Patient("array", slices, images, None, [(stack.shape[1], stack.shape[2])] * len(stack), empty)
    trained.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return np.stack([mask for mask, _ in as_given(patient, predict(trained, [patient], device).masks)])


def predict_paths(trained: Trained, given: list[Path], device: torch.device) -> dict[str, list[np.ndarray]]:
    """Patient -> a mask (H, W) for each slice at its file's size, as of `predict_array`. Raises SegsweepError naming
    each file that cannot be used."""
    patients, problems = find(given, trained.config.data)
    trained.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found: dict[str, list[np.ndarray]] = {}
    several = read(patients, trained.size, trained.channels, problems, trained.labels, trained.room)
    for group in groups(several, trained.millimetres):
        masks, start = predict(trained, group, device).masks, 0
        for patient in group:
            stop = start + len(patient.slices)
            found[patient.name] = [mask for mask, _ in as_given(patient, masks[start:stop], trained.labels)]
            start = stop
    if problems:
        raise SegsweepError("\n".join(problems))
    return found
