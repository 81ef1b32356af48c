"""What each group of a segmentation's configuration may name. Imports nothing that trains."""

from segsweep.config.whitelist import Kind

KINDS: dict[str, Kind] = {
    "model": Kind(
        ("segsweep.segmentation.models.unet", "segsweep.segmentation.models.r2unet", "torch.nn"), "torch.nn.Module"
    ),
    "loss": Kind(("segsweep.segmentation.losses", "torch.nn"), "torch.nn.Module"),
    "optim": Kind(("torch.optim",), "torch.optim.Optimizer"),
    "scheduler": Kind(("torch.optim.lr_scheduler",), "torch.optim.lr_scheduler.LRScheduler"),
    "data": Kind(
        tuple(f"segsweep.segmentation.data.{name}" for name in ("phantom", "lgg", "folder", "nifti")),
        methods=("scan", "decode"),
    ),
    "split": Kind(("segsweep.segmentation.data.split",), methods=("__call__",)),
    "augment": Kind(("segsweep.segmentation.data.augment",), methods=("__call__",)),
}
