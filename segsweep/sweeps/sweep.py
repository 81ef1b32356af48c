"""A sweep's own record: what was asked, its MLflow parent run, and the table at its end.

Hydra turns an exception in a callback into a warning, so the callback only opens the record; it is closed by `finish`,
which the command calls itself.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.compose import choices_of
from segsweep.config.schema import engine, resolved, under
from segsweep.core import artifacts, locks
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import KEYS, first_line, hide, learn, masked
from segsweep.core.program import pasted, typed
from segsweep.core.session import Interrupted, importing, session, thread
from segsweep.sweeps.command import look, milestones, named, program, raw
from segsweep.sweeps.entry import ROOM, interrupted
from segsweep.task import Spec
from segsweep.tracking.store import Columns, columns, database

log = logging.getLogger(__name__)

FIRST_JOB_TRAINS = 8.0
"""Seconds after which nobody waits for this process any more."""
NICE = 5
SHORT = 5.0
"""Seconds that the last word to MLflow has in any case."""


class Sweep:
    """The sweep that this process leads, from the command to the table at its end.

    expected: number of its jobs; None where a search decides. asked: the command line, as one would type it. folder:
    None before Hydra has composed where it is."""

    def __init__(self, expected: int | None = None, asked: str = "") -> None:
        self.expected, self.asked = expected, asked
        self.folder: Path | None = None
        self.overrides: list[str] = []  # the whole command line's
        self.reported = True
        self.spec: Spec | None = None  # of the task that the command line chooses
        self.plus = ""  # before `experiment=`, of an application that has no such group
        self.repeats = {"seed"}  # keys whose values make repeats
        self.parent = False
        self.storage: str | None = None  # of its study, with the password that its records leave out
        self._opening: threading.Thread | None = None
        self._preparing: threading.Timer | None = None
        self._imported = threading.Event()
        self._noting = threading.Lock()
        self._abandoned = False
        self._held = contextlib.ExitStack()

    def open(self, folder: Path, config: DictConfig, parent: bool) -> None:
        """Begin its record. `parent`: whether MLflow is to have a run for it, beside those of its jobs."""
        from segsweep.config import components  # not for what only answers

        own = engine(config)
        self.reported, self.spec = own.report, components.spec_of(config)
        self.storage = OmegaConf.select(own, "search.storage")
        learn(*(OmegaConf.select(own, key) for key in KEYS))
        self.parent, self.repeats = parent, {f"{under(config)}seed", *(self.spec.repeats if self.spec else ())}
        self.plus = "+" if under(config) and "experiment" not in config.hydra.runtime.choices else ""
        try:
            self._held.enter_context(locks.lock(folder))  # while it is held, the sweep is alive
            self.folder = folder
            self._begin(folder, config, parent)
        except Interrupted:  # of another command in this folder, which is waited for: nothing here is this one's
            raise KeyboardInterrupt from None
        except (SegsweepError, OSError) as error:
            print(error if isinstance(error, SegsweepError) else artifacts.full(error, folder), file=sys.stderr)
            raise SystemExit(1) from None  # Hydra would make a warning of the error, and go on

    def _begin(self, folder: Path, config: DictConfig, parent: bool) -> None:
        # of another sweep, in a folder that was named by hand
        for earlier in (*folder.glob("*/job.json"), *folder.glob(f"{artifacts.PRUNING}*")):
            earlier.unlink()
        tracking, overrides = engine(config).tracking, raw(config.hydra.overrides.task)
        self.overrides = overrides
        record: dict[str, Any] = {"name": folder.name, "command": masked(self.asked), "finished": None}
        record["overrides"] = [masked(override) for override in overrides]
        record |= {
            "started": artifacts.now(),
            "jobs": self.expected,
            "milestones": milestones(overrides, f"{under(config)}epochs"),
        }
        record["mlflow"] = None
        if tracking.uri:
            record["mlflow"] = {"uri": tracking.uri, "experiment": tracking.experiment, "run_id": None, "error": None}
            file = database(tracking.uri)
            record["mlflow"] |= {"parent": parent, "new": bool(file and not file.exists())}
        artifacts.write_json(folder / "sweep.json", record)
        (folder / ROOM).write_bytes(os.urandom(2**16 + 2**12 * min(self.expected or 64, 256)))
        if self.reported and parent:
            self._preparing = threading.Timer(FIRST_JOB_TRAINS, _prepare)
            self._preparing.daemon = True
            self._preparing.start()
        if tracking.uri and parent:
            # the first job need not wait for a new database
            self._opening = thread(
                self._open_parent, folder.absolute(), record, _columns(config, self.spec), name="mlflow parent"
            )

    def _open_parent(self, folder: Path, record: dict[str, Any], shown: Columns | None) -> None:
        place = record["mlflow"]
        from segsweep.tracking.copying import copier
        from segsweep.tracking.mirrors import close_dead, start_parent
        from segsweep.tracking.store import load

        copier().at_once()  # MLflow is imported here in any case
        try:
            _behind_the_jobs()
            load()
            self._imported.set()
            close_dead(place["uri"], place["experiment"], folder.parent)
            about = record["name"], record["command"]
            place["run_id"] = start_parent(place["uri"], place["experiment"], *about, shown)
        except Exception as error:  # MLflow is a mirror: the sweep runs without it
            place["error"] = first_line(error)
        finally:
            self._imported.set()
        if self._abandoned:
            _take_back(place)
        with contextlib.suppress(OSError):  # a full disk: the end of the sweep says so
            self.note(mlflow=place)

    def note(self, **facts: Any) -> None:
        """Add to its record, where it has one."""
        with self._noting:
            if (file := self._file) and not self._abandoned:
                artifacts.write_json(file, self._record() | facts)

    @property
    def _file(self) -> Path | None:
        """Its record, where it was begun."""
        return Path(session().place or "", self.folder, "sweep.json") if self.folder else None

    def _record(self) -> dict[str, Any]:
        return (artifacts.read_json(file) or {}) if (file := self._file) else {}

    def release(self) -> None:
        """Its folder, for another command or the next call of this process."""
        self._held.close()

    def abandon(self) -> bool:
        """Whether nothing was begun in it; then no record stays."""
        if not (folder := self.folder):
            return True
        if any(folder.glob("*/job.json")):
            return False
        if self._preparing:
            self._preparing.cancel()
        if self._opening:
            self._opening.join(SHORT)
        with self._noting:
            place, self._abandoned = self._record().get("mlflow") or {}, True
        _take_back(place)
        with contextlib.suppress(OSError):  # somebody's own folder, which is not empty, or one that was never made
            for name in ("sweep.json", "lock", ROOM):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        return True

    def finish(self, stopped: bool) -> int:
        """Close the record, print the table and where everything is; the exit code: 0, 1 where a job failed, 130 where
        it was stopped."""
        if not (folder := self.folder):
            return 130 if stopped else 0
        if self._preparing:  # two threads that import the same modules in different order would get halves of them
            self._preparing.cancel()
            self._preparing.join()
        if self._opening:  # for the same reason
            self._imported.wait()
        elif copier := session().copier:  # a run that was short has only begun to import MLflow
            copier.settle()
        from segsweep.report.records import read
        from segsweep.report.table import table

        (folder / ROOM).unlink(missing_ok=True)
        interrupted(folder)
        ended = artifacts.jobs(folder)
        bad = [job for job in ended if job["status"] not in artifacts.DONE]
        record = read([folder])
        text = table(record.jobs, spec=record.spec if any(run.info for run in record.runs) else self.spec)
        print(text)
        try:
            self.note(finished=None if stopped else artifacts.now())
            artifacts.write_text(folder / "table.txt", text)
        except OSError as error:
            print(f"{artifacts.full(error, folder)}: the record of the sweep is not complete", file=sys.stderr)
        print(f"Sweep: {folder}   its jobs: {folder}/*/job.json")
        if self.reported and not stopped and len(ended) > max(len(bad), 1):
            print(f"Report: {self._report(folder)}")
        elif self.reported and self.parent and self.expected == 1 and not (stopped or bad):
            print(f"Report: none, as one job compares with nothing; give a key two values, such as {self._seed}=0,1")
        if not stopped and self._record().get("search"):
            print(f"Search: {self._search(folder)}")
        served = self._finish_mlflow(folder, stopped, bool(bad))
        if stopped:
            print(f"Stopped; what was trained is saved up to the last checkpoint. To go on: {self.again}")
            return 130
        for begin, line in zip(("Next: ", " " * 6), [*served, *([] if bad else self._then(folder))], strict=False):
            print(f"{begin}{line}")
        nothing = not ended and "search" not in self._record()
        return 1 if bad or nothing else 0

    @property
    def again(self) -> str:
        """The command line that asked for it, as it was typed."""
        return self.asked if session().door else self.asked.replace(program(), typed(), 1)

    @property
    def _seed(self) -> str:
        return next(key for key in self.repeats if key.rpartition(".")[2] == "seed")

    def _then(self, folder: Path) -> list[str]:
        """What one would type after it, and why."""
        from segsweep.report import own

        record = self._record()
        given = {override.split("=")[0].lstrip("+~") for override in record.get("overrides", [])}
        if self.parent and "search" not in record and not given & {"seed", *self.repeats}:
            return [f"{self.again} {self._seed}=0,1,2   whether other seeds say the same"]
        modules = own.modules(self.spec)[0] if self.spec else []
        return [str(line) for line in own.ask(modules, "then", [], folder)]

    def _report(self, folder: Path) -> str:
        from segsweep.report.files import write

        try:
            return str(write([folder], folder))
        except Exception as error:  # the runs are done and recorded: a report can be made again
            return f"not written ({type(error).__name__}: {error}); again: {typed('report')} {folder}"

    def _search(self, folder: Path) -> str:
        from segsweep.report.search import pages

        try:
            page = pages.write(pages.of_sweep(folder, self.storage), folder)
        except Exception as error:  # the study is kept: its reading can be made again
            reason = first_line(error)
            return f"not written ({reason}); again: {typed('search')} {folder}"
        best = folder / "search" / "experiment" / "best.yaml"
        line = pasted([*named(), "--config-dir", str(folder / "search"), f"{self.plus}experiment=best"])
        again = f"   the best: {program() if session().door else typed()} {line}"
        return f"{page}{again if best.exists() else ''}"

    def _finish_mlflow(self, folder: Path, stopped: bool, bad: bool) -> list[str]:
        """How one looks at its runs there, if they are there. A server that does not answer holds nobody up: its bound
        is `copying.END`."""
        if not (place := self._record().get("mlflow")):
            return []
        from segsweep.tracking import copying, store

        until = time.monotonic() + copying.END
        late = f"it did not answer within {copying.END:.0f} s"
        done = copying.copier().flush(copying.END)
        until = time.monotonic() + copying.END if store.here(place["uri"]) else until
        if self._opening and done:
            self._opening.join(until - time.monotonic())
            place = self._record().get("mlflow") or place
        error = place["error"]
        folders = list({job["folder"]: None for job in artifacts.jobs(folder) if job["folder"]})
        lacking = [reason for reason in map(copying.lacking, folders) if reason]
        if place["run_id"] and not (error or lacking):
            status = "KILLED" if stopped else "FAILED" if bad else "FINISHED"
            wrong: list[str] = []
            ending = thread(self._end_parent, folder, place, status, folders, wrong)
            ending.join(max(until - time.monotonic(), SHORT))
            error = late if ending.is_alive() else "".join(wrong)
        error = error or next(iter(lacking), None) or ("" if done else late)
        if not error:
            print(f"MLflow: {masked(place['uri'])}")
            return [f"{shown}   the runs side by side"] if (shown := look(place["uri"])) else []
        brings = f"brings {len(lacking)} of {len(folders)} runs" if lacking else "brings what is missing"
        again = f"nothing is lost: {typed('sync')} {folder}   {brings}"
        print(f"MLflow was out of reach ({error}); {again}", file=sys.stderr)
        return []

    def _end_parent(
        self, folder: Path, place: dict[str, Any], status: str, folders: list[Path], wrong: list[str]
    ) -> None:
        from segsweep.tracking import mirrors

        names = ("table.txt", "sweep.json", "report.html", "report.md", "runs.csv", "search.html")
        files = [folder / name for name in names]
        files += sorted([*folder.glob("search/*.png"), *folder.glob("search/experiment/*.yaml")])
        try:
            summary = _summary(folder / "report.md")
            mirrors.end_parent(place["uri"], place["run_id"], status, files, folder / "figures", summary, folders)
        except Exception as problem:  # the files are the record
            wrong.append(first_line(problem))


class SweepCallback(Callback):
    """Opens the record before the first job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.runtime.choices["hydra/launcher"] != "plan":  # a plan leaves nothing behind
            _lead(Path(config.hydra.sweep.dir), config, parent=True)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """What a launcher may pickle for whoever waits: its configuration has addresses as they are reached."""
        for cfg in (job_return.cfg, job_return.hydra_cfg, config):
            hide(cfg, masked)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _lead(Path(config.hydra.run.dir).parent, config, parent=False)


def _lead(folder: Path, config: DictConfig, parent: bool) -> None:
    here = session()
    here.sweep = here.sweep or Sweep()
    here.sweep.open(folder, config, parent)


def _prepare() -> None:
    """Import what the report needs, a second or two, while the jobs train."""
    _behind_the_jobs()
    with contextlib.suppress(ImportError), importing():  # the report says so itself
        import segsweep.report.files  # noqa: F401


def _take_back(place: dict[str, Any]) -> None:
    """The MLflow run of a sweep that was abandoned."""
    if place.get("run_id"):
        from segsweep.tracking.store import connect

        with contextlib.suppress(Exception):  # MLflow is a mirror
            connect(place["uri"]).delete_run(place["run_id"])


def _behind_the_jobs() -> None:
    """Give this thread less of the cores than a worker's: where two threads train, each waits for the slower, so what
    is taken from one is lost on both. Autogroups (Linux's sched(7)) make this count within a session alone, and workers
    stay in this one's."""
    if sys.platform == "linux":
        here = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, here, max(NICE, os.getpriority(os.PRIO_PROCESS, here)))  # more nobody may take


def _columns(config: DictConfig, spec: Spec | None) -> Columns | None:
    """Of the task of a sweep's own composition, in which what is swept has its default."""
    from segsweep.core.signature import factors, left_out, without

    if spec is None:
        return None
    chosen = choices_of(config, config.hydra)
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        plain = resolved(own)
    except OmegaConfBaseException:  # of a value that only the jobs have
        return None
    return columns(spec, factors(without(plain, left_out(under(own), spec)), chosen), chosen)


def _summary(report: Path) -> str:
    """The first section of the report, as a list."""
    if not report.exists():
        return ""
    return report.read_text(encoding="utf-8").partition("## In short")[2].partition("\n## ")[0].strip()
