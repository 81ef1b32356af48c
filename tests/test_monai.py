"""MONAI's networks as options of `model`."""

import json
import os
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_classes import LABELLED, train, write
from test_cli import segsweep
from test_run import do, same, weights

from segsweep.config import components
from segsweep.config.schema import conf_dir
from segsweep.report import __main__ as report
from segsweep.segmentation import groups, networks
from segsweep.segmentation.evaluate import flops
from segsweep.segmentation.export import to_program
from segsweep.segmentation.kinds import KINDS
from segsweep.segmentation.models import monai
from segsweep.segmentation.models.fitted import fitted

KINDS_OF = {
    "attention_unet": {"depth": 3},
    "unet_plus_plus": {"heads": 4},
    "segresnet": {},
    "basic_unet": {},
    "swin_unetr": {"width": 12},
    "dynunet": {"depth": 3, "heads": 3},
    "flexible_unet": {"encoder": "resnet10"},
}


def composed(*overrides: str):
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=list(overrides))


def option(name: str) -> list[str]:
    given = {"width": 2} | KINDS_OF[name]
    return [f"model={name}", *(f"model.{key}={value}" for key, value in given.items())]


def model(name: str, channels: int = 3, maps: int = 3):
    torch.manual_seed(0)
    return networks.network(composed(*option(name)).model, channels, maps)


@pytest.mark.parametrize("name", KINDS_OF)
def test_a_network_of_monai_gives_its_outputs_at_any_size(name):
    network, heads = model(name), KINDS_OF[name].get("heads", 1)
    x = torch.randn(2, 3, 13, 40)
    found = network(x)
    assert [tuple(each.shape) for each in (found if heads > 1 else [found])] == [(2, 3, 13, 40)] * heads
    assert network.heads == heads
    assert network.eval()(x[:1]).shape == (1, 3, 13, 40)
    tried = fitted(network.network, 3, 3)  # by MONAI itself, of whatever version
    assert network.multiple % getattr(tried, "multiple", 1) == 0
    assert network.least >= getattr(tried, "least", 1)


def test_the_main_output_of_nested_networks_is_that_of_all_of_them():
    network, x = model("unet_plus_plus").eval(), torch.randn(1, 3, 32, 32)
    *_, last = network.network(x)
    assert torch.equal(network(x), last)
    network.train()
    assert torch.equal(network(x)[0], network.network(x)[-1])


def test_what_has_no_gradient_is_not_there():
    for name, given in (("flexible_unet", {"encoder": "efficientnet-b0"}), ("unet_plus_plus", {"heads": 1})):
        network = networks.network(composed(f"model={name}").model | OmegaConf.create({"width": 2} | given), 3, 1)
        network(torch.randn(2, 3, 32, 32)).mean().backward()
        assert all(p.grad is not None for p in network.parameters())


def test_a_network_with_heads_holds_no_batch_and_can_be_exported():
    network = model("dynunet", maps=1)
    network(torch.randn(2, 3, 16, 16))
    assert all(each.numel() == 1 for each in network.network.heads)
    network.eval()
    x = torch.randn(3, 3, 16, 32)
    torch.testing.assert_close(to_program(network, x).module()(x), network(x))


@pytest.mark.parametrize("name", KINDS_OF)
def test_an_option_of_monai_passes_the_check_with_classes(name):
    heads = KINDS_OF[name].get("heads", 1)
    deep = [f"deep_supervision={[0.5**n for n in range(heads)]}"] if heads > 1 else []
    assert components.check(composed(*option(name), *LABELLED, *deep)) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model=swin_unetr", "model.width=16"], "model: width must be a multiple of 12, got 16"),
        (["model=unet_plus_plus", "model.heads=2"], "model: heads must be 1 or 4, got 2"),
        (["model=dynunet", "model.heads=5"], "model: heads must be at most 4, got 5"),
        (["model=dynunet", "model.heads=2"], "model: DynUNet gives 2 outputs in training; say what each weighs"),
        (["model=segresnet", "model.dropout=1"], "model: dropout must be at least 0 and below 1, got 1"),
        (["model=flexible_unet", "model.encoder=resnet19"], "model: encoder must be one of efficientnet-b0, efficient"),
    ],
)
def test_what_a_network_of_monai_does_not_take_is_one_sentence(overrides, says):
    (problem,) = components.check(composed(*overrides))
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("name", "kind", "missing", "module"),
    [("segresnet", "SegResNet", "monai", "monai.networks.nets"), ("swin_unetr", "SwinUNETR", "einops", "einops")],
)
def test_without_monai_one_sentence_says_what_to_install(monkeypatch, name, kind, missing, module):
    monkeypatch.setitem(sys.modules, module, None)
    (problem,) = components.check(composed(f"model={name}", "model.width=36"))  # of no other test: it is remembered
    assert problem == f"model: {kind} is MONAI's, and {missing} is not installed: pip install 'segsweep[monai]'"


def test_a_foreign_configuration_builds_nothing_else_of_monai():
    for target in ("monai.networks.nets.HoVerNet", "segsweep.segmentation.models.monai.made"):
        with pytest.raises(Exception, match="not allowed to be called"):
            groups.build("model", {"_target_": target})
    assert {name for name in vars(monai) if KINDS["model"].fits(getattr(monai, name), f"{monai.__name__}.{name}")} == {
        *("AttentionUNet", "UNetPlusPlus", "SegResNet", "BasicUNet", "SwinUNETR", "DynUNet", "FlexibleUNet"),
    }


def test_the_work_of_a_network_that_looks_at_numbers_is_counted_without_memory():
    assert flops(model("swin_unetr"), 3, 64, 64) == flops(model("swin_unetr"), 3, 64, 64, "cpu")


DEEP = [*option("dynunet"), "deep_supervision=[1,0.5,0.25]", "scheduler=constant"]


def test_a_run_of_several_heads_goes_on_to_the_same_bits_in_parts_too(tmp_path):
    for parts in ("micro_batches=1", "micro_batches=2"):
        short = do(tmp_path / "short", *DEEP, parts, "epochs=1")
        long = do(tmp_path / "short", *DEEP, parts, "epochs=2")
        alone = do(tmp_path / "alone", *DEEP, parts, "epochs=2")
        assert [o.status for o in (short, long, alone)] == ["finished", "continued", "finished"]
        assert same(weights(long), weights(alone))
    info = json.loads((alone.folder / "run.json").read_text())
    assert info["libraries"]["monai"]
    assert any("super_head" in key or "deep_supervision_heads" in key for key in weights(alone))


def test_classes_and_void_go_through_several_heads_to_the_report(tmp_path):
    for n in range(6):
        write(tmp_path / "files", f"p{n}", n)
    outcome = train(tmp_path, tmp_path / "files", *DEEP, "epochs=1", "data.image_size=20")
    assert outcome.status == "finished", outcome.error
    assert {"test/dice/ring", "test/dice/core"} <= outcome.metrics.keys()
    assert report.main([str(outcome.folder), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## How each class scored" in text
    assert "`deep_supervision=[1, 0.5, 0.25]`" in text


OWN = """
_target_: networks_of_others.Eight
in_chans: <channels>
classes: <classes>
width: ${data.model_width}
"""


@pytest.mark.slow
def test_networks_of_monai_ones_own_and_ours_go_into_one_sweep_by_width(tmp_path, monkeypatch):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "theirs.yaml").write_text(OWN)
    monkeypatch.setenv("SEGSWEEP_ALLOW", "networks_of_others.*")
    monkeypatch.setenv("PYTHONPATH", f"{os.path.dirname(__file__)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    sweep = ["-m", "--config-dir", "mine", "model=unet,theirs,segresnet,basic_unet", "model.width=2,4", "epochs=1"]
    sweep += ["data.patients=6", "data.slices=8", "data.image_size=32", "tracking=none", "hydra.sweep.dir=multirun/all"]
    done = segsweep(tmp_path, *sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "multirun" / "all" / "report.md").read_text()
    for name in ("unet", "theirs", "segresnet", "basic_unet"):
        assert f". {name}, width=4 |" in text
