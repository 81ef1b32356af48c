"""`hydra/launcher=ray_gpu` and `slurm`: the launchers of Ray and submitit, with a lost job costing itself alone.

Theirs read one result after another and end the sweep at the first that was lost. Here each job is looked at by itself,
one that can no longer write its record has it written, and a request to stop reaches those that still run.
"""

import functools
import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.components import spec_of
from segsweep.config.compose import Composer
from segsweep.config.schema import engine, under
from segsweep.core import artifacts
from segsweep.core.masks import hide, reference
from segsweep.core.session import session
from segsweep.plugins._jobs import Job, without_value
from segsweep.sweeps.command import raw
from segsweep.sweeps.job import job_name, score_of
from segsweep.sweeps.worker import in_folder

LOOK = 0.5
"""Seconds between two looks at the jobs."""


@dataclass
class Lost:
    """A job of which the engine has no result. `failure`: the class, killed, oom, timeout or error."""

    failure: str
    reason: str


class ClusterLauncher(Launcher):
    """What the two have in common: all jobs are asked for at once, and of each no more is seen than how it ended."""

    @abstractmethod
    def start(self, jobs: list[Job]) -> list[Any]:
        """A handle for each job."""

    @abstractmethod
    def look(self, handle: Any) -> JobReturn | Lost | None:
        """What became of a job; None while nothing has."""

    @abstractmethod
    def cancel(self, handle: Any) -> None:
        """End a job; nothing is expected of it any more."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        setup_globals()
        configure_log(config.hydra.hydra_logging, config.hydra.verbose, hydra_context.execution_whitelist)
        self.context, self.task, self.config = hydra_context, task_function, config
        self.compose = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sweep = Path(self.config.hydra.sweep.dir)
        numbered = enumerate(job_overrides, initial_job_idx)
        jobs = [Job(n, list(overrides), sweep / str(n), began=time.monotonic()) for n, overrides in numbered]
        pending = list(zip(self.start(jobs), jobs, strict=True))
        results: dict[int, JobReturn] = {}
        try:
            while pending:
                if session().stopping():
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

    def _end(self, job: Job, found: JobReturn | Lost) -> JobReturn:
        if isinstance(found, JobReturn) and found.status is JobStatus.FAILED:
            found = Lost("error", str(found._return_value))
        if isinstance(found, Lost):
            self._know(job)
            job.fail(found.failure, found.reason)
            job.mirror()
            found = without_value(job.overrides)
        record = artifacts.read_json(job.folder / "job.json") or {}
        facts = {key: record.get(key) for key in ("status", "error", "seconds")} | {"failure": record.get("class")}
        about = (record.get(key) for key in ("accepted", "stopped", "tested"))
        facts["note"] = artifacts.note(str(record.get("status")), *about)
        spec = spec_of(self.config)
        score = score_of(spec, record.get("metrics") or {})
        name = job_name(job.overrides, raw(self.config.hydra.overrides.task), under(self.config))
        session().emit("end", job=job.number, name=name, score=score, **facts)
        return found

    def _know(self, job: Job) -> None:
        """Find out which run a job was about, from here."""
        from segsweep.sweeps.plan import Planner  # not for every command, which all import the plugins

        try:
            job.compose(self.compose, Planner(Path(engine(self.config).paths.runs)))
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
            raise CompactHydraException(f"hydra/launcher=ray_gpu: {error}; pip install 'segsweep[ray]'") from None
        start_ray(self.ray.init)
        task = functools.partial(in_folder, os.getcwd(), self.task)
        handles = []
        for job in jobs:
            config = self.compose(job.overrides)
            OmegaConf.update(config, "hydra.job.id", str(job.number), force_add=True)
            OmegaConf.update(config, "hydra.job.num", job.number, force_add=True)
            config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())  # Ray's workers may start elsewhere
            state = Singleton.get_state()
            handles.append(launch_job_on_ray(self.context, self.ray.remote, config, task, state))
        return handles

    def look(self, handle: Any) -> JobReturn | Lost | None:
        import ray

        ready, _ = ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            return ray.get(handle)
        except ray.exceptions.RayTaskError as error:
            return Lost("error", str(error.cause))
        except ray.exceptions.OutOfMemoryError as error:
            return Lost("oom", str(error))
        except ray.exceptions.RayError as error:
            return Lost("killed", f"Ray lost the job: {error}")

    def cancel(self, handle: Any) -> None:
        import ray

        ray.cancel(handle, force=True)


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
            raise CompactHydraException(f"hydra/launcher=slurm: {error}; pip install 'segsweep[slurm]'") from None
        for job in jobs if session().foreign else []:
            self.compose(job.overrides)  # which checks it; the nodes compose it without
        remote = Remote(**self.params)
        config = self.config.copy()
        hide(config, reference)  # what is pickled lies in the sweep's folder
        if hasattr(loader := self.context.config_loader, "_active_repository"):
            loader._active_repository = None  # the files that it read last, as they are; it reads them again
        remote.setup(hydra_context=self.context, task_function=self.task, config=config)
        shared = set(BaseQueueConf.__dataclass_fields__)
        named = {key if key in shared else f"slurm_{key}": value for key, value in remote.params.items()}
        made = {key: named.pop(key) for key in ("slurm_max_num_timeout", "slurm_python")}
        executor = submitit.AutoExecutor(folder=named.pop("submitit_folder"), cluster=self.executor, **made)
        executor.update_parameters(**named)
        count = len(jobs)
        numbers = [job.number for job in jobs]
        state = Singleton.get_state()
        if settings := getattr(state["instances"].get(HydraConfig), "cfg", None):
            hide(settings, reference)
        states = [state] * count
        overrides, folder = [job.overrides for job in jobs], ["hydra.sweep.dir"] * count
        return list(executor.map_array(remote, overrides, folder, numbers, map(str, numbers), states))

    def look(self, handle: Any) -> JobReturn | Lost | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not handle.done():
            return None
        try:
            return handle.results()[0]
        except FailedJobError as error:
            trace = (str(error).split("-" * 22)[1:] or [str(error)])[0].strip()
            return Lost("error", f"{trace.rpartition(chr(10))[2]}\n{trace}")
        except UncompletedJobError as error:
            failure = {"OUT_OF_MEMORY": "oom", "TIMEOUT": "timeout"}.get(handle.state, "killed")
            return Lost(failure, f"the job ended without a result, in state {handle.state}\n{error}")

    def cancel(self, handle: Any) -> None:
        handle.cancel(check=False)
