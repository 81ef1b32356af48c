"""A sweep of two jobs that an earlier version recorded (commit 4b6686d), before tasks described themselves and when the
modules that its configurations name lay elsewhere: today's programs report it, predict with it and export it.

slice.png is an image, mask.png what that version predicted for it with the better run. Nothing is trained here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segsweep.report.__main__ import main as report
from segsweep.segmentation.export import main as export
from segsweep.segmentation.predictions import main as predict

RECORD = Path(__file__).parent / "records_of_before"


@pytest.fixture
def record(tmp_path, monkeypatch):
    shutil.copytree(RECORD, tmp_path / "multirun")
    monkeypatch.chdir(tmp_path)
    job = json.loads((tmp_path / "multirun/sweep/1/job.json").read_text())
    return Path("multirun/runs") / Path(job["run"]).name


def test_the_report_reads_it(record):
    assert report(["multirun/sweep"]) == 0
    text = Path("multirun/sweep/report.md").read_text()
    result = json.loads((record / "result.json").read_text())
    assert f"{result['metrics']['test/dice']:.3f}" in text
    assert "patient" in text
    assert "not read" not in text


def test_predict_gives_the_masks_that_it_gave(record):
    assert predict([str(record), "multirun/slice.png", "--out", "out", "--format", "png"]) == 0
    (made,) = Path("out").rglob("*_mask.png")
    was, now = (np.array(Image.open(file)) > 0 for file in (RECORD / "mask.png", made))
    assert was.sum() > 20
    assert (was != now).sum() <= 2  # another machine adds in another order


def test_export_writes_its_network(record):
    assert export([str(record), "--out", "exported"]) == 0
    assert {file.suffix for file in Path("exported").iterdir()} >= {".onnx", ".pt2"}
