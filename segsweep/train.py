"""`fit`: the training loop, read from top to bottom.

The order of the slices and every random draw of an epoch come from (seed, epoch) alone, so an epoch that is resumed is
the epoch that would have been: no generator's state has to survive an interruption.
"""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

from segsweep import progress
from segsweep.artifacts import Checkpoints
from segsweep.data.batches import Batches
from segsweep.errors import NotFiniteError
from segsweep.evaluate import evaluate
from segsweep.metrics import confusion, summarise

SELECT_BY = "val/dice"
LOOK = 1.0
"""Seconds between two looks at the losses within an epoch: on a GPU a look waits for all that was asked of it."""


def epoch_seed(seed: int, epoch: int) -> int:
    """Independent streams for every pair of seed and epoch (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def fit(
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    train: Batches,
    held_out: Batches,
    *,
    part: str,
    patients: int,
    epochs: int,
    seed: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    clip_norm: float | None,
    checkpoints: Checkpoints,
    every: int = 1,
    keep: int = 2,
    milestones: set[int] = frozenset(),  # type: ignore[assignment]
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
) -> tuple[list[dict[str, Any]], int]:
    """Train until `epochs` epochs are complete, going on from the latest checkpoint; the model ends with the weights of
    the last epoch.

    `part` names what `held_out` is, "val" or "test"; `forward` is the compiled model where there is one. Returns the
    history (one dict an epoch: losses, metrics, seconds) and the number of epochs that were already there.
    Raises NotFiniteError naming the step, and progress.Interrupted at the end of an epoch when asked to stop.
    """
    forward = model if forward is None else forward  # a compiled module has no truth value
    device = next(model.parameters()).device
    state = checkpoints.load(until=epochs)
    history: list[dict[str, Any]] = []
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history = state["history"]
        on_epoch(history)
    done = len(history)
    best: dict[str, Any] | None = None

    for epoch in range(done + 1, epochs + 1):
        torch.manual_seed(epoch_seed(seed, epoch))
        losses = torch.zeros(len(train), device=device)
        sizes: list[int] = []
        counts = torch.zeros(patients, 4, dtype=torch.int64, device=device)
        model.train()
        started = looked = time.perf_counter()
        for step, (x, y, patient) in enumerate(train.epoch(epoch_seed(seed, epoch))):
            with autocast():
                logits = forward(x)
            value = loss(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            losses[step] = value.detach()
            sizes.append(len(x))
            counts += confusion(logits.detach(), y, patient, patients)
            now = time.perf_counter()
            if now - looked > LOOK:
                _finite(losses[: step + 1], epoch)
                looked = now
            rate = sum(sizes) / (now - started)
            progress.emit("step", epoch=epoch, epochs=epochs, done=(step + 1) / len(train), rate=rate)
        _finite(losses, epoch)
        seconds = time.perf_counter() - started
        row: dict[str, Any] = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "seconds": seconds}
        row["train/loss"] = float((losses * torch.tensor(sizes, device=device)).sum() / sum(sizes))
        row |= {f"train/{name}": v for name, v in summarise(counts.cpu().numpy()).items()}
        held = evaluate(model, loss, held_out, patients=patients, autocast=autocast)
        row |= {f"{part}/loss": held.loss} | {f"{part}/{name}": v for name, v in summarise(held.counts).items()}
        row |= {"eval_seconds": held.seconds, "images_per_second": train.images / seconds}
        scheduler.step()
        if is_best(row, history):  # a copy: it may be a later epoch that is saved
            best = {"epoch": epoch, "model": copy.deepcopy(model.state_dict())}
        history.append(row)

        if epoch % every == 0 or epoch == epochs or epoch in milestones or progress.stopping():
            checkpoints.save(
                {
                    "epoch": epoch,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "history": history,
                },
                best,
            )
            best = None
            checkpoints.prune(epoch, keep, milestones | {epochs})
        on_epoch(history)
        progress.emit("epoch", epochs=epochs, **row)
        if progress.stopping() and epoch < epochs:
            raise progress.Interrupted(epoch)
    return history, done


def is_best(row: dict[str, Any], history: list[dict[str, Any]]) -> bool:
    """Whether `row` has the highest validation Dice so far; never where there is no validation part."""
    score = row.get(SELECT_BY, math.nan)
    earlier = [r[SELECT_BY] for r in history if not math.isnan(r.get(SELECT_BY, math.nan))]
    return not math.isnan(score) and all(score > e for e in earlier)


def _finite(losses: torch.Tensor, epoch: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = int(bad[0])
        raise NotFiniteError(
            f"the loss became {float(losses[step])} at step {step + 1} of epoch {epoch}; "
            "try a smaller optim.lr, clip_norm=1, or precision=fp32"
        )
