"""Ray and submitit for real, on this machine: a job is killed in the middle, the others' results stay in place."""

import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from commands import finish, jobs, start, until
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext

from segsweep.config.schema import conf_dir
from segsweep.config.whitelist import hydras
from segsweep.core.session import session
from segsweep.plugins._cluster import ClusterLauncher, Lost
from segsweep.sweeps.job import job

TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "precision=fp32"]
SWEEP = ["-m", "seed=0,1", "epochs=30", "report=false", *TINY]


class Engine(ClusterLauncher):
    """Job 0 is lost, job 1 raised, job 2 is well, job 3 runs for ever."""

    def start(self, jobs: list[Any]) -> list[int]:
        self.cancelled: list[int] = []
        return [job.number for job in jobs]

    def look(self, handle: int) -> JobReturn | Lost | None:
        if handle == 0:
            return Lost("oom", "no memory\non node 7")
        if handle == 3:
            session().stop()
            return None
        found = JobReturn(status=[JobStatus.FAILED, JobStatus.COMPLETED][handle - 1])
        found.return_value = [ValueError("wrong"), 0.5][handle - 1]
        return found

    def cancel(self, handle: int) -> None:
        self.cancelled.append(handle)


@contextlib.contextmanager
def engine(folder: Path) -> Any:
    overrides = [f"paths.runs={folder}", f"hydra.sweep.dir={folder}/sweep", f"paths.cache={folder}/cache", *TINY]
    with initialize_config_dir(str(conf_dir())):
        config = compose("config", overrides=[*overrides, "tracking=none"], return_hydra_config=True)
        made = Engine()
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(), hydras())
        made.setup(hydra_context=context, task_function=job, config=config)
        yield made


def record(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / "sweep" / str(number) / "job.json").read_text())


def test_a_lost_job_is_recorded_by_the_one_who_sees_it(tmp_path):
    events = []
    session().sink = events.append
    with engine(tmp_path) as made:
        results = made.launch([["seed=0", *TINY], ["seed=1", *TINY], ["seed=2", *TINY]], 0)
    assert results[2].return_value == 0.5
    assert [result.status for result in results] == [JobStatus.COMPLETED] * 3
    jobs = [record(tmp_path, 0), record(tmp_path, 1)]
    assert [(j["status"], j["class"], j["error"]) for j in jobs] == [
        ("failed", "oom", "no memory"), ("failed", "error", "wrong"),
    ]  # fmt: skip
    assert jobs[0]["signature"] != jobs[1]["signature"]
    assert sorted(e["job"] for e in events if e["kind"] == "end") == [0, 1, 2]


def test_asked_to_stop_what_still_runs_is_cancelled(tmp_path):
    with engine(tmp_path) as made:
        running = tmp_path / "sweep" / "3"
        running.mkdir(parents=True)
        (running / "job.json").write_text('{"number": 3, "overrides": [], "status": "running"}')
        with pytest.raises(KeyboardInterrupt):
            made.launch([["seed=3", *TINY]], 3)
        assert made.cancelled == [3]
    assert record(tmp_path, 3)["status"] == "interrupted"


def epochs(cwd: Path) -> int:
    return max((len(f.read_text().splitlines()) for f in cwd.glob("multirun/runs/*/history.jsonl")), default=0)


def kill_job(cwd: Path) -> int:
    """The number of a job that was in the middle of training when its process was killed."""
    until(lambda: epochs(cwd) > 2)
    *_, sweep = sorted(cwd.glob("multirun/2*"))
    (run,) = [f.parent for f in cwd.glob("multirun/runs/*/history.jsonl") if len(f.read_text().splitlines()) > 2][:1]
    seed = json.loads((run / "run.json").read_text())["factors"]["seed"]
    job = json.loads((sweep / str(seed) / "job.json").read_text())
    assert job["status"] == "running"
    os.kill(job["pid"], signal.SIGKILL)
    return seed


def statuses(cwd: Path) -> dict[int, tuple[str, str | None]]:
    return {number: (job["status"], job["class"]) for number, job in jobs(cwd).items()}


def in_mlflow(cwd: Path) -> list[str]:
    query = "select runs.status from runs join tags using (run_uuid) where tags.key = 'signature'"
    with contextlib.closing(sqlite3.connect(cwd / "mlruns" / "mlflow.db")) as database:
        return [status for (status,) in database.execute(query)]


@pytest.mark.slow
def test_ray_starts_a_job_again_whose_worker_was_killed(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    process = start(tmp_path, *SWEEP, "hydra/launcher=ray_gpu", "+hydra.launcher.ray.init.num_cpus=2")
    killed = kill_job(tmp_path)
    output = finish(process)
    assert process.returncode == 0, output
    assert statuses(tmp_path)[killed] == ("continued", None)
    assert statuses(tmp_path)[1 - killed] == ("finished", None)
    assert in_mlflow(tmp_path) == ["FINISHED"] * 2


@pytest.mark.slow
def test_a_killed_job_of_submitit_leaves_the_others_and_is_continued_next_time(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    local = ["hydra/launcher=slurm", "hydra.launcher.executor=local"]
    process = start(tmp_path, *SWEEP, *local)
    killed = kill_job(tmp_path)
    output = finish(process)
    assert process.returncode == 1, output
    assert statuses(tmp_path) == {killed: ("failed", "killed"), 1 - killed: ("finished", None)}
    assert f"job {killed} failed: killed" in output
    assert sorted(in_mlflow(tmp_path)) == ["FAILED", "FINISHED"]

    output = finish(process := start(tmp_path, *SWEEP, *local))
    assert process.returncode == 0, output
    assert statuses(tmp_path) == {killed: ("continued", None), 1 - killed: ("reused", None)}
    assert in_mlflow(tmp_path) == ["FINISHED"] * 2
