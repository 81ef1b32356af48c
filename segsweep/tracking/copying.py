"""When run folders are copied to MLflow: beside the jobs, one after another, and at most a stated time at the end.

What is copied is `mirrors.push`'s matter. Jobs wait for no server.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segsweep.core import artifacts
from segsweep.core.masks import first_line
from segsweep.core.session import session, thread
from segsweep.tracking import mirrors
from segsweep.tracking.recall import SILENCE
from segsweep.tracking.store import STATE, alone, here, load

log = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds between two copies of one run that goes on."""
END = 60.0
"""Seconds that the end of a command waits for MLflow at most; for a store of this machine, for its next copy."""
LATER = 3.0
"""Seconds that the first copy waits for: MLflow's import takes that long, and would hold up the first training step."""


class Mirror:
    """Copies one run folder in the background: soon after the start, after each epoch and, in the end, whole."""

    def __init__(self, folder: Path, tracking: Any, sweep: Path | None):
        # absolute: of one run there is one latest, whoever tells of it
        self.folder, self.sweep = folder.absolute(), sweep and sweep.absolute()
        self.uri, self.experiment = tracking.uri, tracking.experiment
        self.final = False

    @property
    def target(self) -> tuple[Path, str, str]:
        """Which run goes where: of those of one target the latest alone counts."""
        return self.folder, self.uri, self.experiment

    def __enter__(self) -> "Mirror":
        self.update()
        return self

    def __exit__(self, *exception: object) -> None:
        self.final = True
        copier().at_once()
        self.update()

    def update(self) -> None:
        if self.uri is not None:
            copier().put(self)


class Copier:
    """Copies what it is given in a thread of its own that the first of it starts: of one copy of a run the latest,
    PAUSE seconds after the one before; its end at once.

    A store that did not answer is left alone for SILENCE seconds, and what it lacks is kept for later. elsewhere: does
    the copying instead; in a launcher's worker, whose parent copies for all: MLflow is imported and connected to once a
    sweep."""

    def __init__(self, elsewhere: Callable[[Mirror], None] | None = None, later: float = LATER, pause: float = PAUSE):
        self.elsewhere, self.later, self.pause = elsewhere, later, pause
        self._due: dict[tuple[Path, str, str], Mirror] = {}
        self._after: dict[Path | str, float] = {}  # when a run, or a store, may be copied, or asked, again
        self._busy: Mirror | None = None
        self._copies = 0  # that went well
        self._flushing = self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._imported = threading.Event()

    def put(self, mirror: Mirror) -> None:
        if self.elsewhere:
            self.elsewhere(mirror)
            return
        with self._changed:
            self._due[mirror.target] = mirror
            if self._thread is None or not self._thread.is_alive():
                self._after[""] = time.monotonic() + self.later
                self._thread = thread(self._work, name="mlflow")
            self._changed.notify_all()

    def at_once(self) -> None:
        """The first copy waits no longer."""
        with self._changed:
            self.later = self._after[""] = 0.0
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until MLflow is not being imported: two threads that import the same modules in different order would
        get halves of them."""
        if self._thread:
            self.at_once()
            self._imported.wait()

    def flush(self, wait: float = END) -> bool:
        """Wait until everything is copied, or known to be out of reach, but no longer than `wait` seconds: then what is
        left is noted in its folders, False is given and it is for `python -m segsweep.sync`. A store on this machine is
        slow at worst, and not gone: there it is `wait` seconds in which no copy ends well."""
        self.at_once()
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            copies, done = -1, False
            while not done and (copies < 0 or (self._copies > copies and all(here(m.uri) for m in self._left()))):
                copies = self._copies
                done = self._changed.wait_for(lambda: not self._left(), max(wait, 0.0))
            left = self._left()
            self._flushing = False
            self._due.clear()
        for mirror in left:
            _note(mirror.folder, f"it did not answer within {wait:.0f} s")
        return done

    def _left(self) -> list[Mirror]:
        return [*self._due.values(), *([self._busy] if self._busy else [])]

    def close(self) -> None:
        """The same, and end the thread."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> Mirror | None:
        """What is to be copied now; waits for it, and gives None where no more will come."""
        with self._changed:
            while not self._closed:
                now, soon = time.monotonic(), []
                for mirror in sorted(self._due.values(), key=lambda mirror: not mirror.final):
                    bounds: list[Path | str] = ["", mirror.uri] if mirror.final else ["", mirror.uri, mirror.folder]
                    until = max(self._after.get(bound, 0.0) for bound in bounds)
                    if self._flushing or until <= now:
                        self._busy = self._due.pop(mirror.target)
                        return mirror
                    soon.append(until - now)
                self._changed.wait(min(soon, default=None))
            return None

    def _work(self) -> None:
        while (mirror := self._next()) is not None:
            folder, failed = mirror.folder, ""
            try:
                if not self._imported.is_set():
                    load()
                    self._imported.set()
                mirrors.push(folder, mirror.uri, mirror.experiment, mirror.sweep, final=mirror.final)
            except Exception as error:  # MLflow raises what its back end raises; none of it may cost a run
                failed = first_line(error)
                log.info("MLflow: %s", error)
                with contextlib.suppress(OSError), alone(folder):
                    _note(folder, failed)
            with self._changed:
                self._imported.set()
                self._after[folder] = time.monotonic() + self.pause
                self._copies += not failed
                if failed and self._flushing:
                    others = [other for other in self._due.values() if other.uri == mirror.uri]
                    for other in [] if here(mirror.uri) else others:  # with a server they would wait for the same
                        _note(self._due.pop(other.target).folder, failed)
                elif failed:
                    self._after[mirror.uri] = time.monotonic() + SILENCE
                    self._due.setdefault(mirror.target, mirror)
                self._busy = None
                self._changed.notify_all()


def _note(folder: Path, error: str) -> None:
    """In a run's folder: why MLflow does not have all of it."""
    with contextlib.suppress(OSError):
        artifacts.write_json(folder / STATE, (artifacts.read_json(folder / STATE) or {}) | {"error": error})


def copier() -> Copier:
    """The session's."""
    own = session()
    own.copier = own.copier or Copier()
    return own.copier


def lacking(folder: Path) -> str | None:
    """Why MLflow does not have all of a run folder; None where it does, or was never asked to."""
    return (artifacts.read_json(folder / STATE) or {}).get("error")
