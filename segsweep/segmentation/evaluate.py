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

from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.metrics import METRICS, confusion, hd95, mean, per_patient

CPU_PIXELS = 2**17
"""That go through a network at once on a CPU: more take more memory than a training step does, and at 256 px more time,
as they leave the caches (benchmarks/LOG.md)."""


@dataclass
class Evaluation:
    """loss: mean over slices; counts: (P, 4) int64; masks: predictions (slices, H, W) bool if they were kept."""

    loss: float
    counts: np.ndarray
    seconds: float
    masks: np.ndarray | None = None


def evaluate(
    model: nn.Module,
    loss: nn.Module,
    batches: Batches,
    *,
    patients: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    keep: bool = False,
    parts: int = 1,
) -> Evaluation:
    """Loss and counts of `model` on all of `batches`, in evaluation mode for the time being.

    `autocast` makes the context of the forward pass; the loss is taken of float32 logits. Loss: the mean over batches,
    weighted by their slices, so the mean over slices; only a loss that is taken over the batch, such as Dice, depends
    on the batch size. `keep`: the predicted masks too, in the order of the batches' indices. `parts`: in how many
    pieces a batch goes through the network at least, for want of memory; the loss is still that of the whole batch."""
    training = model.training
    model.eval()
    started = time.perf_counter()
    counts = torch.zeros(patients, 4, dtype=torch.int64, device=batches.device)
    losses: list[torch.Tensor] = []  # left on the device: reading one would wait for it
    sizes: list[int] = []
    masks: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            for x, y, patient in batches.epoch(seed=0):
                with autocast():
                    logits = torch.cat([model(piece) for piece in x.tensor_split(_pieces(x, parts))])
                losses.append(loss(logits.float(), y))
                sizes.append(len(x))
                counts += confusion(logits, y, patient, patients)
                if keep:
                    masks.append(logits[:, 0] > 0)
    finally:
        model.train(training)
    mean_loss = np.average(torch.stack(losses).tolist(), weights=sizes)
    kept = torch.cat(masks).cpu().numpy() if keep else None
    return Evaluation(float(mean_loss), counts.cpu().numpy(), time.perf_counter() - started, kept)


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
    scores = per_patient(evaluation.counts)
    rows = []
    for p in np.unique(owner):
        at = owner == p
        tp, fp, fn, tn = (int(n) for n in evaluation.counts[p])
        distance = hd95(volumes.masks[indices[at]] > 0, evaluation.masks[at])
        rows.append(
            {"patient": volumes.patients[p], "slices": int(at.sum())}
            | {"truth_pixels": tp + fn, "predicted_pixels": tp + fp, "tp": tp, "fp": fp, "fn": fn, "tn": tn}
            | {name: float(scores[name][p]) for name in sorted(scores, key=lambda name: METRICS[name].pooled)}
            | {"hd95": distance, "missed": int(tp + fn > 0 and tp + fp == 0)}
        )
    summary = {"hd95": mean(np.array([row["hd95"] for row in rows])), "missed": sum(row["missed"] for row in rows)}
    return Patients(rows, summary)


def flops(model: nn.Module, channels: int, height: int, width: int, device: torch.device | str = "meta") -> float:
    """GFLOP of one image: twice the multiply-adds of the convolutions (torch's counter).

    On the meta device nothing is computed, but the first count imports torch's compiler, a second's work; on the one
    where `model` is, one image goes through it."""
    network = copy.deepcopy(model).to("meta") if str(device) == "meta" else model
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, channels, height, width, device=device))
    finally:
        network.train(training)
    return counter.get_total_flops() / 1e9
