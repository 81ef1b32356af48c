"""Networks of MONAI for slices, one class each, with the keys that the networks here have.

MONAI is an extra, `pip install 'segsweep[monai]'`, and is imported when one of them is built. Nothing is downloaded:
all are trained from scratch.
"""

import importlib
import math
from typing import Any

from torch import nn

from segsweep.core import child
from segsweep.core.errors import ConfigError
from segsweep.segmentation.models.blocks import check_range
from segsweep.segmentation.models.fitted import Fitted

ENCODERS = (*(f"efficientnet-{kind}" for kind in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "l2")),)
ENCODERS += tuple(f"resnet{layers}" for layers in (10, 18, 34, 50, 101, 152, 200))


def made(name: str, **arguments: Any) -> Any:
    """A network of monai.networks.nets for two dimensions. Raises ConfigError where MONAI is not installed, or what it
    needs for this one."""
    try:
        for needed in ("monai", "einops") if name == "SwinUNETR" else ("monai",):
            if not child.installed(needed):
                raise ModuleNotFoundError(name=needed)
        nets = importlib.import_module("monai.networks.nets")
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise ConfigError(
            f"model: {name} is MONAI's, and {missing} is not installed: pip install 'segsweep[monai]'"
        ) from error
    return getattr(nets, name)(spatial_dims=2, **arguments)


class AttentionUNet(Fitted):
    """U-Net with gates that weigh what goes past the bottom, Oktay et al. 2018 (arXiv 1804.03999):
    (B, in_channels, H, W) -> logits (B, out_channels, H, W). ValueError for an argument out of its range.

    Args:
        in_channels, out_channels: of the image, maps of logits, at least 1.
        width: channels at full resolution, at least 2; each level down has twice as many.
        depth: levels down, 2 to 6.
        dropout: share of features left out in training, 0 to below 1.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 64, depth: int = 4, dropout: float = 0.0
    ) -> None:
        check_range(width=(width, 2, None), depth=(depth, 2, 6))
        network = made(
            "AttentionUnet", in_channels=in_channels, out_channels=out_channels, channels=_doubled(width, depth),
            strides=(2,) * depth, dropout=_share(dropout),
        )  # fmt: skip
        super().__init__(network, 2**depth, 2 * 2**depth)


class UNetPlusPlus(Fitted):
    """Nested U-Net of four levels, Zhou et al. 2018 (arXiv 1807.10165): (B, in_channels, H, W) -> logits
    (B, out_channels, H, W). ValueError for an argument out of its range.

    Args:
        in_channels, out_channels, dropout: as in `AttentionUNet`.
        width: channels at full resolution, at least 2; each level down has twice as many.
        heads: outputs in training, 1 or 4: that of the whole network, and of those of three, two and one levels in it.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 64, heads: int = 1, dropout: float = 0.0
    ) -> None:
        check_range(width=(width, 2, None))
        if isinstance(heads, bool) or heads not in (1, 4):
            raise ValueError(f"heads must be 1 or 4, got {heads}")
        network = made(
            "BasicUNetPlusPlus", in_channels=in_channels, out_channels=out_channels,
            features=(*_doubled(width, 4), width), deep_supervision=heads > 1, dropout=_share(dropout),
        )  # fmt: skip
        if heads == 1:  # they have no gradient
            network.final_conv_0_1 = network.final_conv_0_2 = network.final_conv_0_3 = nn.Identity()
        super().__init__(network, 16, 32, heads)

    def of(self, found: Any) -> Any:
        return found[::-1]  # MONAI's last one is of the whole network


class SegResNet(Fitted):
    """Residual encoder-decoder with group norm, Myronenko 2018 (arXiv 1810.11654), without its autoencoder:
    (B, in_channels, H, W) -> logits (B, out_channels, H, W). ValueError for an argument out of its range.

    Args:
        in_channels, out_channels, dropout: as in `AttentionUNet`.
        width: channels at full resolution, at least 2; each of three levels down has twice as many. Eight groups for a
            norm, or as many as divide it.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 1, width: int = 64, dropout: float = 0.0) -> None:
        check_range(width=(width, 2, None))
        network = made(
            "SegResNet", in_channels=in_channels, out_channels=out_channels, init_filters=width,
            norm=("GROUP", {"num_groups": math.gcd(8, width)}), dropout_prob=_share(dropout) or None,
        )  # fmt: skip
        super().__init__(network, 8, 16)


class BasicUNet(Fitted):
    """MONAI's U-Net of four levels with instance norm and leaky ReLU, after Falk et al. 2019 (doi
    10.1038/s41592-018-0261-2): (B, in_channels, H, W) -> logits (B, out_channels, H, W). ValueError for an argument out
    of its range.

    Args:
        in_channels, out_channels, dropout: as in `AttentionUNet`.
        width: channels at full resolution, at least 2; each level down has twice as many.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 1, width: int = 64, dropout: float = 0.0) -> None:
        check_range(width=(width, 2, None))
        network = made(
            "BasicUNet", in_channels=in_channels, out_channels=out_channels, features=(*_doubled(width, 4), width),
            dropout=_share(dropout),
        )  # fmt: skip
        super().__init__(network, 16, 32)


class SwinUNETR(Fitted):
    """Encoder of shifted windows, decoder of convolutions, Hatamizadeh et al. 2022 (arXiv 2201.01266):
    (B, in_channels, H, W) -> logits (B, out_channels, H, W). ValueError for an argument out of its range.

    Args:
        in_channels, out_channels: as in `AttentionUNet`.
        width: channels at full resolution, a multiple of 12; each level down has twice as many.
        dropout: share of features left out in training, 0 to below 1, of the encoder.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 1, width: int = 24, dropout: float = 0.0) -> None:
        check_range(width=(width, 12, None))
        if width % 12:
            raise ValueError(f"width must be a multiple of 12, got {width}")
        network = made(
            "SwinUNETR", in_channels=in_channels, out_channels=out_channels, feature_size=width,
            drop_rate=_share(dropout),
        )  # fmt: skip
        super().__init__(network, 32, 64)


class DynUNet(Fitted):
    """The U-Net that nnU-Net configures, Isensee et al. 2021 (doi 10.1038/s41592-020-01008-z), with instance norm and
    leaky ReLU: (B, in_channels, H, W) -> logits (B, out_channels, H, W). ValueError for an argument out of its range.

    Args:
        in_channels, out_channels, dropout: as in `AttentionUNet`.
        width: channels at full resolution, at least 2; each level down has twice as many, 512 at most.
        depth: levels down, 2 to 7.
        heads: outputs in training, 1 to depth: that of the network, and of as many levels below full resolution.
        residual: blocks with a shortcut.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 32, depth: int = 5, heads: int = 1,
        residual: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        check_range(width=(width, 2, 512), depth=(depth, 2, 7), heads=(heads, 1, depth))
        if not isinstance(residual, bool):
            raise ValueError(f"residual must be true or false, got {residual}")
        network = made(
            "DynUNet", in_channels=in_channels, out_channels=out_channels, kernel_size=(3,) * (depth + 1),
            strides=(1, *(2,) * depth), upsample_kernel_size=(2,) * depth,
            filters=[min(channels, 512) for channels in _doubled(width, depth)], deep_supervision=heads > 1,
            deep_supr_num=max(1, heads - 1), res_block=residual, dropout=_share(dropout) or None,
        )  # fmt: skip
        super().__init__(network, 2**depth, 2 * 2**depth, heads)
        self.nothing = [*network.heads]

    def of(self, found: Any) -> Any:
        # MONAI leaves a batch's there until the next one, with its whole graph, and such a network cannot be copied.
        heads: Any = self.network.heads
        heads[:] = self.nothing
        return found


class FlexibleUNet(Fitted):
    """Decoder of a U-Net on a classifier's encoder, an EfficientNet (Tan and Le 2019, arXiv 1905.11946) or a ResNet (He
    et al. 2015, arXiv 1512.03385): (B, in_channels, H, W) -> logits (B, out_channels, H, W). ValueError for an argument
    out of its range.

    Args:
        in_channels, out_channels, dropout: as in `AttentionUNet`; dropout of the decoder.
        encoder: efficientnet-b0 to -b8, efficientnet-l2, resnet10, 18, 34, 50, 101, 152 or 200.
        width: channels of the decoder at full resolution, at least 1; each level down has twice as many. Those of the
            encoder are its own.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 16, encoder: str = "efficientnet-b0",
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        check_range(width=(width, 1, None))
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder}")
        network = made(
            "FlexibleUNet", in_channels=in_channels, out_channels=out_channels, backbone=encoder,
            decoder_channels=_doubled(width, 4)[::-1], dropout=_share(dropout), pretrained=False,
        )  # fmt: skip
        for unused in {"_conv_head", "_bn1", "_fc"} & {name for name, _ in network.encoder.named_children()}:
            setattr(network.encoder, unused, nn.Identity())  # of the classifier, without a gradient here
        super().__init__(network, 32, 64)


def _doubled(width: int, depth: int) -> tuple[int, ...]:
    return tuple(width * 2**level for level in range(depth + 1))


def _share(dropout: float) -> float:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    return dropout
