"""A study as its report reads it: which trials count, which are the best, and how a trial is said in a few words."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError, nearest
from segsweep.core.signature import OWN
from segsweep.report.content import joined
from segsweep.search.study import ASKED, counted, open_storage, reason, shown


@dataclass
class Found:
    """A study with what is known around it. `runs`: the folder of all run folders, where one is known."""

    study: optuna.Study
    storage: str
    runs: Path | None

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """Those that count, as the search itself counts."""
        return counted(self.study.get_trials(deepcopy=False))

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        return [t for t in self.trials if t.state is TrialState.COMPLETE and all(map(math.isfinite, t.values))]

    @cached_property
    def within(self) -> list[FrozenTrial]:
        """The complete ones that are over no limit, of which the best is one."""
        return [t for t in self.complete if self.state(t) != "over a limit"]

    @cached_property
    def objectives(self) -> list[str]:
        asked = self.asked.get("search.objective") or self.asked.get(f"{OWN}.search.objective")
        names = [name.strip() for name in asked.split(",")] if asked else self.study.metric_names or []
        count = len(self.study.directions)
        return (
            list(names)
            if len(names) == count
            else ["objective"]
            if count == 1
            else [f"objective {i}" for i in range(count)]
        )

    @cached_property
    def asked(self) -> dict[str, str]:
        """What the search says of itself, key -> text."""
        found = self.study.user_attrs.get(ASKED)
        return found if isinstance(found, dict) else {}

    @cached_property
    def best(self) -> list[FrozenTrial]:
        """The best trial within all limits, or the Pareto front by its first objective."""
        try:
            front = [self.study.best_trial] if len(self.study.directions) == 1 else self.study.best_trials
        except ValueError:
            return []
        return sorted(front, key=lambda t: (-self.sign(0) * t.values[0], t.number))

    @cached_property
    def params(self) -> list[str]:
        """Every hyperparameter that some trial has, conditional ones included, those of most trials first."""
        counts = Counter(name for trial in self.trials for name in trial.params)
        return [name for name, _ in counts.most_common()]

    def sign(self, objective: int) -> int:
        return 1 if self.study.directions[objective] is optuna.study.StudyDirection.MAXIMIZE else -1

    def run(self, trial: FrozenTrial) -> Path | None:
        signature = trial.user_attrs.get("signature")  # of a study that may be anybody's
        if self.runs is None or not isinstance(signature, str) or not (signature.isalnum() and len(signature) <= 64):
            return None
        folder = self.runs / "runs" / signature
        return folder if (folder / "config.yaml").exists() and (folder / "run.json").exists() else None

    def state(self, trial: FrozenTrial) -> str:
        over = trial.state is TrialState.COMPLETE and any(value > 0 for value in trial.constraints.values())
        return "over a limit" if over else {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())

    def score(self, trial: FrozenTrial, objective: int = 0) -> float:
        """NaN where the trial has none; of a pruned one its last."""
        value = trial.values[objective] if trial.values else None
        return float("nan") if value is None else float(value)


def load(name: str, storage: str, runs: Path | None = None) -> Found:
    """Raises SegsweepError with what there is, where there is no such study."""
    file = storage.partition(":///")[2].partition("?")[0]
    if storage.startswith(("sqlite", "journal")) and not Path(file).exists():
        raise SegsweepError(f"--storage {storage}: no such file")
    place = open_storage(storage)
    try:
        names = optuna.get_all_study_names(place)
    except Exception as error:  # a storage raises what its back end raises
        raise SegsweepError(f"--storage {shown(storage)}: cannot be read: {reason(error)}") from error
    if name not in names:
        there = f"{nearest(name, names)}; there are {', '.join(names[-20:])}" if names else "; it holds none"
        raise SegsweepError(f"{name}: no such study in {storage}{there}")
    return Found(optuna.load_study(study_name=name, storage=place), storage, runs)


def of_sweep(folder: Path, storage: str | None = None) -> Found:
    """The search that a sweep's folder records. `storage`: its address, where the record hides a password."""
    about = (artifacts.read_json(folder / "sweep.json") or {}).get("search")
    if not about:
        raise SegsweepError(f"{folder}: its sweep.json records no search; name a study and its --storage")
    return load(about["study"], storage or about["storage"], folder.parent)


def scores(found: Found, trial: FrozenTrial) -> str:
    return joined([f"{name} {score(value)}" for name, value in zip(found.objectives, trial.values, strict=True)])


def score(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def point(trial: FrozenTrial) -> str:
    return " ".join(f"{key}={short(value)}" for key, value in trial.params.items())


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
