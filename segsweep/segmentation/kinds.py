"""What each group of a segmentation's configuration may name. Imports nothing that trains."""

from segsweep.config.whitelist import Kind

KINDS: dict[str, Kind] = {
    "model": Kind(
        ("segsweep.segmentation.models.unet", "segsweep.segmentation.models.r2unet", "torch.nn"), "torch.nn.Module"
    ),
    "loss": Kind(("segsweep.segmentation.losses", "torch.nn"), "torch.nn.Module"),
    "optim": Kind(("torch.optim",), "torch.optim.Optimizer"),
    "scheduler": Kind(
        ("torch.optim.lr_scheduler", "segsweep.segmentation.schedules"), "torch.optim.lr_scheduler.LRScheduler"
    ),
    "data": Kind(
        ("segsweep.segmentation.data.phantom", "segsweep.segmentation.data.lgg", "segsweep.segmentation.data.folder"),
        methods=("scan", "decode"),
    ),
    "split": Kind(("segsweep.segmentation.data.split",), methods=("__call__",)),
    "metrics": Kind(("segsweep.segmentation.scores",), methods=("__call__",), grouped=False),
    "augment": Kind(("segsweep.segmentation.data.augment",), methods=("__call__",)),
}
