"""A task that trains in milliseconds, for tests of what is around a training."""

from pathlib import Path

import torch
from torch import nn

from segsweep.config.schema import conf_dir
from segsweep.task import Data, Metric, Result, Run, Spec

X = torch.linspace(-1, 1, 16)[:, None]


class Line:
    spec = Spec(
        metrics={
            "loss": Metric(title="Loss", direction="min"),
            "rmse": Metric(title="RMSE", direction="min", bounds=(0, float("inf")), by_unit=True),
        },
        select="val/rmse",
        unit="point",
    )

    def __init__(self, *, lr: float = 0.1, worse: int = 0) -> None:
        """worse: an epoch whose score is no new best, 0: none."""
        self.lr, self.worse = lr, worse

    def data(self) -> Data:
        return Data(digest="line", split="none", parts={"train": 16, "val": 16, "test": 16})

    def train(self, run: Run) -> Result:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        (run.folder / "own.txt").write_text("a file of the task's own\n")
        (run.folder / "sub").mkdir(exist_ok=True)
        (run.folder / "sub" / "more.txt").write_text("another\n")
        for epoch in run.epochs(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(X[torch.randperm(16)[:8]]), X[:8])
            loss.backward()
            optimizer.step()
            score = 9.0 if epoch.number == self.worse else 1 / epoch.number
            epoch.report({"train/loss": loss.item(), "val/rmse": score}, seconds=0.25)
        errors = (model(X) - X).abs().flatten().tolist()
        return Result({"test/rmse": sum(errors) / 16}, {str(n): {"rmse": e} for n, e in enumerate(errors)})


def overrides(place: Path, runs: Path) -> list[str]:
    """Of a command that trains it; its configuration is written to `place`."""
    (place / "conf" / "task").mkdir(parents=True, exist_ok=True)
    (place / "conf" / "task" / "line.yaml").write_text("_target_: toy_task.Line\nlr: 0.1\nworse: 0\n")
    return [f"hydra.searchpath=[file://{place / 'conf'}]", "task=line", "tracking=none", f"paths.runs={runs}"]


def composed(place: Path, *more: str):
    """What `do` takes, for several runs of it: composing takes longer than they do."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir())):
        return compose("config", [*overrides(place, place), "epochs=3", *more], return_hydra_config=True)


def do(cfg, runs: Path, sweep: Path | None = None, **settings):
    """One run of it, by `runs.run.run`; `settings` are set in what was composed."""
    from omegaconf import OmegaConf, open_dict

    from segsweep.runs.run import run

    choices = {key: value for key, value in cfg.hydra.runtime.choices.items() if "/" not in key}
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    with open_dict(cfg):
        cfg.paths.runs = str(runs)
        cfg |= settings
    return run(cfg, choices=choices, name="line", command="c", sweep=sweep, milestones=set())
