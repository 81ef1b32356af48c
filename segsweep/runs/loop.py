"""`Loop`: what a task's `train` is given, and whose `epochs` it loops over.

All that makes epochs worth keeping happens between two of them: the state is saved, what was trained before is taken
up, the best weights are kept, a pruner is asked, a request to stop is heard. The order of the samples and every random
draw of an epoch come from (seed, epoch) alone, so an epoch that is resumed is the epoch that would have been: no
generator's state has to survive an interruption.
"""

import io
import json
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segsweep.core import environment
from segsweep.core.checkpoints import Checkpoints, check
from segsweep.core.errors import NotFiniteError, SegsweepError, TaskError, nearest
from segsweep.core.masks import first_line
from segsweep.core.session import session
from segsweep.task import PARTS, WORD, Spec, Stateful

RESERVED = ("epoch", "history", "measured")
"""Beside the states in a checkpoint."""
THREADS = "run.threads"
"""There too, and no name that a task can give to `epochs`."""


def epoch_seed(seed: int, epoch: int) -> int:
    """Independent streams for every pair of seed and epoch (numpy's SeedSequence); 0 to 2**32 - 1."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Of `random`, numpy and torch, as they are used without a generator of one's own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Loop:
    """A run as its task sees it (`task.Run`), on whatever is to be done with its epochs.

    part: what each epoch is scored on, "val" or "test". samples: of the training part, for the display's rate.
    `writer`: one thread, which writes an epoch's checkpoint from a copy in the host's memory while the next epoch
    trains; for a GPU, as on a CPU it would only take the time in which that one trains. `taken_up` is told how many
    epochs were there, `on_epoch` comes after the checkpoint. `judge` is asked after each epoch but the last, of those
    already there at once, and gives what to raise once the state is saved, or None. `stopping`: whether the run is
    asked to stop, and `interrupted` makes what is then raised, once the state is saved. `ends`: of a history, why the
    run is over with it, see `task.Task`. After `train`, `finish` tells a loop that was left early."""

    def __init__(
        self,
        spec: Spec,
        part: str,
        *,
        epochs: int,
        seed: int,
        checkpoints: Checkpoints,
        folder: Path = Path(),
        device: str = "cpu",
        retries: int = 0,
        samples: int = 0,
        every: int = 1,
        keep: int = 2,
        milestones: frozenset[int] | set[int] = frozenset(),
        writer: Executor | None = None,
        on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
        judge: Callable[[list[dict[str, Any]]], BaseException | None] = lambda history: None,
        stopping: Callable[[], bool] = lambda: False,
        interrupted: Callable[[int], BaseException] = lambda epoch: KeyboardInterrupt(f"after epoch {epoch}"),
        emit: Callable[..., None] = lambda kind, **facts: None,
        describe: Callable[..., None] = lambda **facts: None,
        taken_up: Callable[[int], None] = lambda done: None,
        ends: Callable[[list[dict[str, Any]]], str] = lambda history: "",
    ):
        self.spec, self.part, self._total, self.seed = spec, part, epochs, seed
        self.checkpoints, self.folder, self.device, self.retries = checkpoints, folder, device, retries
        self.samples, self.every, self.keep, self.milestones = samples, every, keep, {*milestones, epochs}
        self.writer, self.on_epoch, self.judge = writer, on_epoch, judge
        self.stopping, self.interrupted, self.emit, self.describe = stopping, interrupted, emit, describe
        self.taken_up, self.ends = taken_up, ends
        self.stopped = ""
        """Why the run was over before its last epoch."""
        self.state: dict[str, Stateful] | None = None
        self.history: list[dict[str, Any]] = []
        self.done = 0
        """Epochs that were there already."""
        self._best: dict[str, Any] | None = None
        self._writing: Future[None] | None = None
        self._kept = False

    def epochs(self, **state: Stateful) -> Iterator["Epoch"]:
        """The epochs that are left, one row of history each; see `task.Run`.

        Raises TaskError where the task misuses it, and whatever `judge` and `interrupted` make."""
        if not self.spec.epochs:
            raise TaskError("run.epochs(...) was called by a task that says it has none; leave Spec(epochs=False) out")
        if self.state is not None:
            raise TaskError("run.epochs(...) was called a second time; a run has one loop over its epochs")
        for name, thing in state.items():
            if name in RESERVED:
                raise TaskError(f"run.epochs({name}=...): the name is the engine's own; give the state another")
            if lacks := [m for m in ("state_dict", "load_state_dict") if not callable(getattr(thing, m, None))]:
                raise TaskError(
                    f"run.epochs({name}=...): {type(thing).__name__} has no {' and no '.join(lacks)}; what is to be "
                    "kept needs both, as a torch.nn.Module and an optimizer have them"
                )
        self.state = state
        return self._epochs(state)

    def _epochs(self, state: dict[str, Stateful]) -> Iterator["Epoch"]:
        self._take_up(state)
        for number in range(self.done + 1, self._total + 1):
            if self.stopped:
                break
            epoch = Epoch(self, number)
            seed_all(epoch.seed)
            epoch.began = time.perf_counter()
            yield epoch
            if epoch.row is None:
                raise TaskError(
                    f"epoch {number} was not reported: call epoch.report(metrics) once in each turn of the loop"
                )
            self._end(state, epoch.row)
        self.emit("note", text="testing")

    def _take_up(self, state: dict[str, Stateful]) -> None:
        """What was trained before, and the judgement of it: with nothing left to train there is nothing to end."""
        found = self._found(self._total)
        if found is not None and (over := self._over(found["history"])) < len(found["history"]):
            found = self._found(over)  # the later epochs are those of a run that went on
        if found is not None:
            if missing := state.keys() - found.keys():
                raise TaskError(
                    f"run.epochs(...): the checkpoints in {self.checkpoints.folder} have no "
                    f"{', '.join(sorted(missing))}; a task gives the same names each time (reuse=false trains anew)"
                )
            for name, thing in state.items():
                thing.load_state_dict(found[name])
            self.history = found["history"]
            self._as_it_began(found.get(THREADS))
        self.done = len(self.history)
        self.taken_up(self.done)
        going = 0 < self.done < self._total
        self.stopped = self.ends(self.history) if going else ""
        behind = self.judge(self.history) if going and not self.stopped else None
        if self.done:
            self.on_epoch(self.history[: behind.epoch] if behind else self.history)  # type: ignore[attr-defined]
        if behind:
            raise behind

    def _as_it_began(self, threads: Any) -> None:
        """On a CPU their number decides how sums are parted, and with it the last bits; another machine's are others
        anyway."""
        known = type(threads) is int and 1 <= threads <= environment.cores()
        if self.device == "cpu" and known and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            self.describe(device=environment.device_name(torch.device("cpu")))
            self.emit("text", text=f"goes on with {threads} thread{'s' * (threads > 1)}, as it began", once=True)

    def _found(self, until: int) -> dict[str, Any] | None:
        """The latest state there is, its history without what other code or settings measured than those of today."""
        found = self.checkpoints.load(until, self._scored)
        if found is not None:
            then, now = found.get("measured") or {}, self._measured
            others = {name for name in {*then, *now} if then.get(name) != now.get(name)}
            kept = [{k: v for k, v in row.items() if k.partition("/")[2] not in others} for row in found["history"]]
            found["history"] = kept
        return found

    @property
    def _measured(self) -> dict[str, str]:
        """Of the metrics that are a user's own."""
        return {name: metric.measured for name, metric in self.spec.metrics.items() if metric.measured}

    def _over(self, history: list[dict[str, Any]]) -> int:
        """After how many of these epochs the run is over."""
        return next((n for n in range(1, len(history)) if self.ends(history[:n])), len(history))

    def _end(self, state: dict[str, Stateful], row: dict[str, Any]) -> None:
        """Of an epoch: keep it, tell it, and raise what ends the run here."""
        number = row["epoch"]
        if self._is_best(row) and "model" in state:  # a copy: it may be a later epoch that is saved
            self._best = {"epoch": number, "model": on_host(state["model"].state_dict())}
        self.history.append(row)
        self.stopped = self.ends(self.history) if number < self._total else ""
        over = number == self._total or bool(self.stopped)
        stop = self.interrupted(number) if self.stopping() else None
        end = (stop or self.judge(self.history)) if not over else None
        save = number % self.every == 0 or number in self.milestones or over or end is not None
        kept = None
        if save:
            states = {name: thing.state_dict() for name, thing in state.items()}
            kept = {"epoch": number, **states, "history": self.history, "measured": self._measured}
            kept[THREADS] = torch.get_num_threads()
            if not self._kept:
                _check_keepable(states)
                self._kept = True
        self._wait()  # of the epoch before, or what went wrong
        if self.writer:
            copy, best, history = on_host(kept), self._best, list(self.history)
            self._writing = self.writer.submit(copy_context().run, self._write, copy, best, history)
        else:
            self._write(kept, self._best, self.history)
        self._best = None if save else self._best
        if end or over:
            self._wait()
        self.emit("epoch", epochs=self._total, epoch=number, **self._told(row))
        if end:
            raise end

    def _told(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What is shown of an epoch: `score`, and the whole line, `text`."""
        name = self.spec.select.partition("/")[2]
        losses = [f"{part} loss {row[f'{part}/loss']:.4f}" for part in ("train", self.part) if f"{part}/loss" in row]
        score = self.spec.told(self.part, name, row) if name != "loss" else ""
        rate = f"{self.samples / max(row['seconds'], 1e-9):.0f} {self.spec.sample}s/s" if self.samples else ""
        spent = f"compiled for {row['compile_seconds']:.0f} s" if row.get("compile_seconds") else ""
        return {"score": score or (losses or [""])[-1], "text": "  ".join(filter(None, [*losses, score, rate, spent]))}

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()

    def _write(self, state: dict[str, Any] | None, best: dict[str, Any] | None, history: list[dict[str, Any]]) -> None:
        if state is not None:
            self.checkpoints.save(state, best)
            self.checkpoints.prune(state["epoch"], self.keep, self.milestones)
        self.on_epoch(history)

    def _is_best(self, row: Mapping[str, Any]) -> bool:
        """Whether no epoch before was as good by the metric that selects; never where it has no value."""
        key, metric = self.spec.select, self.spec.metric(self.spec.select)
        assert metric
        score = row.get(key, math.nan)
        earlier = [r[key] for r in self.history if not math.isnan(_number(r.get(key)))]
        return not math.isnan(score) and all(metric.sign * (score - e) > 0 for e in earlier)

    def scores(self, history: list[dict[str, Any]] | None = None) -> list[float]:
        """The values that `select` had, epoch by epoch, where it had one; of another history than the loop's own."""
        values = [_number(row.get(self.spec.select)) for row in (self.history if history is None else history)]
        return [value for value in values if not math.isnan(value)]

    def _scored(self, state: dict[str, Any]) -> bool:
        return "model" in state and bool(self.scores(state["history"]))

    @property
    def length(self) -> int:
        """Epochs that the run has in the end."""
        return len(self.history) if self.stopped else self._total

    def best(self) -> dict[str, Any]:
        """See `task.Run`. Raises NotFiniteError where no epoch had a value to choose by."""
        file = self.checkpoints.best(len(self.history))
        if not file.exists():
            raise NotFiniteError(f"{self.spec.select} had no value in any epoch, so that none of them is the best")
        try:
            check(file)
        except ValueError as error:
            raise SegsweepError(
                f"{file}: damaged ({error}): nothing is tested by it. reuse=false trains anew"
            ) from error
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)["model"]
        return found

    def finish(self) -> None:
        """Raise TaskError where the loop was left before its end."""
        if self.state is not None and len(self.history) < self.length:
            raise TaskError(
                f"the loop over run.epochs(...) was left after {len(self.history)} of {self._total} epochs; let it run "
                "to its end: a pruner ends what falls behind, and `ends(history)` of the task what is to stop early"
            )


class Epoch:
    """One turn of the loop; see `task.Epoch`."""

    def __init__(self, loop: Loop, number: int):
        self.loop, self.number, self.last = loop, number, number == loop._total
        self.seed = epoch_seed(loop.seed, number)
        self.began = 0.0
        self.row: dict[str, Any] | None = None

    def step(self, done: float) -> None:
        rate = self.loop.samples * done / max(time.perf_counter() - self.began, 1e-9)
        text = f"{rate:.0f} {self.loop.spec.sample}s/s" if rate else ""
        self.loop.emit("step", epoch=self.number, epochs=self.loop._total, done=done, text=text)

    def report(self, metrics: Mapping[str, float], **facts: float) -> None:
        """`facts` stand beside the metrics in the history; `seconds`, of the training alone, is measured where it is
        not given. Raises TaskError where a value is none of the task's, and NotFiniteError where train/loss is not
        finite."""
        if self.row is not None:
            raise TaskError(f"epoch {self.number} was reported twice; give all its metrics in one epoch.report(...)")
        spec, values = self.loop.spec, {}
        for key, value in metrics.items():
            if spec.metric(key) is None:
                raise TaskError(f"epoch.report: {key} is no metric of this task{_instead(str(key), spec)}")
            values[key] = _value(f"epoch.report: {key}", value)
        if not math.isfinite(values.get("train/loss", 0.0)):
            raise NotFiniteError(f"the loss became {values['train/loss']} in epoch {self.number}")
        if self.loop.part == "val" and spec.select not in values:
            raise TaskError(
                f"epoch.report: {spec.select} is missing, by which this task chooses (Spec.select); "
                "report it each epoch"
            )
        facts = {name: _value(f"epoch.report: {name}", value) for name, value in facts.items()}
        seconds = facts.pop("seconds", time.perf_counter() - self.began)
        self.row = {"epoch": self.number, "seconds": seconds, **facts, **values}
        self.last = self.last or bool(self.loop.ends([*self.loop.history, self.row]))


def _instead(key: str, spec: Spec) -> str:
    """What to write for a key that is no metric: the nearest one, or how a metric is added."""
    part, _, name = key.partition("/")
    known = [f"{part}/{name}" for part in PARTS for name in spec.metrics]
    hint, added = nearest(key, known), ""
    if part in PARTS and WORD.fullmatch(name):
        hint = nearest(name, spec.metrics).replace("mean ", f"mean {part}/")
        low = any(word in name.lower() for word in ("loss", "err", "mse", "mae"))
        ways = {other: metric.direction for other, metric in spec.metrics.items()} | {name: "min" if low else "max"}
        door = session().door
        where = f"metric={json.dumps(ways)} in segsweep.main" if door and (door.app or door.asked) else ""
        added = "" if hint else f"; to have {name} too: {where or f'a Metric called {name} in its Spec(metrics=...)'}"
    return f"{hint}{added}; a key is PART/NAME, with {', '.join(PARTS)} and {', '.join(spec.metrics)}"


def plain(value: Any, truths: bool = False) -> Any:
    """A plain number of what a metric may come as: a number, or a tensor or array that holds one; None of others, and
    unless `truths` are numbers of True and False."""
    item = getattr(value, "item", None)
    try:
        value = item() if callable(item) else value
    except (RuntimeError, ValueError, TypeError):  # a tensor of several
        return None
    return value if isinstance(value, int | float) and (truths or not isinstance(value, bool)) else None


def _value(what: str, value: Any) -> Any:
    if (found := plain(value)) is None:
        several = callable(getattr(value, "item", None))
        raise TaskError(f"{what} is not a number; found {'several' if several else type(value).__name__}")
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _check_keepable(state: dict[str, Any]) -> None:
    """Raise TaskError naming a state that could be written and, as no foreign code is run for it, not be read again."""
    for name, content in state.items():
        if _is_plain(content):
            continue
        buffer = io.BytesIO()
        try:
            torch.save(_hollow(content), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:  # of pickling, whatever it meets
            reason = first_line(error).split(". ")[0]
            raise TaskError(
                f"run.epochs({name}=...): its state_dict() holds more than tensors, numbers, text, lists and "
                f"dictionaries, so that it could not be taken up again: {reason}"
            ) from None


def _is_plain(value: Any) -> bool:
    """Whether all of it is of kinds that can be read again, without trying."""
    if type(value) in (dict, OrderedDict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if type(value) in (list, tuple) else type(value) in PLAIN


PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None))


def _hollow(value: Any) -> Any:
    """A state without what its tensors hold."""
    if isinstance(value, torch.Tensor):
        return torch.empty(0)
    if isinstance(value, dict):
        return type(value)((key, _hollow(item)) for key, item in value.items()) if type(value) is dict else value
    return [_hollow(item) for item in value] if isinstance(value, list) else value


def on_host(value: Any) -> Any:
    """A copy of a state in the host's memory, which training does not change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    return [on_host(item) for item in value] if isinstance(value, list) else value
