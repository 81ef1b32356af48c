"""The examples, as a person runs them: killed and asked again where they have epochs, and what their reports say."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from segsweep.core import artifacts
from segsweep.report.comparison import compare
from segsweep.report.findings import Findings
from segsweep.report.records import read
from segsweep.report.search import trials

EXAMPLES = Path(__file__).parents[1] / "examples"
OPTIONS = ("tracking=none", "report=false")
HERE = "hydra/launcher=basic"
"""Without workers: where none is needed to see what is looked at. Results are the same to the last bit."""


class Example:
    """A copy of an example, and commands in it."""

    def __init__(self, name: str, module: str, folder: Path):
        self.folder = Path(shutil.copytree(EXAMPLES / name, folder))
        self.how = {"cwd": self.folder, "env": os.environ | {"SEGSWEEP_ALLOW": f"{module}.*"}, "text": True}
        self.line = [sys.executable, "-m", "segsweep", "-m", "--config-dir", "conf", f"task={module}"]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([*self.line, *arguments, *OPTIONS], capture_output=True, **self.how)

    def killed(self, *arguments: str) -> None:
        """Once the second epoch of a run is kept."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen([*self.line, *arguments, *OPTIONS], **quiet, **self.how)
        while not any(self.folder.glob("multirun/trajectories/*/state_0002.pt")) and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    @property
    def sweep(self) -> Path:
        return max(self.folder.glob("multirun/2*"), key=lambda folder: folder.stat().st_mtime)

    def numbers(self, table: str) -> dict[str, tuple]:
        """Of each run what it measured, the scores of its units and its last weights."""
        found = {}
        for run in self.folder.glob("multirun/runs/*"):
            rows = artifacts.read_lines(run / "history.jsonl")
            metrics = [{key: value for key, value in row.items() if "/" in key} for row in rows]
            model = torch.load(run / "last.pt", weights_only=True)["model"]
            last = {key: value.tolist() for key, value in model.items()}
            found[run.name] = metrics, (run / table).read_text(), last
        return found

    def goes_on_to_the_same_bits(self, table: str, *arguments: str) -> None:
        self.killed(*arguments)
        done = self(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        there = self.numbers(table)
        shutil.rmtree(self.folder / "multirun")
        assert self(*arguments, HERE).returncode == 0
        assert self.numbers(table) == there
        again = self(*arguments, HERE)
        assert again.stdout.count(" reused ") == len(there), again.stdout


@pytest.mark.slow
def test_the_regression_is_killed_and_goes_on_and_its_report_has_the_lowest_error_first(tmp_path):
    example = Example("regression", "houses", tmp_path / "houses")
    grid = ("task.features=all,few", "task.flip=false,true", "seed=0,1,2", "epochs=5")
    example.goes_on_to_the_same_bits("districts.csv", *grid)
    record = read([example.sweep])
    found = Findings(compare(record))
    rmse = {run.signature: run.metrics["test/rmse"] for run in record.runs}
    assert len(rmse) == 12
    leader = found.rows[0]
    assert min(rmse, key=lambda signature: rmse[signature]) in {
        run.signature for run in found.rows[0].runs + found.rows[1].runs
    }
    means = [row.metric("test/rmse") for row in found.rows]
    assert means == sorted(means), "the lowest leads"
    assert [found.comparison.mean(i) for i in range(4)] == pytest.approx(means)
    (best,) = found.comparison.best["rmse"]
    assert best.row == 0
    assert leader.factors["task.features"] == "all"
    assert [found.rows[i].factors["task.features"] for i in best.tied] == ["all"], "the planted worse option is worse"
    contrasts = {c.factor: c for c in found.analysis.contrasts}
    assert set(contrasts) == {"task.features", "task.flip"}
    worse, null = contrasts["task.features"], contrasts["task.flip"]
    assert (worse.b, worse.verdict) == ("all", "shown")
    assert worse.mean < -10
    assert null.verdict in ("none", "chance"), "two settings of the same network"
    assert abs(null.mean) < 1
    text = subprocess.run(
        [sys.executable, "-m", "segsweep.report", str(example.sweep)], capture_output=True, **example.how
    )
    assert text.returncode == 0, text.stderr
    page = (example.sweep / "report.md").read_text()
    assert re.search(r"has the lowest mean RMSE, 2\d\.\d", page)
    assert re.search(r"task.features=all against task.features=few\*\*: RMSE lower by 1\d\.\d+ \[", page)
    assert not re.search(r"RMSE higher|has the highest|dice|patient", page)
    assert not re.search(r"task.flip\S* against \S*: RMSE \w+ by [^.]*the difference holds", page)


@pytest.mark.slow
def test_a_search_and_a_pruner_of_what_is_to_be_low(tmp_path):
    example = Example("regression", "houses", tmp_path / "houses")
    space = ("task.lr=tag(log, interval(1e-5, 1e-1))", "task.features=all,few", "epochs=4")
    done = example("hydra/sweeper=search", "pruner=halving", "search.trials=14", *space)
    assert done.returncode == 0, done.stdout + done.stderr
    found = trials.of_sweep(example.sweep, f"sqlite:///{example.folder}/mlruns/optuna.db")
    assert [d.name for d in found.study.directions] == ["MINIMIZE"]
    lowest = min(found.complete, key=lambda trial: trial.value)
    assert found.best == [lowest]
    assert f"best val/rmse {lowest.value:.2f} in trial {lowest.number}" in done.stderr
    for trial in found.complete:  # the best epoch is the lowest one
        rows = artifacts.read_lines(found.run(trial) / "history.jsonl")
        assert trial.value == min(row["val/rmse"] for row in rows)
        assert artifacts.read_json(found.run(trial) / "result.json")["objective"] == trial.value
    pruned = [trial for trial in found.trials if trial.state is TrialState.PRUNED]
    assert pruned
    for trial in pruned:  # not one that was ahead of all others there
        record = artifacts.read_json(found.run(trial) / "pruned.json")
        assert record["against"][0]["value"] == min(other["value"] for other in record["against"])
        assert record["against"][0]["value"] < record["value"]
    page = (example.sweep / "search.html").read_text()
    running = re.search(r"Best so far: ([\d.]+) at first, ([\d.]+) in the end", page)
    assert float(running[1]) == pytest.approx(found.complete[0].value, rel=1e-3)
    assert float(running[2]) == pytest.approx(lowest.value, rel=1e-3)
    slice_ = re.search(r"val/rmse against task.lr in \d+ trials; the best has ([\d.e-]+)\.", page)
    assert float(slice_[1]) == pytest.approx(lowest.params["task.lr"], rel=1e-3)
    table = page.split("<h2>All trials</h2>")[1]
    assert re.search(r'scope="row" data-sort="(\d+)"', table)[1] == str(lowest.number)
    best = (example.sweep / "search" / "experiment" / "best.yaml").read_text()
    assert f"trial {lowest.number}, val/rmse {lowest.value:.4g}" in best

    both = ("hydra/sweeper=search", "search.objective=[val/rmse,training_seconds]", "search.trials=6")
    done = example(*both, *space)
    assert done.returncode == 0, done.stdout + done.stderr
    found = trials.of_sweep(example.sweep, f"sqlite:///{example.folder}/mlruns/optuna.db")
    values = [tuple(trial.values) for trial in found.complete]
    front = {v for v in values if not any(o != v and o[0] <= v[0] and o[1] <= v[1] for o in values)}
    assert {tuple(trial.values) for trial in found.best} == front
    assert found.best[0].values[0] == min(v[0] for v in values)


@pytest.mark.slow
def test_an_estimator_without_epochs_is_fitted_once_whatever_they_are(tmp_path):
    example = Example("sklearn_estimator", "wine", tmp_path / "wine")
    grid = ("task.depth=1,4", "task.trees=10", "seed=0,1")
    plan = example("hydra/launcher=plan", *grid, "epochs=1,7")
    assert "8 jobs: 4 new, 4 duplicate" in plan.stdout, plan.stdout + plan.stderr
    done = example(*grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"log loss +log loss +Accuracy", done.stdout), done.stdout
    again = example(*grid, "epochs=7", HERE)
    assert again.stdout.count(" reused ") == 4, again.stdout
    plan = example("hydra/launcher=plan", *grid, "epochs=7")
    assert "4 jobs: 4 finished" in plan.stdout, plan.stdout
    for run in example.folder.glob("multirun/runs/*"):
        result = json.loads((run / "result.json").read_text())
        assert {"val/loss", "test/accuracy", "train/loss"} <= result["metrics"].keys()
        assert (result["objective"], result["epochs"]) == (result["metrics"]["val/loss"], 1)
        assert result["training_seconds"] > 0
        assert result["files"] == ["forest.joblib", "wines.csv"]
        assert "epochs" not in json.loads((run / "run.json").read_text())["factors"]

    search = ("hydra/sweeper=search", "task.depth=1,4", "task.trees=range(1,41)", "search.trials=5")
    found = example(*search, HERE)
    assert found.returncode == 0, found.stdout + found.stderr
    study = trials.of_sweep(example.sweep, f"sqlite:///{example.folder}/mlruns/optuna.db")
    assert len(study.complete) == 5
    assert study.best[0].value == min(trial.value for trial in study.complete)
    for more, says in (
        ("pruner=halving", "pruner: this task trains at one go, and has no epoch after which it could end"),
        ("search.epoch=3", "search.epoch=3: this task trains at one go and has no epochs"),
    ):
        refused = example(*search, more, HERE)
        assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
        assert says in refused.stderr


WRONG = """

class Looped(Wine):
    def train(self, run):
        for epoch in run.epochs():
            pass


class Unscored(Wine):
    def train(self, run):
        return Result({"test/accuracy": 1.0}, {"0": {"accuracy": 1.0, "loss": 0.1}})
"""


@pytest.mark.slow
def test_what_a_task_without_epochs_gets_wrong_is_told(tmp_path):
    example = Example("sklearn_estimator", "wine", tmp_path / "wine")
    source = example.folder / "wine.py"
    source.write_text(source.read_text() + WRONG)
    done = example("task._target_=wine.Looped,wine.Unscored", HERE)
    assert done.returncode == 1
    assert "run.epochs(...) was called by a task that says it has none" in done.stdout
    assert "train() gave no val/loss, by which this task chooses" in done.stdout
    source.write_text(source.read_text().replace("        epochs=False,\n", ""))
    done = example("task._target_=wine.Wine", HERE)
    assert "train() did not loop over run.epochs(...)" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="the extra `lightning` is not installed")
def test_lightning_is_killed_and_goes_on(tmp_path):
    example = Example("lightning", "digits_lightning", tmp_path / "digits")
    example.goes_on_to_the_same_bits("images.csv", "task.lr=0.003,0.01", "epochs=4", "task.hidden=16")
