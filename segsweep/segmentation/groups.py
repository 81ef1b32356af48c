"""The groups of a segmentation's configuration: what each may hold, and the mistakes of what it holds."""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim import lr_scheduler

from segsweep.config import components
from segsweep.config.before import today
from segsweep.core.environment import spare_dynamo
from segsweep.core.errors import ConfigError, DataError, nearest
from segsweep.core.masks import first_line
from segsweep.segmentation import networks, schedules
from segsweep.segmentation.classes import check_weights
from segsweep.segmentation.data.labels import Labels, labels_of
from segsweep.segmentation.kinds import KINDS
from segsweep.segmentation.metrics import METRICS, spec_of
from segsweep.segmentation.scores import chosen

ADDED: dict[str, tuple[str, ...]] = {"optim": ("params",), "scheduler": ("optimizer",)}
"""Arguments that a run passes itself; for those of a network see `networks.asked`."""
OPTIONS = {"model": "unet", "loss": "auto", "optim": "adam", "scheduler": "constant", "data": "phantom"}
OPTIONS |= {"split": "patient"}
"""One of each group, for a hint; none of the others."""
TORCH: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        ("T_max", "T_0", "T_mult", "total_iters", "step_size", "step_size_up", "total_steps", "steps_per_epoch"),
        ("a whole number, at least 1", lambda v: v >= 1 and v % 1 == 0),
    ),
    **dict.fromkeys(
        ("step_size_down", "milestones", "patience", "cooldown"), ("whole, at least 0", lambda v: v >= 0 and v % 1 == 0)
    ),
    "lr": ("above 0", lambda v: 0 < v < math.inf),
    "momentum": ("0 to below 1", lambda v: 0 <= v < 1),
    "betas": ("two numbers, each 0 to below 1", lambda v: 0 <= v < 1),
    "eps": ("above 0", lambda v: 0 < v < math.inf),
    "weight_decay": ("at least 0", lambda v: 0 <= v < math.inf),
    **dict.fromkeys(("threshold", "min_lr"), ("at least 0", lambda v: 0 <= v < math.inf)),
    "eta_min": ("at least 0", lambda v: 0 <= v < math.inf),
    **dict.fromkeys(("base_momentum", "max_momentum"), ("0 to below 1", lambda v: 0 <= v < 1)),
    **dict.fromkeys(("max_lr", "div_factor", "final_div_factor"), ("above 0", lambda v: 0 < v < math.inf)),
}
"""Ranges of torch's optimizers and schedules that their constructors let pass or report without the key."""
LISTS = ("betas", "milestones", "min_lr", "max_lr", "base_momentum", "max_momentum")
"""Of these, what may be a list: of two, of epochs, or of a value for each group of parameters."""


def build(group: str, node: Any, **given: Any) -> Any:
    """The component of a group, see `components.build`. A data set has plain lists: it goes to other processes."""
    plain = {"_convert_": "all"} if group == "data" and "_convert_" not in node else {}
    return components.build(KINDS, group, node, **plain, **given)


def loss_of(labels: Labels) -> str:
    """The option of conf/loss that `auto` stands for."""
    return "ce_dice" if labels.names else "bce_dice"


def problems(given: Mapping[str, Any]) -> list[str]:
    """The mistakes of the groups in `given`: resolved nodes, and the number of `epochs`. A network is built without
    memory, an optimizer of a dummy, a schedule of that."""
    spare_dynamo()
    found: list[str] = []
    optimizer, epochs, heads = None, given.get("epochs"), networks.Heads()
    try:
        labels, wrong_labels = labels_of(given.get("data") or {}), ""
    except DataError as error:
        labels, wrong_labels = Labels(), str(error)
    for group in [group for group, kind in KINDS.items() if group in given and kind.grouped]:
        node = today(given[group])
        if group in ("model", "loss") and wrong_labels:
            continue  # it would be held against what nobody meant
        added, option = ADDED.get(group, ()), OPTIONS.get(group, "none")
        plain, added = networks.asked(node) if group == "model" else (node, added)
        if group == "scheduler":
            plain = schedules.without_by(node)
            added += () if schedules.EACH in node else (schedules.EACH,)
        wrong = components.mistakes(KINDS, group, plain, added=added, option=option)
        target = node.get("_target_")
        if isinstance(target, str) and group in ("optim", "scheduler"):
            if node.get("_partial_") is not True and not any("not allowed" in text for text in wrong):
                wrong.append(f"{group}: its YAML needs _partial_: true, as the run adds {added[0]} to {target}")
            if target.startswith("torch.") and not wrong:
                wrong = _check_ranges(group, node)
        if not wrong and (group != "scheduler" or optimizer is not None):
            size = networks.size_of(given.get("data") or {}) if group == "model" else None
            length = epochs if group == "scheduler" else None
            known = f"{group} {node} {type(optimizer)} {length} {labels.outputs} {labels.names} {size}"
            attempt = partial(_attempt, group, node, optimizer, epochs, labels, size)
            wrong, made = components.tried(group, known, attempt)
            optimizer = made if group == "optim" else optimizer
            heads = made if group == "model" and made else heads
        if group == "data" and wrong_labels and not wrong:
            wrong = [wrong_labels]
        found += wrong
    wrong_weights = networks.unweighted(heads, given.get("deep_supervision"))
    found += [wrong_weights] * bool(wrong_weights)
    if (given.get("split") or {}).get("val") == 0:
        found += [needs_validation(what) for what in by_validation(given)]
    try:
        chosen(given.get("metrics") or [], tuple(METRICS))
    except ConfigError as error:
        found.append(str(error))
    if (ema := given.get("ema")) is not None and ema >= 1:
        found.append(f"ema={ema}: must be below 1, as 0.999 is, or nothing of what is trained enters the average")
    if given.get("test_weights") == "ema" and "ema" in given and ema is None:
        found.append("test_weights=ema: there is no average of the weights to test; give its decay, as with ema=0.999")
    return found


def _attempt(
    group: str,
    node: Mapping[str, Any],
    optimizer: Any,
    epochs: Any,
    labels: Labels,
    size: tuple[int, int] | None,
) -> Any:
    """The optimizer, or what a network has for outputs in training, if that is what is built here. Raises what is wrong
    with a component."""
    if group == "model":
        return networks.heads(node, labels.outputs, size)
    made: Any
    if group == "scheduler":  # of one step an epoch where nobody knows how many there are
        made = schedules.schedule(node, optimizer, node.get(schedules.EACH, 1))
    else:
        made = build(group, node)
    if group == "optim":
        made = made(params=[torch.nn.Parameter(torch.zeros(1))])
    if not KINDS[group].is_base_of(type(made)):
        raise ValueError(f"gives {type(made).__name__}; {KINDS[group].what} is needed")
    if group == "loss":
        check_weights(node, labels)
        _check_activation(made, labels)
    _try(group, made, epochs, labels, node)
    return made if group == "optim" else None


def by_validation(given: Mapping[str, Any]) -> list[str]:
    """The settings that go by the validation part, as messages name them."""
    node, patience = given.get("scheduler") or {}, given.get("early_stopping")
    found = [f"scheduler.by={node.get('by')}"] if schedules.by(node).startswith("val/") else []
    found += [] if patience is None else [f"early_stopping={patience}"]
    return found + ["test_weights=best"] * (given.get("test_weights") == "best")


def needs_validation(what: str) -> str:
    return (
        f"{what}: it goes by the validation part, and there is none (never by the test part); "
        "give it one, as with split=patient split.val=0.15"
    )


def _try(group: str, made: Any, epochs: Any, labels: Labels, node: Mapping[str, Any]) -> None:
    """One step on next to nothing, for what constructors let through: a loss that is no mean, a schedule over zero, or
    one that is not made for as many steps as the run has `epochs`."""
    if group == "loss":
        target = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        value = _of_classes(made, target, labels) if labels.outputs > 1 else made(torch.zeros(2, 1, 2, 2), target)
        if value.ndim:
            raise ValueError(f"gives {tuple(value.shape)} numbers for a batch; one is needed")
        twice = torch.zeros(4, labels.outputs, 2, 2), target.repeat(2, 1, 1, 1)
        if not torch.allclose(value, made(*twice), rtol=0.2):
            raise ValueError("grows with the batch: the mean over a batch is needed, not the sum")
    elif group == "scheduler":
        by = schedules.by(node)
        _check_by(made, by, labels)
        if not isinstance(epochs, int) or epochs < 1:
            return  # it is told of itself, and what it makes of a schedule would be told beside it
        each = node.get(schedules.EACH, 1) if by == "step" else 1
        _check_steps(made, epochs * each, epochs, "steps" if by != "step" or schedules.EACH in node else "epochs", by)
        with warnings.catch_warnings(action="ignore"):  # the optimizer has made no step: it would import the compiler
            made.step(*[0.0] * isinstance(made, lr_scheduler.ReduceLROnPlateau))
        if not 0 <= (lr := made.get_last_lr()[0]) < math.inf:
            raise ValueError(f"makes the learning rate {lr:g} after an epoch; it must stay at 0 or above")


def _check_activation(loss: Any, labels: Labels) -> None:
    """Raises ConfigError for a loss of MONAI, or one with such a part, that would take logits for probabilities."""
    several = labels.outputs > 1
    for part in loss.modules():
        switches = [getattr(part, name, None) for name in ("sigmoid", "softmax")]
        if all(isinstance(switch, bool) for switch in switches) and not any(switches[: 1 + several]):
            raise ConfigError(
                f"loss: {type(loss).__name__} takes probabilities as it stands, and is given logits: set "
                f"{'softmax: true and to_onehot_y: true' if several else 'sigmoid: true'}"
            )


def _of_classes(loss: Any, target: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Of logits of several classes; ValueError where the loss is not made for them, also where it stretches the target
    over them in silence."""
    try:
        with warnings.catch_warnings(action="error"):
            return loss(torch.zeros(2, labels.outputs, 2, 2), target)
    except Exception as error:
        why = first_line(error)
        why = "it is of one structure" if why.startswith("Target size") else why  # torch's words for one map of logits
        raise ValueError(
            f"{type(loss).__name__} does not take the logits of {labels.outputs} classes (data.classes): {why}; choose "
            "loss=auto, ce, ce_dice, dice, focal or tversky"
        ) from error


def _check_by(made: Any, by: str, labels: Labels) -> None:
    """Raise ValueError where a schedule is stepped by what it is not made for."""
    known = {f"val/{name}": metric for name, metric in spec_of(labels).metrics.items() if metric.by_epoch}
    plateau = isinstance(made, lr_scheduler.ReduceLROnPlateau)
    if by not in ("epoch", "step", *known):
        hint = nearest(by, ["epoch", "step", "val", *known])
        raise ValueError(f"scheduler.by={by}: allowed are epoch, step, val and {', '.join(known)}{hint}")
    if plateau != (by in known):
        name = type(made).__name__
        needs = "steps by a value of the validation part: scheduler.by=val, or" if plateau else "steps by no value:"
        raise ValueError(f"{name} {needs} scheduler{'=plateau' if plateau else '.by=epoch or step'}")
    if plateau and made.mode != known[by].direction:
        better = "more" if known[by].direction == "max" else "less"
        raise ValueError(f"mode={made.mode}: of {by}, {better} is better; scheduler.mode={known[by].direction}")


def _check_steps(schedule: Any, steps: int, epochs: int, unit: str, by: str, inside: str = "") -> None:
    """Raise ValueError where a schedule, or one inside it, is not made for the `steps` by which it is stepped: once an
    epoch, or `by` step; then their `unit` is an epoch where nobody knows how many steps that has."""
    name, one = f"{type(schedule).__name__}{inside}", unit[:-1]
    stepped = f"and a schedule is stepped once an epoch, {steps} times with epochs={epochs}"
    if by == "step":
        stepped = f"and with scheduler.by=step lengths are in epochs: here {steps} {unit} with epochs={epochs}"
    if inside and isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
        raise ValueError(f"{name} steps by a value, which nobody gives it there; use scheduler=plateau")
    if isinstance(schedule, lr_scheduler.OneCycleLR) and (planned := schedule.total_steps) != steps:
        end = f"it would stop at {one} {steps}" if planned > steps else f"it has no {one} after {planned}"
        total = "${epochs}" if steps == epochs else steps
        more = f"total_steps={total} for one step an epoch" if by == "epoch" else f"total_steps={total}"
        raise ValueError(f"{name} plans {planned} {unit}, {stepped}: {end}; use scheduler=onecycle, or {more}")
    if isinstance(schedule, lr_scheduler.CyclicLR) and (cycle := schedule.total_size) > steps:
        raise ValueError(
            f"{name} has a cycle of {cycle:g} {unit}, {stepped}: it would stop within the first; use "
            f"scheduler=onecycle, or step_size_up and step_size_down that make {steps} at most"
        )
    inside = f" in {name}"
    if isinstance(schedule, lr_scheduler.ChainedScheduler):
        for part in schedule._schedulers:
            _check_steps(part, steps, epochs, unit, by, inside)
    elif isinstance(schedule, lr_scheduler.SequentialLR):
        bounds = [0, *(min(bound, steps) for bound in schedule._milestones), steps]
        for part, start, stop in zip(schedule._schedulers, bounds, bounds[1:], strict=False):
            _check_steps(part, stop - start, epochs, unit, by, inside)


def _check_ranges(group: str, node: Mapping[Any, Any]) -> list[str]:
    found = []
    for key, (rule, good) in TORCH.items():
        given = node.get(key)
        if key == "total_iters" and given == 0 and node.get("factor") == 1:
            continue  # ConstantLR that changes nothing
        values = given if isinstance(given, list) else [given]
        pair = len(values) == 2 and all(isinstance(v, int | float) for v in values)
        alone = isinstance(given, list) and key not in LISTS
        if (
            alone
            or (key == "betas" and key in node and not pair)
            or any(isinstance(v, int | float) and not good(v) for v in values)
        ):
            found.append(f"{group}.{key}={given}: must be {'one number, ' * alone}{rule}")
        if given is None and key in node and key in ("max_lr", "div_factor", "final_div_factor"):
            found.append(f"{group}.{key}=null: must be {rule}")
    return found
