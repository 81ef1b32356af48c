"""The schema of the configuration and the place of conf/.

Types and ranges live here, values live in conf/: a dataclass has no defaults, so a value is never kept in two places.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import (
    MISSING,
    BooleanNode,
    Container,
    DictConfig,
    FloatNode,
    IntegerNode,
    ListConfig,
    OmegaConf,
    StringNode,
    flag_override,
)
from omegaconf.errors import OmegaConfBaseException

from segsweep.core.signature import OWN
from segsweep.task import Range

OF_VALUES, OF_KEYS = ("part_of", "select_of"), ("several", "given")
"""Resolvers that conf/ calls: what one gives depends on its arguments alone; of the latter, the first is a key."""


def conf_dir() -> Path:
    """conf/ inside the installed package, or beside it in a checkout or an editable install."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def under(cfg: DictConfig) -> str:
    """How the engine's keys begin as one types them: "segsweep." in another application's configuration, else ""."""
    return f"{OWN}." if OWN in cfg else ""


def engine(cfg: DictConfig) -> DictConfig:
    """The node that holds the engine's keys: the root, or what another application's configuration has for them."""
    return cfg.get(OWN, cfg)


_PASSING = re.compile(r"\$\{\s*(hydra|now)\s*:")
_CHOICE = re.compile(r"\$\{\s*hydra\s*:\s*runtime\.choices\.([^\s{}]+)\s*\}")
"""The option of a group, which decides as any value does."""
_HERE = re.compile(r"\$\{\s*hydra\s*:\s*runtime\.cwd\s*\}")
_MARK = "<of one job alone>"


def chosen(cfg: DictConfig, choices: Mapping[str, Any]) -> DictConfig:
    """`cfg`, changed: with the option of each group where it asks Hydra for it, which only a job can."""

    def fill(node: Container) -> None:
        if node._is_none() or node._is_missing() or node._is_interpolation():
            return
        for place in list(node) if isinstance(node, DictConfig) else range(len(node)):  # type: ignore[arg-type]
            found: Any = node._get_node(place)
            if isinstance(found, Container):
                fill(found)
            elif isinstance(text := found._value(), str) and _CHOICE.search(text):
                found._set_value(_CHOICE.sub(lambda asked: str(choices.get(asked[1], asked[0])), text))

    with flag_override(cfg, "readonly", False):
        fill(cfg)
    return cfg


def resolved(cfg: DictConfig, apart: tuple[str, ...] = (), folder: str = "") -> dict[str, Any]:
    """A configuration as plain values; of another application without what `hydra:` and `now:` give, which no two jobs
    have in common, and with what cannot be resolved as it is written, for nobody may ever ask for it.

    apart: keys that are left out there with all that refers to them. folder: of the sweep; what lies in it, by another
    way than `hydra:`, is as it is written, too."""
    if OWN not in cfg:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    return _plain(OmegaConf.create(_marked(OmegaConf.to_container(cfg, resolve=False), apart)), folder)


def _marked(node: Any, apart: tuple[str, ...], at: str = "") -> Any:
    if at in apart:
        return _MARK
    if isinstance(node, str):  # by whatever name, it is the folder that all jobs are started in
        node = _HERE.sub(".", node)
    if isinstance(node, dict):
        return {key: _marked(item, apart, f"{at}.{key}" if at else str(key)) for key, item in node.items()}
    if isinstance(node, list):
        return [_marked(item, apart, f"{at}.{place}") for place, item in enumerate(node)]
    return _MARK if isinstance(node, str) and _PASSING.search(_CHOICE.sub("", node)) else node


def _plain(node: DictConfig | ListConfig, folder: str) -> Any:
    """Less the marked values; in a list the mark stays, for the others keep their places."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    found: dict[Any, Any] = {}
    places: Any = list(node) if isinstance(node, DictConfig) else range(len(node))
    for place in places:
        try:
            item = node[place]
            if isinstance(item, DictConfig | ListConfig):
                item = _plain(item, folder)
        except OmegaConfBaseException:
            item = raw[place]
        if not isinstance(item, dict | list):
            item = raw[place] if folder and folder in str(item) else item
            if marked := _MARK in str(item):
                item = _MARK
            if marked and isinstance(node, DictConfig):
                continue
        kept = item is None or isinstance(item, dict | list | bool | int | float)
        found[place] = item if kept else item.name if isinstance(item, Enum) else str(item)
    return {str(key): item for key, item in found.items()} if isinstance(node, DictConfig) else list(found.values())


def value(**rule: Any) -> Any:
    """A value that conf/ must give, with the range that `range_problem` checks: arguments of `task.Range`."""
    return field(default=MISSING, metadata={"range": Range(**rule)})


@dataclass
class Paths:
    runs: str = MISSING
    cache: str = MISSING


@dataclass
class Tracking:
    uri: str | None = MISSING
    experiment: str = MISSING


@dataclass
class Checkpoint:
    every: int = value(least=1)
    keep: int = value(least=1)


@dataclass
class Sweep:
    exclude: list[str] = MISSING


@dataclass
class Search:
    study: str | None = MISSING
    storage: str = MISSING
    trials: int = value(least=1)
    objective: list[str] = MISSING
    epoch: Any = MISSING
    max_seconds: float | None = value(above=0)
    max_parameters: float | None = value(above=0)
    max_gflops: float | None = value(above=0)
    seed: int = value(least=0)
    when: list[str] = MISSING
    trial: int | None = value(least=0)


@dataclass
class Config:
    """What any run can be told. A task's own keys and groups are arguments of its constructor, which `components.check`
    holds them against."""

    task: dict[str, Any] = MISSING
    pruner: dict[str, Any] = MISSING
    epochs: int = value(least=1)
    seed: int = value(least=0, most=2**63 - 1)
    device: str = value(choices=("auto", "cpu", "cuda", "cuda:N"))
    reuse: bool = MISSING
    report: bool = MISSING
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tracking: Tracking = field(default_factory=Tracking)
    paths: Paths = field(default_factory=Paths)
    sweep: Sweep = field(default_factory=Sweep)
    search: Search = field(default_factory=Search)


def schema() -> DictConfig:
    """`Config` as Hydra takes it: its keys are typed, and a task's may stand beside them, which a dataclass would
    refuse."""
    typed: dict[Any, Any] = {bool: BooleanNode, int: IntegerNode, float: FloatNode, str: StringNode}
    keys: dict[str, Any] = {}
    for f in fields(Config):
        kind: Any = f.type
        made = typed.get(kind)
        keys[f.name] = made(MISSING, is_optional=False) if made else kind if is_dataclass(kind) else MISSING
    return OmegaConf.create(keys)


def ranges(schema: type = Config, prefix: str = "") -> dict[str, Range]:
    """Flat key -> range of every plain value of the schema."""
    found: dict[str, Range] = {}
    for f in fields(schema):
        if is_dataclass(f.type):
            found |= ranges(f.type, f"{prefix}{f.name}.")  # type: ignore[arg-type]
        elif f.metadata:
            found[prefix + f.name] = f.metadata["range"]
    return found


def range_problem(key: str, found: Any, rule: Range) -> str | None:
    """One sentence if `found` is outside its range, else None."""
    if found is None:
        return None
    if rule.choices:
        pattern = [c for c in rule.choices if c == found or (c.endswith(":N") and _numbered(str(found), c))]
        return None if pattern else f"{key}={found}: allowed are {', '.join(rule.choices)}"
    if rule.least is not None and not found >= rule.least:
        return f"{key}={found}: must be at least {rule.least}"
    if rule.most is not None and not found <= rule.most:
        return f"{key}={found}: must be at most {rule.most}"
    if rule.above is not None and not found > rule.above:
        return f"{key}={found}: must be above {rule.above}"
    return None


def _numbered(found: str, choice: str) -> bool:
    return found.startswith(choice[:-1]) and found[len(choice) - 1 :].isdigit()
