"""Eight jobs at once write one MLflow store, an SQLite file or a server on PostgreSQL: no record is lost, none waits
for ever.

The jobs are what a job is to MLflow: a run folder that grows, and a mirror of it that follows.
"""

import contextlib
import glob
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_tracking import RESULT, RUN, row

from segsweep.core import artifacts
from segsweep.tracking import mirrors, recall, store

JOBS, EPOCHS = 8, 5
BINARIES = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), None)


def job(number: int, runs: Path, uri: str, sweep: Path, start) -> None:
    """A job as MLflow sees it, in a process of its own."""
    folder = runs / f"{number:016x}"
    artifacts.write_json(folder / "run.json", RUN | {"signature": folder.name, "name": f"seed={number}"})

    class Settings:
        pass

    Settings.uri, Settings.experiment = uri, "e"
    start.wait()
    with mirrors.Mirror(folder, Settings, sweep) as mirror:
        for epoch in range(1, EPOCHS + 1):
            artifacts.write_lines(folder / "history.jsonl", [row(e) for e in range(1, epoch + 1)])
            mirror.update()
        (folder / "last.pt").write_bytes(b"weights")
        artifacts.write_json(folder / "result.json", RESULT | {"epochs": EPOCHS})
    mirrors.copier().flush()


def written_at_once(uri: str, tmp_path: Path) -> None:
    sweep, runs = tmp_path / "sweep", tmp_path / "runs"
    place = {"uri": uri, "experiment": "e", "run_id": None, "error": None, "parent": True}
    artifacts.write_json(sweep / "sweep.json", {"mlflow": place})
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mlflow", "segsweep.tracking.mirrors"])  # imported once, not eight times
    start = processes.Barrier(JOBS + 1)
    jobs = [processes.Process(target=job, args=(n, runs, uri, sweep, start)) for n in range(JOBS)]
    with artifacts.lock(sweep):  # it lives
        for each in jobs:
            each.start()
        start.wait(120)
        parent = mirrors.start_parent(uri, "e", "sweep", "python -m segsweep -m")  # beside them, as in a sweep
        artifacts.write_json(sweep / "sweep.json", {"mlflow": place | {"run_id": parent}})
        for each in jobs:
            each.join(240)
    assert [each.exitcode for each in jobs] == [0] * JOBS
    folders = [runs / f"{number:016x}" for number in range(JOBS)]
    assert [mirrors.lacking(folder) for folder in folders] == [None] * JOBS

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
    assert recall.fetch(again / "last.pt")
    assert (again / "last.pt").read_bytes() == b"weights"


@pytest.mark.slow
def test_eight_jobs_at_once_make_and_write_an_sqlite_store(tmp_path):
    written_at_once(f"sqlite:///{tmp_path}/mlruns/mlflow.db", tmp_path)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], log: Path, **options) -> Iterator[subprocess.Popen]:
    """A server for as long as the block lasts, with what it started."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        yield process
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):  # to PostgreSQL the first is a fast shutdown
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(20)


def until_it_answers(process: subprocess.Popen, log: Path, what: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            what()
            return
        assert process.poll() is None, f"it ended:\n{log.read_text()}"
        time.sleep(0.1)
    pytest.fail(f"it does not answer:\n{log.read_text()}")


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of an MLflow server on a PostgreSQL of its own; where PostgreSQL is installed it has to work."""
    if BINARIES is None:
        pytest.skip("PostgreSQL is not installed: no /usr/lib/postgresql/*/bin (apt-get install postgresql)")
    import psycopg2

    place = Path(tempfile.mkdtemp(prefix="segsweep-postgres-"))
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root
    if user:
        shutil.chown(place, "postgres", "postgres")
    port = free_port()
    place_of_it = f"segsweep@127.0.0.1:{port}/postgres"
    uri = f"postgresql+psycopg2://{place_of_it}"  # the driver by name: which is the default depends on SQLAlchemy
    environment = {"cwd": place, "env": os.environ | {"LC_ALL": "C"}}
    initdb = [f"{BINARIES}/initdb", "-D", "data", "-U", "segsweep", "-A", "trust", "--no-sync", "-E", "UTF8"]
    made = subprocess.run(initdb, capture_output=True, text=True, **environment, **user)
    assert made.returncode == 0, made.stdout + made.stderr
    postgres = [f"{BINARIES}/postgres", "-D", "data", "-h", "127.0.0.1", "-p", str(port), "-k", str(place), "-F"]
    web = free_port()
    mlflow = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    mlflow += ["--port", str(web), "--workers", "2", "--artifacts-destination", str(tmp_path / "artifacts")]
    address = f"http://127.0.0.1:{web}"
    logs = tmp_path / "postgres.log", tmp_path / "mlflow.log"
    jobless = {"env": os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}}
    try:
        with running(postgres, logs[0], **environment, **user) as database:
            until_it_answers(database, logs[0], lambda: psycopg2.connect(f"postgresql://{place_of_it}").close())
            with running(mlflow, logs[1], **jobless) as served:
                until_it_answers(served, logs[1], lambda: urllib.request.urlopen(f"{address}/health", timeout=5))
                yield address
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_eight_jobs_at_once_write_a_server_on_postgresql(tmp_path, server):
    written_at_once(server, tmp_path)
