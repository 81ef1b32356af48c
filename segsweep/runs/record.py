"""A run's folder: cleared before it trains, described, and closed so that a power cut leaves it whole or not there."""

import contextlib
import functools
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from segsweep.core import accepted, artifacts, checkpoints, environment
from segsweep.core.artifacts import ANEW
from segsweep.core.errors import NotFiniteError, TaskError
from segsweep.core.signature import fingerprint
from segsweep.core.source import code
from segsweep.runs.asked import Asked
from segsweep.runs.identity import unwatched
from segsweep.runs.loop import Loop
from segsweep.task import Result
from segsweep.tracking.mirrors import forget

log = logging.getLogger(__name__)


def clear(asked: Asked) -> Path:
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


def take_place(folder: Path) -> None:
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


def keep(asked: Asked, history: list[dict[str, Any]], record: "Described", files: artifacts.Together) -> None:
    """All that a run's record stands on but its weights and the file that ends it."""
    place = asked.place
    artifacts.write_lines(place / "history.jsonl", history, files)
    if loaded := unwatched(asked.identity):
        record.about["unwatched"] = loaded
        _tell(*sorted(loaded))
    artifacts.write_json(record.file, record.about, files)
    for name in ("config.yaml", *artifacts.of_task(place)):
        if name != asked.task.spec.table and not name.endswith((".png", ".jpg", ".svg")):  # pictures are drawn again
            files.add(place / name)


def close(place: Path, name: str, facts: dict[str, Any]) -> None:
    """Write the file that ends a run once the names of all that its record stands on are on the medium."""
    files = [PurePosixPath(file) for file in artifacts.of_task(place)]
    for inner in sorted({PurePosixPath(), *(up for file in files for up in file.parents)}, reverse=True):
        with contextlib.suppress(*([FileNotFoundError] if inner.parts else [])):
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


def states(place: Path) -> dict[str, tuple[int, int, int] | None]:
    """Of the engine's files that nobody writes while a task trains, or the one that writes them says so."""
    apart = (artifacts.MLFLOW, "trial.json", accepted.FILE)
    return {name: artifacts.state_of(place / name) for name in sorted(artifacts.ENGINES.difference(apart))}


def refuse_written(place: Path, before: Mapping[str, tuple[int, int, int] | None]) -> None:
    """Raise TaskError where a task wrote a file of the engine's; it is removed, so that it passes for no record."""
    if wrong := [name for name, state in before.items() if artifacts.state_of(place / name) != state]:
        for name in wrong:
            artifacts.remove(place / name)
        raise TaskError(
            f"train() wrote {', '.join(wrong)} in run.folder, where files of that name are the engine's own; call it "
            "otherwise"
        )


def damage(folder: Path) -> str:
    """What is wrong with the weights of a finished run, "" where nothing is; that they are elsewhere is not."""
    for file in (folder / name for name in artifacts.WEIGHTS):
        try:
            checkpoints.check(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return f"{file} is damaged ({error})"
    return ""


class Described:
    """run.json, which says what the run is, and more of it once its task knows more."""

    def __init__(self, asked: Asked):
        self.file, choices, data = asked.place / "run.json", asked.choices, asked.data
        self.about: dict[str, Any] = (
            asked.ids
            | {"name": asked.name, "command": asked.command, "created": artifacts.now(), "choices": choices}
            | {"code": fingerprint(code()), "files": asked.identity.files, "evaluated_on": data.part}
            | {"places": asked.identity.places, "accepted": None}
            | {"factors": asked.identity.factors(choices, asked.task.spec, asked.at), "task": asked.task.spec.to_json()}
            | {"data": {"name": choices.get("data") or choices.get("task"), "digest": data.digest} | dict(data.facts)}
            | {"split": {"kind": choices.get("split"), "digest": data.split, "leaks": data.leaks} | dict(data.parts)}
            | {"resolved": list(data.settings)}
            | dict(data.settings)
            | environment.facts(asked.device, asked.identity.roots, asked.identity.home)
        )
        self.facts: dict[str, Any] = {}
        self._write()

    def _write(self) -> None:
        artifacts.write_json(self.file, self.about, durable=artifacts.stands(self.file.parent))
        self.state = artifacts.state_of(self.file)

    def add(self, **facts: Any) -> None:
        """What a name has already, if it is a mapping, is added to."""
        written = dict(self.about)
        for name, fact in facts.items():
            before = self.about.get(name)
            self.about[name] = before | fact if isinstance(before, dict) and isinstance(fact, dict) else fact
        self.facts |= facts
        if self.about != written:
            self._write()


def finished(
    asked: Asked, loop: Loop, result: Result, known: dict[str, Any], files: artifacts.Together
) -> dict[str, Any]:
    """Write the weights and the units' scores; what result.json is to hold. known: facts, the seconds of `train` among
    them, which are those of training where there were no epochs. Raises TaskError, and NotFiniteError where no epoch
    has a value of what is chosen by."""
    folder, kept, spec, history = asked.place, asked.checkpoints, asked.task.spec, loop.history
    metrics = (metrics_of(history[-1]) if history else {}) | dict(result.metrics)
    scores = loop.scores()
    if not history:  # trained at one go
        if loop.part == "val" and spec.select not in metrics:
            raise TaskError(f"train() gave no {spec.select}, by which this task chooses (Spec.select)")
        scores = [metrics[spec.select]] if loop.part == "val" else []
    if loop.part == "val" and not any(map(math.isfinite, scores)):
        raise NotFiniteError(
            f"{spec.select}, by which this task chooses (Spec.select), had no finite value"
            f"{f' in any of its {len(history)} epochs' if history else ''}, so that nothing can be chosen by it"
        )
    if loop.state and "model" in loop.state:
        last = {"epoch": loop.length, "model": loop.state["model"].state_dict()}
        checkpoints.save(last, folder / "last.pt", files)
        best = kept.best(loop.length)
        try:
            checkpoints.check(best)
        except (OSError, ValueError) as error:
            if loop.scores():
                lost = "%s: the best weights until epoch %d are lost: no best.pt (%s)"
                log.warning(lost, folder, loop.length, error)
        else:
            with artifacts.atomic(folder / "best.pt", files) as file:
                shutil.copyfile(best, file)
    if result.units:
        rows = [{spec.unit: unit, **values} for unit, values in result.units.items()]
        artifacts.write_csv(folder / spec.table, rows, files)
    spent, metric = sums(history), spec.metric(spec.select)
    spent |= {} if history else {"training_seconds": known["seconds"]}
    assert metric
    best_of = max if metric.direction == "max" else min
    stopped = {"stopped": {"epoch": loop.length, "of": asked.epochs, "reason": loop.stopped}} if loop.stopped else {}
    on_test = metrics.get(f"test/{spec.select.partition('/')[2]}")
    return {
        "status": "finished",
        "epochs": loop.length,
        "metrics": metrics,
        "evaluation_seconds": sum(row.get("eval_seconds", 0.0) for row in history),
        "total_seconds": time.perf_counter() - asked.began,
        "images_per_second": loop.samples * loop.length / max(spent["training_seconds"], 1e-9)
        if loop.samples
        else None,
        "peak_memory_bytes": environment.peak_memory(asked.device),
        "parameters": known.get("parameters"),
        "gflops": known.get("gflops"),
        "objective": best_of(scores, default=None) if loop.part == "val" else on_test,
        "files": sorted({*artifacts.of_task(folder), *([spec.table] if result.units else [])}),
    } | spent | stopped  # fmt: skip


def sums(history: list[dict[str, Any]]) -> dict[str, Any]:
    parts = max((row.get("micro_batches", 1) for row in history), default=1)
    seconds = {"training_seconds": sum(row["seconds"] for row in history), "micro_batches": parts}
    compiling = sum(row.get("compile_seconds", 0.0) for row in history)
    return seconds | ({"compile_seconds": compiling} if compiling else {})


def metrics_of(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "/" in key}
