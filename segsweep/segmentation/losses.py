"""Losses for binary masks: modules of (logits, target), both (B, 1, H, W), to a scalar; plain cross-entropy is torch's.

All take logits and compute in float32, also where autocast made the logits bf16: sums over a batch of pixels are beyond
bf16's 8 bits.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Dice(nn.Module):
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), p = sigmoid(logits), the sums over the whole batch.

    The report's formula; Milletari, Navab and Ahmadi 2016 (arXiv 1606.04797) square p and t below. The batch counts as
    one image, so a slice without tumour adds its false positives, and the loss depends on which slices come together.
    Where the whole batch is empty and so is the prediction, the loss is 0.

    Args:
        smooth: pixels added to both sides, above 0; it keeps an empty batch defined.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = _positive("smooth", smooth)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t = logits.float().sigmoid(), target.float()
        return 1 - (2 * (p * t).sum() + self.smooth) / (p.sum() + t.sum() + self.smooth)


class BCEDice(nn.Module):
    """(1 - dice_weight) * cross-entropy + dice_weight * Dice loss: the one has gradients everywhere, the other balance.

    The sum with equal weights is nnU-Net's, Isensee et al. 2021 (doi 10.1038/s41592-020-01008-z).

    Args:
        dice_weight: share of the Dice loss, 0 to 1.
        smooth: as in `Dice`.
    """

    def __init__(self, dice_weight: float = 0.5, smooth: float = 1.0) -> None:
        super().__init__()
        self.dice_weight = _share("dice_weight", dice_weight)
        self.dice = Dice(smooth)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), target.float())
        return (1 - self.dice_weight) * cross_entropy + self.dice_weight * self.dice(logits, target)


class Tversky(nn.Module):
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth) with soft counts over the whole batch.

    Salehi, Erdogmus and Gholipour 2017 (arXiv 1706.05721). alpha = beta = 0.5 is the Dice loss of twice the `smooth`.

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
        p, t = logits.float().sigmoid(), target.float()
        tp = (p * t).sum()
        fp, fn = p.sum() - tp, t.sum() - tp
        return 1 - (tp + self.smooth) / (tp + self.alpha * fp + self.beta * fn + self.smooth)


class Focal(nn.Module):
    """Mean over pixels of -alpha_t (1 - p_t)**gamma log(p_t), with p_t the probability of the pixel's true class.

    Lin, Goyal, Girshick, He and Dollar 2017 (arXiv 1708.02002).

    Args:
        alpha: alpha_t of a tumour pixel, 0 to 1; a background pixel's is 1 - alpha.
        gamma: how far easy pixels are played down, at least 0; 0 is the cross-entropy weighted by alpha_t.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha, self.gamma = _share("alpha", alpha), _not_negative("gamma", gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        target = target.float()
        margin = (2 * target - 1) * logits.float()  # p_t = sigmoid(margin)
        alpha = self.alpha * target + (1 - self.alpha) * (1 - target)
        # (1 - p_t)**gamma as an exponential: a power has an infinite slope where p_t rounds to 1 and gamma is below 1.
        easy = (self.gamma * F.logsigmoid(-margin)).exp()
        return -(alpha * easy * F.logsigmoid(margin)).mean()


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
