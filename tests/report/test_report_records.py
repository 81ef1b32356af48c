"""Reading what a sweep leaves behind, whole and broken."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from records import PATIENTS, Spec, factors, write_sweep

from segsweep.core.errors import SegsweepError
from segsweep.report.records import read
from segsweep.segmentation.sections import overlays


@pytest.fixture
def sweep(tmp_path):
    specs = [Spec(factors(seed=s)) for s in range(6)]
    for spec, status in zip(specs, ["finished", "reused", "pruned", "failed", "interrupted", "missing"], strict=True):
        spec.status = status
    return write_sweep(tmp_path / "multirun", "first", specs, expected=7)


def test_every_ending_is_told_apart(sweep):
    record = read([sweep])
    assert [job.status for job in record.jobs] == [
        "finished",
        "reused",
        "pruned",
        "failed",
        "interrupted",
        "run folder gone",
        "never started",
    ]
    assert [run.status for run in record.runs] == ["finished", "finished", "pruned", "failed", "unfinished"]
    assert (record.jobs[3].error, record.jobs[3].error_class) == ("CUDA out of memory: asked for 2.0 GiB", "oom")
    assert record.problems == []


def test_a_pruned_run_says_when_and_one_that_was_continued_since_is_finished(sweep):
    job = read([sweep]).jobs[2]
    assert "after epoch 2 of 5 by halving" in job.error
    assert (job.run.metrics["parameters"], job.run.units) == (1_942_289, {})
    finished = next(path for path in (sweep.parent / "runs").glob("*/result.json"))
    (job.run.folder / "pruned.json").unlink()
    (job.run.folder / "result.json").write_text(finished.read_text())
    job = read([sweep]).jobs[2]
    assert (job.status, job.error, job.run.status) == ("finished", "", "finished")


def test_finished_run_is_read_whole(sweep):
    run = read([sweep]).runs[0]
    assert run.metrics["test/dice"] == pytest.approx(0.8)
    assert run.metrics["training_seconds"] == 27
    assert list(run.units) == PATIENTS
    assert run.units["patient_03"]["dice"] == 0.8
    assert run.history["test/dice"].shape == (5,)
    assert overlays(run)["patient_03"]["image"].shape == (64, 64, 3)
    assert (run.seed, run.repeat, run.leaks, run.evaluated_on) == (0, (None,), False, "test")


def test_several_sources_are_pooled_and_a_run_counts_once(sweep):
    specs = [Spec(factors(seed=0)), Spec(factors(seed=9))]  # the first is a run of the other sweep
    second = write_sweep(sweep.parent, "second", specs)
    record = read([sweep, second])
    assert len(record.jobs) == 9
    assert len(record.runs) == 6
    alone = read([record.runs[0].folder])
    assert [job.status for job in alone.jobs] == ["finished"]
    assert len(read([sweep.parent / "runs"]).runs) == 6


def test_undefined_dice_is_nan(tmp_path):
    dice = dict.fromkeys(PATIENTS, 0.8) | {"patient_00": float("nan")}
    (run,) = read([write_sweep(tmp_path, "s", [Spec(factors(), dice)])]).runs
    assert np.isnan(run.units["patient_00"]["dice"])
    assert run.metrics["test/undefined"] == 1


def damage(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "status", "said"),
    [
        ("run.json", "{", "finished", "run.json cannot be read"),
        ("run.json", "[]", "finished", "run.json cannot be read: an object is expected, found list"),
        ("result.json", '{"status": "fin', "unfinished", "result.json cannot be read"),
        ("result.json", "{}", "unfinished", "result.json has no metrics: taken as absent"),
        ("run.json", '{"choices": "x", "factors": 3, "split": []}', "finished", "run.json: choices is damaged"),
        ("patients.csv", "patient,dice\np1,much\n", "finished", "patients.csv cannot be read"),
        ("patients.csv", "no header at all", "finished", "no patient in it"),
        ("patients.csv", "name,dice\np1,0.5\n", "finished", "patients.csv cannot be read ('patient')"),
        (
            "history.jsonl",
            '{"epoch": 1, "test/dice": 0.5}\n{"epoch": 2, "te',
            "finished",
            "history.jsonl: 1 damaged line left out",
        ),
        ("overlays.npz", "not an archive", "finished", ""),
    ],
)
def test_damaged_piece_is_said_and_the_rest_is_read(tmp_path, name, text, status, said):
    sweep = write_sweep(tmp_path, "s", [Spec(factors(seed=0)), Spec(factors(seed=1))])
    folder = read([sweep]).runs[0].folder
    damage(folder, name, text)
    record = read([sweep])
    assert record.runs[0].status == status
    assert record.runs[1].status == "finished"
    assert said in " ".join(record.problems)
    if name == "history.jsonl":
        assert record.runs[0].history["test/dice"].tolist() == [0.5]
    if name == "overlays.npz":
        assert overlays(record.runs[0]) == {}


@pytest.mark.parametrize("name", ["patients.csv", "run.json", "history.jsonl", "overlays.npz", "split.json"])
def test_missing_piece_leaves_the_run_in(tmp_path, name):
    sweep = write_sweep(tmp_path, "s", [Spec()])
    (read([sweep]).runs[0].folder / name).unlink()
    (run,) = read([sweep]).runs
    assert run.metrics["test/dice"] == pytest.approx(0.8)


def test_job_without_its_json_is_a_job_all_the_same(sweep):
    (sweep / "1" / "job.json").unlink()
    damage(sweep, "sweep.json", "")
    record = read([sweep])
    assert record.jobs[1].status == "unreadable"
    assert len(record.jobs) == 6  # without sweep.json nobody knows of the seventh
    assert "sweep.json cannot be read" in " ".join(record.problems)


def test_epoch_written_twice_counts_once(tmp_path):
    sweep = write_sweep(tmp_path, "s", [Spec()])
    path = read([sweep]).runs[0].folder / "history.jsonl"
    again = json.loads(path.read_text(encoding="utf-8").splitlines()[1]) | {"test/dice": 0.123}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(again) + "\n")
    (run,) = read([sweep]).runs
    assert run.history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert run.history["test/dice"][1] == 0.123


def test_empty_folder_and_a_folder_of_sweeps_are_refused_with_the_way_out(sweep):
    (sweep.parent / "runs" / "nothing").mkdir()
    with pytest.raises(SegsweepError, match="no run in it"):
        read([sweep.parent / "runs" / "nothing"])
    with pytest.raises(SegsweepError, match="holds 1 sweeps, not one") as error:
        read([sweep.parent])
    assert str(sweep) in str(error.value)


def test_what_is_no_folder_is_looked_up_in_mlflow(sweep, monkeypatch):
    folders = {"my experiment": [sweep]}
    monkeypatch.setitem(sys.modules, "segsweep.tracking.recall", SimpleNamespace(find_runs=folders.__getitem__))
    assert len(read(["my experiment"]).jobs) == 7
    run = next(p for p in (sweep.parent / "runs").iterdir() if (p / "result.json").exists())
    folders["half"] = [run, sweep.parent / "runs" / "elsewhere"]
    record = read(["half"])
    assert len(record.jobs) == 1
    assert record.problems == ["half: 1 of its 2 runs are in MLflow, with no folder on this machine"]


def test_a_history_with_text_where_a_number_belongs_loses_that_epoch_alone(tmp_path):
    sweep = write_sweep(tmp_path, "s", [Spec(overlays=False)])
    (history,) = tmp_path.glob("runs/*/history.jsonl")
    lines = history.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"test/dice": "high"})
    history.write_text("\n".join(lines) + "\n")
    record = read([sweep])
    assert len(record.runs[0].history["test/dice"]) == len(lines) - 1
    assert "1 damaged line left out" in record.problems[0]


def accepted_for(folder, *groups):
    """Its record stands for the code of other groups."""
    entry = {"signature": "s", "trajectory": "t", "code": "c", "files": {}}
    (folder / "accepted.json").write_text(json.dumps({"accepted": [entry | {"group": group} for group in groups]}))


def test_records_of_two_old_versions_that_stand_for_one_code_are_pooled(tmp_path):
    """No run of that code itself is among them."""
    sweep = write_sweep(tmp_path, "sweep", [Spec(factors(seed=seed)) for seed in range(4)])
    folders = sorted((tmp_path / "runs").iterdir())
    for version, folder in enumerate(folders):
        info = json.loads((folder / "run.json").read_text()) | {"group": f"old{min(version, 2)}"}
        (folder / "run.json").write_text(json.dumps(info))
    for folder in folders[:2]:
        accepted_for(folder, "today")
    accepted_for(folders[2], "another day")  # as is one of two of the same old version: these stay together
    groups = {run.folder.name: run.group for run in read([sweep]).runs}
    assert [groups[folder.name] for folder in folders] == ["today", "today", "old2", "old2"]
