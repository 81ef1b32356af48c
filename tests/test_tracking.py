"""MLflow mirrors the run folder: whole, once, and again after it was out of reach."""

import json
import math
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf

from segsweep.core import artifacts, locks
from segsweep.core.session import session
from segsweep.tracking import copying, mirrors, store

RUN = {
    "signature": "0123456789abcdef",
    "group": "g",
    "trajectory": "t",
    "name": "model=unet",
    "command": "python -m segsweep model=unet",
    "factors": {"model": "unet", "optim": "adam", "optim.lr": 0.001, "epochs": 3},
    "data": {"name": "phantom", "digest": "d" * 64, "patients": 6, "slices": 48},
    "split": {"leaks": False, "train": 32, "val": 8, "test": 8},
    "evaluated_on": "val",
    "device": "cpu: test",
    "versions": {"torch": "2"},
    "commit": "abc",
}


def row(epoch: int) -> dict:
    facts = {"epoch": epoch, "lr": 0.1, "seconds": 1.0}
    return facts | {"train/loss": 1 / epoch, "val/dice": epoch / 10, "val/iou": math.nan}


RESULT = {
    "status": "finished",
    "epochs": 3,
    "metrics": {"train/loss": 1 / 3, "val/dice": 0.3, "test/dice": 0.25, "test/hd95": None},
    "training_seconds": 3.0,
    "evaluation_seconds": 1.0,
    "total_seconds": 5.0,
    "images_per_second": 32.0,
    "peak_memory_bytes": 2**30,
    "parameters": 1000,
    "gflops": 1.5,
    "micro_batches": 2,
    "objective": 0.3,
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "runs" / RUN["signature"]
    artifacts.write_json(place / "run.json", RUN)
    OmegaConf.save({"tracking": {"uri": None, "experiment": "e"}}, place / "config.yaml")
    artifacts.write_lines(place / "history.jsonl", [row(1), row(2)])
    return place


def the_run(uri: str):
    client = store.connect(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    return client, run


def finish(folder) -> None:
    artifacts.write_lines(folder / "history.jsonl", [row(1), row(2), row(3)])
    (folder / "curves.png").write_bytes(b"png")
    (folder / "last.pt").write_bytes(b"weights")
    artifacts.write_json(folder / "result.json", RESULT)


def test_a_run_is_copied_while_it_goes_on_and_closed_at_its_end(uri, folder):
    mirrors.push(folder, uri, "e", None, final=False)
    client, run = the_run(uri)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "model=unet"
    assert run.data.params == {"model": "unet", "optim": "adam", "optim.lr": "0.001", "epochs": "3"}
    assert run.data.metrics["train/loss"] == 0.5
    assert "val/iou" not in run.data.metrics
    (source,) = run.inputs.dataset_inputs
    assert source.dataset.name == "phantom"

    finish(folder)
    mirrors.push(folder, uri, "e", None, final=True)
    client, run = the_run(uri)
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "finished"
    steps = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["test/dice"] == 0.25
    assert run.data.metrics["peak_memory_mib"] == 1024
    assert run.data.metrics["micro_batches"] == 2
    assert "test/hd95" not in run.data.metrics
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert files == {"run.json", "config.yaml", "history.jsonl", "result.json", "figures", "weights"}
    assert [f.path for f in client.list_artifacts(run.info.run_id, "weights")] == ["weights/last.pt"]


def test_what_stopped_early_is_finished_and_says_so(uri, folder):
    finish(folder)
    stopped = {"stopped": {"epoch": 3, "of": 9, "reason": "no gain"}}
    artifacts.write_json(folder / "result.json", RESULT | stopped)
    mirrors.push(folder, uri, "e", None, final=True)
    _, run = the_run(uri)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")
    assert run.data.tags["stopped"] == "stopped early after epoch 3 of 9: no gain"


def test_copying_twice_changes_nothing_even_when_the_note_of_it_is_lost(uri, folder):
    finish(folder)
    first = mirrors.push(folder, uri, "e", None, final=True)
    assert mirrors.push(folder, uri, "e", None, final=True) == first
    (folder / "mlflow.json").unlink()
    assert mirrors.push(folder, uri, "e", None, final=True) == first
    the_run(uri)


def test_a_data_set_that_another_run_brings_at_the_same_time_is_given_again(uri, folder, monkeypatch):
    client, given = type(store.connect(uri)), []
    whole = client.log_inputs

    def once(*what, **more):
        given.append(what)
        if len(given) == 1:
            raise MlflowException("BAD_REQUEST: duplicate key value violates unique constraint")
        return whole(*what, **more)

    monkeypatch.setattr(client, "log_inputs", once)
    mirrors.push(folder, uri, "e", None, final=False)
    assert len(given) == 2
    assert len(the_run(uri)[1].inputs.dataset_inputs) == 1


def test_an_interrupted_run_is_closed_and_goes_on_as_the_same_run(uri, folder):
    first = mirrors.push(folder, uri, "e", None, final=True)
    _, run = the_run(uri)
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "interrupted")
    assert mirrors.push(folder, uri, "e", None, final=False) == first
    assert the_run(uri)[1].info.status == "RUNNING"
    finish(folder)
    mirrors.push(folder, uri, "e", None, final=True)
    assert the_run(uri)[1].info.status == "FINISHED"


def test_a_failure_is_failed_with_its_class_and_error(uri, folder):
    artifacts.write_json(folder / "failure.json", {"class": "nan", "error": "the loss became nan at step 3"})
    mirrors.push(folder, uri, "e", None, final=True)
    _, run = the_run(uri)
    assert run.info.status == "FAILED"
    assert (run.data.tags["failure"], run.data.tags["error"]) == ("nan", "the loss became nan at step 3")


def test_jobs_go_under_their_sweep_once_its_run_is_there(uri, folder, tmp_path):
    sweep = tmp_path / "sweep"
    parent = mirrors.start_parent(uri, "e", "sweep", "python -m segsweep -m")
    place = {"uri": uri, "experiment": "e", "run_id": parent, "error": None, "parent": True}
    artifacts.write_json(sweep / "sweep.json", {"mlflow": place})
    finish(folder)
    run_id = mirrors.push(folder, uri, "e", sweep, final=True)
    assert store.connect(uri).get_run(run_id).data.tags["mlflow.parentRunId"] == parent
    (tmp_path / "table.txt").write_text("table")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "dice.png").write_bytes(b"\x89PNG")
    files = [tmp_path / "table.txt", tmp_path / "none"]
    mirrors.end_parent(uri, parent, "FINISHED", files, tmp_path / "figures", "- **adam** is ahead")
    client = store.connect(uri)
    ended = client.get_run(parent)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["mlflow.note.content"] == "`python -m segsweep -m`\n\n- **adam** is ahead"
    assert {file.path for file in client.list_artifacts(parent)} == {"table.txt", "figures"}
    assert [file.path for file in client.list_artifacts(parent, "figures")] == ["figures/dice.png"]


def test_a_run_deleted_in_mlflow_is_copied_whole_again(uri, folder):
    finish(folder)
    first = mirrors.push(folder, uri, "e", None, final=True)
    store.connect(uri).delete_run(first)
    assert mirrors.push(folder, uri, "e", None, final=True) != first
    _, run = the_run(uri)
    assert (run.info.status, run.data.metrics["train/loss"]) == ("FINISHED", pytest.approx(1 / 3))


def test_a_run_trained_anew_takes_the_place_of_the_old_one(uri, folder):
    finish(folder)
    first = mirrors.push(folder, uri, "e", None, final=True)
    mirrors.forget(folder)
    (folder / "result.json").unlink()
    artifacts.write_lines(folder / "history.jsonl", [row(1)])
    assert mirrors.push(folder, uri, "e", None, final=False) != first
    client, run = the_run(uri)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1]


def test_a_run_is_forgotten_while_nobody_copies_it(folder, monkeypatch):
    """A copy under way would write over it what it has read before."""
    found, write = [], artifacts.write_json

    def spied(path, *given, **more):
        with locks.free(folder / "mlflow.lock") as taken:
            found.append(taken)
        write(path, *given, **more)

    monkeypatch.setattr(artifacts, "write_json", spied)
    mirrors.forget(folder)
    assert found == [locks.IN_USE]
    assert artifacts.read_json(folder / store.STATE) == {"anew": True}


def test_a_run_without_best_weights_goes_to_a_new_store_when_its_old_one_is_gone(uri, folder, tmp_path):
    finish(folder)
    mirrors.push(folder, uri, "e", None, final=True)
    state = json.loads((folder / "mlflow.json").read_text())
    artifacts.write_json(folder / "mlflow.json", state | {"uri": f"sqlite:///{tmp_path}/gone/mlflow.db"})
    mirrors.push(folder, uri, "other", None, final=True)
    (folder / "last.pt").unlink()
    artifacts.write_json(folder / "mlflow.json", state | {"uri": "http://127.0.0.1:9"})
    client = store.connect(uri)
    run = client.get_run(mirrors.push(folder, uri, "third", None, final=True))
    assert run.info.status == "FINISHED"


def test_tags_of_an_earlier_end_go_whoever_set_them(uri, folder):
    artifacts.write_json(folder / "failure.json", {"class": "nan", "error": "the loss became nan at step 3"})
    mirrors.push(folder, uri, "e", None, final=True)
    (folder / "mlflow.json").unlink()  # as on another machine
    (folder / "failure.json").unlink()
    finish(folder)
    client, run = the_run(uri)
    client.delete_tag(run.info.run_id, "error")  # and one that was cut off in the middle of this
    mirrors.push(folder, uri, "e", None, final=True)
    _, run = the_run(uri)
    assert run.info.status == "FINISHED"
    assert not {"failure", "error"} & run.data.tags.keys()


def test_a_store_is_made_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSWEEP_CACHE", "/proc/nowhere")
    assert store.connect(f"sqlite:///{tmp_path}/mlruns/mlflow.db").search_experiments()


@pytest.mark.parametrize("name", ["/elsewhere", "../../up", "..", "a/../../b"])
def test_an_experiments_name_leads_to_no_folder_elsewhere(tmp_path, name):
    client = store.connect(f"sqlite:///{tmp_path}/mlflow.db")
    place = Path(client.get_experiment(store.experiment_id(client, name)).artifact_location.removeprefix("file://"))
    assert place.resolve().parent == tmp_path / "artifacts"


def test_what_a_killed_process_left_running_is_closed_and_what_lives_is_not(uri, folder, tmp_path):
    mirrors.push(folder, uri, "e", None, final=False)
    with locks.lock(folder):
        mirrors.close_dead(uri, "e", tmp_path)
        assert the_run(uri)[1].info.status == "RUNNING"
    mirrors.close_dead(uri, "e", tmp_path)
    _, run = the_run(uri)
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "interrupted")


def test_a_run_that_ended_well_before_its_process_was_killed_is_closed_as_finished(uri, folder, tmp_path):
    mirrors.push(folder, uri, "e", None, final=False)
    finish(folder)
    mirrors.close_dead(uri, "e", tmp_path)
    assert the_run(uri)[1].info.status == "FINISHED"


def test_two_processes_that_copy_one_run_make_one(uri, folder):
    finish(folder)
    code = f"""
from pathlib import Path
from segsweep.tracking import copying, mirrors
print(mirrors.push(Path({str(folder)!r}), {uri!r}, "e", None, final=True))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {process.communicate(timeout=120)[0] for process in both}
    assert len(ids) == 1
    client, run = the_run(uri)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3]


def test_of_two_machines_that_begin_one_run_at_once_one_run_is_left(uri, folder, tmp_path, monkeypatch):
    """Neither finds the other's run before it makes its own; the later one sees both, and gives its own up."""
    other = tmp_path / "other" / folder.name
    shutil.copytree(folder, other)
    monkeypatch.setattr(mirrors, "find", lambda *arguments: None)
    monkeypatch.setattr(mirrors, "_first", lambda client, experiment, signature, mine: mine)
    ids = {mirrors.push(each, uri, "e", None, final=False) for each in (folder, other)}
    assert len(ids) == 2
    monkeypatch.undo()
    finish(folder)
    finish(other)
    ends = [mirrors.push(each, uri, "e", None, final=True) for each in (other, folder)]
    assert ends[0] == ends[1]
    client, run = the_run(uri)
    assert (run.info.run_id, run.info.status) == (ends[0], "FINISHED")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3]


class Settings:
    uri = "http://127.0.0.1:9"  # the discard port: nobody answers
    experiment = "e"


def test_mlflow_out_of_reach_costs_nothing_and_sync_brings_it_up_to_date(uri, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with copying.Mirror(folder, Settings(), None) as mirror:
        mirror.update()
        finish(folder)
    copying.copier().flush()
    assert copying.lacking(folder)
    command = [sys.executable, "-m", "segsweep.sync"]
    refused = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "--uri" in refused.stderr
    done = subprocess.run([*command, str(folder), "--uri", uri], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert the_run(uri)[1].info.status == "FINISHED"
    assert copying.lacking(folder) is None
    state = json.loads((folder / "mlflow.json").read_text())
    assert (state["epochs"], state["status"]) == (3, "finished")


def test_a_sweep_killed_before_it_had_a_parent_run_is_not_waited_for(uri, folder, tmp_path):
    finish(folder)
    sweep = tmp_path / "sweep"
    place = {"uri": uri, "experiment": "e", "run_id": None, "error": None, "parent": True}
    artifacts.write_json(sweep / "sweep.json", {"name": "sweep", "mlflow": place})
    waiting = ThreadPoolExecutor(1).submit
    with locks.lock(sweep):  # it lives
        found = waiting(mirrors._parent, sweep, uri)
        time.sleep(0.3)
        assert not found.done()
        artifacts.write_json(sweep / "sweep.json", {"name": "sweep", "mlflow": place | {"run_id": "a"}})
        assert found.result(timeout=20) == "a"
    artifacts.write_json(sweep / "sweep.json", {"name": "sweep", "mlflow": place})
    waiting(mirrors.push, folder, uri, "e", sweep, final=True).result(timeout=30)  # not the minute of a living one
    assert "mlflow.parentRunId" not in the_run(uri)[1].data.tags


def test_sync_says_where_there_is_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-m", "segsweep.sync", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "run.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_killed_while_it_makes_the_store_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    maker = subprocess.Popen([sys.executable, "-c", f"from segsweep.tracking import store; store.connect({uri!r})"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((tmp_path / "cache").glob(".mlflow-*.part.db")):
        time.sleep(0.02)
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
    (default,) = store.connect(uri).search_experiments()
    assert default.artifact_location == str(tmp_path / "mlruns" / "0")


def test_sync_names_a_damaged_record_and_copies_the_others(uri, folder, tmp_path):
    finish(folder)
    damaged = folder.parent / "fedcba9876543210"
    shutil.copytree(folder, damaged)
    (damaged / "config.yaml").unlink()
    command = [sys.executable, "-m", "segsweep.sync", str(tmp_path), "--uri", uri]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{damaged}/config.yaml is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert the_run(uri)[1].data.tags["signature"] == folder.name


def test_the_first_copy_lets_the_first_step_go_before_it(tmp_path, monkeypatch):
    copied = []
    session().copier = copying.Copier(later=60.0)
    monkeypatch.setattr(mirrors, "push", lambda folder, *given, final: copied.append(final))
    with copying.Mirror(tmp_path, OmegaConf.create({"uri": "sqlite:///x", "experiment": "e"}), None) as mirror:
        mirror.update()
        time.sleep(0.2)
        assert not copied
    session().copier.flush()
    assert copied == [True]  # the latest of the three
