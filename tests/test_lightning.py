"""A Lightning Trainer over a run's epochs: resumed to the last bit, ended by others, and by nothing of its own."""

import sys
from pathlib import Path

import pytest
import torch
from test_loop import Stop, same, told

from segsweep.core import source
from segsweep.core.checkpoints import Checkpoints
from segsweep.core.errors import TaskError
from segsweep.lightning import fit
from segsweep.runs.loop import Loop
from segsweep.task import Metric, Spec

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore::UserWarning:torch", "ignore:.*LeafSpec"
)
SPEC = Spec(
    metrics={"loss": Metric(title="Loss", direction="min"), "rmse": Metric(title="RMSE", direction="min")},
    select="val/rmse",
)


class Net(lightning.LightningModule):
    """With dropout, momentum, a schedule, and something of its own that goes on changing."""

    def __init__(self, until: int = 99):
        super().__init__()
        self.layers, self.until, self.seen = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.2)), until, 0

    def training_step(self, batch, at):
        self.seen += 1
        loss = (self.layers(batch[0]).mean(1) - batch[1]).square().mean() + 1e-3 * self.global_step + 1e-3 * self.seen
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        return loss

    def validation_step(self, batch, at):
        self.log("val_rmse", (self.layers(batch[0]).mean(1) - batch[1]).square().mean().sqrt())

    def on_save_checkpoint(self, checkpoint):
        checkpoint["seen"] = self.seen

    def on_load_checkpoint(self, checkpoint):
        self.seen = checkpoint["seen"]

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]


def trainer(**more):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **more)


def train(folder: Path, epochs: int = 4, until: int = 99, **more) -> tuple[Loop, Net]:
    """`until`: the epoch in which somebody asks it to stop."""
    run = Loop(SPEC, "val", epochs=epochs, seed=3, checkpoints=Checkpoints(folder), interrupted=Stop, **more)
    torch.manual_seed(run.seed)
    net = Net()
    net.on_train_epoch_end = lambda: setattr(run, "stopping", lambda: net.current_epoch == until)
    x = torch.linspace(-1, 1, 60)[:, None]
    points = torch.utils.data.TensorDataset(x, x[:, 0].sin())
    load = torch.utils.data.DataLoader
    fit(run, trainer(), net, load(points, batch_size=16, shuffle=True), load(points, batch_size=60))
    run.finish()
    return run, net


def test_a_trainer_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    whole, net = train(tmp_path / "whole")
    with pytest.raises(Stop) as stopped:
        train(tmp_path / "parts", until=2)
    assert stopped.value.epoch == 2
    with pytest.raises(Stop):
        train(tmp_path / "parts", until=3)
    rest, again = train(tmp_path / "parts")
    assert (rest.done, again.global_step, again.seen) == (3, net.global_step, net.seen)
    assert told(rest.history) == told(whole.history)
    assert set(whole.history[0]) == {"epoch", "seconds", "train/loss", "val/rmse"}
    assert len({row["train/loss"] for row in whole.history}) == 4
    assert same(again, net)
    third, unchanged = train(tmp_path / "parts")
    assert (third.done, same(unchanged, net)) == (4, True)


def test_a_longer_run_shares_the_epochs_and_a_pruner_ends_one(tmp_path):
    train(tmp_path, epochs=2)
    with pytest.raises(Stop):
        train(tmp_path, epochs=4, judge=lambda history: Stop(3) if len(history) == 3 else None)
    longer, net = train(tmp_path, epochs=4)
    assert longer.done == 3
    assert same(train(tmp_path / "alone")[1], net)


def test_a_ctrl_c_is_one(tmp_path):
    def stop(*about, **facts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, emit=stop)


def test_a_modules_own_exit_fails_the_run_and_stops_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "validation_step", lambda *given: sys.exit("no such file"))
    with pytest.raises(SystemExit, match="no such file"):
        train(tmp_path)


def test_the_adapters_code_is_part_of_what_a_task_is_that_uses_it():
    assert "segsweep.lightning" in source.code("test_lightning")
    assert "segsweep.lightning" not in source.code("test_loop")


@pytest.mark.parametrize("more", [{"max_epochs": 3}, {"max_steps": 10}])
def test_a_trainer_with_an_end_of_its_own_is_told(tmp_path, more):
    run = Loop(SPEC, "val", epochs=1, seed=3, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(TaskError, match="leave both out"):
        fit(run, trainer(**more), Net())


def test_a_callback_that_keeps_something_only_in_lightnings_own_checkpoints_is_refused(tmp_path):
    run = Loop(SPEC, "val", epochs=1, seed=3, checkpoints=Checkpoints(tmp_path))
    average = lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.99)
    with pytest.raises(TaskError, match="EMAWeightAveraging keeps something in Lightning's own checkpoints"):
        fit(run, trainer(callbacks=[average]), Net())


class Points(lightning.LightningDataModule):
    """Its samples are others with every epoch that it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def _loader(self, size: int):
        x = torch.linspace(-1, 1, 60)[:, None]
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, x[:, 0].sin() + self.seen), batch_size=size
        )

    def train_dataloader(self):
        self.seen += 1
        return self._loader(16)

    def val_dataloader(self):
        return self._loader(60)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_what_a_data_module_remembers_goes_on_with_it(tmp_path):
    seen = {}
    for epochs in (2, 4):
        run = Loop(SPEC, "val", epochs=epochs, seed=3, checkpoints=Checkpoints(tmp_path))
        torch.manual_seed(3)
        points = Points()
        fit(run, trainer(reload_dataloaders_every_n_epochs=1), Net(), datamodule=points)
        seen[epochs] = points.seen
    assert seen == {2: 2, 4: 4}
