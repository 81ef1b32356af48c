"""A network of the application's own, used as scikit-learn's estimators are."""

import numpy as np
import torch
from torch import nn


class Net:
    def __init__(self, *, width: int, lr: float, passes: int, seed: int) -> None:
        self.lr, self.passes = lr, passes
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
        optimizer = torch.optim.Adam(self.layers.parameters(), lr=self.lr)
        for _ in range(self.passes):
            for batch in torch.randperm(len(y)).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.layers(x[batch]), y[batch]).backward()
                optimizer.step()

    @torch.no_grad()
    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """The share that is right."""
        found = self.layers(torch.tensor(x, dtype=torch.float32)).argmax(1)
        return (found == torch.tensor(y)).float().mean().item()
