"""By what a schedule of the learning rate is stepped, and the one schedule that torch has not.

All lengths in a scheduler's configuration are epochs, whatever it is stepped by: so they hang on neither the batch size
nor the number of slices, and a run's identity knows them before its data are read.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from segsweep.config import components
from segsweep.config.whitelist import locate
from segsweep.core.errors import ConfigError
from segsweep.segmentation.data.source import check_range
from segsweep.segmentation.kinds import KINDS

LENGTHS = ("T_max", "T_0", "total_iters", "total_steps", "step_size", "step_size_up", "step_size_down", "milestones")
"""Arguments of torch's schedules that count what a schedule is stepped by."""
EACH = "steps_per_epoch"
"""The argument by which a schedule is told how often it is stepped in an epoch."""


class Warmup(lr_scheduler.LambdaLR):
    """The learning rate rises in a straight line from `start` times its value, for `warmup` epochs, and then falls
    along half a cosine to `floor` times its value at epoch `T_max`; None: it stays.

    Goyal et al. 2017 (arXiv 1706.02677) for the first, Loshchilov and Hutter 2016 (arXiv 1608.03983) for the second."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup: float,
        T_max: float | None,
        start: float,
        floor: float,
        steps_per_epoch: int = 1,
    ):
        for key, value, most in (("warmup", warmup, 1e6), ("start", start, 1.0), ("floor", floor, 1.0)):
            check_range(f"scheduler.{key}", value, 0.0, most)
        if T_max is not None and warmup > T_max:
            raise ConfigError(
                f"scheduler.warmup={warmup}: {T_max} epochs are all there are (scheduler.T_max); give fewer, or "
                "scheduler.T_max=null"
            )
        rise = warmup * steps_per_epoch
        fall = None if T_max is None else T_max * steps_per_epoch - rise

        def factor(step: int) -> float:
            if step < rise:
                return start + (1 - start) * step / rise
            if fall is None:
                return 1.0
            done = min(1.0, (step - rise) / fall) if fall else 1.0
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)  # of itself it keeps nothing, so that the state has the step alone


def by(node: Mapping[str, Any]) -> str:
    """What a group's schedule is stepped by: epoch, step, or the key of a value of the validation part, val/loss."""
    given = str(node.get("by", "epoch"))
    return "val/loss" if given == "val" else given


def without_by(node: Mapping[str, Any]) -> dict[str, Any]:
    """A group's node less what its component does not take."""
    return {key: value for key, value in node.items() if key != "by"}


def schedule(node: Mapping[str, Any], optimizer: Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """The schedule of a group for epochs of so many `steps`. Lengths of torch's are made steps where it is stepped by
    them; any other that takes `steps_per_epoch` is told. Raises ConfigError where the node says another number."""
    each = steps if by(node) == "step" else 1
    plain = without_by(node)
    if plain.get(EACH, each) != each:
        often = f"{each} times" if each > 1 else "once"
        raise ConfigError(
            f"scheduler.{EACH}={plain[EACH]}: with scheduler.by={node.get('by', 'epoch')} this schedule is stepped "
            f"{often} an epoch; leave it out, and with scheduler.by=step the run gives what it is"
        )
    if EACH in inspect.signature(locate(plain["_target_"], KINDS["scheduler"])).parameters:
        plain[EACH] = each
    if str(plain["_target_"]).startswith("torch."):
        plain |= {key: _times(plain[key], each) for key in LENGTHS if plain.get(key) is not None}
    made: lr_scheduler.LRScheduler = components.build(KINDS, "scheduler", plain)(optimizer)
    return made


def _times(length: Any, each: int) -> Any:
    return [_times(item, each) for item in length] if isinstance(length, list | tuple) else length * each
