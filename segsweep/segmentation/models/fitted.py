"""Anybody's network as this program takes one: what it gives is brought to maps of logits, what it is given to a size
that it takes. What a network needs is found by trying it, on next to nothing."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segsweep.segmentation.models.blocks import AnySize

MULTIPLES = (1, 2, 4, 8, 12, 14, 16, 24, 28, 32, 64)
"""That a side of an image may have to be one of, the least first: of poolings, and of patches."""
MAIN = ("out", "logits")
"""What the main output is called in a dictionary: torchvision's name, and that of Hugging Face."""


class Fitted(AnySize):
    """`network` with its outputs as this program takes them, see `outputs`: in training all of them, brought to the
    size of the main one, where there are several; else the main one alone. Its weights keep their names. heads, keys:
    how many outputs it has in training, 0 where nobody knows, and what they are called in its dictionary."""

    failed: Exception | None = None

    def __init__(
        self, network: nn.Module, multiple: int = 1, least: int = 1, heads: int = 1, keys: tuple[Any, ...] = ()
    ) -> None:
        super().__init__()
        self.network, self.multiple, self.least, self.heads, self.keys = network, multiple, least, heads, keys
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def body(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        main, *further = outputs(self.of(self.network(x)))
        if not (self.training and further):
            return main
        size = tuple(main.shape[-2:])
        return main, *(m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear") for m in further)

    def of(self, found: Any) -> Any:
        """The outputs of a network that has the main one elsewhere, as `outputs` takes them."""
        return found


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    _rename(state, f"{prefix}network.", prefix)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    _rename(state, prefix, f"{prefix}network.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    moved = {key: state.pop(key) for key in [*state] if key.startswith(old)}
    state.update({new + key.removeprefix(old): item for key, item in moved.items()})


def outputs(found: Any) -> list[Tensor]:
    """The maps of logits (B, K, h, w) that a network gave, the main one first: a tensor, a stack of them (B, N, K, h,
    w), a list, or a dictionary whose main one is called `out` or `logits`. Raises ValueError where it is none."""
    kind, keys = type(found).__name__, keys_of(found)
    if isinstance(found, Mapping):
        if not keys:
            raise ValueError(f"gives a dictionary of {', '.join(map(str, found))}; call the main output {MAIN[0]}")
        found = [found[key] for key in keys]
    elif isinstance(found, Tensor):
        found = found.unbind(1) if found.ndim == 5 else [found]
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"gives {kind}; maps of logits are needed, a tensor, a list or a dictionary of them")
    for place, each in enumerate(found):
        if not isinstance(each, Tensor) or each.ndim != 4:
            what = f"a tensor of shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            where = "" if kind == "Tensor" else f" in a {kind}"
            where = f" as {keys[place]!r} of its dictionary" if keys else where
            rest = _beside(keys, place)
            raise ValueError(f"gives {what}{where}; maps of logits (batch, maps, height, width) are needed{rest}")
    return list(found)


def keys_of(found: Any) -> tuple[Any, ...]:
    """Of a dictionary that a network gave, the main output's first; none where it is no dictionary, or has none."""
    if not isinstance(found, Mapping):
        return ()
    main = next((key for key in (*MAIN, *([*found][:1] if len(found) == 1 else [])) if key in found), None)
    return () if main is None else (main, *(key for key in found if key != main))


def _beside(keys: Sequence[Any], place: int) -> str:
    """Why an entry of a dictionary is looked at that is not the main one, and what to do."""
    if not keys or not place:
        return ""
    return (
        f"; what a dictionary has beside {keys[0]!r} is a further output in training (deep supervision): take "
        f"{keys[place]!r} out of it"
    )


def called(model: nn.Module) -> str:
    """A network in a message: what is around it is nobody's."""
    return type(model.network if type(model) is Fitted else model).__name__


def fitted(network: nn.Module, channels: int, maps: int, size: tuple[int, int] | None = None) -> nn.Module:
    """`network`, within a `Fitted` where it gives more than a tensor or does not take every size. Where no try gave
    what is needed, as it takes images of another number of channels, or of one size which is not `size` (height,
    width), the `heads` of that are 0 and its `failed` is what the last one came to.

    Raises ValueError where it does not give `maps` maps of logits, or none of an image's size where that is known."""
    if isinstance(network, AnySize):
        return network
    failed: Exception | None = None
    for trial in _copies(network):
        for multiple, sides in _sizes(size):
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    given = trial(_noise(trial, channels, sides))
            except Exception as error:  # anything: it is somebody else's network
                failed = error
                continue
            try:
                found, keys = outputs(given), keys_of(given)
            except ValueError as error:
                raise ValueError(f"{type(network).__name__} {error}") from None
            if wrong := misshapen(found, (2, maps, *sides), keys):
                failed = ValueError(f"{type(network).__name__} {wrong}")
                if sides == size or any(each.shape[1] != maps for each in found):  # which is so at any size
                    raise failed
            elif multiple == 1 and isinstance(given, Tensor) and given.ndim == 4:
                return network
            else:
                return Fitted(network, multiple, _least(trial, channels, multiple), len(found), keys)
    unknown = Fitted(network, heads=0)
    unknown.failed = failed
    return unknown


def misshapen(found: list[Tensor], expected: tuple[int, ...], keys: Sequence[Any] = ()) -> str:
    """What is wrong with the outputs of a network, "" where nothing is: further ones may be smaller. keys: see
    `keys_of`."""
    main, *further = (tuple(each.shape) for each in found)
    _, count, height, width = expected
    several = "data.classes needs a map of logits for each class" if count > 1 else "one structure needs one map"
    where = [f" as {key!r} of its dictionary" for key in keys] or [""] * len(found)
    tried = f"tried on images of {height} x {width}"
    if main[1] != count:
        maps = f"{main[1]} map{'s' * (main[1] > 1)} of logits"
        return f"gives {maps}{where[0]}, {tried}, where {count} {_is(count)} needed: {several}"
    if main[0] != expected[0]:
        return f"gives maps of {main[0]} images{where[0]} for {expected[0]}"
    if main != expected:
        return f"gives maps of {' x '.join(map(str, main[2:]))}{where[0]}, {tried}; they have to be of the images' size"
    for place, shape in enumerate(further, 1):
        if shape[1] != count:
            maps = f"a further output of {shape[1]} map{'s' * (shape[1] > 1)} of logits{where[place]}"
            need = f"where {count} {_is(count)} needed: {several}, in every output"
            return f"gives {maps}, {tried}, {need}{_beside(keys, place)}"
    return ""


def _is(count: int) -> str:
    return "are" if count > 1 else "is"


def _copies(network: nn.Module) -> Iterator[nn.Module]:
    """In training mode: without memory, and where `network` has some and does not go without, with it."""
    yield copy.deepcopy(network).to("meta").train()
    if any(not weights.is_meta for weights in network.parameters()):
        yield copy.deepcopy(network).train()


def _sizes(size: tuple[int, int] | None) -> list[tuple[int, tuple[int, int]]]:
    """Multiples, each with sides that are odd multiples of it and so of none beyond; and `size` itself."""
    odd = [(multiple, max(3, 64 // multiple | 1)) for multiple in MULTIPLES]
    found = [(multiple, (multiple * times, multiple * (times + 2))) for multiple, times in odd]
    return found + ([(1, size)] if size else [])


def _noise(network: nn.Module, channels: int, sides: tuple[int, int]) -> Tensor:
    """Two images, the fewest that have statistics."""
    return torch.randn(2, channels, *sides, device=next((p.device for p in network.parameters()), None))


def _least(trial: nn.Module, channels: int, multiple: int) -> int:
    """The smallest side that can be trained on: often two multiples, as a single pixel has no statistics."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            (main, *_) = outputs(trial(_noise(trial, channels, (multiple, multiple))))
        return multiple if main.shape[-2:] == (multiple, multiple) else 2 * multiple
    except Exception:  # of norms, of a size that is too small: whatever it calls it
        return 2 * multiple
