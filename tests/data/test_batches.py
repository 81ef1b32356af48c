"""Batches: their contents against numpy, their sizes by hand, and that a seed gives them again."""

import numpy as np
import pytest
import torch

from segsweep.segmentation.data import batches, cache
from segsweep.segmentation.data.augment import Affine
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.cache import Volumes
from segsweep.segmentation.data.phantom import Phantom

AFFINE = Affine(p=0.9, flip=0.5, degrees=15.0, scale=0.1, shift=0.05, intensity=0.1)


def made_up(dtype=np.uint8, clip=None, slices=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (slices, 8, 6, 3), dtype, endpoint=True)
    images.setflags(write=False)  # as the map of a file is
    return Volumes(
        images=images,
        masks=rng.integers(0, 2, (slices, 8, 6), np.uint8),
        patient=np.arange(slices) // 10,
        patients=["a", "b", "c", "d"],
        slices=[str(k) for k in range(slices)],
        shift=rng.uniform(50, 100, (4, 3)).astype(np.float32),
        scale=rng.uniform(0.01, 0.02, (4, 3)).astype(np.float32),
        clip=clip,
        digest="digest",
        key="key",
    )


def make(volumes, indices=None, **given):
    indices = np.arange(len(volumes.images)) if indices is None else np.array(indices)
    return Batches(volumes, indices, **{"batch_size": 16, "device": "cpu"} | given)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_contents(dtype, clip):
    volumes = made_up(dtype, clip)
    indices = [3, 7, 19, 20, 39]
    ((x, y, patient),) = make(volumes, indices).epoch(0)
    assert patient.tolist() == [0, 0, 1, 2, 3]
    owner = volumes.patient[indices]
    expected = (volumes.images[indices] - volumes.shift[owner, None, None]) * volumes.scale[owner, None, None]
    expected = np.clip(expected, *clip) if clip else expected
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(y[:, 0], volumes.masks[indices])
    assert (x.dtype, y.dtype, patient.dtype) == (torch.float32, torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(32, 16, [16, 16]), (34, 16, [16, 16, 2]), (33, 16, [16, 17]), (17, 16, [17]), (16, 16, [16]), (5, 16, [5]),
     (1, 16, [1]), (3, 1, [1, 1, 1]), (3, 2, [3])],
)  # fmt: skip
def test_sizes(count, size, sizes):
    loader = make(made_up(), range(count), batch_size=size)
    assert [len(y) for _, y, _ in loader.epoch(0)] == sizes
    assert len(loader) == len(sizes)
    assert loader.images == count


def contents(loader, seed):
    return [torch.cat(parts) for parts in zip(*loader.epoch(seed), strict=True)]


@pytest.mark.parametrize("augment", [None, AFFINE])
def test_a_seed_gives_an_epoch_again_and_another_another(augment):
    loader = make(made_up(), shuffle=True, augment=augment)
    first = contents(loader, 7)
    contents(loader, 8)  # an epoch in between leaves no trace
    torch.rand(3)
    for one, two in zip(first, contents(loader, 7), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(first, contents(make(made_up(), shuffle=True, augment=augment), 7), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[0], contents(loader, 8)[0])


def test_an_epoch_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    contents(make(made_up(), shuffle=True, augment=AFFINE), 0)
    assert torch.equal(torch.rand(2), expected)


def test_shuffling_shows_every_slice_once():
    volumes = made_up()
    order = contents(make(volumes, range(5, 40), shuffle=True), 1)[1]
    masks = torch.from_numpy(volumes.masks[5:]).float()[:, None]
    found = [next(i for i, m in enumerate(masks) if torch.equal(m, y)) for y in order]
    assert sorted(found) == list(range(35))
    assert found != sorted(found)


def test_without_shuffling_the_order_is_that_of_the_indices():
    assert contents(make(made_up(), [30, 2, 15]), 9)[2].tolist() == [3, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_set_on_the_device_gives_what_the_map_gives(monkeypatch, dtype):
    """The way of a GPU, on a CPU: the set copied in pieces, then indexed there."""
    volumes = made_up(dtype)
    expected = contents(make(volumes, shuffle=True), 3)
    monkeypatch.setattr(batches, "PIECE", 7 * volumes.images[0].nbytes)
    resident = tuple(batches._copy(array, torch.device("cpu")) for array in (volumes.images, volumes.masks))
    loader = make(volumes, shuffle=True)
    monkeypatch.setattr(loader, "resident", lambda: resident)
    for one, two in zip(expected, contents(loader, 3), strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_set_is_uploaded_once():
    volumes = made_up()
    on_gpu = make(volumes, device="cuda")
    for one, two in zip(contents(make(volumes), 0), contents(on_gpu, 0), strict=True):
        torch.testing.assert_close(one, two.cpu())
    (kept,) = batches._on_gpu.values()
    contents(make(volumes, device="cuda:0"), 1)
    assert [kept] == list(batches._on_gpu.values())
    other = made_up(slices=20)
    other.key = "another"
    contents(make(other, device="cuda"), 0)
    assert len(batches._on_gpu) == 1


def test_from_the_cache_no_warning_and_no_write(tmp_path):
    dataset = Phantom(
        seed=0, patients=3, slices=4, noise=0.05, bias=0.1, image_size=32, normalise="zscore", model_width=16
    )
    volumes = cache.load(dataset, dataset.scan(tmp_path), tmp_path, 1)
    before = volumes.images.copy()
    x, y, _ = contents(make(volumes, shuffle=True, augment=AFFINE), 0)
    np.testing.assert_array_equal(volumes.images, before)
    plain = contents(make(volumes), 0)[0]
    for patient in range(3):
        part = plain[4 * patient : 4 * patient + 4]
        torch.testing.assert_close(part.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(part.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
