"""U-Net: encoder and decoder with skip connections, Ronneberger, Fischer and Brox 2015 (arXiv 1505.04597)."""

from segsweep.segmentation.models.blocks import DoubleConv, EncoderDecoder


class UNet(EncoderDecoder):
    """U-Net with BatchNorm and size-keeping convolutions: (B, in_channels, H, W) -> logits (B, out_channels, H, W).

    31,043,521 parameters at width 64, depth 4, 3 channels in and 1 out. ValueError for an argument out of its range.

    Args:
        in_channels: channels of the image, at least 1.
        out_channels: maps of logits, at least 1; one for a binary mask.
        width: channels at full resolution, at least 1; each level down has twice as many. The parameters grow with its
            square.
        depth: number of 2x2 poolings, 1 to 8.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 1, width: int = 64, depth: int = 4) -> None:
        super().__init__(DoubleConv, in_channels, out_channels, width, depth)
