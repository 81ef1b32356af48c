"""What the parts of a process share while it works: whom events are told, the job that is under way, the wish to stop.

One object that a context variable holds, so that nothing of it is a module's. Threads that need it are started with
`thread`.
"""

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segsweep.config.hold import Hold
    from segsweep.sweeps.doors import Door
    from segsweep.sweeps.sweep import Sweep
    from segsweep.sweeps.worker import Pool
    from segsweep.tracking.copying import Copier
    from segsweep.tracking.recall import Restorer

Sink = Callable[[dict[str, Any]], None]


class Interrupted(Exception):
    """The run was asked to stop; its state after `epoch` complete epochs is saved."""

    def __init__(self, epoch: int):
        super().__init__(f"interrupted after epoch {epoch}")
        self.epoch = epoch


class Pruned(Exception):
    """The run fell behind those that it is compared with; its state after `epoch` complete epochs is saved.

    `record`: what pruned.json is to hold."""

    def __init__(self, epoch: int, record: dict[str, Any]):
        super().__init__(record["reason"])
        self.epoch, self.record = epoch, record


@dataclass(eq=False)
class Session:
    """sink: takes events, plain dicts: the terminal of this process, or the pipe of a launcher's worker. job: the
    number of the one that is under way. retries: how often that ran out of memory before. heard: whether a Ctrl-C has
    raised KeyboardInterrupt. foreign: whether the command line names a folder that is not trusted, so that each job's
    composition is looked at, and hold: what it is held against. sweep: that this process leads. copier, restorer, pool:
    to MLflow, from it, and of workers; made where they are first needed. door: by which one's own code came here; None:
    this program's command. place: the working folder of the command while a job's function has another."""

    sink: Sink = lambda event: None
    job: int = 0
    retries: int = 0
    heard: bool = False
    foreign: bool = False
    hold: "Hold | None" = None
    sweep: "Sweep | None" = None
    copier: "Copier | None" = None
    restorer: "Restorer | None" = None
    pool: "Pool | None" = None
    door: "Door | None" = None
    place: Path | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def emit(self, kind: str, **facts: Any) -> None:
        """kind: a method of `Display` less its underscore, such as `start`, `epoch` or `end`; the facts it shows."""
        self.sink({"kind": kind, "job": self.job} | facts)

    def stop(self) -> None:
        """Ask the run of this process to stop at the end of its epoch."""
        self._stop.set()

    def stopping(self) -> bool:
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until this process is asked to stop: then True."""
        return self._stop.wait(seconds)


_session: contextvars.ContextVar[Session] = contextvars.ContextVar("session")


def session() -> Session:
    """The one of this process; one that tells nobody where none was begun."""
    try:
        return _session.get()
    except LookupError:
        return begin(Session())


def begin(new: Session) -> Session:
    """Make `new` the session of all that follows here and in threads that are started here."""
    _session.set(new)
    return new


def thread(target: Callable[..., Any], *given: Any, name: str | None = None) -> threading.Thread:
    """A started daemon thread in which `session()` gives what it gives here."""
    run = contextvars.copy_context().run
    started = threading.Thread(target=run, args=(target, *given), name=name, daemon=True)
    started.start()
    return started


PATIENCE = 10.0
"""Seconds that a fork waits for an import at most, whose thread may wait for a module that the forking one has."""
_importing = threading.RLock()
_forking = threading.local()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For what a thread beside the jobs imports: nobody forks meanwhile. A child would find modules locked by a thread
    that it has not, and wait for ever where it imports one of them, as a data loader's may."""
    with _importing:
        yield


def _before_fork() -> None:
    _forking.taken = _importing.acquire(timeout=PATIENCE)


def _after_fork() -> None:
    if _forking.taken:
        _importing.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
