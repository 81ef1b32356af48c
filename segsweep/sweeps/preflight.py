"""All mistakes of a command line at once, before any data is read or any job starts.

Hydra reports the first mistake that it meets, job by job; here the overrides are taken one at a time, held against what
conf/ and the components allow, and answered with the nearest right name.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.initialize import initialize_config_search_path
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from segsweep.config import components, trust
from segsweep.config.hold import Hold
from segsweep.config.schema import engine, under
from segsweep.core.errors import ConfigError, SegsweepError
from segsweep.core.session import session
from segsweep.search import objective, pruning
from segsweep.sweeps.mistakes import beside_wrong_options, unreadable, wrong_options, wrong_settings
from segsweep.sweeps.overrides import (
    COMBINATIONS,
    all_points,
    beside_it,
    composition,
    compositions,
    each_line,
    each_value,
    has_key,
    keys_of,
    searching,
    variants,
)
from segsweep.sweeps.spaces import wrong_objective, wrong_search


@dataclass(frozen=True)
class Checked:
    """jobs: their number, None where a search decides; argv: the command line as Hydra takes it; foreign: whether it
    names a folder that is not trusted, and hold: what each job is then held against; here: whether jobs run in this
    process."""

    jobs: int | None
    argv: list[str]
    foreign: bool = False
    here: bool = False
    hold: Hold | None = None


def preflight(argv: list[str]) -> Checked:
    """Raise ConfigError with one line for every mistake.

    Hydra composes a sweep's own configuration without what is swept, and refuses a key that only a swept option has
    (`experiment=glob(*) data.root=...`): such an override is made a sweep of one value, which is left to the jobs."""
    args = get_args(argv)
    trust.refuse(args)
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise ConfigError(f"--config-dir {args.config_dir}: no such folder")
    root = trust.root(args)
    with initialize_config_search_path([*root.places, *beside_it(args)]):
        loader = GlobalHydra.instance().config_loader()
        hold = Hold(args, loader) if trust.foreign(args) else None
        lines: list[str] = args.overrides
        while True:
            try:
                overrides = OverridesParser.create(config_loader=loader).parse_overrides(lines)
                groups = {o.key_or_group: loader.get_group_options(o.key_or_group) for o in overrides}
            except HydraException as error:
                raise ConfigError("\n".join(unreadable(lines)) or str(error).strip()) from None
            needs = [] if args.multirun else _needs_multirun(overrides)
            problems: list[str] = []
            chosen = [o for o in overrides if groups[o.key_or_group]]
            values = [o for o in overrides if not groups[o.key_or_group]]
            for override in chosen:
                problems += wrong_options(override, groups[override.key_or_group])
            if problems:
                _stop([*needs, *problems, *beside_wrong_options(root.name, chosen, groups, values)])
            bases = list(compositions(root.name, chosen, values))
            if not args.multirun and bases[0].hydra.mode is RunMode.MULTIRUN:  # as plain Hydra goes by it
                args.multirun, needs, argv = True, [], ["-m", *argv]
            _stop(needs)
            if hold:
                _stop(_foreign(root.name, hold, chosen, values, bases))
            if not (beside := _beside(bases[0], overrides)):
                swept = {id(o) for o in chosen if o.is_sweep_override()}
                master = next(iter(compositions(root.name, [o for o in chosen if id(o) not in swept], values)))
                break
            lines = beside + lines
        search = args.multirun and searching(bases[0])
        tasks = [o for o in values if not o.key_or_group.startswith("hydra.")]
        problems += wrong_settings(bases, tasks)
        if search:
            problems += wrong_search(root.name, loader, lines, overrides, bases)
        else:
            problems += wrong_objective(bases, tasks)
        _stop(problems)
    if door := session().door:
        added = {o.key_or_group for o in overrides}
        for text in door.unknown(bases[0], {*keys_of(bases[0]), *added}):
            print(text, file=sys.stderr)
    _check_data(bases, tasks, list(engine(bases[0]).search.objective) if search else [])
    here = not args.multirun or "BasicLauncher" in str(OmegaConf.select(bases[0], "hydra.launcher._target_"))
    argv = [*argv, *_numbered(bases[0])]
    if not args.multirun:
        return Checked(1, argv, bool(hold), here, hold)
    late = {o.input_line for o in tasks if not o.is_sweep_override() and not has_key(master, o.key_or_group)}
    late -= {o.input_line for o in tasks if o.is_add() or o.is_force_add() or o.is_delete()}
    argv = [_late(argument) if argument in late else argument for argument in argv]
    several = [o for o in overrides if o.is_sweep_override()]
    return Checked(None if search else math.prod(len(each_value(o)) for o in several), argv, bool(hold), here, hold)


def _numbered(cfg: DictConfig) -> list[str]:
    """Another application may name its folders as it likes, but jobs have a number, each a folder of its own in that of
    its sweep, whose record lies there."""
    if session().door is None:
        return []
    raw: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    given = {"hydra.sweep.subdir": "${hydra.job.num}"} if raw["sweep"]["subdir"] != "${hydra.job.num}" else {}
    if not raw["run"]["dir"].endswith("/0"):
        given["hydra.run.dir"] = f"{raw['run']['dir']}/0"
    return [f"{key}={QuotedString(text, Quote.single).with_quotes()}" for key, text in given.items()]


def _late(argument: str) -> str:
    key, _, text = argument.partition("=")
    return f"{key}=choice({text})"


def _stop(problems: Iterable[str]) -> None:
    if unique := list(dict.fromkeys(problems)):
        raise ConfigError("\n".join(unique))


def _beside(base: DictConfig, overrides: list[Override]) -> list[str]:
    """What the sweeper combines besides the command line: of a named grid or a search space."""
    given = {name.lstrip("+~") for o in overrides for name in (o.key_or_group, o.get_key_element())}
    params = OmegaConf.select(base, "hydra.sweeper.params") or {}
    return [f"{key}={value}" for key, value in params.items() if key.lstrip("+") not in given]


def _needs_multirun(overrides: list[Override]) -> list[str]:
    problems = [f"{o.input_line}: several values are a sweep; add -m" for o in overrides if o.is_sweep_override()]
    plans = [o for o in overrides if o.key_or_group == "hydra/launcher" and o.value() == "plan"]
    return problems + [f"{o.input_line}: a plan is of a sweep, and this would train; add -m" for o in plans]


def _foreign(
    name: str | None, hold: Hold, chosen: list[Override], values: list[Override], bases: list[DictConfig]
) -> Iterator[str]:
    """What folders that are not trusted say to Hydra: in the compositions that are there, in further ones until each
    option of each group was in one, and in that of the sweep itself, which has nothing of what is swept."""
    points = list(itertools.islice(all_points(chosen, values), COMBINATIONS))
    for lines, cfg in zip(points, bases, strict=True):
        yield from hold.problems(cfg, lines)
    options = [each_line(o) for o in chosen]
    yield from hold.too_many(bases[0], math.prod(map(len, options)), COMBINATIONS)
    first, seen = points[0], set(itertools.chain(*points))
    rest = [[*first[:i], line, *first[i + 1 :]] for i, some in enumerate(options) for line in some if line not in seen]
    rest += all_points([o for o in chosen if not o.is_sweep_override()], values)
    for lines in rest:
        if lines not in points:
            yield from hold.problems(composition(name, lines), lines)


def _check_data(bases: list[DictConfig], tasks: list[Override], scores: list[str]) -> None:
    """All data that the jobs will use, as their tasks tell of them without training.

    `scores`: what a search wants of the validation part."""
    seen: dict[str, int] = {}
    for cfg in variants(bases, tasks):
        try:
            if (key := components.inputs(cfg)) not in seen:
                seen[key] = int(components.task(cfg).data().part == "val")
            pruned = OmegaConf.select(engine(cfg), "pruner._target_")
            if not (scores or pruned):
                continue
            spec = components.spec_of(cfg) or components.task_class(cfg).spec
            if scores:
                objective.check_part(seen[key], scores, spec, under(cfg))
            if pruned:
                pruning.refuse(cfg, spec, seen[key])
        except SegsweepError as error:
            raise ConfigError(str(error)) from None
