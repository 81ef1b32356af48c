"""One run, top to bottom: reuse or resume, build, fit, test, record.

A run is a function of its signature: whoever asks for it, in whatever sweep, gets the one record of it.
"""

import contextlib
import dataclasses
import logging
import math
import os
import shutil
import time
import traceback
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from segsweep import artifacts, components, environment, figures, pruning
from segsweep.artifacts import Checkpoints
from segsweep.config import GROUPS
from segsweep.data import cache
from segsweep.data.batches import Batches
from segsweep.device import autocast, compile_seconds, compiled, out_of_memory, pick_device, pick_precision
from segsweep.errors import ConfigError, NotFiniteError, SegsweepError
from segsweep.evaluate import Evaluation, evaluate, flops, patient_table
from segsweep.metrics import SPEC, summarise
from segsweep.recall import FILES, restorer
from segsweep.session import Interrupted, Pruned, session
from segsweep.signature import IGNORED, code, fingerprint, signatures, without
from segsweep.tracking import FIGURES, WEIGHTS, Mirror, forget
from segsweep.train import SELECT_BY, fit, sizes

log = logging.getLogger(__name__)

_gflops: dict[str, float] = {}
"""Of the networks that this process has trained, by their configuration and image size."""
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
    with ExitStack() as stack:
        try:
            asked = _Asked(cfg, choices, name, command, sweep, milestones)
            outcome.signature, outcome.folder = asked.ids["signature"], asked.folder
            return _run(asked, outcome, stack)
        except Interrupted as stop:
            outcome.status, outcome.epoch, outcome.error = "interrupted", stop.epoch, str(stop)
        except Exception as error:  # whatever a job dies of, the sweep goes on
            outcome.status, outcome.failure = "failed", classify(error)
            outcome.error = str(error) if isinstance(error, SegsweepError) else f"{type(error).__name__}: {error}"
            if outcome.failure == "oom":
                outcome.error = f"{_smaller(cfg)}\n{outcome.error}"
            if outcome.folder:
                with contextlib.suppress(OSError):  # a full disk, say: the job's record has the error too
                    artifacts.write_json(
                        outcome.folder / "failure.json",
                        {"status": "failed", "class": outcome.failure, "error": outcome.error}
                        | {"traceback": traceback.format_exc()},
                    )
        return outcome


def classify(error: BaseException) -> str:
    """The class of a failure: `nan`, `oom` or `error`; a launcher adds `killed` and `timeout`."""
    if isinstance(error, NotFiniteError):
        return "nan"
    return "oom" if out_of_memory(error) else "error"


def _smaller(cfg: DictConfig) -> str:
    parts = cfg.micro_batches * session().finer
    cure = f"micro_batches={2 * parts}, a smaller batch_size, or hydra.launcher.retries.oom=2, which tries the first"
    return f"out of memory with batches of {cfg.batch_size} in {parts} part{'s' * (parts > 1)}: {cure}"


def _run(asked: "_Asked", outcome: Outcome, stack: ExitStack) -> Outcome:
    cfg, folder, checkpoints = asked.cfg, asked.folder, asked.checkpoints
    judge = _judge(asked)
    stack.enter_context(artifacts.lock(folder))
    if _answered(asked, judge, outcome, stack):
        return outcome
    stack.enter_context(artifacts.lock(checkpoints.folder))
    _clear(asked)
    _describe(asked)
    mirror = stack.enter_context(Mirror(folder, cfg.tracking, asked.sweep))
    built = _Built(asked)
    _describe(asked, built)

    def on_epoch(history: list[dict[str, Any]]) -> None:
        artifacts.write_lines(folder / "history.jsonl", history)
        mirror.update()

    try:
        history, done, tested = fit(
            built.model,
            built.loss,
            built.optimizer,
            built.scheduler,
            built.train,
            built.held_out,
            part=built.part,
            epochs=cfg.epochs,
            seed=cfg.seed,
            clip_norm=cfg.clip_norm,
            checkpoints=checkpoints,
            every=cfg.checkpoint.every,
            keep=cfg.checkpoint.keep,
            milestones=asked.milestones,
            writer=stack.enter_context(writer) if (writer := _writer(asked.device)) else None,
            forward=compiled(built.model, sizes(cfg.batch_size, built.shared["parts"])) if cfg.compile else None,
            compile_seconds=compile_seconds,
            on_epoch=on_epoch,
            judge=judge or (lambda history: None),
            **built.shared,
        )
    except Pruned as end:
        assert judge
        history = artifacts.read_lines(folder / "history.jsonl")
        record = end.record | {"metrics": _metrics(history[-1]), "parameters": built.parameters, **_sums(history)}
        checkpoints.end(end.epoch)
        artifacts.write_json(folder / "pruned.json", record)
        judge.end("PRUNED")
        return _answer_pruned(outcome, record)
    record = _test(asked, built, history, tested) | {"trained_epochs": cfg.epochs - done}
    artifacts.write_json(folder / "result.json", record)
    checkpoints.end(cfg.epochs)
    if judge:
        judge.end("COMPLETE", history)
    return _answer(outcome, record, "finished" if done == 0 else "continued" if done < cfg.epochs else "reused")


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
        if problems := [*components.check(cfg), *pruning.problems(cfg)]:
            raise ConfigError("\n".join(problems))
        self.cfg, self.choices, self.name, self.command = cfg, choices, name, command
        self.sweep, self.milestones = sweep, milestones
        self.device = pick_device(cfg.device)
        environment.reset_peak_memory(self.device)
        self.precision = pick_precision(cfg.precision, self.device)
        runs, self.decoded = Path(cfg.paths.runs), Path(cfg.paths.cache)

        session().emit("note", text="reading the data set")
        self.dataset, splitter = components.build("data", cfg.data), components.build("split", cfg.split)
        self.manifest = self.dataset.scan(self.decoded)
        self.split = splitter(self.manifest.patients)
        self.part = "val" if len(self.split.val) else "test"
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        # the device does not belong to the identity, the arithmetic does
        self.config: dict[str, Any] = config | {"precision": self.precision}
        self.modules = components.modules(without(self.config, IGNORED))
        self.code = code(*self.modules)
        self.ids = signatures(self.config, self.manifest.digest, self.split.digest, self.code)
        self.folder = runs / "runs" / self.ids["signature"]
        self.checkpoints = Checkpoints(runs / "trajectories" / self.ids["trajectory"])
        record = (artifacts.read_json(sweep / "sweep.json") or {}) if sweep else {}
        self.by = f"{record['name']} {record['started']}" if record else ""

    def anew(self, folder: Path) -> bool:
        """Whether what `folder` holds is not to be used: with reuse=false, but for what this very sweep has trained. So
        its jobs share epochs, and a job that is tried again goes on."""
        return not self.cfg.reuse and not (self.by and artifacts.read_json(folder / ANEW) == {"by": self.by})


class _Built:
    """What is trained, and on what. `shared`: what training and testing are both told."""

    def __init__(self, asked: _Asked):
        cfg, split, device = asked.cfg, asked.split, asked.device
        self.volumes = cache.load(asked.dataset, asked.manifest, asked.decoded, cfg.workers or os.cpu_count() or 1)
        batches = partial(Batches, self.volumes, device=device)
        augment = components.build("augment", cfg.augment)
        self.train = batches(split.train, batch_size=cfg.batch_size, augment=augment, shuffle=True)
        self.test = batches(split.test, batch_size=cfg.eval_batch_size)
        self.part = asked.part
        self.held_out = batches(split.val, batch_size=cfg.eval_batch_size) if self.part == "val" else self.test
        self.train.resident()  # a set that goes to the GPU goes there before the first epoch's time begins
        height, width, channels = self.volumes.images.shape[1:]

        torch.manual_seed(cfg.seed)
        model = components.build("model", cfg.model, in_channels=channels)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.loss = components.build("loss", cfg.loss).to(device)
        self.optimizer = components.build("optim", cfg.optim)(self.model.parameters())
        self.scheduler = components.build("scheduler", cfg.scheduler)(self.optimizer)
        self.parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        network = f"{asked.config['model']} {channels}x{height}x{width}"
        self.gflops = _gflops[network] = _gflops.get(network) or flops(self.model, channels, height, width, device)
        parts = cfg.micro_batches * session().finer
        self.shared: dict[str, Any] = {"patients": len(self.volumes.patients), "parts": parts}
        self.shared["autocast"] = autocast(device, asked.precision)


def _judge(asked: _Asked) -> pruning.Judge | None:
    if not OmegaConf.select(asked.cfg, "pruner._target_"):
        return None
    pruning.refuse(asked.cfg, asked.split)
    about = {"signature": asked.ids["signature"], "data": asked.manifest.digest, "split": asked.split.digest}
    pruner = asked.choices.get("pruner", "none")
    return pruning.Judge(asked.cfg, pruner=pruner, name=asked.name, sweep=asked.sweep, **about)


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
    elif judge and (record := known["pruned.json"]) and pruning.same(record, cfg):
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


def _describe(asked: _Asked, built: _Built | None = None) -> None:
    """Write what the run is: its configuration, its split and run.json; with what can only be told of a network and
    data that are there, once they are."""
    cfg, choices, split, patients = asked.cfg, asked.choices, asked.split, asked.manifest.patients
    if not built:
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "search"])  # who asks is no part of the run
        artifacts.write_text(asked.folder / "config.yaml", OmegaConf.to_yaml(own, resolve=True))
        artifacts.write_json(asked.folder / "split.json", split.to_json())
    artifacts.write_json(
        asked.folder / "run.json",
        asked.ids
        | {"name": asked.name, "command": asked.command, "created": artifacts.now(), "choices": choices}
        | {"code": fingerprint(code()), "files": asked.code, "evaluated_on": asked.part}
        | {"factors": factors(asked.config, choices), "task": SPEC.to_json()}
        | {
            "data": {
                "name": choices.get("data"),
                "digest": asked.manifest.digest,
                "patients": len(patients),
                "slices": sum(map(len, patients.values())),
                "image_shape": list(built.volumes.images.shape[1:]) if built else None,
            },
            "split": {
                "kind": choices.get("split"),
                "digest": split.digest,
                "leaks": split.leaks,
                "train": len(split.train),
                "val": len(split.val),
                "test": len(split.test),
            },
            "parameters": built.parameters if built else None,
            "gflops": built.gflops if built else None,
            "precision": asked.precision,
        }
        | environment.facts(asked.device, asked.modules),
    )


def _test(asked: _Asked, built: _Built, history: list[dict[str, Any]], tested: Evaluation | None) -> dict[str, Any]:
    """Test the trained network, unless `fit` has; write its weights, patients and figures; what result.json is to
    hold."""
    cfg, folder, checkpoints, part, split = asked.cfg, asked.folder, asked.checkpoints, built.part, asked.split
    session().emit("note", text="testing")
    final = tested or evaluate(built.model, built.loss, built.test, keep=True, **built.shared)
    patients = patient_table(final, built.volumes, split.test)
    metrics = _metrics(history[-1])
    metrics |= {"test/loss": final.loss} | {f"test/{k}": v for k, v in summarise(final.counts).items()}
    metrics |= {f"test/{key}": value for key, value in patients.summary.items()}
    scores = [row[SELECT_BY] for row in history if part == "val" and not math.isnan(row[SELECT_BY])]
    with artifacts.atomic(folder / "last.pt") as file:
        torch.save({"epoch": cfg.epochs, "model": built.model.state_dict()}, file)
    best = checkpoints.best(cfg.epochs)
    try:
        artifacts.check(best)
    except (OSError, ValueError) as error:
        if scores:
            log.warning("%s: the best weights until epoch %d are lost: no best.pt (%s)", folder, cfg.epochs, error)
    else:
        with artifacts.atomic(folder / "best.pt") as file:
            shutil.copyfile(best, file)
    artifacts.write_csv(folder / "patients.csv", patients.rows)
    figures.draw(folder, history, part, patients, built.volumes, split.test, final.masks)
    sums = _sums(history)
    return {
        "status": "finished",
        "epochs": cfg.epochs,
        "metrics": metrics,
        "evaluation_seconds": sum(row["eval_seconds"] for row in history),
        "total_seconds": time.perf_counter() - asked.began,
        "images_per_second": built.train.images * len(history) / sums["training_seconds"],
        "peak_memory_bytes": environment.peak_memory(asked.device),
        "parameters": built.parameters,
        "gflops": built.gflops,
        "objective": max(scores, default=None) if part == "val" else metrics["test/dice"],
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
    parts = max(row.get("micro_batches", 1) for row in history)
    seconds = {"training_seconds": sum(row["seconds"] for row in history), "micro_batches": parts}
    compiling = sum(row.get("compile_seconds", 0.0) for row in history)
    return seconds | ({"compile_seconds": compiling} if compiling else {})


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "/" in key}


def factors(config: dict[str, Any], choices: dict[str, Any]) -> dict[str, Any]:
    """What identifies a run, flat and under the keys of the command line: `model`, `model.width`, `optim.lr`, ..."""
    flat: dict[str, Any] = {}
    for key, item in without(config, IGNORED).items():
        if key in GROUPS:
            flat[key] = choices.get(key) or item.get("_target_")
            flat |= {f"{key}.{k}": v for k, v in item.items() if not k.startswith("_")}
        else:
            flat[key] = item
    return flat
