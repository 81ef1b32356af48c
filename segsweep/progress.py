"""What a run tells while it works, and how it is asked to stop.

Events are plain dicts sent to one sink: the terminal of this process, or the pipe of a launcher's worker.
"""

import threading
from collections.abc import Callable
from typing import Any

Sink = Callable[[dict[str, Any]], None]

_sink: Sink = lambda event: None  # noqa: E731
_job = 0
_stop = threading.Event()


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


def send_to(sink: Sink) -> None:
    global _sink
    _sink = sink


def begin(job: int) -> None:
    """All that follows is about the job of this number."""
    global _job
    _job = job


def emit(kind: str, **facts: Any) -> None:
    """kind: a method of `Display` less its underscore, such as `start`, `epoch` or `end`; the facts that it shows."""
    _sink({"kind": kind, "job": _job} | facts)


def stop(now: bool = True) -> None:
    """Ask the run of this process to stop at the end of its epoch; `now=False` takes that back."""
    _stop.set() if now else _stop.clear()


def stopping() -> bool:
    return _stop.is_set()


def wait(seconds: float) -> bool:
    """Sleep, but no longer than until this process is asked to stop: then True."""
    return _stop.wait(seconds)
