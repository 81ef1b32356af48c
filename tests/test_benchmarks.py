"""The benchmarks compare what they say: the same networks on the same files; and they run, on next to nothing."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import accuracy, common, durability, memory, plain, same, search_idle, sweep, train
from segsweep.segmentation.data import cache
from segsweep.segmentation.models.r2unet import R2UNet
from segsweep.segmentation.models.unet import UNet

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


def test_a_folder_of_files_may_be_named_from_where_one_is(monkeypatch, tmp_path):
    """Commands of `benchmarks.sweep` and `benchmarks.memory` run in folders of their own."""
    monkeypatch.chdir(tmp_path)
    assert common.arguments("", rounds=1).parse_args(["--data-root", "lgg"]).data_root == str(tmp_path / "lgg")
    assert common.arguments("", rounds=1).parse_args([]).data_root is None


@pytest.mark.parametrize(
    ("cuda", "name", "file"), [(False, "sweep", "sweep"), (True, "sweep", "sweep-cuda"), (True, "a-cuda", "a-cuda")]
)
def test_what_a_gpu_took_stands_beside_what_a_cpu_took(monkeypatch, tmp_path, cuda, name, file):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    common.write(tmp_path, name, {"seconds": 1.23456})
    assert {f.name: json.loads(f.read_text()) for f in tmp_path.iterdir()} == {f"{file}.json": {"seconds": 1.235}}


def run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_training_benchmark_runs(tmp_path):
    run("train", "--cases", "r2unet:4:32:4", "--rounds", "2", "--seconds", "0.01", "--out", str(tmp_path))
    result = json.loads(next(tmp_path.glob("train-*.json")).read_text())
    assert (result["workers"], result["precision"]["plain"]) == (2, "fp32")
    (case,) = result["cases"]
    assert len(case["ratios"]) == 2
    assert case["ratio"] == pytest.approx(np.mean(case["ratios"]), rel=1e-3)
    assert 0 < case["share"]["ours"] < 1
    assert all(0 < value < 4000 for value in case["memory_mib"].values())


@pytest.mark.slow
def test_the_data_benchmark_runs(tmp_path):
    run("data", "--sizes", "64", "--rounds", "1", "--out", str(tmp_path))
    result = json.loads(next(tmp_path.glob("data*.json")).read_text())
    (decode,), (batches,) = result["decode"], result["batches"]
    assert decode["slices"] == 24 * 16
    assert 0 < decode["seconds"]["warm"] < decode["seconds"]["cold"]
    assert {"ours", "loader0", "loader2"} == set(batches["images_per_second"])


@pytest.mark.slow
def test_workers_share_one_decoded_set(tmp_path, monkeypatch):
    """What `benchmarks.memory` measures of a sweep, on two slots."""
    monkeypatch.setattr(subprocess, "Popen", forked.Started)  # forks share pages of the process that they are of
    (tmp_path / "sweep").mkdir()
    data = ["data.patients=12", "data.slices=16", "data.image_size=64"]
    decoded = tmp_path / "cache"
    found = memory.sweep(tmp_path / "sweep", decoded, 2, [*data, "model.width=4", "epochs=8"])
    files = sum(file.stat().st_size for file in decoded.rglob("*.npy"))
    assert (found["slots"], len(found["own_mib"])) == (2, 2)
    assert 0 < max(found["own_mib"]) < 500  # the first worker that is ready may take both jobs
    # two sets of their own would be twice the files; half as much again, if the second worker maps between two looks
    assert 0 < found["usual_set_mib"] <= files / memory.MIB * 1.55


def hold(parent, case, root, decoded, seconds):
    """Stands for the training: 64 MiB of its own, and 32 MiB of a decoded file."""
    parent.send("ready")
    parent.recv()
    own, mapped = np.ones(8 * memory.MIB), np.load(decoded / "images.npy", mmap_mode="r")
    assert mapped.min() == 1  # reads every page
    time.sleep(seconds)
    assert own[-1] == mapped[-1]


def test_what_a_batch_takes_is_private_pages_above_those_before(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.ones(32 * memory.MIB, np.uint8))
    monkeypatch.setattr(memory, "_train_one_batch", hold)
    found = memory.one_batch(train.Case("unet", 8, 64, 16), "", tmp_path.resolve(), seconds=0.5)
    assert 64 <= round(found, 1) < 72  # a page of it may have been there


@pytest.mark.slow
def test_a_single_batch_is_trained(tmp_path):
    """The weights, gradients and moments of 31 million parameters in float32 alone are 474 MiB."""
    with common.lgg_files(None, patients=2) as root:
        case, decoded = train.Case("unet", 64, 32, 2), tmp_path.resolve() / "cache"
        dataset = common.lgg(root, 32)
        cache.load(dataset, dataset.scan(decoded), decoded, 1)
        found = memory.one_batch(case, root, decoded, seconds=1)
    assert 474 < found < 1500


def at(file: Path, when: float, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (when, when))


def test_a_job_is_charged_with_the_epochs_that_it_trained(tmp_path):
    """epochs=2,4 scheduler=constant: the second goes on where the first ended, and its history has the first's."""
    history = [{"seconds": 1.0, "eval_seconds": 0.5}] * 2 + [{"seconds": 2.0, "eval_seconds": 0.25}] * 2
    at(tmp_path / "cache" / "data.lock", 104)
    at(tmp_path / "cache" / "data" / "checked-1", 105)
    at(tmp_path / "multirun" / "one" / "sweep.json", 103)
    for number, (start, epochs, own) in enumerate([(103.0, 2, 2), (110.5, 4, 2)]):
        job, name = tmp_path / "multirun" / "one" / str(number), f"run{number}"
        at(job / "job.json", start, json.dumps({"run": f"../../runs/{name}", "pid": 7}))
        at(job / ".hydra" / "overrides.yaml", start)
        folder, ready = tmp_path / "multirun" / "runs" / name, start + (2.5 if number == 0 else 0.5)
        trained = ready + sum(sum(row.values()) for row in history[epochs - own : epochs]) + 0.25
        at(folder / "run.json", ready)
        at(folder / "history.jsonl", trained, "".join(f"{json.dumps(row)}\n" for row in history[:epochs]))
        record = {"trained_epochs": own, "training_seconds": 99.0, "evaluation_seconds": 99.0}
        at(folder / "result.json", trained + 0.5, json.dumps(record))
    found = sweep.parts(tmp_path, began=100.0, wall=18.0)
    # ends: 103 + 2.5 + 3 + 0.25 + 0.5 = 109.25 of the first, 110.5 + 0.5 + 4.5 + 0.25 + 0.5 = 116.25 of the second
    assert found.pop("slots") == 1
    assert found == pytest.approx(
        {"start": 3, "decode": 1, "build": 2, "steps": 2 + 4, "evaluation": 1 + 0.5, "checkpoints": 0.5, "records": 1}
        | {"end": 1.75, "between": 1.25}
    )
    assert sum(found.values()) == pytest.approx(18)


def test_what_is_known_already_is_charged_with_no_epoch(tmp_path):
    """epochs=4,2 scheduler=constant: the second is answered from a state that the first left."""
    at(tmp_path / "cache" / "data.lock", 100)
    at(tmp_path / "cache" / "data" / "checked-1", 100)
    at(tmp_path / "multirun" / "one" / "sweep.json", 100)
    at(tmp_path / "multirun" / "one" / "0" / "job.json", 101, '{"run": "../../runs/run", "pid": 7}')
    at(tmp_path / "multirun" / "one" / "0" / ".hydra" / "overrides.yaml", 101)
    for second, (name, text) in enumerate(
        {
            "run.json": "",
            "history.jsonl": '{"seconds": 9, "eval_seconds": 9}',
            "result.json": '{"trained_epochs": 0}',
        }.items()
    ):
        at(tmp_path / "multirun" / "runs" / "run" / name, 102 + second, text)
    found = sweep.parts(tmp_path, began=100.0, wall=5.0)
    assert (found["steps"], found["evaluation"], found["checkpoints"]) == (0, 0, 1)


@pytest.fixture
def commands(monkeypatch):
    """What `benchmarks.sweep` runs, and no sweep: each takes 12 seconds over its slots."""
    asked: list[tuple[str, ...]] = []

    def command(folder, *arguments):
        asked.append(arguments)
        slots = [int(each.partition("=")[2]) for each in arguments if each.startswith(sweep.SLOTS)]
        return 0.0, 12.0 / (slots or [2])[0], 20.0

    monkeypatch.setattr(sweep, "command", command)
    monkeypatch.setattr(sweep, "parts", lambda folder, began, wall: {"steps": wall, "slots": round(12 / wall)})
    monkeypatch.setattr(sweep, "first_step", lambda folder, *arguments: 5.0)

    def main(*arguments: str) -> list[tuple[str, ...]]:
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        asked.clear()
        sweep.main()
        return list(asked)

    return main


def test_a_grid_is_timed_with_several_jobs_at_once(commands, tmp_path):
    asked = commands("--slots", "1", "2", "4", "--rounds", "2", "--out", str(tmp_path))
    alone, two, four = (
        ("-m", *sweep.GRID, *more) for more in ([f"{sweep.SLOTS}=1"], [f"{sweep.SLOTS}=2"], [f"{sweep.SLOTS}=4"])
    )
    assert asked == [alone, ("--cfg", "job"), two, four] * 2
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert [(row["slots"], row["seconds"], row["ratio"]) for row in result["slots"]] == [
        (1, 12, 1),
        (2, 6, 2),
        (4, 3, 4),
    ]
    assert (result["sweep"]["seconds"], result["first"]["cfg"]) == (12, 6)
    result["sweep"] |= {"decoded": 1, "jobs": 4}
    text = benchmarks.sweep(result)
    assert "decoded once | seconds" in text
    assert "| 4 | 3.0 | **4.00** (4.00-4.00) |" in text
    result["slots"] = result["slots"][:1]
    assert "at once on a device" not in benchmarks.sweep(result)


def test_a_grid_of_ones_own_has_a_result_of_its_own(commands, tmp_path, capsys):
    cuda = "-cuda" if torch.cuda.is_available() else ""
    for arguments, name in {
        ("--rounds=1",): "sweep", ("epochs=1,2", "--rounds=1"): "sweep-other",
        ("epochs=1,2", "--rounds=1", "--name=mine"): "mine",
    }.items():  # fmt: skip
        before = set(tmp_path.iterdir())
        commands(*arguments, "--out", str(tmp_path))
        assert [file.name for file in set(tmp_path.iterdir()) - before] == [f"{name}{cuda}.json"]
    with pytest.raises(SystemExit):
        commands(f"{sweep.SLOTS}=2")
    assert "--slots" in capsys.readouterr().err


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_an_epoch_is_as_long_as_asked_up_to_a_number_of_steps():
    assert (train.steps(4, 0.5, CPU), train.steps(4, 0.5, CUDA)) == (8, 8)
    assert (train.steps(4, 0.001, CPU), train.steps(4, 0.001, CUDA)) == (32, 400)
    assert train.steps(4, 100, CPU) == 1


def test_the_durability_benchmark_counts_flushes_and_leaves_fsync_as_it_was(tmp_path, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(durability, "JOB", [*durability.JOB, "data.slices=4", "data.image_size=16"])
    monkeypatch.setattr(durability, "EPOCHS", 1)
    given = ["durability", "--jobs", "1", "--rounds", "1", "--place", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    durability.main()
    assert os.fsync is fsync
    found = json.loads((tmp_path / "durability.json").read_text())
    assert found["flushes"]["an_epoch"] >= 1
    assert found["flushes"]["a_job_beside"] >= 4  # of files, and of the folders that name them
    assert found["waits"]["an_epoch"] > 0
    assert found["waits"]["a_job_beside"] > 0
    assert set(found["seconds"]) == {"with", "without"}


def test_a_share_is_of_the_precision_that_is_computed_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    assert train.precisions("auto", CUDA) == {"ours": "bf16", "plain": "tf32"}
    assert train.precisions("fp32", CUDA) == {"ours": "tf32", "plain": "tf32"}
    assert train.precisions("fp32", CPU) == {"ours": "fp32", "plain": "fp32"}
    assert train.precisions("bf16", CPU) == {"ours": "bf16", "plain": "fp32"}
    monkeypatch.setattr(train, "SIDES", {"ours": lambda *given: lambda: 0.5, "plain": lambda *given: lambda: 1.0})
    args = argparse.Namespace(seconds=1, device="cpu", options=[], workers=3, rounds=1, no_memory=True)
    row = train.measure(train.Case("unet", 4, 32, 4), "", Path(), args, {"ours": 400.0, "plain": 100.0})
    assert row["share"]["plain"] / row["share"]["ours"] == pytest.approx(4 / 2)


def test_only_the_product_in_tf32_is_one(monkeypatch):
    seen = []
    monkeypatch.setattr(common, "seconds", lambda product: seen.append(torch.backends.cuda.matmul.allow_tf32) or 0.5)
    for precision, tf32 in {"tf32": True, "fp32": False, "bf16": False}.items():
        seen.clear()
        assert train.matrix_rate(CPU, precision) == pytest.approx(4 * 2048**3 / 1e9)
        assert set(seen) == {tf32}
        assert not torch.backends.cuda.matmul.allow_tf32


def test_memory_is_that_of_the_device_asked_for(monkeypatch):
    """On a machine with CUDA too, and the plain loop has the workers that were asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked, given = [], []
    monkeypatch.setattr(train.environment, "peak_memory", lambda device: asked.append(device) or 2**20 * len(asked))
    monkeypatch.setattr(train, "SIDES", {"plain": lambda *args: given.append(args) or (lambda: 0.0)})
    assert train.peak_memory("plain", train.Case("unet", 4, 32, 4), "root", Path(), 4, "cpu", 3) == 1
    assert (asked, given[0][-1]) == ([CPU, CPU], 3)


def test_the_training_table_says_what_it_compares():
    result = benchmarks.read("train-cpu") or {}
    assert result["cases"]
    found = benchmarks.train(result | {"workers": 8, "precision": {"ours": "bf16", "plain": "tf32"}}
                             | {"matrix_gflops": {"fp32": 50, "tf32": 400, "bf16": 800}})  # fmt: skip
    assert "400 GFLOP/s in tf32 (plain), 800 in bf16 (ours). Workers of plain's DataLoader: 8." in found
    old = {key: value for key, value in result.items() if key not in ("workers", "precision")}
    assert "in fp32 (plain)" in benchmarks.train(old)
    assert "DataLoader: 2." in benchmarks.train(old)


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """An archive of four phantoms, and where it is decoded."""
    with common.lgg_files(None, patients=4) as root:
        yield root, tmp_path_factory.mktemp("decoded")


def composed(root: str, *options: str):
    args = argparse.Namespace(size=32, width=4, epochs=1, options=["device=cpu", "precision=fp32", *options])
    return accuracy.composed(root, "unet", args)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def test_plain_arithmetic_is_clipped_too_and_is_not_tf32(slices, monkeypatch):
    """In float32 both sides compute the same but for rounding, whatever the norm of the gradients is cut to."""
    root, decoded = slices
    tf32: dict[str, set[bool]] = {"plain": set(), "ours": set()}
    trained, evaluate = [], accuracy.evaluate
    for name, network in {"plain": plain.Network, "ours": UNet}.items():

        def forward(self, x, name=name, old=network.forward):
            tf32[name].add(torch.backends.cudnn.allow_tf32)
            return old(self, x)

        monkeypatch.setattr(network, "forward", forward)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(
        accuracy, "evaluate", lambda *args, **given: trained.append(args[0]) or evaluate(*args, **given)
    )
    cfg = composed(root, "optim=sgd", "optim.lr=1", "optim.momentum=0", "clip_norm=0.01")
    accuracy.train(cfg, "unet", 0, decoded)
    ours, other = (flat(model) for model in trained)
    torch.manual_seed(0)
    start = flat(UNet(3, 1, width=4))
    assert 0.01 < (ours - start).norm() < 0.05  # a step goes as far as the norm, and there are few
    torch.testing.assert_close(other, ours, rtol=0, atol=1e-5)
    assert tf32 == {"plain": {False}, "ours": {True}}
    assert torch.backends.cudnn.allow_tf32


def test_options_reach_the_accuracy_of_fast_arithmetic(slices, monkeypatch):
    root, decoded = slices
    compiled, fitted, judged = [], [], []
    fit, evaluate = accuracy.fit, accuracy.evaluate
    monkeypatch.setattr(accuracy, "compiled", lambda model, *given: compiled.append(given) or model)
    monkeypatch.setattr(accuracy, "fit", lambda *args, **given: fitted.append(given) or fit(*args, **given))
    monkeypatch.setattr(accuracy, "evaluate", lambda *args, **given: judged.append(given) or evaluate(*args, **given))
    accuracy.train(composed(root, "compile=true", "micro_batches=2", "batch_size=8"), "unet", 0, decoded)
    assert compiled == [({4},)]
    assert fitted[0]["parts"] == 2
    assert fitted[0]["forward"] is not None
    assert [given.get("parts", 1) for given in judged] == [2, 1]


def test_an_accuracy_is_written_and_says_its_criterion(slices, monkeypatch, tmp_path):
    dice = {0: (0.8, 0.7), 1: (0.7, 0.9), 2: (0.95, 0.8)}  # by seed: ours, plain
    monkeypatch.setattr(accuracy, "train", lambda cfg, network, seed, decoded: {
        side: np.full(2, dice[seed][k]) for k, side in enumerate(("ours", "plain"))})  # fmt: skip
    monkeypatch.setattr(
        sys, "argv", ["accuracy", "--data-root", slices[0], "--networks", "unet", "--out", str(tmp_path)]
    )
    accuracy.main()
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert result["networks"]["unet"]["within"] is True
    text = benchmarks.accuracy(result)
    assert "segsweep's mean inside plain's range | segsweep's seeds inside it |" in text
    assert "| +0.017 | yes | 2 of 3 |" in text


def aims(folder: Path, monkeypatch, **results) -> dict[str, str]:
    """What the table says of each aim when these are the results."""
    for name, result in results.items():
        (folder / f"{name.replace('_cuda', '-cuda').replace('_cpu', '-cpu')}.json").write_text(json.dumps(result))
    monkeypatch.setattr(benchmarks, "RESULTS", folder)
    rows = [line.strip("| ").split(" | ") for line in benchmarks.aims().splitlines()[2:]]
    return {aim: said for aim, said, _ in rows}


def test_an_aim_that_has_no_result_is_not_measured(tmp_path, monkeypatch):
    assert set(aims(tmp_path, monkeypatch).values()) == {"not measured yet"}
    half = {"cases": [{"network": "unet", "width": 64, "size": 256, "batch": 16, "ratio": 9.0, "share": {"ours": 0.9}}]}
    assert set(aims(tmp_path, monkeypatch, train_cpu=half, train_cuda=half).values()) == {"not measured yet"}


@pytest.mark.parametrize("good", [True, False])
def test_an_aim_is_met_or_missed_by_the_worst_of_its_numbers(tmp_path, monkeypatch, good):
    def cases(ratio: float) -> dict:
        """Of all shapes and networks R2U-Net alone is slow; its share of the peak is no aim."""
        shapes = [(16, 64, 16), (16, 128, 16), (64, 256, 16), (64, 256, 32)]
        sides = {"unet": (9.0, 0.5 if good else 0.3), "r2unet": (ratio, 0.2)}
        return {
            "cases": [
                {
                    "network": name,
                    "width": width,
                    "size": size,
                    "batch": batch,
                    "ratio": times,
                    "share": {"ours": share},
                }
                for width, size, batch in shapes
                for name, (times, share) in sides.items()
            ]
        }

    launcher = {"seconds": 30.0, "steps": 20.0, "over_steps_a_job": 0.2, "launcher_a_job": 0.1}
    launchers = {
        "local": launcher,
        "basic": launcher | {"seconds": 31.0 if good else 29.0, "over_steps_a_job": 9.0},
        "local2": launcher | dict.fromkeys(("over_steps_a_job", "launcher_a_job"), 0.25 if good else 0.35),
    }
    network = {"within": True}
    said = aims(
        tmp_path, monkeypatch,
        train_cpu=cases(3.5 if good else 1.5), train_cuda=cases(5.5 if good else 4.5),
        sweep={"sweep": {"seconds": 59.0 if good else 61.0, "jobs": 4},
               "first": {"cfg": 0.4 if good else 0.6, "run": 5.0, "sweep": 5.0 if good else 7.0}},
        data={"decode": [{"ratio": 2.0}, {"ratio": 1.8 if good else 1.6}]},
        memory={"look": 0.05, "one_batch_mib": 100.0,
                "sweeps": [{"own_mib": [90.0]}, {"own_mib": [80.0, 95.0 if good else 105.0]}]},
        overhead={"jobs": 20, "launchers": launchers}, overhead_long={"jobs": 20, "launchers": launchers},
        search_worth={"grid": {"epochs": 90}, "searches": {"TPE, halving": {"best": {"median": 30 if good else 31}}}},
        search_worth_short={
            "grid": {"epochs": 90}, "searches": {"TPE, halving": {"best": {"median": 9 if good else None}}},
        },
        search_idle={"sweepers": {"search": {"idle": 0.04 if good else 0.06}, "optuna": {"idle": 0.2}}},
        report={"runs": 500, "build_seconds": 19.0 if good else 21.0, "open_milliseconds": 1900.0 if good else 2100.0},
        accuracy={"networks": {"unet": network, "r2unet": {"within": good}}},
        accuracy_cuda={"networks": {"unet": network, "r2unet": {"within": good}}},
    )  # fmt: skip
    assert len(said) == len(benchmarks.AIMS)
    assert {text.partition(":")[0] for text in said.values()} == {"met" if good else "**missed**"}
    assert said["own memory of a job at most one batch's"].endswith(f"{95 if good else 105} of 100 MiB")
    assert said["cold decode at least 1.7 times as fast as Pillow"].endswith(f"{1.8 if good else 1.6} times")


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
    assert all(f"<!-- {name} -->" in text for name in [*benchmarks.TABLES, "aims"])
    headings = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    assert {section for _, section, _, _ in benchmarks.AIMS} <= headings


# benchmarks.same

JOB = {"overrides": ["loss=dice", "seed=0"], "status": "finished", "objective": 0.5, "epoch": 2, "parameters": 3}
JOB |= {"class": None, "metrics": {"test/hd95": 1.25}}
EPOCHS = [{"epoch": epoch, "train/loss": 0.1, "val/dice": math.nan, "seconds": 1.0 * epoch} for epoch in (1, 2)]
PATIENTS = "patient,dice\r\na,0.5\r\n"
WEIGHTS = {"epoch": 2, "model": {"w": torch.tensor([[0.0, math.nan]]), "n": torch.tensor(3)}}


def recorded(place: Path, job: dict = JOB, rows: list = EPOCHS, patients: str = PATIENTS, **weights) -> None:
    """What `benchmarks.same` copies of a job, as place is STEP/JOB."""
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps(job))
    (place / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "patients.csv").write_bytes(patients.encode())
    torch.save(WEIGHTS | {"model": WEIGHTS["model"] | weights}, place / "last.pt")


def test_jobs_that_differ_in_times_and_in_who_asked_are_the_same(tmp_path):
    trial = ["search.trial=3", "optim.lr=0.0123"]
    slower = [row | {"seconds": 9.0, "images_per_second": 1.0, "eval_seconds": 2.0} for row in EPOCHS]
    for side, rows, study in (("there", EPOCHS, "a"), ("here", slower, "b")):
        asked = [f"search.study={study}", f"search.storage=sqlite:///{study}.db"]
        recorded(tmp_path / side / "1" / "0", JOB | {"seconds": len(study), "pid": id(rows), "signature": study}, rows)
        recorded(tmp_path / side / "2" / "10", JOB | {"overrides": [*trial, *asked] if study == "a" else asked + trial})
    assert same.differences(tmp_path / "there", tmp_path / "here") == (2, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [EPOCHS[0], EPOCHS[1] | {"train/loss": 0.1 + 2**-56}]},
         "history.jsonl, epoch 2, train/loss: 0.1 there, 0.10000000000000002 here"),
        ({"rows": [EPOCHS[0], EPOCHS[1] | {"val/iou": 1.0}]}, "history.jsonl, epoch 2, val/iou: none there, 1.0 here"),
        ({"rows": [EPOCHS[0], EPOCHS[1] | {"epoch": 2.0}]}, "history.jsonl, epoch 2, epoch: 2 there, 2.0 here"),
        ({"rows": EPOCHS[:1]}, "history.jsonl, epoch 2: only there"),
        ({"patients": PATIENTS.replace("\r", "")},
         "patients.csv, line 1: b'patient,dice\\r' there, b'patient,dice' here"),
        ({"patients": PATIENTS.replace("0.5", "0.25")}, "patients.csv, line 2, dice: 0.5 there, 0.25 here"),
        ({"patients": PATIENTS + "b,1.0\r\n"}, "patients.csv, line 3: b'' there, b'b,1.0\\r' here"),
        ({"w": torch.tensor([[-0.0, math.nan]])}, "last.pt, model.w: 1 of 2 values differ"),
        ({"n": torch.tensor(3.0)}, "last.pt, model.n: torch.int64 () there, torch.float32 () here"),
        ({"more": torch.tensor(3.0)}, "last.pt, model.more: only here"),
        ({"job": JOB | {"metrics": {"test/hd95": 1.5}}}, "job.json, metrics.test/hd95: 1.25 there, 1.5 here"),
        ({"job": JOB | {"status": "failed", "error": "a\nno"}}, "status finished there, failed (no) here"),
    ],
)  # fmt: skip
def test_what_differs_first_is_named_with_its_job(tmp_path, change, said):
    for side, given in (("there", {}), ("here", change)):
        recorded(tmp_path / side / "1" / "0")
        job = given.get("job", JOB)
        recorded(tmp_path / side / "1" / "1", **given | {"job": job | {"overrides": ["loss=bce", "seed=0"]}})
    assert same.differences(tmp_path / "there", tmp_path / "here") == (2, [f"loss=bce: {said}"])


def test_a_job_or_a_file_that_is_not_there_is_a_difference(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    for n, seed in enumerate((0, 1, 2)):
        for side in (there, here):
            own = 3 if (side, seed) == (here, 2) else seed
            recorded(side / "1" / str(n), JOB | {"overrides": ["loss=dice", f"seed={own}"]})
    (here / "1" / "0" / "last.pt").unlink()
    for side in (there, here):
        (side / "1" / "1" / "patients.csv").unlink()
    assert same.differences(there, here) == (
        4,
        [
            "seed=0: no last.pt here",
            "seed=1: no patients.csv on either side",
            "seed=2: no such job here",
            "seed=3: no such job there",
        ],
    )
    assert same.differences(there, tmp_path / "none")[1] == [f"seed={seed}: no such job here" for seed in (0, 1, 2)]


def test_the_commands_give_each_key_once_and_run_one_job_at_a_time():
    for name in same.COMMANDS:
        for line in same.command_lines(name):
            keys = [each.partition("=")[0] for each in line]
            assert len(set(keys)) == len(keys), line
            assert set(same.PLACES) < set(line)
    assert "epochs=1,3" in same.command_lines("epochs")[0]
    assert set(same.WITNESSES) | set(same.UNSET) <= set(same.COMMANDS)


PROGRAM = """
import json, pathlib, signal, sys
from segsweep.numbers import loss

if "wrong=1" in sys.argv:
    sys.exit("wrong: no such key")
folder, known = pathlib.Path("multirun"), pathlib.Path("multirun/runs/r/history.jsonl")
again = known.exists()
known.parent.mkdir(parents=True, exist_ok=True)
known.write_text(json.dumps({"epoch": 1, "loss": loss, "seconds": 1}) + "\\n")
if "epochs=9" in sys.argv and not again:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    signal.pause()
job = folder / str(len(list(folder.iterdir()))) / "0" / "job.json"
job.parent.mkdir(parents=True)
record = {"overrides": sys.argv[1:], "status": "pruned", "epoch": 1 + again, "run": "../../runs/r"}
job.write_text(json.dumps(record))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a program that stands for segsweep, and what `benchmarks.same` is to run of it."""
    tree = (tmp_path / "tree").resolve()
    files = {"__init__": "", "__main__": PROGRAM, "numbers": "loss = 0.5"}
    for name, text in files.items():
        (tree / "segsweep").mkdir(parents=True, exist_ok=True)
        (tree / "segsweep" / f"{name}.py").write_text(text)
    monkeypatch.setattr(same, "ROOT", tree)
    monkeypatch.setattr(same, "write_data", lambda folder: "digest")
    monkeypatch.setattr(same, "WITNESSES", {"stopped": (("job.json", '"epoch": 2'),)})
    commands = {"plain": (("a=1",), ("a=1", "b=1")), "stopped": (("^C", "epochs=9"), ("epochs=9",))}
    monkeypatch.setattr(same, "COMMANDS", commands)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        same.git(*arguments)
    return tree


def test_a_tree_is_compared_with_a_commit_and_no_worktree_stays(checkout, tmp_path, capsys):
    assert same.main(["HEAD"]) == 0
    said = capsys.readouterr().out
    assert "plain           2 jobs  equal\nstopped         1 jobs  equal\nthe same as " in said
    (checkout / "segsweep" / "numbers.py").write_text("loss = 0.25")
    assert same.main(["HEAD", "--only", "pl*"]) == 1
    said = capsys.readouterr().out
    assert "plain           2 jobs  DIFFERENT  command 1: the job: history.jsonl, epoch 1, loss: 0.5 there," in said
    assert "0.25 here   (2 differences in all)" in said
    assert len(same.git("worktree", "list").splitlines()) == 1


def test_a_command_that_this_tree_or_the_commit_does_not_know_is_a_difference(checkout, monkeypatch, capsys):
    monkeypatch.setattr(same, "COMMANDS", {"plain": (("a=1",),), "wrong": (("wrong=1",),)})
    assert same.main(["HEAD"]) == 1
    said = capsys.readouterr().out
    assert "gives nothing to compare with: command 1 ended with 1: wrong: no such key" in said
    program = checkout / "segsweep" / "__main__.py"
    program.write_text(PROGRAM.replace("wrong=1", "a=1"))
    assert same.main(["HEAD", "--only", "plain"]) == 1
    assert "DIFFERENT  here command 1 ended with 1: wrong: no such key   (2 differences" in capsys.readouterr().out
    monkeypatch.setattr(same, "WITNESSES", {"plain": (("job.json", '"epoch": 2'),)})
    assert same.main(["HEAD", "--only", "plain"]) == 1
    assert 'no job has "epoch": 2 in its job.json' in capsys.readouterr().out


def test_a_kept_reference_answers_until_machine_files_or_commands_are_others(checkout, tmp_path, monkeypatch, capsys):
    made, make = [], same.Side.make
    monkeypatch.setattr(same.Side, "make", lambda side, name, to: made.append(side.folder.name) or make(side, name, to))

    def run() -> list[str]:
        made.clear()
        assert same.main(["HEAD", "--only", "plain", "--keep", str(tmp_path / "kept")]) == 0
        return list(made)

    assert run() == ["there", "here"]
    assert run() == ["here"]
    monkeypatch.setattr(same, "_cpu", lambda: {"model name": "another"})
    assert run() == ["there", "here"]
    assert "plain: the reference's results are made with other cpu, so they are made again" in capsys.readouterr().out
    monkeypatch.setattr(same, "COMMANDS", {"plain": (("a=2",),)})
    assert run() == ["there", "here"]
    assert "made with other commands" in capsys.readouterr().out
    (kept,) = (tmp_path / "kept").glob("*/plain/made.json")
    kept.unlink()  # as when it was killed
    assert run() == ["there", "here"]


def test_a_checkout_that_is_installed_does_not_mix_with_the_one_that_is_compared(checkout, tmp_path, capsys):
    """Its Hydra plugins would: a namespace package takes them from every folder of sys.path."""
    outside = tmp_path / "outside"
    (outside / "segsweep").mkdir(parents=True)
    (tmp_path / "modules").mkdir()
    more = f"import sys\nsys.path.append({str(outside)!r})\n"
    (tmp_path / "modules" / "sitecustomize.py").write_text(more + same.ALONE)
    same.Side(checkout, tmp_path, "one")
    (tmp_path / "modules" / "sitecustomize.py").write_text(more)
    with pytest.raises(same.Problem, match="segsweep is installed in .*, which would mix with"):
        same.Side(checkout, tmp_path, "other")
    (tmp_path / "modules" / "sitecustomize.py").write_text(same.ALONE)
    with pytest.raises(same.Problem, match="has no package segsweep"):
        same.Side(tmp_path, tmp_path, "none")
    assert same.main(["nothing"]) == 2
    assert f"COMMIT nothing: not a commit of {checkout}; give a hash, a branch or a tag" in capsys.readouterr().err
