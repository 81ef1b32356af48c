"""R2U-Net: the U-Net with recurrent residual blocks, Alom et al. 2018 (arXiv 1802.06955)."""

from functools import partial

from segsweep.segmentation.models.blocks import EncoderDecoder, RecurrentResidual, check_range


class R2UNet(EncoderDecoder):
    """U-Net of recurrent residual blocks: (B, in_channels, H, W) -> logits (B, out_channels, H, W).

    21,296,641 parameters at width 64, depth 4, 3 channels in and 1 out. ValueError for an argument out of its range.

    Args:
        in_channels, out_channels, width, depth: as in `UNet`.
        t: how often each block applies its one 3x3 convolution to its own result, at least 1. More steps see further
            and take longer, with the same parameters; 2 in the paper.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, width: int = 64, depth: int = 4, t: int = 2
    ) -> None:
        check_range(t=(t, 1, None))
        super().__init__(partial(RecurrentResidual, t=t), in_channels, out_channels, width, depth)
