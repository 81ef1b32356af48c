"""One run, top to bottom: reuse or resume, build, fit, test, record.

A run is a function of its signature: whoever asks for it, in whatever sweep, gets the one record of it.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from segsweep.config import components
from segsweep.config.schema import engine, resolved, under
from segsweep.core import accepted, artifacts, environment
from segsweep.core.artifacts import Checkpoints
from segsweep.core.device import out_of_memory, pick_device
from segsweep.core.errors import ConfigError, NotFiniteError, SegsweepError, TaskError
from segsweep.core.session import Interrupted, Pruned, session
from segsweep.core.signature import OWN, PACKAGE, code, fingerprint, is_own, without
from segsweep.runs.identity import identity, unwatched
from segsweep.runs.loop import Loop, plain, seed_all
from segsweep.search import pruning
from segsweep.task import Data, Result, Spec
from segsweep.tracking.mirrors import Mirror, forget
from segsweep.tracking.recall import restorer

log = logging.getLogger(__name__)

ANEW = "anew.json"
"""In the folder of a run or a trajectory: the sweep that began it anew."""
PRUNED = ("epoch", "metrics", "training_seconds", "parameters", "reason")
"""What pruned.json has at least."""


@dataclasses.dataclass
class Outcome:
    """How a job ended. `status`: finished, continued, reused, pruned, failed or interrupted. `accepted`: where the
    record of other code is the answer, by whom and why."""

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


def run(
    cfg: DictConfig, *, choices: dict[str, Any], name: str, command: str, sweep: Path | None, milestones: set[int]
) -> Outcome:
    """Train and test one composed configuration, or answer from its record; failures are recorded, never raised.

    `choices`: the option chosen in each group; `milestones`: other values of `epochs` that the sweep asks for, whose
    states are kept on the way. Raises KeyboardInterrupt only.
    """
    outcome = Outcome("failed")
    asked: _Asked | None = None
    with ExitStack() as stack:
        try:
            asked = _Asked(cfg, choices, name, command, sweep, milestones)
            outcome.signature, outcome.folder = asked.ids["signature"], asked.folder
            return _run(asked, outcome, stack)
        except Interrupted as stop:
            outcome.status, outcome.epoch, outcome.error = "interrupted", stop.epoch, str(stop)
        except (Exception, SystemExit) as error:  # whatever a job dies of, the sweep goes on
            outcome.status, outcome.failure = "failed", classify(error)
            outcome.error = told(error)
            if isinstance(error, OSError) and error.errno in artifacts.NO_ROOM:
                outcome.error = artifacts.full(error, Path(engine(cfg).paths.runs))
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
    record = log.makeRecord(log.name, logging.INFO, __file__, 0, "the job failed", (), sys.exc_info())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def classify(error: BaseException) -> str:
    """The class of a failure: `nan`, `oom` or `error`; a launcher adds `killed` and `timeout`."""
    if isinstance(error, NotFiniteError):
        return "nan"
    return "oom" if out_of_memory(error) else "error"


def _run(asked: "_Asked", outcome: Outcome, stack: ExitStack) -> Outcome:
    cfg, folder, checkpoints = asked.engine, asked.folder, asked.checkpoints
    judge = _judge(asked)
    stack.enter_context(artifacts.lock(folder))
    _take_place(folder)  # as a process may have died in doing
    if asked.accepted and not _stands(asked):
        asked.stand_alone()
        outcome.signature, outcome.folder = asked.ids["signature"], asked.folder
        return _run(asked, outcome, stack)
    if _answered(asked, judge, outcome, stack):
        return outcome
    stack.enter_context(artifacts.lock(checkpoints.folder))
    place = _clear(asked)
    own = OmegaConf.create(without(asked.whole, (f"{asked.at}search",)))  # who asks is no part of the run
    artifacts.write_text(place / "config.yaml", OmegaConf.to_yaml(own), durable=True)
    record = _Described(asked)
    mirror = stack.enter_context(Mirror(folder, cfg.tracking, asked.sweep))
    before = _states(place)

    def on_epoch(history: list[dict[str, Any]]) -> None:
        artifacts.write_lines(place / "history.jsonl", history)
        before["history.jsonl"] = _state(place / "history.jsonl")
        mirror.update()

    here = session()
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
        describe=record.add,
    )
    seed_all(cfg.seed)
    here.emit("note", text="training")
    began = time.perf_counter()
    try:
        result = asked.task.train(loop)
    except Pruned as end:
        assert judge
        _refuse_written(place, before | {"run.json": record.state})
        history = artifacts.read_lines(place / "history.jsonl")
        facts = end.record | {"metrics": _metrics(history[-1]), "parameters": record.facts.get("parameters")}
        facts |= _sums(history)
        checkpoints.end(end.epoch)
        _close(asked, "pruned.json", facts, history, record)
        judge.end("PRUNED")
        return _answer_pruned(outcome, facts)
    spent = time.perf_counter() - began
    loop.finish()
    _refuse_written(place, before | {"run.json": record.state})
    if not isinstance(result, Result):
        made = cfg.task._target_
        raise TaskError(f"train() of {made} gave {type(result).__name__}; a task.Result(metrics, units) is needed")
    may_loop = hasattr(asked.task, "function")  # of a script or an application, which may loop or not
    if asked.task.spec.epochs and loop.state is None and not may_loop:
        raise TaskError(
            "train() did not loop over run.epochs(...); a task that trains at one go says so: Spec(epochs=False)"
        )
    result = _checked(result, asked.task.spec, str(cfg.task._target_))
    record.facts["seconds"] = spent
    facts = _finished(asked, loop, result, record.facts) | {"trained_epochs": asked.epochs - loop.done}
    _close(asked, "result.json", facts, loop.history, record)
    _take_place(folder)
    checkpoints.end(asked.epochs)
    if judge:
        judge.end("COMPLETE", loop.history)
    return _answer(outcome, facts, _status(loop.done, asked.epochs))


def _status(done: int, epochs: int) -> str:
    return "finished" if not done else "continued" if done < epochs else "reused"


_State = tuple[int, int, int] | None


def _state(file: Path) -> _State:
    """What changes with a file, whoever writes it; None where there is none."""
    with contextlib.suppress(OSError):
        about = file.stat()
        return about.st_ino, about.st_mtime_ns, about.st_size
    return None


def _states(place: Path) -> dict[str, _State]:
    """Of the engine's files that nobody writes while a task trains, or the one that writes them says so."""
    apart = ("mlflow.json", "trial.json", accepted.FILE)
    return {name: _state(place / name) for name in sorted(artifacts.ENGINES.difference(apart))}


def _refuse_written(place: Path, before: Mapping[str, _State]) -> None:
    """Raise TaskError where a task wrote a file of the engine's; it is removed, so that it passes for no record."""
    if wrong := [name for name, state in before.items() if _state(place / name) != state]:
        for name in wrong:
            artifacts.remove(place / name)
        raise TaskError(
            f"train() wrote {', '.join(wrong)} in run.folder, where files of that name are the engine's own; call it "
            "otherwise"
        )


class _Asked:
    """What a job asks for, and which run that is; nothing is built or written yet.

    `folder`: of its record. `place`: where it is made, which is another where a finished record is trained anew."""

    def __init__(
        self,
        cfg: DictConfig,
        choices: dict[str, Any],
        name: str,
        command: str,
        sweep: Path | None,
        milestones: set[int],
    ):
        self.began = time.perf_counter()
        said = components.spec_of(cfg)
        if problems := [*components.check(cfg), *(pruning.problems(cfg, said) if said else [])]:
            raise ConfigError("\n".join(problems))
        self.cfg, self.engine, self.at = cfg, engine(cfg), under(cfg)
        self.choices, self.name, self.command = choices, name, command
        self.sweep, self.milestones = sweep, milestones
        self.device = pick_device(self.engine.device)
        environment.reset_peak_memory(self.device)
        runs = Path(self.engine.paths.runs).absolute()  # whatever folder the code that trains goes to

        session().emit("note", text="reading the data set")
        self.task = components.task(cfg)
        self.data: Data = self.task.data()
        self.whole = resolved(cfg, (), str(sweep.absolute()) if sweep else "")
        self.epochs = self.engine.epochs if self.task.spec.epochs else 1
        self.identity = identity(cfg, self.task.spec, self.data, sweep)
        self.runs = runs
        self.accepted = accepted.standing(runs, self.identity.ids["signature"]) if self.engine.reuse else None
        self._be(self.accepted["ids"] if self.accepted else self.identity.ids)
        record = (artifacts.read_json(sweep / "sweep.json") or {}) if sweep else {}
        self.by = f"{record['name']} {record['started']}" if record else ""

    def _be(self, ids: dict[str, str]) -> None:
        self.ids = ids
        self.folder = self.place = self.runs / "runs" / ids["signature"]
        self.checkpoints = Checkpoints(self.runs / "trajectories" / ids["trajectory"])

    def stand_alone(self) -> None:
        """Be the run that today's code makes, whatever was accepted in its place."""
        self.accepted = None
        self._be(self.identity.ids)

    def anew(self, folder: Path) -> bool:
        """Whether what `folder` holds is not to be used: with reuse=false, but for what this very sweep has trained. So
        its jobs share epochs, and a job that is tried again goes on."""
        return not self.engine.reuse and not (self.by and artifacts.read_json(folder / ANEW) == {"by": self.by})


def _judge(asked: _Asked) -> pruning.Judge | None:
    if not OmegaConf.select(asked.engine, "pruner._target_"):
        return None
    pruning.refuse(asked.cfg, asked.task.spec, int(asked.data.part == "val"))
    about = {"signature": asked.ids["signature"], "data": asked.data.digest or "", "split": asked.data.split}
    pruner = asked.choices.get(f"{OWN}/pruner" if asked.at else "pruner", "none")
    return pruning.Judge(asked.cfg, asked.task.spec, pruner=pruner, name=asked.name, sweep=asked.sweep, **about)


def _answered(asked: _Asked, judge: pruning.Judge | None, outcome: Outcome, stack: ExitStack) -> bool:
    """Whether the run's record, here or in MLflow, is the answer: it is finished, or was pruned as it would be now."""
    cfg, folder = asked.engine, asked.folder
    anew = asked.anew(folder)
    result = None if anew else artifacts.result(folder)
    pruned = None if anew else artifacts.whole(folder / "pruned.json", PRUNED)
    if damage := _damage(folder) if result else "":
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


def _stands(asked: _Asked) -> bool:
    """Whether the accepted record is still the answer. One that was trained anew while this waited is not, and one with
    damaged weights is not mended by other code: the run of that is tested from the same states, where they are left."""
    if damage := _damage(asked.folder):
        log.warning("%s: the record is not let stand for today's code", damage)
    return not damage and accepted.standing(asked.runs, asked.identity.ids["signature"]) is not None


def _damage(folder: Path) -> str:
    """What is wrong with the weights of a finished run, "" where nothing is; that they are elsewhere is not."""
    for file in (folder / name for name in artifacts.WEIGHTS):
        try:
            artifacts.check(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return f"{file} is damaged ({error})"
    return ""


def _clear(asked: _Asked) -> Path:
    """Remove what may not pass for this run's, should it end early; gives the folder in which the run is made."""
    folder, ended = asked.folder, ["failure.json", "pruned.json"]
    if asked.anew(asked.checkpoints.folder):
        asked.checkpoints.clear()
        artifacts.write_json(asked.checkpoints.folder / ANEW, {"by": asked.by})
    if asked.anew(folder):
        if artifacts.result(folder):
            asked.place = folder / artifacts.NEXT
            if asked.anew(asked.place):
                shutil.rmtree(asked.place, ignore_errors=True)
        else:
            forget(folder)
            ended += [*artifacts.RECORD, *artifacts.WEIGHTS, *artifacts.of_task(folder), accepted.FILE]
        artifacts.write_json(asked.place / ANEW, {"by": asked.by})
    asked.checkpoints.tidy()
    artifacts.tidy(asked.place)
    for file in ended:
        (asked.place / file).unlink(missing_ok=True)
    return asked.place


def _take_place(folder: Path) -> None:
    """Put a run that was trained anew and is whole in the place of the finished record. Cut anywhere it is taken up
    again: until its result.json has moved, the last of all, the old one is the record."""
    made = folder / artifacts.NEXT
    if not artifacts.result(made):
        return
    forget(folder)
    files = [file for file in made.iterdir() if file.name != "result.json"]
    if (made / ANEW).exists():  # what only the old one has goes before the first file has moved
        old = {*artifacts.RECORD, *artifacts.WEIGHTS, accepted.FILE}
        old |= {name.partition("/")[0] for name in artifacts.of_task(folder)}
        for name in old - {"result.json", *(file.name for file in files)}:
            artifacts.remove(folder / name)
        os.replace(made / ANEW, folder / ANEW)
        artifacts.flush(folder)
    for file in (file for file in files if file.name != ANEW):
        if file.is_dir():
            artifacts.remove(folder / file.name)
        os.replace(file, folder / file.name)
    artifacts.flush(folder)
    os.replace(made / "result.json", folder / "result.json")
    artifacts.flush(folder)
    shutil.rmtree(made, ignore_errors=True)


def _close(
    asked: _Asked, name: str, facts: dict[str, Any], history: list[dict[str, Any]], record: "_Described"
) -> None:
    """Write the file that ends a run once all else that its record stands on is on the medium."""
    place = asked.place
    artifacts.write_lines(place / "history.jsonl", history, durable=True)
    if loaded := unwatched(asked.identity):
        record.about["unwatched"] = loaded
        _tell(*sorted(loaded))
    record.keep()
    files = [PurePosixPath(name) for name in artifacts.of_task(place)]
    for file in files:  # pictures are drawn again
        if str(file) != asked.task.spec.table and file.suffix not in (".png", ".jpg", ".svg"):
            artifacts.flush(place / file)
    for inner in sorted({PurePosixPath(), *(up for file in files for up in file.parents)}, reverse=True):
        artifacts.flush(place / inner)
    artifacts.write_json(place / name, facts, durable=True)
    artifacts.flush(place)


@functools.cache
def _tell(*modules: str) -> None:
    """Once in a process."""
    log.warning(
        "%s: loaded and not watched, an edit does not train anew; import it in a line that names it, or have Spec.code "
        "name it",
        ", ".join(modules),
    )


class _Described:
    """run.json, which says what the run is, and more of it once its task knows more."""

    def __init__(self, asked: _Asked):
        self.file, choices, data = asked.place / "run.json", asked.choices, asked.data
        self.about: dict[str, Any] = (
            asked.ids
            | {"name": asked.name, "command": asked.command, "created": artifacts.now(), "choices": choices}
            | {"code": fingerprint(code()), "files": asked.identity.files, "evaluated_on": data.part}
            | {"places": asked.identity.places, "accepted": accepted.begun(asked.checkpoints, asked.epochs)}
            | {"factors": asked.identity.factors(choices, asked.task.spec, asked.at), "task": asked.task.spec.to_json()}
            | {"data": {"name": choices.get("data") or choices.get("task"), "digest": data.digest} | dict(data.facts)}
            | {"split": {"kind": choices.get("split"), "digest": data.split, "leaks": data.leaks} | dict(data.parts)}
            | {"resolved": list(data.settings)}
            | dict(data.settings)
            | environment.facts(asked.device, asked.identity.roots)
        )
        self.facts: dict[str, Any] = {}
        self._write()

    def _write(self) -> None:
        artifacts.write_json(self.file, self.about)
        self.state = _state(self.file)

    def add(self, **facts: Any) -> None:
        """What a name has already, if it is a mapping, is added to."""
        for name, fact in facts.items():
            before = self.about.get(name)
            self.about[name] = before | fact if isinstance(before, dict) and isinstance(fact, dict) else fact
        self.facts |= facts
        self._write()

    def keep(self) -> None:
        artifacts.write_json(self.file, self.about, durable=True)


def _checked(result: Result, spec: Spec, made: str) -> Result:
    """With plain numbers. Raise TaskError where a test's numbers are not what the task said that it measures, and
    NotFiniteError where one is none, but for the NaN of a mean over units of which none has a value."""
    for name, found, example in (("metrics", result.metrics, "{'test/loss': 0.1}"), ("units", result.units, "{}")):
        if not isinstance(found, Mapping):
            raise TaskError(
                f"{made}: Result has {type(found).__name__} for its {name}; a mapping is needed, such as {example}"
            )
    metrics: dict[str, Any] = {}
    for key, value in result.metrics.items():
        if spec.metric(key) is None:
            raise TaskError(
                f"{made}: Result has {key}, which is none of its metrics: test/{', test/'.join(spec.metrics)}"
            )
        metrics[key] = plain(value)
        if metrics[key] is None or isinstance(metrics[key], bool):
            raise TaskError(f"{made}: Result has {type(value).__name__} for {key}; a number is needed")
    if spec.scores and not result.units:
        raise TaskError(f"{made}: Result has no {spec.unit}; a value of {', '.join(spec.scores)} is needed for each")
    for unit, values in result.units.items():
        if not isinstance(values, Mapping):
            scores = ", ".join(f"{name!r}: 0.5" for name in spec.scores or ("score",))
            raise TaskError(
                f"{made}: Result has {type(values).__name__} for {spec.unit} {unit}; a mapping is needed, {{{scores}}}"
            )
        if lacks := [name for name in spec.scores if name not in values]:
            raise TaskError(f"{made}: Result has no {lacks[0]} for {spec.unit} {unit}; NaN where it is undefined")
    for key, value in metrics.items():
        name = key.partition("/")[2]
        undefined = math.isnan(value) and name in spec.scores and _undefined(result, name)
        if not math.isfinite(value) and not undefined:
            raise NotFiniteError(f"{made}: Result has {value} for {key}; a finite number is needed")
    return Result(metrics, result.units)


def _undefined(result: Result, name: str) -> bool:
    """Whether no unit has a value of a metric."""
    found = (plain(values[name]) for values in result.units.values())
    return all(value is None or math.isnan(value) for value in found)


def _finished(asked: _Asked, loop: Loop, result: Result, known: dict[str, Any]) -> dict[str, Any]:
    """Write the weights and the units' scores; what result.json is to hold. known: facts, the seconds of `train` among
    them, which are those of training where there were no epochs."""
    folder, checkpoints, spec, history = asked.place, asked.checkpoints, asked.task.spec, loop.history
    metrics = (_metrics(history[-1]) if history else {}) | dict(result.metrics)
    scores = loop.scores()
    if not history:  # trained at one go
        if loop.part == "val" and spec.select not in metrics:
            raise TaskError(f"train() gave no {spec.select}, by which this task chooses (Spec.select)")
        scores = [metrics[spec.select]] if loop.part == "val" else []
    if loop.state and "model" in loop.state:
        artifacts.save({"epoch": asked.epochs, "model": loop.state["model"].state_dict()}, folder / "last.pt")
        best = checkpoints.best(asked.epochs)
        try:
            artifacts.check(best)
        except (OSError, ValueError) as error:
            if loop.scores():
                lost = "%s: the best weights until epoch %d are lost: no best.pt (%s)"
                log.warning(lost, folder, asked.epochs, error)
        else:
            with artifacts.atomic(folder / "best.pt", durable=True) as file:
                shutil.copyfile(best, file)
    if result.units:
        rows = [{spec.unit: unit, **values} for unit, values in result.units.items()]
        artifacts.write_csv(folder / spec.table, rows, durable=True)
    sums, metric = _sums(history), spec.metric(spec.select)
    sums |= {} if history else {"training_seconds": known["seconds"]}
    assert metric
    best_of = max if metric.direction == "max" else min
    on_test = metrics.get(f"test/{spec.select.partition('/')[2]}")
    return {
        "status": "finished",
        "epochs": asked.epochs,
        "metrics": metrics,
        "evaluation_seconds": sum(row.get("eval_seconds", 0.0) for row in history),
        "total_seconds": time.perf_counter() - asked.began,
        "images_per_second": loop.samples * asked.epochs / max(sums["training_seconds"], 1e-9),
        "peak_memory_bytes": environment.peak_memory(asked.device),
        "parameters": known.get("parameters"),
        "gflops": known.get("gflops"),
        "objective": best_of(scores, default=None) if loop.part == "val" else on_test,
        "files": artifacts.of_task(folder),
    } | sums


def _writer(device: torch.device) -> Executor | None:
    return ThreadPoolExecutor(1, "checkpoint") if device.type == "cuda" else None


def _answer(outcome: Outcome, record: dict[str, Any], status: str) -> Outcome:
    outcome.status, outcome.metrics, outcome.objective = status, record["metrics"], record["objective"]
    outcome.training_seconds, outcome.parameters = record["training_seconds"], record["parameters"]
    outcome.epoch = record["epochs"]
    return outcome


def _answer_pruned(outcome: Outcome, record: dict[str, Any]) -> Outcome:
    outcome.status, outcome.metrics, outcome.epoch = "pruned", record["metrics"], record["epoch"]
    outcome.training_seconds, outcome.parameters = record["training_seconds"], record["parameters"]
    outcome.error = record["reason"]
    return outcome


def _sums(history: list[dict[str, Any]]) -> dict[str, Any]:
    parts = max((row.get("micro_batches", 1) for row in history), default=1)
    seconds = {"training_seconds": sum(row["seconds"] for row in history), "micro_batches": parts}
    compiling = sum(row.get("compile_seconds", 0.0) for row in history)
    return seconds | ({"compile_seconds": compiling} if compiling else {})


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "/" in key}
