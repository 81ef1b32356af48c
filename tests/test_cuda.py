"""What only a CUDA GPU can show: nothing waits between steps; jobs beside one another, one of them out of memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from segsweep.core.checkpoints import Checkpoints
from segsweep.runs.loop import Loop
from segsweep.segmentation import train
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.augment import Affine
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.phantom import Phantom
from segsweep.segmentation.losses import BCEDice
from segsweep.segmentation.metrics import SPEC
from segsweep.segmentation.models.unet import UNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

GREEDY = """
import torch
from segsweep.segmentation.models.unet import UNet


class Greedy(UNet):
    def forward(self, x):
        if self.head.in_channels == 6 and x.device.type == "cuda":
            torch.empty(10**13, device=x.device)
        return super().forward(x)
"""
TINY = ["data.patients=6", "data.slices=8", "data.image_size=32", "model.depth=2", "epochs=2", "report=false"]


class Strict(Batches):
    """Every wait for the device between the first and the last batch is an error."""

    def epoch(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(super().epoch(seed)):
            if number == 1:  # the first chooses kernels
                torch.cuda.set_sync_debug_mode("error")
            yield batch
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_no_step_waits_for_the_gpu(tmp_path, monkeypatch, clip_norm):
    monkeypatch.setattr(train, "LOOK", 1e9)
    data = Phantom(
        seed=0, patients=4, slices=10, noise=0.03, bias=0.1, image_size=32, normalise="zscore", model_width=2
    )
    volumes = cache.load(data, data.scan(tmp_path), tmp_path, 1)
    augment = Affine(p=0.9, flip=0.5, degrees=9.0, scale=0.1, shift=0.1, intensity=0.1)
    order = Strict(volumes, np.arange(40), batch_size=8, device="cuda", augment=augment, shuffle=True)
    held_out = Batches(volumes, np.arange(4), batch_size=4, device="cuda")
    model = UNet(3, 1, width=4, depth=2).cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    try:
        loop = Loop(SPEC, "test", epochs=2, seed=0, checkpoints=Checkpoints(tmp_path))
        train.fit(
            loop, model, BCEDice().cuda(), optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), order, held_out,
            part="test", patients=4, autocast=lambda: torch.autocast("cuda", torch.bfloat16), clip_norm=clip_norm,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(loop.history) == 2


@pytest.mark.parametrize("slots", [1, 3])
def test_a_job_out_of_memory_leaves_those_beside_it_alone_and_each_has_its_own_peak(tmp_path, slots):
    (tmp_path / "greedy_of_test.py").write_text(GREEDY)
    grid = ["model._target_=greedy_of_test.Greedy", "model.width=4,6,32", f"hydra.launcher.jobs_per_device={slots}"]
    places = ["paths.runs=multirun", f"paths.cache={tmp_path}/cache", "tracking=none", "device=cuda"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-m", "segsweep", "-m", *grid, *TINY, *places],
        cwd=tmp_path, env=environment | {"SEGSWEEP_ALLOW": "greedy_of_test.*"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    jobs = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("multirun/2*/*/job.json"))]
    assert [(job["status"], job["class"]) for job in jobs] == [
        ("finished", None),
        ("failed", "oom"),
        ("finished", None),
    ]
    small, large = (
        json.loads((tmp_path / "multirun" / "runs" / job["signature"] / "result.json").read_text())["peak_memory_bytes"]
        for job in (jobs[0], jobs[2])
    )
    assert 0 < 2 * small < large < 2**31
