"""One process' part in a search: the loop over free workers, and what each trial came to."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, Trial, TrialState

from segsweep.config import whitelist
from segsweep.config.components import spec_of, task_class
from segsweep.config.compose import Composer
from segsweep.config.conditions import Term, condition, values
from segsweep.config.schema import engine, under
from segsweep.core import artifacts, locks
from segsweep.core.errors import SegsweepError, printable
from segsweep.core.masks import reference
from segsweep.core.session import session
from segsweep.core.signature import IGNORED, OWN, deciding, digest, leaves, left_out, without
from segsweep.plugins._jobs import launch
from segsweep.search import objective
from segsweep.search.objective import direction
from segsweep.search.sampler import make_sampler
from segsweep.search.space import Foreign, read_space, watched
from segsweep.search.study import Seeded, StorageGone, Study, counted, reaching, shown
from segsweep.sweeps.command import command
from segsweep.task import Spec
from segsweep.tracking.store import STATE

LIMITS = {"max_seconds": "training_seconds", "max_parameters": "parameters", "max_gflops": "gflops"}
"""Of `search`, and the fact of a run that each bounds."""
REPEATS = 20
"""Points in a row that the study has already, after which the next is taken all the same: a space may have no end."""
LOOK = 1.0
"""Seconds between two looks at what other processes do."""
BATCH = 2
"""Trials at once with a launcher that takes batches only, where n_jobs does not say: as the published sweeper."""


def _of_the_engine(group: str) -> bool:
    """A group whose option decides no number, or says so in other keys."""
    return group.startswith(("hydra/", f"{OWN}/")) or group in ("pruner", "tracking", "search", "experiment")


class Search:
    """`sweeper`: a SearchSweeper that was set up. Raises HydraException where anything is wrong, before any job."""

    def __init__(self, sweeper: Any, arguments: list[str]):
        self.config, self.launcher = sweeper.config, sweeper.launcher
        self.compose = Composer(sweeper.hydra_context.config_loader, sweeper.config)
        self.settings: dict[str, Any] = sweeper.settings
        for key, least, most in (("n_jobs", 1, math.inf), ("n_trials", 1, math.inf), ("max_failure_rate", 0, 1)):
            if (value := self.settings[key]) is not None and not least <= value <= most:
                raise CompactHydraException(f"hydra.sweeper.{key}={value}: must be from {least} to {most}")
        self.engine, at = engine(self.config), under(self.config)
        asked = self.asked = self.engine.search
        self.at = f"{at}search."
        self.folder = Path(self.config.hydra.sweep.dir)
        own = tuple(f"{self.at}{key}" for key in ("study", "storage", "trial"))
        arguments = [a for a in arguments if a.lstrip("+").partition("=")[0] not in own]
        self.space = read_space(self.settings["params"], list(asked.when), arguments, f"{self.at}when")
        self.conditions = [condition(where, f"{self.at}when") for where, _, _ in self.space.when]
        self.names = list(asked.objective)
        self.spec = self._spec()
        self.over_budget = False
        self.waited: list[int] = []
        self.drawn: dict[int, dict[str, Any]] = {}
        self.told: set[int] = set()
        choices = self.config.hydra.runtime.choices
        sampler = str(choices.get("hydra/sweeper/sampler"))
        self.sampler = Seeded(make_sampler(self.settings["sampler"], self.space, asked.seed, self._known), asked.seed)
        fixed = {key: str(value) for key, value in self._fixed()}
        goal = {f"{self.at}objective": ", ".join(self.names), f"{self.at}epoch": str(asked.epoch)}
        # a trial's record says by how much it is over the limits of its day
        goal |= {f"{self.at}{key}": str(asked[key]) for key in LIMITS if asked[key]}
        identity = self.space.texts() | fixed | goal
        name = self.settings["study_name"] or f"{sampler}-{digest([identity, sampler, asked.seed])[:8]}"
        directions = self._directions()
        url = self.settings["storage"]
        self.study = Study(name, url, self.sampler, directions, identity, self.folder)
        self.total = int(min(self.settings["n_trials"], self.space.size))
        if self.total < self.settings["n_trials"]:
            session().emit("text", text=f"The space has {self.total} points: the search ends when all are known")
        facts = {"study": name, "storage": shown(url), "sampler": sampler, "objective": self.names}
        facts |= {"epoch": asked.epoch, "directions": directions, "trials": self.total, "seed": asked.seed}
        if lead := session().sweep:
            lead.note(search=facts | {"space": self.space.texts()})

    def _spec(self) -> Spec:
        """Of the task as all trials have it; Hydra gives a sweeper its own overrides alone."""
        made = task_class(self.config)
        if all(made.spec.metric(name) for name in self.names if "/" in name) or not hasattr(made, "spec_for"):
            return made.spec
        return spec_of(self.compose([f"{key}={value}" for key, value in self.space.fixed.items()])) or made.spec

    def _directions(self) -> list[str]:
        directions = [direction(name, self.spec) for name in self.names]
        given = self.settings["direction"]
        if given is not None:
            listed = [given] if isinstance(given, str) else list(given)
            if [str(getattr(d, "name", d)) for d in listed] != directions:
                raise CompactHydraException(
                    f"hydra.sweeper.direction={given}: {', '.join(self.names)} is to {', '.join(directions)}; "
                    "leave hydra.sweeper.direction out"
                )
        return directions

    def _fixed(self) -> Iterator[tuple[str, Any]]:
        """What all trials have in common and decides their numbers, flat; not what is searched."""
        keys = {key.lstrip("+") for key in [*self.space.searched, *(key for _, key, _ in self.space.when)]}
        config: Any = OmegaConf.to_container(self.config, resolve=False)
        config.pop("hydra")
        choices = self.config.hydra.runtime.choices
        own = [
            g for g in choices if isinstance(node := config.get(g), dict) and "_target_" in node and g not in IGNORED
        ]
        groups = dict.fromkeys([*whitelist.groups(), *own])
        if session().door:
            groups = dict.fromkeys(str(g) for g in choices if not _of_the_engine(str(g)))
        yield from ((group, choices[group]) for group in groups if group not in keys and group in choices)

        ignored = left_out(under(self.config), self.spec)
        for name, value in leaves(without(deciding(config, self.spec), (*ignored, *keys))):
            if value != {} and not name.rpartition(".")[2].startswith("_"):
                yield name, value
        for key, value in self.space.fixed.items():
            name = key.lstrip("+")
            if not any(name == other or name.startswith(f"{other}.") for other in (*ignored, "hydra")):
                yield name, value

    def run(self) -> list[Any]:
        work = self._keep_busy if hasattr(self.launcher, "submit") else self._in_batches
        try:
            with self.study.attended():
                self._settle(at_start=True)
                self._take_up_pruned()
                work()
                self._close()
        except StorageGone as gone:
            lead = session().sweep
            raise CompactHydraException(
                f"{gone}\nThe search stops; what ran went on to its end and is recorded. "
                f"To go on when the storage is back: {lead.asked if lead else command()}"
            ) from None
        finally:
            self._settle()
        return []

    def _take_up_pruned(self) -> None:
        """Without a pruner, trials that one ended are taken to their end."""
        if OmegaConf.select(self.engine, "pruner._target_"):
            return
        if pruned := [t.number for t in self._first() if t.state is TrialState.PRUNED]:
            for number in pruned:
                self.study.put_back(number)
            session().emit("text", text=f"Taken up where a pruner ended them: trials {', '.join(map(str, pruned))}")

    def _settle(self, at_start: bool = False) -> None:
        """Mend what runs and MLflow say of trials that ended in a process that was stopped or killed."""
        with contextlib.suppress(StorageGone):
            ended = {trial.number: trial.state for trial in self.study.revive() if trial.state.is_finished()}
            for file in Path(self.engine.paths.runs).glob("runs/*/trial.json"):
                known = artifacts.read_json(file) or {}
                mine = known.get("study") == self.study.name and known["number"] in ended
                late = known.get("state") == "RUNNING" or (at_start and not self._copied(file.parent, known))
                if mine and late and locks.held(file.parent) is False:
                    self._note(file.parent, known["number"], ended[known["number"]])

    def _copied(self, run: Path, trial: dict[str, Any]) -> bool:
        """Whether MLflow has the end of a trial's run, as far as it is asked to."""
        state = artifacts.read_json(run / STATE) or {}
        done = state.get("trial") == trial and state.get("status") not in (None, "running")
        return self.engine.tracking.uri is None or done

    def _note(self, run: Path, number: int, state: TrialState) -> None:
        """Say in a run's record what became of its trial."""
        from segsweep.tracking.copying import Mirror

        with contextlib.suppress(OSError):  # a full disk: the study has it
            artifacts.write_json(run / "trial.json", {"study": self.study.name, "number": number, "state": state.name})
        if (run / "run.json").exists():
            Mirror(run, self.engine.tracking, self.folder).__exit__()

    def _keep_busy(self) -> None:
        """A free worker has a new trial at once."""
        slots = self.settings["n_jobs"] or len(self.launcher.slots)
        running: dict[int, Trial] = {}
        try:
            while True:
                while len(running) < slots and (trial := self._next()):
                    running[trial.number] = trial
                    self.launcher.submit(self._overrides(trial), trial.number)
                if running:
                    number, result = self.launcher.wait()
                    self._tell(running.pop(number), number, result)
                elif not self._others():
                    return
        except StorageGone:
            while running:
                running.pop(self.launcher.wait()[0])
            raise
        except CompactHydraException:  # given up: nobody waits for what still runs
            getattr(self.launcher, "_abort", lambda: None)()
            raise

    def _in_batches(self) -> None:
        """For launchers that take many jobs at once and give all results together."""
        number = None
        while True:
            batch: list[Trial] = []
            while len(batch) < (self.settings["n_jobs"] or BATCH) and (trial := self._next()):
                batch.append(trial)
            if batch:
                number = batch[0].number if number is None else number
                results = launch(self.launcher, [self._overrides(t) for t in batch], number)
                for trial, result in zip(batch, results, strict=True):
                    self._tell(trial, number, result)
                    number += 1
            elif not self._others():
                return

    def _others(self) -> bool:
        """Wait a moment for the trials of other processes, to take them over from those that die; False: none runs."""
        running = [t.number for t in self._first() if t.state is TrialState.RUNNING]
        if running and not self.over_budget and running != self.waited:
            self.waited = running
            session().emit("text", text=f"Waiting for trials of other processes: {', '.join(map(str, running))}")
        if session().wait(LOOK if running else 0):
            raise KeyboardInterrupt
        return bool(running) and not self.over_budget

    def _first(self) -> list[FrozenTrial]:
        return counted(self.study.trials())[: self.total]

    def _known(self) -> list[dict[str, Any]]:
        """The points that the study has, and of one that is just being asked for as much as it has."""
        return [t.params for t in self._first() if t.state is not TrialState.FAIL]

    def _next(self) -> Trial | None:
        """A trial with all its values, of a point that the study does not have yet."""
        while not self.over_budget and not session().stopping() and (trial := self.study.claim(self.total)):
            with reaching(self.study.url):
                try:
                    self._suggest(trial)
                except Foreign as odd:
                    self.study.withdraw(trial, str(odd))
                    text = f"Trial {trial.number}, which somebody has queued, is not of this search and left out: {odd}"
                    session().emit("text", text=printable(text))
                    continue
            first = self._first()
            known = [t for t in first if t.number < trial.number and t.state is not TrialState.FAIL]
            # not of `trial`, to which the thread that beats writes
            instead = any("instead_of" in t.user_attrs for t in first if t.number == trial.number)
            again = [t for t in known if t.params == trial.params and not instead]
            if not again or self.sampler.repeats == REPEATS:
                self.sampler.repeats = 0
                elsewhere = [t for t in first if t.state.is_finished() and t.number not in self.told]
                session().emit("total", jobs=self.total, before=len(elsewhere))
                return trial
            self.study.withdraw(trial, f"the point of trial {again[0].number}")
            self.sampler.repeats += 1
        return None

    def _suggest(self, trial: Trial) -> None:
        """Draw all values of a trial. One that was queued has some already, of anybody who can write to the storage:
        raises Foreign where a key is none of this search's, or a value none that it could have drawn."""
        there: dict[str, Any] = trial._fixed_params | trial.params
        drawn = self.drawn[trial.number] = {}
        watched(trial, drawn, there)
        for key, found in self.space.searched.items():
            trial._suggest(key, found)
        for terms, (_, key, found) in zip(self.conditions, self.space.when, strict=True):
            if self._met(terms, self._point(trial)):
                trial._suggest(key, found)
        if extend := self.settings["custom_search_space"]:
            instantiate({"_target_": extend, "_partial_": True}, _execution_whitelist_=whitelist.own())(
                self.config, trial
            )
        if odd := there.keys() - {*drawn, *(key for _, key, _ in self.space.when)}:
            raise Foreign(", ".join(sorted(odd)))

    def _met(self, terms: list[Term], point: list[str]) -> bool:
        keys = {term.key for term in terms}
        found = values(point, keys, self.compose, f"{self.at}when")
        return all(term.holds(found[term.key]) for term in terms)

    def _point(self, trial: Trial) -> list[str]:
        given = self.drawn[trial.number] | self.space.fixed  # not trial.params, which anybody may have written
        return [*(f"{key}={value}" for key, value in given.items()), *self.space.deleted]

    def _overrides(self, trial: Trial) -> list[str]:
        named = ((f"{self.at}study", self.study.name), (f"{self.at}storage", reference(self.study.url)))
        place = [f"{key}={QuotedString(text, Quote.single).with_quotes()}" for key, text in named]
        return [*self._point(trial), *place, f"{self.at}trial={trial.number}"]

    def _tell(self, trial: Trial, number: int, result: JobReturn) -> None:
        """Tell the study what became of a trial, from the record of its job."""
        self.told.add(trial.number)
        place = self.folder / str(number)
        entry = artifacts.read_json(place / "job.json") or {}
        status = "failed" if result.status is JobStatus.FAILED else entry.get("status", "failed")
        if status in ("interrupted", "not started"):
            self.over_budget = True
            self.study.put_back(trial.number)
            return
        run = (place / entry["run"]).resolve() if entry.get("run") else None
        facts = {key: entry[key] for key in ("signature", "error") if entry.get(key)} | {"status": status}
        state, found = TrialState.FAIL, None
        if status == "pruned":
            state = TrialState.PRUNED
        elif status in artifacts.WHOLE and run:
            try:
                found = objective.values(run, self.names, self.asked.epoch, self.spec)
                state = TrialState.COMPLETE
            except SegsweepError as error:
                facts["error"] = str(error)
                session().emit("text", text=f"trial {trial.number}: {error}")
        if not self.study.tell(trial, state, found, facts, self._exceeded(run) if run else {}):
            session().emit("text", text=f"trial {trial.number}: another process had taken it over")
        elif run:
            self._note(run, trial.number, state)
        self._give_up()

    def _exceeded(self, run: Path) -> dict[str, float]:
        """By how much of itself each limit is exceeded; feasible at 0 or below."""
        facts = (artifacts.read_json(run / "run.json") or {}) | (artifacts.read_json(run / "result.json") or {})
        limits = {name: (self.asked[name], facts.get(key)) for name, key in LIMITS.items()}
        return {name: found / limit - 1 for name, (limit, found) in limits.items() if limit and found is not None}

    def _give_up(self) -> None:
        if self.settings["max_failure_rate"] >= 1:
            return
        ended = [t.state for t in self._first() if t.state.is_finished()]
        share = ended.count(TrialState.FAIL) / max(len(ended), 1)
        if share > self.settings["max_failure_rate"]:
            raise CompactHydraException(
                f"{ended.count(TrialState.FAIL)} of {len(ended)} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.settings['max_failure_rate']} allows: the search stops"
            )

    def _close(self) -> None:
        trials = self._first()
        states = [t.state.name.lower() for t in trials]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        text = f"Study {self.study.name}: {len(trials)} of {self.total} trials ({counts})"
        best = self.study.best()
        if best and len(self.names) == 1:
            text += f"; {self._describe(best[0])}"
        elif best:
            text += f"; {len(best)} on the Pareto front:" + "".join(f"\n  {self._describe(t)}" for t in best)
        session().emit("text", text=text)

    def _describe(self, trial: FrozenTrial) -> str:
        scores, about = zip(self.names, trial.values, strict=True), objective.objectives(self.spec)
        score = ", ".join(f"{name} {value:{about[name].format}}" for name, value in scores)
        return printable(
            f"best {score} in trial {trial.number}: {' '.join(f'{k}={v}' for k, v in trial.params.items())}"
        )
