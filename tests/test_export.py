"""Exports of a trained run: held against the original, and loaded where there is nothing of this program."""

import importlib.util
import json
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from test_run import do

from segsweep.core.errors import SegsweepError
from segsweep.segmentation import export, predictions
from segsweep.segmentation.models.r2unet import R2UNet
from segsweep.segmentation.models.unet import UNet
from segsweep.segmentation.trained import load


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    outcome = do(tmp_path_factory.mktemp("export"), "epochs=1")
    assert outcome.status == "finished", outcome.error
    return outcome.folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs" / made.name)


@pytest.mark.parametrize("network", [UNet, R2UNet])
def test_a_program_takes_any_number_of_slices(network):
    torch.manual_seed(0)
    model = network(width=4, depth=2).eval()
    program = export.to_program(model, torch.randn(1, 3, 16, 24)).module()
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 16, 24)
        assert torch.equal(program(x), model(x))


def test_slices_to_check_with_are_those_of_the_record_normalised(made):
    x, source = export.slices(load(made))
    with np.load(made / "overlays.npz") as file:
        assert len(x) == len(file["image"])
    assert source == f"{len(x)} slices of the run's test"
    assert x.shape[1:] == (3, 32, 32)
    assert x.mean((2, 3)).abs().max() < 1e-5
    assert (x.std((2, 3), correction=0) - 1).abs().max() < 1e-5


def test_without_slices_the_check_is_on_noise_and_says_so(run):
    (run / "overlays.npz").unlink()
    x, source = export.slices(load(run))
    assert x.shape == (4, 3, 32, 32)
    assert "noise" in source


def test_a_difference_is_measured_and_refused_above_the_tolerance():
    logits = np.array([[[[-2.0, 0.00001, 5.0]]]])
    found = export.difference("x", logits, np.array([[[[-2.0, -0.00001, 5.0004]]]]))
    assert found == {"difference": pytest.approx(4e-4), "allowed": 5e-4, "changed_pixels": 1, "pixels": 3}
    for wrong in (5.0006, np.nan):
        with pytest.raises(SegsweepError, match="^x: its logits differ.*allowed are 0.0005"):
            export.difference("x", logits, np.array([[[[-2.0, 0.00001, wrong]]]]))


def test_an_export_that_differs_is_not_kept(made, tmp_path, monkeypatch, capsys):
    program = export.to_program
    other = UNet(width=4, depth=2).eval()
    monkeypatch.setattr(export, "to_program", lambda model, x: program(other, x))
    assert export.main([str(made), "--out", str(tmp_path)]) == 1
    assert "model.pt2: its logits differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command(made, tmp_path, monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else there(name, *a)
    )
    assert export.main([str(made), "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "largest difference of the logits" in shown.out
    assert "onnxruntime is not installed" in shown.err
    assert "-m pip install onnx onnxruntime onnxscript" in shown.err
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_a_full_disk_is_a_line_and_leaves_nothing(made, tmp_path):
    """In a process of its own, which torch's writer would end."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); from segsweep import export; "
    words = [sys.executable, "-c", f"{limit}raise SystemExit(export.main())", str(made), "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "[Errno 27] File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_is_a_message(tmp_path, capsys):
    assert export.main(["0123", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "0123: no such run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


ELSEWHERE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("segsweep", "torch", "onnxscript", "hydra"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
print(model.metadata.signature)
x = np.load(sys.argv[3])
np.save(sys.argv[4], np.concatenate([model.predict(x[:1])["logits"], model.predict(x[1:])["logits"]]))
try:
    model.predict(np.zeros((1, 4, 32, 32), np.float32))
except mlflow.exceptions.MlflowException as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_files_and_registered_model_give_the_networks_logits_where_nothing_of_it_is(run, tmp_path, monkeypatch, capsys):
    """One test, for the export to ONNX and MLflow's store take their seconds each time."""
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    out, name = tmp_path / "out", run.name
    try:
        assert export.main([str(run), "--out", str(out), "--register", "brains"]) == 0
    finally:
        mlflow.set_tracking_uri(None)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which that line takes out
    shown = capsys.readouterr().out
    assert "model.onnx: largest difference of the logits" in shown
    assert "Registered as models:/brains/1" in shown
    about = json.loads((out / "model.json").read_text())
    assert about["model.onnx"]["difference"] <= about["model.onnx"]["allowed"]
    assert about["run"] == name

    trained = load(run)
    x, _ = export.slices(trained)
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = (uri, "models:/brains/1", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    command = [sys.executable, "-I", "-c", ELSEWHERE, *arguments]
    there = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert there.returncode == 0, there.stderr
    assert "(-1, 3, 32, 32)" in there.stdout
    assert "refused:" in there.stdout
    with torch.inference_mode():
        expected = trained.model(x).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=export.TOLERANCE)

    (model,) = (tmp_path / "mlruns").rglob("MLmodel")
    needed = {line.split("==")[0] for line in (model.parent / "requirements.txt").read_text().split()}
    assert needed == {"mlflow", "numpy", "onnx", "onnxruntime"}
    assert (model.parent / "input_example.json").exists()

    images = tmp_path / "p"
    images.mkdir()
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(images / "1.png")
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    for place in ("there", "gone"):
        for reference in ("models:/brains/1", "models:/brains/latest", run_id):
            masks = tmp_path / place / reference.replace("/", "_")
            assert predictions.main([reference, str(images), "--out", str(masks)]) == 0
            used = json.loads((masks / "predictions.json").read_text())
            assert used["run"] == name
            assert (used["folder"] == str(run)) == (place == "there")
        shutil.rmtree(run, ignore_errors=True)  # MLflow's copy is enough
    refusals = {"models:/brains/7": "brains", "models:/no/latest": "no registered model", "0" * 32: "no such run"}
    for reference, said in refusals.items():
        assert predictions.main([reference, str(images), "--out", str(tmp_path / "none")]) == 1
        assert said in capsys.readouterr().err
