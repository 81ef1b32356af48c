"""What each group of a segmentation's configuration may name. Imports nothing that trains."""

from segsweep.config.whitelist import Kind

NETWORKS = ("unet", "r2unet", "residual_unet", "attention_r2unet", "monai")
"""Modules of `segsweep.segmentation.models`."""
LOSSES = (
    *("DiceLoss", "DiceCELoss", "DiceFocalLoss", "FocalLoss", "TverskyLoss"),
    *("GeneralizedDiceLoss", "GeneralizedDiceFocalLoss"),
)
"""MONAI's losses that are sums over pixels; others there want more than logits and labels, or load networks."""
KINDS: dict[str, Kind] = {
    "model": Kind(
        (*(f"segsweep.segmentation.models.{name}" for name in NETWORKS), "torch.nn"),
        "torch.nn.Module",
    ),
    "loss": Kind(
        ("segsweep.segmentation.losses", "torch.nn"),
        "torch.nn.Module",
        names=tuple(f"monai.losses.{name}" for name in LOSSES),
    ),
    "optim": Kind(("torch.optim",), "torch.optim.Optimizer"),
    "scheduler": Kind(
        ("torch.optim.lr_scheduler", "segsweep.segmentation.schedules"), "torch.optim.lr_scheduler.LRScheduler"
    ),
    "data": Kind(
        tuple(f"segsweep.segmentation.data.{name}" for name in ("phantom", "lgg", "folder", "nifti")),
        methods=("scan", "decode"),
    ),
    "split": Kind(("segsweep.segmentation.data.split",), methods=("__call__",)),
    "metrics": Kind(("segsweep.segmentation.scores",), methods=("__call__",), grouped=False),
    "augment": Kind(("segsweep.segmentation.data.augment",), methods=("__call__",)),
}
