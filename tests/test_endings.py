"""Averages of the weights, what is tested, and early stopping: to the last bit through whatever interrupts them."""

import csv
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_run import TINY, do, same, weights
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segsweep.config.schema import conf_dir
from segsweep.core.session import Session, begin, session
from segsweep.segmentation.train import averaging
from segsweep.segmentation.trained import load
from segsweep.sweeps.plan import Planner

SLOW = ("scheduler=constant", "optim=sgd", "optim.lr=1e-9")
"""Nothing is learnt, so that no epoch is a gain on the first."""


def result(outcome) -> dict:
    assert outcome.error is None
    return json.loads((outcome.folder / "result.json").read_text())


def history(outcome) -> list[dict]:
    rows = [json.loads(line) for line in (outcome.folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def stopped_and_continued(folder, *asked):
    session().stop()
    assert do(folder, *asked).status == "interrupted"
    begin(Session())
    return do(folder, *asked)


# The average of the weights


def test_the_average_is_torchs_over_the_steps_of_the_run(tmp_path, monkeypatch):
    seen, update = [], AveragedModel.update_parameters

    def watched(self, model):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        update(self, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", watched)
    outcome = do(tmp_path, "ema=0.8")
    assert len(seen) == 4  # two epochs of two steps
    expected, decay = dict(seen[0]), get_ema_multi_avg_fn(0.8)
    for step in seen[1:]:
        for key, value in step.items():
            if value.is_floating_point():
                decay([expected[key]], [value], 1)
            else:
                expected[key] = value
    assert same(weights(outcome), expected)
    assert any("running_var" in key for key in expected)


def test_a_table_of_places_is_no_average_of_itself():
    torch.manual_seed(0)
    net = torch.nn.BatchNorm1d(3)
    net.register_buffer("places", torch.randint(0, 99999, (4000,)))
    mean = AveragedModel(net, multi_avg_fn=averaging(0.95), use_buffers=True)
    for _ in range(5):
        net(torch.rand(8, 3))
        mean.update_parameters(net)
    assert torch.equal(mean.module.places, net.places)  # torch's own truncates
    assert not torch.equal(mean.module.running_mean, net.running_mean)


def test_with_an_average_the_epochs_and_the_test_are_its_own(tmp_path):
    plain, averaged = do(tmp_path), do(tmp_path, "ema=0.8")
    last = do(tmp_path, "ema=0.8", "test_weights=last")
    assert last.metrics == plain.metrics
    assert same(weights(last), weights(plain))
    assert [row["train/loss"] for row in history(averaged)] == [row["train/loss"] for row in history(plain)]
    assert averaged.metrics["val/loss"] != plain.metrics["val/loss"]
    assert averaged.metrics["test/loss"] != plain.metrics["test/loss"]
    about = json.loads((averaged.folder / "run.json").read_text())["factors"]
    assert (about["ema"], about["test_weights"]) == (0.8, "ema")
    assert "test_weights" not in json.loads((plain.folder / "run.json").read_text())["factors"]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(), ("micro_batches=2",)])
def test_changes_of_an_images_values_go_on_to_the_same_bits(tmp_path, parts):
    names = ("noise", "blur", "brightness", "contrast", "gamma")
    asked = ("augment=flips", *(f"augment.{name}=0.5" for name in names), "epochs=3", *parts)
    undisturbed = do(tmp_path / "undisturbed", *asked)
    again = stopped_and_continued(tmp_path / "stopped", *asked)
    assert (again.status, again.metrics) == ("continued", undisturbed.metrics)
    assert same(weights(again), weights(undisturbed))
    plain = do(tmp_path / "plain", "augment=flips", "epochs=3")
    assert plain.metrics != undisturbed.metrics
    assert plain.signature == do(tmp_path / "plain", "augment=flips", "epochs=3", "~augment.noise").signature


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(), ("micro_batches=2",)])
@pytest.mark.parametrize("chosen", ["ema", "last"])
def test_an_average_goes_on_to_the_same_bits(tmp_path, chosen, parts):
    asked = ("ema=0.8", f"test_weights={chosen}", "epochs=3", *parts)
    undisturbed = do(tmp_path / "undisturbed", *asked)
    again = stopped_and_continued(tmp_path / "stopped", *asked)
    assert (again.status, again.metrics) == ("continued", undisturbed.metrics)
    assert same(weights(again), weights(undisturbed))
    assert history(again) == history(undisturbed)
    for outcome in (again, undisturbed):
        (folder,) = (outcome.folder.parent.parent / "trajectories").iterdir()
        state = torch.load(folder / "state_0003.pt", weights_only=True)
        assert {"trained" if chosen == "ema" else "average"} < state.keys()
        outcome.state = state
    for name in {"model", "trained", "average"} & again.state.keys():
        assert same(again.state[name], undisturbed.state[name])


def test_epochs_with_an_average_are_shared_by_runs_of_different_length(tmp_path):
    asked = ("ema=0.8", "scheduler=constant")
    do(tmp_path, *asked, "epochs=1")
    longer = do(tmp_path, *asked, "epochs=2")
    assert longer.status == "continued"
    assert same(weights(longer), weights(do(tmp_path / "alone", *asked, "epochs=2")))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("test_weights=ema",), "test_weights=ema: there is no average of the weights to test; give its decay"),
        (("ema=1",), "ema=1: must be below 1"),
        (("ema=0",), "ema=0: must be above 0"),
        (
            ("test_weights=best", "split=holdout"),
            "test_weights=best: it goes by the validation part, and there is none",
        ),
        (("early_stopping=2", "split=holdout"), "early_stopping=2: it goes by the validation part, and there is none"),
        (("early_stopping=0",), "early_stopping=0: must be at least 1"),
        (("test_weights=first",), "test_weights=first: allowed are last, best, ema"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_training(tmp_path, asked, says):
    outcome = do(tmp_path, *asked)
    assert outcome.status == "failed"
    assert len(outcome.error.splitlines()) == 1
    assert outcome.error.startswith(says)


# What is tested


def test_the_best_epochs_weights_are_tested_where_that_is_asked_for_and_kept_beside_the_last(tmp_path):
    asked = ("epochs=4", "optim.lr=0.05", "seed=3")
    last = do(tmp_path, *asked)
    best = do(tmp_path, *asked, "test_weights=best")
    scores = [row["val/dice"] for row in history(best)]
    at = scores.index(max(scores)) + 1
    assert at < 4, "a run whose last epoch is the best shows nothing"
    assert history(best) == history(last)  # and trained no epoch of its own
    assert result(best)["trained_epochs"] == 0
    assert same(weights(best), weights(last))
    assert best.metrics["val/loss"] == last.metrics["val/loss"]
    assert best.metrics["test/loss"] != last.metrics["test/loss"]
    shorter = do(tmp_path / "alone", *asked, f"epochs={at}", "scheduler.T_max=4")
    assert best.metrics["test/loss"] == shorter.metrics["test/loss"]
    assert (load(best.folder).weights, load(best.folder).epoch) == ("best", at)
    assert (load(last.folder).weights, load(last.folder).epoch) == ("last", 4)


# Early stopping


def test_it_stops_after_so_many_epochs_without_a_gain_and_is_tested(tmp_path):
    outcome = do(tmp_path, *SLOW, "epochs=9", "early_stopping=2")
    why = "no gain in val Dice since epoch 1 (early_stopping=2, null goes on)"
    assert (outcome.status, outcome.epoch) == ("stopped early", 3)
    assert outcome.stopped == f"stopped early after epoch 3 of 9: {why}"
    assert result(outcome)["stopped"] == {"epoch": 3, "of": 9, "reason": why}
    assert [row["epoch"] for row in history(outcome)] == [1, 2, 3]
    assert list(csv.DictReader((outcome.folder / "patients.csv").read_text().splitlines()))
    assert load(outcome.folder).epoch == 3
    again = do(tmp_path, *SLOW, "epochs=9", "early_stopping=2")
    assert (again.status, again.stopped, again.metrics) == ("reused", outcome.stopped, outcome.metrics)
    alone = do(tmp_path / "alone", *SLOW, "epochs=3")
    assert same(weights(outcome), weights(alone))
    assert outcome.metrics == alone.metrics


def test_a_plan_says_that_it_stopped_early(tmp_path):
    stopped = do(tmp_path, *SLOW, "epochs=4", "early_stopping=1")
    folder = str(tmp_path / "runs")
    overrides = [*TINY, *SLOW, "epochs=4", "early_stopping=1", f"paths.runs={folder}"]
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=[*overrides, f"paths.cache={tmp_path.parent / 'cache'}"])
    point = Planner(Path(folder)).point(cfg, {})
    assert (point.signature, point.state) == (stopped.signature, "finished")
    assert point.note == "(stopped early after epoch 2 of 4)"
    assert point.early
    elsewhere = cfg.copy()
    elsewhere.paths.runs = f"{folder}/other"  # a job's own
    found = Planner(Path(folder)).point(elsewhere, {})
    assert (found.folder.parent, found.state) == (Path(folder) / "other" / "runs", "new")
    cfg.early_stopping, cfg.metrics, cfg.test_weights = None, ["auc"], "best"
    assert not Planner(Path(folder)).point(cfg, {}).early


def test_what_stopped_early_goes_on_with_null_and_is_found_again_in_a_longer_run(tmp_path):
    whole = do(tmp_path / "whole", *SLOW, "epochs=6")
    stopped = do(tmp_path / "a", *SLOW, "epochs=6", "early_stopping=1")
    on = do(tmp_path / "a", *SLOW, "epochs=6")
    assert (stopped.status, on.status, on.stopped) == ("stopped early", "continued", None)
    assert result(on)["trained_epochs"] == 4
    assert (on.metrics, history(on)) == (whole.metrics, history(whole))
    do(tmp_path / "b", *SLOW, "epochs=6")  # whose state after epoch 2 is gone
    later = do(tmp_path / "b", *SLOW, "epochs=6", "early_stopping=1")
    assert (later.status, later.metrics, later.epoch) == ("stopped early", stopped.metrics, 2)
    assert same(weights(later), weights(stopped))
    kept = do(tmp_path / "b", *SLOW, "epochs=6", "early_stopping=4")  # that after epoch 5 is there
    assert (result(kept)["trained_epochs"], kept.epoch) == (0, 5)
    assert kept.stopped.startswith("stopped early after epoch 5 of 6")


@pytest.mark.parametrize(
    "more", [(), ("ema=0.5",), ("scheduler=plateau", "scheduler.patience=0"), ("micro_batches=2",)]
)
def test_it_stops_at_the_same_epoch_after_an_interruption(tmp_path, more):
    asked = (*SLOW, *more, "epochs=9", "early_stopping=2", "test_weights=best")
    undisturbed = do(tmp_path / "undisturbed", *asked)
    again = stopped_and_continued(tmp_path / "stopped", *asked)
    assert (again.status, again.stopped) == ("stopped early", undisturbed.stopped)
    assert (again.metrics, history(again)) == (undisturbed.metrics, history(undisturbed))
    assert same(weights(again), weights(undisturbed))


def test_a_run_that_gains_goes_to_its_end(tmp_path):
    asked = ("epochs=3", "early_stopping=3")
    outcome = do(tmp_path, *asked)
    assert (outcome.status, outcome.stopped) == ("finished", None)
    assert "stopped" not in result(outcome)
    assert outcome.signature != do(tmp_path, "epochs=3").signature
