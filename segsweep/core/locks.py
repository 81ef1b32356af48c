"""Who may work on a folder or a file: locks, which the system frees when their holder dies."""

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError
from segsweep.core.session import Interrupted, session

log = logging.getLogger(__name__)

IN_USE = "in use"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What a file system answers that has no locks, the last where it locks nothing that is open for reading."""


@contextmanager
def made(file: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """For the block, `file` is there and no other process makes it or is in a block of its own: two that make one
    database at once would lock each other out. `make` is called with `file` where there is none yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.parent / f".{file.name}.lock"):
        if not file.exists():
            make(file)
        yield


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """For the block, no other process or thread is in one of this file; waits. False where no locks are, and nobody
    waits."""
    with _opened(file, "a") as guard:
        yield bool(_taken(guard, wait=True))


def share(file: Path) -> None:
    """Make an SQLite file, or change one, so that readers and writers of it do not wait for each other (WAL)."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


WAITING = "waiting for another command"
"""Note of a run that does."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Exclusive use of `folder`; waits for its holder, and the system frees it when the holder dies.

    Raises Interrupted where this process is asked to stop while it waits, SegsweepError where the folder is not to be
    written. Where a file system has no locks that is said, and nobody waits."""
    said = False
    while True:
        with ExitStack() as stack:
            try:
                _make(folder)
                file = stack.enter_context(_opened(folder / "lock", "a"))
            except OSError as error:
                if error.errno not in artifacts.DENIED:
                    raise
                raise SegsweepError(artifacts.denied(error, folder)) from error
            if (taken := _taken(file)) is None:
                log.warning("%s: its file system has no locks; start no two commands that want one run", folder)
            elif not taken:
                if not said:
                    log.warning("%s is being trained by another process: waiting for it", folder.name)
                    session().emit("note", text=WAITING)
                said = True
                while not _taken(file):
                    if session().wait(0.2):
                        raise Interrupted(0)
            if taken is not None and not _names(folder / "lock", file):
                continue  # whoever had it took the file away, and what was waited for is nobody's any more
            yield
            return


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[str]]:
    """A file whose lock ends with the block, also where a process that was forked meanwhile still has it open."""
    with path.open(mode) as file:
        here = os.getpid()
        try:
            yield file
        finally:
            if os.getpid() == here:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _names(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _make(folder: Path) -> None:
    """A folder, and those above it, that are there after a power cut."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        artifacts.flush(place.parent)


def _taken(file: IO[str], wait: bool = False) -> bool | None:
    """None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def held(folder: Path) -> bool | None:
    """Whether a living process holds the lock of `folder`; None where its file system has no locks, or another user's
    is not to be looked at."""
    for mode in ("r+", "r"):  # some file systems lock nothing that is open for reading alone
        try:
            with _opened(folder / "lock", mode) as file:
                taken = _taken(file)
                return None if taken is None else not taken
        except FileNotFoundError:
            return False
        except OSError:
            continue
    return None


@contextmanager
def free(file: Path) -> Iterator[str]:
    """For the block, a lock that nobody else has: gives "" then, else why not. Raises OSError where `file` cannot be
    opened."""
    with _opened(file, "a") as guard:
        yield {True: "", False: IN_USE, None: "its file system has no locks, so it may be in use"}[_taken(guard)]
