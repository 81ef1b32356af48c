"""Searches whose jobs train nothing: a job's score is a formula, its time a sleep, its record as a run writes it.

As a program it is one process' part in a search: `toy_search.py SWEEP_FOLDER SECONDS OVERRIDES...`, which says that it
is ready and begins when it is sent a line.
"""

import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf

from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.config.whitelist import hydras
from segsweep.core import artifacts, locks
from segsweep.sweeps.job import job

start()


class Toy:
    """A launcher of `slots`. A job takes `seconds`; `log` has one line for each that was trained to its end.

    `ends`: point -> how its job ends, where that is not `finished`."""

    def __init__(self, folder: Path, slots: int = 2, seconds: float = 0.0, ends: dict[str, str] | None = None):
        self.folder, self.slots, self.seconds, self.ends = folder, list(range(slots)), seconds, ends or {}
        self.log = folder.parent / "log"
        self.running: dict[int, tuple[float, list[str]]] = {}
        self.most = 0

    def submit(self, overrides: list[str], number: int) -> None:
        self.running[number] = (time.monotonic() + self.seconds * (1 + number % 3), overrides)
        self.most = max(self.most, len(self.running))

    def wait(self) -> tuple[int, JobReturn]:
        number = min(self.running, key=lambda n: self.running[n])
        end, overrides = self.running.pop(number)
        time.sleep(max(0.0, end - time.monotonic()))
        return number, self.job(number, overrides)

    def job(self, number: int, overrides: list[str]) -> JobReturn:
        given = dict(o.lstrip("+").split("=", 1) for o in overrides)
        point = " ".join(sorted(o for o in overrides if not o.startswith("search.")))
        signature = hashlib.sha256(point.encode()).hexdigest()[:16]
        run = self.folder.parent / "runs" / signature
        status = next((end for key, end in self.ends.items() if key in overrides), "finished")
        if (run / "result.json").exists():
            status = "reused"
        score = 1 - abs(math.log10(float(given.get("optim.lr", 0.01))) + 2) / 4
        if status == "finished":
            rows = [{"epoch": e, "val/dice": round(score * e / 3, 6), "val/loss": 1 - score} for e in (1, 2, 3)]
            run.mkdir(parents=True, exist_ok=True)
            artifacts.write_lines(run / "history.jsonl", rows)
            width = int(given.get("model.width", 4))
            result = {"status": "finished", "training_seconds": width, "parameters": width**2, "gflops": width / 10}
            artifacts.write_json(run / "result.json", result)
            with self.log.open("a") as file:
                file.write(f"{signature}\n")
        entry = {"number": number, "status": status, "signature": signature, "overrides": overrides}
        artifacts.write_json(self.folder / str(number) / "job.json", entry | {"run": f"../../runs/{signature}"})
        done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        done.return_value = score  # the published sweeper goes by it, this program's by the records
        return done


class Batches(Toy):
    """The same with Hydra's own interface alone."""

    submit = wait = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name in ("submit", "wait"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def launch(self, job_overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        self.most = max(self.most, len(job_overrides))
        return [self.job(number, overrides) for number, overrides in enumerate(job_overrides, initial_job_idx)]


def search(folder: Path, *overrides: str, preset: str | None = "tpe", launcher: Toy | None = None) -> Any:
    """A search in this process; the launcher, and the trials that count. preset: None for the published sweeper."""
    fixed = [f"+search={preset}" if preset else "hydra/sweeper=optuna", f"paths.runs={folder.parent}", "tracking=none"]
    swept = [o for o in overrides if any(sign in o.split("=", 1)[1] for sign in ("(", ",")) and "search." not in o]
    fixed += [o for o in overrides if o not in swept]
    launcher = launcher or Toy(folder)
    with locks.lock(folder), initialize_config_dir(str(conf_dir())):
        config = compose("config", overrides=[*fixed, f"hydra.sweep.dir={folder}"], return_hydra_config=True)
        OmegaConf.update(config, "hydra.job.config_name", "config", force_add=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(), hydras())
        sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=job)
        inner = getattr(sweeper, "sweeper", sweeper)  # of the published one
        inner.launcher = type(inner.launcher)(launcher) if inner is not sweeper else launcher
        sweeper.sweep([*swept, *fixed])
    return launcher


def extend(config: Any, trial: Any) -> None:
    """A search space of one's own."""
    trial.suggest_float("optim.weight_decay", 0.0, 0.1)


def study(url: str, name: str = "s") -> Any:
    """What anyone finds in a storage."""
    import optuna

    from segsweep.search.study import open_storage

    return optuna.load_study(study_name=name, storage=open_storage(url))


if __name__ == "__main__":
    place, seconds = Path(sys.argv[1]), float(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()  # until all are
    print(json.dumps({"most": search(place, *sys.argv[3:], launcher=Toy(place, seconds=seconds)).most}))
