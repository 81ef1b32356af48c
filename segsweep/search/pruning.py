"""Ends runs that fall behind: Optuna's pruners, asked after each epoch whatever sweeper and launcher is in use.

A search's job reports to its own trial. The jobs of a grid keep trials of their own, in a journal file in the sweep's
folder, where other processes and machines see them. Either way a run is compared only with what is like it.
"""

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config import components
from segsweep.config.schema import engine, under
from segsweep.config.whitelist import KINDS
from segsweep.core.artifacts import PRUNING, now
from segsweep.core.errors import ConfigError
from segsweep.core.masks import first_line
from segsweep.core.session import Pruned
from segsweep.core.signature import digest
from segsweep.search import objective
from segsweep.task import Spec

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)


def settings(cfg: DictConfig, spec: Spec) -> dict[str, Any]:
    """What a decision to prune is made by."""
    return {"metric": metric(cfg, spec), "pruner": OmegaConf.to_container(engine(cfg).pruner, resolve=True)}


def same(record: Mapping[str, Any], cfg: DictConfig, spec: Spec) -> bool:
    """Whether pruned.json was decided by this very pruner and metric. Then it stands, whoever is compared today, so
    that the same command gives the same answer; another pruner looks at the recorded epochs anew."""
    return all(record.get(key) == value for key, value in settings(cfg, spec).items())


def metric(cfg: DictConfig, spec: Spec) -> str:
    """What runs are compared by: the search's objective; what the task selects by where there is none."""
    return objectives(cfg, spec)[0]


def objectives(cfg: DictConfig, spec: Spec) -> list[str]:
    found = OmegaConf.select(engine(cfg), "search.objective") or spec.select
    return [found] if isinstance(found, str) else [str(name) for name in found]


def problems(cfg: DictConfig, spec: Spec) -> list[str]:
    """Every mistake of the pruner's group, one sentence each: beside `components.check`, and as that does. None where
    there is no pruner."""
    try:
        if not OmegaConf.select(engine(cfg), "pruner._target_") or OmegaConf.missing_keys(engine(cfg)):
            return []
    except OmegaConfBaseException:  # which `components.check` tells
        return []
    try:
        node: Any = OmegaConf.to_container(engine(cfg).pruner, resolve=True)
    except OmegaConfBaseException as error:
        return [f"{under(cfg)}pruner: {first_line(error)}"]
    at = under(cfg)
    wrong = [f"{at}{line}" for line in components.mistakes(KINDS, "pruner", node)]
    wrong = wrong or components.tried(f"{at}pruner", f"pruner {node}", lambda: attempt(make(engine(cfg).pruner)))[0]
    return [*wrong, *filter(None, [problem(cfg, spec, validation=1)])]


def problem(cfg: DictConfig, spec: Spec, validation: int) -> str | None:
    """Why these runs cannot be pruned, in one sentence. `validation`: number of samples in the validation part."""
    at = under(cfg)
    none = f"use {at.replace('.', '/')}pruner=none"
    if not spec.epochs:
        return f"{at}pruner: this task trains at one go, and has no epoch after which it could end; {none}"
    name, measured = metric(cfg, spec), objective.scores(spec)
    if len(objectives(cfg, spec)) > 1:
        return f"{at}pruner: a search with two objectives has no order that a run could fall behind in; {none}"
    if name not in measured:
        allowed = ", ".join(sorted(measured))
        return f"{at}pruner: compares after each epoch, and {name} is not measured then; allowed are {allowed}"
    if not validation:
        return (
            f"{at}pruner: runs are compared by their validation part, and these data have none (never by the test "
            f"part); {objective.validation(spec)}, or {none}"
        )
    return None


def refuse(cfg: DictConfig, spec: Spec, validation: int) -> None:
    """Raise ConfigError where runs with a validation part of so many samples cannot be compared."""
    if reason := problem(cfg, spec, validation):
        raise ConfigError(reason)


def make(node: DictConfig) -> "optuna.pruners.BasePruner":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return components.build(KINDS, "pruner", node)


def attempt(pruner: "optuna.pruners.BasePruner") -> None:
    """Ask it once about nothing: some of Optuna's look at their arguments only then. Raises what they raise."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=pruner)
    for state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING):
        steps = {1: 1.0, 2: 1.0}
        made = optuna.trial.create_trial(state=state, value=1.0, intermediate_values=steps)
        study.add_trial(made)
    pruner.prune(study, study.trials[-1])


class Judge:
    """One run before its pruner. An outage of the storage costs the pruning of this run, never the run.

    `data`, `split`: digests; with the metric and the number of epochs they say which runs are alike.
    """

    def __init__(
        self,
        cfg: DictConfig,
        spec: Spec,
        *,
        pruner: str,
        signature: str,
        name: str,
        data: str,
        split: str,
        sweep: Path | None,
    ):
        self.name, self.signature, self.sweep, self.cfg = pruner, signature, sweep, engine(cfg)
        self.epochs = int(self.cfg.epochs)
        self.settings, self.metric = settings(cfg, spec), metric(cfg, spec)
        self.about = objective.scores(spec)[self.metric]
        self.sign = self.about.sign
        alike = {"metric": self.metric, "epochs": self.epochs, "data": [data, split]}
        alike["keys"] = {key: _plain(OmegaConf.select(cfg, key)) for key in spec.alike}
        alike["scale"] = {key: _plain(OmegaConf.select(cfg, key)) for key in self.about.scale}
        self.attributes = {"alike": digest(alike), "signature": signature, "name": name}
        self.seen = 0
        self.pruner = make(self.cfg.pruner)
        self.study: optuna.Study | None = None
        self.place: optuna.storages.BaseStorage | None = None
        self.trial = -1

    def __enter__(self) -> "Judge":
        try:
            self._open()
        except Exception as error:  # a storage raises what its back end raises
            self._lose(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("FAIL")  # unless it has ended before
        if self.place:  # a worker has a judge for each of its jobs
            from segsweep.search.study import give_back

            give_back(self.place)

    def _open(self) -> None:
        import optuna

        from segsweep.search.study import open_storage

        number = OmegaConf.select(self.cfg, "search.trial")
        if number is not None:
            place, study = open_storage(self.cfg.search.storage), self.cfg.search.study
            self.place = place
            self.trial = place.get_trial_id_from_study_id_trial_number(place.get_study_id_from_name(study), number)
        elif self.sweep is not None:
            place, study = open_storage(f"journal:///{self.sweep.absolute() / PRUNING}"), self.metric
            direction = optuna.study.StudyDirection.MAXIMIZE if self.sign > 0 else optuna.study.StudyDirection.MINIMIZE
            kept = optuna.create_study(storage=place, study_name=study, direction=direction, load_if_exists=True)
            mine = [t for t in kept.get_trials(deepcopy=False) if t.user_attrs.get("signature") == self.signature]
            going = [t for t in mine if not t.state.is_finished()]  # of a process that was killed
            made = going[-1]._trial_id if going else place.create_new_trial(kept._study_id)
            self.trial = made
        else:
            return
        for key, value in self.attributes.items():
            place.set_trial_user_attr(self.trial, key, value)
        view: Any = _Alike(place, self.trial, self.attributes)
        self.study = optuna.Study(study, view, pruner=self.pruner)

    def __call__(self, history: list[dict[str, Any]]) -> Pruned | None:
        """Report what is new in the history of a run, epoch by epoch, and ask about each: of recorded epochs, too, the
        first at which it falls behind decides, so that a run that goes on ends where one without a break does."""
        if self.study is None:
            return None
        try:
            for row in history[self.seen :]:
                self.seen += 1
                if self._report(row):
                    return Pruned(row["epoch"], self._record(history[: self.seen]))
        except Exception as error:  # a storage raises what its back end raises
            self._lose(error)
        return None

    def _report(self, row: Mapping[str, Any]) -> bool:
        """Whether the run falls behind at this epoch."""
        assert self.study is not None
        value, storage = row.get(self.metric), self.study._storage
        if self.metric not in row:
            about = "pruner=%s: epoch %s was reported without %s, by which runs are compared: it is not judged"
            log.warning(about, self.name, row["epoch"], self.metric)
        if value is None or not math.isfinite(value):  # it is undefined for all of the validation part: nothing is said
            return False
        if row["epoch"] < (storage.get_trial(self.trial).last_step or 0):
            return False  # it passed here in a process that was killed later
        storage.set_trial_intermediate_value(self.trial, row["epoch"], float(value))
        return self.study.pruner.prune(self.study, storage.get_trial(self.trial))

    def _record(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """What pruned.json holds: when, by what, and against which runs."""
        assert self.study is not None
        row = history[-1]
        epoch, value = row["epoch"], row[self.metric]
        others = [t for t in self.study.get_trials(deepcopy=False) if t._trial_id != self.trial]
        against = [
            {"name": t.user_attrs["name"], "signature": t.user_attrs["signature"], "trial": t.number}
            | {"state": t.state.name.lower(), "value": t.intermediate_values[epoch]}
            for t in others
            if epoch in t.intermediate_values
        ]
        against.sort(key=lambda other: -self.sign * other["value"])
        better = sum(self.sign * (other["value"] - value) > 0 for other in against)
        form = self.about.format
        reason = f"after epoch {epoch} of {self.epochs} by {self.name}: {self.metric} {value:{form}}"
        earlier = [r for r in history[:-1] if r.get(self.metric) is not None and math.isfinite(r[self.metric])]
        best = max(earlier, key=lambda r: self.sign * r[self.metric], default=row)
        if self.sign * (best[self.metric] - value) > 0:
            reason += f" (its best {best[self.metric]:{form}} in epoch {best['epoch']})"
        if against:
            reason += f"; {better} of {len(against)} like it were better there, the best {against[0]['value']:{form}}"
        record = {"status": "pruned", "epoch": epoch, "epochs": self.epochs, "value": value} | self.settings
        record |= {"reason": reason, "name": self.name, "study": self.study.study_name, "trial": self._number()}
        record |= {"sweep": self.sweep.name if self.sweep else None, "alike": self.attributes["alike"]}
        return record | {"against": against, "created": now()}

    def _number(self) -> int:
        assert self.study is not None
        return self.study._storage.get_trial(self.trial).number

    def end(self, state: str, history: list[dict[str, Any]] = []) -> None:  # noqa: B006
        """Close the run's trial as COMPLETE, PRUNED or FAIL after its last reports; a search closes its own."""
        if self.study is None:
            return
        from optuna.trial import TrialState

        while self(history):  # all is reported, whatever the verdicts
            pass
        try:
            if self.study is not None and OmegaConf.select(self.cfg, "search.trial") is None:
                place = self.study._storage
                last = place.get_trial(self.trial).intermediate_values
                values = [last[max(last)]] if last and state != "FAIL" else None
                place.set_trial_state_values(self.trial, TrialState[state], values)
        except Exception as error:  # a storage raises what its back end raises
            self._lose(error)
        self.study = None

    def _lose(self, error: Exception) -> None:
        self.study = None
        reason = first_line(error)
        log.warning("pruner=%s: its study is out of reach, so this run is not pruned: %s", self.name, reason)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class _Alike:
    """A storage that shows of its trials those that a run may be compared with; all else passes through."""

    def __init__(self, storage: "optuna.storages.BaseStorage", trial: int, attributes: Mapping[str, str]):
        self._storage, self._trial, self._attributes = storage, trial, attributes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[Any]:
        """One trial for each run: a run that was tried twice, or asked for twice, is one run."""
        found = {}
        for trial in self._storage.get_all_trials(study_id, deepcopy=deepcopy):
            about = trial.user_attrs
            mine = about.get("signature") == self._attributes["signature"]
            if about.get("alike") == self._attributes["alike"] and (not mine or trial._trial_id == self._trial):
                found[about["signature"]] = trial
        return [trial for trial in found.values() if states is None or trial.state in states]
