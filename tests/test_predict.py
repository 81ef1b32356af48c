"""Prediction with a trained run: the numbers of its own test, the files it writes, and what it says of bad ones."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_task
from omegaconf import OmegaConf
from PIL import Image
from test_run import do

from segsweep.core import artifacts
from segsweep.core.errors import DataError, SegsweepError
from segsweep.runs.find import find as find_run
from segsweep.runs.identity import recorded
from segsweep.segmentation import predict, predictions
from segsweep.segmentation.data import batches
from segsweep.segmentation.figures import OUTLINES
from segsweep.segmentation.groups import build
from segsweep.segmentation.inputs import Patient, find
from segsweep.segmentation.trained import load


def rows(file: Path) -> dict[str, dict[str, str]]:
    """A table by patient, its cells as they are written."""
    with file.open(newline="") as lines:
        return {row.pop("patient"): row for row in csv.DictReader(lines)}


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A run on phantoms: its folder, and a tree of all its patients' images and masks as files."""
    place = tmp_path_factory.mktemp("predict")
    outcome = do(
        place, "optim.lr=0.01", "loss=tversky", "batch_size=4", "split.test=0.34"
    )  # predicts too much, not nothing
    assert outcome.status == "finished", outcome.error
    data = build("data", OmegaConf.load(outcome.folder / "config.yaml").data)
    manifest = data.scan(place)
    for patient, names in manifest.patients.items():
        folder = place / "tree" / patient
        folder.mkdir(parents=True)
        for name, image, mask in zip(names, *data.decode(manifest, patient), strict=True):
            Image.fromarray(image).save(folder / f"{name}.png")
            Image.fromarray(mask * 255).save(folder / f"{name}_mask.png")
    return outcome.folder, place / "tree"


@pytest.fixture
def tree(made, tmp_path):
    """A copy of the tree that may be broken."""
    return shutil.copytree(made[1], tmp_path / "tree")


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run that may be broken."""
    return shutil.copytree(made[0], tmp_path / "multirun" / "runs" / made[0].name)


def patients(tree: Path) -> list[str]:
    return sorted(folder.name for folder in tree.iterdir())


def images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.stem.endswith("_mask"))


def test_the_numbers_are_those_of_the_runs_own_test_to_the_last_digit(made, tmp_path, capsys):
    folder, tree = made
    tested = rows(folder / "patients.csv")
    assert any(float(row["dice"]) > 0.05 for row in tested.values())
    assert (
        predictions.main([str(folder), *(str(tree / name) for name in reversed(tested)), "--out", str(tmp_path)]) == 0
    )
    found = rows(tmp_path / "predictions.csv")
    assert found.keys() == tested.keys()
    for name, row in tested.items():
        assert {key: found[name][key] for key in row} == row
        assert found[name]["part"] == "test"
        assert found[name]["volume_pixels"] == row["predicted_pixels"]  # the files have the network's size
    assert "32 x 32 pixels, as in training" in capsys.readouterr().out


def test_the_numbers_are_the_same_where_memory_holds_one_patient_at_a_time(made, run, tmp_path, monkeypatch):
    """With scores of `metrics` and without."""
    tree, values = made[1], OmegaConf.load(run / "config.yaml")
    for name, several in (("none", []), ("auc", ["auc"])):
        values.metrics = several
        OmegaConf.save(values, run / "config.yaml")
        for held in (1 << 30, 1):
            monkeypatch.setattr(predict, "HELD", held)
            assert predictions.main([str(run), str(tree), "--out", str(tmp_path / f"{name}{held}")]) == 0
        one, whole = ((tmp_path / f"{name}{held}" / "predictions.csv").read_text() for held in (1, 1 << 30))
        assert one == whole
        assert ("auc" in one) == bool(several)


def test_a_run_trained_in_parts_predicts_in_them_and_in_more_where_memory_is_short(made, run, tmp_path, capsys):
    result = artifacts.read_json(run / "result.json")
    artifacts.write_json(run / "result.json", result | {"micro_batches": 4})  # as after want of memory
    expected = rows(made[0] / "patients.csv")
    tree = made[1]
    trained = load(run)
    taken: list[int] = []
    most = 1 << 30

    def remembered(module, inputs):
        taken.append(len(inputs[0]))
        if taken[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trained.model.register_forward_pre_hook(remembered)
    arguments = {"kind": "tiff", "overlays": False, "device": torch.device("cpu")}
    tested = [tree / name for name in expected]
    found, _ = predictions.predict_files(trained, tested, tmp_path / "a", **arguments)
    slices = sum(row["slices"] for row in found)
    assert taken == [len(part) for part in np.array_split(np.arange(slices), 4)]
    assert [row["tp"] for row in found] == [int(expected[row["patient"]]["tp"]) for row in found]
    most = 1
    again, _ = predictions.predict_files(trained, tested, tmp_path / "b", **arguments)
    assert again == found
    assert taken[-slices:] == [1] * slices
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        predictions.predict_files(trained, tested, tmp_path / "c", **arguments)


def test_real_patients_from_files_to_the_last_digit(tmp_path, lgg):
    overrides = ["data=lgg", f"data.root={lgg}", "data.image_size=32", "model.width=4", "model.depth=2", "epochs=1"]
    overrides += ["optim.lr=0.01", "loss=tversky", "batch_size=4", "split.test=0.375"]
    outcome = do(tmp_path, *overrides, tiny=False)
    assert outcome.status == "finished", outcome.error
    tested = rows(outcome.folder / "patients.csv")
    assert any(float(row["dice"]) > 0.05 for row in tested.values())
    unseen = tmp_path / "archive" / "kaggle_3m"
    for name in tested:
        shutil.copytree(lgg / "kaggle_3m" / name, unseen / name)
    assert predictions.main([str(outcome.folder), str(unseen.parent), "--out", str(tmp_path / "out")]) == 0
    found = rows(tmp_path / "out" / "predictions.csv")
    assert {name: {key: found[name][key] for key in row} for name, row in tested.items()} == tested
    for name, row in found.items():
        masks = [pixels(file) for file in (tmp_path / "out" / name).iterdir()]
        assert {mask.shape for mask in masks} == {(256, 256)}
        assert {int(value) for mask in masks for value in np.unique(mask)} <= {0, 255}
        assert sum((mask > 0).sum() for mask in masks) == int(row["volume_pixels"])
        assert int(row["volume_pixels"]) == 64 * int(row["predicted_pixels"])  # each pixel became 8 x 8


def test_best_weights_are_other_weights(made, tmp_path):
    folder, tree = made
    assert predictions.main([str(folder), str(tree), "--out", str(tmp_path), "--weights", "best"]) == 0
    about = json.loads((tmp_path / "predictions.json").read_text())
    epoch = torch.load(folder / "best.pt", weights_only=True)["epoch"]
    assert (about["run"], about["weights"], about["epoch"]) == (folder.name, "best", epoch)


def test_patients_of_the_training_are_said_to_be(made, tmp_path, capsys):
    folder, tree = made
    assert predictions.main([str(folder), str(tree), "--out", str(tmp_path)]) == 0
    split = json.loads((folder / "split.json").read_text())
    parts = {name: row["part"] for name, row in rows(tmp_path / "predictions.csv").items()}
    assert parts == {name: part for part in ("train", "val", "test") for name in split[part]}
    seen = len(split["train"]) + len(split["val"])
    assert f"{seen} of 6 patients were in this run's training or validation" in capsys.readouterr().out


def test_masks_have_the_size_and_the_format_asked_for_and_overlays_both_outlines(made, tree, tmp_path):
    folder = tree / patients(tree)[0]
    for file in folder.iterdir():
        with Image.open(file) as image:
            wide = image.resize((75, 50), Image.Resampling.NEAREST)
        wide.save(file)
    out = tmp_path / "out"
    assert predictions.main([str(made[0]), str(folder), "--out", str(out), "--format", "png", "--overlays"]) == 0
    names = [file.stem for file in images(folder)]
    assert {file.name for file in (out / folder.name).iterdir()} == {
        f"{name}{kind}" for name in names for kind in ("_mask.png", "_overlay.png")
    }
    masks, overlays = (
        np.stack([pixels(out / folder.name / f"{n}_{k}.png") for n in names]) for k in ("mask", "overlay")
    )
    assert masks.shape == (len(names), 50, 75)
    assert overlays.shape == (len(names), 50, 75, 3)
    for kind in ("truth", "prediction"):
        drawn = (overlays == OUTLINES[kind]).all(axis=-1)
        assert drawn.any(), kind
    assert not (drawn & (masks == 0)).any()  # the last of the two is the prediction's, inside its mask


def test_a_mask_is_scaled_to_the_nearest_pixel():
    mask = np.array([[True, False], [False, True]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert predict.at_size(mask, (3, 4))[[0, 2]].tolist() == [[bool(v) for v in expected[k]] for k in (0, 2)]
    assert predict.at_size(mask, (3, 4)).shape == (3, 4)


def test_without_truth_there_are_volumes_and_no_metrics(made, tree, tmp_path, capsys):
    folder = tree / patients(tree)[0]
    for file in folder.glob("*_mask.png"):
        file.unlink()
    assert predictions.main([str(made[0]), str(folder), "--out", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out" / "predictions.csv").values()
    assert set(row) == {"part", "slices", "volume_pixels"}
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert predictions.main([str(made[0]), str(elsewhere), "--out", str(tmp_path / "other")]) == 0
    assert {row["part"] for row in rows(tmp_path / "other" / "predictions.csv").values()} == {"new"}
    assert "Dice" not in capsys.readouterr().out


def test_a_patients_name_is_no_formula_in_the_table(made, tree, tmp_path, capsys):
    (tree / patients(tree)[0]).rename(tree / "=1+1")
    assert predictions.main([str(made[0]), str(tree / "=1+1"), "--out", str(tmp_path / "out")]) == 0
    assert list(rows(tmp_path / "out" / "predictions.csv")) == ["'=1+1"]


def test_files_given_one_by_one_are_said_to_be_normalised_among_themselves(made, tmp_path, capsys):
    folder, tree = made
    file = images(tree / patients(tree)[0])[3]
    assert predictions.main([str(folder), str(file), "--out", str(tmp_path)]) == 0
    assert (tmp_path / file.parent.name / f"{file.stem}_mask.tif").exists()
    assert "here over the files given" in capsys.readouterr().out
    assert predictions.main([str(folder), str(file.parent), "--out", str(tmp_path)]) == 0
    assert "here over the files given" not in capsys.readouterr().out


def grey(file: Path) -> None:
    Image.fromarray(pixels(file)[..., 0]).save(file)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def text(file: Path) -> None:
    file.write_text("not an image")


def deep(file: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(file.with_suffix(".tif"))
    file.with_suffix(".tif").rename(file)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (grey, "found 1 channel; the run was trained on images of 3"),
        (truncated, "truncated, or not an image"),
        (text, "truncated, or not an image"),
        (deep, "pixels of type float32"),
    ],
)
def test_a_bad_file_is_named_and_the_others_are_predicted(made, tree, tmp_path, capsys, spoil, said):
    first, *others = patients(tree)
    bad, *good = images(tree / first)
    spoil(bad)
    out = tmp_path / "out"
    assert predictions.main([str(made[0]), str(tree), "--out", str(out)]) == 1
    shown = capsys.readouterr().err
    (line,) = shown.splitlines()
    assert line.startswith(f"Error: {bad}: ")
    assert said in line
    assert {file.name for file in (out / first).iterdir()} == {f"{file.stem}_mask.tif" for file in good}
    table = rows(out / "predictions.csv")
    assert table.keys() == {first, *others}
    assert int(table[first]["slices"]) == len(good)
    assert json.loads((out / "predictions.json").read_text())["problems"] == [line.removeprefix("Error: ")]


def test_a_patient_without_a_usable_slice_and_paths_that_are_not_there(made, tree, tmp_path, capsys):
    first, second, *_ = patients(tree)
    for file in images(tree / first):
        text(file)
    (tmp_path / "empty").mkdir()
    given = [tree / first, tree / second, tmp_path / "empty", tmp_path / "nowhere"]
    assert predictions.main([str(made[0]), *map(str, given), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert f"patient {first}: none of its 8 slices can be used" in shown
    assert f"{tmp_path / 'empty'}: no image in it" in shown
    assert f"{tmp_path / 'nowhere'}: no such file or folder" in shown
    assert list(rows(tmp_path / "out" / "predictions.csv")) == [second]
    assert predictions.main([str(made[0]), str(tmp_path / "nowhere"), "--out", str(tmp_path / "none")]) == 1
    assert not (tmp_path / "none" / "predictions.csv").exists()


@pytest.mark.parametrize("values", [tuple(range(256)), (0, 2, 3), (0, 1, 2), (2,), (0, 3)])
def test_a_bad_mask_costs_the_metrics_of_its_patient_alone(made, tree, tmp_path, capsys, values):
    first, second, *_ = patients(tree)
    mask = images(tree / first)[2]
    mask = mask.with_name(f"{mask.stem}_mask.png")
    Image.fromarray(np.resize(np.array(values, np.uint8), (32, 32))).save(mask)
    out = tmp_path / "out"
    assert predictions.main([str(made[0]), str(tree / first), str(tree / second), "--out", str(out)]) == 1
    shown = capsys.readouterr().err
    assert f"{mask}: a mask with the values {', '.join(map(str, values[:4]))}" in shown
    table = rows(out / "predictions.csv")
    assert (table[first]["dice"], table[first]["slices"]) == ("", "8")
    assert table[second]["dice"] != ""
    assert len(list((out / first).iterdir())) == 8


def test_a_patient_with_some_masks_has_no_metrics(made, tree, tmp_path, capsys):
    first = patients(tree)[0]
    mask = next((tree / first).glob("*_mask.png"))
    mask.unlink()
    assert predictions.main([str(made[0]), str(tree / first), "--out", str(tmp_path / "out")]) == 1
    assert f"patient {first}: no metrics, since there is no mask of" in capsys.readouterr().err
    assert "dice" not in next(iter(rows(tmp_path / "out" / "predictions.csv").values()))


@pytest.mark.parametrize("place", [".", "first/out", "beside"])
def test_nothing_that_is_read_is_overwritten(made, tree, capsys, place):
    first = patients(tree)[0]
    before = {file: file.read_bytes() for file in tree.rglob("*.png")}
    out = tree / place.replace("first", first)
    given = [str(tree)] if place == "beside" else [str(tree / first)]
    assert predictions.main([str(made[0]), *given, "--out", str(out), "--format", "png"]) == 1
    assert "give another folder" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tree.rglob("*.png")} == before


def spoil_checkpoint(kind: str, run: Path) -> None:
    file = run / "last.pt"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif kind == "one bit":
        content = bytearray(file.read_bytes())
        content[content.index(torch.load(file)["model"]["head.weight"].numpy().tobytes())] ^= 1
        file.write_bytes(content)
    elif kind == "code":
        torch.save({"epoch": 1, "model": Path("x")}, file)
    elif kind == "other keys":
        torch.save({"state_dict": {}}, file)
    elif kind == "other network":
        state = torch.load(file, weights_only=True)
        del state["model"]["head.bias"]
        state["model"]["tail.bias"] = torch.zeros(1)
        torch.save(state, file)
    elif kind == "other argument":
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("depth: 2", "levels: 2"))


@pytest.mark.parametrize(
    ("kind", "named", "said"),
    [
        ("truncated", "last.pt", "damaged, or not a checkpoint"),
        ("one bit", "last.pt", "fails its checksum. The run's own command (in run.json) mends"),
        ("code", "last.pt", "damaged, or not a checkpoint"),
        ("other keys", "last.pt", "expected the keys epoch and model"),
        ("other network", "last.pt", "head.bias"),
        ("other argument", "", "levels"),
    ],
)
def test_a_checkpoint_of_another_version_is_named_with_both_versions(made, run, tmp_path, capsys, kind, named, said):
    info = json.loads((run / "run.json").read_text())
    info["versions"]["segsweep"] = "0.0.7"
    artifacts.write_json(run / "run.json", info)
    spoil_checkpoint(kind, run)
    assert predictions.main([str(run), str(made[1]), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert str(run / named) in shown
    assert said in shown
    assert "made by segsweep 0.0.7" in shown
    assert "this is segsweep" in shown
    assert not (tmp_path / "out").exists()


def test_the_record_of_anybodys_run_looks_nothing_up(run, monkeypatch):
    monkeypatch.setenv("TOKEN", "4")
    text = (run / "config.yaml").read_text()
    assert text.count("  width: 4\n") == 1
    (run / "config.yaml").write_text(text.replace("  width: 4\n", "  width: ${oc.env:TOKEN}\n"))
    with pytest.raises(SegsweepError, match=r"width: \$\{oc\.env:TOKEN\}: a run's record has values"):
        load(run)


@pytest.mark.parametrize("key", ["masks", "roi", "axis"])
@pytest.mark.parametrize("value", ["../*.png", "/etc/*"])
def test_a_runs_record_has_no_images_looked_for_elsewhere(key, value, tmp_path):
    with pytest.raises(DataError, match=f"data.{key}={re.escape(value)}, in the run's config.yaml: "):
        find([tmp_path], {"_target_": "segsweep.segmentation.data.folder.Folder", key: value})


def test_a_run_with_a_network_of_ones_own_says_how_it_is_allowed(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("segsweep.segmentation.models.unet.UNet", "mynets_of_test.Net"))
    with pytest.raises(SegsweepError, match=r"mynets_of_test\.Net: not allowed.*set SEGSWEEP_ALLOW=package\.\* in"):
        load(run)


@pytest.mark.parametrize("found", ["a text", 3, ["a"], None])
def test_a_record_that_is_damaged_where_it_says_who_made_it_is_refused_in_a_sentence(run, found):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"versions": found, "places": found, "signature": "x"}))
    (run / "last.pt").write_bytes(b"")
    with pytest.raises(SegsweepError, match="made by segsweep of unknown version"):
        load(run)
    with pytest.raises(SegsweepError, match=r"its signature does not follow.*\(of unknown version\)"):
        recorded(run)


@pytest.mark.parametrize("found", ["a text", 3])
def test_a_record_whose_places_are_damaged_is_refused_in_a_sentence(run, found):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"places": found}))
    with pytest.raises(SegsweepError, match="its signature does not follow from its record, which is damaged"):
        recorded(run)


def test_what_a_run_lacks_is_said(made, run, tmp_path, capsys):
    (run / "best.pt").unlink()
    assert predictions.main([str(run), str(made[1]), "--out", str(tmp_path / "out"), "--weights", "best"]) == 1
    assert "best.pt: no such checkpoint; there is --weights last" in capsys.readouterr().err
    (run / "last.pt").rename(run / "kept.pt")
    with pytest.raises(SegsweepError, match=r"last\.pt: .*: the run is finished, and its weights are neither here nor"):
        load(run, "last")
    (run / "kept.pt").rename(run / "last.pt")
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(SegsweepError, match="config.yaml: cannot be read"):
        load(run)
    (run / "run.json").unlink()
    with pytest.raises(SegsweepError, match="run.json: missing or damaged"):
        load(run)


def test_a_run_is_found_by_folder_job_and_signature(run, tmp_path):
    root = tmp_path / "multirun"
    for signature in ("0123aaaaaaaaaaaa", "0123bbbbbbbbbbbb"):
        artifacts.write_json(root / "runs" / signature / "run.json", {})
    artifacts.write_json(root / "s" / "0" / "job.json", {"number": 0, "run": f"../../runs/{run.name}"})
    artifacts.write_json(root / "s" / "sweep.json", {"name": "s"})
    for reference in (str(run), run.name, run.name[:6], str(root / "s" / "0")):
        assert find_run(reference, root)[0].resolve() == run.resolve()
    assert find_run("0123b", root)[0].name == "0123bbbbbbbbbbbb"
    for reference, said in {
        "0123": "0123aaaaaaaaaaaa, 0123bbbbbbbbbbbb",
        "0123aaaaaaaaaaab": "did you mean 0123aaaaaaaaaaaa",
        str(root / "s"): f"its best run is best:{root / 's'}",
        str(tmp_path): "no run.json in it",
        "best:t": "no such sweep",
        "models:/name": "expected models:/NAME/VERSION",
    }.items():
        with pytest.raises(SegsweepError, match=said.replace("[", r"\[")):
            find_run(reference, root)


def sweep_of(root: Path, *jobs: tuple[str, str, float]) -> None:
    """A sweep `s` of finished runs: (signature, evaluated on, objective)."""
    artifacts.write_json(root / "s" / "sweep.json", {"name": "s"})
    for number, (signature, part, objective) in enumerate(jobs):
        artifacts.write_json(
            root / "s" / str(number) / "job.json", {"number": number, "run": f"../../runs/{signature}"}
        )
        artifacts.write_json(root / "runs" / signature / "run.json", {"evaluated_on": part})
        metrics = {"test/dice": 1 - objective}
        result = {"status": "finished", "objective": objective, "metrics": metrics}
        artifacts.write_json(root / "runs" / signature / "result.json", result)


@pytest.mark.parametrize("reference", ["best:s", "best:{root}/s"])
def test_the_best_of_a_sweep_is_chosen_by_validation_never_by_test(tmp_path, reference):
    sweep_of(tmp_path, ("aa", "val", 0.6), ("bb", "val", 0.7), ("cc", "test", 0.9))
    artifacts.write_json(tmp_path / "s" / "3" / "job.json", {"number": 3, "run": None})
    folder, why = find_run(reference.format(root=tmp_path), tmp_path)
    assert folder.name == "bb"
    assert "validation Dice, 0.7000 (of its best epoch: --weights best), of 2 finished runs" in why
    assert "1 without a validation part" in why


def test_runs_of_two_tasks_have_no_common_best(tmp_path):
    sweep_of(tmp_path, ("aa", "val", 0.6), ("bb", "val", 0.7))
    task = toy_task.Line.spec.to_json()
    artifacts.write_json(tmp_path / "runs" / "bb" / "run.json", {"evaluated_on": "val", "task": task})
    several = r"of several tasks \(val/dice of a patient and val/rmse of a point\)"
    with pytest.raises(SegsweepError, match=several):
        find_run("best:s", tmp_path)


def test_a_sweep_without_validation_has_no_best(tmp_path):
    sweep_of(tmp_path, ("aa", "test", 0.6))
    with pytest.raises(SegsweepError, match="1 of them have only a test part.*split.val"):
        find_run("best:s", tmp_path)


def test_files_of_a_folder_data_set_are_grouped_by_its_own_expression(tmp_path):
    data = {"images": "images/*.png", "masks": "masks/*.png", "patient": r"(?P<patient>[^/]+)_(?P<slice>\d+)\.png$"}
    for folder, names in {"images": ["a_2", "a_10", "b_1"], "masks": ["a_2", "a_10"], "other": ["c_1"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.png").touch()
    found, problems = find([tmp_path], data)
    assert problems == []
    assert {name: [(s.name, s.truth and s.truth.parent.name) for s in slices] for name, slices in found.items()} == {
        "a": [("2", "masks"), ("10", "masks")],
        "b": [("1", None)],
    }
    plain, _ = find([tmp_path], {})
    assert sorted(plain) == ["images", "masks", "other"]


def test_a_mask_lies_beside_its_image_and_is_never_an_image(tmp_path):
    for name in ("p/x_1.tif", "p/x_1_mask.tif", "p/x_2.tif", "q/y.png", "q/deeper/z.png", "q/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, problems = find([tmp_path], {})
    assert problems == []
    assert {name: [s.file.name for s in slices] for name, slices in found.items()} == {
        "p": ["x_1.tif", "x_2.tif"],
        "q": ["y.png"],
        "q/deeper": ["z.png"],
    }
    assert [s.truth for s in found["p"]] == [tmp_path / "p/x_1_mask.tif", None]
    given = sorted((tmp_path / "p").iterdir())  # as a shell's *.tif gives them
    assert find([given[0], *given], {})[0] == {"p": found["p"]} or find(given, {})[0]["p"] == found["p"]


def test_two_patients_of_one_name_and_two_images_of_one_name_are_not_mixed(tmp_path):
    for name in ("a/p/1.png", "b/p/1.png", "c/1.png", "c/1.tif", "c/2.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, problems = find([tmp_path / "a/p", tmp_path / "b/p", tmp_path / "c"], {})
    assert {name: [s.file for s in slices] for name, slices in found.items()} == {
        "p": [tmp_path / "a/p/1.png"],
        "c": [tmp_path / "c/2.tif"],
    }
    assert [str(tmp_path / "b/p/1.png") in problems[0], "another patient is called p" in problems[0]] == [True, True]
    assert len(problems) == 3


def test_memory_and_shape_bound_what_is_predicted_together(monkeypatch):
    def patient(name: str, slices: int, side: int) -> Patient:
        return Patient(name, [], np.zeros((slices, side, side, 3), np.uint8), None, [], np.zeros(0))

    monkeypatch.setattr(predict, "HELD", 10 * 8 * 8 * 3)
    given = [patient("a", 4, 8), patient("b", 6, 8), patient("c", 1, 8), patient("d", 1, 4), patient("e", 40, 4)]
    assert [[p.name for p in group] for group in predict.groups(given)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_each_group_gets_the_masks_of_its_own_images_where_a_device_keeps_them(made, monkeypatch):
    """As on a GPU, which keeps the images of one key, where a group's arrays lie where those of the last one did."""
    folder, tree = made
    trained = load(folder)
    decoded = [np.stack([pixels(file) for file in images(tree / name)]) for name in patients(tree)]
    several = [*decoded[:3], *(array[:, :16, 8:] for array in decoded[3:5]), decoded[5]]
    given = [
        Patient(str(k), [], array, None, [], np.zeros(array.shape[:3], np.uint8)) for k, array in enumerate(several)
    ]
    monkeypatch.setattr(predict, "HELD", decoded[0].nbytes)
    device = torch.device("cpu", 0)

    def masks() -> Iterator[np.ndarray]:
        return (predict.predict(trained, group, device)[0] for group in predict.groups(given))

    expected = list(masks())
    assert [len(found) for found in expected] == [8, 8, 8, 16, 8]
    assert len({(found.shape, found.tobytes()) for found in expected}) == len(expected)  # wrong ones would be seen
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 40, 1 << 40))
    monkeypatch.setattr(batches, "_on_gpu", kept := {})
    monkeypatch.setattr(batches.Batches, "resident", lambda self: batches._upload(self.volumes, self.device))
    monkeypatch.setattr(predict, "id", lambda _: 0, raising=False)
    for found, right in zip(masks(), expected, strict=True):
        np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(kept[device][1], several[-1])


@pytest.mark.parametrize("node", [{"masks": "*_mask.png"}, {"patient": "1"}, {"patient": "("}, {"patient": ["a"]}])
def test_keys_of_a_data_set_of_ones_own_may_mean_something_else(tmp_path, node):
    (tmp_path / "p").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "p" / "1.png")
    found, problems = find([tmp_path], {"_target_": "my.Set", **node})
    assert (list(found), problems) == (["p"], [])
