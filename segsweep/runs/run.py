"""One run, top to bottom: reuse or resume, build, fit, test, record.

A run is a function of its signature: whoever asks for it, in whatever sweep, gets the one record of it.
"""

import contextlib
import dataclasses
import logging
import shutil
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from segsweep.config import components
from segsweep.core import artifacts, environment
from segsweep.core.artifacts import Checkpoints
from segsweep.core.device import out_of_memory, pick_device
from segsweep.core.errors import ConfigError, NotFiniteError, SegsweepError, TaskError
from segsweep.core.session import Interrupted, Pruned, session
from segsweep.core.signature import IGNORED, code, factors, fingerprint, is_own, signatures, without
from segsweep.runs.loop import Loop, seed_all
from segsweep.search import pruning
from segsweep.task import Data, Result
from segsweep.tracking.mirrors import FIGURES, WEIGHTS, Mirror, forget
from segsweep.tracking.recall import FILES, restorer

log = logging.getLogger(__name__)

ANEW = "anew.json"
"""In the folder of a run or a trajectory: the sweep that began it anew."""


@dataclasses.dataclass
class Outcome:
    """How a job ended. `status`: finished, continued, reused, pruned, failed or interrupted."""

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
        except Exception as error:  # whatever a job dies of, the sweep goes on
            outcome.status, outcome.failure = "failed", classify(error)
            outcome.error = str(error)
            if not isinstance(error, SegsweepError):
                outcome.error = f"{type(error).__name__}: {error}{_own_frame(error)}"
                log.info("", exc_info=True)  # the whole of it is in job.log
            if outcome.failure == "oom" and asked and (smaller := getattr(asked.task, "smaller", None)):
                outcome.error = f"{smaller(session().retries)}\n{outcome.error}"
            if outcome.folder:
                with contextlib.suppress(OSError):  # a full disk, say: the job's record has the error too
                    artifacts.write_json(
                        outcome.folder / "failure.json",
                        {"status": "failed", "class": outcome.failure, "error": outcome.error}
                        | {"traceback": traceback.format_exc()},
                    )
        return outcome


def _own_frame(error: BaseException) -> str:
    """The last line of one's own code that an error went through, as a person looks for it; "" where there is none."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if (file := Path(f.filename)).is_file() and is_own(file)
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""


def classify(error: BaseException) -> str:
    """The class of a failure: `nan`, `oom` or `error`; a launcher adds `killed` and `timeout`."""
    if isinstance(error, NotFiniteError):
        return "nan"
    return "oom" if out_of_memory(error) else "error"


def _run(asked: "_Asked", outcome: Outcome, stack: ExitStack) -> Outcome:
    cfg, folder, checkpoints = asked.cfg, asked.folder, asked.checkpoints
    judge = _judge(asked)
    stack.enter_context(artifacts.lock(folder))
    if _answered(asked, judge, outcome, stack):
        return outcome
    stack.enter_context(artifacts.lock(checkpoints.folder))
    _clear(asked)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "search"])  # who asks is no part of the run
    artifacts.write_text(folder / "config.yaml", OmegaConf.to_yaml(own, resolve=True))
    record = _Described(asked)
    mirror = stack.enter_context(Mirror(folder, cfg.tracking, asked.sweep))

    def on_epoch(history: list[dict[str, Any]]) -> None:
        artifacts.write_lines(folder / "history.jsonl", history)
        mirror.update()

    here = session()
    loop = Loop(
        asked.task.spec,
        asked.data.part,
        epochs=cfg.epochs,
        seed=cfg.seed,
        checkpoints=checkpoints,
        folder=folder,
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
    try:
        result = asked.task.train(loop)
    except Pruned as end:
        assert judge
        history = artifacts.read_lines(folder / "history.jsonl")
        facts = end.record | {"metrics": _metrics(history[-1]), "parameters": record.facts.get("parameters")}
        facts |= _sums(history)
        checkpoints.end(end.epoch)
        artifacts.write_json(folder / "pruned.json", facts)
        judge.end("PRUNED")
        return _answer_pruned(outcome, facts)
    loop.finish()
    if not (isinstance(result, Result) and isinstance(result.metrics, Mapping) and isinstance(result.units, Mapping)):
        made = asked.cfg.task._target_
        raise TaskError(f"train() of {made} gave {type(result).__name__}; a task.Result(metrics, units) is needed")
    facts = _finished(asked, loop, result, record.facts) | {"trained_epochs": cfg.epochs - loop.done}
    artifacts.write_json(folder / "result.json", facts)
    checkpoints.end(cfg.epochs)
    if judge:
        judge.end("COMPLETE", loop.history)
    return _answer(outcome, facts, "finished" if not loop.done else "continued" if loop.done < cfg.epochs else "reused")


class _Asked:
    """What a job asks for, and which run that is; nothing is built or written yet."""

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
        self.cfg, self.choices, self.name, self.command = cfg, choices, name, command
        self.sweep, self.milestones = sweep, milestones
        self.device = pick_device(cfg.device)
        environment.reset_peak_memory(self.device)
        runs = Path(cfg.paths.runs)

        session().emit("note", text="reading the data set")
        self.task = components.task(cfg)
        self.data: Data = self.task.data()
        spec = self.task.spec
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        self.config = without(config | self.data.settings, (*IGNORED, *spec.ignored))
        self.modules = components.modules(self.config) | set(spec.code)
        self.code = code(*sorted(self.modules))
        self.ids = signatures(self.config, self.data.digest or "", self.data.split, self.code, spec.repeats)
        self.folder = runs / "runs" / self.ids["signature"]
        self.checkpoints = Checkpoints(runs / "trajectories" / self.ids["trajectory"])
        record = (artifacts.read_json(sweep / "sweep.json") or {}) if sweep else {}
        self.by = f"{record['name']} {record['started']}" if record else ""

    def anew(self, folder: Path) -> bool:
        """Whether what `folder` holds is not to be used: with reuse=false, but for what this very sweep has trained. So
        its jobs share epochs, and a job that is tried again goes on."""
        return not self.cfg.reuse and not (self.by and artifacts.read_json(folder / ANEW) == {"by": self.by})


def _judge(asked: _Asked) -> pruning.Judge | None:
    if not OmegaConf.select(asked.cfg, "pruner._target_"):
        return None
    pruning.refuse(asked.cfg, asked.task.spec, asked.data.parts.get("val", 0))
    about = {"signature": asked.ids["signature"], "data": asked.data.digest or "", "split": asked.data.split}
    pruner = asked.choices.get("pruner", "none")
    return pruning.Judge(asked.cfg, asked.task.spec, pruner=pruner, name=asked.name, sweep=asked.sweep, **about)


def _answered(asked: _Asked, judge: pruning.Judge | None, outcome: Outcome, stack: ExitStack) -> bool:
    """Whether the run's record, here or in MLflow, is the answer: it is finished, or was pruned as it would be now."""
    cfg, folder = asked.cfg, asked.folder
    anew = asked.anew(folder)
    known = {file: None if anew else artifacts.read_json(folder / file) for file in ("result.json", "pruned.json")}
    if (
        cfg.reuse
        and not known["result.json"]
        and restorer().restore(folder, cfg.tracking.uri, cfg.tracking.experiment, asked.sweep)
    ):
        known["result.json"] = artifacts.read_json(folder / "result.json")
    if cfg.search.trial is not None:
        trial = {"study": cfg.search.study, "number": cfg.search.trial, "state": "RUNNING"}
        artifacts.write_json(folder / "trial.json", trial)
    if judge:
        stack.enter_context(judge)
    if record := known["result.json"]:
        if judge:
            judge.end("COMPLETE", artifacts.read_lines(folder / "history.jsonl"))
        _answer(outcome, record, "reused")
    elif judge and (record := known["pruned.json"]) and pruning.same(record, cfg, asked.task.spec):
        judge.end("PRUNED", artifacts.read_lines(folder / "history.jsonl")[: record["epoch"]])
        (folder / "failure.json").unlink(missing_ok=True)
        _answer_pruned(outcome, record)
    else:
        return False
    stack.enter_context(Mirror(folder, cfg.tracking, asked.sweep))
    return True


def _clear(asked: _Asked) -> None:
    """Remove what may not pass for this run's, should it end early."""
    folder, ended = asked.folder, ["failure.json", "pruned.json"]
    if asked.anew(asked.checkpoints.folder):
        asked.checkpoints.clear()
        artifacts.write_json(asked.checkpoints.folder / ANEW, {"by": asked.by})
    if asked.anew(folder):
        forget(folder)
        ended += [*FILES, *FIGURES, *WEIGHTS]
        artifacts.write_json(folder / ANEW, {"by": asked.by})
    asked.checkpoints.tidy()
    for file in ended:
        (folder / file).unlink(missing_ok=True)


class _Described:
    """run.json, which says what the run is, and more of it once its task knows more."""

    def __init__(self, asked: _Asked):
        self.file, choices, data = asked.folder / "run.json", asked.choices, asked.data
        self.about: dict[str, Any] = (
            asked.ids
            | {"name": asked.name, "command": asked.command, "created": artifacts.now(), "choices": choices}
            | {"code": fingerprint(code()), "files": asked.code, "evaluated_on": data.part}
            | {"factors": factors(asked.config, choices), "task": asked.task.spec.to_json()}
            | {"data": {"name": choices.get("data"), "digest": data.digest} | dict(data.facts)}
            | {"split": {"kind": choices.get("split"), "digest": data.split, "leaks": data.leaks} | dict(data.parts)}
            | dict(data.settings)
            | environment.facts(asked.device, asked.modules)
        )
        self.facts: dict[str, Any] = {}
        artifacts.write_json(self.file, self.about)

    def add(self, **facts: Any) -> None:
        """What a name has already, if it is a mapping, is added to."""
        for name, fact in facts.items():
            before = self.about.get(name)
            self.about[name] = before | fact if isinstance(before, dict) and isinstance(fact, dict) else fact
        self.facts |= facts
        artifacts.write_json(self.file, self.about)


def _finished(asked: _Asked, loop: Loop, result: Result, known: dict[str, Any]) -> dict[str, Any]:
    """Write the weights and the units' scores; what result.json is to hold."""
    cfg, folder, checkpoints, spec, history = asked.cfg, asked.folder, asked.checkpoints, asked.task.spec, loop.history
    metrics = (_metrics(history[-1]) if history else {}) | dict(result.metrics)
    if loop.state and "model" in loop.state:
        with artifacts.atomic(folder / "last.pt") as file:
            torch.save({"epoch": cfg.epochs, "model": loop.state["model"].state_dict()}, file)
        best = checkpoints.best(cfg.epochs)
        try:
            artifacts.check(best)
        except (OSError, ValueError) as error:
            if loop.scores():
                log.warning("%s: the best weights until epoch %d are lost: no best.pt (%s)", folder, cfg.epochs, error)
        else:
            with artifacts.atomic(folder / "best.pt") as file:
                shutil.copyfile(best, file)
    if result.units:
        rows = [{spec.unit: unit, **values} for unit, values in result.units.items()]
        artifacts.write_csv(folder / spec.table, rows)
    sums, metric = _sums(history), spec.metric(spec.select)
    assert metric
    best_of = max if metric.direction == "max" else min
    on_test = metrics.get(f"test/{spec.select.partition('/')[2]}")
    return {
        "status": "finished",
        "epochs": cfg.epochs,
        "metrics": metrics,
        "evaluation_seconds": sum(row.get("eval_seconds", 0.0) for row in history),
        "total_seconds": time.perf_counter() - asked.began,
        "images_per_second": loop.samples * len(history) / max(sums["training_seconds"], 1e-9),
        "peak_memory_bytes": environment.peak_memory(asked.device),
        "parameters": known.get("parameters"),
        "gflops": known.get("gflops"),
        "objective": best_of(loop.scores(), default=None) if loop.part == "val" else on_test,
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
