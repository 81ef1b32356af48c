"""What a report is made of, as plain dataclasses: runs, jobs, and all that was asked for."""

import json
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.config.before import spec_of
from segsweep.core.artifacts import WHOLE
from segsweep.core.signature import OWN
from segsweep.task import Spec


@dataclass
class Run:
    """One run folder. `status`: finished, pruned, failed or unfinished; `info` is run.json, `result` is result.json, or
    pruned.json of a run that was pruned; `accepted`: by whom it was let stand for edited code (`accepted.entries`);
    `pooled`: the group of that code, where another run here is of it or was accepted for it; `folded`: factors that a
    chosen option says already."""

    folder: Path
    signature: str
    status: str
    info: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    error_class: str = ""
    history: dict[str, np.ndarray] = field(default_factory=dict)  # column -> (epochs,)
    unmeasured: dict[str, int] = field(default_factory=dict)  # column -> epochs without it, of those with it in others
    units: dict[str, dict[str, float]] = field(default_factory=dict)  # unit -> column -> value, NaN = undefined
    accepted: list[dict[str, Any]] = field(default_factory=list)
    pooled: str = ""
    folded: set[str] = field(default_factory=set)

    @cached_property
    def spec(self) -> Spec:
        return spec_of(self.info)

    @property
    def group(self) -> str:
        return self.pooled or str(self.info.get("group") or self.signature)

    def lacks(self, column: str) -> int:
        """How many of the epochs have no such value, which one that is undefined is."""
        return self.unmeasured.get(column, 0) if column in self.history else len(self.history.get("epoch", ()))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """With the values of settings that decide nothing at them, which its identity is without."""
        told = self.info.get("factors") or {}
        return told | {key: value for key, value in self.spec.neutral.items() if key not in told}

    @property
    def factors(self) -> dict[str, Any]:
        """The settings without those that a chosen option says already."""
        return {key: value for key, value in self.settings.items() if key not in self.folded}

    @property
    def choices(self) -> dict[str, str]:
        """Key of a group of options, as the command line takes it (`net`, `net/act`) -> the option."""
        return {key: option for key, option in (self.info.get("choices") or {}).items() if isinstance(option, str)}

    @property
    def typed(self) -> set[str]:
        """Keys that its command sets."""
        try:
            words = shlex.split(self.command)
        except ValueError:  # a damaged record
            return set()
        return {word.split("=")[0].lstrip("+~") for word in words if "=" in word}

    @property
    def metrics(self) -> dict[str, float]:
        return {
            **{k: v for k, v in self.result.items() if isinstance(v, int | float)},
            **(self.result.get("metrics") or {}),
        }

    @property
    def seed_key(self) -> str:
        """`seed`, which another application may have of its own, or the engine's in such an application."""
        return f"{OWN}.seed" if "seed" not in self.settings and f"{OWN}.seed" in self.settings else "seed"

    @property
    def seed(self) -> Any:
        return self.settings.get(self.seed_key, 0)

    @property
    def repeat(self) -> tuple[Any, ...]:
        """Values of the keys beside the seed in which repeats differ; None where the run has no such key."""
        return tuple(self.factors.get(key) for key in self.spec.repeats)

    @property
    def lent(self) -> bool:
        """Whether it rests on somebody's word that an edit of the code changes nothing."""
        return bool(self.accepted or self.info.get("accepted"))

    @property
    def command(self) -> str:
        return str(self.info.get("command") or "not recorded")

    @property
    def unwatched(self) -> bool:
        """Whether nobody looks if the data are still what they were."""
        data = self.info.get("data") or {}
        return "digest" in data and data["digest"] is None

    @property
    def split(self) -> dict[str, Any]:
        return self.info.get("split") or {}

    @property
    def counted(self) -> bool:
        """Whether anybody said how much is in which part."""
        return "leaks" not in self.split or bool({"train", "val", "test"} & self.split.keys())

    @property
    def leaks(self) -> bool:
        return bool(self.split.get("leaks"))

    @property
    def evaluated_on(self) -> str:
        return str(
            self.info.get("evaluated_on") or ("val" if any(k.startswith("val/") for k in self.history) else "test")
        )


@dataclass
class Job:
    """One job of a sweep (job.json) with its run, where there is one; `number` is -1 for a run named by itself.
    `since`: the job that finished later with the same settings, where this one did not. `tested`: see `run.Outcome`."""

    sweep: str
    number: int
    status: str
    overrides: list[str] = field(default_factory=list)
    varied: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    error: str = ""
    error_class: str = ""
    run: Run | None = None
    started: str = ""
    since: str = ""
    tested: bool = False

    @property
    def name(self) -> str:
        return f"{self.sweep} / {self.number}" if self.number >= 0 else self.sweep

    @property
    def asked(self) -> str:
        """What it was to train, whatever its code: its settings, or where they are not recorded, how it was told."""
        settings = self.run.settings if self.run else {}
        return json.dumps(settings, sort_keys=True) if settings else " ".join(sorted(self.overrides))


@dataclass
class Record:
    """All that was asked for: the jobs in order, the distinct runs behind them, and what was missing or unreadable.

    `runs` are those of one task, the one that most have, as `spec` describes it; `others` are of other tasks."""

    names: list[str]
    jobs: list[Job]
    runs: list[Run]
    problems: list[str]
    searched: set[str] = field(default_factory=set)  # factors that a search drew from an interval
    asked: set[str] = field(default_factory=set)  # keys that a search sets, or a job that finished
    commands: dict[str, str] = field(default_factory=dict)  # sweep that is no search -> what started it
    others: list[Run] = field(default_factory=list)

    @property
    def lost(self) -> list[Job]:
        """Jobs that did not finish, and whose settings have not finished since."""
        return [job for job in self.jobs if job.status not in WHOLE and not job.since]

    @cached_property
    def spec(self) -> Spec:
        """Of the latest run: a description may have grown since the first."""
        return max(self.runs, key=lambda run: str(run.info.get("created") or "")).spec if self.runs else spec_of({})
