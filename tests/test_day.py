"""A user's day, by the commands and code of the guides in docs/: files of one's own to a report and masks, volumes, a
network with a dictionary for output, and a score of one's own."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import segsweep
from test_readme import COMMANDS, PAGES, eyes, volume

PAGE = "\n".join(page.read_text() for page in PAGES)
NET = """from torch import nn


class Net(nn.Module):
    def __init__(self, in_chans, classes, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.ReLU())
        self.head, self.aux = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, x):
        found = self.body(x)
        return {"aux": self.aux(found), "out": self.head(found)}
"""
QUICK = ["epochs=1", "precision=fp32", "tracking=none", "hydra/launcher=basic"]
MADE = ["data.image_size=16", "data.patients=6", "data.slices=4"]


def command(*words: str) -> tuple[dict[str, str], list[str]]:
    """Of the page: the first with these words; what it sets in the environment, and the arguments of its module, less
    what makes it slow."""
    first = next(c for c in COMMANDS if all(any(word in part for part in c) for word in words))
    there = first.index("python")
    slow = ("epochs=", "model.width=", "data.image_size=")
    given = [word for word in first[there + 3 :] if not word.startswith(slow)]
    return dict(word.split("=", 1) for word in first[:there]), given


def code(language: str, within: str) -> str:
    """The page's block with this text, without its indentation."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    indent, text = next(block for block in blocks if within in block[1])
    return re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def run(cwd: Path, monkeypatch, words: tuple[str, ...], *more: str) -> list[dict]:
    """Of the page's command on less data: what result.json of each run has, with its folder."""
    environment, arguments = command(*words)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = segsweep(cwd, *arguments, *QUICK, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted(file.parent for file in cwd.glob("multirun/runs/*/result.json"))
    return [json.loads((folder / "result.json").read_text()) | {"folder": folder} for folder in folders]


def test_from_files_to_a_report_and_masks(tmp_path, monkeypatch):
    sizes = eyes(tmp_path / "EYES")
    small = ("model.width=2", "model.depth=2", "data.image_size=[20,24]")
    results = run(tmp_path, monkeypatch, ("segsweep", "-m", "data.root=EYES"), *small)
    assert len(results) == 2
    for result in results:
        assert {"test/dice", "test/dice/disc", "test/dice/cup"} <= result["metrics"].keys()
    (sweep,) = tmp_path.glob("multirun/2*")
    report = (sweep / "report.md").read_text()
    assert "Dice of 2 classes" in report
    assert "cup" in report
    sweep.rename(tmp_path / "multirun" / "EYES")
    _, arguments = command("segsweep.predict", "best:multirun/EYES")
    done = segsweep(tmp_path, *arguments, module="segsweep.predict")
    assert done.returncode == 0, done.stdout + done.stderr
    masks = {file.name.removesuffix("_mask.png"): file for file in (tmp_path / "masks").rglob("*_mask.*")}
    found = {name.removesuffix("_mask.tif"): np.array(Image.open(file)) for name, file in masks.items()}
    assert {name: mask.shape for name, mask in found.items()} == sizes
    assert set(np.unique(np.concatenate([mask.ravel() for mask in found.values()]))) <= {0, 1, 2}


def test_from_volumes_to_millimetres(tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    for n in range(1, 7):
        volume(tmp_path / "ACDC" / f"patient{n:03}_frame01")
    for file in (tmp_path / "ACDC").iterdir():
        whole = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(whole.dataobj), np.diag([2.0, 2, 8, 1])), file)
    small = ("model.width=2", "model.depth=2", "data.image_size=null")
    (result,) = run(tmp_path, monkeypatch, ("data=nifti",), *small)
    rows = list(csv.DictReader((result["folder"] / "patients.csv").read_text().splitlines()))
    assert {float(row["truth_ml/lv"]) for row in rows} == {3 * 16 * 4 * 32 / 1000}


def test_a_network_with_a_dictionary_for_output(tmp_path, monkeypatch):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "theirs.yaml").write_text(code("yaml", "theirs.Net"))
    (tmp_path / "theirs.py").write_text(NET)
    results = run(tmp_path, monkeypatch, ("model=theirs",), *MADE, "model.width=2,3")
    assert sorted(result["parameters"] for result in results) == [28 * n + 2 * (n + 1) for n in (2, 3)]


def test_a_score_of_ones_own_and_one_that_is_edited(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    file = tmp_path / "my_package" / "scores.py"
    file.write_text(code("python", "class Volume"))
    asked = ("my_package.*",), *MADE, "model.width=2", "model.depth=2"
    (first,) = run(tmp_path, monkeypatch, *asked)
    assert first["metrics"]["test/volume"] > 0
    assert {"val/auc", "val/volume"} <= first["metrics"].keys()
    file.write_text(file.read_text().replace("return abs", "return 2 * abs"))
    (second,) = (r for r in run(tmp_path, monkeypatch, *asked) if r["folder"] != first["folder"])
    assert second["metrics"]["test/volume"] == 2 * first["metrics"]["test/volume"]
    assert second["trained_epochs"] == 0
