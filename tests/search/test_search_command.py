"""A search as a person meets it: the command in a process of its own, on tiny networks."""

import json
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import optuna
import pytest
from commands import finish, start, until
from toy_search import study

from segsweep.search.study import counted
from segsweep.tracking.store import connect

TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "precision=fp32"]
TINY += ["report=false"]


def results(cwd: Path) -> list[Path]:
    return list(cwd.glob("multirun/runs/*/result.json"))


@pytest.mark.slow
def test_a_search_that_is_killed_and_started_again_reaches_the_same_total(tmp_path):
    cwd = tmp_path
    connect(f"sqlite:///{cwd}/mlruns/mlflow.db")  # its migrations take longer than these trials, and would be killed
    command = ["+search=tpe", "search.trials=6", "epochs=3", "loss=dice", "pruner=none"]
    first = start(cwd, "-m", *TINY, *command, start_new_session=True)
    until(lambda: len(results(cwd)) >= 2 or first.poll() is not None)
    os.killpg(first.pid, signal.SIGKILL)
    finish(first)
    again = start(cwd, "-m", *TINY, *command)
    output = finish(again)
    assert again.returncode == 0, output
    url = f"sqlite:///{cwd}/mlruns/optuna.db"
    (name,) = optuna.get_all_study_names(url)
    trials = study(url, name).trials
    kept = counted(trials)
    assert [t.state.name for t in kept] == ["COMPLETE"] * 6, output
    assert {t.state.name for t in trials} <= {"COMPLETE", "FAIL"}
    assert {t.user_attrs["signature"] for t in kept} == {path.parent.name for path in results(cwd)}
    assert len(results(cwd)) == 6, "a point was trained that the study does not have"
    assert f"Study {name}: 6 of 6 trials (6 complete); best val/dice" in output
    for path in results(cwd):
        recorded = json.loads(path.with_name("trial.json").read_text())
        assert recorded["state"] == "COMPLETE"
        assert "search:" not in path.with_name("config.yaml").read_text()

    with sqlite3.connect(cwd / "mlruns" / "mlflow.db") as connection:
        rows = connection.execute(
            "select run_uuid, key, value from tags where key in ('study', 'trial', 'trial.state')"
        )
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in rows:
            tags.setdefault(run, {})[key] = value
        params = {key for (key,) in connection.execute("select distinct key from params")}
    assert sorted(int(t["trial"]) for t in tags.values()) == sorted(t.number for t in kept)
    assert Counter(t["trial.state"] for t in tags.values()) == {"COMPLETE": 6}
    assert {t["study"] for t in tags.values()} == {name}
    assert not {key for key in params if key.startswith("search")}

    over = start(cwd, "-m", *TINY, *command)
    output = finish(over)
    assert over.returncode == 0, output
    assert "6 of 6 trials" in output
    assert len(study(url, name).trials) == len(trials)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_stopped_leaves_no_trial_that_seems_to_run(tmp_path, number):
    cwd = tmp_path
    process = start(
        cwd, "-m", *TINY, "+search=tpe", "search.trials=6", "epochs=200", "loss=dice", "pruner=none", "tracking=none"
    )
    until(lambda: list(cwd.glob("multirun/runs/*/history.jsonl")) or process.poll() is not None)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 130, output
    url = f"sqlite:///{cwd}/mlruns/optuna.db"
    (name,) = optuna.get_all_study_names(url)
    states = {t.number: t.state.name for t in study(url, name).trials}
    noted = [json.loads(path.read_text()) for path in cwd.glob("multirun/runs/*/trial.json")]
    assert noted
    assert "RUNNING" not in states.values()
    assert [about["state"] for about in noted] == [states[about["number"]] for about in noted]


@pytest.mark.slow
def test_the_published_sweeper_goes_on_working(tmp_path):
    cwd = tmp_path
    own = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=maximize", "epochs=1"]
    done = start(cwd, "-m", *TINY, *own, "optim.lr=tag(log,interval(1e-4,1e-1))", "tracking=none")
    output = finish(done)
    assert done.returncode == 0, output
    assert len(results(cwd)) == 2


@pytest.mark.slow
def test_a_storage_out_of_reach_is_one_message_and_leaves_nothing(tmp_path):
    cwd = tmp_path
    storage = "search.storage=postgresql://me:secret@127.0.0.1:1/none"
    done = start(cwd, "-m", *TINY, "+search=tpe", storage, "tracking=none")
    output = finish(done)
    assert done.returncode == 1
    assert "search.storage=postgresql" in output
    assert "cannot be opened" in output
    assert "Traceback" not in output
    assert "secret" not in output
    assert not list(cwd.glob("multirun/2*"))
