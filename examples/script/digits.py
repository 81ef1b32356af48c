"""Handwritten digits by a small network, in one file: a training function and its settings.

cd examples/script
python digits.py -m lr=0.003,0.01,0.03 seed=0,1,2 epochs=5
python digits.py --help
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import segsweep


def train(run, *, lr: float = 0.01, hidden: int = 32, batch_size: int = 32):
    """A network with one hidden layer, by Adam."""
    x, y = (
        torch.tensor(part, dtype=kind)
        for part, kind in zip(load_digits(return_X_y=True), (torch.float32, torch.long), strict=True)
    )
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, val = order[:1400], order[1400:]
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in run.epochs(model=model, optimizer=optimizer):
        model.train()
        for batch in train[torch.randperm(len(train))].split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch] / 16), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            right = model.eval()(x[val] / 16).argmax(1) == y[val]
        epoch.report({"val/accuracy": right.float().mean()})


if __name__ == "__main__":
    segsweep.main(train, metric="accuracy", direction="max")
