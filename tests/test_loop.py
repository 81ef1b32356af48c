"""The loop over epochs that a task is given: resumed to the last bit, shared, ended by others, and told where misused.

The task here is a small network with dropout on random points: a tenth of a second a run."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from segsweep.core.checkpoints import Checkpoints
from segsweep.core.errors import NotFiniteError, TaskError
from segsweep.runs.loop import Loop, on_host
from segsweep.task import Metric, Spec

SPEC = Spec(
    metrics={
        "loss": Metric(title="Loss", direction="min"),
        "rmse": Metric(title="RMSE", direction="min", bounds=(0, math.inf), by_unit=True),
    },
    select="val/rmse",
)
X = torch.linspace(-1, 1, 64)[:, None]
Y = X.sin()


class Stop(Exception):
    def __init__(self, epoch: int):
        super().__init__(f"after {epoch}")
        self.epoch = epoch


def loop(folder, epochs: int = 4, part: str = "val", **more) -> Loop:
    return Loop(SPEC, part, epochs=epochs, seed=3, checkpoints=Checkpoints(folder), interrupted=Stop, **more)


def train(run: Loop, lr: float = 0.05, until: int = 99):
    """A task's own loop; `until`: the epoch in which somebody asks it to stop."""
    torch.manual_seed(run.seed)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for epoch in run.epochs(model=model, optimizer=optimizer, scheduler=scheduler):
        for batch in torch.randperm(64).split(16):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(X[batch]), Y[batch])
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            rmse = nn.functional.mse_loss(model.eval()(X), Y).sqrt()
        model.train()
        scheduler.step()
        epoch.report({"train/loss": loss.item(), "val/rmse": rmse}, lr=lr)
        if epoch.number == until:
            run.stopping = lambda: True
    run.finish()
    return model


def told(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_copy_of_a_state_stays_as_it_was_while_training_goes_on():
    weights, step = torch.zeros(2), torch.zeros(1)
    copy = on_host({"model": {"w": weights}, "optimizer": [{"step": step, "lr": 0.1}]})
    weights += 1
    step += 1
    assert copy["model"]["w"].tolist() == [0, 0]
    assert copy["optimizer"][0]["step"].tolist() == [0]
    assert copy["optimizer"][0]["lr"] == 0.1


def test_states_are_taken_only_where_they_are_kept(tmp_path):
    asked = []

    class Counting(nn.Linear):
        def state_dict(self, *given, **more):
            asked.append(len(rows))
            return super().state_dict(*given, **more)

    run, rows = loop(tmp_path, epochs=5, every=3), []
    for epoch in run.epochs(counted=Counting(1, 1)):
        rows.append(epoch.number)
        epoch.report({"train/loss": 1.0, "val/rmse": 1.0})
    assert asked == [3, 5]


@pytest.mark.parametrize("keeping", [{}, {"every": 3}, {"writer": True}])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits_with_dropout_and_shuffling(tmp_path, keeping):
    with ThreadPoolExecutor(1) as pool:
        more = {key: pool if key == "writer" else value for key, value in keeping.items()}
        whole = loop(tmp_path / "whole", **more)
        model = train(whole)
        with pytest.raises(Stop) as stopped:
            train(loop(tmp_path / "parts", **more), until=2)
        assert stopped.value.epoch == 2
        rest = loop(tmp_path / "parts", **more)
        torch.manual_seed(999)  # whatever a process drew before
        assert same(train(rest), model)
    assert rest.done == 2
    assert told(rest.history) == told(whole.history)
    assert len(whole.history) == 4
    assert len({row["train/loss"] for row in whole.history}) == 4


def test_a_longer_run_trains_the_epochs_that_are_missing(tmp_path):
    train(loop(tmp_path, epochs=2))
    longer = loop(tmp_path, epochs=5)
    model = train(longer)
    assert longer.done == 2
    alone = loop(tmp_path / "alone", epochs=5)
    assert same(train(alone), model)
    assert told(longer.history) == told(alone.history)


def test_a_finished_run_trains_nothing_and_has_its_weights(tmp_path):
    model = train(loop(tmp_path))
    again = loop(tmp_path)
    assert same(train(again), model)
    assert (again.done, len(again.history)) == (4, 4)


def test_the_best_weights_are_those_of_the_least_where_less_is_better(tmp_path):
    run = loop(tmp_path, epochs=6)
    train(run, lr=0.4)
    scores = run.scores()
    kept = torch.load(Checkpoints(tmp_path).best(6), weights_only=True)
    assert kept["epoch"] == scores.index(min(scores)) + 1
    assert scores.index(min(scores)) not in (scores.index(max(scores)), 0)


def test_a_pruner_ends_it_once_its_state_is_there_and_another_takes_it_to_its_end(tmp_path):
    seen = []

    def judge(history):
        seen.append(len(history))
        return Stop(len(history)) if len(history) == 2 else None

    with pytest.raises(Stop):
        train(loop(tmp_path, judge=judge))
    assert seen == [1, 2]
    with pytest.raises(Stop):  # asked again it trains nothing
        train(loop(tmp_path, judge=judge))
    assert seen == [1, 2, 2]
    rest = loop(tmp_path)
    assert same(train(rest), train(loop(tmp_path / "whole")))
    assert rest.done == 2


def ends(history):
    """A rule of a task: over after two rows, whatever they say."""
    return "long enough" if len(history) == 2 else ""


def test_a_task_says_when_a_run_is_over_and_others_share_its_epochs(tmp_path):
    judged = []
    run = loop(tmp_path / "a", ends=ends, judge=lambda history: judged.append(len(history)))
    early = train(run)
    assert (run.stopped, run.length, len(run.history)) == ("long enough", 2, 2)
    assert judged == [1]  # what is over is not pruned
    again = loop(tmp_path / "a", ends=ends)
    assert same(train(again), early)
    assert (again.done, again.stopped) == (2, "long enough")
    on = loop(tmp_path / "a")
    whole = train(on)
    assert (on.done, on.stopped) == (2, "")
    assert same(whole, train(loop(tmp_path / "alone")))
    later = loop(tmp_path / "alone", ends=ends)  # where the state after epoch 2 is gone, and later ones are there
    assert Checkpoints(tmp_path / "alone").epochs() == [3, 4]
    assert same(train(later), early)
    assert (later.done, told(later.history)) == (0, told(run.history))


def test_a_run_that_is_over_in_its_last_epoch_is_none_that_stopped_early(tmp_path):
    run = loop(tmp_path, epochs=2, ends=ends)
    train(run)
    assert (run.stopped, run.length) == ("", 2)


def test_an_epoch_knows_that_it_is_the_last_once_it_is_reported(tmp_path):
    run, found = loop(tmp_path, ends=ends), []
    for epoch in run.epochs():
        before = epoch.last
        epoch.report({"val/rmse": 1.0})
        found.append((before, epoch.last))
    run.finish()
    assert found == [(False, False), (False, True)]


def test_the_best_weights_are_given_after_the_loop(tmp_path):
    run = loop(tmp_path, epochs=6)
    model = train(run, lr=1.0)
    scores = run.scores()
    at = scores.index(min(scores)) + 1
    assert at < 6
    shorter = train(loop(tmp_path / "shorter", epochs=at), lr=1.0)
    assert all(torch.equal(run.best()[key], value) for key, value in shorter.state_dict().items())
    assert not same(shorter, model)
    undefined = loop(tmp_path / "none")
    one(undefined, {"val/rmse": math.nan})
    with pytest.raises(NotFiniteError, match="val/rmse had no value in any epoch"):
        undefined.best()


def test_what_is_told_of_an_epoch_is_told_once_it_is_kept(tmp_path):
    there = []
    run = loop(tmp_path, on_epoch=lambda history: there.append((len(history), Checkpoints(tmp_path).epochs()[-1])))
    train(run)
    assert there == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert Checkpoints(tmp_path).epochs() == [3, 4]


@pytest.mark.parametrize("end", [0, 2])
def test_a_loop_that_is_left_early_is_told(tmp_path, end):
    run = loop(tmp_path)
    for epoch in run.epochs():
        if epoch.number > end:
            break
        epoch.report({"val/rmse": 1.0})
    with pytest.raises(TaskError, match=f"was left after {end} of 4 epochs"):
        run.finish()


def test_a_task_without_epochs_has_nothing_to_finish(tmp_path):
    loop(tmp_path).finish()


def one(run: Loop, *reports, **state):
    for epoch in run.epochs(**state):
        for metrics in reports:
            epoch.report(metrics)


class Counts:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"inside": self.value}

    def load_state_dict(self, state):
        self.value = state["inside"]


GOOD = {"val/rmse": 1.0}


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda run: one(run), "epoch 1 was not reported"),
        (lambda run: one(run, GOOD, GOOD), "epoch 1 was reported twice"),
        (lambda run: one(run, {"val/rmsee": 1.0}), r"val/rmsee is no metric of this task; did you mean val/rmse\?"),
        (lambda run: one(run, {"rmse": 1.0}), "rmse is no metric of this task.*a key is PART/NAME"),
        (lambda run: one(run, {"train/loss": 1.0}), "val/rmse is missing, by which this task chooses"),
        (lambda run: one(run, {"val/rmse": "good"}), "val/rmse is not a number; found str"),
        (lambda run: one(run, {"val/rmse": torch.zeros(2)}), "val/rmse is not a number; found several"),
        (lambda run: one(run, GOOD, model=3), "model.*int has no state_dict and no load_state_dict"),
        (lambda run: one(run, GOOD, history=Counts(1)), "the name is the engine's own"),
        (
            lambda run: one(run, GOOD, odd=Counts({1: SPEC})),
            r"odd=\.\.\.\): its state_dict\(\) holds more than tensors",
        ),
        (lambda run: [one(run, GOOD), one(run, GOOD)], "was called a second time"),
    ],
)
def test_a_misuse_is_told_in_words(tmp_path, use, says):
    with pytest.raises(TaskError, match=says):
        use(loop(tmp_path))


def test_a_loss_that_is_not_finite_ends_the_run_and_an_undefined_metric_does_not(tmp_path):
    with pytest.raises(NotFiniteError, match="the loss became nan in epoch 1"):
        one(loop(tmp_path), GOOD | {"train/loss": math.nan})
    run = loop(tmp_path)
    one(run, {"val/rmse": math.nan})
    assert run.scores() == []


def test_names_of_states_that_changed_are_told(tmp_path):
    one(loop(tmp_path, epochs=1), GOOD, a=Counts(1))
    with pytest.raises(TaskError, match="have no b"):
        one(loop(tmp_path, epochs=2), GOOD, b=Counts(1))


def test_a_state_is_kept_as_it_is_whatever_plain_things_it_holds(tmp_path):
    content = {"list": [1, 2.5, None, (True, "text")], "tensor": torch.arange(3), 4: {"deep": b"bytes"}}
    one(loop(tmp_path, epochs=1), GOOD, thing=Counts(content))
    after = Counts(None)
    one(loop(tmp_path, epochs=2), GOOD, thing=after)
    assert str(after.value) == str(content)


def test_every_epoch_starts_random_numpy_and_torch_by_its_seed(tmp_path):
    import random

    import numpy as np

    def draws(run):
        found = []
        for epoch in run.epochs(thing=Counts(0)):
            found.append((random.random(), np.random.rand(), torch.rand(1).item()))
            epoch.report(GOOD)
        return found

    whole = draws(loop(tmp_path / "whole"))
    assert len(set(whole)) == 4
    assert draws(loop(tmp_path / "parts", epochs=2)) + draws(loop(tmp_path / "parts")) == whole
