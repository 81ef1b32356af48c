"""Batches in parts, and checkpoints written beside the training: the same steps as without."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_run import TINY, do, same, weights
from torch import nn
from torch.nn import functional as F

from segsweep.core.checkpoints import Checkpoints
from segsweep.core.session import Session, begin, session
from segsweep.runs import run
from segsweep.segmentation.losses import BCEDice, Dice, Tversky
from segsweep.segmentation.train import in_parts
from segsweep.tracking.copying import Copier

TESTS = Path(__file__).parent


def network(norm: bool) -> nn.Sequential:
    torch.manual_seed(0)
    between = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *between, nn.ReLU(), nn.Conv2d(4, 1, 1)).double()


def batch(slices: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(slices, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, (x[:, :1] > 1).double()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), Dice(), BCEDice(), Tversky()])
@pytest.mark.parametrize(("slices", "parts"), [(8, 4), (7, 3)])
def test_the_step_of_a_batch_in_parts_is_that_of_the_whole_batch(loss, slices, parts):
    x, y = batch(slices)
    whole, divided = network(norm=False), network(norm=False)
    sizes = []
    divided.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    value = loss(whole(x), y)
    value.backward()
    other = loss(in_parts(divided, parts, [], x), y)
    other.backward()
    assert max(sizes) == -(-slices // parts)
    assert sum(sizes) == 2 * slices  # once forward, once again in the backward pass
    assert value.item() == pytest.approx(other.item(), abs=0, rel=1e-6)  # the losses compute in float32
    for a, b in zip(gradients(whole), gradients(divided), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_running_statistics_see_each_part_once(norm):
    x, y = batch(8)
    expected, model = network(norm=True), network(norm=True)
    for each in (expected, model):
        each[1] = norm(4, track_running_stats=True).double()
    loss = Dice()
    loss(torch.cat([expected(part) for part in x.tensor_split(4)]), y).backward()  # all activations kept
    loss(in_parts(model, 4, [model[1]], x), y).backward()
    assert model[1].momentum == 0.1
    assert model[1].num_batches_tracked == (4 if norm is nn.BatchNorm2d else 0)  # which the other does not count
    for key, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    for a, b in zip(gradients(expected), gradients(model), strict=True):
        torch.testing.assert_close(a, b)


def test_a_part_has_two_slices_at_least():
    sizes = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return F.avg_pool2d(x, 1)

    in_parts(forward, 16, [], batch(5)[0])
    in_parts(forward, 16, [], batch(1)[0])
    assert sizes == [3, 2, 1]


def test_micro_batches_are_another_run_and_evaluated_alike(tmp_path):
    whole, parts = do(tmp_path, "epochs=1"), do(tmp_path, "epochs=1", "micro_batches=3")
    assert whole.signature != parts.signature
    results = [json.loads((each.folder / "result.json").read_text()) for each in (whole, parts)]
    assert [result["micro_batches"] for result in results] == [1, 3]
    assert not same(weights(whole), weights(parts))  # BatchNorm
    assert whole.metrics["train/loss"] == pytest.approx(parts.metrics["train/loss"], rel=0.1)


def test_out_of_memory_says_what_helps(tmp_path, allow):
    allow("hungry.*")
    outcome = do(tmp_path, "model._target_=hungry.Hungry")
    assert (outcome.status, outcome.failure) == ("failed", "oom")
    first, second = outcome.error.splitlines()
    assert first.startswith("out of memory with batches of 16 in 1 part: micro_batches=2, a smaller batch_size, or")
    assert second.startswith("OutOfMemoryError: CUDA out of memory")


@pytest.mark.slow
def test_a_job_out_of_memory_is_tried_again_in_smaller_parts_and_says_so(tmp_path):
    sweep = [
        "model._target_=hungry.Hungry,segsweep.segmentation.models.unet.UNet",
        "hydra.launcher.retries.oom=2",
        "precision=fp32",
    ]
    places = ["paths.runs=multirun", f"paths.cache={tmp_path}/cache", "tracking=none"]
    environment = {"PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "SEGSWEEP_ALLOW": "hungry.*"}
    command = [sys.executable, "-m", "segsweep", "-m", *sweep, *TINY, "report=false", *places]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying again with batches in twice as many parts") == 2
    assert "job 0: for want of memory its batches went through the network in 4 parts" in done.stdout
    assert "job 1: for want" not in done.stdout
    jobs = [json.loads((tmp_path / f).read_text()) for f in sorted(tmp_path.glob("multirun/2*/*/job.json"))]
    hungry, other = (tmp_path / "multirun" / "runs" / job["signature"] for job in jobs)
    assert [job["status"] for job in jobs] == ["finished", "finished"]
    assert json.loads((hungry / "run.json").read_text())["factors"]["micro_batches"] == 1  # as it was asked for
    assert not (hungry / "failure.json").exists()
    for folder, parts in ((hungry, 4), (other, 1)):
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert [row.get("micro_batches", 1) for row in history] == [parts, parts]
        assert json.loads((folder / "result.json").read_text())["micro_batches"] == parts


# Checkpoints


@pytest.fixture
def beside(monkeypatch):
    """Checkpoints as on a GPU: written while the next epoch trains."""
    monkeypatch.setattr(run, "_writer", lambda device: ThreadPoolExecutor(1))


def checkpoints(outcome: run.Outcome) -> dict[str, object]:
    (folder,) = outcome.folder.parent.parent.glob("trajectories/*")
    return {file.name: torch.load(file, weights_only=True) for file in folder.glob("*.pt")}


LONGER = ("epochs=4", "augment=affine", "optim=adam", "optim.lr=0.02", "checkpoint.keep=9")


def test_checkpoints_written_beside_the_training_are_those_written_between(tmp_path, monkeypatch):
    between = do(tmp_path / "between", *LONGER)
    monkeypatch.setattr(run, "_writer", lambda device: ThreadPoolExecutor(1))
    beside = do(tmp_path / "beside", *LONGER)
    assert beside.metrics == between.metrics
    assert same(weights(beside, "best.pt"), weights(between, "best.pt"))
    expected, found = checkpoints(between), checkpoints(beside)
    assert expected.keys() == found.keys()
    assert {f"state_000{n}.pt" for n in (1, 2, 3, 4)} <= found.keys()
    for name in found:
        assert same(expected[name]["model"], found[name]["model"]), name
    moments = [states["state_0002.pt"]["optimizer"]["state"] for states in (expected, found)]
    assert same(*({f"{n} {k}": v for n, s in m.items() for k, v in s.items()} for m in moments))


@pytest.mark.usefixtures("beside")
def test_a_run_stopped_while_a_checkpoint_is_written_has_it_and_goes_on_exactly(tmp_path):
    undisturbed = do(tmp_path / "undisturbed", *LONGER)
    session().stop()
    stopped = do(tmp_path / "stopped", *LONGER)
    assert (stopped.status, stopped.epoch) == ("interrupted", 1)
    assert "state_0001.pt" in checkpoints(stopped)
    assert len((stopped.folder / "history.jsonl").read_text().splitlines()) == 1
    begin(Session())
    again = do(tmp_path / "stopped", *LONGER)
    assert (again.status, again.metrics) == ("continued", undisturbed.metrics)
    assert same(weights(again), weights(undisturbed))


@pytest.mark.usefixtures("beside")
def test_an_epoch_whose_checkpoint_is_written_beside_is_copied_by_who_copies_the_run(tmp_path):
    copied = []
    session().copier = Copier(elsewhere=lambda mirror: copied.append((threading.current_thread(), mirror.folder)))
    outcome = do(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    threads = {each for each, _ in copied}
    assert len(threads) == 2
    assert [folder for _, folder in copied] == [outcome.folder] * (1 + 2 + 1)  # at the start, each epoch, at the end


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("epoch", [1, 4])
def test_a_checkpoint_that_cannot_be_written_fails_the_run(tmp_path, monkeypatch, epoch):
    save = Checkpoints.save

    def full(self, state, best):
        if state["epoch"] == epoch:
            raise OSError(28, "No space left on device")
        save(self, state, best)

    monkeypatch.setattr(Checkpoints, "save", full)
    outcome = do(tmp_path, *LONGER)
    assert (outcome.status, outcome.failure) == ("failed", "error")
    assert "No space left on device" in outcome.error
    assert not (outcome.folder / "result.json").exists()
