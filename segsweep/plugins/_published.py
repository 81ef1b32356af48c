"""What the published Optuna sweeper does not look at: its storage may be anybody's."""

from collections.abc import Sequence
from typing import Any

from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig
from optuna.trial import Trial, TrialState

from segsweep.core.errors import SegsweepError, printable
from segsweep.core.session import session
from segsweep.plugins._jobs import launch
from segsweep.search.sampler import guarded
from segsweep.search.space import Foreign, watched


class Guarded(OptunaSweeperImpl):
    """Trials that somebody has queued with keys or values that this sweep could not have asked for are left out, and
    CMA-ES unpickles nothing but its own state."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.sampler = guarded(self.sampler)
        self.launcher: Any = _Launched(self.launcher)

    def sweep(self, arguments: list[str]) -> None:
        try:
            super().sweep(arguments)
        except SegsweepError as error:
            raise CompactHydraException(str(error)) from None

    def _configure_trials(self, trials: list[Trial], *space: Any) -> Sequence[Sequence[str]]:
        return [self._configured(trials, place, *space) for place in range(len(trials))]

    def _configured(self, trials: list[Trial], place: int, space: Any, fixed: Any, *more: Any) -> Sequence[str]:
        """The overrides of a trial; one that is left out gives its place to the next."""
        while True:
            trial = trials[place]
            there: dict[str, Any] = trial._fixed_params | trial.params
            drawn: dict[str, Any] = {}
            watched(trial, drawn, there)
            try:
                if odd := there.keys() & fixed.keys():
                    raise Foreign(", ".join(sorted(odd)))
                (found,) = super()._configure_trials([trial], space, fixed, *more)
                if odd := there.keys() - drawn.keys():
                    raise Foreign(", ".join(sorted(odd)))
                return found
            except Foreign as why:
                trial.study.tell(trial, state=TrialState.FAIL)
                text = f"Trial {trial.number}, which somebody has queued, is not of this sweep and left out: {why}"
                session().emit("text", text=printable(text))
                trials[place] = trial.study.ask()


class _Launched:
    def __init__(self, launcher: Any):
        self.launcher = launcher

    def launch(self, overrides: Any, initial_job_idx: int) -> Any:
        return launch(self.launcher, overrides, initial_job_idx)
