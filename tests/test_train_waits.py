"""The loop itself: within an epoch nothing waits for the device, and jobs of one shape share what was compiled."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from segsweep.core.checkpoints import Checkpoints
from segsweep.core.device import compile_seconds, compiled
from segsweep.runs.loop import Loop
from segsweep.segmentation import train
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.augment import Affine, Flips
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.phantom import Phantom
from segsweep.segmentation.losses import BCEDice, Focal
from segsweep.segmentation.metrics import SPEC
from segsweep.segmentation.models.r2unet import R2UNet
from segsweep.segmentation.models.unet import UNet

WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__float__", "__int__", "__bool__", "__index__", "__array__")
"""Methods of a tensor for which the host waits until a GPU has computed it."""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """40 slices of four patients."""
    data = Phantom(
        seed=0, patients=4, slices=10, noise=0.03, bias=0.1, image_size=16, normalise="zscore", model_width=2
    )
    place = tmp_path_factory.mktemp("cache")
    return cache.load(data, data.scan(place), place, 1)


def fit(model, optimizer, order, tmp_path, loss=None, clip_norm=None, forward=None):
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    held_out = Batches(order.volumes, np.arange(4), batch_size=4, device="cpu")
    loop = Loop(SPEC, "test", epochs=1, seed=0, checkpoints=Checkpoints(tmp_path))
    train.fit(
        loop, model, loss or BCEDice(), optimizer, scheduler, order, held_out,
        part="test", patients=4, autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        clip_norm=clip_norm, forward=forward, compile_seconds=compile_seconds,
    )  # fmt: skip
    return loop


class Watched(Batches):
    """Notes how often the host had waited when each batch was asked for."""

    def epoch(self, seed: int) -> Iterator:
        self.seen = []
        for batch in super().epoch(seed):
            self.seen.append(len(self.waits))
            yield batch


@pytest.mark.parametrize(
    "augment",
    [
        None,
        Flips(horizontal=0.5, vertical=0.5),
        Affine(p=0.9, flip=0.5, degrees=9.0, scale=0.1, shift=0.1, intensity=0.1),
    ],
)
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, volumes, augment, clip_norm):
    there = torch.from_numpy(volumes.images.copy()), torch.from_numpy(volumes.masks.copy())
    monkeypatch.setattr(Batches, "resident", lambda self: there)  # the set lives on the device, as on a GPU
    order = Watched(volumes, np.arange(40), batch_size=8, device="cpu", augment=augment, shuffle=True)
    order.waits = []
    model = UNet(3, 1, width=2, depth=1)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for name in WAITS:
        real = getattr(torch.Tensor, name)

        def counted(self, *given, name=name, real=real, **named):
            order.waits.append(name)
            return real(self, *given, **named)

        monkeypatch.setattr(torch.Tensor, name, counted)
    fit(model, optimizer, order, tmp_path, clip_norm=clip_norm)
    assert len(order.seen) == 5
    assert order.seen[-1] == order.seen[0], order.waits[order.seen[0] : order.seen[-1]]
    assert order.waits  # at the end of the epoch: what counts them works


def test_a_long_epoch_looks_at_its_losses_on_the_way(tmp_path, monkeypatch, volumes):
    looks = []
    monkeypatch.setattr(train, "LOOK", 0.0)
    monkeypatch.setattr(train, "_finite", lambda losses, epoch: looks.append(len(losses)))
    model = UNet(3, 1, width=2, depth=1)
    order = Batches(volumes, np.arange(40), batch_size=16, device="cpu")
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), order, tmp_path)
    assert looks == [1, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jobs_of_one_shape_compile_once(tmp_path, volumes):
    """Though each epoch ends with a smaller batch; and there is no end of shapes after which nothing is compiled."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    order = Batches(volumes, np.arange(35), batch_size=8, device="cpu", shuffle=True)

    def job(network, optimizer, loss, seed, width=2):
        torch.manual_seed(seed)
        model = network(3, 1, width=width, depth=1).to(memory_format=torch.channels_last)
        made, before = optimizer(model.parameters()), compile_seconds()
        whole = fit(model, made, order, tmp_path / str(seed), loss, forward=compiled(model, {8}, backend=counter))
        assert whole.history[0].get("compile_seconds", 0.0) == compile_seconds() - before
        return counter.frame_count

    first, began = job(UNet, torch.optim.Adam, BCEDice(), 0), compile_seconds()
    assert first > 0
    assert job(UNet, lambda p: torch.optim.SGD(p, lr=0.3), Focal(), 1) == first
    assert compile_seconds() == began > 0
    assert job(UNet, torch.optim.AdamW, BCEDice(smooth=2.0), 2) == first
    assert job(R2UNet, torch.optim.Adam, BCEDice(), 3) > first
    for width in range(3, 13):
        before = counter.frame_count
        assert job(UNet, torch.optim.Adam, BCEDice(), width + 1, width) > before, width


def test_a_set_that_does_not_fit_is_gathered_without_waiting(monkeypatch, volumes):
    order = Batches(volumes, np.arange(40), batch_size=8, device="cpu", shuffle=True)
    waits = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: waits.append(1) or real(self))
    assert len(list(order.epoch(0))) == 5
    assert len(waits) == 1  # the order, once an epoch
