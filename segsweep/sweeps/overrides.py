"""Overrides of a command line one at a time: their values, and the configurations that they compose to."""

import copy
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.utils import get_args
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from hydra.initialize import initialize_config_search_path
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from segsweep.config import components, trust
from segsweep.config.compose import bare
from segsweep.config.schema import under
from segsweep.core.errors import ConfigError

COMBINATIONS = 64
"""Most combinations of swept groups that are composed here; the rest is checked job by job."""


def searching(cfg: DictConfig) -> bool:
    """Whether a composed configuration's sweeper is an Optuna search, this program's or the published one."""
    target = str(OmegaConf.select(cfg, "hydra.sweeper._target_"))
    return "Optuna" in target or "SearchSweeper" in target


def composed(
    argv: list[str], overrides: list[str] | None = None, config_dir: str | None = None, output: str | None = None
) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of a single run without Hydra's part, and the option chosen in each group: of a command line,
    or with other `overrides` and another folder of options. Raises ConfigError where Hydra cannot make one; what it is
    worth `preflight` tells. output: the folder of the job's own, for code that is then run and asks Hydra for it."""
    try:
        args = get_args(argv)
    except SystemExit:  # argparse, of a command line that was recorded
        raise ConfigError(f"{' '.join(argv)}: not a command line of this program") from None
    args.overrides, args.config_dir = overrides or args.overrides, config_dir or args.config_dir
    root = trust.root(args)
    with initialize_config_search_path([*root.places, *beside_it(args)]):
        whole = composition(root.name, args.overrides)
        found = bare(whole)
    if output:
        with open_dict(whole.hydra):
            whole.hydra.runtime.output_dir = output
        HydraConfig.instance().set_config(whole)
    return found


def beside_it(args: Any) -> list[str]:
    return [] if args.config_dir is None else [f"file://{Path(args.config_dir).absolute()}"]


def each_value(override: Override) -> list[Any]:
    """All values of a discrete sweep, the two ends of an interval, or the one value."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_discrete_sweep():
        return [Override._convert_value(value) for value in override.sweep_iterator()]  # without quotes, as `value`
    sweep = override.value()
    if isinstance(sweep, IntervalSweep | RangeSweep):
        return [sweep.start, sweep.end if isinstance(sweep, IntervalSweep) else sweep.stop]
    return []


def each_line(override: Override) -> list[str]:
    """A group's override as one for each of its options."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [_line(override, value) for value in each_value(override)]


def _line(override: Override, value: Any) -> str:
    return f"{str(override.input_line).split('=')[0]}={value}"


def compositions(name: str | None, chosen: list[Override], values: list[Override]) -> Iterable[DictConfig]:
    """The configuration of every combination of swept groups, without the overrides of single values."""
    return (composition(name, lines) for lines in itertools.islice(all_points(chosen, values), COMBINATIONS))


def all_points(chosen: list[Override], values: list[Override]) -> Iterator[list[str]]:
    added = [str(o.input_line) for o in values if o.is_hydra_override() and not o.is_sweep_override()]
    for lines in itertools.product(*map(each_line, chosen)):
        yield [*lines, *added]


def composition(name: str | None, lines: list[str]) -> DictConfig:
    try:
        return compose(name, overrides=lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeError, AttributeError) as error:
        if isinstance(error, HydraException | OmegaConfBaseException) and (told := str(error).strip()):
            raise ConfigError(told) from None
        what = " ".join(str(error).split()) or type(error).__name__  # the last are Hydra's, of `hydra: null`
        raise ConfigError(f"{' '.join(lines) or 'config.yaml'}: a file of it is no configuration: {what}") from None
    except KeyError as error:
        raise ConfigError(f"hydra.job.env_copy: the environment has no {error.args[0]}") from None


def apply(cfg: DictConfig, override: Override, value: Any) -> None:
    with open_dict(cfg):
        if override.is_delete():
            group, _, name = override.key_or_group.rpartition(".")
            node = OmegaConf.select(cfg, group) if group else cfg
            if isinstance(node, DictConfig):
                node.pop(name, None)
            return
        plain = OmegaConf.create(value) if isinstance(value, dict | list) else value
        OmegaConf.update(cfg, override.key_or_group, plain, merge=not isinstance(plain, ListConfig))


def variants(bases: list[DictConfig], tasks: list[Override]) -> Iterable[DictConfig]:
    """Each base with the first value of everything, then with every other swept value once: but for those of a seed to
    which nothing refers, which decide nothing that is checked here, and may be thousands."""
    for base in bases:
        whole, _ = bare(base)
        for override in tasks:
            if values := each_value(override):
                apply(whole, override, values[0])
        yield whole
        seed = f"{under(whole)}seed"
        written = OmegaConf.to_yaml(whole) if any(o.key_or_group == seed for o in tasks) else ""
        alone = not re.search(r"\$\{[^}]*seed", written) and "seed" not in components.arguments(whole)
        for override in tasks:
            if override.key_or_group == seed and alone:
                continue
            for value in each_value(override)[1:]:
                variant = copy.deepcopy(whole)
                apply(variant, override, value)
                yield variant


def has_key(cfg: DictConfig, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):  # `in` denies a key without a value
            return False
        node = node._get_node(part)
    return True


def keys_of(cfg: DictConfig, prefix: str = "") -> Iterable[str]:
    for key in cfg:
        name = f"{prefix}{key!s}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from keys_of(node, f"{name}.")
        elif not str(key).startswith("_"):
            yield name
