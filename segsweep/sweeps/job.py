"""One job of a sweep, as Hydra calls it in whatever process a launcher has it run: the run, its record, its value."""

import logging
import os
import re
import time
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from segsweep.config.compose import choices_of, with_environment
from segsweep.config.schema import engine, under
from segsweep.core import artifacts, child, masks
from segsweep.core.errors import SegsweepError
from segsweep.core.program import pasted
from segsweep.core.session import session
from segsweep.sweeps.command import hide_passwords, named, program, raw
from segsweep.sweeps.entry import close_job, entry, open_job
from segsweep.sweeps.plan import Point
from segsweep.task import Spec

SHORT = 60
"""Signs of a job's name where nothing varies: its command line is told elsewhere."""


def job(cfg: DictConfig) -> Any:
    """One job of a sweep, wherever it was launched: run it, record it, give its objective (NaN where it has none)."""
    from segsweep.config import components
    from segsweep.runs.run import run

    child.look_as_usual()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # of job.log, which a full disk ends and nothing else
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        masks.guard(handler)
    settings = HydraConfig.get()
    cfg = with_environment(cfg, settings)
    folder = Path(settings.runtime.output_dir)
    masks.learn(*(OmegaConf.select(engine(cfg), key) for key in masks.KEYS))
    masks.learn_all(OmegaConf.to_container(cfg))  # of one's own code, too, as its errors may have pieces of one
    _describe(cfg, settings, folder)
    if settings.job.chdir and session().door:  # for the application's own code: what the engine is told is of here
        os.chdir(settings.runtime.cwd)
    record = artifacts.read_json(folder.parent / "sweep.json") or {}
    at = under(cfg)
    overrides = raw(settings.overrides.task)
    number = 0 if OmegaConf.is_missing(settings.job, "num") else settings.job.num
    name = job_name(overrides, record.get("overrides", []), at)
    opened = open_job(folder, number, overrides)
    session().job = number
    session().emit("start", name=name)
    began = time.perf_counter()
    outcome = run(
        cfg,
        choices=choices_of(cfg, settings),
        name=name,
        command=_command(
            [*named(), *own_folder(settings), *_environment(settings)]
            + [o for o in overrides if not o.startswith(f"{at}search.")]
        ),
        sweep=folder.parent,
        milestones=set(record.get("milestones", [])),
    )
    close_job(folder, opened, outcome, time.perf_counter() - began)
    here = session()
    if here.copier and here.sweep is None:  # in a launcher's process, which may be ended at any time from here
        here.copier.flush()
    spec = components.spec_of(cfg)
    session().emit("end", **_ended(outcome, spec))
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    return _value(engine(cfg).search, outcome, spec or components.task_class(cfg).spec)


def from_record(
    cfg: DictConfig, values: dict[str, Any], point: Point, overrides: list[str], number: int, folder: Path
) -> JobReturn | None:
    """A job whose run is finished, in the sweep's own process: a thousand are a matter of seconds. None where the
    record, which is looked at here, is not the answer."""
    from segsweep.runs.run import reused
    from segsweep.tracking.copying import Mirror

    asked, began = engine(cfg), time.perf_counter()
    masks.learn(*(OmegaConf.select(asked, key) for key in masks.KEYS))
    outcome = reused(point.folder)
    if outcome is None:
        return None
    lead = session().sweep
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = _value(values["search"], outcome, point.spec)
    ended = _ended(outcome, point.spec)
    opened = entry(number, overrides)
    artifacts.write_text(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(opened["overrides"])))
    session().emit("start", job=number, name=job_name(overrides, lead.overrides if lead else [], under(cfg)))
    close_job(folder, opened, outcome, time.perf_counter() - began)
    Mirror(point.folder, asked.tracking, folder.parent).__exit__()
    session().emit("end", job=number, **ended)
    return done


def _ended(outcome: Any, spec: Spec | None) -> dict[str, Any]:
    """Of the event that tells how a job ended."""
    error = outcome.error and masks.told(outcome.error)  # here, as whoever shows it knows less
    note = artifacts.note(outcome.status, outcome.accepted, outcome.stopped, outcome.tested)
    facts = {"status": outcome.status, "error": error, "failure": outcome.failure, "note": note}
    return facts | {"score": score_of(spec, outcome.metrics)}


def own_folder(settings: Any) -> list[str]:
    """The arguments that give the folder of options of one's own again, if the command line names one."""
    found = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
    near = [os.path.relpath(path) for path in found]
    return ["--config-dir", found[0] if near[0].startswith("..") else near[0]] if found else []


def _environment(settings: Any) -> list[str]:
    """The arguments that set variables for code that came by a door."""
    given: Any = OmegaConf.to_container(settings.overrides.hydra, resolve=False) if session().door else []
    return [line for line in given if line.lstrip("+~").startswith("hydra.job.env_set")]


def _command(arguments: list[str]) -> str:
    """What trains a job alone."""
    return f"{program()} {pasted(map(masks.masked, arguments))}".strip()


def _describe(cfg: DictConfig, settings: Any, folder: Path) -> None:
    """`.hydra` as Hydra has it, less the passwords: it would write them where a job is killed before it is here."""
    hide_passwords(folder.parent / "multirun.yaml")  # of Hydra's own sweeper
    if settings.output_subdir is None:
        for name, node in (("config", cfg), ("hydra", {"hydra": settings}), ("overrides", settings.overrides.task)):
            artifacts.write_text(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(node))
    else:
        hide_passwords(*(folder / settings.output_subdir).glob("*.yaml"))


def _value(search: Any, outcome: Any, spec: Spec) -> Any:
    """What a sweeper is told: the objectives of a search, NaN where there are none. search: the node of these keys."""
    from segsweep.search import objective

    names = list(search["objective"])
    none: Any = float("nan") if len(names) == 1 else [float("nan")] * len(names)
    if outcome.status not in artifacts.WHOLE:
        return none
    try:
        found = objective.values(outcome.folder, names, search["epoch"], spec)
    except SegsweepError:  # no validation part: nothing to search on
        return none
    return found[0] if len(names) == 1 else found


def score_of(spec: Spec | None, metrics: Mapping[str, Any]) -> str:
    """A run's score in a line: of its test, or where there was none of the validation."""
    told = (spec.told(part, spec.primary, metrics) for part in ("test", "val")) if spec else ()
    return next(filter(None, told), "")


def job_name(overrides: list[str], asked: list[str], at: str = "") -> str:
    """What varies in a sweep, numbers to four digits; the first overrides where nothing does. at: how the engine's keys
    begin."""
    fixed, given = set(map(masks.masked, asked)), list(map(masks.masked, overrides))
    varied = [o for o in given if o not in fixed]
    apart = tuple(f"{at}{key}" for key in ("paths.", "tracking", "device", "search.", "report="))
    kept = [o for o in varied or given if not o.startswith((*apart, "data.root"))]
    kept = [re.sub(r"\d+\.\d{5,}(e-?\d+)?\b", lambda n: f"{float(n[0]):.4g}", o) for o in kept]
    few = len(kept) if varied else max(1, sum(total <= SHORT for total in accumulate(len(o) + 1 for o in kept)))
    more = f" and {len(kept) - few} more" if len(kept) > few else ""
    return " ".join(kept[:few]) + more or "default"
