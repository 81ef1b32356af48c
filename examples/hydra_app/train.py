"""Handwritten digits by whatever model conf/ names: a usual Hydra application, but for the one line above `main`.

cd examples/hydra_app
python train.py -m model=net,forest seed=0,1,2
python train.py -m +segsweep/search=tpe 'model.width=int(interval(4, 32))' segsweep.search.trials=20
"""

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import segsweep

log = logging.getLogger(__name__)
WHITELIST = ["model.*", "sklearn.*"]  # what `instantiate` may call


# @hydra.main(config_path="conf", config_name="config", execution_whitelist=WHITELIST)
@segsweep.main(config_path="conf", config_name="config", metric="error", direction="min", execution_whitelist=WHITELIST)
def main(cfg: DictConfig) -> float:
    x, y = load_digits(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(x / 16, y, test_size=cfg.held_out, random_state=cfg.seed)
    model = instantiate(cfg.model)
    log.info("fitting %s on %d images", type(model).__name__, len(x_train))
    model.fit(x_train[: cfg.search.budget], y_train[: cfg.search.budget])
    error = 1 - model.score(x_val, y_val)
    (Path(cfg.notes) / "error.txt").write_text(f"{error}\n")
    return error


if __name__ == "__main__":
    main()
