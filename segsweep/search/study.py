"""The study behind a search: which trials count, who works on them, and what becomes of those whose process died.

Several processes, on one machine or many, work on one study through its storage alone. Optuna numbers trials without
gaps or doubles, so a rule over those numbers makes the total exact: all see the same trials and reach the same verdict.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from segsweep.core import locks
from segsweep.core.errors import ConfigError, SegsweepError
from segsweep.core.masks import first_line, learn, masked

BEAT = 10.0
"""Seconds between two signs of life that a process leaves on its running trials."""
GRACE = 60.0
"""Seconds without one after which a process on another machine is taken for dead; on the same machine a lock tells."""
ASKED = "segsweep"
"""Attribute of a study: what it searches, so that another search does not go on with it."""


class StorageGone(SegsweepError):
    """The storage cannot be reached any more."""


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns what a storage raises that is not there into StorageGone."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, OSError) as error:
        raise StorageGone(f"search.storage={shown(url)}: cannot be reached: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The first line of what lies beneath: Optuna's own says only that something happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def shown(url: str) -> str:
    """A storage's address without its password."""
    return masked(url)


def open_storage(url: str) -> BaseStorage:
    """`sqlite:///FILE`, `journal:///FILE` (relative; four slashes: absolute), or any URL that Optuna takes.

    Raises ConfigError with the reason where it cannot be opened."""
    if "://" not in url:
        raise ConfigError(
            f"search.storage={url}: an address is needed, such as sqlite:///mlruns/optuna.db, "
            "journal:///mlruns/optuna.log or postgresql://HOST/DATABASE"
        )
    learn(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind, _, rest = url.partition("://")
    file = Path(rest.removeprefix("/").partition("?")[0])
    if not file.name:
        raise ConfigError(f"search.storage={shown(url)}: names no file or database")
    try:
        if kind == "journal":
            file.parent.mkdir(parents=True, exist_ok=True)
            _whole(file)
            return JournalStorage(
                JournalFileBackend(str(file.absolute()))
            )  # of a job another folder may be the working one
        if kind.startswith("sqlite"):
            with locks.made(file, locks.share):
                return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        limits = {"connect_args": {"connect_timeout": 10}} if kind.startswith("postgresql") else {}
        # SQLAlchemy's own choice has become psycopg 3, which the extra does not have
        driver = f"postgresql+psycopg2://{rest}" if kind == "postgresql" else url
        for _ in range(2):  # two processes that make the tables of one new database at once: one of them fails
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                return RDBStorage(driver, engine_kwargs={"pool_pre_ping": True} | limits)
            time.sleep(1)
        return RDBStorage(driver, engine_kwargs={"pool_pre_ping": True} | limits)
    except Exception as error:  # a driver that is not installed, a folder that cannot be written, a server that is away
        hint = "; pip install 'segsweep[postgres]'" if "psycopg2" in str(error) and "install" in str(error) else ""
        raise ConfigError(f"search.storage={shown(url)}: cannot be opened: {reason(error)}{hint}") from error


def give_back(storage: BaseStorage) -> None:
    """Close what a storage holds open; used again it opens anew."""
    if engine := getattr(storage, "engine", None):  # of a database; a journal's file is open while it is read
        engine.dispose()


def _whole(journal: Path) -> None:
    """Raises OSError where the last line has no end: what is written next would be lost with it."""
    for _ in range(10):  # another process may be writing it now
        if not journal.exists() or not (size := journal.stat().st_size):
            return
        with journal.open("rb") as file:
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
        time.sleep(0.1)
    raise OSError("its last line is cut off, of a process that was killed; without that line the study is whole")


class Seeded(BaseSampler):
    """A sampler made anew for each trial, with a seed of the trial's number: what it suggests depends on the study and
    the number alone, so a search that was interrupted goes on as it would have, and two processes do not draw alike.

    make: (seed, how many of the latest points in a row the study had already) -> sampler."""

    def __init__(self, make: Callable[[int, int], BaseSampler], seed: int):
        self.make, self.seed, self.inner = make, seed, make(seed, 0)
        self.repeats = 0

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        seed = int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0])
        self.inner = self.make(seed, self.repeats)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, Any]) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        return self.inner.sample_independent(study, trial, name, distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        try:
            self.make(self.seed, 0).after_trial(study, trial, state, values)
        except RuntimeError as error:
            if "Study.stop" not in str(error):  # the samplers of finite spaces mean Study.optimize, which is not used
                raise


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of a study that count, those not withdrawn; one that was put back has the place of its first try."""
    heirs: dict[int, int] = {}
    for trial in trials:
        if "instead_of" in trial.user_attrs:
            heirs.setdefault(trial.user_attrs["instead_of"], trial.number)
    kept = [
        t
        for t in trials
        if "withdrawn" not in t.user_attrs
        and t.number not in heirs
        and heirs.get(t.user_attrs.get("instead_of", -1), t.number) == t.number
    ]
    return sorted(kept, key=lambda trial: trial.user_attrs.get("origin", trial.number))


class Study:
    """One search's part in a study.

    name, url: of the study and its storage. directions: `maximize` or `minimize` of each objective. asked: what is
    searched, flat, key -> text; a study of another search under this name is refused (ConfigError).
    owner: the folder of this process' sweep, which is locked while the process lives."""

    def __init__(
        self, name: str, url: str, sampler: BaseSampler, directions: list[str], asked: dict[str, str], owner: Path
    ):
        self.name, self.url = name, url
        self.owner = {"host": _host(), "folder": str(owner.absolute()), "id": secrets.token_hex(4)}
        self.mine: dict[int, Trial] = {}
        self._silent: dict[tuple[int, Any], float] = {}
        self._over = threading.Event()
        storage = open_storage(url)
        with reaching(url):
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                sampler=sampler,
                directions=directions,  # type: ignore[arg-type]
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )
            self._same(directions, asked)

    def _same(self, directions: list[str], asked: dict[str, str]) -> None:
        there = [direction.name.lower() for direction in self.study.directions]
        known = self.study.user_attrs.get(ASKED)
        differ = [] if there == directions else [f"direction: {', '.join(there)} there, {', '.join(directions)} here"]
        if known is None and self.trials():
            differ.append("made by another program")
        for key in sorted({*(known or asked), *asked}):
            old, new = (known or asked).get(key, "none"), asked.get(key, "none")
            if old != new:
                differ.append(f"{key}: {old} there, {new} here")
        if differ:
            raise ConfigError(
                f"search.study={self.name}: {shown(self.url)} has a study of this name for another search. "
                + "".join(f"\n  {line}" for line in differ)
                + "\nGive this one another name, or leave search.study out: then it is named by what it searches."
            )
        if known is None:
            self.study.set_user_attr(ASKED, asked)

    def trials(self) -> list[FrozenTrial]:
        with reaching(self.url):
            return sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number)

    @contextlib.contextmanager
    def attended(self) -> Iterator[None]:
        """While trials are worked on: signs of life, and in the end what is left of this process is put back."""
        beating = threading.Thread(target=self._beat, name="search", daemon=True)
        beating.start()
        try:
            yield
        finally:
            self._over.set()
            beating.join()
            with contextlib.suppress(StorageGone):
                for number in list(self.mine):
                    self.put_back(number)

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT):
            count += 1
            for trial in list(self.mine.values()):
                with contextlib.suppress(Exception):  # it has just ended, or the storage is gone, which others notice
                    trial.set_user_attr("beat", count)

    def claim(self, total: int) -> Trial | None:
        """A trial to work on: one that was put back, else a new one; None while `total` trials count."""
        while True:
            first = counted(self.revive())[:total]
            if len(first) == total and not any(t.state is TrialState.WAITING for t in first):
                return None
            with reaching(self.url):
                trial = self.study.ask()
                trial.set_user_attr("owner", self.owner)
            self.mine[trial.number] = trial
            if trial.number in [t.number for t in counted(self.trials())[:total]]:
                return trial
            self.withdraw(trial, "another process was quicker")

    def withdraw(self, trial: Trial, why: str) -> None:
        """Close a trial that nobody is to work on: Optuna cannot delete it, so it is FAIL and does not count."""
        with reaching(self.url):
            trial.set_user_attr("withdrawn", why)
            storage = self.study._storage
            if "grid_id" in storage.get_trial_system_attrs(
                trial._trial_id
            ):  # else the grid's sampler would hold this point to be done
                storage.set_trial_system_attr(trial._trial_id, "grid_id", -1)
            self.study.tell(trial, state=TrialState.FAIL)
        del self.mine[trial.number]

    def tell(
        self, trial: Trial, state: TrialState, values: list[float] | None, facts: dict[str, Any], over: dict[str, float]
    ) -> bool:
        """How a trial ended; False where another process had taken this one for dead and put its trial back.

        facts: attributes for readers. over: by how much each constraint is exceeded, feasible at 0 or below."""
        del self.mine[trial.number]
        try:
            with reaching(self.url):
                for key, value in facts.items():
                    trial.set_user_attr(key, value)
                for key, value in over.items():
                    trial.set_constraint(key, value)
                self.study.tell(trial, values, state)
        except (ValueError, UpdateFinishedTrialError) as error:
            if isinstance(error, ValueError) and "Cannot tell a" not in str(error):
                raise
            return False
        return True

    def best(self) -> list[FrozenTrial]:
        """The best trial within all limits, or those of the Pareto front; none where none is complete."""
        with reaching(self.url):
            try:
                return [self.study.best_trial] if len(self.study.directions) == 1 else self.study.best_trials
            except ValueError:
                return []

    def put_back(self, number: int) -> None:
        """Close a trial that nobody works on any more, and queue its point again under a new number.

        The heir comes first: from then on the old trial does not count, whoever dies in between. Of two heirs made at
        once the first counts."""
        self.mine.pop(number, None)
        with reaching(self.url):
            trials = self.trials()
            trial = next(t for t in trials if t.number == number)
            if not any(t.user_attrs.get("instead_of") == number for t in trials):
                attributes = {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints")}
                origin = trial.user_attrs.get("origin", number)
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        params=trial.params,
                        distributions=trial.distributions,
                        user_attrs={"instead_of": number, "origin": origin},
                        system_attrs=attributes,
                    )
                )
            with contextlib.suppress(ValueError, UpdateFinishedTrialError):  # another process was quicker
                self.study.tell(number, state=TrialState.FAIL)

    def revive(self) -> list[FrozenTrial]:
        """All trials, after those of dead processes have been put back."""
        trials = self.trials()
        dead = [t for t in trials if t.state is TrialState.RUNNING and t.number not in self.mine and self._dead(t)]
        for trial in dead:
            self.put_back(trial.number)
        return self.trials() if dead else trials

    def _dead(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner") or {}
        if owner.get("host") == self.owner["host"]:
            if owner["folder"] == self.owner["folder"]:
                return owner["id"] != self.owner["id"]  # an earlier process: this one holds the lock now
            place = Path(owner["folder"])
            if (place / "lock").exists() and (alive := locks.held(place)) is not None:
                return not alive
        sign = trial.number, trial.user_attrs.get("beat")
        return time.monotonic() - self._silent.setdefault(sign, time.monotonic()) > GRACE


def _host() -> str:
    """This machine, since it was started."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()
