"""The configurations of a sweep's jobs, most of which differ in a few values: Hydra composes the first of a kind (a
tenth of a second), and the others are that one with these values changed (some milliseconds)."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import CompactHydraException, HydraException
from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.schema import chosen, under
from segsweep.core.session import session

KINDS = 64
"""Kinds of job that are kept: the same groups, and the same keys with whatever values."""
_VALUE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)=")
"""How an override begins that may give a key a value: a group's option is told apart by the groups' names."""


class Composer:
    """`composer(overrides)` is `load_sweep_config(master, overrides)`, which composes what is not a matter of values
    (groups, packages, additions, deletions, whole mappings or lists, Hydra's own settings) and whatever cannot be set.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig):
        self.loader, self.master = loader, master
        self.groups = set(master.hydra.runtime.choices)
        self.known: OrderedDict[tuple[str, ...], tuple[list[str], bytes]] = OrderedDict()

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        lines = list(overrides)
        kind = tuple(self._key(line) or line for line in lines)
        if kind in self.known:
            self.known.move_to_end(kind)
            if config := _changed(*self.known[kind], lines):
                return config
        config = self.loader.load_sweep_config(self.master, lines)
        if session().foreign:
            from segsweep.config.hold import changed

            if keys := changed(self.master, config, lines, session().hold):
                raise CompactHydraException(
                    f"{', '.join(keys)}: the files of a job's options may not change this in a sweep"
                )
        self.known[kind] = lines, pickle.dumps(config)
        if len(self.known) > KINDS:
            self.known.popitem(last=False)
        return config

    def _key(self, line: str) -> str | None:
        """The key to which an override gives a value; None where it may be anything else."""
        found = _VALUE.match(line)
        key = found[1] if found else None
        return None if key is None or key in self.groups or key.partition(".")[0] == "hydra" else key


def _changed(known: list[str], composed: bytes, lines: list[str]) -> DictConfig | None:
    """A job's configuration from that of one of its kind; None where Hydra has to say what becomes of a value."""
    config: DictConfig = pickle.loads(composed)
    for place, (before, line) in enumerate(zip(known, lines, strict=True)):
        if line != before and (_overruled(line, lines[place + 1 :]) or not _set(config, line)):
            return None
    config.hydra.overrides.task = [line for line in lines if not _parsed(line).is_hydra_override()]
    return config


def _overruled(line: str, later: list[str]) -> bool:
    """Whether a later override may be of the same key or of what is around it; a group's option never is, for Hydra
    sets all values after it."""
    key = line.partition("=")[0]
    others = (other.lstrip("+~").partition("=") for other in later)
    return any(f"{key}.".startswith(f"{name}.") and (name == key or value[:1] in "{$") for name, _, value in others)


def _set(config: DictConfig, line: str) -> bool:
    try:
        override = _parsed(line)
        key, value = override.key_or_group, override.value()
        plain = override.type == OverrideType.CHANGE and (value is None or isinstance(value, bool | int | float | str))
        if not plain or isinstance(OmegaConf.select(config, key), Container):
            return False
        OmegaConf.update(config, key, value, merge=True)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def choices_of(own: DictConfig, hydra: Any) -> dict[str, Any]:
    """The option chosen in each group that is the run's own: none of Hydra's, and of groups within groups those of an
    application."""
    found: Any = OmegaConf.to_container(hydra.runtime.choices)
    nested = bool(under(own))
    return {g: option for g, option in found.items() if "/" not in g or (nested and not g.startswith("hydra/"))}


def bare(config: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """A composed job's own configuration without Hydra's part, and the option chosen in each group."""
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    return with_environment(chosen(own, config.hydra.runtime.choices), config.hydra), choices_of(own, config.hydra)


def with_environment(own: DictConfig, hydra: Any) -> DictConfig:
    """`own`, changed: of what came by a door with the variables that Hydra sets for it, `hydra.job.env_set`, as any
    code may read those; not with those that are only copied, `hydra.job.env_copy`."""
    given: Any = OmegaConf.to_container(hydra.job.env_set, resolve=False)
    given = {name: text for name, text in given.items() if name not in hydra.job.env_copy}
    if session().door and given:
        with open_dict(own):
            own["hydra"] = {"job": {"env_set": given}}
    return own


@lru_cache(4096)
def _parsed(line: str) -> Override:
    return OverridesParser.create().parse_override(line)
