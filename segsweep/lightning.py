"""Lets a Lightning Trainer train over a run's epochs: saved and resumed at their ends, reported, pruned, interrupted.

    def train(self, run):
        module, data = Net(...), Images(...)
        trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        fit(run, trainer, module, datamodule=data)

What the module logs as val/accuracy (or val_accuracy) is reported, if it is a metric of the task. How long it trains is
the run's matter: the Trainer's `max_epochs` is set to -1, and a schedule that needs the number has it as a setting.
Lightning itself is imported by who makes the Trainer, as `lightning` or `pytorch_lightning`.
"""

import importlib
from collections.abc import Iterator
from typing import Any

from segsweep.core.errors import TaskError
from segsweep.runs.loop import Epoch, seed_all
from segsweep.task import Run


def fit(run: Run, trainer: Any, module: Any, *data: Any, **more: Any) -> None:
    """`trainer.fit(module, *data, **more)` over what is left of `run.epochs`; the module then has the last weights.

    Raises TaskError where the Trainer would end an epoch or the run by itself, and what ends a run."""
    if trainer.max_steps != -1 or trainer.fit_loop.max_epochs not in (None, -1):
        raise TaskError(
            "Trainer(max_epochs=..., max_steps=...): leave both out; a run has `epochs` of the configuration"
        )
    if trainer.world_size > 1:
        raise TaskError(f"Trainer with {trainer.world_size} processes: a run is one process; use Trainer(devices=1)")
    for each in trainer.callbacks:
        if type(each).on_save_checkpoint.__qualname__ != "Callback.on_save_checkpoint":  # which does nothing
            raise TaskError(
                f"Trainer(callbacks=...): {type(each).__name__} keeps something in Lightning's own checkpoints "
                "(on_save_checkpoint), which a run has none of: leave it out, or have it say so in its state_dict"
            )
    base = next(kind for kind in type(trainer).__mro__ if kind.__name__ == "Trainer")
    callbacks = importlib.import_module(f"{base.__module__.partition('.trainer')[0]}.callbacks")
    made = type("Epochs", (_Epochs, callbacks.Callback), {})(run, trainer, module)
    trainer.fit_loop.max_epochs = -1
    trainer.callbacks.append(made)
    try:
        trainer.fit(module, *data, **more)
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # of which Lightning makes it
            raise KeyboardInterrupt from stopped
        raise  # of the module's own code: this run fails, and the sweep goes on
    finally:
        trainer.callbacks.remove(made)


class _Epochs:
    """A callback that goes on to the run's next epoch where Lightning begins one: by then all of the last is done, the
    steps of its schedules included."""

    def __init__(self, run: Run, trainer: Any, module: Any):
        self.run = run
        self.left: Iterator[Any] = iter(run.epochs(model=module, trainer=_Progress(trainer, module)))
        self.epoch: Epoch | None = None

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """The optimizers are there: what was trained before is loaded into them."""
        self.epoch = next(self.left, None)
        trainer.should_stop = self.epoch is None

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        assert self.epoch
        if self.epoch.row is not None:
            self.epoch = next(self.left)
        seed_all(self.epoch.seed)  # once more, for the first: its loaders were made since

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.epoch
        self.epoch.step(min((batch_idx + 1) / trainer.num_training_batches, 1.0))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        assert self.epoch
        named = {
            key if "/" in key else key.replace("_", "/", 1): value for key, value in trainer.callback_metrics.items()
        }
        self.epoch.report({key: value for key, value in named.items() if self.run.spec.metric(key)})
        trainer.should_stop = self.epoch.last

    def on_train_end(self, trainer: Any, module: Any) -> None:
        next(self.left, None)


class _Progress:
    """What changes while a Trainer trains, beside the module's weights."""

    def __init__(self, trainer: Any, module: Any):
        self.trainer, self.module = trainer, module

    def state_dict(self) -> dict[str, Any]:
        trainer, own = self.trainer, dict[str, Any]()
        self.module.on_save_checkpoint(own)
        return {
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "callbacks": {each.state_key: state for each in trainer.callbacks if (state := each.state_dict())},
            "data": trainer.datamodule.state_dict() if trainer.datamodule else {},
            "loops": trainer.fit_loop.state_dict(),
            "module": own,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        for optimizer, known in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        for entry, known in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
            entry.scheduler.load_state_dict(known)
        trainer.precision_plugin.load_state_dict(state["precision"])
        for each in trainer.callbacks:
            if each.state_key in state["callbacks"]:
                each.load_state_dict(state["callbacks"][each.state_key])
        if trainer.datamodule and state.get("data"):
            trainer.datamodule.load_state_dict(state["data"])
        self.module.on_load_checkpoint(state["module"])
        trainer.fit_loop.load_state_dict(state["loops"])
        trainer.fit_loop.epoch_progress.reset_on_restart()  # the next had begun
        for loop in _loops(trainer.fit_loop):  # it goes on between two epochs, not within what was interrupted
            loop.on_iteration_done()


def _loops(loop: Any) -> Iterator[Any]:
    yield loop
    for inner in vars(loop).values():
        if hasattr(inner, "on_iteration_done"):
            yield from _loops(inner)
