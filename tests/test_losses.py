import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from torch import nn
from torch.nn import BCEWithLogitsLoss

from segsweep.segmentation.losses import CE, BCEDice, CEDice, Counted, Dice, Focal, Tversky

# Four pixels: probabilities 0.9, 0.2, 0.6, 0.3 for truth 1, 0, 0, 1.
# Soft counts: tp = 0.9 + 0.3 = 1.2, fp = 0.2 + 0.6 = 0.8, fn = 0.1 + 0.7 = 0.8; both sums are 2.
LOGITS = torch.tensor([0.9, 0.2, 0.6, 0.3]).logit().reshape(1, 1, 2, 2)
TARGET = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
LOSSES = [BCEWithLogitsLoss(), Dice(), BCEDice(), Tversky(), Focal(), Focal(gamma=0.5)]


def named(loss):
    return type(loss).__name__


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Dice(), 1 - (2 * 1.2 + 1) / (2 + 2 + 1)),  # 0.32
        (Dice(smooth=0.5), 1 - 2.9 / 4.5),
        (Tversky(), 1 - (1.2 + 1) / (1.2 + 0.3 * 0.8 + 0.7 * 0.8 + 1)),
        (Tversky(alpha=1, beta=0), 1 - 2.2 / 3.0),
        # -(ln 0.9 + ln 0.8 + ln 0.4 + ln 0.3) / 4 = (0.10536 + 0.22314 + 0.91629 + 1.20397) / 4 = 0.612192
        (BCEWithLogitsLoss(), 0.612192),
        (BCEDice(), 0.5 * 0.612192 + 0.5 * 0.32),
        (BCEDice(dice_weight=0.25), 0.75 * 0.612192 + 0.25 * 0.32),
        # (0.25 0.1^2 0.10536 + 0.75 0.2^2 0.22314 + 0.75 0.6^2 0.91629 + 0.25 0.7^2 1.20397) / 4
        (Focal(), 0.1004607),
        (Focal(alpha=0.5, gamma=0), 0.5 * 0.612192),
    ],
)
def test_four_pixels_by_hand(loss, expected):
    assert loss(LOGITS, TARGET).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Dice(), DiceLoss(sigmoid=True, batch=True, smooth_nr=1, smooth_dr=1)),
        (Tversky(), TverskyLoss(sigmoid=True, batch=True, alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1)),
        (Tversky(0.8, 0.4, 2), TverskyLoss(sigmoid=True, batch=True, alpha=0.8, beta=0.4, smooth_nr=2, smooth_dr=2)),
        (Focal(), FocalLoss(alpha=0.25, gamma=2)),
        (Focal(alpha=0.6, gamma=0.5), FocalLoss(alpha=0.6, gamma=0.5)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_agrees_with_monai(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator) * 4
    target = (torch.rand(3, 1, 8, 8, generator=generator) < 0.3).float()
    assert ours(logits, target).item() == pytest.approx(theirs(logits, target).item(), rel=1e-5)


def test_tversky_with_equal_weights_is_dice_of_twice_the_smooth():
    assert Tversky(0.5, 0.5, smooth=0.5)(LOGITS, TARGET).item() == pytest.approx(Dice(1)(LOGITS, TARGET).item())


# Two pixels of three classes: probabilities (0.7, 0.2, 0.1) of class 0 and (0.1, 0.6, 0.3) of class 2.
OF_THREE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log().T.reshape(1, 3, 1, 2)
CLASSES = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
OF_CLASSES = {"softmax": True, "to_onehot_y": True, "include_background": False, "smooth_nr": 1, "smooth_dr": 1}
# -ln 0.7 = 0.356675, -ln 0.3 = 1.203973
CE_OF_THREE = (0.356675 + 1.203973) / 2
# class 1: tp 0, fp 0.8, fn 0; class 2: tp 0.3, fp 0.1, fn 0.7
DICE_OF_THREE = ((1 - 1 / 1.8) + (1 - 1.6 / 2.4)) / 2


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CE(), CE_OF_THREE),
        (CE([1, 5, 3]), (0.356675 + 3 * 1.203973) / 4),
        (Dice(), DICE_OF_THREE),
        (CEDice(), (CE_OF_THREE + DICE_OF_THREE) / 2),
        (CEDice(dice_weight=0.25, weights=[1, 5, 3]), 0.75 * (0.356675 + 3 * 1.203973) / 4 + 0.25 * DICE_OF_THREE),
        (Tversky(), ((1 - 1 / 1.24) + (1 - 1.3 / 1.82)) / 2),
        (Focal(), (0.75 * 0.3**2 * 0.356675 + 0.25 * 0.7**2 * 1.203973) / 2),
    ],
)
def test_two_pixels_of_three_classes_by_hand(loss, expected):
    assert loss(OF_THREE, CLASSES).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Dice(), DiceLoss(batch=True, **OF_CLASSES)),
        (Tversky(), TverskyLoss(batch=True, alpha=0.3, beta=0.7, **OF_CLASSES)),
        (CEDice(), DiceCELoss(batch=True, lambda_dice=0.5, lambda_ce=0.5, **OF_CLASSES)),
    ],
    ids=named,
)
def test_of_classes_agrees_with_monai(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 8, 8, generator=generator) * 4
    target = torch.randint(4, (3, 1, 8, 8), generator=generator).float()
    assert ours(logits, target).item() == pytest.approx(theirs(logits, target).item(), rel=1e-5)


def test_focal_of_two_classes_is_that_of_one_structure():
    pair = torch.cat((torch.zeros_like(LOGITS), LOGITS), 1)
    assert Focal()(pair, TARGET).item() == pytest.approx(Focal()(LOGITS, TARGET).item(), rel=1e-6)


def test_weights_of_one_structure_are_of_background_and_structure():
    # -ln: 0.10536 and 1.20397 in the structure, 0.22314 and 0.91629 outside
    expected = (3 * (0.10536 + 1.20397) + 0.22314 + 0.91629) / 8
    assert BCEDice(dice_weight=0, weights=[1, 3])(LOGITS, TARGET).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [*LOSSES, nn.MSELoss()], ids=named)
def test_pixels_that_do_not_count_change_nothing(loss):
    counted, target = Counted(loss), torch.cat((TARGET, torch.full_like(TARGET, 255)))
    logits = [torch.cat((LOGITS, torch.full_like(LOGITS, x))).requires_grad_() for x in (-50.0, 50.0)]
    values = [counted(x, target) for x in logits]
    for value in values:
        value.backward()
    assert values[0].item() == values[1].item() == pytest.approx(loss(LOGITS, TARGET).item(), rel=1e-6)
    assert (logits[1].grad[1] == 0).all()
    assert (logits[1].grad[0] != 0).any()
    nothing = counted(logits[0], torch.full_like(target, 255))
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize("loss", [CE([1.0, 2, 3]), CEDice(), Dice(), Tversky(), Focal()], ids=named)
def test_pixels_of_classes_that_do_not_count_change_nothing(loss):
    target = torch.cat((CLASSES, torch.full_like(CLASSES, 255)), 2)
    found = Counted(loss)(torch.cat((OF_THREE, 9 * torch.randn(1, 3, 1, 2)), 2), target)
    assert found.item() == pytest.approx(loss(OF_THREE, CLASSES).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [CE(), CEDice()], ids=named)
def test_a_loss_of_classes_refuses_one_map_of_logits(loss):
    with pytest.raises(ValueError, match=r"of classes that exclude one another.*set data\.classes, or take loss=bce"):
        loss(LOGITS, TARGET)


def test_dice_takes_the_batch_as_one_image():
    empty = torch.zeros_like(TARGET)
    together = Dice()(torch.cat((LOGITS, LOGITS)), torch.cat((TARGET, empty)))
    assert together.item() == pytest.approx(1 - (2 * 1.2 + 1) / (4 + 2 + 1))


@pytest.mark.parametrize("loss", [Dice(), Tversky()], ids=named)
def test_an_empty_batch_predicted_empty_costs_nothing(loss):
    assert loss(torch.full((2, 1, 2, 2), -100.0), torch.zeros(2, 1, 2, 2)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=named)
@pytest.mark.parametrize("scale", [100.0, -100.0, 1e4, 0.0])
@pytest.mark.parametrize("truth", [TARGET, torch.zeros_like(TARGET), torch.ones_like(TARGET)])
def test_value_and_gradient_are_finite_at_extreme_logits(loss, scale, truth):
    logits = (scale * (2 * TARGET - 1)).requires_grad_()
    value = loss(logits, truth)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES, ids=named)
def test_bf16_logits_under_autocast_are_summed_in_float32(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1, 64, 64, generator=generator).bfloat16()
    target = (torch.rand(4, 1, 64, 64, generator=generator) < 0.02).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(logits.double(), target.double()).item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES[1:], ids=named)  # torch's own takes floats only
def test_a_bool_mask_is_a_target(loss):
    assert loss(LOGITS, TARGET.bool()) == loss(LOGITS, TARGET)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dice(smooth=0), "smooth must be above 0, got 0"),
        (lambda: Tversky(smooth=-1), "smooth must be above 0, got -1"),
        (lambda: Tversky(alpha=-0.1), "alpha must be at least 0, got -0.1"),
        (lambda: Tversky(beta=float("nan")), "beta must be at least 0, got nan"),
        (lambda: BCEDice(dice_weight=1.5), "dice_weight must be between 0 and 1, got 1.5"),
        (lambda: Focal(alpha=2), "alpha must be between 0 and 1, got 2"),
        (lambda: Focal(gamma=-1), "gamma must be at least 0, got -1"),
        (lambda: CE("often"), "weights=often: expected inverse or median, .* or a number above 0 for each class.*"),
        (lambda: CE([1, 0]), r"weights=\[1, 0\]: expected inverse or median.*"),
        (lambda: CEDice(weights=[]), r"weights=\[\]: expected inverse or median.*"),
        (lambda: BCEDice(weights=[1, 2, 3]), r"weights=\[1, 2, 3\]: .* for background and structure, such as.*"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()
