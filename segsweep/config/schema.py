"""The schema of the configuration and the place of conf/.

Types and ranges live here, values live in conf/: a dataclass has no defaults, so a value is never kept in two places.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode

from segsweep.task import Range


def conf_dir() -> Path:
    """conf/ inside the installed package, or beside it in a checkout or an editable install."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


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


GROUPS = ("task", "model", "loss", "optim", "scheduler", "data", "split", "augment")


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
