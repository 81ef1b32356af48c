import pytest
import torch
import torch.nn.functional as F

from segsweep.segmentation.models.attention_r2unet import AttentionR2UNet
from segsweep.segmentation.models.r2unet import R2UNet
from segsweep.segmentation.models.residual_unet import ResidualUNet
from segsweep.segmentation.models.unet import UNet

NETWORKS = [UNet, R2UNet, ResidualUNet, AttentionR2UNet]


def make(network, **arguments):
    torch.manual_seed(0)
    return network(**({"width": 4, "depth": 2} | arguments))


COUNTS = [(UNet, 31_043_521), (R2UNet, 21_296_641), (ResidualUNet, 32_439_297), (AttentionR2UNet, 21_648_173)]


@pytest.mark.parametrize(("network", "expected"), COUNTS)
def test_parameters_are_the_reports_and_those_that_are_told(network, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in network().parameters()) == expected


def test_t_changes_the_logits_and_not_the_parameters():
    x = torch.randn(2, 3, 16, 16)
    one, three = (make(R2UNet, t=t) for t in (1, 3))
    assert [p.shape for p in one.parameters()] == [p.shape for p in three.parameters()]
    assert not torch.allclose(one(x), three(x))


def test_unet_joins_the_encoders_features_first_and_the_upsampled_ones_after():
    model = make(UNet).eval()
    x = torch.randn(1, 3, 16, 16)
    e1 = model.encoder[0](x)
    e2 = model.encoder[1](F.max_pool2d(e1, 2))
    bottom = model.encoder[2](F.max_pool2d(e2, 2))
    d2 = model.decoder[0](torch.cat((e2, model.up[0](bottom)), dim=1))
    d1 = model.decoder[1](torch.cat((e1, model.up[1](d2)), dim=1))
    torch.testing.assert_close(model(x), model.head(d1))


def test_an_attention_gate_weighs_the_skip_connection_by_what_comes_up():
    model = make(AttentionR2UNet).eval()
    x = torch.randn(1, 3, 16, 16)
    asked = []
    for gate in model.gates:
        gate.register_forward_hook(lambda module, inputs, output: asked.append((*inputs, output)))
    expected = model(x)
    for gate, (skip, up, weighed) in zip(model.gates, asked, strict=True):
        share = gate.psi(torch.relu(gate.skip(skip) + gate.up(up))).sigmoid()
        assert share.shape == (1, 1, *skip.shape[-2:])
        torch.testing.assert_close(weighed, skip * share)
    for gate in model.gates:
        torch.nn.init.constant_(gate.psi[1].bias, 100.0)  # all is let through: the R2U-Net
    plain = make(R2UNet).eval()
    plain.load_state_dict({key: item for key, item in model.state_dict().items() if not key.startswith("gates.")})
    torch.testing.assert_close(model(x), plain(x))
    assert not torch.allclose(expected, plain(x))


def test_a_residual_block_is_two_convolutions_and_a_shortcut():
    block = make(ResidualUNet).eval().encoder[0]
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(block(x), block.convs(x) + block.shortcut(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_double_with_each_level_and_any_number_goes_in_and_out(network):
    model = make(network, in_channels=5, out_channels=2, width=3, depth=3)
    bottom = []
    model.encoder[-1].register_forward_hook(lambda module, inputs, output: bottom.append(output.shape))
    assert model(torch.randn(2, 5, 32, 16)).shape == (2, 2, 32, 16)
    assert bottom == [(2, 24, 4, 2)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(13, 16), (1, 1), (4, 9), (17, 30)])
def test_a_size_that_does_not_divide_is_padded_with_its_border_and_cropped(network, height, width):
    model = make(network).eval()
    x = torch.randn(2, 3, height, width)
    logits = model(x)
    assert logits.shape == (2, 1, height, width)
    rows = max(-(-height // 4) * 4, 8)
    columns = max(-(-width // 4) * 4, 8)
    top, left = (rows - height) // 2, (columns - width) // 2
    at = torch.arange(rows).sub(top).clamp(0, height - 1), torch.arange(columns).sub(left).clamp(0, width - 1)
    padded = x[:, :, at[0]][..., at[1]]
    torch.testing.assert_close(logits, model(padded)[:, :, top : top + height, left : left + width])


@pytest.mark.parametrize("network", NETWORKS)
def test_one_small_image_can_be_trained_on(network):
    make(network)(torch.randn(1, 3, 4, 4)).mean().backward()  # one pixel at the bottom would have no batch statistics


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("width", 0, "width must be at least 1, got 0"),
        ("depth", 0, "depth must be at least 1, got 0"),
        ("depth", 9, "depth must be at most 8, got 9"),
        ("in_channels", 0, "in_channels must be at least 1, got 0"),
        ("out_channels", -1, "out_channels must be at least 1, got -1"),
        ("width", 2.5, "width must be a whole number, got 2.5"),
    ],
)
def test_an_argument_out_of_range_is_named(network, argument, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        network(**{argument: value})


def test_t_out_of_range_is_named():
    with pytest.raises(ValueError, match="^t must be at least 1, got 0$"):
        R2UNet(t=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_last_gives_the_same_logits_and_stays_channels_last(network):
    x = torch.randn(2, 3, 16, 16)
    expected = make(network)(x)
    model = make(network).to(memory_format=torch.channels_last)
    layouts = []
    model.decoder[-1].register_forward_hook(lambda module, inputs, output: layouts.append(output))
    found = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)
    assert layouts[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("network", NETWORKS)
def test_bf16_autocast_stays_in_bf16_and_near_float32(network):
    model = make(network, width=8).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 16, 16)
    expected = model(x)
    entering = []
    for block in (*model.encoder, *model.decoder):
        block.register_forward_hook(lambda module, inputs, output: entering.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    assert set(entering) == {torch.bfloat16}  # float32 between the layers would cost twice the memory traffic
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.05 * expected.std()
    found.float().square().mean().backward()
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_compiles_to_one_graph_with_the_same_logits_and_gradients(network):
    model = make(network, depth=1)
    x = torch.randn(2, 3, 7, 8)
    found, expected = torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_exports_with_a_free_batch_and_size(network):
    model = make(network).eval()
    batch, height, width = (
        torch.export.Dim("batch"),
        torch.export.Dim("height", min=2),
        torch.export.Dim("width", min=2),
    )
    program = torch.export.export(
        model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch, 2: 4 * height, 3: 4 * width},)
    )
    x = torch.randn(3, 3, 24, 8)
    torch.testing.assert_close(program.module()(x), model(x))
