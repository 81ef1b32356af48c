"""`hydra/launcher=plan`: shows every job of a sweep and what it should cost; runs and records nothing."""

from segsweep.plugins._deferred import Deferred


class PlanLauncher(Deferred):
    """A search has no plan: its points depend on results."""

    made = "segsweep.plugins._plan:PlanLauncher"
