"""A sweep that is interrupted anywhere and started again ends with the same numbers, to the last bit on a CPU.

`make soak` runs the long form: SEGSWEEP_SOAK=20 kills instead of three.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import finish, openers, start, until

from segsweep.core import locks
from segsweep.tracking import copying

KILLS = int(os.environ.get("SEGSWEEP_SOAK", "3"))
TINY = ["scheduler=constant", "data.patients=6", "data.slices=4", "data.image_size=16", "report=false"]
TINY += ["model.width=4", "model.depth=2", "precision=fp32"]
SWEEP = ["-m", "model=unet,r2unet", "epochs=2,3,5", *TINY]
TIMES = ("seconds", "rate", "images_per_second", "peak_memory", "created", "lr")


def metrics(cwd: Path) -> dict[str, dict]:
    """signature -> everything in the record that is no measurement of time."""
    found = {}
    for result in cwd.glob("multirun/runs/*/result.json"):
        record = json.loads(result.read_text())
        history = [json.loads(line) for line in (result.parent / "history.jsonl").read_text().splitlines()]
        rows = [{k: v for k, v in row.items() if not any(t in k for t in TIMES)} for row in history]
        found[result.parent.name] = {"metrics": record["metrics"], "history": rows, "objective": record["objective"]}
    return found


def in_mlflow(cwd: Path) -> dict[str, str]:
    """signature -> the status of its run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("segsweep")
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "signature" in run.data.tags]
    found = {run.data.tags["signature"]: run.info.status for run in runs}
    assert len(found) == len(runs)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("reference") / "work"
    output = finish(start(cwd, *SWEEP))
    assert len(metrics(cwd)) == 6, output
    return metrics(cwd)


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_record(tmp_path, undisturbed):
    """A moment: when so many files more have been written, of which a run has about twenty."""
    moments, killed, places = random.Random(0), 0, itertools.count()
    cwd = tmp_path / "work"
    while killed < KILLS:
        enough = len(list(tmp_path.rglob("*"))) + moments.randint(1, 60)
        process = start(cwd, *SWEEP, start_new_session=True)
        until(lambda p=process, enough=enough: p.poll() is not None or len(list(tmp_path.rglob("*"))) >= enough)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output = finish(process)
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:  # it came to its end before: the next begins another
            assert metrics(cwd) == undisturbed, output
            cwd = tmp_path / f"work{next(places)}"
    output = finish(start(cwd, *SWEEP))
    assert metrics(cwd) == undisturbed, output
    assert in_mlflow(cwd) == dict.fromkeys(undisturbed, "FINISHED")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sweep_with_its_state_saved_and_says_how_to_go_on(tmp_path, undisturbed, number):
    cwd = tmp_path / "work"
    process = start(cwd, *SWEEP)
    # what is written after a state: SIGTERM leaves no time for more
    until(lambda: list(cwd.glob("multirun/runs/*/history.jsonl")) or process.poll() is not None)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 130, output
    assert "To go on: python -m segsweep -m model=unet,r2unet" in output
    begun = [file.parent for file in cwd.glob("multirun/runs/*/history.jsonl")]
    ended = {True: "FINISHED", False: "KILLED"}
    assert begun, output
    known = {run.name: ended[(run / "result.json").exists()] for run in begun}
    assert in_mlflow(cwd) == known, ([copying.lacking(run) for run in begun], output)
    output = finish(start(cwd, *SWEEP))
    assert metrics(cwd) == undisturbed, output
    assert "continued" in output or "reused" in output


@pytest.mark.slow
def test_shared_epochs_are_trained_once_and_equal_runs_trained_apart(tmp_path, undisturbed):
    apart: dict[str, dict] = {}
    for epochs in (2, 3, 5):
        cwd = tmp_path / f"apart{epochs}"
        output = finish(start(cwd, "model=unet", f"epochs={epochs}", *TINY, "tracking=none"))
        assert len(metrics(cwd)) == 1, output
        apart |= metrics(cwd)
    assert apart.items() <= undisturbed.items()


@pytest.mark.slow
def test_two_processes_that_want_the_same_run_train_it_once(tmp_path):
    both = [start(tmp_path, "epochs=3", *TINY, "tracking=none") for _ in range(2)]
    outputs = [finish(process) for process in both]
    statuses = sorted(json.loads(job.read_text())["status"] for job in tmp_path.glob("multirun/*/*/job.json"))
    assert statuses == ["finished", "reused"], outputs


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_who_waits_for_another_process_is_stopped_by_one_ctrl_c(tmp_path, launcher):
    again = ["-m", "seed=0", "epochs=1", *TINY, "tracking=none", f"hydra/launcher={launcher}"]
    finish(start(tmp_path, *again))
    (result,) = tmp_path.glob("multirun/runs/*/result.json")
    with locks.lock(result.parent):
        process = start(tmp_path, *again)
        until(lambda: set(openers(result.parent / "lock")) - {os.getpid()})
        process.send_signal(signal.SIGINT)
        output = finish(process, timeout=60)
    assert process.returncode == 130, output
    assert "To go on: python -m segsweep" in output


MEETS = """
import os, signal, sys
class Meets:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Meets())
signal.signal(signal.SIGINT, signal.default_int_handler)  # who is started by a script with & does not hear it
from segsweep.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["hydra", "segsweep.sweeps.worker", "segsweep.sweeps.preflight", "torch"])
def test_a_ctrl_c_before_the_first_job_is_no_traceback(tmp_path, module):
    """While it imports what it needs: its first modules, its workers', what checks the line, what counts operations."""
    given = ["-m", "seed=0,1", "epochs=50", *TINY, "tracking=none", "paths.runs=multirun"]
    line = [sys.executable, "-c", MEETS.format(module=module), *given]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("multirun/runs/*/history.jsonl"))


def holders(file: Path) -> list[int]:
    """Processes that hold the lock on a file."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(line[4]) for line in lines if f":{file.stat().st_ino}" in " ".join(line)]


@pytest.mark.slow
def test_who_waits_for_the_same_run_takes_over_when_the_first_dies(tmp_path):
    both = {p.pid: p for p in (start(tmp_path, "epochs=40", *TINY, "tracking=none") for _ in range(2))}
    (lock,) = until(lambda: list(tmp_path.glob("multirun/runs/*/lock")))
    until(lambda: set(openers(lock)) == both.keys() and list(tmp_path.glob("multirun/trajectories/*/state_*.pt")))
    (first,) = (both.pop(pid) for pid in holders(lock))
    (second,) = both.values()
    first.kill()
    finish(first)
    output = finish(second)
    found = [json.loads(file.read_text()) for file in tmp_path.glob("multirun/2*/0/job.json")]
    assert {job["pid"]: job["status"] for job in found} == {first.pid: "running", second.pid: "continued"}, output
    (history,) = tmp_path.glob("multirun/runs/*/history.jsonl")
    assert len(history.read_text().splitlines()) == 40
