"""Real patients, from the files to a score on patients that the network has not seen."""

import json
import os

import numpy as np
import pytest
from test_run import do

from segsweep.segmentation.data import cache
from segsweep.segmentation.data.lgg import LGG
from segsweep.segmentation.metrics import summarise


def mean_dice(predicted: np.ndarray, truth: np.ndarray, owner: np.ndarray) -> float:
    """Mean over patients of the Dice of their volumes, from masks (N, H, W)."""
    pairs = [(predicted[owner == p], truth[owner == p]) for p in np.unique(owner)]
    counts = [[(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()] for a, b in pairs]
    return summarise(np.array(counts))["dice"]


@pytest.mark.slow
def test_a_network_trained_on_five_real_patients_beats_any_threshold_on_three_others(tmp_path, lgg):
    overrides = ["data=lgg", f"data.root={lgg}", "data.image_size=64", "model.width=16", "split.val=0.0"]
    overrides += ["split.test=0.375", "epochs=10", "batch_size=4", "augment=flips"]
    outcome = do(tmp_path, *overrides, tiny=False)
    assert outcome.status == "finished", outcome.error
    split = json.loads((outcome.folder / "split.json").read_text())
    assert (len(split["train"]), len(split["val"]), len(split["test"])) == (5, 0, 3)

    data = LGG(root=str(lgg), image_size=64, normalise="zscore", model_width=16)
    volumes = cache.load(data, data.scan(tmp_path), tmp_path, os.cpu_count() or 1)
    held_out = np.flatnonzero([volumes.patients[p] in split["test"] for p in volumes.patient])
    truth, owner = volumes.masks[held_out] > 0, volumes.patient[held_out]
    x = (volumes.images[held_out] - volumes.shift[owner][:, None, None]) * volumes.scale[owner][:, None, None]
    # The most generous threshold: chosen on the held-out patients themselves, on any channel, raw or normalised.
    thresholds = [
        mean_dice(image[..., channel] > level, truth, owner)
        for image in (volumes.images[held_out], x)
        for channel in range(3)
        for level in np.quantile(image[..., channel], np.linspace(0.5, 0.999, 60))
    ]
    nothing, everything = mean_dice(truth & False, truth, owner), mean_dice(truth | True, truth, owner)
    assert nothing == 0
    assert outcome.metrics["test/dice"] > max(everything, *thresholds) + 0.05
