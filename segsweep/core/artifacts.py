"""The record on disk: names, atomic writes, checkpoints and the lock.

The files are the truth and MLflow is their mirror. `result.json` is written last and means that the run is finished.
"""

import csv
import datetime
import fcntl
import io
import json
import logging
import math
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

from segsweep import masks
from segsweep.core.session import Interrupted, session

log = logging.getLogger(__name__)

WHOLE = ("finished", "continued", "reused")
"""How a job ends that has a whole run behind it."""
DONE = (*WHOLE, "pruned")
"""How a job ends that did what it was asked to."""
PRUNING = "pruning.log"
"""Optuna's journal in a sweep's folder: how far its runs have come, for a pruner that is not a search's."""


def now() -> str:
    """Local time with its offset, ISO 8601, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """All text that a record has is written here, without passwords."""
    with atomic(path) as partial:
        partial.write_text(masks.masked(text), encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """NaN and infinity become null: strict JSON, readable by every tool."""
    write_text(path, json.dumps(masks.clean(_finite(value)), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


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


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(masks.clean(_finite(row))) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a mapping; NaN becomes an empty cell."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    write_text(path, file.getvalue())


def jobs(sweep: Path) -> list[dict[str, Any]]:
    """The jobs' records of a sweep's folder in order of their numbers, each with its run folder as a path, `folder`."""
    found = []
    for path in sweep.glob("*/job.json"):
        if job := read_json(path):
            found.append(job | {"folder": (path.parent / job["run"]).resolve() if job.get("run") else None})
    return sorted(found, key=lambda job: job["number"])


@contextmanager
def made(file: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """For the block, `file` is there and no other process makes it or is in a block of its own: two that make one
    database at once would lock each other out. `make` is called with `file` where there is none yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / f".{file.name}.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not file.exists():
            make(file)
        yield


def share(file: Path) -> None:
    """Make an SQLite file, or change one, so that readers and writers of it do not wait for each other (WAL)."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Exclusive use of `folder`; waits for its holder, and the system frees it when the holder dies.

    Raises Interrupted where this process is asked to stop while it waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        if not _taken(file):
            log.warning("%s is being trained by another process: waiting for it", folder.name)
            while not _taken(file):
                if session().wait(0.2):
                    raise Interrupted(0)
        yield


def _taken(file: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def held(folder: Path) -> bool:
    """Whether a living process holds the lock of `folder`."""
    with suppress(FileNotFoundError), (folder / "lock").open("a") as file:
        return not _taken(file)
    return False


def check(weights: Path) -> None:
    """Raise ValueError where a file of torch.save is cut off, or a part of it fails its checksum, which torch.load does
    not look at; OSError where it cannot be read."""
    try:
        with ZipFile(weights) as file:
            bad = file.testzip()
    except (BadZipFile, RuntimeError) as error:
        raise ValueError(str(error)) from error
    if bad:
        raise ValueError(f"{bad} fails its checksum")


class Checkpoints:
    """The checkpoints of one trajectory: `state_0003.pt` after epoch 3 and the best weights until then beside it.

    A trajectory is what runs that differ only in `epochs` have in common, so a run of 5 epochs and one of 10 share it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def state(self, epoch: int) -> Path:
        return self.folder / f"state_{epoch:04d}.pt"

    def best(self, epoch: int) -> Path:
        return self.folder / f"best_{epoch:04d}.pt"

    def epochs(self) -> list[int]:
        return sorted(int(path.stem.split("_")[1]) for path in self.folder.glob("state_*.pt"))

    def save(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """`best`: weights to write if this epoch is the best so far, else None to go on with the previous ones."""
        import torch

        epoch = state["epoch"]
        if best is not None:
            with atomic(self.best(epoch)) as partial:
                torch.save(best, partial)
        elif (previous := self._best_before(epoch)) is not None:
            self.best(epoch).unlink(missing_ok=True)
            os.link(previous, self.best(epoch))
        with atomic(self.state(epoch)) as partial:
            torch.save(state, partial)

    def _best_before(self, epoch: int) -> Path | None:
        earlier = [path for path in sorted(self.folder.glob("best_*.pt")) if path < self.best(epoch)]
        return earlier[-1] if earlier else None

    def load(self, until: int) -> dict[str, Any] | None:
        """The latest readable state at or before epoch `until`; a damaged one is reported and the one before used."""
        import torch

        for epoch in reversed([e for e in self.epochs() if e <= until]):
            try:
                check(self.state(epoch))
                return torch.load(self.state(epoch), map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
                reason = (str(error) or type(error).__name__).split(". ")[0]
                log.warning("checkpoint %s is damaged (%s): using the one before", self.state(epoch), reason)
                self.state(epoch).rename(self.state(epoch).with_suffix(".damaged"))
        return None

    def end(self, epoch: int) -> None:
        """Mark an epoch at which a run ended, finished or pruned: its state and best weights stay."""
        self._mark(epoch).touch()

    def _mark(self, epoch: int) -> Path:
        return self.folder / f"end_{epoch:04d}"

    def prune(self, now: int, keep: int, milestones: set[int]) -> None:
        """Of the epochs until `now`, keep the `keep` latest, the milestones and those at which a run ended, finished or
        pruned. Later epochs are a longer run's."""
        for epoch in [e for e in self.epochs() if e <= now][:-keep]:
            if epoch not in milestones and not self._mark(epoch).exists():
                self.state(epoch).unlink(missing_ok=True)
                self.best(epoch).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all that was trained."""
        for pattern in ("*.pt", "end_*"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what processes that were killed left half-written; for the holder of the folder's lock."""
        for file in self.folder.glob(".*.part*"):
            file.unlink(missing_ok=True)
