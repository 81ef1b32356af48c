"""Regions of interest: what lies outside one decides nothing, from the files to the report."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from test_classes import table
from test_run import TINY, do, same

from segsweep.config.schema import conf_dir
from segsweep.core.signature import at_rest
from segsweep.report import __main__ as report
from segsweep.segmentation import export, predictions
from segsweep.segmentation.data import cache, images
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.folder import Folder
from segsweep.segmentation.data.labels import OUTSIDE, VOID, labels
from segsweep.segmentation.metrics import SPEC

PATIENTS, HEIGHT, WIDTH = 6, 40, 36


def write(root, outside: int | None = None, values=(0, 255)) -> None:
    """Two slices a patient: a bar to be found in a disc, which is the region; outside it black and empty, or, with a
    seed, any pixel and any label."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = np.hypot(y - HEIGHT / 2 + 0.5, x - WIDTH / 2 + 0.5) < 16
    anything = None if outside is None else np.random.default_rng(outside)
    for n in range(2 * PATIENTS):
        rng = np.random.default_rng(n)
        bar = (abs(y - rng.integers(12, 28)) < 4) & (abs(x - WIDTH // 2) < 10)
        image = np.where(bar, 170, 60)[..., None] + rng.normal(0, 20, (HEIGHT, WIDTH, 3))
        image = np.where(inside[..., None], image, 0).clip(0, 255).astype(np.uint8)
        mask = np.where(bar & inside, *values[::-1]).astype(np.uint8)
        if anything:
            image[~inside] = anything.integers(0, 256, (int((~inside).sum()), 3))
            mask[~inside] = anything.integers(0, 256, int((~inside).sum()))
        for folder, array in (("images", image), ("masks", mask), ("field", inside.astype(np.uint8) * 255)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"p{n // 2}_{n % 2}.png")


FOLDER = ["data=folder", "data.image_size=null", "data.roi='field/*'", "optim.lr=0.02", "batch_size=2", "epochs=4"]
CASES = {
    "binary": ([], (0, 255)),
    "percentile": (["data.normalise=percentile", "augment=affine", "loss=dice"], (0, 1)),
    "resized": (["data.image_size=24", "augment=flips"], (0, 255)),
    "crops": (["data.patch=16", "batch_size=8", "augment=affine"], (0, 255)),
    "classes": (["data.classes=[background:10,bar:20]", "loss.weights=inverse"], (10, 20)),
}


def train(place, root, *overrides):
    tiny = [o for o in TINY if not o.startswith("data.")]
    outcome = do(place, *tiny, *FOLDER, f"data.root={root}", *overrides, tiny=False)
    assert outcome.status == "finished", outcome.error
    return outcome


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("field") / "data"
    write(place)
    return place


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    return train(tmp_path_factory.mktemp("regions"), root, "epochs=8").folder


def plain(content):
    """Without what differs from run to run: seconds, and what the run and its files are called by."""
    if isinstance(content, dict):
        names = ("second", "digest", "created", "signature", "group", "trajectory", "memory", "root", "ended", "folder")
        return {k: plain(v) for k, v in content.items() if not any(name in k for name in names)}
    return content


def recorded(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()
    whole = [json.loads((folder / name).read_text()) for name in ("run.json", "result.json", "split.json")]
    return [plain(content) for content in [*map(json.loads, lines), *whole]]


@pytest.mark.parametrize("case", CASES)
def test_every_pixel_and_label_outside_may_change_and_nothing_else_does(case, tmp_path):
    overrides, values = CASES[case]
    one, other = tmp_path / "one", tmp_path / "other"
    for place, outside in ((one, None), (other, 7)):
        write(place / "data", outside, values)
        train(place, place / "data", *overrides).folder.rename(place / "run")
    mine, yours = recorded(one / "run"), recorded(other / "run")
    assert mine == yours
    assert max(line["val/dice"] for line in mine if "val/dice" in line) > 0.5  # it learns, and not from nothing
    assert (one / "run" / "patients.csv").read_bytes() == (other / "run" / "patients.csv").read_bytes()
    assert same(*(torch.load(place / "run" / "last.pt")["model"] for place in (one, other)))
    # What is left of a report are the pictures: with the same seconds and names it is the same to the byte.
    pages = []
    for place in (one, other):
        for name in ("run.json", "result.json", "history.jsonl", "config.yaml"):
            (place / "run" / name).write_bytes((one / "run" / name).read_bytes())
        (place / "run").rename(tmp_path / "run")
        assert report.main([str(tmp_path / "run"), "--out", str(place / "page")]) == 0
        (tmp_path / "run").rename(place / "run")
        pages.append({f.relative_to(place): f.read_bytes() for f in (place / "page").rglob("*") if f.is_file()})
    assert pages[0].keys() == pages[1].keys()
    for page in pages:  # and the minute in which it was made
        for name in (Path("page/report.html"), Path("page/report.md")):
            page[name], found = re.subn(rb"Made [-0-9]+ [0-9:]+ from", b"", page[name])
            assert found == 1
    assert [str(name) for name in pages[0] if pages[0][name] != pages[1][name]] == []
    assert b"region of interest" in pages[0][Path("page/report.html")]


def test_what_lies_outside_is_void_and_in_no_count(made, root):
    info = json.loads((made / "run.json").read_text())
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    outside = int((np.hypot(y - HEIGHT / 2 + 0.5, x - WIDTH / 2 + 0.5) >= 16).sum())
    assert info["data"]["void"] == 2 * PATIENTS * outside
    for row in table(made / "patients.csv"):
        assert sum(int(row[key]) for key in ("tp", "fp", "fn", "tn")) == 2 * (HEIGHT * WIDTH - outside)
    with np.load(made / "overlays.npz") as kept:
        assert not kept["prediction"][:, 0, 0].any()


def test_the_statistics_are_those_of_the_region(tmp_path, root):
    known = Folder(
        root=str(root), images="images/*", masks="masks/*", roi="field/*", image_size=None, normalise="zscore",
        patient=r"(?P<patient>\w+)_(?P<slice>\d+)", model_width=4,
    )  # fmt: skip
    volumes = cache.load(known, known.scan(tmp_path), tmp_path, 1)
    inside = volumes.masks != OUTSIDE
    values = volumes.images[:2][inside[:2]].astype(float)
    np.testing.assert_allclose(volumes.shift[0], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(1 / volumes.scale[0], values.std(0), rtol=1e-6)
    ((x, y, _),) = Batches(volumes, np.arange(2), batch_size=2, device="cpu").epoch(0)
    assert not x.movedim(1, -1)[torch.from_numpy(~inside[:2])].any()
    assert (y[:, 0].numpy()[~inside[:2]] == VOID).all()


def test_a_region_smaller_than_the_grid_of_large_images_has_statistics():
    pixels = np.random.default_rng(0).integers(0, 255, (1, 200, 200, 1), np.uint8)
    masks = np.full((1, 200, 200), OUTSIDE, np.uint8)
    masks[0, 4, 4:8] = 0  # no row of the grid of every third
    assert cache.statistics(pixels, masks)[0, 0] == pytest.approx(pixels[0, 4, 4:8].mean())


def test_the_area_mean_is_over_what_lies_in_the_region():
    grey = np.array([[10, 20, 7, 7], [30, 99, 7, 7], [5, 5, 5, 5], [5, 5, 5, 5]], np.uint8)[..., None]
    region = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], bool)
    assert images.resize(grey, 2, region)[..., 0].tolist() == [[20, 0], [5, 5]]
    small, codes = images.sized(grey, np.array([1, 0, 1, 0, 1, 1, 0, 1, 1], np.uint8), 2, labels(None), region, "m")
    assert codes.tolist() == [[1, OUTSIDE], [1, 1]]  # the lower left is half inside, and half of that 1
    assert small[..., 0].tolist() == [[20, 0], [5, 5]]


def test_a_run_with_a_region_predicts_its_tests_numbers_and_nothing_outside(made, root, tmp_path, capsys):
    assert predictions.main([str(made), str(root), "--out", str(tmp_path), "--overlays", "--format", "png"]) == 0
    tested, found = (
        {row["patient"]: row for row in table(file)} for file in (made / "patients.csv", tmp_path / "predictions.csv")
    )
    for name, row in tested.items():
        assert {key: found[name][key] for key in row} == row
        assert found[name]["volume_pixels"] == row["predicted_pixels"]
    for file in tmp_path.rglob("*_mask.png"):
        inside = np.asarray(Image.open(root / "field" / file.name.replace("_mask", ""))) > 0
        assert not np.asarray(Image.open(file))[~inside].any()
    assert export.main([str(made), "--out", str(tmp_path / "exported")]) == 0
    assert "0 outside the region of interest" in json.loads((tmp_path / "exported" / "model.json").read_text())["input"]


def test_an_image_to_predict_without_its_region_is_named_and_the_others_are_predicted(made, root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "field" / "p0_0.png").unlink()
    assert predictions.main([str(made), str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "images/p0_0.png: no file of its region of interest, outside which the run counts nothing" in line
    assert len(list((tmp_path / "out").rglob("*_mask.tif"))) == 2 * PATIENTS - 1


def empty(field):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(field / "p1_0.png")


def grey(field):
    Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)).save(field / "p1_0.png")


def smaller(field):
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(field / "p1_0.png")


def a_dot(field):
    dot = np.zeros((HEIGHT, WIDTH), np.uint8)
    dot[3, 3] = 255
    Image.fromarray(dot).save(field / "p1_0.png")


@pytest.mark.parametrize(
    ("spoil", "overrides", "says"),
    [
        (
            empty,
            [],
            r"field/p1_0\.png: a region of interest \(data\.roi\) without pixels, so that nothing of .*p1_0\.png",
        ),
        (a_dot, ["data.image_size=8"], r"p1_0\.png: its region of interest .* has no pixel left at data\.image_size=8"),
        (grey, [], r"field/p1_0\.png: a mask with the values 0, 1, 2, 3 and 252 more; expected 0 and 255"),
        (smaller, [], r"field/p1_0\.png is 8 x 8, its image .*images/p1_0\.png is 40 x 36 x 3; expected the same size"),
        (
            lambda field: (field / "p1_0.png").unlink(),
            [],
            r"patient p1: image without its roi: .*images/p1_0\.png\. Every",
        ),
        (
            lambda field: (field / "p9_0.png").write_bytes((field / "p1_0.png").read_bytes()),
            [],
            r"patient p9: roi without",
        ),
        (lambda field: None, ["data.roi=nothing/*"], r"data\.roi=nothing/\*: no such files: .* has no folder nothing"),
        (lambda field: None, ["data.roi=/abs/*"], r"data\.roi=/abs/\*: expected a pattern of paths under data\.root"),
    ],
)
def test_a_region_that_is_none_is_one_sentence_before_training(spoil, overrides, says, root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    spoil(tmp_path / "data" / "field")
    tiny = [o for o in TINY if not o.startswith("data.")]
    outcome = do(tmp_path, *tiny, *FOLDER, f"data.root={tmp_path / 'data'}", *overrides, tiny=False)
    assert outcome.status == "failed"
    assert re.search(says, outcome.error)
    assert "\n" not in outcome.error
    assert not list((tmp_path / "runs").glob("*/history.jsonl"))


def test_without_a_region_a_run_is_the_run_that_it_was(root):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=["data=folder", "data.root=x"])
    assert at_rest(OmegaConf.to_container(cfg.copy(), resolve=False), SPEC)["data.roi"] is None


class Loud:
    """An augmentation that leaves no pixel as it was."""

    def __call__(self, x, y, generator):
        return (x + 9).flip(3), y.flip(3)


@pytest.mark.parametrize("image_size", [None, 24])
def test_what_lies_outside_has_no_value_after_augmentation_either(tmp_path, root, image_size):
    known = Folder(
        root=str(root), images="images/*", masks="masks/*", roi="field/*", image_size=image_size, normalise="zscore",
        patient=r"(?P<patient>\w+)_(?P<slice>\d+)", model_width=4,
    )  # fmt: skip
    volumes = cache.load(known, known.scan(tmp_path), tmp_path, 1)
    ((x, y, _),) = Batches(volumes, np.arange(2), batch_size=2, device="cpu", augment=Loud()).epoch(0)
    outside = (torch.from_numpy(volumes.masks[:2].copy()) == OUTSIDE).flip(2)[:, None]
    assert torch.equal(y == VOID, outside)
    assert not x.masked_select(outside).any()
    assert x.masked_select(~outside).min() > 0


@pytest.mark.parametrize("size", [9, [11, 13]])
def test_what_lies_outside_in_a_smaller_image_does_not_depend_on_the_labels(size):
    """Prediction has none, and sees what training saw."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    region = np.hypot(y - HEIGHT / 2 + 0.5, x - WIDTH / 2 + 0.5) < 16
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    four = labels(["background", "a", "b", "c"])
    found = [
        images.sized(image, codes, size, four, region, "a mask")
        for codes in (np.zeros(region.sum(), np.uint8), rng.integers(0, 4, region.sum()).astype(np.uint8))
    ]
    assert (found[0][1] == OUTSIDE).any()
    np.testing.assert_array_equal(found[0][1] == OUTSIDE, found[1][1] == OUTSIDE)
    np.testing.assert_array_equal(found[0][0], found[1][0])
