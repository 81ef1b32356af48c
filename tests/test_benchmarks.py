"""The benchmarks compare what they say: the same networks on the same files; and they run, on next to nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import common, memory, plain, search_idle
from segsweep.data import cache
from segsweep.models.r2unet import R2UNet
from segsweep.models.unet import UNet

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("name", "network"), [("unet", UNet), ("r2unet", R2UNet)])
def test_the_plain_network_computes_the_same(name, network):
    torch.manual_seed(0)
    ours, theirs = network(3, 1, width=4), plain.Network(name, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x), rtol=1e-4, atol=1e-5)


def test_both_sides_read_the_same_pixels(tmp_path):
    with common.lgg_files(None, patients=2) as root:
        dataset = common.lgg(root, 256)
        manifest = dataset.scan(tmp_path)
        volumes = cache.load(dataset, manifest, tmp_path, 1)
        files = [pair for pairs in manifest.files.values() for pair in pairs]
        items = [plain.Slices(files, 256)[i] for i in (0, 10, 31)]
    for (x, y), i in zip(items, (0, 10, 31), strict=True):
        np.testing.assert_array_equal((x * 255).round().permute(1, 2, 0), volumes.images[i])
        np.testing.assert_array_equal(y[0], volumes.masks[i])


def run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_training_benchmark_runs(tmp_path):
    run("train", "--cases", "r2unet:4:32:4", "--rounds", "2", "--seconds", "0.01", "--out", str(tmp_path))
    result = json.loads(next(tmp_path.glob("train-*.json")).read_text())
    (case,) = result["cases"]
    assert len(case["ratios"]) == 2
    assert case["ratio"] == pytest.approx(np.mean(case["ratios"]), rel=1e-3)
    assert 0 < case["share"]["ours"] < 1
    assert all(0 < value < 4000 for value in case["memory_mib"].values())


@pytest.mark.slow
def test_the_data_benchmark_runs(tmp_path):
    run("data", "--sizes", "64", "--rounds", "1", "--out", str(tmp_path))
    result = json.loads((tmp_path / "data.json").read_text())
    (decode,), (batches,) = result["decode"], result["batches"]
    assert decode["slices"] == 24 * 16
    assert 0 < decode["seconds"]["warm"] < decode["seconds"]["cold"]
    assert {"ours", "loader0", "loader2"} == set(batches["images_per_second"])


@pytest.mark.slow
def test_workers_share_one_decoded_set(tmp_path):
    """What `benchmarks.memory` measures of a sweep, on two slots."""
    (tmp_path / "sweep").mkdir()
    data = ["data.patients=12", "data.slices=16", "data.image_size=64"]
    decoded = tmp_path / "cache"
    found = memory.sweep(tmp_path / "sweep", decoded, 2, [*data, "model.width=4", "epochs=3"])
    files = sum(file.stat().st_size for file in decoded.rglob("*.npy"))
    assert (found["slots"], len(found["own_mib"])) == (2, 2)
    assert 0 < max(found["own_mib"]) < 500  # the first worker that is ready may take both jobs
    assert 0 < found["set_mib"] <= files / memory.MIB * 1.1


def test_idle_is_what_the_slots_do_not_work_until_the_last_job_starts():
    jobs = {1: [(100.0, 104.0), (105.0, 110.0)], 2: [(102.0, 106.0), (108.0, 118.0)]}
    found = search_idle.idle(jobs, slots=2)
    assert found["idle"] == pytest.approx((2 + 1 + 2) / 16)  # until 108: the second is 2 late, gaps of 1 and 2
    assert found["idle_whole"] == pytest.approx((2 + 1 + 2 + 8) / 36)
    assert (found["median_gap"], found["longest_gap"], found["all_busy"]) == (1.5, 2.0, 2.0)
    assert (found["trials"], found["seconds"]) == (4, 18.0)
    assert (found["shortest_trial"], found["longest_trial"]) == (4.0, 10.0)


def test_the_tables_are_those_of_the_results():
    text = benchmarks.README.read_text()
    assert benchmarks.filled(text) == text
    assert all(f"<!-- {name} -->" in text for name in benchmarks.TABLES)
