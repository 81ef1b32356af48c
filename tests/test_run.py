"""One run: what it records, that it repeats to the last bit, and what it answers from its record."""

import csv
import json
import math
import sys
import threading

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from segsweep.config.schema import conf_dir
from segsweep.runs.run import Outcome, _writer, classify, run
from segsweep.segmentation.evaluate import evaluate
from segsweep.segmentation.models.unet import UNet

TINY = ["data.patients=6", "data.slices=8", "data.image_size=32", "model.width=4", "model.depth=2", "epochs=2"]


def do(tmp_path, *overrides: str, milestones: tuple[int, ...] = (), tiny: bool = True) -> Outcome:
    places = ["tracking=none", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path.parent / 'cache'}"]
    with initialize_config_dir(str(conf_dir())):
        cfg: DictConfig = compose("config", overrides=[*TINY * tiny, *places, *overrides], return_hydra_config=True)
    choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k}
    with open_dict(cfg):
        del cfg["hydra"]
    return run(cfg, choices=choices, name="test", command="c", sweep=None, milestones=set(milestones))


def weights(outcome: Outcome, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return torch.load(outcome.folder / name, weights_only=True)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


NET = """import torch
class Net(torch.nn.Conv2d):
    def __init__(self, in_channels): super().__init__(in_channels, 1, 3, padding=1)
    def forward(self, x): return FACTOR * super().forward(x)
"""


def test_an_edited_network_of_ones_own_is_trained_anew(tmp_path, monkeypatch, allow):
    """Under another name than its module's, and where the epochs before could be gone on with."""
    from segsweep.core import source

    monkeypatch.syspath_prepend(str(tmp_path))
    allow("net_of_run.*")
    (tmp_path / "net_of_run").mkdir()
    (tmp_path / "net_of_run" / "__init__.py").write_text("from net_of_run.net import Net")
    asked = ["model._target_=net_of_run.Net", "~model.width", "~model.depth", "scheduler=constant"]

    def edited(factor: int, epochs: int) -> Outcome:
        (tmp_path / "net_of_run" / "net.py").write_text(NET.replace("FACTOR", str(factor)))
        source.code.cache_clear()  # a process of its own
        for name in [name for name in sys.modules if name.startswith("net_of_run")]:
            del sys.modules[name]
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "TINY", [o for o in TINY if not o.startswith("model.")])
            return do(tmp_path, f"epochs={epochs}", *asked)

    first = edited(1, epochs=1)
    assert first.status == "finished"
    assert edited(1, epochs=1).status == "reused"
    assert edited(1, epochs=2).status == "continued"
    assert edited(22, epochs=1).status == "finished"
    assert edited(22, epochs=2).status == "continued"
    about = json.loads((first.folder / "run.json").read_text())
    assert {"net_of_run", "net_of_run.net"} <= set(about["files"])


def test_the_record_is_whole(tmp_path):
    outcome = do(tmp_path)
    assert (outcome.status, outcome.error) == ("finished", None)
    folder = outcome.folder
    assert {file.name for file in folder.iterdir()} == {
        *("config.yaml", "run.json", "split.json", "history.jsonl", "patients.csv", "overlays.npz", "lock"),
        *("curves.png", "overlays.png", "last.pt", "best.pt", "result.json"),
    }
    result, about = (json.loads((folder / name).read_text()) for name in ("result.json", "run.json"))
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    names = ("loss", "accuracy", "dice", "iou", "precision", "recall")
    assert [row["epoch"] for row in history] == [1, 2]
    assert {f"{part}/{name}" for part in ("train", "val") for name in names} <= set(history[0])
    assert {f"{part}/{name}" for part in ("train", "val", "test") for name in names} <= set(result["metrics"])
    assert {"test/hd95", "test/missed", "test/undefined"} <= set(result["metrics"])
    for key in ("training_seconds", "evaluation_seconds", "images_per_second", "gflops", "peak_memory_bytes"):
        assert result[key] > 0
    assert result["training_seconds"] == pytest.approx(sum(row["seconds"] for row in history))
    assert result["parameters"] == sum(p.numel() for k, p in weights(outcome).items() if "running" not in k) - sum(
        p.numel() for k, p in weights(outcome).items() if k.endswith("num_batches_tracked")
    )
    assert result["objective"] == max(row["val/dice"] for row in history)
    assert about["factors"]["model"] == "unet"
    assert about["factors"]["model.width"] == 4
    assert about["factors"]["optim.lr"] == 0.002
    assert not {"device", "paths.runs", "data.root", "tracking.uri"} & set(about["factors"])
    assert about["split"]["train"] + about["split"]["val"] + about["split"]["test"] == about["data"]["slices"] == 48
    split = json.loads((folder / "split.json").read_text())
    patients = [set(split[part]) for part in ("train", "val", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 6
    rows = list(csv.DictReader((folder / "patients.csv").read_text().splitlines()))
    assert {row["patient"] for row in rows} == patients[2]
    dice = [2 * int(r["tp"]) / (2 * int(r["tp"]) + int(r["fp"]) + int(r["fn"])) for r in rows]
    assert result["metrics"]["test/dice"] == pytest.approx(np.mean(dice))
    shown = np.load(folder / "overlays.npz")
    assert list(shown["patient"]) == [row["patient"] for row in rows]
    assert shown["image"].shape == (*shown["truth"].shape, 3)


def test_a_cycle_planned_by_epochs_is_run_to_its_end(tmp_path):
    target = "torch.optim.lr_scheduler.OneCycleLR"
    cycle = [f"scheduler._target_={target}", "~scheduler.T_max", "~scheduler.eta_min", "+scheduler.max_lr=0.1"]
    outcome = do(tmp_path, *cycle, "+scheduler.total_steps=${epochs}", "+scheduler.pct_start=0.5", "epochs=4")
    assert outcome.status == "finished", outcome.error
    rates = [json.loads(line)["lr"] for line in (outcome.folder / "history.jsonl").read_text().splitlines()]
    assert rates[:2] == pytest.approx([0.1 / 25, 0.1])
    assert rates[3] == pytest.approx(0.1 / 25 / 1e4)


def test_the_same_configuration_and_seed_give_the_same_numbers_to_the_last_bit(tmp_path):
    augmented = ("augment=affine", "precision=bf16")
    first, second = (do(tmp_path / str(n), *augmented) for n in range(2))
    assert first.metrics == second.metrics
    assert same(weights(first), weights(second))
    other = do(tmp_path / "other", *augmented, "seed=1")
    assert not same(weights(first), weights(other))


def test_a_finished_run_is_answered_and_trained_anew_on_request(tmp_path):
    first = do(tmp_path)
    again = do(tmp_path, "device=cpu", "workers=1")
    assert (again.status, again.folder, again.objective) == ("reused", first.folder, first.objective)
    assert again.metrics == first.metrics
    name = json.loads((first.folder / "run.json").read_text())["name"]
    anew = do(tmp_path, "reuse=false")
    assert (anew.status, anew.objective) == ("finished", first.objective)
    assert json.loads((anew.folder / "run.json").read_text())["name"] == name


@pytest.mark.parametrize("order", [(4, 2, 3), (2, 3, 4)])
def test_shared_epochs_are_the_epochs_of_runs_trained_apart(tmp_path, order):
    together = {n: do(tmp_path / "together", "scheduler=constant", f"epochs={n}", milestones=order) for n in order}
    trained = [n for n in order if together[n].status != "reused"]
    assert trained == ([4] if order[0] == 4 else [2, 3, 4])
    for n in order:
        apart = do(tmp_path / f"apart{n}", "scheduler=constant", f"epochs={n}")
        assert apart.signature == together[n].signature
        assert apart.metrics == together[n].metrics
        assert same(weights(apart), weights(together[n]))
        assert same(weights(apart, "best.pt"), weights(together[n], "best.pt"))
        result = json.loads((together[n].folder / "result.json").read_text())
        rows = (together[n].folder / "history.jsonl").read_text().splitlines()
        assert len(rows) == n
        assert result["training_seconds"] == pytest.approx(sum(json.loads(row)["seconds"] for row in rows))


def test_nothing_is_shared_where_the_schedule_looks_at_the_total(tmp_path):
    statuses = [do(tmp_path, "scheduler=cosine", f"epochs={n}").status for n in (2, 3)]
    assert statuses == ["finished", "finished"]


def test_a_loss_that_is_not_finite_names_the_step_and_can_be_tried_again(tmp_path):
    outcome = do(tmp_path, "optim=sgd", "optim.lr=1e30")
    assert (outcome.status, outcome.failure) == ("failed", "nan")
    assert "of epoch 1" in outcome.error
    failure = json.loads((outcome.folder / "failure.json").read_text())
    assert failure["class"] == "nan"
    assert "Traceback" in failure["traceback"]
    assert not (outcome.folder / "result.json").exists()
    assert do(tmp_path, "optim=sgd", "optim.lr=1e30").status == "failed"


def test_a_wrong_configuration_is_recorded_as_an_error(tmp_path):
    outcome = do(tmp_path, "device=cuda:7") if not torch.cuda.is_available() else do(tmp_path, "batch_size=0")
    assert (outcome.status, outcome.failure) == ("failed", "error")


def test_without_a_validation_part_each_epoch_is_evaluated_on_test_and_named_so(tmp_path):
    outcome = do(tmp_path, "split=holdout")
    history = json.loads((outcome.folder / "history.jsonl").read_text().splitlines()[-1])
    assert "test/dice" in history
    assert not any(key.startswith("val/") for key in history)
    assert history["test/dice"] == pytest.approx(outcome.metrics["test/dice"])
    assert history["test/loss"] == pytest.approx(outcome.metrics["test/loss"])
    assert not (outcome.folder / "best.pt").exists()


def test_the_last_evaluation_is_the_test_and_is_made_again_where_it_was_lost(tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(
        "segsweep.segmentation.task.evaluate", lambda *given, **more: passes.append(1) or evaluate(*given, **more)
    )
    first = do(tmp_path, "split=holdout")
    patients = (first.folder / "patients.csv").read_bytes()
    assert not passes
    for file in ("result.json", "patients.csv"):
        (first.folder / file).unlink()
    again = do(tmp_path, "split=holdout")
    assert (again.metrics, len(passes)) == (first.metrics, 1)
    assert (first.folder / "patients.csv").read_bytes() == patients


def test_the_best_weights_are_those_of_the_best_validation_dice(tmp_path):
    outcome = do(tmp_path, "epochs=5", "optim.lr=0.02")
    rows = [json.loads(line) for line in (outcome.folder / "history.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val/dice"])["epoch"]
    assert torch.load(outcome.folder / "best.pt", weights_only=True)["epoch"] == best


def test_the_best_weights_are_the_same_where_checkpoints_are_rare(tmp_path):
    settings = ["epochs=5", "optim.lr=0.02"]
    often = do(tmp_path / "often", *settings)
    rarely = do(tmp_path / "rarely", *settings, "checkpoint.every=4")
    assert same(weights(often, "best.pt"), weights(rarely, "best.pt"))


def test_damaged_best_weights_are_told_and_not_handed_on(tmp_path, caplog):
    first = do(tmp_path)
    (best,) = (tmp_path / "runs").glob("trajectories/*/best_0002.pt")
    content = best.read_bytes()
    weight = next(v for k, v in weights(first, "best.pt").items() if k.endswith("running_mean")).numpy().tobytes()
    assert content.count(weight) == 1
    best.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    for name in ("result.json", "best.pt"):
        (first.folder / name).unlink()
    again = do(tmp_path)
    assert (again.status, again.metrics) == ("reused", first.metrics)
    assert "the best weights until epoch 2 are lost" in caplog.text
    assert "fails its checksum" in caplog.text
    assert not (again.folder / "best.pt").exists()


def test_failures_are_classed():
    assert classify(torch.OutOfMemoryError("CUDA out of memory")) == "oom"
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert classify(refused.value) == "oom"
    for words in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"):
        assert classify(RuntimeError(f"{words} when calling cublasCreate(handle)")) == "oom"
    assert classify(ValueError("out of memory")) == "error"  # a component's own words
    assert classify(ValueError("x")) == "error"


def test_checkpoints_of_a_gpu_are_written_beside_the_training():
    writer = _writer(torch.device("cuda"))
    with writer:
        threads = {writer.submit(threading.get_ident).result() for _ in range(3)}
    assert len(threads) == 1  # one after another
    assert threads != {threading.get_ident()}
    assert _writer(torch.device("cpu")) is None


def test_clipping_bounds_the_step(tmp_path):
    torch.manual_seed(0)
    start = {key: p.detach() for key, p in UNet(in_channels=3, width=4, depth=2).named_parameters()}

    def moved(outcome: Outcome) -> float:
        return math.sqrt(sum(float((weights(outcome)[key] - p).square().sum()) for key, p in start.items()))

    sgd = ("optim=sgd", "optim.lr=0.01", "epochs=1")
    bound = 0.01 / (1 - 0.9) * 1e-3 * 2  # lr / (1 - momentum) * clip_norm * steps
    assert moved(do(tmp_path, *sgd, "clip_norm=1e-3")) <= bound
    assert moved(do(tmp_path, *sgd)) > 5 * bound


def test_a_finished_record_stays_until_the_run_that_is_trained_anew_is_whole(tmp_path, monkeypatch):
    first = do(tmp_path)
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}

    def crash(*args, **settings):
        raise RuntimeError("in the first epoch")

    with monkeypatch.context() as patch:
        patch.setattr("segsweep.segmentation.task.fit", crash)
        assert do(tmp_path, "reuse=false").status == "failed"
    after = {file.name: file.read_bytes() for file in first.folder.iterdir() if file.is_file()}
    assert after == before
    assert "in the first epoch" in (first.folder / ".anew" / "failure.json").read_text()
    assert do(tmp_path).status == "reused"
    assert do(tmp_path, "reuse=false").status == "finished"
    assert {file.name for file in first.folder.iterdir()} == {*before, "anew.json", "mlflow.json", "mlflow.lock"}
    assert (first.folder / "result.json").read_bytes() != before["result.json"]


def test_a_run_that_is_trained_anew_keeps_nothing_of_one_that_had_not_finished(tmp_path, monkeypatch):
    folder = do(tmp_path).folder
    (folder / "result.json").unlink()

    def crash(*args, **settings):
        raise RuntimeError("in the first epoch")

    monkeypatch.setattr("segsweep.segmentation.task.fit", crash)
    assert do(tmp_path, "reuse=false").status == "failed"
    names = {file.name for file in folder.iterdir()}
    of_mlflow = {"mlflow.json", "mlflow.lock"}
    assert names <= {"run.json", "config.yaml", "split.json", "failure.json", "lock", "anew.json", *of_mlflow}


@pytest.mark.parametrize("damage", [b"", b"half", None])
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_finished_run_with_damaged_weights_is_tested_again(tmp_path, caplog, name, damage):
    first = do(tmp_path)
    kept, file = weights(first, name), first.folder / name
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    file.write_bytes(flipped if damage is None else damage)
    again = do(tmp_path)
    assert again.metrics == first.metrics
    assert same(weights(again, name), kept)
    assert f"{file} is damaged" in caplog.text
    assert "tested again from its last state" in caplog.text
    caplog.clear()
    assert do(tmp_path).status == "reused"
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("record", ["{}", "[]", '{"status": "finished"}', '{"metrics": 3}', "null", ""])
def test_a_result_without_its_keys_is_taken_for_absent(tmp_path, record):
    first = do(tmp_path)
    whole = json.loads((first.folder / "result.json").read_text())
    record = json.dumps(whole | {"metrics": 3}) if record == '{"metrics": 3}' else record
    (first.folder / "result.json").write_text(record)
    again = do(tmp_path)
    assert (again.error, again.metrics) == (None, first.metrics)
    assert json.loads((first.folder / "result.json").read_text())["metrics"] == whole["metrics"]


@pytest.fixture
def module(tmp_path, monkeypatch, allow):
    """`module(NAME, SOURCE)`: one of one's own that may be named, as it is now."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        allow(f"{name}.*")

    return write


def test_what_a_loss_of_ones_own_remembers_goes_on_with_it(tmp_path, module):
    module(
        "loss_of_run",
        "import torch\nfrom torch.nn.functional import binary_cross_entropy_with_logits as bce\n"
        "class Running(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('rare', torch.tensor(1.0))\n"
        "    def forward(self, logits, target):\n"
        "        if logits.requires_grad:\n"
        "            self.rare.mul_(0.9).add_(0.1 / target.mean().clamp(min=0.02))\n"
        "        return bce(logits.float(), target, pos_weight=self.rare)\n",
    )
    asked = ["loss=bce", "loss._target_=loss_of_run.Running", "scheduler=constant"]
    first = do(tmp_path / "one", "epochs=1", *asked)
    assert first.error is None
    longer, fresh = do(tmp_path / "one", "epochs=2", *asked), do(tmp_path / "two", "epochs=2", *asked)
    assert (longer.status, fresh.status) == ("continued", "finished")
    assert same(weights(longer), weights(fresh))


def test_a_task_that_is_given_the_length_shares_no_epochs_with_another_length(tmp_path, module):
    """Its YAML does not say `epochs: ${epochs}`; the constructor takes it from the top all the same."""
    source = (
        "from segsweep.task import Data, Metric, Result, Spec\n"
        "class Once:\n"
        "    spec = Spec(metrics={'loss': Metric(title='Loss', direction='min')}, select='val/loss', epochs=LOOPS)\n"
        "    def __init__(self, *, epochs):\n        self.total = epochs\n"
        "    def data(self):\n        return Data(digest='x', split='y', parts={'train': 1, 'val': 1, 'test': 1})\n"
        "    def train(self, run):\n"
        "        for epoch in run.epochs() if self.spec.epochs else ():\n"
        "            epoch.report({'val/loss': 1 / self.total})\n"
        "        return Result({'val/loss': 1 / self.total, 'test/loss': 1 / self.total})\n"
    )
    for loops in (True, False):
        module("length_of_run", source.replace("LOOPS", str(loops)))
        (tmp_path / "conf" / "task").mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / "task" / "once.yaml").write_text("_target_: length_of_run.Once\n")
        asked = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "task=once"]
        place = tmp_path / str(loops)
        done = [do(place, f"epochs={n}", *asked, tiny=False) for n in (1, 4, 4)]
        assert [outcome.error for outcome in done] == [None] * 3
        assert [outcome.status for outcome in done] == ["finished", "finished", "reused"]
        assert [outcome.metrics["test/loss"] for outcome in done] == [1.0, 0.25, 0.25]


def test_nothing_is_tested_by_best_weights_that_are_damaged(tmp_path):
    asked = "test_weights=best"
    first = do(tmp_path, asked)
    (best,) = (tmp_path / "runs").glob("trajectories/*/best_0002.pt")
    weight = next(v for k, v in weights(first, "best.pt").items() if k.endswith("running_mean")).numpy().tobytes()
    content = best.read_bytes()
    best.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    for name in ("result.json", "best.pt"):
        (first.folder / name).unlink()
    again = do(tmp_path, asked)
    assert again.status == "failed"
    assert "fails its checksum): nothing is tested by it. reuse=false trains anew" in again.error
    assert do(tmp_path, asked, "reuse=false").metrics == first.metrics
