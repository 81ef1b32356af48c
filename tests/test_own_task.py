"""A task of one's own, by `--config-dir my_conf task=digits`: what segmentation has, it has.

The network is small: a sweep is its workers' start, some seconds."""

import csv
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_task import RMSE

from segsweep.core import artifacts
from segsweep.sweeps.sweep import Sweep

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
GRID = ("task=digits", "task.lr=0.01,0.03", "epochs=1,4", "task.hidden=16", "tracking=none")


def how(folder: Path) -> dict:
    return {"cwd": folder, "env": os.environ | {"SEGSWEEP_ALLOW": "digits.*"}, "text": True}


def command(folder: Path, *arguments: str) -> tuple[list[str], dict]:
    return [sys.executable, "-m", "segsweep", "-m", "--config-dir", "conf", *arguments], how(folder)


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    line, given = command(folder, *arguments)
    return subprocess.run(line, capture_output=True, **given)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(DIGITS, tmp_path / "digits"))


def results(folder: Path) -> dict[tuple[float, int], dict]:
    """(lr, epochs) -> how many epochs it trained, its history without times, its table of images."""
    found = {}
    for file in folder.glob("multirun/runs/*/result.json"):
        factors = json.loads((file.parent / "run.json").read_text())["factors"]
        history = [json.loads(line) for line in (file.parent / "history.jsonl").read_text().splitlines()]
        found[factors["task.lr"], factors["epochs"]] = {
            "trained": json.loads(file.read_text())["trained_epochs"],
            "history": [{key: value for key, value in row.items() if "/" in key} for row in history],
            "images": (file.parent / "images.csv").read_text(),
        }
    return found


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_to_the_same_bits_and_is_answered_and_reported(folder, tmp_path):
    line, given = command(folder, *GRID)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen(line, start_new_session=True, **quiet, **given)
    while not any(folder.glob("multirun/trajectories/*/state_0002.pt")) and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = sweep(folder, *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    there = results(folder)
    assert set(there) == {(0.01, 1), (0.01, 4), (0.03, 1), (0.03, 4)}
    again = sweep(folder, *GRID, "hydra/launcher=basic")
    assert again.stdout.count(" reused ") == 4, again.stdout

    undisturbed = Path(shutil.copytree(DIGITS, tmp_path / "undisturbed"))
    assert sweep(undisturbed, *GRID, "report=false", "hydra/launcher=basic").returncode == 0  # without workers
    whole = results(undisturbed)
    assert sum(entry.pop("trained") for entry in whole.values()) == 8  # of 10: one epoch of each is shared
    assert all(entry.pop("trained") <= 4 for entry in there.values())
    assert there == whole

    rows = list(csv.DictReader(whole[0.03, 4]["images"].splitlines()))
    assert (len(rows), set(rows[0])) == (400, {"image", "accuracy"})
    page = next(folder.glob("multirun/2*/report.md")).read_text()
    assert "Accuracy" in page
    assert "test images" in page
    row = re.search(r"`(python -m segsweep --config-dir conf \S.*)` \|", page)  # of the table of where it comes from
    alone = subprocess.run([sys.executable, *shlex.split(row[1])[1:]], capture_output=True, **how(folder))
    assert "reused in" in alone.stderr, alone.stderr
    assert not re.search(r"dice|patient|slice|tumou?r|mask|pixel", page, re.IGNORECASE)


@pytest.mark.slow
def test_a_search_and_a_plan_of_it(folder):
    space = ("task=digits", "task.lr=tag(log, interval(1e-3, 1e-1))", "task.hidden=8", "tracking=none", "report=false")
    found = sweep(folder, "hydra/sweeper=search", "pruner=halving", "search.trials=4", "epochs=4", *space)
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"best val/accuracy 0\.\d+ in trial", found.stderr), found.stderr
    told = re.search(r"the best: python (-m segsweep --config-dir \S+ experiment=best)", found.stdout)
    lines = [told[1], *re.findall(r"python (-m segsweep .+)", next(folder.glob("multirun/2*/search.html")).read_text())]
    lines += re.findall(r"python (-m segsweep .+)", next(folder.glob("multirun/2*/search/experiment/*")).read_text())
    assert len(lines) == 5
    assert "epochs=4" in lines[-1]
    assert "task.lr=0." in lines[-1]
    for line in {html.unescape(line.removesuffix("</code></pre>").partition("</code>")[0]) for line in lines}:
        again = subprocess.run(
            [sys.executable, *shlex.split(line), "tracking=none"], capture_output=True, **how(folder)
        )
        assert (again.returncode, "reused in" in again.stderr) == (0, True), (line, again.stderr)
    shutil.move(folder / "conf", folder / "my_conf")  # what is written of it needs no other file
    again = subprocess.run([sys.executable, *shlex.split(told[1]), "seed=1", "tracking=none"], **how(folder))
    assert again.returncode == 0
    shutil.move(folder / "my_conf", folder / "conf")
    plan = sweep(folder, "hydra/launcher=plan", *GRID)
    assert plan.returncode == 0, plan.stderr
    assert "4 jobs: 4 new" in plan.stdout
    assert "TFLOP" not in plan.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["task.lrr=1"], "task.lrr: no such key; did you mean task.lr?"),
        (["task.lr=-1"], "task.lr=-1: must be above 0"),
        (["task.lr=fast"], "task.lr=fast: must be a number"),
        (["task.hidden=2.5"], "task.hidden=2.5: must be a whole number"),
        (["+task.wings=2"], "task.wings: digits.Digits takes no such argument"),
        (["model=unet"], "model"),
        (["batch_size=4"], "batch_size: no such key"),
        (["search.objective=[val/dice]", "hydra/sweeper=search", "task.lr=0.1,0.2"], "search.objective=val/dice"),
    ],
)
def test_a_mistake_in_its_settings_is_told_before_anything_is_trained(folder, arguments, says):
    done = sweep(folder, "task=digits", *arguments)
    assert done.returncode == 1
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "multirun").exists()


def test_a_sweep_none_of_whose_jobs_began_a_run_ends_with_the_columns_of_its_task(tmp_path, capsys):
    lead = Sweep(1, "python -m segsweep")
    lead.folder, lead.spec, lead.reported = tmp_path / "sweep", RMSE, False
    artifacts.write_json(lead.folder / "sweep.json", {"name": "sweep", "jobs": 1})
    artifacts.write_json(lead.folder / "0" / "job.json", {"number": 0, "status": "failed", "error": "no houses"})
    assert lead.finish(stopped=False) == 1
    (head,) = (line for line in capsys.readouterr().out.splitlines() if "seconds" in line)
    assert re.findall(r"RMSE|Dice|acc", head) == ["RMSE"]


NO_VALIDATION = """

class Untested(Digits):
    def data(self):
        found = super().data()
        return Data(digest=found.digest, split=found.split, parts=found.parts | {"val": 0})
"""


@pytest.mark.parametrize("told", ["", "task.val=200"])
def test_where_there_is_no_validation_part_the_task_says_how_to_get_one(folder, told):
    more = NO_VALIDATION + (f"    spec = dataclasses.replace(Digits.spec, validation={told!r})\n" if told else "")
    (folder / "digits.py").write_text("import dataclasses\n" + (folder / "digits.py").read_text() + more)
    says = f"give them one, as with {told}" if told else "give them one in the task's data()"
    own = ("task=digits", "task._target_=digits.Untested", "task.lr=0.1,0.2")
    for asked in (["hydra/sweeper=search"], ["pruner=halving"]):
        done = sweep(folder, *own, *asked)
        assert says in done.stderr, done.stderr
        assert "split.val" not in done.stderr
    nothing = sweep(folder, "task=digits", "hydra/sweeper=search")
    assert "as in 'task.lr=tag(log, interval(1e-4, 1e-1))'" in nothing.stderr, nothing.stderr


GROUPED = """

class Grouped(Digits):
    def __init__(self, *, net: dict, rate: float):
        super().__init__(hidden=net["hidden"], lr=rate)
"""
OPTION = "# @package _global_\ndefaults: [/net: small, _self_]\ntask: {_target_: digits.Grouped}\nrate: 0.01\n"
GROUPS = {
    "task/grouped": OPTION,
    **{f"net/{name}": f"hidden: {hidden}\n" for name, hidden in (("small", 2), ("big", 16))},
}


@pytest.mark.slow
def test_a_search_over_options_of_ones_own_gives_one_that_runs(folder):
    (folder / "digits.py").write_text((folder / "digits.py").read_text() + GROUPED)
    for name, text in GROUPS.items():
        (folder / "conf" / name).parent.mkdir(exist_ok=True)
        (folder / "conf" / f"{name}.yaml").write_text(text)
    space = ("task=grouped", "net=small,big", "rate=0.01,0.03", "epochs=1", "tracking=none", "report=false")
    found = sweep(folder, "hydra/sweeper=search", "search.trials=4", *space)
    assert found.returncode == 0, found.stdout + found.stderr
    told = re.search(r"the best: python (-m segsweep --config-dir \S+ experiment=best)", found.stdout)
    shutil.rmtree(folder / "conf")
    again = subprocess.run([sys.executable, *shlex.split(told[1]), "tracking=none"], capture_output=True, **how(folder))
    assert (again.returncode, "reused in" in again.stderr) == (0, True), again.stderr
    assert "hidden: 16" in next(folder.glob("multirun/2*/search/task/grouped.yaml")).read_text()


BROKEN = """

class Broken(Digits):
    def train(self, run):
        for epoch in run.epochs():
            helper(epoch)


def helper(epoch):
    return {}["nothing"]


class Silent(Digits):
    def train(self, run):
        return 3


class Nameless:
    def __init__(self, lr=1): ...
    def data(self): ...
    def train(self, run): ...
"""


@pytest.mark.slow
def test_an_error_of_its_own_is_told_with_the_line_it_comes_from_and_a_wrong_return_is_one(folder):
    (folder / "digits.py").write_text((folder / "digits.py").read_text() + BROKEN)
    done = sweep(folder, "task=digits", "task._target_=digits.Broken,digits.Silent", "tracking=none", "report=false")
    assert done.returncode == 1
    line = next(
        n for n, text in enumerate((folder / "digits.py").read_text().splitlines(), 1) if '{}["nothing"]' in text
    )
    assert re.search(rf"KeyError: 'nothing' \(.*digits\.py:{line}, in helper\)", done.stdout), done.stdout
    assert "train() of digits.Silent gave int; a task.Result(metrics, units) is needed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (log,) = (f for f in folder.glob("multirun/2*/*/job.log") if "KeyError" in f.read_text())
    assert "Traceback" in log.read_text()
    assert "in helper" in log.read_text()
    nameless = sweep(folder, "task=digits", "task._target_=digits.Nameless")
    assert "task._target_=digits.Nameless: has no `spec`" in nameless.stderr
