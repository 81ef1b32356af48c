"""A network that wants a GPU larger than there is: out of memory where more than four slices are to be remembered."""

import torch

from segsweep.segmentation.models.unet import UNet


class Hungry(UNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().forward(x)
