"""`hydra/launcher=ray_gpu` and `slurm`: the launchers of Ray and submitit, with a lost job costing itself alone.

Theirs read one result after another and end the sweep at the first that was lost. Here each job is looked at by itself,
one that can no longer write its record has it written, and a request to stop reaches those that still run.
"""

import functools
import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep import artifacts, progress
from segsweep.plan import Planner

from ._jobs import Job

LOOK = 0.5
"""Seconds between two looks at the jobs."""


class ClusterLauncher(Launcher):
    """What the two have in common: all jobs are asked for at once, and of each no more is seen than how it ended."""

    @abstractmethod
    def start(self, jobs: list[Job]) -> list[Any]:
        """A handle for each job."""

    @abstractmethod
    def look(self, handle: Any) -> JobReturn | BaseException | None:
        """What became of a job; None while nothing has."""

    @abstractmethod
    def cancel(self, handle: Any) -> None:
        """End a job; nothing is expected of it any more."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        setup_globals()
        configure_log(config.hydra.hydra_logging, config.hydra.verbose, hydra_context.execution_whitelist)
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sweep = Path(self.config.hydra.sweep.dir)
        numbered = enumerate(job_overrides, initial_job_idx)
        jobs = [Job(n, list(overrides), sweep / str(n), began=time.monotonic()) for n, overrides in numbered]
        pending = list(zip(self.start(jobs), jobs, strict=True))
        results: dict[int, JobReturn] = {}
        try:
            while pending:
                if progress.stopping():
                    raise KeyboardInterrupt
                looked = [(handle, job, self.look(handle)) for handle, job in pending]
                pending = [(handle, job) for handle, job, found in looked if found is None]
                results |= {job.number: self._end(job, found) for _, job, found in looked if found is not None}
                if len(pending) == len(looked):
                    time.sleep(LOOK)
        except BaseException:
            for handle, job in pending:
                self.cancel(handle)
                if (job.folder / "job.json").exists():
                    self._know(job)
                    job.close("interrupted", None, "stopped")
            raise
        return [results[number] for number in sorted(results)]

    def _end(self, job: Job, found: JobReturn | BaseException) -> JobReturn:
        lost = isinstance(found, BaseException)
        error = found if isinstance(found, BaseException) else found._return_value
        if lost or isinstance(error, BaseException):
            self._know(job)
            job.fail("killed" if lost else "error", str(error) or type(error).__name__)
            job.mirror()
            found = job.without_value()
        record = artifacts.read_json(job.folder / "job.json") or {}
        facts = {key: record.get(key) for key in ("status", "error", "seconds")} | {"failure": record.get("class")}
        dice = (record.get("metrics") or {}).get("test/dice")
        progress.emit("end", job=job.number, name=" ".join(job.overrides), dice=dice, **facts)
        return found  # type: ignore[return-value]

    def _know(self, job: Job) -> None:
        """Find out which run a job was about, from here."""
        try:
            job.compose(self.context, self.config, Planner(Path(self.config.paths.runs)))
        except (HydraException, OmegaConfBaseException):
            job.point = None


class RayLauncher(ClusterLauncher):
    """`ray`: as for hydra-ray-launcher, `init` for ray.init and `remote` for ray.remote."""

    def __init__(self, ray: DictConfig):
        self.ray = ray

    def start(self, jobs: list[Job]) -> list[Any]:
        try:
            from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray
        except ImportError as error:
            raise HydraException(f"hydra/launcher=ray_gpu: {error}; pip install 'segsweep[ray]'") from None
        start_ray(self.ray.init)
        task = functools.partial(_in_folder, os.getcwd(), self.task)
        handles = []
        for job in jobs:
            config = self.context.config_loader.load_sweep_config(self.config, job.overrides)
            OmegaConf.update(config, "hydra.job.id", str(job.number), force_add=True)
            OmegaConf.update(config, "hydra.job.num", job.number, force_add=True)
            config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())  # Ray's workers may start elsewhere
            state = Singleton.get_state()
            handles.append(launch_job_on_ray(self.context, self.ray.remote, config, task, state))
        return handles

    def look(self, handle: Any) -> JobReturn | BaseException | None:
        import ray

        ready, _ = ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            return ray.get(handle)
        except Exception as error:  # a worker, its node or the job was lost: Ray has many names for it
            return error

    def cancel(self, handle: Any) -> None:
        import ray

        ray.cancel(handle, force=True)


def _in_folder(folder: str, task: TaskFunction, cfg: DictConfig) -> Any:
    """The task where relative paths mean what they mean to the one who started the sweep."""
    os.chdir(folder)
    return task(cfg)


class SlurmLauncher(ClusterLauncher):
    """`executor`: slurm, or local for processes of this machine; the others are those of hydra-submitit-launcher."""

    def __init__(self, executor: str, **params: Any):
        self.executor, self.params = executor, params

    def start(self, jobs: list[Job]) -> list[Any]:
        try:
            import submitit
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Remote
        except ImportError as error:
            raise HydraException(f"hydra/launcher=slurm: {error}; pip install 'segsweep[slurm]'") from None
        remote = Remote(**self.params)
        remote.setup(hydra_context=self.context, task_function=self.task, config=self.config)
        shared = set(BaseQueueConf.__dataclass_fields__)
        named = {key if key in shared else f"slurm_{key}": value for key, value in remote.params.items()}
        made = {key: named.pop(key) for key in ("slurm_max_num_timeout", "slurm_python")}
        executor = submitit.AutoExecutor(folder=named.pop("submitit_folder"), cluster=self.executor, **made)
        executor.update_parameters(**named)
        count = len(jobs)
        numbers = [job.number for job in jobs]
        states = [Singleton.get_state()] * count
        overrides, folder = [job.overrides for job in jobs], ["hydra.sweep.dir"] * count
        return list(executor.map_array(remote, overrides, folder, numbers, map(str, numbers), states))

    def look(self, handle: Any) -> JobReturn | BaseException | None:
        if not handle.done():
            return None
        try:
            return handle.results()[0]
        except Exception as error:  # submitit's own, or whatever a job that it could not pickle raised
            return error

    def cancel(self, handle: Any) -> None:
        handle.cancel(check=False)
