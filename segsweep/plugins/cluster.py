"""`hydra/launcher=ray_gpu` and `slurm`: the launchers of Ray and submitit, with a lost job costing itself alone."""

from segsweep.plugins._deferred import Deferred


class RayLauncher(Deferred):
    """`ray`: as for hydra-ray-launcher, `init` for ray.init and `remote` for ray.remote."""

    made = "segsweep.plugins._cluster:RayLauncher"


class SlurmLauncher(Deferred):
    """`executor`: slurm, or local for processes of this machine; the others are those of hydra-submitit-launcher."""

    made = "segsweep.plugins._cluster:SlurmLauncher"
