"""A sweep over digits that is killed ten times: the same bits in the end, and no epoch that was kept trained again."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from test_own_task import DIGITS, command, sweep

from segsweep.core import artifacts

GRID = (
    "task=digits",
    "task.lr=0.01,0.03",
    "seed=0,1",
    "epochs=3,20",
    "task.hidden=32",
    "tracking=none",
    "report=false",
)
LINES = 2 * 2 * (3 + 20)  # of all histories; the epochs of the shorter runs are the longer ones'
KILLS, MOST_BETWEEN = 10, 5
LOG = """                optimizer.step()
            with open("epochs.log", "a") as log:
                print(self.lr, run.seed, epoch.number, file=log)
"""


def place(folder: Path) -> Path:
    """The example, with a line in epochs.log for each epoch that was trained, kept or not."""
    shutil.copytree(DIGITS, folder)
    source = (folder / "digits.py").read_text()
    assert source.count("                optimizer.step()\n") == 1
    (folder / "digits.py").write_text(source.replace("                optimizer.step()\n", LOG))
    return folder


def trained(folder: Path) -> list[tuple[str, ...]]:
    log = folder / "epochs.log"
    return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def kept(folder: Path) -> list[tuple[str, ...]]:
    """What the histories have: a line is written once its state is saved."""
    found = []
    for run in folder.glob("multirun/runs/*"):
        factors = (artifacts.read_json(run / "run.json") or {}).get("factors", {})
        rows = artifacts.read_lines(run / "history.jsonl")
        found += [tuple(map(str, (factors["task.lr"], factors["seed"], row["epoch"]))) for row in rows]
    return found


def measured(folder: Path) -> dict[str, tuple[list[dict], bytes]]:
    """Of each run its history without times, and its table of images."""
    found = {}
    for run in folder.glob("multirun/runs/*"):
        rows = artifacts.read_lines(run / "history.jsonl")
        metrics = [{key: value for key, value in row.items() if "/" in key} for row in rows]
        found[run.name] = metrics, (run / "images.csv").read_bytes()
    return found


def weights(folder: Path) -> dict[str, list[torch.Tensor]]:
    files = sorted(folder.glob("multirun/runs/*/[!.]*.pt"))  # what a kill left half-written stays for an hour
    return {
        f"{file.parent.name}/{file.name}": list(torch.load(file, weights_only=True)["model"].values()) for file in files
    }


@pytest.mark.slow
def test_ten_kills_cost_no_bit_and_no_epoch_that_was_kept(tmp_path):
    folder, moments = place(tmp_path / "killed"), random.Random(15)
    line, given = command(folder, *GRID)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    for _ in range(KILLS):
        there, before = kept(folder), len(trained(folder))
        until = len(there) + moments.randint(1, MOST_BETWEEN)
        process = subprocess.Popen(line, **quiet, **given)
        while len(kept(folder)) < until and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed before its end"
        assert not set(there) & set(trained(folder)[before:])
    there, before = kept(folder), len(trained(folder))
    done = sweep(folder, *GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not set(there) & set(trained(folder)[before:])
    assert len(kept(folder)) == LINES

    whole = place(tmp_path / "whole")
    assert sweep(whole, *GRID, "hydra/launcher=basic").returncode == 0  # without workers
    assert len(trained(whole)) == len(set(trained(whole))) == 2 * 2 * 20
    assert set(trained(folder)) == set(trained(whole))
    assert len(trained(folder)) <= len(trained(whole)) + KILLS * (os.cpu_count() or 1)  # what was under way
    assert measured(folder) == measured(whole)
    assert len(measured(whole)) == 8
    assert weights(folder).keys() == weights(whole).keys()
    for name, tensors in weights(whole).items():
        assert all(map(torch.equal, weights(folder)[name], tensors)), name
    assert len(weights(whole)) == 8 * 2  # last.pt and best.pt

    count = len(trained(folder))
    plan = sweep(folder, "hydra/launcher=plan", *GRID)
    assert "8 jobs: 8 finished" in plan.stdout, plan.stdout + plan.stderr
    again = sweep(folder, *GRID, "hydra/launcher=basic")
    assert again.stdout.count(" reused ") == 8
    assert len(trained(folder)) == count

    space = ("task=digits", "task.lr=tag(log, interval(1e-4, 1e-1))", "task.hidden=32", "tracking=none", "report=false")
    asked = ("hydra/sweeper=search", "pruner=halving", "search.trials=8", "epochs=8", *space)
    found = sweep(folder, *asked)
    assert found.returncode == 0, found.stdout + found.stderr
    told = re.search(r"8 of 8 trials \((.*)\); best val/accuracy (0\.\d+) in trial", found.stderr)
    assert told, found.stderr
    assert re.search(r"\d+ complete", told[1])
    assert re.search(r"\d+ pruned", told[1]), "eight rates over three decades: some fall behind"
    assert len(trained(folder)) - count < 8 * 8
    count = len(trained(folder))
    assert sweep(folder, *asked).returncode == 0
    assert len(trained(folder)) == count, "a search that is done trains nothing when it is asked again"
