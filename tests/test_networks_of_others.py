"""Any network by `_target_`: whatever it calls its channels, gives as its outputs and needs as a size."""

import copy
import csv
import json

import networks_of_others as others
import pytest
import torch
from hydra import compose, initialize_config_dir
from test_classes import LABELLED
from test_run import do, same, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel

from segsweep.config import components
from segsweep.config.schema import conf_dir
from segsweep.segmentation import export, networks
from segsweep.segmentation.evaluate import flops
from segsweep.segmentation.losses import CE, Counted, DeeplySupervised, Dice
from segsweep.segmentation.models.fitted import Fitted, fitted, outputs
from segsweep.segmentation.train import in_parts
from segsweep.segmentation.trained import load


@pytest.fixture(autouse=True)
def _trusted(allow):
    allow("networks_of_others.*")


def named(name: str) -> list[str]:
    """Overrides for a network of the module, which says in its configuration what it calls its channels."""
    told = ["+model.in_chans='<channels>'", "+model.classes='<classes>'"] if name not in ("Three", "OfOne") else []
    return [f"model._target_=networks_of_others.{name}", "~model.depth", *told]


def composed(*overrides: str):
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=["model.width=4", *overrides])


def problems(*overrides: str) -> list[str]:
    return components.check(composed(*overrides))


def made(kind: type, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return kind(**({"in_chans": 3, "classes": 1} | arguments))


# Outputs


def test_outputs_are_the_main_one_first_however_they_come():
    one, two = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 2, 2)
    same_size = torch.ones(2, 3, 4, 4)
    for found, expected in (
        (one, [one]),
        ([one, two], [one, two]),
        ((one,), [one]),
        ({"aux": two, "out": one}, [one, two]),
        ({"logits": one}, [one]),
        ({"mask": one}, [one]),
        (torch.stack([one, same_size], 1), [one, same_size]),
    ):
        assert [each.tolist() for each in outputs(found)] == [each.tolist() for each in expected]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"mask": torch.zeros(1, 1, 2, 2), "edge": 0}, "gives a dictionary of mask, edge; call the main output out"),
        ("logits", "gives str; maps of logits are needed, a tensor, a list or a dictionary of them"),
        ([], "gives list; maps of logits are needed"),
        ((torch.zeros(1, 1, 2, 2), "why"), "gives str in a tuple; maps of logits"),
        (torch.zeros(3, 4), r"gives a tensor of shape \(3, 4\); maps of logits"),
        (
            {"features": torch.zeros(2, 9), "out": torch.zeros(1, 1, 2, 2)},
            r"gives a tensor of shape \(2, 9\) as 'features' of its dictionary; maps of logits .* are needed; what a "
            r"dictionary has beside 'out' is a further output in training \(deep supervision\): take 'features' out of",
        ),
    ],
)
def test_what_are_no_maps_is_said(found, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        outputs(found)


@pytest.mark.parametrize("kind", [others.Dictionary, others.Listed, others.Stacked])
def test_a_network_of_several_outputs_trains_by_all_and_is_evaluated_by_the_main_one(kind):
    network = fitted(made(kind), 3, 1)
    x = torch.randn(2, 3, 9, 8)
    assert network.heads == 2
    assert [tuple(each.shape) for each in network(x)] == [(2, 1, 9, 8)] * 2
    alone = network.eval()(x)
    assert torch.equal(alone, network.network.head(network.network.body(x)))


def test_a_network_as_this_program_has_them_is_left_as_it_is():
    network = made(others.Plain)
    assert fitted(network, 3, 1) is network


def test_the_loss_of_several_outputs_is_their_weighted_mean_and_of_one_its_own():
    loss, y = Dice(), (torch.rand(2, 1, 4, 4) > 0.5).float()
    a, b, c = (torch.randn(2, 1, 4, 4) for _ in range(3))
    found = DeeplySupervised(loss, [2, 1, 0])(a, b, c * float("nan"), y)
    torch.testing.assert_close(found, (2 * loss(a, y) + loss(b, y)) / 3)
    assert torch.equal(DeeplySupervised(loss, [2, 1, 0])(a, y), loss(a, y))


def test_void_enters_the_loss_of_no_output():
    loss = DeeplySupervised(Counted(CE()), [1, 0.5])
    a, b, y = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 1, 4, 4))
    y[..., :2] = 255
    changed = [each.clone() for each in (a, b)]
    for each in changed:
        each[..., :2] = 1e4
    assert torch.equal(loss(a, b, y), loss(*changed, y))


def test_a_batch_of_several_outputs_in_parts_makes_the_step_of_the_whole_batch():
    loss, x = DeeplySupervised(Dice(), [1, 0.5]), torch.randn(7, 3, 8, 8)
    y = (x[:, :1] > 1).float()
    whole = Fitted(made(others.Listed), heads=2)
    whole.network.body[1] = nn.Identity()  # its statistics would be of the parts
    divided = copy.deepcopy(whole)
    loss(*whole(x), y).backward()
    loss(*in_parts(divided, 3, [], x), y).backward()
    for a, b in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# Sizes


def test_a_size_that_a_network_needs_is_found_and_padded_to_and_cropped_from():
    network = fitted(made(others.Eight), 3, 1).eval()
    assert (network.multiple, network.least) == (8, 8)
    x = torch.randn(2, 3, 13, 8)
    padded = torch.cat([x[:, :, :1]] + [x[:, :, n : n + 1] for n in range(13)] + [x[:, :, -1:]] * 2, dim=2)
    torch.testing.assert_close(network(x), network.network(padded)[:, :, 1:14])


def test_a_multiple_of_patches_is_found_and_one_that_is_not_leaves_the_images_as_they_are():
    network = fitted(made(others.Patches), 3, 1)
    assert (network.multiple, network(torch.randn(2, 3, 30, 9)).shape) == (14, (2, 1, 30, 9))
    assert isinstance(fitted(made(others.Thirds), 3, 1, (33, 66)), others.Thirds)
    assert fitted(made(others.Thirds), 3, 1).heads == 0  # nobody knows the images' size yet
    with pytest.raises(ValueError, match=r"^Thirds gives maps of 33 x 33, tried on images of 33 x 40; they have"):
        fitted(made(others.Thirds), 3, 1, (33, 40))


def test_a_network_for_one_size_is_taken_with_images_of_that_size():
    assert isinstance(fitted(made(others.Fixed), 3, 1, (32, 32)), others.Fixed)
    unknown = fitted(made(others.Fixed), 3, 1, (32, 40))
    assert (unknown.heads, str(unknown.failed)) == (0, "images of 32 x 32 only")


def test_trying_a_network_changes_neither_it_nor_the_random_numbers():
    network = made(others.Numbers)
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fitted(network, 3, 1)
    assert torch.equal(torch.rand(1), expected)
    assert same(network.state_dict(), before)


def test_weights_keep_the_names_that_they_have_without_what_is_around_a_network():
    network = made(others.Dictionary)
    around = fitted(network, 3, 1)
    assert [*around.state_dict()] == [*network.state_dict()]
    other = fitted(made(others.Dictionary, width=4), 3, 1)
    nn.init.zeros_(other.network.head.weight)
    other.load_state_dict(network.state_dict())
    assert same(other.state_dict(), network.state_dict())
    mean, again = AveragedModel(around), AveragedModel(other)
    assert "module.head.weight" in mean.state_dict()
    again.load_state_dict(mean.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        around.load_state_dict(network.state_dict() | {"other": torch.zeros(1)})


# What the check says


@pytest.mark.parametrize("name", ["Plain", "Eight", "Fixed", "Numbers", "Half"])
def test_a_network_is_tried_before_training_with_classes_and_without(name):
    for labelled in ([], LABELLED):
        found = problems(*named(name), *labelled)
        if name == "Half":
            (problem,) = found
            side = 256 if labelled else 64
            half = f"maps of {side // 2} x {side // 2}, tried on images of {side} x {side}"
            assert problem == f"model: Half gives {half}; they have to be of the images' size"
        else:
            assert found == []


NUMBERS = "expected a list of numbers from 0 on, the main output's first and above 0, or null"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            named("Dictionary"),
            "model: Dictionary gives 2 outputs in training, the entries out, aux of its dictionary; say what each "
            "weighs in the loss, the main one first, such as deep_supervision=[1,0.5], where 0 leaves one out",
        ),
        (
            [*named("Listed"), "deep_supervision=[1,0.5,0.25]"],
            "deep_supervision=[1, 0.5, 0.25]: 3 given, and Listed has 2 outputs in training; give one each, the main "
            "output's first",
        ),
        (
            ["deep_supervision=[1,0.5]"],
            "deep_supervision=[1, 0.5]: 2 given, and UNet has 1 output in training; give null",
        ),
        (
            [*named("Stacked"), "deep_supervision=[0,1]"],
            f"deep_supervision=[0, 1]: {NUMBERS}",
        ),
        (
            [*named("Stacked"), "deep_supervision=half"],
            f"deep_supervision=half: {NUMBERS}",
        ),
        (named("Unnamed"), "model: Unnamed gives a dictionary of mask, edge; call the main output out"),
        (
            named("WithText"),
            "model: WithText gives str in a tuple; maps of logits (batch, maps, height, width) are needed",
        ),
        (
            named("Features"),
            "model: Features gives a further output of 4 maps of logits as 'features' of its dictionary, tried on "
            "images of 65 x 67, where 1 is needed: one structure needs one map, in every output; what a dictionary has "
            "beside 'out' is a further output in training (deep supervision): take 'features' out of it",
        ),
        (
            [*named("Plain")[:2], "+model.in_chans='<channels>'", "+model.classes=3"],
            "model: Plain gives 3 maps of logits, tried on images of 65 x 67, where 1 is needed: one structure needs "
            "one map",
        ),
        (
            [*named("Plain")[:2], "+model.in_chan='<channels>'", "+model.classes=1"],
            "model.in_chan: networks_of_others.Plain takes no such argument; did you mean in_chans?; it takes classes, "
            "in_chans, width",
        ),
        ([*named("Plain")[:2], "+model.classes=1"], "model.in_chans: a value is needed"),
    ],
)
def test_what_is_wrong_with_a_network_is_one_sentence_before_training(overrides, says):
    found = problems(*overrides)
    assert found[0] == says
    assert len(found) == 1 or "in_chan" in says


def test_a_network_that_names_no_channels_is_taken_as_it_is():
    assert problems(*named("Three")) == []
    assert problems(*named("OfOne")) == []  # nobody has looked at the images yet


# From the command line to predictions


def test_images_that_a_network_does_not_take_fail_the_run_before_training(tmp_path):
    outcome = do(tmp_path, *named("OfOne"))
    assert outcome.status == "failed"
    assert outcome.error == (
        "model: OfOne does not take these images, of 3 channels: grey images only; where an argument of it is to be "
        "the number of channels, its YAML says so, NAME: <channels>"
    )


DEEP = [*named("Dictionary"), "deep_supervision=[1,0.5]", "scheduler=constant"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_ALLOW", "networks_of_others.*")
        from segsweep.config import whitelist

        whitelist.own.cache_clear()
        outcome = do(tmp_path_factory.mktemp("deep"), *DEEP, "epochs=3", "optim.lr=0.02")
    assert outcome.status == "finished", outcome.error
    return outcome


def test_a_run_of_several_outputs_resumes_and_shares_epochs_to_the_same_bits(trained, tmp_path):
    short = do(tmp_path, *DEEP, "epochs=1", "optim.lr=0.02")
    long = do(tmp_path, *DEEP, "epochs=3", "optim.lr=0.02")
    assert [o.status for o in (short, long)] == ["finished", "continued"]
    assert same(weights(long), weights(trained))
    assert long.metrics | {"seconds": 0} == trained.metrics | {"seconds": 0}


def test_the_weights_of_outputs_are_another_run_and_train_the_further_ones(trained, tmp_path):
    alone = do(
        tmp_path, *named("Dictionary"), "deep_supervision=[1,0]", "scheduler=constant", "epochs=3", "optim.lr=0.02"
    )
    assert alone.signature != trained.signature
    assert json.loads((trained.folder / "run.json").read_text())["factors"]["deep_supervision"] == [1, 0.5]
    start = networks.network(composed(*named("Dictionary")).model, 3, 1)
    (first, second) = (weights(o)["aux.bias"] for o in (alone, trained))
    assert not torch.equal(first, second)
    assert start.heads == 2


def test_a_run_of_a_dictionary_is_predicted_with_and_exported(trained, tmp_path, monkeypatch):
    run = load(trained.folder)
    x = torch.randn(3, 3, 32, 32)
    assert run.model(x).shape == (3, 1, 32, 32)
    program = export.to_program(run.model, x)
    torch.testing.assert_close(program.module()(x), run.model(x))


def test_padding_is_in_no_count(tmp_path):
    outcome = do(tmp_path, *named("Eight"), "data.image_size=20", "epochs=1")
    assert outcome.status == "finished", outcome.error
    with (outcome.folder / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {sum(int(row[key]) for key in ("tp", "fp", "fn", "tn")) for row in rows} == {8 * 20 * 20}


def test_a_network_that_looks_at_numbers_is_measured(tmp_path):
    outcome = do(tmp_path, *named("Numbers"), "epochs=1")
    assert outcome.status == "finished", outcome.error
    assert flops(made(others.Numbers), 3, 32, 32) > 0
