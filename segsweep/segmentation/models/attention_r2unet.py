"""Attention R2U-Net: the R2U-Net with attention gates, Zuo, Chen and Wang 2021 (doi 10.1155/2021/6625688)."""

from functools import partial

from segsweep.segmentation.models.blocks import AttentionGate, EncoderDecoder, RecurrentResidual, check_range


class AttentionR2UNet(EncoderDecoder):
    """R2U-Net whose skip connections go through attention gates: (B, in_channels, H, W) -> logits
    (B, out_channels, H, W). A gate is asked by what comes up, at its resolution.

    21,648,173 parameters at width 64, depth 4, 3 channels in and 1 out. ValueError for an argument out of its range.

    Args:
        in_channels, out_channels, width, depth: as in `UNet`; t: as in `R2UNet`.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 64, depth: int = 4, t: int = 2
    ) -> None:
        check_range(t=(t, 1, None))
        super().__init__(partial(RecurrentResidual, t=t), in_channels, out_channels, width, depth, AttentionGate)
