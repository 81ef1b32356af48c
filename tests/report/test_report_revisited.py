"""docs/revisited.py says of each claim what the runs say, and the document holds nothing but what it wrote."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from records import Spec, difficulties, factors, simulate, write_sweep

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def revisited():
    spec = importlib.util.spec_from_file_location("revisited", REPOSITORY / "docs" / "revisited.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(revisited, tmp_path_factory):
    """Planted: Adam and 1e-3 are better, R2U-Net worse, epochs nothing, Dice loss luck of the seed; one run lost."""
    rng = np.random.default_rng(0)
    z = difficulties(rng)

    def spec(m, o, lr, e, s, loss="bce", luck=0.0):
        shift = 0.9 * (o == "adam") + 0.6 * (lr == 1e-3) - 0.8 * (m == "r2unet") + luck
        shift += 0.02 * rng.standard_normal()
        changes = {"model": m, "optim": o, "optim_lr": lr, "epochs": e, "seed": s, "loss": loss}
        return Spec(factors(**changes), simulate(rng, shift, 0.1, z), overlays=False)

    nets, optims, rates = ["unet", "r2unet"], ["sgd", "adam"], [1e-3, 1e-4]
    first = [spec(*point) for point in itertools.product(nets, optims, rates, [5, 10], [0, 1, 2])]
    first[-1].status = "failed"
    lucks = (2.5, 0.5, 0.2)
    second = [spec(m, "adam", 1e-3, 5, s, "dice", luck) for m in nets for s, luck in enumerate(lucks)]
    root = tmp_path_factory.mktemp("multirun")
    found = revisited.measure([write_sweep(root, "a", first), write_sweep(root, "b", second)])
    return json.loads(json.dumps(found))


def test_verdicts_are_what_was_planted(revisited, measured):
    table = revisited.verdicts(measured)
    said = dict(re.findall(r"^\| (.+?) \| \*\*(.+?)\*\* \|", table, re.MULTILINE))
    assert said == {
        revisited.TITLES["optimizer"]: "Borne out",
        revisited.TITLES["optimizer-r2unet"]: "Borne out",
        revisited.TITLES["epochs"]: "Not shown",
        revisited.TITLES["rate"]: "Borne out",
        revisited.TITLES["dice-loss"]: "Not shown: no more than seeds differ",
        revisited.TITLES["r2unet"]: "The opposite is shown",
    }
    assert re.search(r"\| r2unet − unet: -0\.\d+ \[-0\.\d+, -0\.\d+\], over seeds too \[-0\.\d+, -0\.\d+\] \|", table)


def test_differences_are_of_the_named_runs_on_the_same_patients(revisited, measured):
    c = measured["claims"]["rate"]
    (pair,) = c["pairs"]
    assert pair["settings"] == {"model": "unet", "loss": "bce", "optim": "adam", "epochs": 5}
    means = {
        lr: np.mean([r["dice"] for r in measured["runs"] if {**r, **pair["settings"]} == r and r["optim.lr"] == lr])
        for lr in (1e-3, 1e-4)
    }
    assert c["difference"] * (1 if c["b"] == "0.001" else -1) == pytest.approx(means[1e-3] - means[1e-4])
    assert (c["patients"], c["seeds"]) == (20, 3)


def test_what_is_missing_is_said(revisited, measured):
    assert "**1 more were asked for and have not finished.**" in revisited.ran(measured)
    without = measured | {"claims": {}, "contrasts": []}
    assert revisited.verdicts(without).count("**not measured**") == 6
    assert revisited.claimed(without, "epochs").startswith("Not measured: no finished pair of runs")
    assert revisited.split(without).startswith("Not measured")


def test_one_controlled_pair_in_the_reports_table():
    rows = json.loads((REPOSITORY / "docs" / "results" / "report.json").read_text())["rows"]
    settings = ("model", "loss", "lr", "epochs", "optim", "batch_size")
    pairs = list(itertools.combinations(rows, 2))
    single = [{a["name"], b["name"]} for a, b in pairs if sum(a[k] != b[k] for k in settings) == 1]
    assert (len(pairs), single) == (15, [{"base_r2unet", "r2unet_config_1"}])


def test_the_document_is_what_the_numbers_beside_it_give(revisited):
    text = revisited.DOCUMENT.read_text(encoding="utf-8")
    numbers = json.loads(revisited.JSON.read_text(encoding="utf-8"))
    assert revisited.document(text, numbers) == text
    assert set(re.findall(r"^<!-- ([\w-]+) -->$", text, re.MULTILINE)) == set(revisited.blocks(numbers))
