"""What a job asks for, and which run that is."""

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segsweep.config import components
from segsweep.config.schema import engine, resolved, under
from segsweep.core import accepted, artifacts, environment
from segsweep.core.checkpoints import Checkpoints
from segsweep.core.device import pick_device
from segsweep.core.errors import ConfigError
from segsweep.core.session import session
from segsweep.runs.identity import identity
from segsweep.search import pruning
from segsweep.task import Data


class Asked:
    """What a job asks for, and which run that is; nothing is built or written yet.

    `folder`: of its record. `place`: where it is made, which is another where a finished record is trained anew."""

    def __init__(
        self,
        cfg: DictConfig,
        choices: dict[str, Any],
        name: str,
        command: str,
        sweep: Path | None,
        milestones: set[int],
    ):
        self.began = time.perf_counter()
        said = components.spec_of(cfg)
        if problems := [*components.check(cfg), *(pruning.problems(cfg, said) if said else [])]:
            raise ConfigError("\n".join(problems))
        self.cfg, self.engine, self.at = cfg, engine(cfg), under(cfg)
        self.choices, self.name, self.command = choices, name, command
        self.sweep, self.milestones = sweep, milestones
        self.device = pick_device(self.engine.device)
        environment.reset_peak_memory(self.device)
        runs = Path(self.engine.paths.runs).absolute()  # whatever folder the code that trains goes to

        session().emit("note", text="reading the data set")
        self.task = components.task(cfg)
        self.data: Data = self.task.data()
        meant = {group: option for group, option in self.data.choices.items() if choices.get(group) == "auto"}
        self.choices = {**choices, **meant}
        self.whole = components.of_length(cfg, resolved(cfg, (), str(sweep.absolute()) if sweep else ""))
        self.epochs = self.engine.epochs if self.task.spec.epochs else 1
        self.identity = identity(cfg, self.task.spec, self.data, sweep, self.whole)
        self.runs = runs
        self.accepted = accepted.standing(runs, self.identity.ids["signature"]) if self.engine.reuse else None
        self._be(self.accepted["ids"] if self.accepted else self.identity.ids)
        record = (artifacts.read_json(sweep / "sweep.json") or {}) if sweep else {}
        self.by = f"{record['name']} {record['started']}" if record else ""

    def _be(self, ids: dict[str, str]) -> None:
        self.ids = ids
        self.folder = self.place = self.runs / "runs" / ids["signature"]
        self.checkpoints = Checkpoints(self.runs / "trajectories" / ids["trajectory"])

    def stand_alone(self) -> None:
        """Be the run that today's code makes, whatever was accepted in its place."""
        self.accepted = None
        self._be(self.identity.ids)

    def anew(self, folder: Path) -> bool:
        """Whether what `folder` holds is not to be used: with reuse=false, but for what this very sweep has trained. So
        its jobs share epochs, and a job that is tried again goes on."""
        return not self.engine.reuse and not (
            self.by and artifacts.read_json(folder / artifacts.ANEW) == {"by": self.by}
        )
