"""A sweep that is interrupted anywhere and started again ends with the same numbers, to the last bit on a CPU.

`make soak` runs the long form: SEGSWEEP_SOAK=20 kills instead of three.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from segsweep.core import artifacts

KILLS = int(os.environ.get("SEGSWEEP_SOAK", "3"))
TINY = [
    "scheduler=constant",
    "data.patients=6",
    "data.slices=8",
    "data.image_size=32",
    "model.width=4",
    "model.depth=2",
    "precision=fp32",
    "report=false",
]
SWEEP = ["-m", "model=unet,r2unet", "epochs=2,3,5", *TINY]
TIMES = ("seconds", "rate", "images_per_second", "peak_memory", "created", "lr")


def start(cwd: Path, *arguments: str, **options) -> subprocess.Popen:
    paths = ["paths.runs=runs", f"paths.cache={cwd.parent / 'cache'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "segsweep", *arguments, *paths]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def finish(process: subprocess.Popen, timeout: float = 240) -> str:
    output, _ = process.communicate(timeout=timeout)
    return output


def metrics(cwd: Path) -> dict[str, dict]:
    """signature -> everything in the record that is no measurement of time."""
    found = {}
    for result in (cwd / "runs" / "runs").glob("*/result.json"):
        record = json.loads(result.read_text())
        history = [json.loads(line) for line in (result.parent / "history.jsonl").read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if not any(t in k for t in TIMES)} for row in history]
        found[result.parent.name] = {"metrics": record["metrics"], "history": rows, "objective": record["objective"]}
    return found


def mlflow_runs(cwd: Path) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("segsweep")
    return [run for run in client.search_runs([experiment.experiment_id]) if "signature" in run.data.tags]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("reference") / "work"
    cwd.mkdir()
    output = finish(start(cwd, *SWEEP))
    assert len(metrics(cwd)) == 6, output
    return metrics(cwd)


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_record(tmp_path, undisturbed):
    cwd = tmp_path / "work"
    cwd.mkdir()
    moments = random.Random(0)
    for _ in range(KILLS):
        process = start(cwd, *SWEEP, start_new_session=True)
        time.sleep(moments.uniform(1.5, 9))
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
    output = finish(start(cwd, *SWEEP))
    assert metrics(cwd) == undisturbed, output
    runs = mlflow_runs(cwd)
    assert sorted(run.data.tags["signature"] for run in runs) == sorted(undisturbed)
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sweep_with_its_state_saved_and_says_how_to_go_on(tmp_path, undisturbed, number):
    cwd = tmp_path / "work"
    cwd.mkdir()
    process = start(cwd, *SWEEP)
    while not list((cwd / "runs").glob("trajectories/*/state_*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 130, output
    assert "To go on: python -m segsweep -m model=unet,r2unet" in output
    assert {run.info.status for run in mlflow_runs(cwd)} <= {"FINISHED", "KILLED"}
    output = finish(start(cwd, *SWEEP))
    assert metrics(cwd) == undisturbed, output
    assert "continued" in output or "reused" in output


@pytest.mark.slow
def test_shared_epochs_are_trained_once_and_equal_runs_trained_apart(tmp_path, undisturbed):
    apart: dict[str, dict] = {}
    for epochs in (2, 3, 5):
        cwd = tmp_path / f"apart{epochs}"
        cwd.mkdir()
        output = finish(start(cwd, "-m", "model=unet", f"epochs={epochs}", *TINY, "tracking=none"))
        assert len(metrics(cwd)) == 1, output
        apart |= metrics(cwd)
    assert apart.items() <= undisturbed.items()


@pytest.mark.slow
def test_two_processes_that_want_the_same_run_train_it_once(tmp_path):
    cwd = tmp_path / "work"
    cwd.mkdir()
    both = [start(cwd, "epochs=3", *TINY, "tracking=none") for _ in range(2)]
    outputs = [finish(process) for process in both]
    statuses = sorted(json.loads(job.read_text())["status"] for job in (cwd / "runs").glob("*/*/job.json"))
    assert statuses == ["finished", "reused"], outputs


def holders(file: Path) -> list[int]:
    """Processes that hold the lock on a file."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(line[4]) for line in lines if f":{file.stat().st_ino}" in " ".join(line)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_who_waits_for_another_process_is_stopped_by_one_ctrl_c(tmp_path, launcher):
    cwd = tmp_path / "work"
    cwd.mkdir()
    again = ["-m", "seed=0", "epochs=1", *TINY, "tracking=none", f"hydra/launcher={launcher}"]
    finish(start(cwd, *again))
    (result,) = (cwd / "runs").glob("runs/*/result.json")
    with artifacts.lock(result.parent):
        process = start(cwd, *again)
        begun = time.monotonic()
        while len(list((cwd / "runs").glob("2*/0/job.json"))) < 2 and time.monotonic() - begun < 60:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        output = finish(process, timeout=20)
    assert process.returncode == 130, output
    assert "To go on: python -m segsweep" in output


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.8, 1.6])
def test_a_ctrl_c_before_the_first_job_is_no_traceback(tmp_path, seconds):
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # who is started by a script with & does not
    process = start(tmp_path, "-m", "seed=0,1", "epochs=50", *TINY, "tracking=none", preexec_fn=heard)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output = finish(process, timeout=60)
    assert process.returncode in (130, -signal.SIGINT), output  # the latter, with a traceback, while Python starts
    assert "Traceback" not in output or "segsweep/cli.py" not in output, output


@pytest.mark.slow
def test_who_waits_for_the_same_run_takes_over_when_the_first_dies(tmp_path):
    cwd = tmp_path / "work"
    cwd.mkdir()
    both = [start(cwd, "epochs=100", "checkpoint.every=5", *TINY, "tracking=none") for _ in range(2)]
    while True:
        assert [process.poll() for process in both] == [None, None], [finish(process) for process in both]
        begun = {json.loads(file.read_text())["pid"] for file in (cwd / "runs").glob("2*/0/job.json")}
        if len(begun) == 2 and list((cwd / "runs").glob("trajectories/*/state_*.pt")):
            break
        time.sleep(0.02)
    time.sleep(1)  # the second has met the lock by then
    (lock,) = (cwd / "runs").glob("runs/*/lock")
    (first,) = (p for p in both if p.pid in holders(lock))
    (second,) = (p for p in both if p is not first)
    first.kill()
    finish(first)
    output = finish(second)
    jobs = [json.loads(file.read_text()) for file in (cwd / "runs").glob("2*/0/job.json")]
    assert {job["pid"]: job["status"] for job in jobs} == {first.pid: "running", second.pid: "continued"}, output
    (history,) = (cwd / "runs").glob("runs/*/history.jsonl")
    assert len(history.read_text().splitlines()) == 100
