"""The same with epochs: what was interrupted goes on from its last one, and `segsweep.epochs=5,10` trains ten.

cd examples/hydra_app
python epochs.py -m model.lr=0.003,0.01 seed=0,1 segsweep.epochs=10 segsweep/pruner=halving
"""

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import segsweep


@segsweep.main(
    config_path="conf", config_name="config", metric="error", direction="min", execution_whitelist=["model.*"]
)
def main(cfg: DictConfig, run) -> None:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=cfg.held_out, random_state=cfg.seed)
    x_train, x_val, y_train, y_val = (torch.tensor(part, dtype=kind) for part, kind in zip(parts, KINDS, strict=True))
    layers = instantiate(cfg.model).layers
    optimizer = torch.optim.Adam(layers.parameters(), lr=cfg.model.lr)
    for epoch in run.epochs(model=layers, optimizer=optimizer):
        for batch in torch.randperm(len(y_train)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layers(x_train[batch]), y_train[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            wrong = layers(x_val).argmax(1) != y_val
        epoch.report({"val/error": wrong.float().mean()})


KINDS = (torch.float32, torch.float32, torch.long, torch.long)

if __name__ == "__main__":
    main()
