"""Worker processes that are killed, crash, hang and are stopped: what a sweep then has, and that none stays behind."""

import contextlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_jobs
from commands import finish, jobs, said, start, until
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import OmegaConf

from segsweep.config.schema import conf_dir
from segsweep.config.whitelist import hydras
from segsweep.core import artifacts, locks
from segsweep.core.session import session, thread
from segsweep.plugins import _cluster, _jobs, _local, _plan, cluster, local, plan
from segsweep.plugins._local import Job, LocalLauncher
from segsweep.sweeps import worker

SETTINGS = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "launcher" / "local.yaml"))
TINY = ["data.patients=4", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "precision=fp32"]
TINY += ["report=false"]
TESTS = Path(__file__).parent


@contextlib.contextmanager
def launcher(folder: Path, **settings: Any) -> Iterator[LocalLauncher]:
    values = {k: v for k, v in SETTINGS.items() if k != "_target_"} | {"devices": ["cpu"]} | settings
    overrides = [f"paths.runs={folder}", f"hydra.sweep.dir={folder}/sweep", f"paths.cache={folder}/cache", *TINY]
    with initialize_config_dir(str(conf_dir())):
        config = compose("config", overrides=[*overrides, "tracking=none"], return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(), hydras())
        made = LocalLauncher(**values)
        made.setup(hydra_context=context, task_function=toy_jobs.job, config=config)
        try:
            yield made
        finally:
            worker.pool().close()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    """Workers find the toy jobs, whose own records are in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def toys(*names: str) -> list[list[str]]:
    """One job each, that differ in their seed: 0, 1, 2, ..."""
    own = ["tracking=none", *TINY]
    return [[*own, f"+toy={name}", f"seed={number}"] for number, name in enumerate(names)]


def values(results: Any) -> list[float]:
    return [result.return_value for result in results]


def record(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / "sweep" / str(number) / "job.json").read_text())


def gone(pid: int) -> bool:
    """Ended, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_results_are_in_the_order_of_the_jobs_and_workers_are_kept_between_batches(tmp_path):
    with launcher(tmp_path, jobs_per_device=2) as made:
        results = made.launch(toys("slow", "seed", "threads", "pid"), 0)
        assert values(results)[:3] == [0.0, 1.0, 1.0]  # two threads shared by two workers
        assert [result.status for result in results] == [JobStatus.COMPLETED] * 4
        pids = {values(results)[3], *values(made.launch(toys("pid", "pid", "pid"), 4))}
        assert pids <= {float(w.process.pid) for w in made.workers}
        assert len(made.workers) == 2
    assert all(gone(int(pid)) for pid in pids)


def test_a_job_that_never_came_to_write_its_record_leaves_no_password(tmp_path):
    with launcher(tmp_path) as made:
        (job,) = toys("seed")
        made.launch([[*(o for o in job if o != "tracking=none"), "tracking.uri='https://me:hunter2@127.0.0.1:9'"]], 0)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if b"hunter2" in file.read_bytes()]


def test_a_worker_has_what_a_job_needs_before_it_says_that_it_is_ready():
    """It has imported it while the command line was checked; the sweep waits for the first job's imports else. ~2 s"""
    code = (
        "import sys; assert 'torch' not in sys.modules\n"
        "from segsweep.sweeps.worker import Worker\n"
        "one = Worker(); print(one.receive()[0], 'libtorch' in open(f'/proc/{one.process.pid}/maps').read())\n"
        "one.kill()"
    )
    assert said(code) == "ready True"


def test_one_slot_has_all_threads(tmp_path):
    with launcher(tmp_path) as made:
        assert values(made.launch(toys("threads"), 0)) == [2.0]


def test_by_default_a_cpus_cores_are_shared_out_over_the_jobs_of_the_whole_sweep(tmp_path, monkeypatch):
    from segsweep.core import environment
    from segsweep.sweeps import sweep

    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    monkeypatch.setattr(environment, "cores", lambda: 6)
    monkeypatch.setattr(environment, "memory", lambda: 64 * 2**30)
    session().sweep = sweep.Sweep(expected=2)
    with launcher(tmp_path) as made:
        assert values(made.launch(toys("threads"), 0)) == [3.0]  # of the two jobs one is left: with the same threads


def test_a_killed_worker_takes_down_its_job_alone(tmp_path):
    events = []
    session().sink = events.append
    with launcher(tmp_path, retries={}) as made:
        results = values(made.launch(toys("seed", "die", "seed"), 0))
    assert math.isnan(results[1])
    assert [results[0], results[2]] == [0.0, 2.0]
    job = record(tmp_path, 1)
    assert (job["status"], job["class"], job["number"]) == ("failed", "killed", 1)
    assert "SIGKILL" in job["error"]
    assert [(e["job"], e["status"]) for e in events if e["kind"] == "end"] == [
        (0, "finished"), (1, "failed"), (2, "finished"),
    ]  # fmt: skip


def test_system_exit_in_a_job_fails_that_job(tmp_path):
    with launcher(tmp_path) as made:
        results = values(made.launch(toys("leave", "seed"), 0))
        assert values(made.launch(toys("pid"), 2)) == [float((tmp_path / "sweep/0/pid").read_text())]
    assert math.isnan(results[0])
    assert results[1] == 1.0
    assert (record(tmp_path, 0)["class"], record(tmp_path, 0)["error"]) == ("error", "SystemExit: 3")


@pytest.mark.parametrize("kills", [0, 1])
def test_a_worker_that_the_system_ended_for_want_of_memory_is_oom(tmp_path, monkeypatch, kills):
    counts = iter([7, *[7 + kills] * 9])
    monkeypatch.setattr(_local, "oom_kills", lambda: next(counts))
    monkeypatch.setattr(_jobs, "oom_kills", lambda: next(counts))
    with launcher(tmp_path, retries={}) as made:
        made.launch(toys("die"), 0)
    assert record(tmp_path, 0)["class"] == ("oom" if kills else "killed")
    assert ("jobs_per_device" in record(tmp_path, 0)["error"]) == bool(kills)


def test_a_job_that_cannot_be_composed_fails_alone(tmp_path):
    with launcher(tmp_path) as made:
        results = values(made.launch([["model.widht=3"], *toys("seed")], 0))
    assert math.isnan(results[0])
    assert results[1] == 0.0
    assert record(tmp_path, 0)["class"] == "error"
    assert "widht" in record(tmp_path, 0)["error"]


def test_a_job_is_tried_again_as_often_as_its_class_may(tmp_path):
    events = []
    session().sink = events.append
    with launcher(tmp_path, retries={"killed": 1, "nan": 1}) as made:
        results = values(made.launch(toys("die_once", "fail_once", "die"), 0))
    assert results[:2] == [0.0, 1.0]
    assert math.isnan(results[2])
    assert sorted(e["job"] for e in events if e["kind"] == "retry") == [0, 1, 2]


def test_a_job_over_its_time_is_stopped_and_classed(tmp_path):
    """The first job's is over as soon as it has begun all that it begins; the second has all of it."""
    child = tmp_path / "sweep" / "0" / "child"
    with launcher(tmp_path, timeout_min=30) as made:
        assert made.timeout == 30 * 60

        def look(event: dict[str, Any]) -> None:
            if event["kind"] == "start" and event["job"] == 0:
                until(lambda: child.exists() and child.read_text())
                made.timeout = 0.6
            elif event["kind"] == "end":
                made.timeout = 30 * 60

        session().sink = look
        results = values(made.launch(toys("deaf", "seed"), 0))
        until(lambda: gone(int(child.read_text())))  # what the job had started, too
    assert math.isnan(results[0])
    assert results[1] == 1.0
    job = record(tmp_path, 0)
    assert (job["status"], job["class"]) == ("failed", "timeout")
    assert "timeout_min=0.01" in job["error"]


def test_what_does_not_fit_into_the_budget_is_listed_as_not_started(tmp_path):
    with launcher(tmp_path, budget_min=1e-6) as made:
        results = values(made.launch(toys("seed", "seed"), 0))
    assert all(math.isnan(value) for value in results)
    assert [record(tmp_path, n)["status"] for n in (0, 1)] == ["not started"] * 2
    assert "budget_min" in record(tmp_path, 0)["error"]
    assert not (tmp_path / "runs").exists()


def test_what_the_budget_left_out_comes_first_next_time_and_what_failed_last(tmp_path):
    """Job 0 uses the budget up, and fails; jobs 1 and 2 are not started."""
    events = []
    asked = toys("seed", "seed", "seed")
    with launcher(tmp_path, budget_min=60) as made:

        def over(event: dict[str, Any]) -> None:
            events.append(event)
            if event["kind"] == "start":
                made.budget = 0.0

        session().sink = over
        assert [math.isnan(value) for value in values(made.launch(asked, 0))] == [False, True, True]
        assert [record(tmp_path, n)["status"] for n in (1, 2)] == ["not started"] * 2
        assert [(e["job"], e["status"]) for e in events if e["kind"] == "end"] == [
            (0, "finished"), (1, "not started"), (2, "not started"),
        ]  # fmt: skip
        failed = Job(0, asked[0], tmp_path)
        failed.compose(made.compose, made.planner)
        failed.fail("nan", "the loss became nan")
        assert (failed.point.folder / "failure.json").exists()
        made.budget = 60.0
        session().sink = events.append
        events.clear()
        assert values(made.launch(asked, 0)) == [0.0, 1.0, 2.0]
    assert [e["job"] for e in events if e["kind"] == "start"] == [1, 2, 0]


def test_asked_to_stop_the_running_jobs_end_and_no_other_starts(tmp_path):
    def stop() -> None:
        until(lambda: (tmp_path / "sweep" / "0" / "pid").exists())
        session().stop()

    with launcher(tmp_path) as made:
        thread(stop)
        with pytest.raises(KeyboardInterrupt):
            made.launch(toys("hang", "seed"), 0)
        assert not (tmp_path / "sweep" / "1").exists()


def test_what_failed_is_told_before_it_is_tried_again_as_a_sweep_that_is_stopped_tries_nothing(tmp_path, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(Job, "mirror", lambda job: told.append(job.number))
    with launcher(tmp_path, retries={"killed": 1}) as made:
        job = Job(3, toys("seed")[0], tmp_path / "sweep" / "3")
        made._fail(job, "killed", "the worker process ended")
        assert (made.waiting, told) == ([job], [3])


def test_results_come_as_jobs_end(tmp_path):
    with launcher(tmp_path, jobs_per_device=2) as made:
        for number, overrides in enumerate(toys("last", "seed")):
            made.submit(overrides, number)
        assert made.wait()[0] == 1
        made.submit(toys("seed")[0], 7)
        assert {made.wait()[0], made.wait()[0]} == {0, 7}


def test_what_a_job_prints_is_shown_under_its_number(tmp_path):
    events = []
    session().sink = events.append
    with launcher(tmp_path) as made:
        made.launch(toys("print"), 3)
    assert {"kind": "text", "text": "seen by the user", "job": 3} in events


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no torch here\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with launcher(tmp_path) as made, pytest.raises(HydraException, match=r"exit code 3\nno torch here"):
        made.launch(toys("seed"), 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_is_left_behind_whatever_ends_the_parent(tmp_path, number):
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\nfrom segsweep.config.start import start\nstart()\n"
        "import test_local_launcher as t\n"
        "with t.launcher(pathlib.Path(sys.argv[2]), jobs_per_device=2) as made: made.launch(t.toys('deaf', 'deaf'), 0)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(TESTS), str(tmp_path)])
    files = [tmp_path / "sweep" / str(n) / name for n in (0, 1) for name in ("pid", "child")]
    pids = [int(until(lambda file=file: file.exists() and file.read_text())) for file in files]
    parent.send_signal(number)
    parent.wait()
    for pid in pids:
        until(lambda pid=pid: gone(pid))


# Order


def waiting(made: LocalLauncher, *ranks: tuple[int, float, str]) -> None:
    """Composed jobs of (state's rank, cost, trajectory), in this order."""
    import heapq
    from types import SimpleNamespace

    for number, (first, cost, trajectory) in enumerate(ranks):
        point = SimpleNamespace(trajectory=trajectory, state="new" if first else "finished")
        heapq.heappush(made.waiting, Job(number, [], Path(), point=point, rank=(first, -cost, number)))


def test_answers_come_first_then_the_longest_and_a_trajectory_runs_once_at_a_time():
    made = LocalLauncher(**{k: v for k, v in SETTINGS.items() if k != "_target_"})
    waiting(made, (1, 5.0, "a"), (1, 10.0, "a"), (1, 7.0, "b"), (0, 0.0, "c"), (2, 99.0, "d"))
    order = []
    for slot in range(4):
        job = made._next(over=False)
        order.append(job.number)
        made.running[slot] = job
    assert order == [3, 1, 2, 4]  # job 0 waits for job 1, of whose epochs it is a part
    assert made._next(over=False) is None
    made.running = {slot: job for slot, job in made.running.items() if job.number != 1}
    assert made._next(over=False).number == 0


# Devices and settings


@pytest.mark.parametrize(
    ("asked", "device", "count", "visible", "expected"),
    [
        ("auto", "auto", 0, None, [""]),
        ("auto", "cpu", 2, None, [""]),
        ("auto", "auto", 2, None, ["0", "1"]),
        ("auto", "cuda", 2, "3,GPU-77", ["3", "GPU-77"]),
        ("auto", "cuda:1", 2, None, [None]),
        ([0, 2], "auto", 4, None, ["0", "2"]),
        (["cpu"], "auto", 4, None, [""]),
    ],
)
def test_each_slot_sees_its_own_device(monkeypatch, asked, device, count, visible, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _local._devices(asked, device) == expected


@pytest.mark.parametrize(
    ("visible", "cores", "jobs", "memory_gib", "expected"),
    [
        ([""], 2, 4, 24, 2),
        ([""], 16, 4, 64, 4),  # with four threads each
        ([""], 16, 200, 64, 8),  # with two; memory is there for nine, with one
        ([""], 7, 4, 64, 3),  # with two, better than four with one
        ([""], 16, 200, 120, 16),
        ([""], 2, 1, 24, 1),
        ([""], 8, 100, 4, 1),
        (["0", "1"], 16, 100, 128, 1),
        ([None], 16, 100, 128, 1),
    ],
)
def test_on_a_cpu_a_job_runs_on_each_core_as_far_as_jobs_and_memory_go(
    monkeypatch, visible, cores, jobs, memory_gib, expected
):
    import torch

    from segsweep.core import environment

    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(environment, "cores", lambda: cores)
    monkeypatch.setattr(environment, "memory", lambda: memory_gib * 2**30)
    assert _local._at_once("auto", visible, jobs) == expected
    assert _local._at_once(3, visible, jobs) == 3


@pytest.mark.parametrize(
    ("expected", "sweeper", "overrides", "scheduler", "jobs"),
    [
        (4, {}, [], "${epochs}", 4),
        (6, {}, ["epochs=2,4,8"], "${epochs}", 6),
        (6, {}, ["epochs=2,4,8"], "3", 2),  # three lengths of each run share its epochs
        (2, {}, ["epochs=2,4,8"], "3", 1),
        (None, {"n_jobs": None, "n_trials": 20}, [], "3", 20),
        (None, {"n_jobs": 1, "n_trials": 20}, [], "3", 1),
        (None, {}, [], "3", _local.AHEAD),
    ],
)
def test_jobs_side_by_side_are_bounded_by_the_whole_sweep(expected, sweeper, overrides, scheduler, jobs):
    from segsweep.sweeps import sweep

    session().sweep = sweep.Sweep(expected=expected)
    hydra = {"sweeper": sweeper, "overrides": {"task": overrides}}
    config = OmegaConf.create({"hydra": hydra, "epochs": 4, "scheduler": {"T_max": scheduler}})
    assert _local._side_by_side(config) == jobs


def test_the_limits_of_a_container_are_those_of_all_groups_above_it(tmp_path):
    from segsweep.core.environment import _limits

    (tmp_path / "slurm" / "job").mkdir(parents=True)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "slurm" / "memory.max").write_text("17179869184\n")
    (tmp_path / "own").write_text("1:name=systemd:/\n0::/slurm/job\n")
    assert _limits("memory.max", tmp_path, tmp_path / "own") == ["17179869184", "max"]
    assert _limits("memory.max", tmp_path, tmp_path / "none") == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"jobs_per_device": 0}, "jobs_per_device=0: must be a whole number, at least 1"),
        ({"jobs_per_device": "two"}, "jobs_per_device=two: must be a whole number"),
        ({"jobs_per_device": 1.5}, "jobs_per_device=1.5: must be a whole number"),
        ({"timeout_min": 0}, "timeout_min=0: must be a number above 0"),
        ({"timeout_min": "abc"}, "timeout_min=abc: must be a number above 0"),
        ({"budget_min": -1}, "budget_min=-1: must be a number above 0"),
        ({"retries": {"oom": "x"}}, "retries.oom=x: must be a whole number, at least 0"),
        ({"retries": {"killed": -1}}, "retries.killed=-1: must be a whole number"),
        ({"retries": {"lost": 1}}, "classes are error, nan, oom, killed, timeout"),
        ({"devices": "gpu"}, "devices=gpu: auto, or a list"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, said):
    with pytest.raises(HydraException, match=said):
        LocalLauncher(**{k: v for k, v in SETTINGS.items() if k != "_target_"} | settings)


# The whole command


def command(cwd: Path, *arguments: str) -> subprocess.Popen:
    """On one thread, as the last bits of a result hang on their number."""
    return start(cwd, "-m", *arguments, *TINY, env=os.environ | {"OMP_NUM_THREADS": "1"})


def statuses(cwd: Path) -> dict[str, str]:
    """MLflow's status of each run, by signature."""
    query = "select tags.value, runs.status from runs join tags using (run_uuid) where tags.key = 'signature'"
    with contextlib.closing(sqlite3.connect(cwd / "mlruns" / "mlflow.db")) as database:
        found = database.execute(query).fetchall()
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_wrong_setting_is_one_message_and_leaves_no_sweep_behind(tmp_path):
    process = command(tmp_path, "seed=0,1", "tracking=none", "hydra.launcher.jobs_per_device=0")
    assert finish(process) == "hydra.launcher.jobs_per_device=0: must be a whole number, at least 1, or auto\n"
    assert process.returncode == 1
    assert not list(tmp_path.glob("multirun/*"))


@pytest.mark.slow
def test_a_sweep_with_a_killed_worker_goes_on_and_the_next_one_continues_it(tmp_path):
    """Two slots; one worker is killed in the middle of its job. Afterwards every run is as if nothing had been."""
    slots = ["hydra.launcher.jobs_per_device=2", "hydra.launcher.retries.killed=0"]
    sweep = ["seed=0,1,2", "epochs=30", *slots]
    process = command(tmp_path, *sweep)
    latest = until(lambda: list(tmp_path.glob("multirun/2*/0/job.json")))[0]
    (run,) = until(
        lambda: [f.parent for f in tmp_path.glob("multirun/runs/*/run.json") if '"seed": 0' in f.read_text()]
    )
    until(lambda: len(artifacts.read_lines(run / "history.jsonl")) > 1)
    os.kill(json.loads(latest.read_text())["pid"], signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 1, output
    first = jobs(tmp_path)
    assert [first[n]["status"] for n in (0, 1, 2)] == ["failed", "finished", "finished"], output
    assert first[0]["class"] == "killed"
    failure = json.loads((latest.parent / first[0]["run"] / "failure.json").read_text())
    assert (failure["class"], failure["epoch"] >= 1) == ("killed", True)
    assert statuses(tmp_path)[first[0]["signature"]] == "FAILED"
    with contextlib.closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
        assert database.execute("select value from tags where key = 'failure'").fetchall() == [("killed",)]
    assert "job 0 failed: killed: the worker process ended with signal SIGKILL" in output

    output = finish(process := command(tmp_path, *sweep))
    assert process.returncode == 0, output
    again = jobs(tmp_path)
    assert [again[n]["status"] for n in (0, 1, 2)] == ["continued", "reused", "reused"], output
    assert again[0]["signature"] == first[0]["signature"]
    assert set(statuses(tmp_path).values()) == {"FINISHED"}

    alone = tmp_path / "alone"
    finish(command(alone, "seed=0", "epochs=30", "tracking=none", "hydra/launcher=basic"))
    assert jobs(alone)[0]["metrics"] == again[0]["metrics"]


def test_what_hydra_finds_of_a_launcher_gives_the_launcher():
    settings = {key: value for key, value in SETTINGS.items() if key != "_target_"}
    assert type(local.LocalLauncher(**settings)) is _local.LocalLauncher
    assert type(plan.PlanLauncher()) is _plan.PlanLauncher
    assert cluster.RayLauncher(ray={"init": 1}).ray == {"init": 1}
    assert type(cluster.RayLauncher(ray={})) is _cluster.RayLauncher
    slurm = cluster.SlurmLauncher("local", timeout_min=3)
    assert (type(slurm), slurm.executor, slurm.params) == (_cluster.SlurmLauncher, "local", {"timeout_min": 3})


def test_the_time_of_a_job_stands_still_while_it_waits_for_another_command(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    job = Job(0, [], Path())
    job.start()
    for seconds, text in ((5, locks.WAITING), (60, "training"), (7, "testing")):
        clock[0] += seconds
        job.hear({"kind": "note", "text": text})
    assert clock[0] - job.began == 5 + 7
