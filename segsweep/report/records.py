"""Sweeps as they lie on disk, read into what `record` has: the one reader of run folders in the report.

Nothing here refuses a damaged record: what cannot be read is left out and said in `problems`, because a sweep with
failures needs its report most.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core import accepted, locks
from segsweep.core.artifacts import WHOLE, parse_json
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import first_line
from segsweep.report.record import Job, Record, Run
from segsweep.report.settle import note_since, settle


def read(sources: Sequence[Path | str]) -> Record:
    """Read sweep or run folders, or (where no such folder is) MLflow experiments and run ids; a run counts once.

    Raises SegsweepError where a source is neither a sweep nor holds runs.
    """
    record = Record([], [], [], [])
    runs: dict[str, Run] = {}
    for source in sources:
        before = len(record.jobs)
        for folder in _folders(source, record.problems):
            if (
                (folder / "run.json").exists()
                or (folder / "result.json").exists()
                or (folder / "failure.json").exists()
                or (folder / "pruned.json").exists()
            ):
                run = _shared(runs, folder, record.problems)
                record.jobs.append(
                    Job(
                        folder.parent.name,
                        -1,
                        run.status,
                        [],
                        {},
                        run.metrics.get("total_seconds"),
                        run.error,
                        run.error_class,
                        run,
                    )
                )
            else:
                _read_sweep(folder, runs, record)
        if len(record.jobs) == before and not (Path(source) / "sweep.json").exists():
            raise SegsweepError(
                f"{source}: no run in it. A sweep folder holds numbered job folders with a job.json, as in"
                " multirun/<sweep>."
            )
        record.names.append(Path(source).resolve().name)
    record.runs = list(runs.values())
    settle(record)
    for run in record.runs:
        if not run.info and run.status == "finished":
            run.units = _units(run, record.problems)
    note_since(record.jobs)
    return record


def _folders(source: Path | str, problems: list[str]) -> list[Path]:
    folder = Path(source)
    if folder.is_dir():
        if folder.name == "runs":
            return sorted(p for p in folder.iterdir() if p.is_dir())
        nested = sorted(p.parent for p in folder.glob("*/sweep.json")) if not any(folder.glob("*.json")) else []
        if nested:
            found = "\n".join(f"  {p}" for p in nested[-8:])
            raise SegsweepError(
                f"{folder} holds {len(nested)} sweeps, not one. Name those to compare, for example\n{found}"
            )
        return [folder]
    from segsweep.tracking.recall import find_runs  # lazily: mlflow takes seconds to import, and folders do not need it

    try:
        named = find_runs(str(source))  # of another machine: where they are here, if they were reused here
    except Exception as error:  # MLflow raises what its back end raises
        reason = first_line(error)
        raise SegsweepError(
            f"{source}: no such folder, and no experiment or run of MLflow has this name: {reason}"
        ) from error
    here = [run if run.is_dir() else Path("multirun/runs") / run.name for run in named]
    if not (there := [run for run in here if run.is_dir()]):
        raise SegsweepError(f"{source}: its {len(named)} runs are in MLflow, and no folder of them is on this machine")
    if away := len(here) - len(there):
        problems.append(f"{source}: {away} of its {len(named)} runs are in MLflow, with no folder on this machine")
    return there


def _read_sweep(folder: Path, runs: dict[str, Run], record: Record) -> None:
    """Append the sweep's jobs; a job whose record is lost, or that never started, is one too."""
    sweep = _json(folder / "sweep.json", record.problems) or {}
    space = (sweep.get("search") or {}).get("space") or {}
    if sweep.get("command") and not sweep.get("search"):
        record.commands[folder.name] = str(sweep["command"])
    record.asked |= {key.split(" when ")[0].lstrip("+~") for key in space}
    record.searched |= {key.split(" when ")[0].lstrip("+") for key, d in space.items() if str(d).startswith("Float")}
    numbers = {int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()}
    for number in sorted(numbers | set(range(sweep.get("jobs") or 0))):
        job = _json(folder / str(number) / "job.json", record.problems) if number in numbers else None
        if job is None:
            status = "unreadable" if number in numbers else "never started"
            record.jobs.append(
                Job(folder.name, number, status, error="job.json is missing or damaged" if number in numbers else "")
            )
            continue
        run = None
        if job.get("run"):
            target = (folder / str(number) / job["run"]).resolve()
            if os.path.isdir(target):  # not where one may not look
                run = _shared(runs, target, record.problems)
        status = run.status if run and run.status in ("failed", "pruned") else str(job.get("status") or "unknown")
        if run is None and status in WHOLE:
            status = "run folder gone"
        elif run and run.status == "unfinished" and status in WHOLE:
            status = "result missing"
        error = job.get("error") or (run.error if run else "")
        if status == "running" and not (locks.held(folder) or (run and locks.held(run.folder))):
            status = "interrupted"  # nobody is at it who could say so
        if status == "pruned" and run and run.status == "finished":  # continued to its end since
            status, error = "finished", ""
        kind = job.get("class") or (run.error_class if run else "")
        overrides, varied = job.get("overrides") or [], job.get("varied") or {}
        if run and run.status == "finished":
            record.asked |= {str(word).split("=")[0].lstrip("+~") for word in overrides}
        record.jobs.append(
            Job(
                folder.name,
                number,
                status,
                overrides,
                varied,
                job.get("seconds"),
                str(error or ""),
                str(kind or ""),
                run,
                str(job.get("started") or ""),
                tested=job.get("tested") is True and status == "reused",
            )
        )


def _shared(runs: dict[str, Run], folder: Path, problems: list[str]) -> Run:
    key = str(folder.resolve())
    if key not in runs:
        runs[key] = _read_run(folder, problems)
    return runs[key]


def _read_run(folder: Path, problems: list[str]) -> Run:
    info = _json(folder / "run.json", problems) or {}
    result = _json(folder / "result.json", problems, needed=False)
    if result is not None and not isinstance(result.get("metrics"), dict):
        problems.append(f"{_short(folder / 'result.json')} has no metrics: taken as absent")
        result = None
    failure = _json(folder / "failure.json", problems, needed=False) if result is None else None
    if result is None and failure is None:
        result = _json(folder / "pruned.json", problems, needed=False)
    status = str(result.get("status") or "finished") if result else "failed" if failure else "unfinished"
    run = Run(folder, str(info.get("signature") or folder.name), status, info, result or {})
    run.accepted = accepted.entries(folder)
    if failure:
        run.error, run.error_class = str(failure.get("error") or "no message"), str(failure.get("class") or "error")
    elif status == "pruned":
        run.error = str(run.result.get("reason") or "")
    run.history, run.unmeasured = _history(folder / "history.jsonl", problems)
    try:
        if run.info and run.spec and status == "finished":
            run.units = _units(run, problems)
    except ValueError as error:
        problems.append(f"{_short(folder / 'run.json')}: its task cannot be read, so the run is left out: {error}")
    return run


SHAPES: dict[str, dict[str, Any]] = {
    "run.json": dict.fromkeys(("factors", "choices", "data", "split", "versions", "files"), dict),
    "sweep.json": {"search": dict, "jobs": int, "overrides": list, "mlflow": dict},
    "job.json": {"overrides": list, "varied": dict, "seconds": int | float, "run": str},
}
"""What values of a record have to be for it to be read."""


def _json(path: Path, problems: list[str], needed: bool = True) -> dict[str, Any] | None:
    try:
        found = parse_json(path)
        for key, kind in SHAPES.get(path.name, {}).items():
            if found.get(key) is not None and not isinstance(found[key], kind):
                problems.append(f"{_short(path)}: {key} is damaged, and taken as absent")
                del found[key]
        return found
    except FileNotFoundError:
        if needed:
            problems.append(f"{_short(path)} is missing")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{_short(path)} cannot be read: {error}")
        return None


def _history(path: Path, problems: list[str]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Columns over the epochs, and how many of these have no such value; of an epoch written twice (after a resume) the
    last counts, a torn line is left out."""
    lines: dict[int, dict[str, Any]] = {}
    torn = 0
    if not path.exists():
        return {}, {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            lines[int(row["epoch"])] = {key: _number(value) for key, value in row.items()}
        except (ValueError, KeyError, TypeError):
            torn += bool(line.strip())
    if torn:
        problems.append(f"{_short(path)}: {torn} damaged line{'s' * (torn > 1)} left out")
    rows = [lines[epoch] for epoch in sorted(lines)]
    columns = dict.fromkeys(k for row in rows for k in row)
    found = {key: np.array([_number(row.get(key)) for row in rows]) for key in columns}
    return found, {key: lost for key in columns if (lost := sum(key not in row for row in rows))}


def _units(run: Run, problems: list[str]) -> dict[str, dict[str, float]]:
    """Of the file that the task's description names; a task without a score of units may have none."""
    path, unit = run.folder / run.spec.table, run.spec.unit
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError(f"no {unit} in it")
        cells = [(key, value) for row in rows for key, value in row.items() if key not in run.spec.scores]
        texts = {key for key, value in cells if key not in (unit, None) and not _is_number(value)}
        return {row.pop(unit): {k: _number(v) for k, v in row.items() if k not in texts} for row in rows}
    except FileNotFoundError:
        if run.spec.scores:
            problems.append(f"{_short(path)} is missing: the run has no interval and takes part in no contrast")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        problems.append(
            f"{_short(path)} cannot be read ({error}): the run has no interval and takes part in no contrast"
        )
    return {}


def _number(value: Any) -> float:
    """Text, number or truth value as a float; an empty cell or null is NaN."""
    if value in (None, ""):
        return float("nan")
    return float(value == "True") if value in ("True", "False") else float(value)


def _is_number(value: Any) -> bool:
    try:
        _number(value)
    except (TypeError, ValueError):
        return False
    return True


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
