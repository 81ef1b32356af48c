"""One job as its launcher sees it: its place in the order, and its record when it can no longer write that itself."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from segsweep.config.compose import Composer, Own
from segsweep.config.schema import engine
from segsweep.core import artifacts, child, locks
from segsweep.core.masks import first_line
from segsweep.sweeps.entry import close_job
from segsweep.sweeps.job import from_record

if TYPE_CHECKING:
    from segsweep.sweeps.plan import Planner, Point


@dataclass
class Job:
    """`failure` is the class of its last failure; `tries` counts them. quick: whether its record may answer, with
    `result`, before a process has it."""

    number: int
    overrides: list[str]
    folder: Path
    config: DictConfig | None = None
    point: "Point | None" = None
    rank: tuple[int, float, int] = (0, 0.0, 0)
    failure: str | None = None
    tries: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    waits: float = 0.0
    oom_kills: int = 0
    quick: bool = False
    result: JobReturn | None = None

    def __lt__(self, other: "Job") -> bool:
        return self.rank < other.rank

    def compose(self, composer: Composer, planner: "Planner", longest_first: bool = False) -> None:
        """Its configuration, what is known of it, and its place: answers, then what never ran, then what failed."""
        self.rank, own = (1, 0.0, self.number), None
        with contextlib.suppress(Exception):  # the job itself will say so: a component's own code raises what it raises
            own = composer.own(self.overrides)
            self.point = planner.point(*own)
            state = {"finished": 0, "pruned": 0, "failed": 2}.get(self.point.state, 1)
            self.rank = state, -planner.cost(self.point) if longest_first else 0.0, self.number
        if own and self.point and self._answer(own, self.point):
            return
        self.config = composer(self.overrides)
        with open_dict(self.config):
            self.config.hydra.job.id = str(self.number)
            self.config.hydra.job.num = self.number
        self.folder = Path(str(self.config.hydra.sweep.dir)) / str(self.config.hydra.sweep.subdir)

    def _answer(self, own: Own, point: "Point") -> bool:
        """Be done at once where the record of a finished run is all that a job has to look at."""
        cfg, _, values = own
        if not self.quick or point.state != "finished" or point.stands or point.pruner:
            return False
        if values is None or values["search"]["trial"] is not None:
            return False
        with contextlib.suppress(Exception):  # of which the job tells
            self.result = from_record(cfg, values, point, self.overrides, self.number, self.folder)
        return self.result is not None

    @property
    def answered(self) -> bool:
        return self.point is not None and self.point.answered

    @property
    def failed(self) -> bool:
        """In an earlier sweep."""
        return self.point is not None and self.point.state == "failed"

    def start(self) -> None:
        self.began, self.failure, self.oom_kills = time.monotonic(), None, oom_kills()
        self.waits = 0.0

    def hear(self, event: Mapping[str, Any]) -> None:
        """While it waits for another command its time stands still."""
        now = time.monotonic()
        if self.waits:
            self.began, self.waits = self.began + now - self.waits, 0.0
        if event.get("text") == locks.WAITING:
            self.waits = now

    def close(self, status: str, failure: str | None, error: str) -> None:
        """Write job.json for a job that cannot."""
        from segsweep.runs.run import Outcome

        entry = artifacts.read_json(self.folder / "job.json") or {"number": self.number, "overrides": self.overrides}
        outcome = Outcome(status, failure=failure, error=error)
        if self.point and self.began:
            outcome.signature, outcome.folder = self.point.signature, self.point.folder
        close_job(self.folder, entry, outcome, time.monotonic() - self.began if self.began else 0.0)

    def fail(self, failure: str, reason: str) -> None:
        """Write the failure down, in the run folder too, unless another process works there by now."""
        self.failure, error = failure, first_line(reason)
        self.close("failed", failure, error)
        if self.point is None or locks.held(self.point.folder) or artifacts.result(self.point.folder):
            return
        epoch = len(artifacts.read_lines(self.point.folder / "history.jsonl"))
        record = {"status": "failed", "class": failure, "error": error, "traceback": reason, "epoch": epoch}
        with contextlib.suppress(OSError):  # a full disk: the job's own record has it, and the table
            artifacts.write_json(self.point.folder / "failure.json", record)

    def mirror(self) -> None:
        """Bring MLflow up to date with a run whose worker no longer can say so."""
        if self.config is None or self.point is None or locks.held(self.point.folder):
            return
        if (self.point.folder / "run.json").exists():
            from segsweep.tracking.copying import Mirror

            Mirror(self.point.folder, engine(self.config).tracking, self.folder.parent).__exit__()


def without_value(overrides: Sequence[str]) -> JobReturn:
    """What Hydra is told of a job that has no objective: NaN, as of one that failed by itself."""
    result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    result.return_value = float("nan")
    return result


def launch(launcher: Launcher, overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
    """All jobs of a batch. Processes that a launcher has others start take no module from the folder that they are
    started in; `Started` gives them one's own."""
    if isinstance(launcher, BasicLauncher) or child.SAFE in os.environ:
        return launcher.launch(overrides, initial_job_idx=first)
    os.environ[child.SAFE] = "1"
    try:
        return launcher.launch(overrides, initial_job_idx=first)
    finally:
        os.environ.pop(child.SAFE, None)


def oom_kills() -> int:
    """How many processes Linux has ended for want of memory since it started."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
