"""Residual U-Net: the U-Net with residual blocks, between the U-Net and the R2U-Net."""

from segsweep.segmentation.models.blocks import EncoderDecoder, Residual


class ResidualUNet(EncoderDecoder):
    """U-Net of residual blocks: (B, in_channels, H, W) -> logits (B, out_channels, H, W).

    What Alom et al. 2018 (arXiv 1802.06955) compare the R2U-Net to. Zhang, Liu and Wang 2018 (arXiv 1711.10684) have
    norm and ReLU before each convolution instead, and strides for pooling. 32,439,297 parameters at width 64, depth 4,
    3 channels in and 1 out. ValueError for an argument out of its range.

    Args:
        in_channels, out_channels, width, depth: as in `UNet`.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 1, width: int = 64, depth: int = 4) -> None:
        super().__init__(Residual, in_channels, out_channels, width, depth)
