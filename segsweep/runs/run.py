"""One run, top to bottom: reuse or resume, build, fit, test, record.

A run is a function of its signature: whoever asks for it, in whatever sweep, gets the one record of it.
"""

import contextlib
import dataclasses
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig, OmegaConf

from segsweep.config.schema import engine
from segsweep.core import accepted, artifacts, locks
from segsweep.core.device import out_of_memory
from segsweep.core.errors import NotFiniteError, SegsweepError, TaskError
from segsweep.core.session import Interrupted, Pruned, session
from segsweep.core.signature import OWN, without
from segsweep.core.source import PACKAGE, is_own
from segsweep.runs import record
from segsweep.runs.asked import Asked
from segsweep.runs.loop import Loop, seed_all
from segsweep.runs.result import checked
from segsweep.search import pruning
from segsweep.task import Result
from segsweep.tracking.copying import Mirror
from segsweep.tracking.recall import restorer

log = logging.getLogger(__name__)

PRUNED = ("epoch", "metrics", "training_seconds", "parameters", "reason")
"""What pruned.json has at least."""


@dataclasses.dataclass
class Outcome:
    """How a job ended. `status`: finished, continued, stopped early, reused, pruned, failed or interrupted.
    `accepted`: where the record of other code is the answer, by whom and why. `stopped`: that and why it stopped early,
    also of one that is reused. `tested`: reused are its epochs, and their weights were tested now."""

    status: str
    signature: str | None = None
    folder: Path | None = None
    objective: float | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    training_seconds: float | None = None
    parameters: int | None = None
    failure: str | None = None
    error: str | None = None
    epoch: int | None = None
    accepted: str | None = None
    stopped: str | None = None
    tested: bool = False


def run(
    cfg: DictConfig, *, choices: dict[str, Any], name: str, command: str, sweep: Path | None, milestones: set[int]
) -> Outcome:
    """Train and test one composed configuration, or answer from its record; failures are recorded, never raised.

    `choices`: the option chosen in each group; `milestones`: other values of `epochs` that the sweep asks for, whose
    states are kept on the way. Raises KeyboardInterrupt only.
    """
    outcome = Outcome("failed")
    asked: Asked | None = None
    with ExitStack() as stack:
        try:
            asked = Asked(cfg, choices, name, command, sweep, milestones)
            outcome.signature, outcome.folder = asked.ids["signature"], asked.folder
            return _run(asked, outcome, stack)
        except Interrupted as stop:
            outcome.status, outcome.epoch, outcome.error = "interrupted", stop.epoch, str(stop)
        except (Exception, SystemExit) as error:  # whatever a job dies of, the sweep goes on
            outcome.status, outcome.failure = "failed", classify(error)
            outcome.error = told(error)
            if isinstance(error, OSError) and error.errno in artifacts.NO_ROOM:
                outcome.error = artifacts.full(error, Path(engine(cfg).paths.runs))
            elif isinstance(error, OSError) and error.errno in artifacts.DENIED and _is_of_the_record(error, cfg):
                outcome.error = artifacts.denied(error, Path(os.fspath(error.filename)).parent)
            elif not isinstance(error, SegsweepError):
                _keep_traceback()
            if outcome.failure == "oom" and asked and (smaller := getattr(asked.task, "smaller", None)):
                outcome.error = f"{smaller(session().retries)}\n{outcome.error}"
            if asked:
                with contextlib.suppress(OSError):  # a full disk, say: the job's record has the error too
                    artifacts.write_json(
                        asked.place / "failure.json",
                        {"status": "failed", "class": outcome.failure, "error": outcome.error}
                        | {"traceback": traceback.format_exc()},
                    )
        return outcome


def _is_of_the_record(error: OSError, cfg: DictConfig) -> bool:
    runs = os.path.abspath(engine(cfg).paths.runs)
    return bool(error.filename) and os.path.abspath(os.fspath(error.filename)).startswith(f"{runs}{os.sep}")


def told(error: BaseException) -> str:
    """An error in words: with the last line of one's own code that it went through, where it is not the engine's."""
    if isinstance(error, SegsweepError):
        return str(error)
    said = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    frames = []
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename).resolve()
        if file.is_file() and is_own(file) and not file.is_relative_to(PACKAGE):
            frames.append(frame)
    where = f" ({frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{said}{where}"


def _keep_traceback() -> None:
    """The whole of it is for the job's log file; an application may show on the screen what it logs."""
    told_at = log.makeRecord(log.name, logging.INFO, __file__, 0, "the job failed", (), sys.exc_info())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(told_at)


def classify(error: BaseException) -> str:
    """The class of a failure: `nan`, `oom` or `error`; a launcher adds `killed` and `timeout`."""
    if isinstance(error, NotFiniteError):
        return "nan"
    return "oom" if out_of_memory(error) else "error"


def _run(asked: "Asked", outcome: Outcome, stack: ExitStack) -> Outcome:
    cfg, folder, checkpoints = asked.engine, asked.folder, asked.checkpoints
    judge = _judge(asked)
    stack.enter_context(locks.lock(folder))
    record.take_place(folder)  # as a process may have died in doing
    if asked.accepted and not _stands(asked):
        asked.stand_alone()
        outcome.signature, outcome.folder = asked.ids["signature"], asked.folder
        return _run(asked, outcome, stack)
    if _answered(asked, judge, outcome, stack):
        return outcome
    stack.enter_context(locks.lock(checkpoints.folder))
    accepted.take_back(checkpoints)
    place = outcome.folder = record.clear(asked)  # whatever becomes of it, a record that is finished has no part in it
    values = without(asked.whole, (f"{asked.at}search",))  # who asks is no part of the run
    own = OmegaConf.create(values if asked.at else artifacts.literal(values))  # an application's may ask for more
    artifacts.write_text(place / "config.yaml", OmegaConf.to_yaml(own), artifacts.stands(place))
    described = record.Described(asked)
    mirror = stack.enter_context(Mirror(folder, cfg.tracking, asked.sweep))
    before = record.states(place)

    def on_epoch(history: list[dict[str, Any]]) -> None:
        artifacts.write_lines(place / "history.jsonl", history, artifacts.stands(place))
        before["history.jsonl"] = artifacts.state_of(place / "history.jsonl")
        mirror.update()

    here = session()
    stack.callback(_set_threads, torch.get_num_threads())  # a run goes on with as many as it began with
    loop = Loop(
        asked.task.spec,
        asked.data.part,
        epochs=asked.epochs,
        seed=cfg.seed,
        checkpoints=checkpoints,
        folder=place,
        device=str(asked.device),
        retries=here.retries,
        samples=asked.data.parts.get("train", 0),
        every=cfg.checkpoint.every,
        keep=cfg.checkpoint.keep,
        milestones=asked.milestones,
        writer=stack.enter_context(writer) if (writer := _writer(asked.device)) else None,
        on_epoch=on_epoch,
        judge=judge or (lambda history: None),
        stopping=here.stopping,
        interrupted=Interrupted,
        emit=here.emit,
        describe=described.add,
        ends=getattr(asked.task, "ends", lambda history: ""),
        taken_up=lambda done: described.add(accepted=accepted.begun(checkpoints, done)),
    )
    seed_all(cfg.seed)
    here.emit("note", text="training")
    began = time.perf_counter()
    try:
        with _no_quiet_end():
            result = asked.task.train(loop)
    except Pruned as end:
        assert judge
        record.refuse_written(place, before | {"run.json": described.state})
        history = artifacts.read_lines(place / "history.jsonl")
        facts = end.record | {
            "metrics": record.metrics_of(history[-1]),
            "parameters": described.facts.get("parameters"),
        }
        facts |= record.sums(history)
        checkpoints.end(end.epoch)
        with artifacts.Together() as files:
            record.keep(asked, history, described, files)
        record.close(place, "pruned.json", facts)
        judge.end("PRUNED")
        return _answer_pruned(outcome, facts)
    spent = time.perf_counter() - began
    loop.finish()
    record.refuse_written(place, before | {"run.json": described.state})
    if not isinstance(result, Result):
        made = cfg.task._target_
        raise TaskError(f"train() of {made} gave {type(result).__name__}; a task.Result(metrics, units) is needed")
    may_loop = hasattr(asked.task, "function")  # of a script or an application, which may loop or not
    if asked.task.spec.epochs and loop.state is None and not may_loop:
        raise TaskError(
            "train() did not loop over run.epochs(...); a task that trains at one go says so: Spec(epochs=False)"
        )
    result = checked(result, asked.task.spec, str(cfg.task._target_))
    described.facts["seconds"] = spent
    with artifacts.Together() as files:
        facts = record.finished(asked, loop, result, described.facts, files)
        record.keep(asked, loop.history, described, files)
    record.close(place, "result.json", facts | {"trained_epochs": loop.length - loop.done})
    record.take_place(folder)
    outcome.folder = folder
    checkpoints.end(loop.length)
    if judge:
        judge.end("COMPLETE", loop.history)
    outcome.tested = (status := _status(loop)) == "reused"
    return _answer(outcome, facts, status)


def reused(folder: Path) -> Outcome | None:
    """The answer of a finished run's record; None where nobody can say without more ado: another process works there,
    or the record is damaged."""
    with locks.free(folder / "lock") as busy:
        if busy:
            return None
        record.take_place(folder)
        result = artifacts.result(folder)
        if not result or record.damage(folder):
            return None
    return _answer(Outcome("reused", folder.name, folder), result, "reused")


@contextlib.contextmanager
def _no_quiet_end() -> Iterator[None]:
    """For the block, os._exit(0) of this process is no success: nobody is left to say that the job has no result."""
    leave, here = os._exit, os.getpid()

    def ends(status: int) -> NoReturn:
        if os.getpid() == here and status == 0:  # not a process that the task forked
            print("train() ended its own process, os._exit(0), before it had a result: the job failed", file=sys.stderr)
            sys.stderr.flush()
            status = 1
        leave(status)

    os._exit = ends
    try:
        yield
    finally:
        os._exit = leave


def _status(loop: Loop) -> str:
    if loop.stopped and loop.done < loop.length:
        return "stopped early"
    return "finished" if not loop.done else "continued" if loop.done < loop.length else "reused"


def _judge(asked: Asked) -> pruning.Judge | None:
    if not OmegaConf.select(asked.engine, "pruner._target_"):
        return None
    pruning.refuse(asked.cfg, asked.task.spec, int(asked.data.part == "val"))
    about = {"signature": asked.ids["signature"], "data": asked.data.digest or "", "split": asked.data.split}
    pruner = asked.choices.get(f"{OWN}/pruner" if asked.at else "pruner", "none")
    return pruning.Judge(asked.cfg, asked.task.spec, pruner=pruner, name=asked.name, sweep=asked.sweep, **about)


def _answered(asked: Asked, judge: pruning.Judge | None, outcome: Outcome, stack: ExitStack) -> bool:
    """Whether the run's record, here or in MLflow, is the answer: it is finished, or was pruned as it would be now."""
    cfg, folder = asked.engine, asked.folder
    anew = asked.anew(folder)
    result = None if anew else artifacts.result(folder)
    pruned = None if anew else artifacts.whole(folder / "pruned.json", PRUNED)
    if damage := record.damage(folder) if result else "":
        log.warning("%s: tested again from its last state, or trained where that is lost", damage)
        result = None
    elif (
        cfg.reuse and not result and restorer().restore(folder, cfg.tracking.uri, cfg.tracking.experiment, asked.sweep)
    ):
        result = artifacts.result(folder)
    if cfg.search.trial is not None:
        trial = {"study": cfg.search.study, "number": cfg.search.trial, "state": "RUNNING"}
        artifacts.write_json(folder / "trial.json", trial)
    if judge:
        stack.enter_context(judge)
    if result:
        if judge:
            judge.end("COMPLETE", artifacts.read_lines(folder / "history.jsonl"))
        _answer(outcome, result, "reused")
        outcome.accepted = accepted.told(asked.accepted) if asked.accepted else None
    elif judge and pruned and pruning.same(pruned, asked.cfg, asked.task.spec):
        judge.end("PRUNED", artifacts.read_lines(folder / "history.jsonl")[: pruned["epoch"]])
        (folder / "failure.json").unlink(missing_ok=True)
        _answer_pruned(outcome, pruned)
    else:
        return False
    stack.enter_context(Mirror(folder, cfg.tracking, asked.sweep))
    return True


def _stands(asked: Asked) -> bool:
    """Whether the accepted record is still the answer. One that was trained anew while this waited is not, and one with
    damaged weights is not mended by other code: the run of that is tested from the same states, where they are left."""
    if damage := record.damage(asked.folder):
        log.warning("%s: the record is not let stand for today's code", damage)
    return not damage and accepted.standing(asked.runs, asked.identity.ids["signature"]) is not None


def _set_threads(number: int) -> None:
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)


def _writer(device: torch.device) -> Executor | None:
    return ThreadPoolExecutor(1, "checkpoint") if device.type == "cuda" else None


def _answer(outcome: Outcome, known: dict[str, Any], status: str) -> Outcome:
    outcome.status, outcome.metrics, outcome.objective = status, known["metrics"], known["objective"]
    outcome.training_seconds, outcome.parameters = known["training_seconds"], known["parameters"]
    outcome.epoch, outcome.stopped = known["epochs"], artifacts.stopped(known) or None
    return outcome


def _answer_pruned(outcome: Outcome, known: dict[str, Any]) -> Outcome:
    outcome.status, outcome.metrics, outcome.epoch = "pruned", known["metrics"], known["epoch"]
    outcome.training_seconds, outcome.parameters = known["training_seconds"], known["parameters"]
    outcome.error = known["reason"]
    return outcome
