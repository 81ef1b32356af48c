"""`hydra/launcher=local`: persistent worker processes on this machine's devices."""

from segsweep.plugins._deferred import Deferred


class LocalLauncher(Deferred):
    """Its values and their meanings are in conf/hydra/launcher/local.yaml."""

    made = "segsweep.plugins._local:LocalLauncher"
