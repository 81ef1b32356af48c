"""`hydra/sweeper=optuna`: hydra-optuna-sweeper as it comes, but for what others may have put into its storage."""

from typing import Any

from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper as Published


class OptunaSweeper(Published):
    """Its values are those of the published one, and their meanings too."""

    def __init__(self, **settings: Any):
        from segsweep.plugins._published import Guarded  # which imports optuna

        super().__init__(**settings)
        self.sweeper.__class__ = Guarded
