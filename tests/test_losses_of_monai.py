"""MONAI's losses by `_target_`."""

import sys

import pytest
import torch
from test_classes import LABELLED, composed
from test_run import do

from segsweep.config import components
from segsweep.segmentation import groups
from segsweep.segmentation.kinds import KINDS, LOSSES
from segsweep.segmentation.losses import Counted

CLEAR = ["~loss.dice_weight", "~loss.smooth", "~loss.weights"]


def asked(name: str, **arguments: object) -> list[str]:
    given = [f"+loss.{key}={value}".lower() for key, value in arguments.items()]
    return [f"loss._target_=monai.losses.{name}", *CLEAR, *given]


def of(name: str, classes: bool) -> list[str]:
    """A loss as it is right."""
    if name == "FocalLoss":
        return asked(name, to_onehot_y=True, use_softmax=True) if classes else asked(name)
    return asked(name, to_onehot_y=True, softmax=True) if classes else asked(name, sigmoid=True)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_monai_takes_one_structure_classes_and_void(name):
    assert components.check(composed(*of(name, classes=False))) == []
    cfg = composed(*LABELLED, *of(name, classes=True))
    assert components.check(cfg) == []
    loss = Counted(groups.build("loss", cfg.loss))
    logits, target = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 1, 6, 6)).float()
    target[..., :2] = 255
    changed = logits.clone()
    changed[..., :2] = -50
    assert loss(logits, target).ndim == 0
    assert torch.equal(loss(logits, target), loss(changed, target))


@pytest.mark.parametrize("name", sorted({*LOSSES} - {"FocalLoss"}))
def test_a_loss_that_would_take_logits_for_probabilities_is_refused(name):
    says = f"loss: {name} takes probabilities as it stands, and is given logits: set"
    assert components.check(composed(*asked(name))) == [f"{says} sigmoid: true"]
    assert components.check(composed(*asked(name, softmax=True))) == [f"{says} sigmoid: true"]
    problems = components.check(composed(*LABELLED, *asked(name, to_onehot_y=True)))
    assert problems == [f"{says} softmax: true and to_onehot_y: true"]


def test_a_loss_without_one_hot_labels_is_refused_with_classes():
    (problem,) = components.check(composed(*LABELLED, *asked("DiceLoss", softmax=True)))
    assert problem.startswith("loss: DiceLoss does not take the logits of 4 classes (data.classes): ")


def test_a_foreign_configuration_builds_no_other_loss_of_monai():
    for name in ("PerceptualLoss", "dice_ce", "dice.DiceLoss", "DeepSupervisionLoss"):
        (problem,) = components.check(composed(*asked(name)))
        assert problem.startswith(f"loss._target_=monai.losses.{name}: not allowed to be called; allowed are")
    assert all(KINDS["loss"].lists(f"monai.losses.{name}") for name in LOSSES)


def test_without_monai_a_loss_of_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "monai.losses", raising=False)
    monkeypatch.setitem(sys.modules, "monai", None)
    (problem,) = components.check(composed(*asked("DiceLoss", sigmoid=True)))
    assert problem == ("loss._target_=monai.losses.DiceLoss: monai is not installed: pip install 'segsweep[monai]'")


def test_a_run_trains_by_a_loss_of_monai(tmp_path):
    outcome = do(tmp_path, *of("DiceCELoss", classes=False), "epochs=1")
    assert outcome.status == "finished", outcome.error
    assert outcome.metrics["train/loss"] > 0
