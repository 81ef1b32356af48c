"""A run that another machine has finished is answered from MLflow: two working directories, one store."""

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlflow.artifacts
import pytest
from omegaconf import OmegaConf
from test_run import TINY, do, same, weights

from segsweep.core.errors import SegsweepError
from segsweep.report import records
from segsweep.runs import run
from segsweep.segmentation import trained
from segsweep.segmentation.metrics import SPEC
from segsweep.segmentation.sections import overlays
from segsweep.sweeps.plan import Point
from segsweep.tracking import copying, recall, store

RECORD = ("config.yaml", "run.json", "split.json", "history.jsonl", "patients.csv", "result.json", "overlays.npz")


def there(tmp_path: Path, machine: str, uri: str, *overrides: str) -> run.Outcome:
    outcome = do(tmp_path / machine, *(TINY[:-1]), f"tracking.uri={uri}", "epochs=1", *overrides, tiny=False)
    copying.copier().flush()
    return outcome


def mlflow_runs(uri: str) -> list:
    client = store.connect(uri)
    return client.search_runs([client.get_experiment_by_name("segsweep").experiment_id], "tags.signature LIKE '%'")


def result(outcome: run.Outcome) -> dict:
    return json.loads((outcome.folder / "result.json").read_text())


def test_a_run_finished_elsewhere_is_answered_and_its_folder_restored(tmp_path, uri, monkeypatch):
    first = there(tmp_path, "a", uri)
    second = there(tmp_path, "b", uri)
    assert (second.status, second.error) == ("reused", None)
    assert second.folder != first.folder
    assert (second.metrics, second.objective, second.training_seconds) == (
        first.metrics, first.objective, first.training_seconds,
    )  # fmt: skip
    for name in RECORD:
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()
    assert {"curves.png", "overlays.png"} <= {file.name for file in second.folder.iterdir()}
    assert not list(second.folder.glob("*.pt")), "weights stay in MLflow until they are needed"
    assert not list(second.folder.glob(".restore-*"))
    (known,) = mlflow_runs(uri)
    assert known.info.status == "FINISHED"
    third = there(tmp_path, "b", "null")  # from the folder, by then
    assert (third.status, third.metrics) == ("reused", first.metrics)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # else nobody says that the address in the folder is one's own
    model = trained.load(second.folder, "best").model
    assert same(model.state_dict(), weights(first, "best.pt"))
    assert same(weights(second, "best.pt"), weights(first, "best.pt"))
    with pytest.raises(SegsweepError, match="no such checkpoint"):
        trained.load(second.folder, "worst")
    (read,) = records.read([second.folder]).runs
    assert (read.status, overlays(read).keys()) == ("finished", read.units.keys())


def test_what_a_store_lacks_is_known_without_mlflow(tmp_path, uri):
    first = there(tmp_path, "a", uri)
    program = (
        "import sys; from segsweep.tracking import store\n"
        "print([store.lacks(sys.argv[1], name) for name in sys.argv[2:]], 'mlflow' in sys.modules)"
    )
    command = [sys.executable, "-c", program, uri, first.signature, "f" * 16]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[False, True] False\n"
    assert not store.lacks("http://127.0.0.1:9", "f" * 16)  # a server is asked through MLflow
    assert not store.lacks(f"sqlite:///{tmp_path}/none.db", "f" * 16)


def test_two_that_restore_one_run_at_once_both_have_it_whole(tmp_path, uri, monkeypatch):
    """As when a job ran out of time while its launcher restored: the next try asks for the same folder."""
    first = there(tmp_path, "a", uri)
    folder = tmp_path / "b" / first.signature
    folder.mkdir(parents=True)
    download, begun, go_on = mlflow.artifacts.download_artifacts, threading.Event(), threading.Event()

    def slow(*arguments, **options):
        begun.set()
        go_on.wait(20)
        return download(*arguments, **options)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", slow)
    restorer = recall.restorer()
    with ThreadPoolExecutor(2) as both:
        late = both.submit(restorer.restore, folder, uri, "segsweep", wanted=lambda: False)
        assert begun.wait(20)
        (half,) = folder.glob(".restore-*")
        again = both.submit(restorer.restore, folder, uri, "segsweep")
        time.sleep(0.5)
        assert half.exists()
        assert not again.done()
        go_on.set()
        assert not late.result(), "who asked had ended"
        assert again.result()
    for name in RECORD:
        assert (folder / name).read_bytes() == (first.folder / name).read_bytes()
    assert not list(folder.glob(".restore-*"))
    assert uri not in restorer.silent


def test_files_that_nobody_waits_for_any_more_are_not_put_into_a_folder(tmp_path, uri):
    first = there(tmp_path, "a", uri)
    folder = tmp_path / "b" / first.signature
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text("{}")
    assert not recall.restorer().restore(folder, uri, "segsweep", wanted=lambda: False)
    assert {file.name for file in folder.iterdir()} == {"failure.json", "mlflow.lock"}


def test_what_mlflow_has_not_whole_is_trained_and_stays_one_run(tmp_path, uri, caplog):
    first = there(tmp_path, "a", uri)
    (known,) = mlflow_runs(uri)
    artifacts = Path(known.info.artifact_uri.removeprefix("file://"))
    (artifacts / "patients.csv").rename(artifacts / "patients.away")
    second = there(tmp_path, "b", uri)
    assert (second.status, second.metrics) == ("finished", first.metrics)
    assert "lacks patients.csv: it is trained again" in caplog.text
    store.connect(uri).set_terminated(known.info.run_id, "KILLED")  # as one that was interrupted there
    third = there(tmp_path, "c", uri)
    assert third.status == "finished"
    (again,) = mlflow_runs(uri)
    assert (again.info.run_id, again.info.status) == (known.info.run_id, "FINISHED")


def test_a_run_that_an_older_program_copied_is_answered_with_what_is_there(tmp_path, uri):
    """Its result lists no files."""
    first = there(tmp_path, "a", uri)
    (known,) = mlflow_runs(uri)
    kept = Path(known.info.artifact_uri.removeprefix("file://"))
    old = json.loads((kept / "result.json").read_text())
    assert set(old.pop("files")) == {"curves.png", "overlays.npz", "overlays.png", "patients.csv", "split.json"}
    (kept / "result.json").write_text(json.dumps(old))
    second = there(tmp_path, "b", uri)
    assert second.status == "reused"
    for name in {*RECORD, "curves.png", "overlays.png"} - {"result.json"}:
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()
    (kept / "patients.csv").unlink()
    assert there(tmp_path, "c", uri).status == "finished"


def test_a_restored_run_is_copied_whole_to_another_store(tmp_path, uri, made_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # where its weights are
    first = there(tmp_path, "a", uri)
    there(tmp_path, "b", uri)
    shutil.copytree(made_store.parent, tmp_path / "other")
    other = f"sqlite:///{tmp_path}/other/mlflow.db"
    second = there(tmp_path, "b", other)
    assert second.status == "reused"
    (new,) = mlflow_runs(other)
    assert {f.path for f in store.connect(other).list_artifacts(new.info.run_id, "weights")} == {
        "weights/last.pt",
        "weights/best.pt",
    }
    assert same(weights(second), weights(first))


def test_weights_that_mlflow_does_not_give_are_named(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    there(tmp_path, "a", uri)
    second = there(tmp_path, "b", uri)
    Path(uri.removeprefix("sqlite:///")).write_text("no database any more")
    recall.restorer().silent.clear()
    with pytest.raises(SegsweepError, match=r"last\.pt: MLflow has it and does not give it now"):
        trained.load(second.folder)


def test_trained_anew_on_another_machine_takes_the_place_of_the_first(tmp_path, uri):
    there(tmp_path, "a", uri)
    (before,) = mlflow_runs(uri)
    anew = there(tmp_path, "b", uri, "reuse=false")
    assert anew.status == "finished"
    (after,) = mlflow_runs(uri)
    assert after.info.run_id != before.info.run_id
    assert after.info.status == "FINISHED"


def test_a_server_that_does_not_answer_is_asked_once_and_the_run_trained(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = "http://127.0.0.1:9"  # the discard port: nobody answers
    assert there(tmp_path, "a", away).status == "finished"
    assert caplog.text.count("MLflow was not asked") == 1
    monkeypatch.setattr(recall, "connect", lambda uri: pytest.fail("it was asked again"))
    assert not recall.restorer().restore(tmp_path, away, "segsweep")
    assert caplog.text.count("MLflow was not asked") == 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_bad_record_is_left_out_alone_and_a_server_that_fails_is_silent_for_a_while(
    tmp_path, monkeypatch, caplog, answers
):
    asked = []

    def find(client, experiment, signature, status):
        asked.append(signature)
        if len(asked) > 1 and not answers:
            raise OSError("connection refused")
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    monkeypatch.setattr(recall, "connect", lambda uri: None)
    monkeypatch.setattr(recall, "find", find)
    monkeypatch.setattr(recall, "_restore", lambda *given: {}["factors"])
    asking = recall.Restorer()
    assert not asking.restore(tmp_path, "http://host", "e")
    assert ("http://host" in asking.silent) is not answers
    said = "MLflow's run r1 of" if answers else "MLflow was not asked for"
    assert [said in record.message for record in caplog.records] == [True]


def test_a_plan_knows_what_another_machine_has_finished(tmp_path, uri):
    from segsweep.plugins._plan import PlanLauncher

    first = there(tmp_path, "a", uri)
    plan = PlanLauncher()
    plan.config = OmegaConf.create({"reuse": True, "tracking": {"uri": uri, "experiment": "segsweep"}})
    facts = {"folder": Path(), "state": "new", "epoch": 0, "epochs": 1, "alike": (), "train": 1}
    points = [Point(signature=s, trajectory=s, held_out=1, spec=SPEC, **facts) for s in (first.signature, "0" * 16)]
    plan._ask_mlflow(points)
    assert [(p.state, p.epoch, p.note) for p in points] == [("finished", 1, "in MLflow"), ("new", 0, "")]
    plan.config.tracking.uri = f"sqlite:///{tmp_path}/none/mlflow.db"
    plan._ask_mlflow(points)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_sweep_is_answered_from_another_machines_and_lists_what_it_reused(tmp_path, uri):
    first = [there(tmp_path, "a", uri, f"seed={seed}") for seed in (0, 1)]
    home = tmp_path / "home"
    home.mkdir()
    places = ["paths.runs=multirun", f"paths.cache={tmp_path}/cache", f"tracking.uri={uri}"]
    command = [sys.executable, "-m", "segsweep", "-m", *TINY[:-1], "epochs=1", "seed=0,1,2", *places]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = home.glob("multirun/2*")
    jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("*/job.json"))]
    assert [job["status"] for job in jobs] == ["reused", "reused", "finished"], done.stdout
    assert [job["metrics"] for job in jobs[:2]] == [outcome.metrics for outcome in first]
    assert (folder / "report.html").exists()
    runs = {each.data.tags["signature"]: each for each in mlflow_runs(uri)}
    assert len(runs) == len(mlflow_runs(uri)) == 3
    assert [folder.name in each.data.tags["sweeps"] for each in runs.values()] == [True] * 3
    state = json.loads((folder / "sweep.json").read_text())
    parent = store.connect(uri).get_run(state["mlflow"]["run_id"])
    note = parent.data.tags["mlflow.note.content"]
    assert f"tags.sweeps LIKE '%{folder.name}%'" in note
    for outcome in first:
        reused = runs[outcome.signature].info
        assert f"[{outcome.signature}](#/experiments/{reused.experiment_id}/runs/{reused.run_id})" in note
    made = runs[jobs[2]["signature"]]
    assert made.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert made.info.run_id not in note


@pytest.mark.parametrize("node", ["", "segsweep: {seed: 0}\n"])
@pytest.mark.parametrize("text", [r"\\${oc.env:HOME}", r"\\\${oc.env:HOME}", r"\${oc.env:HOME}", "${oc.env:HOME}"])
def test_no_number_of_backslashes_makes_a_record_look_something_up(tmp_path, node, text):
    """An application's says what stands there, another's what it means where that is text."""
    (tmp_path / "config.yaml").write_text(f"{node}a: '{text}'\n")
    if not node and (len(text) - len(text.lstrip("\\"))) % 2 == 0:
        with pytest.raises(SegsweepError, match="nothing to look up"):
            recall.configuration(tmp_path)
        return
    found = recall.configuration(tmp_path).a
    assert found.endswith("${oc.env:HOME}")
    assert (found == text) or not node
