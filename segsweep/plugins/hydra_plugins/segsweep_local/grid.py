"""`hydra/sweeper=grid`: every combination of the values given, less what `sweep.exclude` takes out.

Hydra's basic sweeper composes each job once to see that it can be, and the launcher composes it again; here mistakes
are found before the sweep starts, and a job is composed once.
"""

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

from segsweep import progress, sweep
from segsweep.errors import nearest

COMPARE = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_ABSENT = object()
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


def condition(text: str) -> list[Term]:
    """The comparisons of `optim=sgd & optim.lr>0.01`, all of which must hold; HydraException where it is none."""
    try:
        found = [_TERM.fullmatch(part).groups() for part in text.split("&")]  # type: ignore[union-attr]
        parser = OverridesParser.create()
        return [Term(key, sign, parser.parse_override(f"x={value}").value()) for key, sign, value in found]
    except (AttributeError, HydraException):
        raise CompactHydraException(
            f"sweep.exclude: {text!r} is no condition; write KEY=VALUE, or !=, >, >=, <, <=, joined by &, "
            "as in 'optim=sgd & optim.lr>0.01'"
        ) from None


class GridSweeper(BasicSweeper):
    """`params`: values to combine, as for Hydra's basic sweeper; the command line goes before them."""

    def __init__(self, params: DictConfig | None = None):
        super().__init__(max_batch_size=None, params=params)  # type: ignore[arg-type]

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        points = self.split_arguments(overrides, None)[0]
        texts = list(OmegaConf.select(self.config, "sweep.exclude") or [])
        kept = self._without(points, {text: condition(text) for text in texts})
        progress.emit("total", jobs=len(kept))
        self._record(kept)
        return [self.launcher.launch(kept, initial_job_idx=0)]

    def _without(self, points: list[list[str]], conditions: dict[str, list[Term]]) -> list[list[str]]:
        hits = dict.fromkeys(conditions, 0)
        keys = {term.key for terms in conditions.values() for term in terms}
        known: set[str] = set()
        kept = []
        for point in points:
            found = self._values(point, keys)
            known |= {key for key in keys if found[key] is not _ABSENT}
            met = [text for text, terms in conditions.items() if all(t.holds(found[t.key]) for t in terms)]
            hits |= {text: hits[text] + 1 for text in met}
            if not met:
                kept.append(point)
        if keys - known:
            flat = list(_flat(self._compose(points[0])))
            raise CompactHydraException(
                "\n".join(f"sweep.exclude: {k}: no job has such a key{nearest(k, flat)}" for k in sorted(keys - known))
            )
        if not kept:
            raise CompactHydraException(f"sweep.exclude takes out all {len(points)} jobs")
        for text, count in hits.items():
            progress.emit("text", text=f"sweep.exclude: {text} takes out {count or 'none'} of {len(points)} jobs")
        return kept

    def _values(self, point: Sequence[str], keys: set[str]) -> dict[str, Any]:
        """Of `keys` in one job; composed only where the point itself does not say."""
        given = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(point))}
        if keys <= given.keys():
            return given
        composed = self._compose(point)
        return {key: given[key] if key in given else _look_up(composed, key) for key in keys}

    def _compose(self, point: Sequence[str]) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(point))

    def _record(self, points: list[list[str]]) -> None:
        """What the sweep's record could not know before: how many jobs, and every number of epochs among them."""
        if sweep.current:
            asked = {o.split("=", 1)[1] for point in points for o in point if o.startswith("epochs=")}
            milestones = sorted(int(value) for value in asked if value.isdigit())
            sweep.note(sweep.current, jobs=len(points), milestones=milestones)


def _look_up(cfg: DictConfig, key: str) -> Any:
    """The option of a group, the value of a key, or of the one key that ends in `.key` (`lr`)."""
    choices: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    if key in choices:
        return choices[key]
    flat = list(_flat(cfg))
    ends = [key] if key in flat else [k for k in flat if k.endswith(f".{key}")]
    if len(ends) > 1:
        raise CompactHydraException(f"sweep.exclude: {key} may be {' or '.join(ends)}; write the whole key")
    return OmegaConf.select(cfg, ends[0]) if ends else _ABSENT


def _flat(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        if key == "hydra" and not prefix:
            continue
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _flat(node, f"{prefix}{key!s}.")
        else:
            yield f"{prefix}{key!s}"
