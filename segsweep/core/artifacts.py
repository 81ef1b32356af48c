"""The record on disk: its names, how its files are written, and what is read of them.

The files are the truth and MLflow is their mirror. `result.json` is written last and means that the run is finished.

What a power cut may not take is `durable`: flushed to the medium before it has its name, and its folder after. That is
what a run is continued from or answered by; a line of history or a picture is made again.
"""

import csv
import datetime
import errno
import io
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from segsweep.core import masks
from segsweep.core.program import typed
from segsweep.core.session import session
from segsweep.core.signature import OWN

log = logging.getLogger(__name__)

WHOLE = ("finished", "continued", "stopped early", "reused")
"""How a job ends that has a whole run behind it."""
DONE = (*WHOLE, "pruned")
"""How a job ends that did what it was asked to."""
RECORD = ("config.yaml", "run.json", "history.jsonl", "result.json")
"""Files of every finished run, whatever its task."""
WEIGHTS = ("last.pt", "best.pt")
MLFLOW = "mlflow.json"
"""In a run folder: what of it MLflow has."""
ANEW = "anew.json"
"""In the folder of a run or a trajectory: the sweep that began it anew."""
ACCEPTED = "accepted.json"
"""In a run's folder: for which code its record stands, too (`accepted`); in a trajectory's, which of its states (by
epoch) were taken over, and from which accepted run."""
ENGINES = {*RECORD, *WEIGHTS, "failure.json", "pruned.json", "trial.json", MLFLOW, ANEW, ACCEPTED}
"""The engine's own files in a run's folder; beside these and locks all that is there is its task's."""
NEXT = ".anew"
"""Folder in a finished run's: where it is trained anew until it is whole and takes the finished one's place."""
PRUNING = "pruning.log"
"""Optuna's journal in a sweep's folder: how far its runs have come, for a pruner that is not a search's."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
ANSWER = ("status", "epochs", "metrics", "training_seconds", "parameters", "objective")
"""What result.json has at least; without one of them it is taken for absent."""


def now() -> str:
    """Local time with its offset, ISO 8601, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def flush(path: Path) -> None:
    """Bring what a file holds, or which names a folder has, to the medium."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)


def full(error: OSError, folder: Path) -> str:
    """Of an error in writing below `folder`, one sentence that names it, and what helps where the disk is full."""
    said = f"{folder} cannot be written ({error.strerror or error})"
    return f"{said}; {typed('clean')} lists what can go" if error.errno in NO_ROOM else said


def denied(error: OSError, folder: Path) -> str:
    """The same where it is not to be written, or not to be looked at."""
    at = f"{OWN}." if (door := session().door) and door.app else ""
    said = f"{folder} cannot be written ({error.strerror}): it is read-only or another user's"
    return f"{said}; give a folder of your own: {at}paths.runs=FOLDER"


def cache_folder() -> Path:
    """`paths.cache` where no configuration is composed: conf/config.yaml has the same."""
    return Path(os.environ.get("SEGSWEEP_CACHE") or Path.home() / ".cache" / "segsweep")


def state_of(file: Path) -> tuple[int, int, int] | None:
    """What changes with a file, whoever writes it; None where there is none."""
    with suppress(OSError):
        about = file.stat()
        return about.st_ino, about.st_mtime_ns, about.st_size
    return None


def unique() -> str:
    """For a temporary name that no other process takes, in this container, another, or on another machine."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"


class Together:
    """Of a block: durable files that are flushed at its end, all at once, which a disk does about as fast as one of
    them, and then have their names in the order in which they were written."""

    def __init__(self) -> None:
        self._named: list[Path] = []
        self._partial: dict[Path, Path] = {}

    def add(self, file: Path, path: Path | None = None) -> None:
        """A file that becomes `path`, or has its name already, unless it has gone meanwhile: a task may be at work."""
        if path is None:
            self._named.append(file)
        else:
            self._partial[file] = path

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._flush([*self._named, *self._partial])
                for partial, path in self._partial.items():
                    os.replace(partial, path)
        finally:
            for partial in self._partial:
                partial.unlink(missing_ok=True)

    def _flush(self, files: list[Path]) -> None:
        try:
            with ThreadPoolExecutor(max(1, min(len(files), 16)), "flush") as pool:
                list(pool.map(self._flush_one, files))
        except RuntimeError:  # no thread can be started, as at the end of a process
            for file in files:
                self._flush_one(file)

    def _flush_one(self, file: Path) -> None:
        with suppress(*([] if file in self._partial else [FileNotFoundError])):
            flush(file)


@contextmanager
def atomic(path: Path, durable: "bool | Together" = False) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well, and is removed when it does not.

    `durable`: its content is flushed first, of several files `Together`. Its name is there for good once its folder is
    flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{unique()}.part{path.suffix}")
    with ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        yield partial
        if isinstance(durable, Together):
            durable.add(partial, path)
            stack.pop_all()
            return
        if durable:
            flush(partial)
        os.replace(partial, path)


def link(file: Path, name: Path) -> None:
    """Give a file that is never changed in place a second name; a copy where a file system has no hard links."""
    try:
        os.link(file, name)
    except OSError:
        with atomic(name, durable=True) as partial:
            shutil.copyfile(file, partial)


def remove(path: Path) -> None:
    """A file or a folder, if it is there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str, durable: bool | Together = False) -> None:
    """All text that a record has is written here, without passwords."""
    with atomic(path, durable) as partial:
        partial.write_text(masks.masked(text), encoding="utf-8", newline="")


def write_json(path: Path, value: Any, durable: bool | Together = False) -> None:
    """NaN and infinity become null: strict JSON, readable by every tool."""
    write_text(path, json.dumps(masks.clean(finite(value)), indent=1) + "\n", durable)


def finite(value: Any) -> Any:
    """With null for NaN and infinity, as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def literal(value: Any) -> Any:
    """Plain values as a configuration has them in which a text says what it says: `${...}` asks for nothing."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list | tuple) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is no such file or it is damaged (which is said in the log)."""
    try:
        return parse_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): taken as absent", path, error)
        return None


def parse_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises OSError or ValueError."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"an object is expected, found {type(value).__name__}")
    return value


def stands(folder: Path) -> bool:
    """Whether a run's folder has an answer, so that what it stands on may not be lost while it is tested again."""
    return (folder / "result.json").exists()


def result(folder: Path) -> dict[str, Any] | None:
    """result.json of a finished run; None where there is none or it is not whole, which is said in the log."""
    return whole(folder / "result.json", ANSWER)


def whole(path: Path, keys: Sequence[str]) -> dict[str, Any] | None:
    """The object in a file with all these keys, `metrics` a mapping of its own; else None, which is said in the log."""
    if not (record := read_json(path)):
        return None
    if lacks := [key for key in keys if key not in record or (key == "metrics" and not isinstance(record[key], dict))]:
        log.warning("%s has no %s: taken as absent", path, ", ".join(lacks))
        return None
    return record


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]], durable: bool | Together = False) -> None:
    write_text(path, "".join(json.dumps(masks.clean(finite(row))) + "\n" for row in rows), durable)


def read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return lines if all(isinstance(line, dict) for line in lines) else []


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], durable: bool | Together = False) -> None:
    """One row a mapping, with the columns of all; NaN, and what a row does not have, becomes an empty cell."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    write_text(path, file.getvalue(), durable)


def cell(value: Any) -> Any:
    """A spreadsheet would run a text that begins as a formula: it is given an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def made_by(info: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of what made the run of a run.json; none where it does not say, or is damaged there."""
    found = info.get("versions")
    return found if isinstance(found, dict) else {}


def is_tasks(name: str) -> bool:
    """Whether a path relative to a run's folder can be of a file that its task wrote: within it, not hidden, not the
    engine's. Records may be anybody's."""
    path = PurePosixPath(name)
    if not path.parts or name != str(path) or path.is_absolute() or any(part.startswith(".") for part in path.parts):
        return False
    return path.parts[0] not in {*ENGINES, "lock"} and path.suffix != ".lock" and name.isprintable()


def of_task(run: Path) -> list[str]:
    """The files that its task wrote into a run's folder, as relative paths, sorted."""
    found = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(filter(is_tasks, found))


def jobs(sweep: Path) -> list[dict[str, Any]]:
    """The jobs' records of a sweep's folder in order of their numbers, each with its run folder as a path, `folder`."""
    found = []
    for path in sweep.glob("*/job.json"):
        if job := read_json(path):
            found.append(job | {"folder": (path.parent / job["run"]).resolve() if job.get("run") else None})
    return sorted(found, key=lambda job: job["number"])


def stopped(result: Mapping[str, Any]) -> str:
    """Of what result.json holds: that and why its run stopped early, in words; "" where it did not."""
    found = result.get("stopped")
    if not isinstance(found, Mapping):
        return ""
    return f"stopped early after epoch {found.get('epoch')} of {found.get('of')}: {found.get('reason')}"


TESTED = "tested again with weights that were there, nothing trained"
"""Of a reused run whose test is not that of a record."""


def note(status: str, accepted: Any, stopped: Any, tested: Any) -> str | None:
    """What is told of a job beside its status; arguments as job.json has them."""
    told = [f"accepted {accepted}" if accepted else "", str(stopped or "").removeprefix(f"{status} ")]
    told.append(TESTED if tested else "")
    return ", ".join(filter(None, told)) or None


def tidy(folder: Path, age: float = 3600.0) -> None:
    """Remove what was left half-written, `age` seconds ago or more: another process may be at work on a newer one."""
    for file in folder.glob(".*.part*"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime >= age:
                file.unlink()
