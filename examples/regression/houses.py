"""Prices of houses by a small network: a regression, in which the lowest error is the best.

cd examples/regression
export SEGSWEEP_ALLOW='houses.*'
python -m segsweep -m --config-dir conf task=houses task.features=all,few task.flip=false,true seed=0,1,2

The prices are made up: they depend on size, age and place, and each district has a level of its own. So what a setting
does is known: without the place (`features=few`) the error must be larger, and the sign of an input (`flip`) does
nothing.
"""

import hashlib
import math
from typing import Annotated

import torch
from torch import nn

from segsweep.task import Data, Metric, Range, Result, Run, Spec

DISTRICTS, HOUSES = 60, 20
SHARES = {"train": 36, "val": 8, "test": 16}  # districts: no house of a tested district is trained on


def made() -> tuple[torch.Tensor, torch.Tensor]:
    """(districts, houses, 3) size, age and place, each about -1 to 1; (districts, houses) prices in thousands."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(DISTRICTS, HOUSES, 3, generator=random) * 2 - 1
    price = 300 + 80 * x[..., 0] - 30 * x[..., 1] ** 2 + 40 * torch.sin(2 * x[..., 2])
    level = 10 * torch.randn(DISTRICTS, 1, generator=random)
    return x, price + level + 15 * torch.randn(DISTRICTS, HOUSES, generator=random)


class Houses:
    spec = Spec(
        metrics={
            "loss": Metric(title="Loss", direction="min", format=".3f"),
            "rmse": Metric(
                title="RMSE", direction="min", format=".2f", bounds=(0, math.inf), by_unit=True,
                meaning="root mean square error of a district's prices, in thousands; mean over districts",
            ),
        },
        select="val/rmse",
        unit="district",
        sample="house",
    )  # fmt: skip

    def __init__(
        self,
        *,
        features: Annotated[str, Range(choices=("all", "few"))] = "all",
        flip: bool = False,
        lr: Annotated[float, Range(above=0)] = 0.01,
    ) -> None:
        self.lr = lr
        self.x, self.price = made()
        self.inputs = self.x[..., :2] if features == "few" else self.x
        self.inputs = self.inputs * torch.tensor([-1.0 if flip else 1.0, *[1.0] * (self.inputs.shape[-1] - 1)])
        names, self.parts, start = list(range(DISTRICTS)), {}, 0
        for part, count in SHARES.items():
            self.parts[part], start = names[start : start + count], start + count

    def data(self) -> Data:
        digest = hashlib.sha256(self.x.numpy().tobytes() + self.price.numpy().tobytes()).hexdigest()
        parts = {part: len(districts) * HOUSES for part, districts in self.parts.items()}
        return Data(digest=digest, split="by district, in order", parts=parts, facts={"districts": DISTRICTS})

    def train(self, run: Run) -> Result:
        model = nn.Sequential(nn.Linear(self.inputs.shape[-1], 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        x, y = self.inputs[self.parts["train"]].flatten(0, 1), self.scaled(self.price[self.parts["train"]]).flatten()
        for epoch in run.epochs(model=model, optimizer=optimizer):
            losses = []
            for batch in torch.randperm(len(y)).split(36):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x[batch]).flatten(), y[batch])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            train, val = (self.rmse(model, part) for part in ("train", "val"))
            loss = sum(losses) / len(losses)
            epoch.report({"train/loss": loss, "train/rmse": train.mean(), "val/rmse": val.mean()})
        test = self.rmse(model, "test")
        units = {f"district {at}": {"rmse": value} for at, value in zip(self.parts["test"], test.tolist(), strict=True)}
        return Result({"test/rmse": test.mean().item()}, units)

    @staticmethod
    def scaled(price: torch.Tensor) -> torch.Tensor:
        return (price - 300) / 60

    @torch.no_grad()
    def rmse(self, model: nn.Module, part: str) -> torch.Tensor:
        """(districts,)"""
        at = self.parts[part]
        wrong = model(self.inputs[at]).squeeze(-1) - self.scaled(self.price[at])
        return 60 * wrong.square().mean(1).sqrt()
