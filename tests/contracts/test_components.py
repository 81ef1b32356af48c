"""Every option in conf/ is a component that can be built, documented and told from a mistake: a new one is tested by
existing."""

import re
from itertools import pairwise

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from segsweep.components import build, check
from segsweep.config import GROUPS, conf_dir

OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((conf_dir() / group).glob("*.yaml"))]
NEEDED = {
    "lgg": ["data.root=nowhere"],
    "folder": ["data.root=nowhere", "data.images=images/*.png", "data.masks=masks/*.png"],
    "file": ["split.file=nowhere.json"],
}


def composed(group: str, option: str, *overrides: str):
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=[f"{group}={option}", *NEEDED.get(option, []), *overrides])


def named(group: str) -> list[str]:
    return [option for g, option in OPTIONS if g == group]


def test_the_promised_options_are_there():
    assert {"unet", "r2unet"} <= set(named("model"))
    assert {"bce", "dice", "bce_dice", "tversky", "focal"} <= set(named("loss"))
    assert {"sgd", "adam", "adamw"} <= set(named("optim"))
    assert {"constant", "cosine", "poly"} <= set(named("scheduler"))
    assert {"phantom", "lgg", "folder"} <= set(named("data"))
    assert {"patient", "slice", "kfold", "file", "holdout"} <= set(named("split"))
    assert {"none", "flips", "affine"} <= set(named("augment"))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_passes_the_check(group, option):
    assert check(composed(group, option)) == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_key_says_what_it_is(group, option):
    text = (conf_dir() / group / f"{option}.yaml").read_text()
    above = ["", *text.splitlines()]
    told = [f"{before if before.startswith('#') else ''}{line}" for before, line in pairwise(above)]
    assert [line for line in told if re.match(r"^[a-z]\w*:", line) and "#" not in line] == []
    assert text.startswith("#"), "a file begins with what it is"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_argument_that_is_not_taken_is_refused(group, option):
    (problem,) = check(composed(group, option, f"+{group}.nonsense_key=1"))
    assert f"{group}.nonsense_key" in problem


@pytest.mark.parametrize("option", named("model"))
def test_a_network_maps_any_size_and_channels_to_one_logit_a_pixel_and_learns(option):
    model = build("model", composed("model", option, "model.width=2").model, in_channels=2)
    x = torch.randn(2, 2, 20, 33)
    logits = model(x)
    assert logits.shape == (2, 1, 20, 33)
    logits.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("option", named("loss"))
def test_a_loss_falls_as_the_logits_get_better_and_is_finite_far_out(option):
    loss = build("loss", composed("loss", option).loss)
    target = (torch.arange(32).reshape(2, 1, 4, 4) % 3 == 0).float()
    good, bad = (loss(scale * (2 * target - 1), target) for scale in (4.0, -4.0))
    assert good.ndim == 0
    assert good < bad
    for scale in (100.0, -100.0):
        logits = (scale * (2 * target - 1)).requires_grad_()
        loss(logits, target).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("option", named("optim"))
def test_an_optimizer_goes_downhill(option):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build("optim", composed("optim", option, "optim.lr=0.01").optim)([weight])
    for _ in range(20):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert weight.item() < 1.0


@pytest.mark.parametrize("option", named("scheduler"))
def test_a_schedule_that_looks_at_the_total_carries_it(option):
    five, ten = (composed("scheduler", option, f"epochs={n}").scheduler for n in (5, 10))
    same = OmegaConf.to_container(five, resolve=True) == OmegaConf.to_container(ten, resolve=True)
    assert same == (option == "constant")


@pytest.mark.parametrize(("group", "added"), [("optim", "params"), ("scheduler", "optimizer")])
def test_what_the_run_completes_has_to_be_partial(group, added):
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config")
    with open_dict(cfg):
        del cfg[group]["_partial_"]
    (problem,) = check(cfg)
    assert problem == f"{group}: its YAML needs _partial_: true, as the run adds {added} to {cfg[group]._target_}"
