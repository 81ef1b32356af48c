"""One job of a sweep, as Hydra calls it in whatever process a launcher has it run: the run, its record, its value."""

import re
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from segsweep import masks
from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError
from segsweep.core.session import session
from segsweep.sweeps import sweep


def job(cfg: DictConfig) -> Any:
    """One job of a sweep, wherever it was launched: run it, record it, give its objective (NaN where it has none)."""
    from segsweep.config import components
    from segsweep.runs.run import run

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    masks.learn(*(OmegaConf.select(cfg, key) for key in masks.KEYS))
    _describe(cfg, settings, folder)
    record = artifacts.read_json(folder.parent / "sweep.json") or {}
    overrides = sweep.raw(settings.overrides.task)
    number = 0 if OmegaConf.is_missing(settings.job, "num") else settings.job.num
    name = job_name(overrides, record.get("overrides", []))
    entry = sweep.open_job(folder, number, overrides)
    session().job = number
    session().emit("start", name=name)
    began = time.perf_counter()
    outcome = run(
        cfg,
        choices={group: option for group, option in settings.runtime.choices.items() if "/" not in group},
        name=name,
        command=f"python -m segsweep {' '.join(o for o in overrides if not o.startswith('search.'))}".strip(),
        sweep=folder.parent,
        milestones=set(record.get("milestones", [])),
    )
    sweep.close_job(folder, entry, outcome, time.perf_counter() - began)
    here = session()
    if here.copier and here.sweep is None:  # in a launcher's process, which may be ended at any time from here
        here.copier.flush()
    facts = {"status": outcome.status, "error": outcome.error, "failure": outcome.failure}
    spec = components.spec_of(cfg)
    score = spec.told("test", spec.primary, outcome.metrics) if spec else ""
    session().emit("end", **facts, score=score)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    return _value(cfg, outcome)


def _describe(cfg: DictConfig, settings: Any, folder: Path) -> None:
    """`.hydra` as Hydra has it, less the passwords: it would write them where a job is killed before it is here."""
    for known in (folder, folder.parent):
        sweep.hide_passwords(known)
    if settings.output_subdir is None:
        for name, node in (("config", cfg), ("hydra", {"hydra": settings}), ("overrides", settings.overrides.task)):
            artifacts.write_text(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(node))
    else:
        sweep.hide_passwords(folder / settings.output_subdir)


def _value(cfg: DictConfig, outcome: Any) -> Any:
    """What a sweeper is told: the objectives of a search, NaN where there are none."""
    from segsweep.config.components import task_class
    from segsweep.search import objective

    names = list(cfg.search.objective)
    none: Any = float("nan") if len(names) == 1 else [float("nan")] * len(names)
    if outcome.status not in artifacts.WHOLE:
        return none
    try:
        found = objective.values(outcome.folder, names, cfg.search.epoch, task_class(cfg).spec)
    except SegsweepError:  # no validation part: nothing to search on
        return none
    return found[0] if len(names) == 1 else found


def job_name(overrides: list[str], asked: list[str]) -> str:
    """What varies in a sweep, numbers to four digits; all overrides where nothing does."""
    fixed = set(map(masks.masked, asked))
    shown = [o for o in map(masks.masked, overrides) if o not in fixed] or overrides
    kept = (o for o in shown if not o.startswith(("paths.", "tracking", "data.root", "device", "search.", "report=")))
    return re.sub(r"\d+\.\d{5,}(e-?\d+)?\b", lambda n: f"{float(n[0]):.4g}", " ".join(kept)) or "default"
