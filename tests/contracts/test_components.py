"""Every option in conf/ is a component that can be built, documented and told from a mistake: a new one is tested by
existing."""

import re
from itertools import pairwise

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from segsweep.config.components import check
from segsweep.config.schema import conf_dir
from segsweep.config.whitelist import groups
from segsweep.segmentation.groups import build

OPTIONS = [(group, file.stem) for group in groups() for file in sorted((conf_dir() / group).glob("*.yaml"))]
CLASSES = ["data=folder", "data.root=nowhere", "data.classes=3"]
NEEDED = {
    "ce": CLASSES,
    "ce_dice": CLASSES,
    "lgg": ["data.root=nowhere"],
    "nifti": ["data.root=nowhere"],
    "folder": ["data.root=nowhere", "data.images=images/*.png", "data.masks=masks/*.png"],
    "file": ["split.file=nowhere.json"],
}


def composed(group: str, option: str, *overrides: str):
    with initialize_config_dir(str(conf_dir())):
        return compose("config", overrides=[f"{group}={option}", *NEEDED.get(option, []), *overrides])


def named(group: str) -> list[str]:
    return [option for g, option in OPTIONS if g == group]


def test_the_promised_options_are_there():
    assert {"unet", "r2unet", "residual_unet", "attention_r2unet"} <= set(named("model"))
    assert {"attention_unet", "unet_plus_plus", "segresnet", "basic_unet"} <= set(named("model"))
    assert {"swin_unetr", "dynunet", "flexible_unet"} <= set(named("model"))
    assert {"auto", "bce", "dice", "bce_dice", "tversky", "focal", "ce", "ce_dice"} <= set(named("loss"))
    assert {"sgd", "adam", "adamw"} <= set(named("optim"))
    assert {"constant", "cosine", "poly", "onecycle", "warmup", "plateau"} <= set(named("scheduler"))
    assert {"phantom", "lgg", "folder", "nifti"} <= set(named("data"))
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
    width = 12 if option == "swin_unetr" else 2
    model = build("model", composed("model", option, f"model.width={width}").model, in_channels=2)
    x = torch.randn(2, 2, 20, 33)
    logits = model(x)
    assert logits.shape == (2, 1, 20, 33)
    logits.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("option", sorted({*named("loss")} - {"bce", "bce_dice"}))
def test_a_loss_of_classes_falls_as_the_logits_get_better_and_is_finite_far_out(option):
    loss = build("loss", composed("loss", option, *CLASSES).loss)
    target = (torch.arange(32).reshape(2, 1, 4, 4) % 3).float()
    right = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()
    good, bad = (loss(scale * right, target) for scale in (4.0, -4.0))
    assert good.ndim == 0
    assert good < bad
    for scale in (100.0, -100.0):
        logits = (scale * right).requires_grad_()
        loss(logits, target).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("option", sorted({*named("loss")} - {"ce", "ce_dice"}))
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
    assert same == (option in ("constant", "plateau"))


@pytest.mark.parametrize(("group", "added"), [("optim", "params"), ("scheduler", "optimizer")])
def test_what_the_run_completes_has_to_be_partial(group, added):
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config")
    with open_dict(cfg):
        del cfg[group]["_partial_"]
    (problem,) = check(cfg)
    assert problem == f"{group}: its YAML needs _partial_: true, as the run adds {added} to {cfg[group]._target_}"


def scheduled(epochs: int, target: str, /, *overrides: str, **arguments) -> list[str]:
    """The mistakes of a schedule, a name in torch.optim.lr_scheduler or a dotted one, in a run of so many epochs."""
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=[f"epochs={epochs}", *overrides])
    target = target if "." in target else f"torch.optim.lr_scheduler.{target}"
    cfg.scheduler = {"_target_": target, "_partial_": True, **arguments}
    return check(cfg)


ONCE = "steps, and a schedule is stepped once an epoch, 3 times with epochs=3"
INSTEAD = "use scheduler=onecycle"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"total_steps": 18}, f"plans 18 {ONCE}: it would stop at step 3"),
        ({"total_steps": 2}, f"plans 2 {ONCE}: it has no step after 2"),
    ],
)
def test_a_cycle_of_another_number_of_steps_than_the_run_makes_is_refused_with_both(given, says):
    problems = scheduled(3, "OneCycleLR", max_lr=0.1, **given)
    assert problems == [f"scheduler: OneCycleLR {says}; {INSTEAD}, or total_steps=${{epochs}} for one step an epoch"]


def test_a_cycle_of_steps_that_is_stepped_by_epochs_is_told_how():
    says = "scheduler.steps_per_epoch=6: with scheduler.by=epoch this schedule is stepped once an epoch; leave it out, "
    problems = scheduled(3, "OneCycleLR", max_lr=0.1, epochs=3, steps_per_epoch=6)
    assert problems == [f"{says}and with scheduler.by=step the run gives what it is"]


def test_a_cycle_that_is_planned_by_epochs_is_right_for_its_number_of_epochs_alone():
    assert scheduled(3, "OneCycleLR", max_lr=0.1, total_steps="${epochs}") == []
    assert scheduled(7, "OneCycleLR", max_lr=0.1, total_steps=7) == []
    assert len(scheduled(6, "OneCycleLR", max_lr=0.1, total_steps=7)) == 1  # what is right is remembered


def test_a_cycle_that_the_run_does_not_see_the_end_of_is_refused():
    (problem,) = scheduled(3, "CyclicLR", base_lr=0.001, max_lr=0.1)
    assert problem.startswith(f"scheduler: CyclicLR has a cycle of 4000 {ONCE}: it would stop within the first; use")
    assert len(scheduled(3, "CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=2)) == 1
    assert scheduled(3, "CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=2, step_size_down=1) == []
    assert scheduled(9, "CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=2) == []


@pytest.mark.parametrize(
    ("target", "given", "says"),
    [
        ("ReduceLROnPlateau", {}, "steps by a value of the validation part: scheduler.by=val, or scheduler=plateau"),
        ("StepLR", {"step_size": 1, "by": "val"}, "steps by no value: scheduler.by=epoch or step"),
    ],
)
def test_a_schedule_is_stepped_by_what_it_is_made_for(target, given, says):
    assert scheduled(3, target, **given) == [f"scheduler: {target} {says}"]


def test_a_plateau_goes_the_way_of_its_value(own):
    assert scheduled(3, "ReduceLROnPlateau", by="val") == scheduled(3, f"{own}.Plateau", by="val/loss") == []
    assert scheduled(3, "ReduceLROnPlateau", by="val/dice", mode="max") == []
    (problem,) = scheduled(3, "ReduceLROnPlateau", by="val/dice")
    assert problem == "scheduler: mode=min: of val/dice, more is better; scheduler.mode=max"
    (problem,) = scheduled(3, "ReduceLROnPlateau", by="val/dise", mode="max")
    assert problem.startswith("scheduler: scheduler.by=val/dise: allowed are epoch, step, val and val/loss,")
    assert problem.endswith("; did you mean val/dice?")
    assert len(scheduled(3, "ReduceLROnPlateau", by="val/hd95")) == 1  # measured at the end alone
    classes = ["data=folder", "data.root=x", "data.classes=[background,myo]"]
    assert scheduled(3, "ReduceLROnPlateau", *classes, by="val/dice/myo", mode="max") == []
    assert len(scheduled(3, "ReduceLROnPlateau", by="val/dice/myo", mode="max")) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("patience", -1), ("cooldown", 0.5), ("threshold", -0.1), ("min_lr", -1e-3)]
)
def test_a_plateau_of_no_such_length_is_refused(key, value):
    (problem,) = scheduled(3, "ReduceLROnPlateau", by="val", **{key: value})
    assert problem.startswith(f"scheduler.{key}={value}: must be ")


def test_a_plateau_needs_a_validation_part():
    says = "scheduler.by=val: it goes by the validation part, and there is none (never by the test part); give it one"
    (problem,) = scheduled(3, "ReduceLROnPlateau", "split=holdout", by="val")
    assert problem == f"{says}, as with split=patient split.val=0.15"


def test_lengths_of_a_schedule_by_step_are_epochs():
    cycle = {"max_lr": 0.1, "by": "step"}
    assert scheduled(3, "OneCycleLR", total_steps=3, **cycle) == []
    assert scheduled(3, "OneCycleLR", epochs=3, **cycle) == []
    assert scheduled(3, "OneCycleLR", epochs=3, steps_per_epoch=6, **cycle) == []
    says = "and with scheduler.by=step lengths are in epochs: here 3 epochs with epochs=3: it would stop at epoch 3"
    (problem,) = scheduled(3, "OneCycleLR", total_steps=18, **cycle)
    assert problem == f"scheduler: OneCycleLR plans 18 epochs, {says}; {INSTEAD}, or total_steps=${{epochs}}"
    (problem,) = scheduled(3, "OneCycleLR", epochs=2, steps_per_epoch=6, **cycle)
    assert "plans 12 steps, and with scheduler.by=step lengths are in epochs: here 18 steps with epochs=3" in problem
    (problem,) = scheduled(3, "CyclicLR", base_lr=0.001, max_lr=0.1, by="step")
    assert "has a cycle of 4000 epochs" in problem
    assert scheduled(3, "CyclicLR", base_lr=0.001, max_lr=0.1, step_size_up=1, by="step") == []


def test_a_warmup_is_no_longer_than_the_run():
    given = {"start": 0.01, "floor": 0.0, "by": "step"}
    target = "segsweep.segmentation.schedules.Warmup"
    (problem,) = scheduled(3, target, warmup=4, T_max=3, **given)
    assert problem.startswith("scheduler.warmup=4: 3 epochs are all there are (scheduler.T_max); give fewer, or")
    assert scheduled(3, target, warmup=3, T_max=None, **given) == scheduled(3, target, warmup=3, T_max=3, **given) == []
    assert scheduled(3, target, warmup=-1, T_max=3, **given) == [
        "scheduler.warmup=-1: expected a number from 0 to 1e+06"
    ]


OWN = """
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, CyclicLR, LinearLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.lr_scheduler import SequentialLR


class Cycle(OneCycleLR):
    pass


class Plateau(ReduceLROnPlateau):
    pass


def chained(optimizer, total):
    return ChainedScheduler([ConstantLR(optimizer), Cycle(optimizer, 0.1, total_steps=total)])


def warm(optimizer, total, milestone=2):
    return SequentialLR(optimizer, [LinearLR(optimizer), Cycle(optimizer, 0.1, total_steps=total)], [milestone])


def fine(optimizer, epochs, steps_per_epoch):
    return SequentialLR(
        optimizer, [LinearLR(optimizer), Cycle(optimizer, 0.1, total_steps=epochs * steps_per_epoch)], [steps_per_epoch]
    )


def first(optimizer, up):
    cycle = CyclicLR(optimizer, 0.001, 0.1, step_size_up=up)
    return ChainedScheduler([SequentialLR(optimizer, [cycle, ConstantLR(optimizer)], [4])])
"""


@pytest.fixture
def own(tmp_path, monkeypatch, allow):
    """A module of one's own with schedules."""
    (tmp_path / "schedules_of_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    allow("schedules_of_test.*")
    return "schedules_of_test"


def test_schedules_of_ones_own_and_inside_others_are_held_to_the_steps_that_they_get(own):
    (problem,) = scheduled(3, f"{own}.Cycle", max_lr=0.1, total_steps=18)
    assert problem.startswith(f"scheduler: Cycle plans 18 {ONCE}")
    (problem,) = scheduled(3, f"{own}.Plateau")
    assert problem.startswith("scheduler: Plateau steps by a value")
    (problem,) = scheduled(3, f"{own}.chained", total=18)
    assert problem.startswith(f"scheduler: Cycle in ChainedScheduler plans 18 {ONCE}")
    assert scheduled(3, f"{own}.chained", total=3) == []
    (problem,) = scheduled(6, f"{own}.warm", total=6)  # two steps of it are the warm-up's
    assert problem.startswith("scheduler: Cycle in SequentialLR plans 6 steps, and")
    assert "stepped once an epoch, 4 times with epochs=6: it would stop at step 4" in problem
    assert problem.endswith("or total_steps=4 for one step an epoch")
    assert scheduled(6, f"{own}.warm", total=4) == []
    assert len(scheduled(6, f"{own}.warm", total=6, milestone=9)) == 1  # the run ends before
    assert scheduled(6, f"{own}.first", up=2) == []
    assert scheduled(6, f"{own}.fine", epochs=5, by="step") == []
    (problem,) = scheduled(6, f"{own}.fine", epochs=6, by="step")
    assert "Cycle in SequentialLR plans 6 epochs" in problem
    assert "here 5 epochs with epochs=6" in problem
    (problem,) = scheduled(6, f"{own}.first", up=3)
    assert problem.startswith("scheduler: CyclicLR in SequentialLR in ChainedScheduler has a cycle of 6 steps")


@pytest.mark.parametrize(
    ("target", "key", "others"),
    [
        ("CosineAnnealingLR", "T_max", {}),
        ("CosineAnnealingWarmRestarts", "T_0", {}),
        ("CosineAnnealingWarmRestarts", "T_mult", {"T_0": 1}),
        ("StepLR", "step_size", {}),
        ("PolynomialLR", "total_iters", {}),
        ("LinearLR", "total_iters", {}),
        ("ConstantLR", "total_iters", {"factor": 0.5}),
        ("CyclicLR", "step_size_up", {"base_lr": 0.1, "max_lr": 0.2, "step_size_down": 1}),
        ("OneCycleLR", "total_steps", {"max_lr": 0.1}),
        ("OneCycleLR", "steps_per_epoch", {"max_lr": 0.1, "epochs": 1}),
    ],
)
def test_a_number_of_steps_is_a_whole_one_and_at_least_1(target, key, others):
    for value in (0, -1, 2.5):
        assert scheduled(1, target, **others, **{key: value}) == [
            f"scheduler.{key}={value}: must be a whole number, at least 1"
        ]
    assert [p for p in scheduled(2, target, **others, **{key: 1}) if "must be" in p] == []


def test_steps_that_may_be_0():
    assert scheduled(1, "ConstantLR", factor=1.0, total_iters=0) == []
    assert scheduled(4, "CyclicLR", base_lr=0.1, max_lr=0.2, step_size_up=1, step_size_down=0) == []
    assert scheduled(4, "MultiStepLR", milestones=[0, 3]) == []
    assert scheduled(4, "MultiStepLR", milestones=[1, 2.5]) == [
        "scheduler.milestones=[1, 2.5]: must be whole, at least 0"
    ]
