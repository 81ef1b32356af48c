"""`fit`: the training loop, read from top to bottom; what happens between two epochs is `loop.Loop`'s."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from segsweep.core.device import bound
from segsweep.core.errors import NotFiniteError
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.labels import VOID
from segsweep.segmentation.evaluate import Evaluation, evaluate, no_counts
from segsweep.segmentation.metrics import confusion, summarise
from segsweep.segmentation.scores import means, of_patients
from segsweep.task import Run

Maps = torch.Tensor | tuple[torch.Tensor, ...]
"""Of logits (B, C, H, W): a network's, or those of its several outputs in training, the main one first."""
LOOK = 1.0
"""Seconds between two looks at the losses within an epoch: on a GPU a look waits for all that was asked of it."""


def fit(
    run: Run,
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    train: Batches,
    held_out: Batches,
    *,
    part: str,
    by: str = "epoch",
    patients: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    clip_norm: float | None,
    parts: int = 1,
    scores: Mapping[str, Any] | None = None,
    average: AveragedModel | None = None,
    scored: str = "model",
    forward: Callable[[torch.Tensor], Maps] | None = None,
    compile_seconds: Callable[[], float] = lambda: 0.0,
) -> Evaluation | None:
    """Train the epochs that `run` has left; the model ends with the weights of the last one. Returns the evaluation of
    the last epoch, with its masks, where `part` is test; None where that epoch was already there.

    `part` names what `held_out` is, "val" or "test"; `by`: what the schedule is stepped by, epoch, step, or a value
    of the epoch such as val/loss; `forward` is the compiled model where there is one, and
    `compile_seconds` the time that compiling has taken so far, which is no part of an epoch's; `parts`: see `in_parts`.
    `scores`: see `scores.of_patients`. `average`: of the weights, one step on after each of the optimizer's; `scored`:
    whose weights an epoch is evaluated with, and are kept as those of the run, model or ema.
    Raises NotFiniteError naming the step.
    """
    device = next(model.parameters()).device
    eager = forward is None  # what a compiler starts would stay on one processor
    forward = model if forward is None else forward  # a compiled module has no truth value
    if parts > 1:
        forward = partial(in_parts, forward, parts, [m for m in model.modules() if isinstance(m, _NormBase)])
    labels, void = train.labels, train.void
    tested: Evaluation | None = None
    shown = average.module if average is not None and scored == "ema" else model
    states: dict[str, Any] = {"model": shown, "optimizer": optimizer, "scheduler": scheduler}
    states |= {"loss": loss} if loss.state_dict() else {}  # one's own may remember what it has seen
    if average is not None:
        states |= {"trained": model} if shown is not model else {"average": average.module}
    epochs = run.epochs(**states)
    for epoch in bound(device, epochs) if eager else epochs:
        if average is not None:  # which with none begins anew
            average.n_averaged.fill_((epoch.number - 1) * len(train))
        losses = torch.zeros(len(train), device=device)
        weights = torch.zeros(len(train), device=device, dtype=torch.int64)
        counts = no_counts(patients, labels.outputs, device)
        model.train()
        compiled = compile_seconds()
        started = looked = time.perf_counter()
        for step, (x, y, patient) in enumerate(train.epoch(epoch.seed)):
            with autocast():
                found = forward(x)
            maps = found if isinstance(found, tuple) else (found,)
            logits = maps[0]
            value = loss(*(each.float() for each in maps), y)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            lr = optimizer.param_groups[0]["lr"]
            if by == "step":
                scheduler.step()
            with torch.no_grad():  # of the main output alone, as an evaluation's; not finite where the whole is not
                losses[step] = value if len(maps) == 1 else loss(logits.float(), y) + 0 * value
            weights[step] = (y != VOID).sum() if void else len(x)
            counts += confusion(logits.detach(), y, patient, patients, void)
            now = time.perf_counter()
            if now - looked > LOOK:
                _finite(losses[: step + 1], epoch.number)
                looked = now
            epoch.step((step + 1) / len(train))
        _finite(losses, epoch.number)
        compiled = compile_seconds() - compiled
        seconds = time.perf_counter() - started - compiled
        values = {"train/loss": float((losses * weights).sum() / weights.sum())}
        found = summarise(counts.cpu().numpy(), labels.structures)
        values |= {f"train/{name}": v for name, v in found.items()}
        test = part == "test" and epoch.last
        asked = any(score.metric.by_epoch for score in (scores or {}).values())
        held = evaluate(
            shown, loss, held_out, patients=patients, autocast=autocast, keep=test or asked,
            probabilities=bool(scores) and (test or asked), parts=parts,
        )  # fmt: skip
        tested = held if test else None
        found = {"loss": held.loss} | summarise(held.counts, labels.structures)
        rows = of_patients(scores or {}, held, held_out.volumes, held_out.indices.cpu().numpy(), epoch=True)
        values |= {f"{part}/{name}": v for name, v in (found | means(rows)).items()}
        facts = {"lr": lr, "seconds": seconds, "eval_seconds": held.seconds}
        facts |= {"images_per_second": train.images / seconds}
        facts |= {"micro_batches": parts} if parts > 1 else {}
        facts |= {"compile_seconds": compiled} if compiled else {}
        if by == "epoch":
            scheduler.step()
        elif by != "step":
            scheduler.step(values[by])  # type: ignore[arg-type]  # a plateau's
        epoch.report(values, **facts)
    return tested


def averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """torch's moving average, but whole numbers among the buffers, such as a table of places, are taken as they are."""
    of_floats = get_ema_multi_avg_fn(decay)

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: Any) -> None:  # of one type each
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            of_floats(averaged, current, count)
            return
        for mine, its in zip(averaged, current, strict=True):
            mine.copy_(its)

    return update


def in_parts(forward: Callable[[torch.Tensor], Maps], parts: int, norms: list[_NormBase], x: torch.Tensor) -> Maps:
    """The logits of `x` (B, C, H, W), computed in `parts` parts one after another, with the memory of one of them.

    The loss is taken of the whole batch's logits and the gradient is that of this loss, whatever it is: the mean over
    pixels as well as Dice over the batch, which has no gradient by parts. For that each part is computed a second time
    in the backward pass (torch.utils.checkpoint, after Chen et al. 2016, arXiv 1604.06174): a third more work. Only
    BatchNorm sees the parts: it normalises each by its own statistics, and its running ones take one step a part.
    A part has two slices at least, the fewest that BatchNorm can normalise."""
    again = partial(_counted_once, norms)
    found = [checkpoint(forward, p, use_reentrant=False, context_fn=again) for p in pieces(x, parts)]
    return tuple(map(torch.cat, zip(*found, strict=True))) if isinstance(found[0], tuple) else torch.cat(found)


def pieces(x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    """A batch in `parts` parts, of two slices at least."""
    return x.tensor_split(max(1, min(parts, len(x) // 2)))


def sizes(batch_size: int, parts: int = 1) -> set[int]:
    """Of what goes through the network at once of a whole batch."""
    return {len(piece) for piece in pieces(torch.empty(batch_size, 0), parts)}


def _counted_once(norms: list[_NormBase]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `checkpoint`: the running statistics stay as they are while a part is computed again."""

    @contextmanager
    def still() -> Iterator[None]:
        kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        try:
            for norm in norms:
                norm.momentum, norm.num_batches_tracked = 0.0, None
            yield
        finally:
            for norm, momentum, count in kept:
                norm.momentum, norm.num_batches_tracked = momentum, count

    return nullcontext(), still()


def _finite(losses: torch.Tensor, epoch: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = int(bad[0])
        raise NotFiniteError(
            f"the loss became {float(losses[step])} at step {step + 1} of epoch {epoch}; "
            "try a smaller optim.lr, clip_norm=1, or precision=fp32"
        )
