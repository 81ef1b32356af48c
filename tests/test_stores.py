"""Eight jobs at once write one MLflow store, an SQLite file or a server on PostgreSQL: no record is lost, none waits
for ever.

The jobs are what a job is to MLflow: a run folder that grows, and a mirror of it that follows.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from commands import until
from test_tracking import RESULT, RUN, row

from segsweep.core import artifacts, locks
from segsweep.tracking import copying, mirrors, recall, store

JOBS, EPOCHS = 8, 5


def job(number: int, runs: Path, uri: str, sweep: Path, start) -> None:
    """A job as MLflow sees it, in a process of its own."""
    folder = runs / f"{number:016x}"
    artifacts.write_json(folder / "run.json", RUN | {"signature": folder.name, "name": f"seed={number}"})

    class Settings:
        pass

    Settings.uri, Settings.experiment = uri, "e"
    start.wait()
    with copying.Mirror(folder, Settings, sweep) as mirror:
        for epoch in range(1, EPOCHS + 1):
            artifacts.write_lines(folder / "history.jsonl", [row(e) for e in range(1, epoch + 1)])
            mirror.update()
        (folder / "last.pt").write_bytes(b"weights")
        artifacts.write_json(folder / "result.json", RESULT | {"epochs": EPOCHS})
    copying.copier().flush()


def written_at_once(uri: str, tmp_path: Path) -> None:
    sweep, runs = tmp_path / "sweep", tmp_path / "runs"
    place = {"uri": uri, "experiment": "e", "run_id": None, "error": None, "parent": True}
    artifacts.write_json(sweep / "sweep.json", {"mlflow": place})
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mlflow", "segsweep.tracking.mirrors"])  # imported once, not eight times
    start = processes.Barrier(JOBS + 1)
    jobs = [processes.Process(target=job, args=(n, runs, uri, sweep, start)) for n in range(JOBS)]
    with locks.lock(sweep):  # it lives
        for each in jobs:
            each.start()
        start.wait(120)
        parent = mirrors.start_parent(uri, "e", "sweep", "python -m segsweep -m")  # beside them, as in a sweep
        artifacts.write_json(sweep / "sweep.json", {"mlflow": place | {"run_id": parent}})
        for each in jobs:
            each.join(240)
    assert [each.exitcode for each in jobs] == [0] * JOBS
    folders = [runs / f"{number:016x}" for number in range(JOBS)]
    assert [copying.lacking(folder) for folder in folders] == [None] * JOBS

    client = store.connect(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "e"]
    found = client.search_runs([experiment.experiment_id], "tags.signature LIKE '%'")
    assert sorted(run.data.tags["signature"] for run in found) == [folder.name for folder in folders]
    for run in found:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.params == {key: str(value) for key, value in RUN["factors"].items()}
        steps = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted((m.step, m.value) for m in steps) == [(e, pytest.approx(1 / e)) for e in range(1, EPOCHS + 1)]
        assert run.data.metrics["test/dice"] == 0.25
        assert [f.path for f in client.list_artifacts(run.info.run_id, "weights")] == ["weights/last.pt"]
    again = tmp_path / "elsewhere" / folders[0].name
    again.mkdir(parents=True)
    for name in ("config.yaml", "split.json", "patients.csv"):  # of which these runs have none
        (again / name).write_text("{}")
        client.log_artifact(next(r.info.run_id for r in found if r.data.tags["signature"] == again.name), again / name)
        (again / name).unlink()
    assert recall.restorer().restore(again, uri, "e")
    assert artifacts.read_json(again / "result.json") == artifacts.read_json(folders[0] / "result.json")
    assert recall.fetch_alone(again / "last.pt", uri)
    assert (again / "last.pt").read_bytes() == b"weights"


@pytest.mark.slow
def test_eight_jobs_at_once_make_and_write_an_sqlite_store(tmp_path):
    written_at_once(f"sqlite:///{tmp_path}/mlruns/mlflow.db", tmp_path)


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of an MLflow server on a PostgreSQL of its own; where PostgreSQL is installed it has to work."""
    if postgres.PG_CTL is None:
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
    port, log = postgres.free_port(), tmp_path / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    jobless = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with postgres.server() as database, log.open("wb") as file:
        # the driver by name: which is the default depends on SQLAlchemy
        uri = database.url.replace("postgresql:", "postgresql+psycopg2:")
        served = subprocess.Popen(
            [*command, "--backend-store-uri", uri], stdout=file, stderr=file, env=jobless, start_new_session=True
        )
        try:
            until(lambda: served.poll() is not None or answers(port))
            assert served.poll() is None, f"it ended:\n{log.read_text()}"
            yield f"http://127.0.0.1:{port}"
        finally:
            for number in (signal.SIGINT, signal.SIGKILL):  # with what it started
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(served.pid, number)
                    served.wait(20)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
        return True
    return False


@pytest.mark.slow
def test_eight_jobs_at_once_write_a_server_on_postgresql(tmp_path, server):
    written_at_once(server, tmp_path)
