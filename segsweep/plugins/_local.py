"""`hydra/launcher=local`: persistent worker processes on this machine's devices.

What a process needs once (torch, the CUDA context, decoded data, compiled code) is paid once a worker. A job that takes
its process down with it costs the sweep that job alone.
"""

import heapq
import os
import pickle
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.compose import Composer
from segsweep.config.schema import engine, under
from segsweep.config.whitelist import HYDRAS
from segsweep.core.masks import first_line
from segsweep.core.session import session, thread
from segsweep.core.signature import IGNORED, OWN
from segsweep.plugins._jobs import Job, oom_kills, without_value
from segsweep.sweeps import worker
from segsweep.sweeps.command import milestones, raw
from segsweep.sweeps.plan import Planner
from segsweep.sweeps.worker import Worker
from segsweep.tracking import recall

CLASSES = ("error", "nan", "oom", "killed", "timeout")
LOOK = 0.2
"""Seconds between two looks at the clock, the workers' health and a request to stop."""
A_JOB = 7 * 2**30
"""Bytes that a job on a CPU may want: R2U-Net's, 256 px, width 64, is 5.8 GiB above its imports."""
TOGETHER = 0.6
"""A job on n threads is about n to this power as fast as on one: 1.55 times on two (benchmarks/LOG.md)."""
AHEAD = 200
"""Most jobs that are composed before they run: the order is the best among these, and memory stays bounded."""


class LocalLauncher(Launcher):
    """Its values and their meanings are in conf/hydra/launcher/local.yaml.

    `launch` is Hydra's interface. `submit` and `wait` are for a sweeper that wants each result as it comes.
    """

    def __init__(
        self,
        devices: Any,
        jobs_per_device: int | str,
        timeout_min: float | None,
        budget_min: float | None,
        retries: dict[str, int],
    ):
        problems = [
            f"hydra.launcher.{key}={value}: {rule}"
            for key, value, rule, good in (
                (
                    *("jobs_per_device", jobs_per_device, "must be a whole number, at least 1, or auto"),
                    jobs_per_device == "auto" or _whole(jobs_per_device, 1),
                ),
                ("timeout_min", timeout_min, "must be a number above 0, or null", _minutes(timeout_min)),
                ("budget_min", budget_min, "must be a number above 0, or null", _minutes(budget_min)),
                ("retries", retries, f"classes are {', '.join(CLASSES)}", set(retries) <= set(CLASSES)),
                *((f"retries.{k}", n, "must be a whole number, at least 0", _whole(n, 0)) for k, n in retries.items()),
                ("devices", devices, "auto, or a list such as [0,1] or [cpu]", devices == "auto" or _is_list(devices)),
            )
            if not good
        ]
        if problems:
            raise CompactHydraException("\n".join(problems))
        self.devices, self.jobs_per_device = devices, jobs_per_device
        self.timeout = timeout_min * 60 if timeout_min else float("inf")
        self.budget = budget_min * 60 if budget_min else float("inf")
        self.retries = dict(retries)
        self.asked: deque[Job] = deque()
        self.waiting: list[Job] = []
        self.running: dict[Worker, Job] = {}
        self.ended: deque[tuple[int, JobReturn]] = deque()
        self.workers: dict[Worker, int] = {}
        self.stopping = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        setup_globals()
        configure_log(config.hydra.hydra_logging, config.hydra.verbose, hydra_context.execution_whitelist)
        self.context, self.task, self.config = hydra_context, task_function, config
        self.planner, self.compose = (
            Planner(Path(engine(config).paths.runs)),
            Composer(hydra_context.config_loader, config),
        )
        self.quick = _is_plain(config)
        self.answering = self.quick and any(self.planner.runs.glob("runs/*/result.json"))
        self.began = time.monotonic()
        visible = _devices(self.devices, engine(config).device)
        self.slots = [
            device for _ in range(_at_once(self.jobs_per_device, visible, _side_by_side(config))) for device in visible
        ]
        session().emit("slots", slots=len(self.slots))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            self.submit(overrides, number)
        results = dict(self.wait() for _ in job_overrides)
        return [results[number] for number in sorted(results)]

    def submit(self, overrides: Sequence[str], number: int) -> None:
        """Ask for a job; `number` is its place in the sweep and the name of its folder."""
        folder = Path(self.config.hydra.sweep.dir) / str(number)
        self.asked.append(Job(number, list(overrides), folder, quick=self.quick))
        self._staff()

    def wait(self) -> tuple[int, JobReturn]:
        """The next job that ends, in whatever order: its number and Hydra's record of it.

        Raises KeyboardInterrupt when the sweep was asked to stop and every running job has saved its state."""
        try:
            while not self.ended:
                if not (self.asked or self.waiting or self.running or self.stopping):
                    raise LookupError("no job is left to wait for")
                composed = self._compose_next()
                self._look_after()
                self._hand_out()
                busy = {w.connection: w for w in self.workers}
                for ready in connection.wait(list(busy), 0 if composed or self.ended else LOOK):
                    self._receive(busy[ready])  # type: ignore[index]
            return self.ended.popleft()
        except BaseException:
            self._abort()
            raise

    # Workers

    def _staff(self) -> None:
        """As many workers as there are slots, or jobs; one of those to come, as long as records answer them."""
        asked = min(len(self.asked), 1) if self.answering else len(self.asked)
        jobs = asked + len(self.waiting) + len(self.running)
        while len(self.workers) < min(len(self.slots), jobs):
            new = worker.pool().take()
            self.workers[new] = min(set(range(len(self.slots))) - set(self.workers.values()))

    def _set_up(self, new: Worker) -> None:
        import torch

        slots = len(self.slots)
        new.ready = True
        threads = max(1, torch.get_num_threads() // slots) if slots > 1 else None
        packed = pickle.dumps((self.task, self.context.callbacks, self.context.execution_whitelist))
        new.send(("setup", self.slots[self.workers[new]], threads, packed))

    def _look_after(self) -> None:
        """Notice what no message tells: a request to stop, a job over its time, a worker that is gone."""
        if session().stopping() and not self.stopping:
            self.stopping = True
            self.asked.clear()
            self.waiting.clear()
            for each in self.workers:
                each.send(worker.STOP)
        if self.stopping and not self.running:
            raise KeyboardInterrupt
        for each in list(self.workers):
            job = self.running.get(each)
            if job and not job.waits and time.monotonic() - job.began > self.timeout:
                self._lose(each, "timeout", f"stopped after timeout_min={self.timeout / 60:g} minutes")
            elif each.process.poll() is not None and not each.connection.poll():
                self._lose(each, "killed")
        self._staff()

    def _receive(self, sender: Worker) -> None:
        try:
            kind, *content = sender.receive()
        except (EOFError, OSError):
            self._lose(sender, "killed")
            return
        if kind == "ready":
            self._set_up(sender)
        elif kind == "event":
            (event,) = content
            job = self.running.get(sender)
            if job:
                job.hear(event)
            if job and event["kind"] == "end":
                job.failure = event.get("failure")
                if self._left(job):
                    event = _retry(job, event["error"])
            session().emit(**event | {"job": job.number if job else 0})
        elif kind == "mirror":
            content[0].update()
        elif kind == "restore":
            thread(_restore, sender, *content)
        elif kind == "done":
            job = self.running.pop(sender)
            result = content[1]
            if result and result.status is JobStatus.FAILED:  # not in the run, which records what it dies of
                self._fail(job, "error", f"{result._return_value}")
            else:
                self._end(job, result)
            if job.failure not in (None, "nan") and self.slots[self.workers[sender]] != "":
                # an error may leave a CUDA context unusable
                sender.kill()
                del self.workers[sender]

    def _lose(self, lost: Worker, failure: str, reason: str | None = None) -> None:
        """A worker is gone, or has to go: its job failed, a fresh one takes its slot."""
        if failure == "timeout":
            lost.kill()
        reason = reason or lost.death()
        lost.kill()
        job = self.running.pop(lost, None)
        if job and failure == "killed" and oom_kills() > job.oom_kills:
            hint = "fewer hydra.launcher.jobs_per_device, or a smaller batch_size"
            failure, reason = "oom", f"the system had no memory left and ended the worker: {hint}\n{reason}"
        del self.workers[lost]
        if not lost.ready:
            raise CompactHydraException(f"A worker could not start: {reason}")
        if job:
            self._fail(job, failure, reason)

    # Jobs

    def _compose_next(self) -> bool:
        """Compose one job that was asked for: the others can run meanwhile."""
        if not self.asked or len(self.waiting) >= AHEAD:
            return False
        job = self.asked.popleft()
        try:
            job.compose(self.compose, self.planner, longest_first=len(self.slots) > 1)
            if job.result:
                self._end(job, job.result)
            else:
                self.answering = False
                heapq.heappush(self.waiting, job)
        except (HydraException, OmegaConfBaseException) as error:
            self._fail(job, "error", str(error))
        return True

    def _hand_out(self) -> None:
        over = time.monotonic() - self.began > self.budget
        for each in [w for w in self.workers if w.ready and w not in self.running]:
            job = self._next(over)
            if job is None:
                return
            job.start()
            self.running[each] = job
            each.send(("job", job.number, pickle.dumps(job.config), job.tries["oom"]))

    def _next(self, over: bool) -> Job | None:
        """The first that waits for no other: jobs of one trajectory run after one another and share its epochs."""
        taken = {job.point.trajectory for job in self.running.values() if job.point}
        later: list[Job] = []
        found = None
        while self.waiting and found is None:
            job = heapq.heappop(self.waiting)
            if over and not job.answered:
                self._leave(job)
            elif job.point and job.point.trajectory in taken:
                later.append(job)
            elif job.failed and self.asked and len(self.waiting) + len(later) < AHEAD - 1:
                later.append(job)  # what never ran goes before it, and is not composed yet
            else:
                found = job
        for job in later:
            heapq.heappush(self.waiting, job)
        return found

    def _left(self, job: Job) -> bool:
        """Whether a job that failed may be tried again."""
        if job.failure is None or self.stopping:
            return False
        return job.tries[job.failure] < self.retries.get(job.failure, 0)

    def _end(self, job: Job, result: JobReturn | None) -> None:
        if result is None and self.stopping:
            return  # interrupted, and recorded as that
        if self._left(job):
            assert job.failure is not None
            job.tries[job.failure] += 1
            heapq.heappush(self.waiting, job)
        else:
            job.config = None
            self.ended.append((job.number, result or without_value(job.overrides)))

    def _leave(self, job: Job) -> None:
        """Out of the sweep's time before it was started."""
        error = f"budget_min={self.budget / 60:g} minutes were over"
        job.close("not started", None, error)
        session().emit("end", job=job.number, status="not started", error=error)
        self._end(job, without_value(job.overrides))

    def _fail(self, job: Job, failure: str, reason: str) -> None:
        """What a job does when it fails, done for one that no longer can."""
        job.fail(failure, reason)
        job.mirror()  # though it may be tried again: a sweep that is stopped tries nothing
        if self._left(job):
            session().emit(**_retry(job, reason) | {"job": job.number})
        else:
            session().emit("end", job=job.number, status="failed", error=reason, failure=failure)
        self._end(job, without_value(job.overrides))

    def _abort(self) -> None:
        """End every worker that has a job, now; the state after each run's last complete epoch is on disk."""
        for each, job in self.running.items():
            each.kill()
            del self.workers[each]
            job.close("interrupted", None, "stopped")
            job.mirror()
        self.running.clear()


def _retry(job: Job, reason: str) -> dict[str, Any]:
    """The event of it. After want of memory a task may take the same steps in smaller parts (`Task.smaller`)."""
    how = " with batches in twice as many parts" if job.failure == "oom" else ""
    return {"kind": "retry", "text": f"{first_line(reason)}; trying again{how}"}


def _restore(asking: Worker, folder: Path, uri: str, experiment: str) -> None:
    found = recall.restorer().restore(folder, uri, experiment, wanted=lambda: asking.process.poll() is None)
    asking.send(("restored", found))


def _is_plain(config: DictConfig) -> bool:
    """Whether jobs have folders of their numbers and leave nothing else there, and nobody's callback is to hear of
    their starts and ends."""
    raw: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    callbacks = {str(each.get("_target_")) for each in config.hydra.callbacks.values()}
    usual = config.hydra.output_subdir is None and not config.hydra.job.chdir
    return raw["subdir"] == "${hydra.job.num}" and usual and callbacks <= {*HYDRAS}


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _minutes(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def _is_list(devices: Any) -> bool:
    return not isinstance(devices, str) and len(devices) > 0


def _side_by_side(config: DictConfig) -> int:
    """How many of a sweep's jobs can run at once at most: of the whole sweep, not of what is left of it, as the number
    of threads decides the last bits, and a sweep that is started again is to give the same."""
    sweeper = config.hydra.sweeper
    lead = session().sweep
    bounds = [lead and lead.expected, *(sweeper.get(key) for key in ("n_jobs", "n_trials", "max_batch_size"))]
    jobs = min((bound for bound in bounds if bound), default=AHEAD)
    own = [str(key) for key in config if key not in (*IGNORED, "hydra", OWN)]
    epochs = f"{under(config)}epochs"
    if f"${{{epochs}}}" in OmegaConf.to_yaml(OmegaConf.masked_copy(config, own)):
        return jobs
    # runs that differ in their length alone are one trajectory, whose epochs are trained once, one after another
    return max(1, jobs // max(1, len(milestones(raw(config.hydra.overrides.task), epochs))))


def _at_once(asked: int | str, visible: list[str | None], jobs: int) -> int:
    """Jobs on each device. `auto`: on a GPU one; on a CPU one a core, as one thread waits for no other, but no more
    than there are jobs and memory for, nor so many that what is left over of the threads would be missed."""
    if isinstance(asked, int):
        return asked
    if visible != [""]:
        return 1
    import torch

    from segsweep.core import environment

    threads = torch.get_num_threads()
    most = max(1, min(threads, environment.cores(), jobs, environment.memory() // A_JOB))
    return max(range(1, most + 1), key=lambda slots: slots * (threads // slots) ** TOGETHER)


def _devices(asked: Any, device: str) -> list[str | None]:
    """For each device what CUDA_VISIBLE_DEVICES is to be: empty for the CPU, None to leave it as it is."""
    import torch

    if asked != "auto":
        return ["" if str(name) == "cpu" else str(name) for name in asked]
    if device == "cpu" or not torch.cuda.device_count():
        return [""]
    if ":" in device:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [*(given.split(",") if given else map(str, range(count)))][:count]
