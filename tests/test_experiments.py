"""The six experiments are the report's six rows."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from segsweep.config.components import build
from segsweep.config.schema import conf_dir

ROWS = json.loads((Path(__file__).parents[1] / "docs" / "results" / "report.json").read_text())["rows"]


def composed(*overrides: str):
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_an_experiment_is_its_row(row):
    cfg = composed(f"experiment={row['name']}", "data.root=x")
    choices = cfg.hydra.runtime.choices
    found = {key: choices[key] for key in ("model", "loss", "optim")}
    found |= {"lr": cfg.optim.lr, "epochs": cfg.epochs, "batch_size": cfg.batch_size}
    assert found == {key: row[key] for key in found}
    assert (choices.data, choices.scheduler, choices.augment) == ("lgg", "constant", "none")
    assert (cfg.data.image_size, cfg.model.width, cfg.data.normalise) == (256, 64, "unit")
    assert (cfg.split.val, cfg.split.test) == (0.0, 0.2)
    assert sum(p.numel() for p in build("model", cfg.model, in_channels=3).parameters()) == row["params"]


def test_an_override_applies_to_every_experiment():
    for row in ROWS:
        cfg = composed(f"experiment={row['name']}", "data=phantom", "model.width=8", "epochs=1")
        assert (cfg.model.width, cfg.epochs, cfg.batch_size) == (8, 1, row["batch_size"])
        assert cfg.data._target_.endswith("Phantom")


def test_the_leaking_habit_is_one_override_away():
    cfg = composed("experiment=base_unet", "data.root=x", "split=slice")
    assert cfg.split._target_.endswith("BySlice")
    assert (cfg.split.val, cfg.split.test) == (0.0, 0.2)
