"""`hydra/launcher=plan`: shows every job of a sweep and what it should cost; runs and records nothing."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from segsweep.config.compose import Composer
from segsweep.config.schema import engine, under
from segsweep.core.errors import SegsweepError
from segsweep.plugins._jobs import without_value
from segsweep.sweeps.command import raw
from segsweep.sweeps.job import job_name
from segsweep.sweeps.overrides import searching
from segsweep.sweeps.plan import Planner, Point, table
from segsweep.tracking.recall import finished


class PlanLauncher(Launcher):
    """A search has no plan: its points depend on results."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if searching(config):
            raise CompactHydraException("hydra/launcher=plan: a search chooses its jobs as it goes; a grid has a plan")
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        planner, compose = (
            Planner(Path(engine(self.config).paths.runs)),
            Composer(self.context.config_loader, self.config),
        )
        points: list[Point | SegsweepError] = []
        for overrides in job_overrides:
            try:
                point = planner.point(*compose.own(overrides))
                planner.size(point)
                points.append(point)
            except SegsweepError as error:
                points.append(error)
            except Exception as error:  # a component's own code raises what it raises; its job would fail alone
                points.append(SegsweepError(f"{type(error).__name__}: {error}"))
        self._ask_mlflow([point for point in points if isinstance(point, Point)])
        asked, at = raw(self.config.hydra.overrides.task), under(self.config)
        print(table([job_name(list(overrides), asked, at) for overrides in job_overrides], points, planner))
        return [without_value(overrides) for overrides in job_overrides]

    def _ask_mlflow(self, points: list[Point]) -> None:
        """What another machine has finished is not trained here."""
        own = engine(self.config)
        place = own.tracking
        unknown = {point.signature for point in points if point.state != "finished"}
        there = finished(place.uri, place.experiment, unknown) if own.reuse and unknown else set()
        for point in points:
            if point.signature in there:
                point.state, point.epoch, point.note = "finished", point.epochs, "in MLflow"
