"""`optim=sgd & optim.lr>0.01`: conditions on a job's configuration, for `sweep.exclude` and `search.when`."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

COMPARE = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
ABSENT = object()
_TERM = re.compile(r"\s*([\w./@-]+?)\s*(!=|>=|<=|==|=|>|<)\s*(.+?)\s*")


@dataclass(frozen=True)
class Term:
    """`optim.lr>0.01`, one comparison of a condition."""

    key: str
    sign: str
    value: Any

    def holds(self, found: Any) -> bool:
        try:
            return bool(COMPARE[self.sign](found, self.value))
        except TypeError:
            return False  # null > 0.01: not so


def condition(text: str, where: str) -> list[Term]:
    """The comparisons of `optim=sgd & optim.lr>0.01`, all of which must hold; HydraException where it is none.

    `where`: the key that the message names."""
    try:
        found = [_TERM.fullmatch(part).groups() for part in text.split("&")]  # type: ignore[union-attr]
        parser = OverridesParser.create()
        return [Term(key, sign, parser.parse_override(f"x={value}").value()) for key, sign, value in found]
    except (AttributeError, HydraException):
        raise CompactHydraException(
            f"{where}: {text!r} is no condition; write KEY=VALUE, or !=, >, >=, <, <=, joined by &, "
            "as in 'optim=sgd & optim.lr>0.01'"
        ) from None


def values(
    point: Sequence[str], keys: Iterable[str], compose: Callable[[Sequence[str]], DictConfig], where: str
) -> dict[str, Any]:
    """Of `keys` in one job, given by its overrides; composed only where the point itself does not say."""
    given = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(point))}
    if set(keys) <= given.keys():
        return given
    composed = compose(point)
    return {key: given[key] if key in given else _look_up(composed, key, where) for key in keys}


def _look_up(cfg: DictConfig, key: str, where: str) -> Any:
    """The option of a group, the value of a key, or of the one key that ends in `.key` (`lr`)."""
    choices: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    if key in choices:
        return choices[key]
    names = list(flat(cfg))
    ends = [key] if key in names else [k for k in names if k.endswith(f".{key}")]
    if len(ends) > 1:
        raise CompactHydraException(f"{where}: {key} may be {' or '.join(ends)}; write the whole key")
    return OmegaConf.select(cfg, ends[0]) if ends else ABSENT


def flat(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a composed configuration, without Hydra's own."""
    for key in cfg:
        if key == "hydra" and not prefix:
            continue
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from flat(node, f"{prefix}{key!s}.")
        else:
            yield f"{prefix}{key!s}"
