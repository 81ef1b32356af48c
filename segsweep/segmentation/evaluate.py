"""A network over a part of the data: one pass, counts kept on the device, surfaces only at the end."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segsweep.core.errors import ConfigError
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.data.labels import PADDED, VOID
from segsweep.segmentation.metrics import METRICS, confusion, decide, hd95, mean, means, of_classes, per_patient
from segsweep.segmentation.models.fitted import called, keys_of, misshapen
from segsweep.segmentation.models.fitted import outputs as outputs_of
from segsweep.segmentation.scores import stacks_of
from segsweep.segmentation.windows import slide

CPU_PIXELS = 2**17
"""That go through a network at once on a CPU: more take more memory than a training step does, and at 256 px more time,
as they leave the caches (benchmarks/LOG.md)."""


@dataclass
class Evaluation:
    """loss: mean over slices; counts: see `metrics.confusion`; masks: predictions (slices, H, W) bool, or uint8 of
    classes, if they were kept; probabilities: (slices, C, H, W) float16 if those were."""

    loss: float
    counts: np.ndarray
    seconds: float
    masks: np.ndarray | None = None
    probabilities: np.ndarray | None = None


def no_counts(patients: int, outputs: int, device: torch.device) -> torch.Tensor:
    """What the counts of a part of the data begin with, see `metrics.confusion`."""
    shape = (patients, 4) if outputs == 1 else (patients, outputs, outputs)
    return torch.zeros(shape, dtype=torch.int64, device=device)


def evaluate(
    model: nn.Module,
    loss: nn.Module,
    batches: Batches,
    *,
    patients: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    keep: bool = False,
    probabilities: bool = False,
    parts: int = 1,
) -> Evaluation:
    """Loss and counts of `model` on all of `batches`, in evaluation mode for the time being.

    `autocast` makes the context of the forward pass; the loss is taken of float32 logits. Loss: the mean over batches,
    weighted by their slices, so the mean over slices, or where pixels are void, by those that are not; only a loss that
    is taken over the batch, such as Dice, depends on the batch size. `keep`, `probabilities`: these too, in the order
    of the batches' indices. `parts`: in how many pieces a batch goes through the network at least, for want of memory;
    the loss is still that of the whole batch. Where the batches have a patch each slice goes through it in windows, see
    `windows.slide`."""
    training = model.training
    model.eval()
    started = time.perf_counter()
    counts = no_counts(patients, batches.labels.outputs, batches.device)
    void = batches.void
    losses: list[torch.Tensor] = []  # left on the device: reading one would wait for it
    sizes: list[int] = []
    weights: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    shares: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            for x, y, patient in batches.epoch(seed=0):
                with autocast():
                    if batches.patch is None:
                        logits = torch.cat([model(piece) for piece in x.tensor_split(_pieces(x, parts))])
                    else:
                        own = batches.sizes[sum(sizes) : sum(sizes) + len(x)]
                        logits = slide(model, x, own, batches.patch, _windows(batches, parts))
                losses.append(loss(logits.float(), y))
                sizes.append(len(x))
                weights.append((y != VOID).sum() if void else torch.tensor(len(x)))
                counts += confusion(logits, y, patient, patients, void)
                if keep:
                    masks.append(decide(logits))
                if probabilities:
                    likely = logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(1)
                    shares.append(likely.half().cpu())
    finally:
        model.train(training)
    counted = torch.stack(weights).tolist()
    mean_loss = np.average(torch.stack(losses).tolist(), weights=counted) if sum(counted) else float("nan")
    kept = torch.cat(masks).cpu().numpy() if keep else None
    made = torch.cat(shares).numpy() if probabilities else None
    return Evaluation(float(mean_loss), counts.cpu().numpy(), time.perf_counter() - started, kept, made)


def _windows(batches: Batches, parts: int) -> int:
    """That go through a network at once: as many as a batch has slices, and on a CPU as `CPU_PIXELS` says."""
    assert batches.patch is not None
    most = batches.batch_size // parts
    return max(1, most if batches.device.type != "cpu" else min(most, CPU_PIXELS // math.prod(batches.patch)))


def _pieces(x: torch.Tensor, parts: int) -> int:
    least = 1 if x.is_cuda else math.ceil(x[:, 0].numel() / CPU_PIXELS)
    return min(max(parts, least), len(x))


@dataclass
class Patients:
    """rows: one a patient, as in patients.csv; summary: hd95 (mean, pixels) and missed (count)."""

    rows: list[dict[str, Any]]
    summary: dict[str, float]


def patient_table(evaluation: Evaluation, volumes: Volumes, indices: np.ndarray) -> Patients:
    """The patients of an evaluation that kept its masks; `indices`: its slices, as its batches had them.

    A patient's volume is the slices that are in `indices`: all of them, unless the split is by slice, where HD95 then
    steps over the missing ones as if they were not there."""
    assert evaluation.masks is not None
    owner = volumes.patient[indices]
    if volumes.labels.names:
        return _table_of_classes(evaluation, evaluation.masks, volumes, indices)
    scores = per_patient(evaluation.counts)
    rows = []
    for p in np.unique(owner):
        at = owner == p
        tp, fp, fn, tn = (int(n) for n in evaluation.counts[p])
        truth, predicted = _whole(volumes, indices[at], evaluation.masks[at])
        predicted = predicted & (truth < PADDED) if volumes.void else predicted
        distance = _distance(volumes, indices[at], truth == 1, predicted)
        rows.append(
            {"patient": volumes.patients[p], "slices": int(at.sum())}
            | {"truth_pixels": tp + fn, "predicted_pixels": tp + fp, "tp": tp, "fp": fp, "fn": fn, "tn": tn}
            | {name: float(scores[name][p]) for name in sorted(scores, key=lambda name: METRICS[name].pooled)}
            | {"hd95": distance, "missed": _missed(volumes, indices[at], truth == 1, predicted)}
            | _millilitres(volumes, indices[at], truth == 1, predicted)
        )
    summary = {"hd95": mean(np.array([row["hd95"] for row in rows])), "missed": sum(row["missed"] for row in rows)}
    return Patients(rows, summary)


def _distance(volumes: Volumes, indices: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> float:
    """HD95 of a patient's slices (D, H, W); of several volumes the mean."""
    found = [hd95(truth[own], predicted[own], spacing) for own, spacing in stacks_of(volumes, indices)]
    return mean(np.array(found))


def _missed(volumes: Volumes, indices: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> int:
    """Of a patient's volumes, those with a structure of which nothing is predicted."""
    stacks = stacks_of(volumes, indices)
    return sum(bool(truth[own].any() and not predicted[own].any()) for own, _ in stacks)


def _millilitres(volumes: Volumes, indices: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The volume of both, where the spacing is known."""
    if volumes.spacing is None:
        return {}
    voxel = volumes.spacing[indices].prod(1) / 1000
    areas = {"truth_ml": truth, "predicted_ml": predicted}
    return {key: round(float(area.sum((1, 2)) @ voxel), 6) for key, area in areas.items()}


def _whole(volumes: Volumes, indices: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of a patient's slices (D, H, W), cut to the largest of them: padding is no distance."""
    height, width = volumes.masks.shape[1:] if volumes.sizes is None else volumes.sizes[indices].max(0)
    return volumes.masks[indices][:, :height, :width], predicted[:, :height, :width]


def _table_of_classes(evaluation: Evaluation, masks: np.ndarray, volumes: Volumes, indices: np.ndarray) -> Patients:
    """Of each patient the means over the classes but the background, and NAME/CLASS of each of these."""
    names = volumes.labels.structures
    scores, counts = per_patient(evaluation.counts, names), of_classes(evaluation.counts)
    owner = volumes.patient[indices]
    rows: list[dict[str, Any]] = []
    for p in np.unique(owner):
        truth, predicted = _whole(volumes, indices[owner == p], masks[owner == p])
        distance: dict[str, float] = {}
        single: dict[str, Any] = {}
        for k, name in enumerate(names):
            tp, fp, fn, tn = (int(n) for n in counts[p, k])
            areas = truth == k + 1, (predicted == k + 1) & (truth < PADDED)
            distance[name] = _distance(volumes, indices[owner == p], *areas)
            of_one: dict[str, Any] = {"truth_pixels": tp + fn, "predicted_pixels": tp + fp}
            of_one |= {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
            missed = _missed(volumes, indices[owner == p], *areas)
            of_one |= {"hd95": distance[name], "missed": missed}
            of_one |= _millilitres(volumes, indices[owner == p], *areas)
            single |= {f"{key}/{name}": value for key, value in of_one.items()}
        row = {"patient": volumes.patients[p], "slices": len(truth), "pixels": int(evaluation.counts[p].sum())}
        plain = [name for name in scores if "/" not in name]
        row |= {name: float(scores[name][p]) for name in sorted(plain, key=lambda name: METRICS[name].pooled)}
        row |= {"hd95": float(means(np.array([list(distance.values())]))[0])}
        row |= {"missed": sum(single[f"missed/{name}"] for name in names)}
        rows.append(row | {key: float(scores[key][p]) for key in scores if "/" in key} | single)
    keys = ["", *(f"/{name}" for name in names)]
    summary = {f"hd95{key}": mean(np.array([row[f"hd95{key}"] for row in rows])) for key in keys}
    return Patients(rows, summary | {f"missed{key}": sum(row[f"missed{key}"] for row in rows) for key in keys})


def flops(
    model: nn.Module, channels: int, height: int, width: int, device: torch.device | str = "meta", outputs: int = 0
) -> float:
    """GFLOP of one image: twice the multiply-adds of the convolutions (torch's counter). Raises ConfigError where the
    network does not give `outputs` maps of logits, where that is no 0.

    On the meta device nothing is computed, but the first count imports torch's compiler, a second's work; on the one
    where `model` is, one image goes through it, as it does where a network looks at numbers."""
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    if str(device) == "meta" and where.type != "meta":
        try:
            return flops(copy.deepcopy(model).to("meta"), channels, height, width, "meta", outputs)
        except (NotImplementedError, RuntimeError):
            return flops(model, channels, height, width, where, outputs)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            given = model(torch.zeros(1, channels, height, width, device=device))
    finally:
        model.train(training)
    if outputs and (wrong := misshapen(outputs_of(given), (1, outputs, height, width), keys_of(given))):
        raise ConfigError(f"model: {called(model)} {wrong}")
    return counter.get_total_flops() / 1e9
