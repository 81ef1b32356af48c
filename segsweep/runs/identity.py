"""Which run a configuration is, today, and which one a record is: what `signature` hashes, side by side."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from segsweep.config import whitelist
from segsweep.config.before import spec_of
from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError
from segsweep.core.signature import IGNORED, code, places, signatures, without
from segsweep.task import Data, Task


@dataclass(frozen=True)
class Identity:
    """config: what decides numbers of a resolved configuration, nested. data, split: digests. files: module -> hash of
    its code. repeats: keys in which the repeats of one configuration differ. roots: modules of one's own that all of
    its code is reached from. settled: values of `config` that the data decided. places: module -> its file."""

    config: dict[str, Any]
    data: str
    split: str
    files: dict[str, str]
    repeats: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    settled: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    @cached_property
    def ids(self) -> dict[str, str]:
        """signature, group and trajectory."""
        return signatures(self.config, self.data, self.split, self.files, self.repeats)


def identity(cfg: DictConfig, task: Task, data: Data) -> Identity:
    """Of a composed configuration, its task and what that says of its data, with the code of today."""
    spec = task.spec
    whole: Any = OmegaConf.to_container(cfg, resolve=True)
    config = without(whole | dict(data.settings), (*IGNORED, *spec.undecided))
    roots = tuple(sorted(whitelist.modules(config) | set(spec.code)))
    about = (spec.repeats, roots, dict(data.settings), places(*roots))
    return Identity(config, data.digest or "", data.split, code(*roots), *about)


def recorded(folder: Path) -> tuple[Identity, DictConfig, dict[str, Any]]:
    """Of a run folder, with its whole configuration and its run.json. Raises SegsweepError where the record is damaged,
    or made by a version of this program that named runs by other rules."""
    info = artifacts.read_json(folder / "run.json") or {}
    try:
        spec = spec_of(info)
        cfg = OmegaConf.load(folder / "config.yaml")
        whole: Any = OmegaConf.to_container(cfg, resolve=True)
        config = without(whole, (*IGNORED, *spec.undecided))
        plain = {key for key, value in config.items() if not (isinstance(value, dict) and "_target_" in value)}
        settled = {key: info["factors"][key] for key in plain if info["factors"][key] != config[key]}
        data, split = (info[part]["digest"] or "" for part in ("data", "split"))
        found = Identity(config | settled, data, split, dict(info["files"]), spec.repeats)
        same = found.ids["signature"] == info["signature"]
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise SegsweepError(f"{folder / 'config.yaml'}: cannot be read: {str(error).splitlines()[0]}") from error
    except (KeyError, TypeError, ValueError, AttributeError):
        same = False
    if not info:
        raise SegsweepError(f"{folder / 'run.json'}: missing or damaged; expected the record of a run")
    if not same:
        made = (info.get("versions") or {}).get("segsweep", "of unknown version")
        raise SegsweepError(
            f"{folder}: its signature does not follow from its record, which is damaged or was made by a segsweep "
            f"({made}) that named runs by other rules; what it is cannot be compared"
        )
    assert isinstance(cfg, DictConfig)
    return replace(found, settled=settled, places=dict(info.get("places") or {})), cfg, info
