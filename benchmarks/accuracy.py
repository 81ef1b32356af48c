"""Whether what is fast is as accurate: per-patient Dice of segsweep's arithmetic and of the plain loop's, by seed.

    python -m benchmarks.accuracy --data-root LGG [--networks unet r2unet] [--seeds 0 1 2] [--epochs 8]

Both sides start from the same weights and see the same batches in the same order; one computes as segsweep does here
(channels last, bf16 where it is used, fused optimizer), the other in float32 that is not TF32 on a GPU either, NCHW,
with the networks of benchmarks/plain.py and an optimizer that is not fused. What differs is arithmetic alone; with
`--options compile=true micro_batches=2` segsweep's side has these too.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from benchmarks import common, plain
from benchmarks.train import NoCheckpoints
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.core.device import autocast, compiled, pick_device, pick_precision
from segsweep.runs.loop import Loop, epoch_seed
from segsweep.segmentation import groups, schedules
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.evaluate import evaluate
from segsweep.segmentation.metrics import SPEC, per_patient
from segsweep.segmentation.train import fit, sizes


def composed(root: str, network: str, args: Any) -> DictConfig:
    overrides = ["data=lgg", f"data.root={root}", f"data.image_size={args.size}", f"model.width={args.width}"]
    overrides += [f"model={network}", f"epochs={args.epochs}", "augment=flips", *args.options]
    start()
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=overrides)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in float32 proper, which on CUDA are TF32 by torch's default and segsweep's choice."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def train(cfg: DictConfig, network: str, seed: int, decoded: Path) -> dict[str, np.ndarray]:
    """Each side's Dice of the test patients, in the same order."""
    device = pick_device(cfg.device)
    dataset = groups.build("data", cfg.data)
    manifest = dataset.scan(decoded)
    split = groups.build("split", cfg.split)(manifest.patients)
    volumes = cache.load(dataset, manifest, decoded, 2)
    batches = partial(Batches, volumes, device=device)
    augment = groups.build("augment", cfg.augment)
    order = batches(split.train, batch_size=cfg.batch_size, augment=augment, shuffle=True)
    test = batches(split.test, batch_size=cfg.eval_batch_size)
    torch.manual_seed(seed)
    model = groups.build("model", cfg.model, in_channels=3).to(device, memory_format=torch.channels_last)
    other = plain.Network(network, cfg.model.width).to(device)
    other.load_state_dict(model.state_dict())
    loss = groups.build("loss", cfg.loss).to(device)
    judged = partial(evaluate, loss=loss, batches=test, patients=len(volumes.patients))

    optimizer = groups.build("optim", cfg.optim)(model.parameters())
    forward_under = autocast(device, pick_precision(cfg.precision, device))
    scheduler = schedules.schedule(cfg.scheduler, optimizer, len(order))
    loop = Loop(SPEC, "test", epochs=cfg.epochs, seed=seed, checkpoints=NoCheckpoints(decoded / "none"))
    fit(
        loop, model, loss, optimizer, scheduler, order, batches(split.test[:2], batch_size=2),
        part="test", patients=len(volumes.patients), autocast=forward_under,
        clip_norm=cfg.clip_norm, parts=cfg.micro_batches,
        forward=compiled(model, sizes(cfg.batch_size, cfg.micro_batches)) if cfg.compile else None,
    )  # fmt: skip
    counts = {"ours": judged(model, autocast=forward_under, parts=cfg.micro_batches).counts}

    optimizer = groups.build("optim", cfg.optim, fused=False, foreach=False)(other.parameters())
    scheduler = schedules.schedule(cfg.scheduler, optimizer, len(order))
    with without_tf32():
        for epoch in range(1, cfg.epochs + 1):
            torch.manual_seed(epoch_seed(seed, epoch))
            other.train()
            for x, y, _ in order.epoch(epoch_seed(seed, epoch)):
                optimizer.zero_grad()
                loss(other(x.contiguous()), y).backward()
                if cfg.clip_norm is not None:
                    nn.utils.clip_grad_norm_(other.parameters(), cfg.clip_norm)
                optimizer.step()
            scheduler.step()
        counts["plain"] = judged(other, autocast=nullcontext).counts
    return {name: per_patient(found[np.unique(volumes.patient[split.test])])["dice"] for name, found in counts.items()}


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=1)
    parser.add_argument("--networks", nargs="+", default=["unet", "r2unet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--options", nargs="*", default=[], help="more overrides, for both sides")
    args = parser.parse_args()
    result: dict[str, Any] = {"data": "LGG" if args.data_root else "phantom", "networks": {}}
    result |= {"epochs": args.epochs, "width": args.width, "size": args.size, "seeds": args.seeds}
    result["options"] = args.options
    with common.lgg_files(args.data_root, patients=24) as root, tempfile.TemporaryDirectory() as decoded:
        for network in args.networks:
            cfg = composed(root, network, args)
            device = pick_device(cfg.device)
            result["machine"] = common.machine(device)
            result["precision"] = pick_precision(cfg.precision, device)
            found = result["networks"][network] = {"ours": [], "plain": []}
            for seed in args.seeds:
                for side, dice in train(cfg, network, seed, Path(decoded)).items():
                    found[side].append(dice.tolist())
                print(network, seed, *(f"{side} {np.nanmean(found[side][-1]):.4f} " for side in found), flush=True)
            means = {side: np.nanmean(rows, axis=1).tolist() for side, rows in found.items()}
            found["mean"] = means
            found["difference"] = float(np.mean(np.subtract(means["ours"], means["plain"])))
            found["spread"] = {side: max(values) - min(values) for side, values in means.items()}
            found["within"] = min(means["plain"]) <= float(np.mean(means["ours"])) <= max(means["plain"])
            common.write(args.out, "accuracy", result)


if __name__ == "__main__":
    main()
