"""What a task writes into its run's folder is the run's: kept, mirrored, restored, linked by jobs that reuse it."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_own_task import DIGITS, command

from segsweep.core import artifacts
from segsweep.tracking import recall, store

WRITES = """

class Writes(Digits):
    def train(self, run):
        (run.folder / "notes").mkdir(exist_ok=True)
        (run.folder / "notes" / "seed.txt").write_text(str(run.seed))
        (run.folder / "weights.json").write_text("[1]")
        (run.folder / "shape.png").write_bytes(b"png")
        return super().train(run)
"""
OWN = ["images.csv", "notes/seed.txt", "shape.png", "weights.json"]


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    given = ["task=digits", "task._target_=digits.Writes", "task.hidden=4", "epochs=1", "report=false"]
    line, how = command(folder, *given, *arguments)
    return subprocess.run(line, capture_output=True, **how)


@pytest.mark.slow
def test_files_of_any_task_are_kept_mirrored_restored_and_linked(tmp_path, uri):
    places = [Path(shutil.copytree(DIGITS, tmp_path / name)) for name in ("here", "there")]
    for place in places:
        (place / "digits.py").write_text((place / "digits.py").read_text() + WRITES)
    done = sweep(places[0], "seed=0,1", f"tracking.uri={uri}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of reach" not in done.stderr
    client = store.connect(uri)
    experiment = client.get_experiment_by_name("segsweep")
    runs = client.search_runs([experiment.experiment_id], "tags.signature LIKE '%'")
    assert len(runs) == 2
    kept = {file.path for file in client.list_artifacts(runs[0].info.run_id)}
    assert kept == {*artifacts.RECORD, "images.csv", "notes", "weights.json", "figures", "weights"}
    assert "mlflow.sharedViewState.segsweep" in experiment.tags

    again = sweep(places[1], "seed=0,1", f"tracking.uri={uri}")
    assert again.stdout.count(" reused ") == 2, again.stdout + again.stderr
    for place in places:
        jobs = artifacts.jobs(next(place.glob("multirun/2*")))
        for seed, job in enumerate(jobs):  # what a reused job links is the folder that has them
            assert json.loads((job["folder"] / "result.json").read_text())["files"] == OWN
            assert (job["folder"] / "notes" / "seed.txt").read_text() == str(seed)
    one, other = (next(place.glob(f"multirun/runs/{runs[0].data.tags['signature']}")) for place in places)
    assert artifacts.of_task(one) == artifacts.of_task(other) == OWN
    for name in (*OWN, *artifacts.RECORD):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert len(list(csv.DictReader((other / "images.csv").read_text().splitlines()))) == 400

    root = Path(runs[0].info.artifact_uri.removeprefix("file://"))
    (root / "notes" / "seed.txt").unlink()
    shutil.rmtree(other)
    other.mkdir()
    assert not recall.restorer().restore(other, uri, "segsweep"), "a run is answered whole or not at all"
    assert artifacts.of_task(other) == []


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", ".hidden", "a/.b/c", "result.json", "last.pt", "lock", "", "a\nb"]
    + ["./lock", "a//b", "last.pt/x", "lock/x", f"{artifacts.NEXT}/x", "a/x.lock"],
)
def test_a_record_from_elsewhere_names_no_file_outside_and_none_of_the_engines(name):
    assert not artifacts.is_tasks(name)
    assert artifacts.is_tasks("a/b.json")
