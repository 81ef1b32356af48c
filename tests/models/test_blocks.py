import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segsweep.segmentation.models.blocks import DoubleConv, Join, RecurrentResidual, _padding, check_range


@pytest.mark.parametrize("t", [1, 2, 3])
def test_recurrent_block_is_the_reports_formula_in_values_and_gradients(t):
    torch.manual_seed(0)
    block = RecurrentResidual(3, 4, t).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)

    def formula():
        projected = block.project(x)
        previous = projected
        for _ in range(t):
            current = F.conv2d(previous, block.conv.weight, block.conv.bias, padding=1)
            current = F.batch_norm(current, None, None, block.norm.weight, block.norm.bias, training=True) + projected
            previous = torch.relu(current)
        return previous + F.conv2d(x, block.shortcut.weight, block.shortcut.bias)

    weights = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    expected, found = formula(), block(x)
    torch.testing.assert_close(found, expected)
    inputs = [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_double_conv_is_twice_convolution_norm_relu_with_a_bias():
    kinds = [type(layer) for layer in DoubleConv(3, 4)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    assert sum(p.numel() for p in DoubleConv(3, 4).parameters()) == (27 * 4 + 4) + 8 + (36 * 4 + 4) + 8


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joining_has_torchs_own_values_and_gradients(layout, dtype):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 4, 2, stride=2)
    x, skip = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6, 10)
    x, skip = (t.to(dtype).contiguous(memory_format=layout).requires_grad_() for t in (x, skip))
    weights = torch.randn(2, 8, 6, 10).contiguous(memory_format=layout)  # so that every place has its own gradient
    given = skip, x, up.weight, up.bias
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        own, expected = Join.apply(*given), torch.cat((skip, up(x)), dim=1)
    torch.testing.assert_close(own, expected)
    gradients = [torch.autograd.grad((joined * weights).sum(), given) for joined in (own, expected)]
    for mine, torchs, of in zip(*gradients, given, strict=True):
        assert (mine.dtype, mine.shape) == (of.dtype, of.shape)
        torch.testing.assert_close(mine, torchs, rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=2e-2)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [(32, 16, (0, 0)), (48, 16, (0, 0)), (16, 16, (8, 8)), (33, 16, (7, 8)), (1, 16, (15, 16)), (47, 16, (0, 1))],
)
def test_padding(size, multiple, expected):
    assert _padding(size, multiple, 2 * multiple) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "width must be at least 1, got 0"),
        (9, "width must be at most 8, got 9"),
        (2.0, "width must be a whole number, got 2.0"),
        (True, "width must be a whole number, got True"),
        ("4", "width must be a whole number, got '4'"),
    ],
)
def test_a_wrong_argument_is_named(value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_range(depth=(1, 1, 8), width=(value, 1, 8))
    check_range(width=(1, 1, None), depth=(8, 1, 8))
