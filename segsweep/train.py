"""`fit`: the training loop, read from top to bottom.

The order of the slices and every random draw of an epoch come from (seed, epoch) alone, so an epoch that is resumed is
the epoch that would have been: no generator's state has to survive an interruption.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from segsweep.artifacts import Checkpoints
from segsweep.data.batches import Batches
from segsweep.errors import NotFiniteError
from segsweep.evaluate import Evaluation, evaluate
from segsweep.metrics import confusion, summarise
from segsweep.session import Interrupted, Pruned, session

SELECT_BY = "val/dice"
LOOK = 1.0
"""Seconds between two looks at the losses within an epoch: on a GPU a look waits for all that was asked of it."""


class Fitted(NamedTuple):
    """history: one dict an epoch: losses, metrics, seconds, parts where there are several; done: epochs that were
    already there; tested: the evaluation of the last epoch, with its masks, where `part` is test; None where that epoch
    was already there."""

    history: list[dict[str, Any]]
    done: int
    tested: Evaluation | None


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
    parts: int = 1,
    writer: Executor | None = None,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    compile_seconds: Callable[[], float] = lambda: 0.0,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    judge: Callable[[list[dict[str, Any]]], Pruned | None] = lambda history: None,
) -> Fitted:
    """Train until `epochs` epochs are complete, going on from the latest checkpoint; the model ends with the weights of
    the last epoch.

    `part` names what `held_out` is, "val" or "test"; `forward` is the compiled model where there is one, and
    `compile_seconds` the time that compiling has taken so far, which is no part of an epoch's; `parts`: see `in_parts`.
    `writer`: one thread, which writes an epoch's checkpoint from a copy in the host's memory while the next
    epoch trains; for a GPU, as on a CPU it would only take the time in which that one trains. `on_epoch` comes after
    the checkpoint. `judge` is asked after each epoch but the last, of those already there at once, and gives what to
    raise once the state is saved, or None.
    Raises NotFiniteError naming the step, and Interrupted at the end of an epoch when asked to stop.
    """
    forward = model if forward is None else forward  # a compiled module has no truth value
    device = next(model.parameters()).device
    if parts > 1:
        forward = partial(in_parts, forward, parts, [m for m in model.modules() if isinstance(m, _BatchNorm)])
    state = checkpoints.load(until=epochs)
    history: list[dict[str, Any]] = []
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history = state["history"]
    done = len(history)
    behind = judge(history) if 0 < done < epochs else None  # with nothing left to train there is nothing to save
    if done:
        on_epoch(history[: behind.epoch] if behind else history)
    if behind:
        raise behind
    best: dict[str, Any] | None = None
    tested: Evaluation | None = None
    writing: Future[None] | None = None

    def write(state: dict[str, Any] | None, best: dict[str, Any] | None, history: list[dict[str, Any]]) -> None:
        if state is not None:
            checkpoints.save(state, best)
            checkpoints.prune(state["epoch"], keep, milestones | {epochs})
        on_epoch(history)

    for epoch in range(done + 1, epochs + 1):
        torch.manual_seed(epoch_seed(seed, epoch))
        losses = torch.zeros(len(train), device=device)
        sizes: list[int] = []
        counts = torch.zeros(patients, 4, dtype=torch.int64, device=device)
        model.train()
        compiled = compile_seconds()
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
            session().emit("step", epoch=epoch, epochs=epochs, done=(step + 1) / len(train), rate=rate)
        _finite(losses, epoch)
        compiled = compile_seconds() - compiled
        seconds = time.perf_counter() - started - compiled
        row: dict[str, Any] = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "seconds": seconds}
        row["train/loss"] = float((losses * torch.tensor(sizes, device=device)).sum() / sum(sizes))
        row |= {f"train/{name}": v for name, v in summarise(counts.cpu().numpy()).items()}
        test = part == "test" and epoch == epochs
        held = evaluate(model, loss, held_out, patients=patients, autocast=autocast, keep=test, parts=parts)
        tested = held if test else None
        row |= {f"{part}/loss": held.loss} | {f"{part}/{name}": v for name, v in summarise(held.counts).items()}
        row |= {"eval_seconds": held.seconds, "images_per_second": train.images / seconds}
        row |= {"micro_batches": parts} if parts > 1 else {}
        row |= {"compile_seconds": compiled} if compiled else {}
        scheduler.step()
        if is_best(row, history):  # a copy: it may be a later epoch that is saved
            best = {"epoch": epoch, "model": on_host(model.state_dict())}
        history.append(row)

        stop = Interrupted(epoch) if session().stopping() else None
        end = (stop or judge(history)) if epoch < epochs else None
        save = epoch % every == 0 or epoch == epochs or epoch in milestones or end is not None
        kept = {
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "history": history,
        }
        if writing:
            writing.result()  # of the epoch before, or what went wrong
        if writer:
            writing = writer.submit(copy_context().run, write, on_host(kept) if save else None, best, list(history))
        else:
            write(kept if save else None, best, history)
        best = None if save else best
        if writing and (end or epoch == epochs):
            writing.result()
        session().emit("epoch", epochs=epochs, **row)
        if end:
            raise end
    return Fitted(history, done, tested)


def on_host(value: Any) -> Any:
    """A copy of a state in the host's memory, which training does not change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    return [on_host(item) for item in value] if isinstance(value, list) else value


def in_parts(
    forward: Callable[[torch.Tensor], torch.Tensor], parts: int, norms: list[_BatchNorm], x: torch.Tensor
) -> torch.Tensor:
    """The logits of `x` (B, C, H, W), computed in `parts` parts one after another, with the memory of one of them.

    The loss is taken of the whole batch's logits and the gradient is that of this loss, whatever it is: the mean over
    pixels as well as Dice over the batch, which has no gradient by parts. For that each part is computed a second time
    in the backward pass (torch.utils.checkpoint, after Chen et al. 2016, arXiv 1604.06174): a third more work. Only
    BatchNorm sees the parts: it normalises each by its own statistics, and its running ones take one step a part.
    A part has two slices at least, the fewest that BatchNorm can normalise."""
    again = partial(_counted_once, norms)
    return torch.cat([checkpoint(forward, p, use_reentrant=False, context_fn=again) for p in pieces(x, parts)])


def pieces(x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    """A batch in `parts` parts, of two slices at least."""
    return x.tensor_split(max(1, min(parts, len(x) // 2)))


def sizes(batch_size: int, parts: int = 1) -> set[int]:
    """Of what goes through the network at once of a whole batch."""
    return {len(piece) for piece in pieces(torch.empty(batch_size, 0), parts)}


def _counted_once(norms: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
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
