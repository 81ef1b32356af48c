"""From Python: the frames hold what the record and the report say, and a sweep leaves nothing in the process."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import segsweep
from segsweep.core import artifacts, source
from segsweep.core.errors import SegsweepError
from segsweep.core.session import session
from segsweep.report.files import write
from segsweep.runs.find import find

ROOT = Path(__file__).parents[1]
TINY = ["data.patients=14", "data.slices=4", "data.image_size=16", "split.test=0.5", "model.width=4", "model.depth=2"]
TINY += ["epochs=2", "tracking=none"]


def state() -> tuple:
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    root = logging.getLogger()
    streams = sys.stdout, sys.stderr, warnings.showwarning
    return *signals, sys.argv, list(sys.argv), *streams, list(root.handlers), root.level, session()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two optimizers, one of which fails at one rate, and the state of the process before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("api"))
        before = state()
        results = segsweep.sweep(["optim=sgd", "optim.lr=1e-2,1e-1,1e30", *TINY])
        yield results, before, state()


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, segsweep\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'pandas', 'numpy', 'hydra', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'load', 'main', 'sweep'} <= set(dir(segsweep))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], executable=sys.executable, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sweep_leaves_the_process_as_it_was(swept):
    _, before, after = swept
    assert before == after


def test_a_job_that_failed_is_a_line_with_its_error(swept):
    runs = swept[0].runs
    assert runs["status"].tolist() == ["finished", "finished", "failed"]
    assert "at step" in runs["error"][2]


def test_runs_are_those_of_the_reports_file(swept, tmp_path):
    frame = swept[0].runs
    write(swept[0].sources, tmp_path)
    with (tmp_path / "runs.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert list(frame.columns) == head
    assert len(lines) == len(frame) == 3
    for line, (_, found) in zip(lines, frame.iterrows(), strict=True):
        for text, value in zip(line, found, strict=True):
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert (text == "") if pd.isna(value) else float(text) == value
            else:
                assert text == ("" if value is None else str(value))


def test_history_and_units_are_the_records(swept):
    results = swept[0]
    for _, line in results.runs[results.runs["status"] == "finished"].iterrows():
        folder = Path(line["folder"])
        epochs = results.history[results.history["signature"] == line["signature"]]
        written = artifacts.read_lines(folder / "history.jsonl")
        assert epochs["val/loss"].tolist() == [row["val/loss"] for row in written]
        assert epochs["epoch"].tolist() == [1, 2]
        units = results.units[results.units["signature"] == line["signature"]]
        with (folder / "patients.csv").open() as file:
            patients = list(csv.DictReader(file))
        assert units["patient"].tolist() == [row["patient"] for row in patients]
        assert units["accuracy"].tolist() == [float(row["accuracy"]) for row in patients]
        assert set(units["row"]) == {line["row"]}
    assert list(results.units.columns[:4]) == ["signature", "row", "seed", "patient"]


def test_contrasts_have_the_reports_intervals_and_p_values(swept):
    (line,) = swept[0].contrasts.to_dict("records")
    (contrast,) = swept[0]._found.analysis.contrasts
    assert (line["factor"], line["a"], line["b"]) == ("optim.lr", "0.01", "0.1")
    assert (line["difference"], line["low"], line["high"]) == contrast.interval[:3]
    assert (line["p"], line["p_holm"], line["verdict"]) == (contrast.p, contrast.p_holm, contrast.verdict)
    assert line["units"] == swept[0].units["patient"].nunique() == 7
    assert np.isnan(line["repeats_low"])
    units = swept[0].units.pivot_table(index="patient", columns="row", values="dice")
    a, b = swept[0].runs["row"][:2]
    assert line["difference"] == pytest.approx((units[b] - units[a]).mean())


def test_the_best_is_by_validation_and_not_by_test(swept, tmp_path):
    results = swept[0]
    best = results.best()
    assert Path(best["folder"]) == find(f"best:{results.sources[0]}", tmp_path)[0]
    finished = results.runs[results.runs["status"] == "finished"]
    assert best["objective"] == finished["objective"].max()
    with pytest.raises(SegsweepError, match="2 sweeps have no common best"):
        segsweep.load([*results.sources, *results.sources]).best()


def test_a_prediction_of_an_array_is_that_of_its_files_at_their_size(swept, tmp_path):
    results = swept[0]
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 24, 3), np.uint8)
    for n, image in enumerate(images):
        (tmp_path / "head").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "head" / f"{n}.png")
    masks = results.predict(images)
    assert (masks.shape, masks.dtype) == ((3, 20, 24), bool)
    assert (np.stack(results.predict(tmp_path / "head")["head"]) == masks).all()
    other = results.runs.iloc[1]
    again = results.predict(images, run=other["signature"])
    assert (again == results.predict(images, run=other)).all()
    assert not results.model().training
    for wrong, says in ((images[..., :2], r"trained on images of \(N, H, W, 3\)"), (images / 255, "float64")):
        with pytest.raises(SegsweepError, match=says):
            results.predict(wrong)
    with pytest.raises(SegsweepError, match="no such file"):
        results.predict(tmp_path / "nobody")
    with pytest.raises(SegsweepError, match="run=1: give a line of `runs`"):
        results.model(1)
    with pytest.raises(SegsweepError, match="finished|no such"):
        results.model(results.runs.iloc[2])


def test_a_mistake_is_an_exception_that_says_it_and_prints_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = state()
    with pytest.raises(SegsweepError, match="model=unett: no such option; did you mean unet.*\nepochs=0"):
        segsweep.sweep(["model=unett", "epochs=0"])
    with pytest.raises(SegsweepError, match="--help: a question"):
        segsweep.sweep("--help")
    with pytest.raises(SegsweepError, match="no such folder"):
        segsweep.load("nowhere")
    assert capfd.readouterr() == ("", "")
    assert before == state()
    assert list(tmp_path.iterdir()) == []


def test_another_task_has_frames_and_no_network_of_this_one(tmp_path, monkeypatch, allow):
    pytest.importorskip("sklearn")
    allow("digits.*")
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "digits"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples" / "digits"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    conf = str(ROOT / "examples" / "digits" / "conf")
    words = ["--config-dir", conf, "task=digits", "task.lr=0.01,0.001", "epochs=1", "tracking=none"]
    results = segsweep.sweep([*words, "hydra/launcher=basic"])
    assert results.runs["status"].tolist() == ["finished"] * 2
    assert results.units["image"].nunique() > 100
    assert results.contrasts["factor"].tolist() == ["task.lr"]
    for asked in (results.model, lambda: results.predict(np.zeros((1, 8, 8), np.uint8))):
        with pytest.raises(SegsweepError, match=r"a run of the task digits\.Digits, of which only its own code"):
            asked()


INTERRUPTED = """
import signal, sys, segsweep
from segsweep.core.session import Session
words = {words!r}
class Told:  # standard error, on which progress is
    def __init__(self, to): self.to = to
    def write(self, text):
        if "epoch 2/" in text and words: signal.raise_signal(signal.SIGINT)
        return self.to.write(text)
    def __getattr__(self, name): return getattr(self.to, name)
kept = sys.stderr
sys.stderr = Told(kept)
try:
    segsweep.sweep(["epochs=300", *words])
except KeyboardInterrupt as error:
    print("INTERRUPTED", error)
sys.stderr = kept
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print("STATUS", *segsweep.sweep(["epochs=8", *words]).runs["status"])
"""


def test_after_a_ctrl_c_the_process_lives_and_the_sweep_goes_on(tmp_path):
    words = [word for word in TINY if not word.startswith("epochs=")] + ["scheduler=constant"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(words=words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "INTERRUPTED stopped; what was trained is saved, and the same call goes on" in done.stdout
    assert done.stdout.endswith("STATUS continued\n")


NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_is_small_and_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert len(NOTEBOOK.read_text()) < 10_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    told = "print(results.contrasts['verdict'].tolist(), (masks & (truth > 0)).sum() > 0.5 * truth.sum())"
    program = "\n".join([*("".join(cell["source"]) for cell in cells), told])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("['shown'] True\n")


@pytest.mark.parametrize(("launcher", "forgotten"), [("", True), ("hydra/launcher=basic", False)])
def test_code_that_was_edited_between_two_sweeps_is_read_again_where_workers_load_it(monkeypatch, launcher, forgotten):
    """Jobs in this process run what it has loaded: there a new hash would be a wrong one."""
    source.code()
    kept = []
    monkeypatch.setattr("segsweep.sweeps.cli.main", lambda raising: kept.append(source.code.cache_info().currsize) or 0)
    segsweep.sweep([launcher] if launcher else [])
    assert (kept == [0]) is forgotten
