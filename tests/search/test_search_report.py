"""Reading a search: its best configuration runs and is the run that was found; figures from the study alone."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from optuna.trial import TrialState
from PIL import Image

from segsweep.config.schema import conf_dir
from segsweep.core import artifacts
from segsweep.core.errors import ConfigError
from segsweep.core.program import typed
from segsweep.report import winner
from segsweep.report.search import figures, pages
from segsweep.report.search.trials import Found
from segsweep.runs.run import Outcome, run
from segsweep.sweeps import sweep
from segsweep.sweeps.preflight import preflight

TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "precision=fp32"]
ASKED = {"search.objective": "val/dice", "data": "phantom", "epochs": "2", "scheduler.T_max": "${epochs}"}
ASKED |= {"clip_norm": "None", "data.patients": "6", "optim.lr": "FloatDistribution(high=0.1, log=True, low=1e-05)"}


def storage(folder: Path) -> str:
    return f"sqlite:///{folder}/optuna.db"


def filled(folder: Path, name: str = "s", trials: int = 24, two: bool = False, asked: bool = True) -> optuna.Study:
    """A study with conditional hyperparameters, pruned, failed and withdrawn trials; the best has a rate near 0.003."""
    directions = ["maximize", "minimize"] if two else ["maximize"]
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(study_name=name, storage=storage(folder), directions=directions, sampler=sampler)
    if asked:
        study.set_user_attr("segsweep", ASKED | ({"search.objective": "val/dice, parameters"} if two else {}))
    for number in range(trials):
        trial = study.ask()
        rate = trial.suggest_float("optim.lr", 1e-5, 1e-1, log=True)
        optimizer = trial.suggest_categorical("optim", ["sgd", "adam"])
        trial.suggest_categorical("batch_size", [8, 16])
        if optimizer == "sgd":
            trial.suggest_float("optim.momentum", 0.0, 0.99)
        dice = 0.9 - abs(rate - 0.003)
        if two:
            study.tell(trial, [dice, 1e6 * rate])
            continue
        trial.report(dice / 2, 1)
        if number == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif number == 4:
            trial.set_user_attr("withdrawn", "another process was quicker")
            study.tell(trial, state=TrialState.FAIL)
        elif number % 5 == 2:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, dice)
    return study


class Words(HTMLParser):
    """The text of a page, and what it would fetch."""

    def __init__(self, page: Path):
        super().__init__()
        self.text, self.fetched = "", []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        links = [found.get(key) or "" for key in ("src", "href")]
        self.fetched += [link for link in links if link and not link.startswith(("#", "data:"))]

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def written(folder: Path, name: str = "s") -> tuple[Path, str]:
    page = pages.write(pages.load(name, storage(folder)), folder / "out")
    words = Words(page)
    assert words.fetched == []
    return folder / "out", " ".join(words.text.split())


def test_the_page_counts_the_trials_and_has_every_figure(tmp_path):
    study = filled(tmp_path)
    out, text = written(tmp_path)
    states = [t.state for t in study.trials]
    complete, pruned = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
    assert f"23 trials: {complete} complete, {pruned} pruned and 1 failed." in text
    assert "Pruned after 1 epoch. " in text
    best = study.best_trial
    assert f"Trial {best.number}, val/dice {best.value:.4g}" in text
    assert f"Over {complete} complete trials. fANOVA" in text
    assert "Only some trials have optim.momentum: fANOVA leaves that out." in text
    assert "a hint, not a finding" in text
    assert "not there" in text  # on the axis of the momentum
    names = {"history-0", "importance-0", "parallel-0", "curves"}
    names |= {f"slice-0-{p}" for p in ("optim-lr", "optim", "batch-size", "optim-momentum")}
    assert {p.stem for p in (out / "search").glob("*.png")} == names
    for file in (out / "search").glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 200


def test_importance_finds_what_matters_and_is_not_shown_for_few_trials(tmp_path):
    found = pages.load("s", storage(tmp_path)) if filled(tmp_path) else None
    shares = pages._shares(found, 0, ["optim.lr", "optim", "batch_size"], ["optim.lr", "optim", "batch_size"])
    assert set(shares) == {"fANOVA", "PED-ANOVA"}
    assert all(max(share, key=share.get) == "optim.lr" for share in shares.values())
    filled(tmp_path, "few", trials=4)
    out, text = written(tmp_path, "few")
    assert "Not worked out: it would rest on 2 complete trials, and wants at least 10." in text
    assert not list((out / "search").glob("importance*"))


@pytest.mark.slow
def test_two_objectives_have_a_front_and_a_file_for_each_point_of_it(tmp_path):
    study = filled(tmp_path, two=True)
    out, text = written(tmp_path)
    front = {t.number for t in study.best_trials}
    assert len(front) > 1
    assert all(f"Trial {number}, val/dice" in text for number in front)
    assert len(list((out / "search" / "experiment").glob("*.yaml"))) == len(front)
    assert {"pareto-1.png", "history-1.png", "parallel-1.png"} <= {p.name for p in (out / "search").glob("*.png")}
    top = max(study.best_trials, key=lambda t: t.values[0])
    chosen = yaml.safe_load((out / "search" / "experiment" / "best.yaml").read_text())
    assert chosen["optim"]["lr"] == top.params["optim.lr"]


def test_a_study_without_a_complete_trial_says_so(tmp_path):
    study = optuna.create_study(study_name="s", storage=storage(tmp_path))
    study.tell(study.ask(), state=TrialState.FAIL)
    out, text = written(tmp_path)
    assert "No trial is complete yet" in text
    assert not (out / "search").exists()


@pytest.mark.slow
def test_from_the_study_alone_the_file_has_what_was_drawn_and_what_was_fixed(tmp_path):
    study = filled(tmp_path)
    out, text = written(tmp_path)
    file = out / "search" / "experiment" / "best.yaml"
    content, params = yaml.safe_load(file.read_text()), study.best_trial.params
    assert content["epochs"] == 2
    assert content["data"] == {"patients": 6}
    assert content["optim"]["lr"] == params["optim.lr"]
    assert "clip_norm" not in content
    assert "scheduler" not in content  # ${epochs}, as in conf/
    assert ("defaults" in content) == (params["optim"] == "sgd")
    assert file.read_text().startswith(
        f"# @package _global_\n# Best of the search s: trial {study.best_trial.number}, "
    )
    assert "has to be given again" not in file.read_text()
    filled(tmp_path, "foreign", asked=False)
    written(tmp_path, "foreign")
    assert "has to be given again" in file.read_text()


def composed(tmp_path: Path, *overrides: str) -> tuple[DictConfig, dict[str, str]]:
    places = ["tracking=none", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path}/cache"]
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=[*overrides, *places], return_hydra_config=True)
    choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def trained(tmp_path: Path, *overrides: str) -> Outcome:
    cfg, choices = composed(tmp_path, *TINY, *overrides)
    return run(cfg, choices=choices, name="n", command="c", sweep=None, milestones=set())


@pytest.mark.slow
def test_the_best_runs_as_an_experiment_and_as_a_command_and_is_the_run_that_was_found(tmp_path):
    drawn = {"optim": "sgd", "optim.lr": 0.0123, "optim.momentum": 0.5, "batch_size": 8}
    outcome = trained(tmp_path, "epochs=2", "loss=tversky", "augment=flips", *(f"{k}={v}" for k, v in drawn.items()))
    study = optuna.create_study(study_name="s", storage=storage(tmp_path), direction="maximize")
    floats = {k: optuna.distributions.FloatDistribution(0, 1) for k in ("optim.lr", "optim.momentum")}
    choices = {"optim": ["sgd", "adam"], "batch_size": [8, 16]}
    kinds = floats | {k: optuna.distributions.CategoricalDistribution(v) for k, v in choices.items()}
    attributes = {"signature": outcome.signature}
    study.add_trial(optuna.trial.create_trial(params=drawn, distributions=kinds, value=0.7, user_attrs=attributes))
    folder = tmp_path / "runs" / "sweep"
    folder.mkdir()
    artifacts.write_json(folder / "sweep.json", {"search": {"study": "s", "storage": storage(tmp_path)}})
    told = sweep.Sweep()._search(folder)
    line = f"{typed()} --config-dir {folder}/search experiment=best"
    assert told.startswith(f"{folder}/search.html   the best: {line}")
    head = (folder / "search" / "experiment" / "best.yaml").read_text().splitlines()
    lines = [line.removeprefix("#").split() for line in head if "python -m segsweep" in line]
    assert len(lines) == 2
    for line in lines:
        places = ["tracking=none", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path}/cache"]
        done = subprocess.run(
            [sys.executable, *line[1:], *places], capture_output=True, text=True,
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "reused in" in done.stderr, (line, done.stderr)
    content = yaml.safe_load((folder / "search" / "experiment" / "best.yaml").read_text())
    overridden = {k: v for entry in content["defaults"] for k, v in entry.items()}
    assert overridden == {"override /loss": "tversky", "override /optim": "sgd", "override /augment": "flips"}
    assert content["optim"] == {"lr": 0.0123, "momentum": 0.5}
    assert "T_max" not in json.dumps(content)


def test_added_keys_lists_and_texts_come_back_on_the_command_line(tmp_path):
    values = {"+optim.foreach": False, "optim.betas": [0.8, 0.9], "data.root": "/a b/c", "clip_norm": None, "x": "1e-3"}
    line = winner.command({"model": "r2unet"}, values)
    expected = "python -m segsweep model=r2unet +optim.foreach=false 'optim.betas=[0.8,0.9]' "
    assert line == expected + """"data.root='/a b/c'" clip_norm=null "x='1e-3'\""""
    choices, found = winner.difference({"optim": "adam"}, {"optim.foreach": False, "optim.betas": [0.8, 0.9]}, [])
    assert (choices, found) == ({}, {"+optim.foreach": False, "optim.betas": [0.8, 0.9]})
    assert yaml.safe_load(winner.experiment(["h"], choices, found)) == {
        "optim": {"foreach": False, "betas": [0.8, 0.9]}
    }


OWN = {"_target_": "torch.nn.Conv2d", "out_channels": 1, "kernel_size": 3}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.5}


def of_record(folder: Path, model: dict) -> winner.Winner:
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "optim": SGD, "epochs": 3}))
    artifacts.write_json(folder / "run.json", {"choices": {"model": "mine", "optim": "sgd"}})
    return winner.of_run(folder, ["model.kernel_size"])


def test_an_option_of_ones_own_is_written_as_it_was(tmp_path):
    found = of_record(tmp_path, OWN)
    assert (found.own, found.left) == ({"model": OWN}, [])
    assert found.choices == {"model": "mine", "optim": "sgd"}
    assert found.values == {"model.kernel_size": 3, "optim.lr": 0.5, "epochs": 3}
    assert yaml.safe_load(winner.option("model", OWN)) == OWN
    assert winner.option("task", {"task": OWN}).startswith("# @package _global_")


@pytest.mark.parametrize(
    "model",
    [
        OWN | {"_target_": "os.system"},
        OWN | {"more": {"_target_": "os.system"}},
        OWN | {"more": [{"_target_": "os.system"}]},
        OWN | {"bias": "${oc.env:HOME}"},
        OWN | {"a\nb": 1},
        OWN | {"_args_": [1]},
        {"kernel_size": 3},
    ],
)
def test_a_record_from_elsewhere_brings_no_option_that_may_call_or_read_what_it_likes(tmp_path, model):
    found = of_record(tmp_path, model)
    assert found.own == {}
    assert "model=mine" in found.left
    assert found.choices == {"optim": "sgd"}


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("tpx", "sqlite:///{}/optuna.db", "no such study in .*; did you mean tpe?; there are tpe"),
        ("tpe", "sqlite:///{}/nowhere.db", "no such file"),
        ("tpe", "journal:///{}/optuna.db", "cannot be (read|opened)"),
        ("tpe", "nonsense://x", "cannot be (read|opened)"),
    ],
)
def test_a_wrong_study_or_storage_is_told_in_a_line(tmp_path, capsys, name, place, message):
    filled(tmp_path, "tpe", trials=1)
    assert pages.main([name, "--storage", place.format(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert __import__("re").search(message.replace("?", "\\?"), told), told


def test_a_sweep_that_was_no_search_is_told(tmp_path, capsys):
    artifacts.write_json(tmp_path / "sweep.json", {})
    assert pages.main([str(tmp_path)]) == 1
    assert "records no search" in capsys.readouterr().err


def test_a_config_dir_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="--config-dir nowhere: no such folder"):
        preflight(["--config-dir", "nowhere"])


@pytest.mark.slow
def test_a_search_prunes_and_is_read_at_its_end(tmp_path):
    places = ["paths.runs=runs", f"paths.cache={tmp_path}/cache"]
    tiny = [*(t for t in TINY if "data.s" not in t and "patients" not in t), "data.patients=8", "data.slices=6"]
    tiny += ["data.image_size=16", "split.val=0.3", "epochs=4"]
    space = ["optim.lr=0.02,1e-9", "batch_size=16,8", "hydra/sweeper=search", "hydra/sweeper/sampler=grid"]
    halving = ["pruner=halving", "pruner.reduction_factor=2"]

    def segsweep(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "segsweep", *arguments, *places], capture_output=True, text=True,
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    done = segsweep("-m", *space, *halving, *tiny, "hydra.sweep.dir=runs/sweep")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "sweep"
    assert f"Search: {folder.relative_to(tmp_path)}/search.html" in done.stdout, done.stdout + done.stderr
    found = pages.load(
        json.loads((folder / "sweep.json").read_text())["search"]["study"], f"sqlite:///{tmp_path}/mlruns/optuna.db"
    )
    states = {t.params["optim.lr"]: set() for t in found.trials}
    for trial in found.trials:
        states[trial.params["optim.lr"]].add(trial.state.name)
        assert sorted(trial.intermediate_values) == list(range(1, 3 if trial.state is TrialState.PRUNED else 5))
    assert "COMPLETE" in states[0.02]
    assert "PRUNED" in states[1e-9]
    text = Words(folder / "search.html").text
    assert "pruned" in text
    again = segsweep("--config-dir", str(folder / "search"), "experiment=best")
    assert "reused in" in again.stderr, again.stderr

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    parent = json.loads((folder / "sweep.json").read_text())["mlflow"]["run_id"]
    assert {"search.html", "best.yaml", "history-0.png"} <= {file.path for file in client.list_artifacts(parent)}


def test_a_trial_over_a_limit_is_never_called_the_best():
    study = optuna.create_study(direction="maximize")
    for value, over in ((0.7, -0.5), (0.8, -0.2), (0.95, 1.0), (0.85, 0.0)):
        trial = study.ask({"width": optuna.distributions.IntDistribution(1, 10**6)})
        trial.set_constraint("parameters", over)
        study.tell(trial, value)
    found = Found(study, "sqlite:///x", None)
    assert [t.number for t in found.best] == [3]
    said = figures.history(found).blocks[0][0].alt + figures.slices(found).blocks[-1][0].alt
    assert "0.85 in the end, reached at trial 3. 1 trial over a limit is never the best." in said
    assert f"the best has {study.trials[3].params['width']}." in said.replace(",", "")
