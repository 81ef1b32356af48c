"""What a sweep shows while it runs: live bars on a terminal, plain lines elsewhere.

It is fed the events of a `session` from this process or from a launcher's workers, and keeps no state that matters.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from segsweep.core.artifacts import DONE
from segsweep.core.errors import printable
from segsweep.core.masks import first_line


class Display:
    """One line for the sweep and one for each running job. `total`: number of jobs, None where nobody knows it. plain:
    no bars even on a terminal, which a job of this process has for itself then, and its debugger."""

    def __init__(self, total: int | None, console: Console | None = None, plain: bool = False):
        self.console = console or Console(stderr=True, force_jupyter=False)  # which has each line as a page of HTML
        self.total, self.slots = total, 1
        self.began = time.monotonic()
        self.counts: dict[str, int] = {}
        self.spent: list[float] = []
        self.names: dict[int, str] = {}
        self.started: dict[int, float] = {}
        self.scores: dict[int, str] = {}
        self.tasks: dict[int, TaskID] = {}
        self.live: Progress | None = None
        self.said: set[str] = set()
        if self.console.is_terminal and not plain:
            name, facts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[facts]}"))
            columns = (name, BarColumn(bar_width=24), facts)
            self.live = Progress(*columns, console=self.console, transient=True)
            self.sweep = self.live.add_task("sweep", total=total, facts="")

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def handle(self, event: dict[str, Any]) -> None:
        """An event of `Session.emit`; `job` is the job's number, 0 where there is one only."""
        job = event.get("job", 0)
        getattr(self, f"_{event['kind']}")(job, {key: _plain(value) for key, value in event.items()})

    def _label(self, job: int) -> str:
        width = len(str(self.total)) if self.total else 1
        return f"[{job + 1:>{width}}/{self.total}]" if self.total and job < self.total else f"[{job + 1}]"

    def _say(self, text: str) -> None:
        (self.live.console if self.live else self.console).print(text, markup=False, highlight=False, soft_wrap=True)

    def _start(self, job: int, event: dict[str, Any]) -> None:
        self.names[job], self.started[job] = event["name"], time.monotonic()
        if self.live:
            self.tasks[job] = self.live.add_task(f"{self._label(job)} {event['name']}", total=1.0, facts="")
        else:
            self._say(f"{self._label(job)} {event['name']}")

    def _total(self, job: int, event: dict[str, Any]) -> None:
        self.total = event["jobs"]
        if event.get("before"):
            self.counts["before"] = event["before"]
        if self.live:
            self.live.update(self.sweep, total=self.total)

    def _slots(self, job: int, event: dict[str, Any]) -> None:
        self.slots = event["slots"]

    def _text(self, job: int, event: dict[str, Any]) -> None:
        if not (event.get("once") and event["text"] in self.said):  # several jobs have the same to say
            self._say(event["text"])
        self.said.add(event["text"])

    def _retry(self, job: int, event: dict[str, Any]) -> None:
        if self.live and job in self.tasks:
            self.live.remove_task(self.tasks.pop(job))
        self._say(f"{self._label(job)} {self.names.get(job, '')}: {event['text']}")

    def _note(self, job: int, event: dict[str, Any]) -> None:
        if self.live and job in self.tasks:
            self.live.update(self.tasks[job], facts=event["text"])

    def _step(self, job: int, event: dict[str, Any]) -> None:
        if self.live and job in self.tasks:
            done = (event["epoch"] - 1 + event["done"]) / event["epochs"]
            told = "  ".join(filter(None, (self.scores.get(job), event["text"])))
            facts = f"epoch {event['epoch']}/{event['epochs']}  {told}"
            self.live.update(self.tasks[job], completed=done, facts=facts)

    def _epoch(self, job: int, event: dict[str, Any]) -> None:
        self.scores[job] = event["score"]
        facts = f"epoch {event['epoch']}/{event['epochs']}  {event['text']}"
        if self.live and job in self.tasks:
            self.live.update(self.tasks[job], completed=event["epoch"] / event["epochs"], facts=facts)
        else:
            self._say(f"{self._label(job)}   {facts}")

    def _end(self, job: int, event: dict[str, Any]) -> None:
        status = event["status"]
        self.counts[status] = self.counts.get(status, 0) + 1
        seconds = event.get("seconds") or time.monotonic() - self.started.get(job, time.monotonic())
        if status in ("finished", "continued", "stopped early"):
            self.spent.append(seconds)
        if self.live and job in self.tasks:
            self.live.remove_task(self.tasks.pop(job))
        facts = f"{status} in {seconds:.1f} s"
        if status in DONE and event.get("score"):
            facts += f", {event['score']}"
        if event.get("note"):
            facts += f", {event['note']}"
        if event.get("error"):
            facts += f": {first_line(event['error'])}"
        self._say(f"{self._label(job)} {self.names.get(job) or event.get('name', '')}: {facts}{self._outlook()}")

    def _outlook(self) -> str:
        ended = sum(self.counts.values())
        elapsed = f"  (elapsed {_clock(time.monotonic() - self.began)}"
        left = (self.total or 0) - ended
        if left > 0 and self.spent:
            elapsed += f", about {_clock(left * sum(self.spent) / len(self.spent) / self.slots)} left"
        if self.live:
            counts = ", ".join(f"{n} {status}" for status, n in self.counts.items())
            self.live.update(self.sweep, completed=ended, facts=f"{ended}/{self.total or '?'}: {counts}{elapsed})")
        return elapsed + ")" if (self.total or 0) > 1 else ""


def _plain(value: Any) -> Any:
    """A text without the signs that a terminal obeys: names and errors may be anybody's."""
    return "\n".join(map(printable, value.split("\n"))) if isinstance(value, str) else value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
