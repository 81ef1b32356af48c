"""Handwritten digits by a LightningModule: its Trainer goes over the run's epochs, all else is Lightning as usual.

cd examples/lightning
SEGSWEEP_ALLOW='digits_lightning.*' python -m segsweep -m --config-dir conf task=digits_lightning seed=0,1,2
"""

import hashlib
from typing import Annotated, Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from segsweep.lightning import fit
from segsweep.task import Data, Metric, Range, Result, Run, Spec


class Net(lightning.LightningModule):
    def __init__(self, hidden: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, at: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, at: int) -> None:
        logits = self(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


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
    ) -> None:
        self.hidden, self.lr = hidden, lr
        x, y = load_digits(return_X_y=True)
        self.images = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
        parts = random_split(self.images, [1197, 200, 400], torch.Generator().manual_seed(0))
        self.parts = dict(zip(("train", "val", "test"), parts, strict=True))

    def data(self) -> Data:
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in self.images.tensors)).hexdigest()
        return Data(digest=digest, split="shuffled, 0", parts={name: len(part) for name, part in self.parts.items()})

    def train(self, run: Run) -> Result:
        module = Net(self.hidden, self.lr)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet)
        train = DataLoader(self.parts["train"], batch_size=32, shuffle=True)
        fit(run, trainer, module, train, DataLoader(self.parts["val"], batch_size=200))
        x, y = self.images[self.parts["test"].indices]
        with torch.no_grad():
            logits = module.eval()(x)
        right = (logits.argmax(1) == y).float()
        metrics = {"loss": nn.functional.cross_entropy(logits, y).item(), "accuracy": right.mean().item()}
        units = {str(at): {"accuracy": r} for at, r in zip(self.parts["test"].indices, right.tolist(), strict=True)}
        return Result({f"test/{name}": value for name, value in metrics.items()}, units)
