"""Losses: modules of (logits, target) to a scalar. Of one structure both are (B, 1, H, W), and plain cross-entropy is
torch's; of C classes the logits are (B, C, H, W), the target is (B, 1, H, W) with the place of a class, 0 to C - 1.

All take logits and compute in float32, also where autocast made the logits bf16: sums over a batch of pixels are beyond
bf16's 8 bits.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segsweep.segmentation.data.labels import RULES, VOID


class Counted(nn.Module):
    """A loss of the pixels that are not VOID alone, whatever it is: they are given to it as one image of one row. Where
    there is none the loss is 0."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        known = target[:, 0] != VOID
        inside = logits.movedim(1, -1)[known]  # (pixels, C)
        if not len(inside):
            return 0 * logits.sum()
        return self.loss(inside.T[None, :, None], target[:, 0][known][None, None, None])


class DeeplySupervised(nn.Module):
    """The mean of a loss over the outputs of a network in training, the main one first, by `weights`; where the main
    one comes alone, as in evaluation, its loss. Lee et al. 2015 (arXiv 1409.5185); as nnU-Net does, the weights are
    divided by their sum, so that the loss has one scale.

    Args:
        weights: one an output, at least 0, the first above 0.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss, self.weights = loss, [weight / sum(weights) for weight in weights]

    def forward(self, *maps_and_target: Tensor) -> Tensor:
        *maps, target = maps_and_target
        if len(maps) == 1:
            return self.loss(maps[0], target)
        used = [(weight, each) for weight, each in zip(self.weights, maps, strict=True) if weight]
        return torch.stack([weight * self.loss(each, target) for weight, each in used]).sum()


class CE(nn.Module):
    """Cross-entropy of classes that exclude one another, mean over pixels; with weights the weighted mean, as torch's.

    Args:
        weights: one a class, above 0, or `inverse` or `median`, which the training part gives, see `labels.weights`.
    """

    weights: Tensor | None

    def __init__(self, weights: Sequence[float] | str | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", _weights(weights), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _check_classes(self, logits)
        return F.cross_entropy(logits.float(), target[:, 0].long(), weight=self.weights)


class CEDice(nn.Module):
    """(1 - dice_weight) * cross-entropy of the classes + dice_weight * Dice loss, as `BCEDice` for one structure.

    Args:
        dice_weight, smooth: as in `BCEDice`.
        weights: as in `CE`, of the cross-entropy alone.
    """

    def __init__(
        self, dice_weight: float = 0.5, smooth: float = 1.0, weights: Sequence[float] | str | None = None
    ) -> None:
        super().__init__()
        self.dice_weight = _share("dice_weight", dice_weight)
        self.dice, self.cross_entropy = Dice(smooth), CE(weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _check_classes(self, logits)
        cross_entropy = self.cross_entropy(logits, target)
        return (1 - self.dice_weight) * cross_entropy + self.dice_weight * self.dice(logits, target)


class Dice(nn.Module):
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), p = sigmoid(logits), the sums over the whole batch.

    The report's formula; Milletari, Navab and Ahmadi 2016 (arXiv 1606.04797) square p and t below. The batch counts as
    one image, so a slice without tumour adds its false positives, and the loss depends on which slices come together.
    Where the whole batch is empty and so is the prediction, the loss is 0. Of several classes p = softmax(logits), and
    the loss is the mean over the classes but the background.

    Args:
        smooth: pixels added to both sides, above 0; it keeps an empty batch defined.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = _positive("smooth", smooth)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape[1] > 1:
            tp, fp, fn = _soft_counts(logits, target)
            return (1 - (2 * tp + self.smooth) / (2 * tp + fp + fn + self.smooth)).mean()
        p, t = logits.float().sigmoid(), target.float()
        return 1 - (2 * (p * t).sum() + self.smooth) / (p.sum() + t.sum() + self.smooth)


class BCEDice(nn.Module):
    """(1 - dice_weight) * cross-entropy + dice_weight * Dice loss: the one has gradients everywhere, the other balance.

    The sum with equal weights is nnU-Net's, Isensee et al. 2021 (doi 10.1038/s41592-020-01008-z). Of one structure.

    Args:
        dice_weight: share of the Dice loss, 0 to 1.
        smooth: as in `Dice`.
        weights: as in `CE`, of background and structure, of the cross-entropy alone.
    """

    weights: Tensor | None

    def __init__(
        self, dice_weight: float = 0.5, smooth: float = 1.0, weights: Sequence[float] | str | None = None
    ) -> None:
        super().__init__()
        self.dice_weight = _share("dice_weight", dice_weight)
        self.dice = Dice(smooth)
        self.register_buffer("weights", _weights(weights, most=2), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        target = target.float()
        weight = None if self.weights is None else self.weights[target.long()]
        cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), target, weight)
        if weight is not None:
            cross_entropy = cross_entropy / weight.mean()
        return (1 - self.dice_weight) * cross_entropy + self.dice_weight * self.dice(logits, target)


class Tversky(nn.Module):
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth) with soft counts over the whole batch.

    Salehi, Erdogmus and Gholipour 2017 (arXiv 1706.05721). alpha = beta = 0.5 is the Dice loss of twice the `smooth`.
    Of several classes the mean over those but the background.

    Args:
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0; above alpha it favours recall.
        smooth: pixels added to both sides, above 0.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta = _not_negative("alpha", alpha), _not_negative("beta", beta)
        self.smooth = _positive("smooth", smooth)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape[1] > 1:
            tp, fp, fn = _soft_counts(logits, target)
            return (1 - (tp + self.smooth) / (tp + self.alpha * fp + self.beta * fn + self.smooth)).mean()
        p, t = logits.float().sigmoid(), target.float()
        tp = (p * t).sum()
        fp, fn = p.sum() - tp, t.sum() - tp
        return 1 - (tp + self.smooth) / (tp + self.alpha * fp + self.beta * fn + self.smooth)


class Focal(nn.Module):
    """Mean over pixels of -alpha_t (1 - p_t)**gamma log(p_t), with p_t the probability of the pixel's true class.

    Lin, Goyal, Girshick, He and Dollar 2017 (arXiv 1708.02002).

    Args:
        alpha: alpha_t of a tumour pixel, or of any class but the background, 0 to 1; a background pixel's is 1 - alpha.
        gamma: how far easy pixels are played down, at least 0; 0 is the cross-entropy weighted by alpha_t.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha, self.gamma = _share("alpha", alpha), _not_negative("gamma", gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        target = target.float()
        if logits.shape[1] > 1:
            logits = logits.float()
            true = logits.gather(1, target.long())
            others = logits.scatter(1, target.long(), float("-inf")).logsumexp(1, keepdim=True)
            margin, target = true - others, (target > 0).float()  # p_t = sigmoid(margin), here too
        else:
            margin = (2 * target - 1) * logits.float()  # p_t = sigmoid(margin)
        alpha = self.alpha * target + (1 - self.alpha) * (1 - target)
        # (1 - p_t)**gamma as an exponential: a power has an infinite slope where p_t rounds to 1 and gamma is below 1.
        easy = (self.gamma * F.logsigmoid(-margin)).exp()
        return -(alpha * easy * F.logsigmoid(margin)).mean()


def _soft_counts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TP, FP and FN over a batch of softmax(logits) (B, C, H, W), by class but the background: (C - 1,) each."""
    p = logits.float().softmax(1)[:, 1:]
    t = target.long() == torch.arange(1, logits.shape[1], device=logits.device)[:, None, None]
    tp = (p * t).sum((0, 2, 3))
    return tp, p.sum((0, 2, 3)) - tp, t.sum((0, 2, 3)) - tp


def _check_classes(loss: nn.Module, logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise ValueError(
            f"{type(loss).__name__} is of classes that exclude one another, 2 or more with the background: set "
            "data.classes, or take loss=bce, bce_dice, dice, focal or tversky for one structure"
        )


def _weights(given: Sequence[float] | str | None, most: int = 0) -> Tensor | None:
    if given is None or (isinstance(given, str) and given in RULES):
        return None
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    good = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < float("inf") for n in numbers)
    if not numbers or not good or (most and len(numbers) != most):
        raise ValueError(
            f"weights={given}: expected {' or '.join(RULES)}, which the training part gives, or a number above 0 for "
            f"{'background and structure, such as [1, 3]' if most else 'each class, such as [0.2, 1, 1]'}"
        )
    return torch.tensor(numbers, dtype=torch.float32)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


def _not_negative(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return value
