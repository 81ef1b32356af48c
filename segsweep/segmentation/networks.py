"""The network of a run: built for its data, tried before training, whoever has written it."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from segsweep.config import components
from segsweep.config.whitelist import locate, targets
from segsweep.core.errors import ConfigError
from segsweep.core.masks import first_line
from segsweep.segmentation.kinds import KINDS
from segsweep.segmentation.models.blocks import AnySize
from segsweep.segmentation.models.fitted import called, fitted, keys_of, misshapen
from segsweep.segmentation.models.fitted import outputs as outputs_of

CHANNELS, CLASSES = "<channels>", "<classes>"
"""What the YAML of a network gives an argument that is to be the number of channels of the images, and the number of
maps of logits: one a class, or one for one structure."""
TOLD = (("in_channels", CHANNELS), ("out_channels", CLASSES))
"""That needs no YAML."""


def network(node: Any, channels: int, outputs: int, size: tuple[int, int] | None = None) -> Any:
    """The model of a group for images of `channels` and, where all have one, of `size` (height, width), with `outputs`
    maps of logits. Numbers that depend on the data go to the arguments that its configuration marks with `CHANNELS` and
    `CLASSES`, or else to `in_channels` and `out_channels`, where it takes these."""
    made = components.build(KINDS, "model", node, **_told(node, channels, outputs))
    return fitted(made, channels, outputs, size) if isinstance(made, torch.nn.Module) else made


def _told(node: Mapping[str, Any], channels: int, outputs: int) -> dict[str, int]:
    targets(KINDS, "model", node)  # names what is not allowed
    of_data = {CHANNELS: channels, CLASSES: outputs}
    told = {str(key): of_data[item] for key, item in node.items() if isinstance(item, str) and item in of_data}
    takes = inspect.signature(locate(node["_target_"], KINDS["model"])).parameters
    every = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    if CHANNELS not in node.values() and ("in_channels" in takes or every):
        told["in_channels"] = channels
    if CLASSES not in node.values() and "out_channels" in takes and "out_channels" not in node:
        told["out_channels"] = outputs
    return told


def check_outputs(model: torch.nn.Module, channels: int, weights: Sequence[float] | None) -> None:
    """Raises ConfigError where a network of `network` could not be tried on its images, or has another number of
    outputs than there are `weights` for them (`deep_supervision`)."""
    if failed := getattr(model, "failed", None):
        raise ConfigError(
            f"model: {called(model)} does not take these images, of {channels} channel"
            f"{'s' * (channels > 1)}: {first_line(failed)}; where an argument of it is to be the number of channels, "
            f"its YAML says so, NAME: {CHANNELS}"
        )
    if wrong := unweighted(heads_of(model), weights):
        raise ConfigError(wrong)


class Heads(NamedTuple):
    """A network by its name, and how many outputs it has in training (0: nobody knows), by their keys where it gives a
    dictionary."""

    network: str = "the network"
    number: int = 0
    keys: tuple[Any, ...] = ()


def heads_of(model: torch.nn.Module) -> Heads:
    return Heads(called(model), getattr(model, "heads", 1), getattr(model, "keys", ()))


def unweighted(heads: Heads, weights: Sequence[float] | None) -> str:
    """What is wrong with the weights of a network's outputs; "" where nothing is."""
    name, count, keys = heads
    if weights is None and count < 2:
        return ""
    if weights is None:
        halves = ",".join(f"{0.5**n:g}" for n in range(count))
        several = f", the entries {', '.join(map(str, keys))} of its dictionary" if keys else ""
        return (
            f"model: {name} gives {count} outputs in training{several}; say what each weighs in the loss, the main one "
            f"first, such as deep_supervision=[{halves}], where 0 leaves one out"
        )
    shown = f"deep_supervision={list(weights) if isinstance(weights, list | tuple) else weights}"
    plain = isinstance(weights, list | tuple) and all(
        isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < math.inf for w in weights
    )
    if not plain or not weights or not weights[0] > 0:
        return f"{shown}: expected a list of numbers from 0 on, the main output's first and above 0, or null"
    if count and len(weights) != count:
        hint = "give null" if count == 1 else "give one each, the main output's first"
        several = f" ({', '.join(map(str, keys))})" if keys else ""
        outputs = f"{count} output{'s' * (count > 1)} in training{several}"
        return f"{shown}: {len(weights)} given, and {name} has {outputs}; {hint}"
    return ""


def asked(node: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A node as its arguments are checked, with a number for each that is marked, and the arguments that a run passes
    itself."""
    plain = {key: 1 if item in (CHANNELS, CLASSES) else item for key, item in node.items() if (key, item) not in TOLD}
    return plain, tuple(key for key, _ in TOLD if key == "in_channels" or key not in plain)


def size_of(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images that a network gets, None where the files say it."""
    asked = data.get("patch") or data.get("image_size")
    sides = tuple(asked) if isinstance(asked, list | tuple) else (asked, asked)
    return sides if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else None


def heads(node: Mapping[str, Any], outputs: int, size: tuple[int, int] | None) -> Heads:
    """Of a network of which no image is known yet. Raises what is wrong with it.

    It is built and tried without memory, and with it where that cannot be done without, as it looks at numbers."""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                made = components.build(KINDS, "model", node, **_told(node, 3, outputs))
        except Exception:
            if device == "cpu":
                raise
            continue
        if not KINDS["model"].is_base_of(type(made)):
            raise ValueError(f"gives {type(made).__name__}; {KINDS['model'].what} is needed")
        made = fitted(made, 3, outputs, size)
        if getattr(made, "heads", 1):
            break
    if isinstance(made, AnySize) and device == "meta" and outputs > 1:
        given = made(torch.zeros(1, 3, 64, 64, device="meta"))
        if wrong := misshapen(outputs_of(given), (1, outputs, 64, 64), keys_of(given)):
            raise ValueError(f"{called(made)} {wrong}")
    return heads_of(made)
