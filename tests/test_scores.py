"""Scores that are chosen beside those of every run: against scikit-learn and by hand, and what a run makes of them."""

import csv
import importlib
import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import ndimage
from skimage.morphology import skeletonize
from sklearn.metrics import average_precision_score, roc_auc_score
from test_run import TINY, do, same, weights

from segsweep.core import child, source
from segsweep.core.errors import ConfigError
from segsweep.report.files import write
from segsweep.segmentation import scores
from segsweep.segmentation.predict import measured_by
from segsweep.segmentation.scores import AP, ASSD, AUC, ClDice, Seen, Sensitivity, Specificity
from segsweep.sweeps.why import explain


def seen(seed: int = 0, shape: tuple[int, ...] = (3, 9, 8)) -> Seen:
    """A probability with ties, and void pixels, in which truth and prediction are anything but right."""
    rng = np.random.default_rng(seed)
    known = rng.random(shape) > 0.2
    truth = (rng.random(shape) > 0.7) & known
    probability = np.round((rng.random(shape) + truth) / 2, 1).astype(np.float16)
    return Seen(truth, (probability > 0.5) & known, np.where(known, probability, 1).astype(np.float16), known)


def test_areas_are_scikit_learns_over_the_pixels_that_are_known():
    for seed in range(5):
        one = seen(seed)
        given = one.truth[one.known], one.probability[one.known].astype(float)
        assert AUC()(one) == pytest.approx(roc_auc_score(*given), abs=1e-12)
        assert AP()(one) == pytest.approx(average_precision_score(*given), abs=1e-12)


def test_shares_of_pixels_and_where_they_are_undefined():
    one = seen()
    t, p = one.truth[one.known], one.predicted[one.known]
    assert Sensitivity()(one) == (t & p).sum() / t.sum()
    assert Specificity()(one) == (~t & ~p).sum() / (~t).sum()
    none = np.zeros_like(one.truth)
    without = Seen(none, one.predicted, one.probability, one.known)
    assert all(math.isnan(score()(without)) for score in (Sensitivity, AUC, AP))
    everywhere = Seen(one.known, one.predicted, one.probability, one.known)
    assert math.isnan(Specificity()(everywhere))
    assert math.isnan(AUC()(everywhere))


def test_the_mean_distance_of_surfaces_by_hand_and_with_one_of_them_empty():
    truth, other = np.zeros((2, 1, 5, 6), bool)
    truth[0, 2, 1], other[0, 2, 3:5] = True, True
    known = np.ones_like(truth)
    assert ASSD()(Seen(truth, other, None, known)) == pytest.approx((2 + 2 + 3) / 3)
    empty = np.zeros_like(truth)
    assert ASSD()(Seen(truth, empty, None, known)) == pytest.approx(math.sqrt(1 + 25 + 36))
    assert math.isnan(ASSD()(Seen(empty, empty, None, known)))
    wide = [(slice(None), np.array([5.0, 2.0, 2.0]))]
    assert ASSD()(Seen(truth, other, None, known, wide)) == pytest.approx(2 * (2 + 2 + 3) / 3)
    assert ASSD()(Seen(truth, empty, None, known, wide)) == pytest.approx(math.sqrt(25 + 100 + 144))
    two = np.concatenate([truth, empty]), np.concatenate([other, truth]), np.ones((2, 5, 6), bool)
    apart = [(np.array([True, False]), None), (np.array([False, True]), None)]  # two eyes are no volume
    assert ASSD()(Seen(two[0], two[1], None, two[2], apart)) == pytest.approx(((7 / 3) + math.sqrt(62)) / 2)


def of_masks(truth: np.ndarray, predicted: np.ndarray) -> Seen:
    return Seen(truth, predicted, np.zeros(truth.shape, np.float16), np.ones_like(truth))


def test_cldice_by_hand_and_where_something_is_empty():
    line, shifted = np.zeros((2, 1, 5, 9), bool)
    line[0, 2, :6], shifted[0, 2, 2:] = True, True  # a pixel thick, they are skeletons themselves
    assert ClDice()(of_masks(line, shifted)) == pytest.approx(2 * (4 / 7) * (4 / 6) / (4 / 7 + 4 / 6))
    bar, middle, beside = np.zeros((3, 1, 7, 11), bool)
    bar[0, 2:5, 1:10], middle[0, 3, 3:8], beside[0, 6] = True, True, True
    # the bar's skeleton is seven pixels of its middle row and one beside its end; five of them are predicted
    assert ClDice()(of_masks(bar, middle)) == pytest.approx(2 * 1 * (5 / 8) / (1 + 5 / 8))
    middle[0, 2:5, 2:9] = True  # nearly as wide, and all of both skeletons is in the other but that one
    assert ClDice()(of_masks(bar, middle)) == pytest.approx(2 * 1 * (7 / 8) / (1 + 7 / 8))
    assert ClDice()(of_masks(bar, beside)) == 0
    empty = np.zeros_like(bar)
    assert [ClDice()(of_masks(*pair)) for pair in ((bar, empty), (empty, bar))] == [0, 0]
    assert math.isnan(ClDice()(of_masks(empty, empty)))


def test_cldice_is_what_its_definition_gives_over_a_patients_slices():
    rng, scores_of = np.random.default_rng(0), ClDice()
    for shape in ((1, 40, 31), (4, 24, 24)):
        truth, predicted = (ndimage.gaussian_filter(rng.random(shape), (0, 2, 2)) > 0.51 for _ in range(2))
        predicted[0] = False  # a slice without, and its truth's skeleton is missed
        hit, of = np.zeros(2), np.zeros(2)
        for t, p in zip(truth, predicted, strict=True):
            for k, (one, other) in enumerate(((p, t), (t, p))):
                places = np.argwhere(skeletonize(one))
                of[k] += len(places)
                hit[k] += sum(other[tuple(place)] for place in places)
        precision, sensitivity = hit / np.maximum(of, 1)
        expected = 2 * precision * sensitivity / (precision + sensitivity) if hit.all() else 0
        assert scores_of(of_masks(truth, predicted)) == pytest.approx(expected, abs=1e-12)
        assert 0 < scores_of(of_masks(truth, truth | predicted)) <= 1


def test_without_scikit_image_one_sentence_says_so_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "installed", lambda package: package != "skimage")
    outcome = do(tmp_path, "metrics=[auc,cldice]")
    assert outcome.status == "failed"
    assert outcome.error == (
        "metrics=cldice: skeletons take scikit-image, which is not installed: pip install 'segsweep[vessels]'"
    )
    assert do(tmp_path, "metrics=[auc]", "epochs=1").status == "finished"


ALL = "metrics=[sensitivity,specificity,auc,ap,assd,cldice]"


def test_a_run_has_them_by_epoch_by_patient_and_in_the_test_and_trains_nothing_for_them(tmp_path):
    plain = do(tmp_path)
    scored = do(tmp_path, ALL)
    assert scored.signature != plain.signature
    assert json.loads((scored.folder / "result.json").read_text())["trained_epochs"] == 0
    assert [(o.status, o.tested) for o in (plain, scored, do(tmp_path, ALL))] == [
        *(("finished", False), ("reused", True), ("reused", False))
    ]
    assert {key: scored.metrics[key] for key in plain.metrics} == plain.metrics
    rows = list(csv.DictReader((scored.folder / "patients.csv").read_text().splitlines()))
    before = list(csv.DictReader((plain.folder / "patients.csv").read_text().splitlines()))
    assert [{key: row[key] for key in before[0]} for row in rows] == before
    for name in ("sensitivity", "specificity", "auc", "ap", "assd", "cldice"):
        assert scored.metrics[f"test/{name}"] == pytest.approx(np.mean([float(row[name]) for row in rows]))
    assert float(rows[0]["sensitivity"]) == pytest.approx(float(rows[0]["recall"]))
    alone = do(tmp_path / "alone", ALL)  # whose epochs measured them
    assert {key: alone.metrics[key] for key in scored.metrics} == scored.metrics
    history = [json.loads(line) for line in (alone.folder / "history.jsonl").read_text().splitlines()]
    by_epoch = ("sensitivity", "specificity", "auc", "ap", "cldice")
    assert all(0 <= row[f"val/{name}"] <= 1 for row in history for name in by_epoch)
    assert not any("assd" in key for key in history[0])  # at the end alone
    described = json.loads((alone.folder / "run.json").read_text())["task"]["metrics"]
    assert described["auc"]["title"] == "AUC"


def test_ones_own_is_a_class_and_a_search_and_a_report_know_it(tmp_path, monkeypatch, allow):
    from segsweep.config.components import spec_of
    from segsweep.search import objective

    (tmp_path / "own_score.py").write_text(
        "from segsweep.task import Metric\n\n\nclass Volume:\n"
        "    metric = Metric(title='Volume', direction='min')\n\n"
        "    def __init__(self, power=1):\n        self.power = power\n\n"
        "    def __call__(self, seen):\n        return float(abs(int(seen.truth.sum()) - int(seen.predicted.sum())))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    allow("own_score.*")
    asked = ("metrics=[auc,{_target_: own_score.Volume, power: 2}]", "search.objective=[val/volume]")
    outcome = do(tmp_path, *asked)
    assert outcome.status == "finished", outcome.error
    row = next(csv.DictReader((outcome.folder / "patients.csv").read_text().splitlines()))
    assert float(row["volume"]) == abs(int(row["truth_pixels"]) - int(row["predicted_pixels"]))
    about = json.loads((outcome.folder / "run.json").read_text())
    assert "own_score" in about["files"]
    spec = spec_of(composed(tmp_path, *asked))
    assert objective.direction("val/volume", spec) == "minimize"
    assert objective.values(outcome.folder, ["val/volume"], "best", spec)[0] >= 0


VOLUME = """import numpy as np
from segsweep.task import Metric


class Volume:
    metric = Metric(title="Volume error", direction="min")

    def __init__(self, power=1):
        self.power = power

    def __call__(self, seen):
        return FACTOR * 2.0**self.power * abs(int(seen.truth.sum()) - int(seen.predicted.sum()))
"""


@pytest.fixture
def written(tmp_path, monkeypatch, allow):
    """`written(module, text)`, as a process that is started now would find it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    allow("later_score.*,both_of_mine.*")

    def write(module: str, text: str) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        source.code.cache_clear()
        sys.modules.pop(module, None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()

    return write


def about(outcome) -> tuple[int, list[dict]]:
    """How many epochs it trained for itself, and its history."""
    assert outcome.error is None
    trained = json.loads((outcome.folder / "result.json").read_text())["trained_epochs"]
    return trained, [json.loads(line) for line in (outcome.folder / "history.jsonl").read_text().splitlines()]


OWN = "metrics=[{_target_: later_score.Volume}]"
TWICE = "metrics=[{_target_: later_score.Volume, power: 2}]"


def test_ones_own_asked_for_later_edited_or_removed_is_tested_again_with_the_same_weights(tmp_path, written, capsys):
    plain = do(tmp_path)
    written("later_score", VOLUME.replace("FACTOR", "1"))
    first = do(tmp_path, OWN)
    power = do(tmp_path, TWICE)
    written("later_score", VOLUME.replace("FACTOR", "10"))
    edited = do(tmp_path, OWN)
    assert len({outcome.signature for outcome in (plain, first, power, edited)}) == 4
    for outcome, factor in ((first, 1), (power, 2), (edited, 10)):
        trained, history = about(outcome)
        assert trained == 0
        assert same(weights(outcome), weights(plain))
        assert same(weights(outcome, "best.pt"), weights(plain, "best.pt"))
        assert not any("volume" in key for row in history for key in row)
        assert outcome.metrics["test/volume"] == factor * first.metrics["test/volume"] > 0
        assert {key: outcome.metrics[key] for key in plain.metrics} == plain.metrics
    assert (do(tmp_path).status, do(tmp_path, OWN).status) == ("reused", "reused")
    written("later_score", VOLUME.replace("FACTOR", "100"))
    described = json.loads((edited.folder / "run.json").read_text())
    (edited.folder / "run.json").write_text(json.dumps(described | {"command": None}))  # composed in this process
    explain("RUN", edited.folder, None)
    said = capsys.readouterr().out
    assert "It would be tested again and not trained, as " in said
    assert "later_score" in said


def test_epochs_that_another_version_of_ones_own_measured_have_no_value_of_it(tmp_path, written):
    asked = ("scheduler=constant", "epochs=1")
    written("later_score", VOLUME.replace("FACTOR", "1"))
    (row,) = about(do(tmp_path, OWN, *asked))[1]
    assert row["val/volume"] > 0
    assert "val/volume" in about(do(tmp_path, OWN, *asked[:1]))[1][0]  # gone on with by the same, its values stay
    written("later_score", VOLUME.replace("FACTOR", "10"))
    for more in ((), ("early_stopping=1",)):
        edited = do(tmp_path, OWN, *asked[:1], "epochs=3", *more)
        trained, history = about(edited)
        assert trained == (0 if more else 1)
        assert ["val/volume" in row for row in history] == [False, False, True][: len(history)]
    written("later_score", VOLUME.replace("FACTOR", "1"))
    again = about(do(tmp_path, OWN, *asked[:1], "epochs=4"))[1]
    assert ["val/volume" in row for row in again] == [False, False, False, True]
    assert "val/volume" not in about(do(tmp_path, TWICE, *asked))[1][0]  # its arguments are another's, too


def test_the_report_says_which_epochs_have_no_value(tmp_path, written):
    asked = ("scheduler=constant", "epochs=1")
    written("later_score", VOLUME.replace("FACTOR", "1"))
    whole = do(tmp_path, OWN, *asked, "seed=1")
    do(tmp_path, *asked)
    part = do(tmp_path, OWN, *asked[:1], "epochs=2")
    none = do(tmp_path, "metrics=[auc]", *asked)
    text = []
    for outcome, metric in ((whole, "volume"), (part, "volume"), (none, "auc")):
        text.append(write([outcome.folder], tmp_path / f"out{len(text)}", metric).with_suffix(".md").read_text())
    assert "not measured in" not in text[0]
    assert "Volume error was not measured in 1 of 2 epochs of " in text[1]
    assert re.search(r"val: not measured in the first epoch, [\d,.]+ in the last", text[1])
    assert "AUC was not measured in 1 of 1 epochs of " in text[2]


@pytest.mark.parametrize(("place", "trained"), [("both_of_mine", [1, 1]), ("later_score", [1, 0])])
def test_a_module_that_holds_the_network_too_trains_anew_and_another_does_not(tmp_path, written, place, trained):
    net = "import torch\n\n\nclass Net(torch.nn.Conv2d):\n    def __init__(self, in_channels):\n"
    net += "        super().__init__(in_channels, 1, 3, padding=1)\n"
    asked = ("model._target_=both_of_mine.Net", "~model.width", "~model.depth", "epochs=1", *TINY[:3])
    found = []
    written("both_of_mine", net)
    for factor in "12":
        score = VOLUME.replace("FACTOR", factor)
        written(place, f"{net}\n\n{score}" if place == "both_of_mine" else score)
        found.append(do(tmp_path, *asked, f"metrics=[{{_target_: {place}.Volume}}]", tiny=False))
    assert [about(outcome)[0] for outcome in found] == trained
    assert len({outcome.signature for outcome in found}) == 2


def test_a_prediction_measures_what_the_run_did_and_names_what_it_cannot():
    own = {"_target_": "not_mine.Volume"}
    for asked, names, told in (
        (["auc", own, "cut"], ["auc"], ["_target_=not_mine.Volume: not allowed to be called", "metrics=cut: allowed"]),
        ([], [], []),
        (None, [], []),
    ):
        found, lacking = measured_by(SimpleNamespace(config=OmegaConf.create({"metrics": asked})))
        assert [*found] == names
        assert [text.startswith("Not measured: metrics") for text in lacking] == [True] * len(told)
        assert all(part in text for part, text in zip(told, lacking, strict=True))


def test_the_winner_of_a_search_has_them(tmp_path):
    from segsweep.report.winner import of_run

    assert of_run(do(tmp_path, ALL, "epochs=1").folder).values["metrics"] == ALL.partition("=")[2][1:-1].split(",")


def composed(tmp_path, *overrides):
    from hydra import compose, initialize_config_dir

    from segsweep.config.schema import conf_dir

    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "metrics=[auk]",
            "metrics=auk: allowed are sensitivity, specificity, auc, ap, assd, cldice, and one of your own as",
        ),
        ("metrics=auc", r"metrics=auc: a list is needed, as in 'metrics=\[auc,specificity\]'"),
        (
            "metrics=[[auc]]",
            "metrics=.*auc.*: allowed are sensitivity, specificity, auc, ap, assd, cldice, and one of your own",
        ),
        ("metrics=[auc,auc]", "metrics: auc is there already"),
        ("metrics=[{_target_: os.system}]", r"_target_=os.system: not allowed to be called"),
        (
            "metrics=[{_target_: segsweep.segmentation.scores.AUC, x: 1}]",
            "metrics.x: segsweep.segmentation.scores.AUC takes no such argument",
        ),
    ],
)
def test_what_is_none_is_one_sentence(tmp_path, given, says):
    outcome = do(tmp_path, given)
    assert outcome.status == "failed"
    with pytest.raises(ConfigError, match=says):
        raise ConfigError(outcome.error)
    assert len(outcome.error.splitlines()) == 1


def test_of_classes_it_is_of_each_and_their_mean_where_it_is_defined():
    truth = np.array([[[0, 1, 1, 255]], [[2, 0, 0, 0]]], np.uint8)
    predicted = np.array([[[0, 1, 0, 1]], [[2, 2, 0, 0]]], np.uint8)
    labels = SimpleNamespace(names=("a", "b", "c"), structures=("b", "c"), outputs=3)
    volumes = SimpleNamespace(
        labels=labels, sizes=None, stack=None, masks=truth, patient=np.array([0, 1]), patients=["p", "q"]
    )
    shares = np.zeros((2, 3, 1, 4), np.float16)
    evaluation = SimpleNamespace(masks=predicted, probabilities=shares)
    chosen = scores.chosen(["sensitivity", "specificity"])
    rows = scores.of_patients(chosen, evaluation, volumes, np.arange(2))
    assert rows["p"]["sensitivity/b"] == 0.5
    assert math.isnan(rows["p"]["sensitivity/c"])
    assert rows["p"]["sensitivity"] == 0.5
    assert rows["q"] == pytest.approx(
        {"sensitivity/b": math.nan, "specificity/b": 1, "sensitivity/c": 1, "specificity/c": 2 / 3}
        | {"sensitivity": 1, "specificity": 5 / 6},
        nan_ok=True,
    )
    assert scores.means(rows)["sensitivity"] == 0.75
    titles = {name: metric.title for name, metric in scores.described(chosen, ["b", "c"]).items()}
    assert titles["sensitivity"] == "Sensitivity of 2 classes"
    assert titles["specificity/c"] == "Specificity of c"
