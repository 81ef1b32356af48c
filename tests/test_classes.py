"""Label images of several classes, from files to the report, and what is refused on the way."""

import csv
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from test_cli import segsweep
from test_run import TINY, do, same, weights

from segsweep.config import components
from segsweep.config.schema import conf_dir
from segsweep.core.session import Session, begin
from segsweep.report import __main__ as report
from segsweep.report.records import read
from segsweep.segmentation import export, predictions
from segsweep.segmentation.classes import scan, told
from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.data.labels import counted, labels
from segsweep.segmentation.data.split import Split
from segsweep.segmentation.trained import load as load_run

PATIENTS, SLICES, SIDE = 6, 3, 32
VALUES = {"background": 0, "ring": 100, "core": 200}
CLASSES = "data.classes=[background:0,ring:100,core:200]"
FOLDER = ["data=folder", "data.image_size=null", CLASSES, "data.ignore=[255]", "optim.lr=0.02", "batch_size=2"]


def write(root, patient: str, seed: int, values=(100, 200), void=255) -> None:
    """Slices with a ring around a core, a border of void, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    for k in range(SLICES):
        radius = np.hypot(y - rng.uniform(11, 20), x - rng.uniform(11, 20))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[radius < 9], mask[radius < 5] = values
        image = np.where(radius < 9, 120, 40) + np.where(radius < 5, 80, 0) + rng.normal(0, 8, mask.shape)
        mask[:2] = void
        for folder, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{patient}_{k}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("labels")
    for n in range(PATIENTS):
        write(place, f"p{n}", n)
    return place


def train(place, root, *overrides):
    tiny = [o for o in TINY if not o.startswith("data.")]
    return do(place, *tiny, *FOLDER, f"data.root={root}", *overrides, tiny=False)


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """A run of twelve epochs, and what its session was told."""
    events = []
    begin(Session(sink=events.append))
    outcome = train(tmp_path_factory.mktemp("classes"), root, "epochs=12", "seed=1", "metrics=[assd,auc]")
    assert outcome.status == "finished", outcome.error
    return outcome, events


def table(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_run_learns_classes_and_records_what_they_are(made):
    outcome, events = made
    info = json.loads((outcome.folder / "run.json").read_text())
    assert info["data"]["classes"] == VALUES
    assert info["data"]["void"] == PATIENTS * SLICES * 2 * SIDE
    assert sum(info["data"]["pixels"].values()) == PATIENTS * SLICES * (SIDE - 2) * SIDE
    assert (info["choices"]["loss"], info["factors"]["loss"]) == ("ce_dice", "ce_dice")
    assert outcome.metrics["test/dice"] > 0.5
    assert outcome.metrics["test/dice/core"] > 0.25
    texts = [event["text"] for event in events if event["kind"] == "text"]
    assert len(texts) == 1
    assert texts[0].startswith("Classes: background ")
    assert texts[0].endswith("of all pixels. Every patient has all")
    history = [json.loads(line) for line in (outcome.folder / "history.jsonl").read_text().splitlines()]
    assert {"train/dice/ring", "val/dice/ring", "val/iou/core", "val/undefined/core"} <= history[0].keys()


def test_the_table_and_the_confusion_are_of_the_same_pixels(made):
    rows = table(made[0].folder / "patients.csv")
    kept = json.loads((made[0].folder / "confusion.json").read_text())
    pixels = np.array(kept["pixels"])
    assert kept["classes"] == list(VALUES)
    assert pixels.sum() == sum(int(row["pixels"]) for row in rows)
    for k, name in enumerate(("ring", "core"), start=1):
        assert pixels[k, k] == sum(int(row[f"tp/{name}"]) for row in rows)
        assert pixels[k].sum() == sum(int(row[f"truth_pixels/{name}"]) for row in rows)
        mean = np.mean([float(row[f"dice/{name}"]) for row in rows])
        assert made[0].metrics[f"test/dice/{name}"] == pytest.approx(mean)


def test_more_epochs_continue_to_the_same_bits(root, tmp_path, made):
    short = train(tmp_path, root, "epochs=2", "scheduler=constant")
    long = train(tmp_path, root, "epochs=3", "scheduler=constant")
    alone = train(tmp_path / "alone", root, "epochs=3", "scheduler=constant")
    assert [o.status for o in (short, long, alone)] == ["finished", "continued", "finished"]
    assert same(weights(long), weights(alone))
    assert long.metrics | {"seconds": 0} == alone.metrics | {"seconds": 0}


def test_a_prediction_has_the_values_of_the_files_and_the_numbers_of_the_test(made, root, tmp_path, capsys):
    run = made[0].folder
    arguments = [
        str(run),
        str(root),
        "--out",
        str(tmp_path / "out"),
        "--format",
        "png",
        "--overlays",
        "--probabilities",
    ]
    assert predictions.main(arguments) == 0
    by = {row["patient"]: row for row in table(tmp_path / "out" / "predictions.csv")}
    tested = table(run / "patients.csv")
    for row in tested:
        assert {key: by[row["patient"]][key] for key in row} == row
    name = tested[0]["patient"]
    with Image.open(tmp_path / "out" / name / f"{name}_0_mask.png") as file:
        mask = np.asarray(file)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= set(VALUES.values())
    shares = np.load(tmp_path / "out" / name / "probabilities.npy")
    assert shares.shape == (SLICES, 3, SIDE, SIDE)
    np.testing.assert_array_equal(np.array(list(VALUES.values()))[shares[0].argmax(0)], mask)
    assert int(by[name]["volume_pixels/core"]) == sum(
        (np.asarray(Image.open(file)) == 200).sum() for file in (tmp_path / "out" / name).glob("*_mask.png")
    )
    with Image.open(tmp_path / "out" / name / f"{name}_0_overlay.png") as file:
        colours = {tuple(c) for c in np.asarray(file).reshape(-1, 3)}
    assert (86, 180, 233) in colours
    said = capsys.readouterr().out
    assert "over the classes that each has or was given, without the background; by class: ring 0." in said
    means = [np.mean([float(row[name]) for row in by.values()]) for name in ("assd", "auc")]
    several = f"(patients: {PATIENTS})"
    told = f"Mean ASSD of 2 classes {means[0]:.2f} px {several}, AUC of 2 classes {means[1]:.4f} {several}"
    assert told in said
    assert "all slices of a patient in one array, of several volumes one after another by name" in said
    about = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert about["classes"] == VALUES


def test_an_export_says_what_its_maps_are(made):
    trained = load_run(made[0].folder)
    about = export.about(trained)
    assert about["output"] == "logits: float32 (batch, 3, 32, 32); the class of a pixel is the map with the largest"
    assert about["classes"] == "background 0, ring 100, core 200"
    logits = np.zeros((1, 3, 1, 2), np.float32)
    other = logits.copy()
    other[0, 2, 0, 1] = 1
    assert export.changes(logits, other) == {"changed_pixels": 1, "pixels": 2}


def test_a_report_has_classes_and_goes_by_the_one_that_is_asked_for(made, tmp_path, capsys):
    run = str(made[0].folder)
    assert report.main([run, "--out", str(tmp_path / "all")]) == 0
    text = (tmp_path / "all" / "report.md").read_text()
    assert "Scores are means over **ring and core, without the background**" in text
    assert "## How each class scored" in text
    assert "| truth | taken for background | taken for ring | taken for core | pixels |" in text
    assert "each class in its colour: ring orange and core light blue" in text
    assert "mean Dice of 2 classes" in text
    assert "| class | row | Dice | IoU | HD95 (px) | Precision | Recall | ASSD (px) | AUC | patients | left" in text
    assert "| IoU of 2 classes | HD95 (px) | ASSD (px) | AUC of 2 classes |" in text
    mean = np.mean([float(row["assd/ring"]) for row in table(made[0].folder / "patients.csv")])
    (ring,) = [line for line in text.splitlines() if line.startswith("| ring | 1. unet |")]
    assert ring.split(" | ")[7].startswith(f"{mean:.2f}")
    assert report.main([run, "--out", str(tmp_path / "far"), "--metric", "assd/ring"]) == 0
    assert "| row | ASSD of ring (px) | SD of seeds |" in (tmp_path / "far" / "report.md").read_text()
    assert report.main([run, "--out", str(tmp_path / "one"), "--metric", "dice/core"]) == 0
    one = (tmp_path / "one" / "report.md").read_text()
    assert "Rows are compared by **core alone**" in one
    assert "| row | Dice of core | SD of seeds | Dice of 2 classes |" in one
    assert report.main([run, "--out", str(tmp_path / "none"), "--metric", "dice/cor"]) == 1
    assert "--metric dice/cor: no such score; did you mean dice/core?; allowed are dice, iou" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_damaged_confusion_is_left_out(made, tmp_path):
    file = made[0].folder / "confusion.json"
    kept = file.read_text()
    try:
        for damaged in ("[]", '{"classes": ["a", "b"], "pixels": [[1, 2], [3]]}', '{"classes": 3, "pixels": "x"}'):
            file.write_text(damaged)
            assert report.main([str(made[0].folder), "--out", str(tmp_path)]) == 0
            text = (tmp_path / "report.md").read_text()
            assert "taken for" not in text
            assert "adds to this report, left out" not in text
    finally:
        file.write_text(kept)


def test_weights_come_from_the_training_part_alone(root, tmp_path):
    outcome = train(tmp_path, root, "epochs=1", "loss=ce", "loss.weights=inverse")
    info = json.loads((outcome.folder / "run.json").read_text())
    split = json.loads((outcome.folder / "split.json").read_text())
    found = np.zeros(3)
    for patient in split["train"]:
        for k in range(SLICES):
            mask = np.asarray(Image.open(root / "masks" / f"{patient}_{k}.png"))
            found += [(mask == value).sum() for value in VALUES.values()]
    assert info["data"]["loss_weights"] == pytest.approx((found.sum() / (3 * found)).tolist(), abs=1e-5)


def test_weights_of_one_structure_are_counted_too(tmp_path):
    outcome = do(tmp_path, "epochs=1", "loss.weights=median")
    info = json.loads((outcome.folder / "run.json").read_text())
    assert len(info["data"]["loss_weights"]) == 2
    assert info["data"]["loss_weights"][1] > info["data"]["loss_weights"][0]


def test_a_label_outside_the_classes_is_told_once_and_before_a_sweep_has_a_folder(root, tmp_path):
    given = [*FOLDER[:2], f"data.root={root}", "data.classes=[background:0,ring:100]", "data.ignore=[255]"]
    done = segsweep(tmp_path, "-m", *given, "seed=0,1", "tracking=none")
    assert done.returncode == 1
    assert done.stderr == (
        f"{root}/masks/p0_0.png: label values outside the classes: 200; data.classes has background 0, ring 100: give "
        "more classes, or name what is not to count, data.ignore=[200]\n"
    )
    assert done.stdout == ""
    assert not (tmp_path / "multirun").exists()


def test_a_class_that_no_training_patient_has_is_refused_before_training(root, tmp_path):
    classes = "data.classes=[background:0,ring:100,core:200,edge:7]"
    outcome = train(tmp_path, root, classes)
    assert outcome.status == "failed"
    assert outcome.error == (
        "data.classes: no training patient has edge (label value 7), so it cannot be learnt; nobody has it: take it "
        "out of data.classes, or split in another way"
    )
    assert not (outcome.folder / "history.jsonl").exists()


def volumes_of(masks, patients, classes):
    masks = np.array(masks, np.uint8)
    images, empty = np.zeros((*masks.shape, 1), np.uint8), np.zeros(0)
    known = labels(classes)
    return Volumes(
        images, masks, np.arange(len(masks)), patients, patients, empty, empty, None, "", "", labels=known,
        pixels=counted(masks, known.outputs),
    )  # fmt: skip


def split_of(train, test):
    return Split("patient", np.array(train), np.array([], int), np.array(test), {}, False, "")


def test_a_scan_names_who_lacks_a_class_and_who_alone_has_it():
    volumes = volumes_of([[[0, 1]], [[0, 2]], [[1, 2]], [[0, 255]]], ["ann", "bob", "cy", "dee"], ["bg", "rim", "core"])
    facts = scan(volumes, split_of([0, 1], [2, 3]))
    assert facts["pixels"] == {"bg": 3, "rim": 2, "core": 2}
    assert facts["lacking"] == {"bg": ["cy"], "rim": ["bob", "dee"], "core": ["ann", "dee"]}
    assert told(facts) == (
        "Classes: bg 42.86%, rim 28.57%, core 28.57%; void 12.50% of all pixels. "
        "Patients without bg: cy; rim: bob, dee; core: ann, dee"
    )
    with pytest.raises(
        Exception, match=r"no training patient has core \(label value 2\).*; bob, cy of the other parts"
    ):
        scan(volumes, split_of([0, 3], [1, 2]))


def composed(*overrides: str):
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=list(overrides), return_hydra_config=False)


LABELLED = ["data=folder", "data.root=nowhere", "data.classes=4"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["loss=bce"],
            "loss: BCEWithLogitsLoss does not take the logits of 4 classes (data.classes): it is of one str",
        ),
        (
            ["loss=bce_dice"],
            "loss: BCEDice does not take the logits of 4 classes (data.classes): it is of one structure",
        ),
        (
            ["loss._target_=torch.nn.MSELoss", "~loss.dice_weight", "~loss.smooth", "~loss.weights"],
            "loss: MSELoss does",
        ),
        (["loss=ce", "loss.weights=[1,2,3]"], "loss.weights=[1, 2, 3]: 3 given for 4 classes (the values 0 to 3)"),
        (["loss=ce", "loss.weights=5"], "loss: weights=5: expected inverse or median"),
        (["loss=ce", "loss.weights=often"], "loss: weights=often: expected inverse or median"),
        (
            ["+model.out_channels=3"],
            "model: UNet gives 3 maps of logits, tried on images of 64 x 64, where 4 are needed: data.cl",
        ),
        (["data.classes=[a,a]"], "data.classes=['a', 'a']: two classes have the same name or value"),
        (["data.classes=rv"], "data.classes=rv: expected a number of them"),
        (["data.ignore=[2]"], "data.ignore=[2]: 2 is the value of a class"),
        (["data.classes=null", "loss=ce"], "loss: CE is of classes that exclude one another"),
        (["data.classes=null", "loss.weights=[1,2,3]"], "loss: weights=[1, 2, 3]: expected inverse or median"),
        (["search.objective=[val/dice/4]"], None),
    ],
)
def test_what_does_not_go_with_classes_is_one_sentence_before_training(overrides, says):
    problems = components.check(composed(*LABELLED, *overrides))
    if says is None:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith(says)
        assert "\n" not in problem


@pytest.mark.parametrize("preset", ["tpe", "random", "grid", "nsga2", "gp", "cmaes"])
def test_every_loss_of_a_searchs_own_space_fits_one_structure_and_classes(preset):
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=[f"+search={preset}"], return_hydra_config=True)
    given = str(cfg.hydra.sweeper.params.get("loss", cfg.hydra.runtime.choices.loss)).split(",")
    for labelled in ([], LABELLED):
        for loss in given:
            assert components.check(composed(*labelled, f"loss={loss}")) == [], loss


def test_a_search_goes_by_a_class():
    from segsweep.search import objective

    cfg = composed(*LABELLED, "search.objective=[val/dice/2]")
    spec = components.spec_of(cfg)
    assert objective.problems(cfg.search, 6, spec) == []
    assert objective.direction("val/dice/2", spec) == "maximize"
    (problem,) = objective.problems(composed(*LABELLED, "search.objective=[val/dice/4]").search, 6, spec)
    assert "search.objective=val/dice/4: no such objective; did you mean val/dice/" in problem
    plain = components.spec_of(composed())
    assert "val/dice/2" not in objective.scores(plain)


def test_auto_is_the_loss_that_it_stands_for_in_every_way_but_its_name():
    for options, option in (([], "bce_dice"), (LABELLED, "ce_dice"), (["data=folder", "data.root=x"], "bce_dice")):
        auto, plain = (composed(*options, f"loss={name}") for name in ("auto", option))
        assert OmegaConf.to_container(auto.loss, resolve=True) == OmegaConf.to_container(plain.loss, resolve=True)
    assert composed(*LABELLED, "data.classes=1").loss._target_.endswith(".BCEDice")
    assert composed(*LABELLED, "data.classes=[a,b]").loss._target_.endswith(".CEDice")


def test_auto_is_told_by_its_loss_and_is_the_same_run(tmp_path):
    first = do(tmp_path, "epochs=1")
    assert json.loads((first.folder / "run.json").read_text())["factors"]["loss"] == "bce_dice"
    second = do(tmp_path, "epochs=1", "loss=bce_dice")
    assert (second.status, second.signature) == ("reused", first.signature)
    (run,) = read([first.folder]).runs
    assert run.factors["loss"] == "bce_dice"


@pytest.mark.parametrize("option", ["unet", "r2unet"])
def test_networks_get_a_map_for_each_class(option):
    from segsweep.segmentation import networks

    node = composed(*LABELLED, f"model={option}", "model.width=2").model
    assert networks.network(node, 1, 4)(torch.zeros(1, 1, 16, 16)).shape == (1, 4, 16, 16)
    assert networks.network(node, 1, 1)(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)


OWN = """
import numpy as np
from dataclasses import dataclass
from segsweep.segmentation.data.phantom import Phantom

@dataclass(frozen=True, kw_only=True)
class Thirds(Phantom):
    classes: object = None
    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        masks[:, :, : masks.shape[2] // 3] *= 2
        masks[:, :3, :3] = 2
        return images, masks

class Fixed(Thirds):
    def __init__(self, **given):
        super().__init__(classes=3, **given)
"""


def test_a_data_set_of_ones_own_gives_labels(tmp_path, monkeypatch, allow):
    (tmp_path / "thirds_of_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    allow("thirds_of_test.*")
    outcome = do(tmp_path, "data._target_=thirds_of_test.Thirds", "+data.classes=[background,right,left]", "epochs=1")
    assert outcome.status == "finished", outcome.error
    assert "test/dice/left" in outcome.metrics
    outcome = do(tmp_path, "data._target_=thirds_of_test.Thirds", "epochs=1")
    assert "Thirds.decode gave masks with the labels 0, 1, 2; allowed is one structure" in outcome.error
    assert "an argument `classes` that data.classes sets" in outcome.error
    outcome = do(tmp_path, "data._target_=thirds_of_test.Fixed", "epochs=1")
    assert "data: Fixed has classes of its own, the values 0 to 2, which are not those of data.classes" in outcome.error


@pytest.mark.slow
def test_a_search_by_a_class_is_checked_and_run(root, tmp_path):
    tiny = [o for o in TINY if not o.startswith("data.")]
    asked = [*tiny, *FOLDER, f"data.root={root}", "tracking=none", "report=false", "epochs=1"]
    of_class = ["-m", "hydra/sweeper=search", "search.trials=2", "loss.weights=null,inverse", *asked]
    wrong = segsweep(tmp_path, *of_class, "search.objective=[val/dice/rim]")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(
        "search.objective=val/dice/rim: no such objective; did you mean val/dice/ring?; allowed"
    )
    done = segsweep(tmp_path, *of_class, "search.objective=[val/dice/ring]", "search.storage=sqlite:///s.db")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials (2 complete); best val/dice/ring" in done.stderr
    wrong = segsweep(tmp_path, "-m", *asked, "search.objective=[val/dice/rim]", "seed=0,1")
    assert wrong.stderr.startswith("search.objective=val/dice/rim: no such objective")
