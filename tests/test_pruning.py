"""Pruning: what falls behind is ended, recorded as that and can be continued; only what is alike is compared."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from commands import said
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from segsweep.config.components import check
from segsweep.config.schema import conf_dir
from segsweep.core import artifacts
from segsweep.core.artifacts import PRUNING
from segsweep.core.errors import ConfigError
from segsweep.core.session import session
from segsweep.report import records
from segsweep.runs.run import Outcome, run
from segsweep.search import pruning
from segsweep.search.study import open_storage
from segsweep.segmentation.metrics import SPEC
from segsweep.sweeps import entry
from segsweep.sweeps.plan import Planner, table
from segsweep.sweeps.preflight import preflight
from segsweep.task import Metric, Spec

TINY = ["data.patients=8", "data.slices=6", "data.image_size=16", "model.width=4", "model.depth=2", "precision=fp32"]
TINY += ["split.val=0.3"]
HALVING = ["pruner=halving", "pruner.min_resource=2", "pruner.reduction_factor=2"]
GOOD, BAD = "optim.lr=0.02", "optim.lr=1e-9"
OPTIONS = sorted(file.stem for file in (conf_dir() / "pruner").glob("*.yaml"))


def composed(tmp_path: Path, *overrides: str) -> tuple[DictConfig, dict[str, str]]:
    places = ["tracking=none", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path.parent / 'cache'}"]
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=[*TINY, "epochs=4", *places, *overrides], return_hydra_config=True)
    choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def do(tmp_path: Path, *overrides: str, sweep: str = "sweep", milestones: tuple[int, ...] = ()) -> Outcome:
    """One job of the sweep `sweep`."""
    cfg, choices = composed(tmp_path, *overrides)
    folder = tmp_path / "runs" / sweep
    folder.mkdir(parents=True, exist_ok=True)
    name = " ".join(overrides)
    return run(cfg, choices=choices, name=name, command="c", sweep=folder, milestones=set(milestones))


def history(outcome: Outcome) -> list[dict]:
    rows = [json.loads(line) for line in (outcome.folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k and k != "images_per_second"} for row in rows]


def pruned(outcome: Outcome) -> dict:
    return json.loads((outcome.folder / "pruned.json").read_text())


def same_weights(a: Outcome, b: Outcome) -> bool:
    for name in ("last.pt", "best.pt"):
        first, second = (torch.load(o.folder / name, weights_only=True)["model"] for o in (a, b))
        if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
            return False
    return True


def test_what_falls_behind_is_pruned_and_its_record_says_when_and_against_what(tmp_path):
    good = do(tmp_path, *HALVING, GOOD)
    bad = do(tmp_path, *HALVING, BAD)
    assert (good.status, bad.status, bad.epoch, bad.objective) == ("finished", "pruned", 2, None)
    assert {f.name for f in bad.folder.iterdir()} >= {"pruned.json", "history.jsonl", "run.json", "config.yaml"}
    assert not (bad.folder / "result.json").exists()
    record, first = pruned(bad), history(good)[1]["val/dice"]
    assert (record["status"], record["epoch"], record["epochs"], record["metric"]) == ("pruned", 2, 4, "val/dice")
    assert record["value"] == history(bad)[1]["val/dice"] < first
    assert record["pruner"]["_target_"] == "optuna.pruners.SuccessiveHalvingPruner"
    (other,) = record["against"]
    assert (other["signature"], other["value"], other["state"]) == (good.signature, first, "complete")
    assert bad.error == record["reason"]
    assert f"after epoch 2 of 4 by halving: val/dice {record['value']:.4f}; 1 of 1 like it were better" in bad.error
    (bad.folder / "failure.json").write_text("{}")  # of a job whose launcher ended it later, say
    assert do(tmp_path, *HALVING, BAD).status == "pruned"
    assert not (bad.folder / "failure.json").exists()


def test_a_run_that_is_pruned_while_it_is_trained_anew_is_told_as_that_and_the_finished_record_stays(tmp_path):
    do(tmp_path, *HALVING, GOOD, sweep="anew")
    whole = do(tmp_path, BAD)
    anew = do(tmp_path, *HALVING, BAD, "reuse=false", sweep="anew")
    assert (anew.status, anew.folder) == ("pruned", whole.folder / ".anew")
    job = entry.open_job(tmp_path / "runs" / "anew" / "0", 0, [])
    entry.close_job(tmp_path / "runs" / "anew" / "0", job, anew, 1.0)
    artifacts.write_json(tmp_path / "runs" / "anew" / "sweep.json", {"name": "anew", "jobs": 1})
    (told,) = records.read([tmp_path / "runs" / "anew"]).jobs
    assert (told.status, told.run.metrics["val/dice"]) == ("pruned", anew.metrics["val/dice"])
    assert do(tmp_path, BAD).folder == whole.folder


def test_the_record_of_a_pruned_run_says_that_it_went_in_parts(tmp_path, monkeypatch):
    do(tmp_path, *HALVING, GOOD)
    session().retries = 1
    assert pruned(do(tmp_path, *HALVING, BAD))["micro_batches"] == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("pruner.reduction_factor=0", "pruner: "),
        ("+pruner.patients=3", "pruner.patients: optuna.pruners.SuccessiveHalvingPruner takes no such argument"),
        ("search.objective=[test/dice]", "pruner: compares after each epoch, and test/dice is not measured then"),
    ],
)
def test_a_job_that_nobody_has_checked_before_names_what_is_wrong_with_its_pruner(tmp_path, wrong, says):
    outcome = do(tmp_path, *HALVING, wrong)
    assert (outcome.status, outcome.signature) == ("failed", None), "it is told before the data set is read"
    assert outcome.error.startswith(says)


@pytest.mark.parametrize("every", [1, 3])
def test_continued_without_the_pruner_it_ends_as_one_never_pruned_to_the_last_bit(tmp_path, every):
    saved = f"checkpoint.every={every}"
    do(tmp_path, *HALVING, GOOD, saved)
    bad = do(tmp_path, *HALVING, BAD, saved)
    assert (bad.status, len(history(bad))) == ("pruned", 2)
    again = do(tmp_path, *HALVING, BAD, saved, sweep="later")
    assert (again.status, again.error, again.metrics) == ("pruned", bad.error, bad.metrics)
    whole = do(tmp_path, BAD, saved, sweep="later")
    assert (whole.status, whole.signature) == ("continued", bad.signature)
    assert not (whole.folder / "pruned.json").exists()
    never = do(tmp_path / "apart", BAD)
    assert never.signature == whole.signature
    assert never.metrics == whole.metrics
    assert history(never) == history(whole)
    assert same_weights(never, whole)


def test_runs_of_different_length_fold_or_data_are_not_compared(tmp_path):
    do(tmp_path, *HALVING, GOOD, "split=kfold", "split.val=0.3", "split.folds=2")
    different = (["epochs=5"], ["split.fold=1"], ["data.seed=1"])
    for change in different:
        assert (
            do(tmp_path, *HALVING, BAD, "split=kfold", "split.val=0.3", "split.folds=2", *change).status == "finished"
        )
    alike = do(tmp_path, *HALVING, BAD, "split=kfold", "split.val=0.3", "split.folds=2", "seed=1")
    assert alike.status == "pruned"


def test_losses_are_compared_on_one_scale_only(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "objectives", lambda cfg, spec: ["val/loss"])
    do(tmp_path, *HALVING, GOOD)
    assert do(tmp_path, *HALVING, BAD, "loss=bce").status == "finished"
    bad = do(tmp_path, *HALVING, BAD)
    assert bad.status == "pruned"  # less is better here
    assert pruned(bad)["value"] > pruned(bad)["against"][0]["value"]


def test_a_pruned_long_run_leaves_the_short_one_of_its_trajectory_whole(tmp_path):
    options = (*HALVING, "scheduler=constant")
    epochs = (3, 6)
    for n in epochs:
        do(tmp_path, *options, "pruner.min_resource=4", GOOD, f"epochs={n}", milestones=epochs)
    short = do(tmp_path, *options, BAD, "epochs=3", sweep="alone", milestones=epochs)
    assert short.status == "finished"
    long = do(tmp_path, *options, "pruner.min_resource=4", BAD, "epochs=6", milestones=epochs)
    assert (long.status, long.epoch) == ("pruned", 4)
    assert do(tmp_path, BAD, "scheduler=constant", "epochs=3").status == "reused"
    whole = do(tmp_path, BAD, "scheduler=constant", "epochs=6")
    assert whole.status == "continued"
    assert whole.metrics == do(tmp_path / "apart", BAD, "scheduler=constant", "epochs=6").metrics


def test_the_epoch_at_which_it_was_pruned_stays_on_disk_when_a_longer_run_passes_it(tmp_path):
    do(tmp_path, *HALVING, GOOD, "scheduler=constant")
    short = do(tmp_path, *HALVING, BAD, "scheduler=constant")
    assert (short.status, short.epoch) == ("pruned", 2)
    do(tmp_path, BAD, "scheduler=constant", "epochs=6", "checkpoint.keep=1")
    (last,) = (tmp_path / "runs" / "trajectories").glob("*/state_0006.pt")
    assert (last.parent / "state_0002.pt").exists()
    assert do(tmp_path, BAD, "scheduler=constant").status == "continued"


def test_finished_runs_of_earlier_sweeps_count_when_they_are_asked_for_again_and_once_only(tmp_path):
    median = ("pruner=median", "pruner.n_startup_trials=2", "pruner.n_warmup_steps=2")
    for seed in (0, 1):
        do(tmp_path, GOOD, f"seed={seed}", sweep="earlier")
    assert [do(tmp_path, *median, GOOD).status for _ in range(2)] == ["reused", "reused"]
    assert do(tmp_path, *median, BAD, "seed=1").status == "finished"  # one complete run is not two
    assert do(tmp_path, *median, GOOD, "seed=1").status == "reused"
    assert do(tmp_path, *median, BAD).status == "pruned"


def test_another_pruner_looks_at_the_recorded_epochs_anew(tmp_path):
    do(tmp_path, *HALVING, GOOD)
    assert do(tmp_path, *HALVING, BAD).status == "pruned"
    outcome = do(tmp_path, *HALVING[:2], "pruner.reduction_factor=3", BAD, sweep="other")
    assert (outcome.status, outcome.epoch) == ("continued", 4)


def test_an_interrupted_run_goes_on_with_its_history_known_to_the_others(tmp_path):
    do(tmp_path, BAD, "epochs=2", "scheduler=constant", sweep="earlier")
    do(tmp_path, *HALVING, GOOD, "scheduler=constant")
    outcome = do(tmp_path, *HALVING, BAD, "scheduler=constant")
    assert (outcome.status, outcome.epoch) == ("pruned", 2)
    assert len(history(outcome)) == 2
    (study,) = optuna.get_all_study_summaries(open_storage(f"journal:///{tmp_path}/runs/sweep/{PRUNING}"))
    assert (study.study_name, study.n_trials) == ("val/dice", 2)


@pytest.mark.parametrize("recorded", [2, 3])
def test_a_run_that_goes_on_from_recorded_epochs_is_pruned_where_one_without_a_break_is(tmp_path, recorded):
    outcomes = []
    for place, earlier in ((tmp_path / "unbroken", 0), (tmp_path / "continued", recorded)):
        if earlier:
            do(place, BAD, f"epochs={earlier}", "scheduler=constant", sweep="earlier")
        do(place, *HALVING, GOOD, "scheduler=constant")
        outcomes.append(do(place, *HALVING, BAD, "scheduler=constant"))
    unbroken, continued = outcomes
    assert (unbroken.status, unbroken.epoch) == ("pruned", 2)
    assert (continued.status, continued.epoch, continued.error) == ("pruned", 2, unbroken.error)
    assert continued.metrics == unbroken.metrics
    assert history(continued) == history(unbroken)


def test_of_epochs_reported_at_once_the_first_that_falls_behind_decides(tmp_path):
    cfg, _ = composed(tmp_path, "pruner=patient", "pruner.patience=1", "epochs=9")
    facts = {"pruner": "patient", "name": "a", "data": "d", "split": "s", "sweep": tmp_path}
    rows = [{"epoch": epoch, "val/dice": dice} for epoch, dice in enumerate([0.1, 0.5, 0.4, 0.4, 0.6], 1)]
    with pruning.Judge(cfg, SPEC, signature="a", **facts) as judge:
        verdict = judge(rows)
        judge.end("PRUNED", rows[: verdict.epoch])
    assert (verdict.epoch, verdict.record["epoch"], verdict.record["value"]) == (4, 4, 0.4)
    pruning.Judge(cfg, SPEC, signature="b", **facts).__enter__()(rows[:3])  # and killed
    with pruning.Judge(cfg, SPEC, signature="b", **facts) as judge:
        assert judge(rows[:3]) is None
        assert judge(rows[:4]).epoch == 4
        judge.end("COMPLETE", rows)
    storage = open_storage(f"journal:///{tmp_path}/{PRUNING}")
    first, second = optuna.load_study(study_name="val/dice", storage=storage).trials
    assert (first.state.name, sorted(first.intermediate_values)) == ("PRUNED", [1, 2, 3, 4])
    assert (second.state.name, sorted(second.intermediate_values)) == ("COMPLETE", [1, 2, 3, 4, 5])


def test_an_epoch_without_the_metric_is_said_and_the_others_are_judged(tmp_path, caplog):
    cfg, _ = composed(tmp_path, "pruner=patient", "pruner.patience=1", "epochs=9")
    facts = {"pruner": "patient", "name": "a", "data": "d", "split": "s", "sweep": tmp_path}
    rows = [{"epoch": epoch, "val/dice": dice} for epoch, dice in enumerate([0.1, 0.5, 0.4, 0.4, 0.4], 1)]
    del rows[2]["val/dice"]
    with pruning.Judge(cfg, SPEC, signature="a", **facts) as judge:
        assert judge(rows).epoch == 5
    (said,) = caplog.messages
    assert said.startswith("pruner=patient: epoch 3 was reported without val/dice, by which runs are compared")


def test_a_task_whose_score_is_to_be_low_prunes_what_is_high(tmp_path):
    rmse = Metric(title="RMSE", direction="min", format=".1f", scale=("loss",))
    spec = Spec(metrics={"rmse": rmse}, select="val/rmse")
    facts = {"pruner": "halving", "data": "d", "split": "s", "sweep": tmp_path}

    def verdict(rate, value, *overrides):
        cfg, _ = composed(tmp_path, *HALVING, rate, "search.objective=[val/rmse]", *overrides)
        with pruning.Judge(cfg, spec, signature=f"{rate}{overrides}", name=rate, **facts) as judge:
            return judge([{"epoch": epoch, "val/rmse": value} for epoch in (1, 2)])

    assert verdict("optim.lr=0.1", 290.0) is None
    assert verdict("optim.lr=0.3", 310.0, "loss=bce") is None  # on another scale
    behind = verdict("optim.lr=0.2", 310.0)
    assert "val/rmse 310.0; 1 of 1 like it were better there, the best 290.0" in str(behind)
    assert verdict("optim.lr=0.05", 280.0) is None


def test_a_run_whose_process_was_killed_goes_on_with_its_trial(tmp_path):
    cfg, _ = composed(tmp_path, *HALVING)
    facts = {"pruner": "halving", "signature": "a", "name": "a", "data": "d", "split": "s", "sweep": tmp_path}
    rows = [{"epoch": 1, "val/dice": 0.1}, {"epoch": 2, "val/dice": 0.2}]
    pruning.Judge(cfg, SPEC, **facts).__enter__()(rows[:1])  # and never left
    with pruning.Judge(cfg, SPEC, **facts) as judge:
        judge.end("COMPLETE", rows)
    study = optuna.load_study(study_name="val/dice", storage=open_storage(f"journal:///{tmp_path}/{PRUNING}"))
    (trial,) = study.trials
    assert (trial.state.name, trial.intermediate_values, trial.value) == ("COMPLETE", {1: 0.1, 2: 0.2}, 0.2)


def test_a_search_job_reports_to_its_own_trial(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(study_name="s", storage=url, direction="maximize")
    for number, rate in enumerate([GOOD, BAD]):
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING))
        study.ask()
        search = ["search.study=s", f"search.storage={url}", f"search.trial={number}"]
        cfg, _ = composed(tmp_path, *HALVING, rate, *search)
        judge = pruning.Judge(cfg, SPEC, pruner="halving", signature=rate, name=rate, data="d", split="s", sweep=None)
        with judge:
            value = 0.5 - number / 4
            verdict = judge([{"epoch": epoch, "val/dice": value} for epoch in (1, 2)])
        assert study.trials[number].intermediate_values == {1: value, 2: value}
        assert study.trials[number].state is optuna.trial.TrialState.RUNNING  # the sweeper closes it
        if number == 0:
            assert verdict is None
            study.tell(0, 0.5)
        else:
            assert verdict.record["trial"] == 1
            assert verdict.record["against"][0]["trial"] == 0


def test_a_verdict_that_cannot_be_written_at_the_end_costs_no_run(tmp_path, monkeypatch, caplog):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(optuna.storages.JournalStorage, "set_trial_state_values", full)
    assert do(tmp_path, *HALVING, GOOD).status == "finished"
    assert "its study is out of reach, so this run is not pruned: [Errno 28]" in caplog.text


def test_the_connections_to_a_storage_do_not_grow_with_the_jobs_of_a_process(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(study_name="s", storage=open_storage(url), direction="maximize")
    kept, opened = [], []
    for number in range(3):
        study.ask()
        cfg, _ = composed(tmp_path, *HALVING, "search.study=s", f"search.storage={url}", f"search.trial={number}")
        kept.append(pruning.Judge(cfg, SPEC, pruner="p", signature="s", name="n", data="d", split="s", sweep=None))
        with kept[-1] as judge:
            judge([{"epoch": 1, "val/dice": 0.5}])
        opened.append(
            sum(os.path.realpath(f).startswith(f"{tmp_path}/optuna") for f in Path("/proc/self/fd").iterdir())
        )
    assert study.trials[2].intermediate_values == {1: 0.5}
    assert opened[0] == opened[2]


def test_an_outage_of_the_storage_costs_the_pruning_and_not_the_run(tmp_path, caplog):
    do(tmp_path, *HALVING, GOOD)
    (tmp_path / "runs" / "sweep" / PRUNING).unlink()
    (tmp_path / "runs" / "sweep" / PRUNING).mkdir()
    assert do(tmp_path, *HALVING, BAD).status == "finished"
    assert "pruner=halving: its study is out of reach" in caplog.text


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_composes_runs_and_prunes_what_it_should(tmp_path, option):
    cfg, _ = composed(tmp_path, f"pruner={option}")
    assert [*check(cfg), *pruning.problems(cfg, SPEC)] == []
    small = {
        "none": [],
        "median": ["pruner.n_startup_trials=1"],
        "halving": HALVING[1:],
        "hyperband": ["pruner.min_resource=2"],  # one bracket: of several each trial draws its own
        "patient": ["pruner.patience=0"],
    }[option]
    do(tmp_path, f"pruner={option}", *small, GOOD)
    statuses = {do(tmp_path, f"pruner={option}", *small, BAD, f"seed={seed}").status for seed in (0, 2)}
    # patience alone compares with nobody, and the Dice of these stays where it is
    assert statuses == {"finished" if option in ("none", "patient") else "pruned"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_value_of_an_option_says_what_it_is(option):
    first, *lines = (conf_dir() / "pruner" / f"{option}.yaml").read_text().splitlines()
    assert first.startswith("#")
    assert [line for line in lines if line[0] not in "#_" and " # " not in line] == []


def test_patience_ends_a_run_by_itself(tmp_path):
    cfg, _ = composed(tmp_path, "pruner=patient", "pruner.patience=1", "epochs=9")
    tmp_path.joinpath("s").mkdir()
    with pruning.Judge(
        cfg, SPEC, pruner="patient", signature="a", name="a", data="d", split="s", sweep=tmp_path / "s"
    ) as j:
        rows: list[dict] = []
        verdicts = []
        for epoch, dice in enumerate([0.1, 0.5, 0.4, 0.4], 1):
            rows.append({"epoch": epoch, "val/dice": dice})
            verdicts.append(j(rows))
    assert verdicts[:3] == [None] * 3
    assert str(verdicts[3]) == "after epoch 4 of 9 by patient: val/dice 0.4000 (its best 0.5000 in epoch 2)"


def test_an_epoch_without_a_value_is_not_held_against_a_run(tmp_path):
    cfg, _ = composed(tmp_path, "pruner=patient", "pruner.patience=0")
    tmp_path.joinpath("s").mkdir()
    with pruning.Judge(
        cfg, SPEC, pruner="patient", signature="a", name="a", data="d", split="s", sweep=tmp_path / "s"
    ) as j:
        assert j([{"epoch": 1, "val/dice": math.nan}, {"epoch": 2, "val/dice": None}]) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["pruner=median", "split=holdout"], "compared by their validation part, and these data have none"),
        (["pruner=patient", "pruner.patience=-1"], "patience cannot be negative"),
        (["pruner=halving", "pruner.reduction_factor=1"], "reduction_factor"),
        (["pruner=hyperband", "pruner.min_resource=0"], "pruner"),
        (["pruner=halvin"], "no such option; did you mean halving?"),
        (["pruner=halving", "pruner.min_resourse=2"], "did you mean pruner.min_resource?"),
        (["pruner=halving", "pruner._target_=os.system"], "not allowed to be called"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message.replace("?", "\\?")):
        preflight([*(t for t in TINY if "val" not in t), f"paths.cache={tmp_path}", *wrong])


@pytest.mark.parametrize("objective", [["val/dice", "gflops"], ["training_seconds"], ["test/dice"]])
def test_what_cannot_be_compared_after_an_epoch_is_refused(tmp_path, objective):
    cfg, _ = composed(tmp_path, *HALVING)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg) | {"search": {"objective": objective}})
    assert "pruner:" in pruning.problem(cfg, SPEC, 10)
    assert pruning.problem(composed(tmp_path, *HALVING)[0], SPEC, 10) is None


def test_a_plan_says_what_was_pruned_and_that_it_can_go_on(tmp_path):
    do(tmp_path, *HALVING, GOOD)
    do(tmp_path, *HALVING, BAD)
    planner = Planner(tmp_path / "runs")
    with_, without, new = (
        planner.point(*composed(tmp_path, *o)) for o in ([*HALVING, BAD], [BAD], [*HALVING, BAD, "seed=7"])
    )
    assert (with_.state, without.state, new.state) == ("pruned", "continue", "new")
    text = table(["a", "c"], [with_, new], planner)
    assert "pruned at epoch 2, can be continued with pruner=none" in text
    assert "at most 4 epochs" in text
    text = table(["b"], [planner.point(*composed(tmp_path, BAD))], planner)
    assert "to continue from epoch 2, pruned at 2" in text


def test_without_a_pruner_optuna_is_not_imported():
    plain = (
        "import sys; from segsweep.config import start; from segsweep.runs import run; "
        "from segsweep.tracking import mirrors; from segsweep.sweeps import cli, sweep, preflight; start.start(); "
        "preflight.preflight(['data.patients=4', 'data.slices=4', 'data.image_size=16']); "
        "print('optuna' in sys.modules)"
    )
    assert said(plain) == "False"


def segsweep(cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    places = ["paths.runs=runs", f"paths.cache={cwd}/cache", "hydra.sweep.dir=runs/sweep"]
    return subprocess.run(
        [sys.executable, "-m", "segsweep", "-m", *TINY, "epochs=4", *arguments, *places],
        cwd=cwd, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def statuses(folder: Path) -> list[str]:
    return [json.loads((folder / str(n) / "job.json").read_text())["status"] for n in range(3)]


@pytest.mark.slow
def test_a_grid_with_hydras_own_launcher_and_sweeper_prunes_too(tmp_path):
    own = ["hydra/launcher=basic", "hydra/sweeper=basic", "tracking=none"]
    done = segsweep(tmp_path, "optim.lr=0.02,1e-9,1e-8", *HALVING, *own)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "runs" / "sweep") == ["finished", "pruned", "pruned"]


@pytest.mark.slow
def test_a_pruned_run_is_told_apart_everywhere_and_goes_on_without_the_pruner(tmp_path):
    grid = ["optim.lr=0.02,1e-9,1e-8", *HALVING]
    done = segsweep(tmp_path, *grid)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "sweep"
    assert statuses(folder) == ["finished", "pruned", "pruned"]
    job = json.loads((folder / "1" / "job.json").read_text())
    assert "job 1 pruned: after epoch 2 of 4 by halving" in done.stdout
    assert "pruned in" in done.stderr
    report = (folder / "report.md").read_text()
    assert "Jobs without a finished run: 2 pruned" in report
    assert "after epoch 2 of 4 by halving" in report

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("segsweep")
    runs = {run.data.tags.get("signature"): run for run in client.search_runs([experiment.experiment_id])}
    assert runs[None].info.status == "FINISHED"
    bad = runs[job["signature"]]
    assert (bad.info.status, bad.data.tags["status"]) == ("KILLED", "pruned")
    assert bad.data.tags["pruned"] == job["error"]
    assert "pruned.json" in [file.path for file in client.list_artifacts(bad.info.run_id)]

    again = segsweep(tmp_path, *grid)
    assert (again.returncode, statuses(folder)) == (0, ["reused", "pruned", "pruned"])
    assert "epoch 1/" not in again.stderr  # nothing was trained
    segsweep(tmp_path, *(g for g in grid if not g.startswith("pruner")), "pruner=none")
    assert statuses(folder) == ["reused", "continued", "continued"]
    bad = client.get_run(bad.info.run_id)
    assert (bad.info.status, bad.data.tags["status"]) == ("FINISHED", "finished")
    assert "pruned" not in bad.data.tags
