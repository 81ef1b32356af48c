"""`hydra/sweeper=search`: an Optuna search that leaves no worker idle and may be stopped, shared and continued.

It takes the settings and the search-space grammar of hydra-optuna-sweeper. That one asks for a batch and waits for all
of it; here each free worker has its next trial at once, told with all that is known by then.
"""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from segsweep.core.errors import SegsweepError


class SearchSweeper(Sweeper):
    """Its values and their meanings are in conf/hydra/sweeper/search.yaml."""

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> Any:
        from segsweep.plugins._search import Search  # which imports optuna

        try:
            return Search(self, arguments).run()
        except SegsweepError as error:
            raise CompactHydraException(str(error)) from None
