"""Which run a composed configuration asks for, as the process that plans it and the one that trains it both find it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segsweep.config import components
from segsweep.config.schema import resolved, under
from segsweep.core.signature import code, factors, left_out, signatures, without
from segsweep.task import Data, Spec


@dataclass(frozen=True)
class Identity:
    """config: all that decides a number, as plain values; like: the same less what follows the seed and the other
    repeats. modules, files: of the code that is part of it. ids: signature, group and trajectory."""

    config: dict[str, Any]
    like: dict[str, Any]
    modules: set[str]
    files: dict[str, str]
    ids: dict[str, str]

    def factors(self, choices: dict[str, Any], spec: Spec, at: str) -> dict[str, Any]:
        """As `signature.factors`, where what follows a repeat is told by that alone."""
        whole, like = factors(self.config, choices), factors(self.like, choices)
        return {key: value for key, value in whole.items() if key in like or key in repeats(spec, at)}


def repeats(spec: Spec, at: str) -> tuple[str, ...]:
    """The keys in which repeats of one configuration differ; `at`: how the engine's keys begin."""
    return tuple(dict.fromkeys(("seed", f"{at}seed", *spec.repeats)))


def identity(cfg: DictConfig, spec: Spec, data: Data, folder: Path | None) -> Identity:
    """Of a configuration that has been checked, and what its task says of its data. folder: of the sweep, if any."""
    at = under(cfg)
    apart, settings = left_out(at, spec), dict(data.settings)
    place = str(folder.absolute()) if folder else ""
    config = without(resolved(cfg, (), place) | settings, apart)
    like = without(resolved(cfg, repeats(spec, at), place) | settings, apart) if at else config
    like = without(like, repeats(spec, at))
    modules = components.modules(config) | set(spec.code)
    files = code(*sorted(modules))
    ids = signatures(config, like, data.digest or "", data.split, files, f"{at}epochs")
    return Identity(config, like, modules, files, ids)
