"""Handwritten digits by a small network: a task of one's own, an ordinary torch loop.

cd examples/digits
SEGSWEEP_ALLOW='digits.*' python -m segsweep -m --config-dir conf task=digits task.lr=0.003,0.01,0.03 seed=0,1,2
"""

import hashlib
from typing import Annotated

import torch
from sklearn.datasets import load_digits
from torch import nn

from segsweep.task import Data, Metric, Range, Result, Run, Spec


class Digits:
    spec = Spec(
        metrics={
            "loss": Metric(title="Loss", direction="min"),
            "accuracy": Metric(title="Accuracy", direction="max", bounds=(0, 1), by_unit=True),
        },
        select="val/accuracy",
        unit="image",
        sample="image",
    )

    def __init__(
        self,
        *,
        hidden: Annotated[int, Range(least=1)] = 64,
        lr: Annotated[float, Range(above=0)] = 0.01,
        batch_size: Annotated[int, Range(least=1)] = 32,
    ) -> None:
        self.hidden, self.lr, self.batch_size = hidden, lr, batch_size
        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        self.parts = dict(zip(("train", "val", "test"), order.split([1197, 200, 400]), strict=True))

    def data(self) -> Data:
        digest = hashlib.sha256(self.x.numpy().tobytes() + self.y.numpy().tobytes()).hexdigest()
        return Data(digest=digest, split="shuffled, 0", parts={part: len(at) for part, at in self.parts.items()})

    def train(self, run: Run) -> Result:
        model = nn.Sequential(nn.Linear(64, self.hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(self.hidden, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        for epoch in run.epochs(model=model, optimizer=optimizer):
            model.train()
            order = self.parts["train"][torch.randperm(len(self.parts["train"]))]
            for batch in order.split(self.batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(self.x[batch]), self.y[batch]).backward()
                optimizer.step()
            epoch.report(self.score(model, "train")[0] | self.score(model, "val")[0])
        metrics, right = self.score(model, "test")
        units = {str(at): {"accuracy": r} for at, r in zip(self.parts["test"].tolist(), right, strict=True)}
        return Result(metrics, units)

    @torch.no_grad()
    def score(self, model: nn.Module, part: str) -> tuple[dict[str, float], list[float]]:
        logits, y = model.eval()(self.x[self.parts[part]]), self.y[self.parts[part]]
        right = (logits.argmax(1) == y).float()
        loss = nn.functional.cross_entropy(logits, y).item()
        return {f"{part}/loss": loss, f"{part}/accuracy": right.mean().item()}, right.tolist()
