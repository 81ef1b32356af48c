"""All mistakes of a command line at once, before any data is read or any job starts.

Hydra reports the first mistake that it meets, job by job; here the overrides are taken one at a time, held against what
conf/ and the components allow, and answered with the nearest right name.
"""

import contextlib
import copy
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.initialize import initialize_config_search_path
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segsweep.config import components, trust
from segsweep.config.conditions import condition
from segsweep.config.schema import conf_dir
from segsweep.core.errors import ConfigError, SegsweepError, nearest
from segsweep.search import objective, pruning

COMBINATIONS = 64
"""Most combinations of swept groups that are composed here; the rest is checked job by job."""


@dataclass(frozen=True)
class Checked:
    """jobs: their number, None where a search decides; argv: the command line as Hydra takes it; foreign: whether it
    names a folder that is not trusted."""

    jobs: int | None
    argv: list[str]
    foreign: bool = False


def preflight(argv: list[str]) -> Checked:
    """Raise ConfigError with one line for every mistake.

    Hydra composes a sweep's own configuration without what is swept, and refuses a key that only a swept option has
    (`experiment=glob(*) data.root=...`): such an override is made a sweep of one value, which is left to the jobs."""
    args = get_args(argv)
    trust.refuse(args)
    folders = [conf_dir(), *([Path(args.config_dir).absolute()] if args.config_dir is not None else [])]
    if not folders[-1].is_dir():
        raise ConfigError(f"--config-dir {args.config_dir}: no such folder")
    with initialize_config_search_path([f"file://{folder}" for folder in folders]):
        loader = GlobalHydra.instance().config_loader()
        hold = trust.Hold(args, loader) if trust.foreign(args) else None
        lines: list[str] = args.overrides
        while True:
            try:
                overrides = OverridesParser.create(config_loader=loader).parse_overrides(lines)
                groups = {o.key_or_group: loader.get_group_options(o.key_or_group) for o in overrides}
            except HydraException as error:
                raise ConfigError("\n".join(_unreadable(lines)) or str(error).strip()) from None
            problems = [] if args.multirun else _needs_multirun(overrides)
            chosen = [o for o in overrides if groups[o.key_or_group]]
            values = [o for o in overrides if not groups[o.key_or_group]]
            for override in chosen:
                problems += _wrong_options(override, groups[override.key_or_group])
            _stop(problems)
            bases = list(_compositions(chosen, values))
            if hold:
                _stop(_foreign(hold, chosen, values, bases))
            if not (beside := _beside(bases[0], overrides)):
                swept = {id(o) for o in chosen if o.is_sweep_override()}
                master = next(iter(_compositions([o for o in chosen if id(o) not in swept], values)))
                break
            lines = beside + lines
        search = args.multirun and searching(bases[0])
        tasks = [o for o in values if not o.key_or_group.startswith("hydra.")]
        problems += _wrong(bases, tasks)
        if search:
            problems += _wrong_search(loader, lines, overrides, bases)
        else:
            problems += _wrong_objective(bases, tasks)
        _stop(problems)
    _check_data(bases, tasks, list(bases[0].search.objective) if search else [])
    if not args.multirun:
        return Checked(1, argv, bool(hold))
    late = {o.input_line for o in tasks if not o.is_sweep_override() and not _has(master, o.key_or_group)}
    late -= {o.input_line for o in tasks if o.is_add() or o.is_force_add() or o.is_delete()}
    argv = [_late(argument) if argument in late else argument for argument in argv]
    several = [o for o in overrides if o.is_sweep_override()]
    return Checked(None if search else math.prod(len(_values(o)) for o in several), argv, bool(hold))


def searching(cfg: DictConfig) -> bool:
    """Whether a composed configuration's sweeper is an Optuna search, this program's or the published one."""
    target = str(OmegaConf.select(cfg, "hydra.sweeper._target_"))
    return "Optuna" in target or "SearchSweeper" in target


def _wrong(bases: list[DictConfig], tasks: list[Override]) -> list[str]:
    wrong = {o.input_line: _wrong_key(o, bases) or _wrong_values(o, bases) for o in tasks}
    problems = [mistake for mistakes in wrong.values() for mistake in mistakes]
    for cfg in _variants(bases, [o for o in tasks if not wrong[o.input_line]]):
        spec = components.spec_of(cfg)
        problems += [*components.check(cfg), *(pruning.problems(cfg, spec) if spec else [])]
    return problems


def _wrong_objective(bases: list[DictConfig], tasks: list[Override]) -> list[str]:
    """Of the scores that each job tells its launcher, where the command line gives them."""
    given = [o for o in tasks if o.key_or_group in ("search.objective", "search.epoch", "epochs")]
    if all(o.key_or_group == "epochs" for o in given):
        return []
    problems = []
    with contextlib.suppress(OmegaConfBaseException, TypeError, ValueError):  # of another type, which is told
        for cfg in _variants(bases, given):
            spec = components.spec_of(cfg)
            problems += objective.problems(cfg.search, cfg.epochs, spec) if spec else []
    return problems


def _wrong_search(loader: Any, lines: list[str], overrides: list[Override], bases: list[DictConfig]) -> list[str]:
    """Of a search's space, its conditional part included, and its objective."""
    cfg = bases[0].copy()
    spaces = [o for o in overrides if o.is_sweep_override()]
    own = [o for o in overrides if o.key_or_group.startswith("search.") or o.key_or_group == "epochs"]
    problems = [
        f"{o.input_line}: a search does not search its own settings; give one value"
        for o in own
        if o in spaces and o.key_or_group != "epochs"
    ]
    if not any(re.search(r"(search|sampler)=grid$", line) for line in lines):
        luck = {"seed": "the luckiest seed", "split.fold": "the easiest fold", "pruner": "who was not pruned"}
        problems += [
            f"{o.input_line}: a search would choose {luck[o.key_or_group]}; give one value, and repeat the winner"
            for o in spaces
            if o.key_or_group in luck
        ]
    for override in own:
        with contextlib.suppress(OmegaConfBaseException, TypeError, ValueError):  # of another type, which was told
            _apply(cfg, override, min(map(int, _values(override))) if override in spaces else override.value())
    spec = components.spec_of(cfg)
    problems += objective.problems(cfg.search, cfg.epochs, spec) if spec else []
    if not spaces and not cfg.search.when:
        problems.append(
            "There is nothing to search: give values or an interval, as in model=unet,r2unet "
            "'optim.lr=tag(log, interval(1e-4, 1e-1))'"
        )
    for text in cfg.search.when:
        where, _, line = text.partition(":")
        try:
            terms = condition(where, "search.when")
            override = OverridesParser.create(config_loader=loader).parse_override(line.strip())
        except HydraException as error:
            problems.append(str(error).strip() if "no condition" in str(error) else f"search.when: {text}: {error}")
            continue
        given = {term.key: f"{term.key}={term.value}" for term in terms if term.sign in ("=", "==")}
        apart = {*given, override.key_or_group}
        kept = [line for line, o in zip(lines, overrides, strict=True) if o.key_or_group not in apart]
        then = OverridesParser.create(config_loader=loader).parse_overrides([*kept, *given.values()])
        chosen = [o for o in then if loader.get_group_options(o.key_or_group)]
        values = [o for o in then if o not in chosen]
        problems += [p for o in chosen for p in _wrong_options(o, loader.get_group_options(o.key_or_group))]
        if not problems:
            own = [o for o in values if not o.key_or_group.startswith("hydra.")]
            problems += _wrong(list(_compositions(chosen, values)), [*own, override])
    return problems


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


def _unreadable(lines: list[str]) -> list[str]:
    """What Hydra's grammar cannot read: its parser shows where it stopped, not what it would take."""
    problems = []
    for line in lines:
        try:
            OverridesParser.create().parse_override(line)
        except HydraException:
            key, equals, value = line.partition("=")
            text = f"{line}: not in Hydra's grammar, which takes key=value, +key=value and ~key"
            left_open = any(value.count(a) != value.count(b) for a, b in ("()", "[]", "{}"))
            if left_open or any(value.count(sign) % 2 for sign in "'\""):
                text += "; is a bracket or a quote left open?"
            elif equals:
                quoted = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
                with contextlib.suppress(HydraException):
                    OverridesParser.create().parse_override(quoted)
                    text += f"; a text with such signs has to be quoted, for the shell too: {shlex.quote(quoted)}"
            problems.append(text)
    return problems


def _needs_multirun(overrides: list[Override]) -> list[str]:
    problems = [f"{o.input_line}: several values are a sweep; add -m" for o in overrides if o.is_sweep_override()]
    plans = [o for o in overrides if o.key_or_group == "hydra/launcher" and o.value() == "plan"]
    return problems + [f"{o.input_line}: a plan is of a sweep, and this would train; add -m" for o in plans]


def _wrong_options(override: Override, options: list[str]) -> list[str]:
    group = override.key_or_group
    if override.is_sweep_override() and not _values(override):
        return [f"{override.input_line}: fits no option; allowed are {', '.join(options)}"]
    if not override.is_delete() and override.value() is None and group != "experiment":
        return [f"{group}=null: an option is needed; allowed are {', '.join(options)}"]
    return [
        f"{group}={value}: no such option{nearest(str(value), options)}; allowed are {', '.join(options)}"
        for value in _values(override)
        if not override.is_delete() and value is not None and str(value).removesuffix(".yaml") not in options
    ]


def _values(override: Override) -> list[Any]:
    """All values of a discrete sweep, the two ends of an interval, or the one value."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_discrete_sweep():
        return list(override.sweep_iterator())
    sweep = override.value()
    if isinstance(sweep, IntervalSweep | RangeSweep):
        return [sweep.start, sweep.end if isinstance(sweep, IntervalSweep) else sweep.stop]
    return []


def _compositions(chosen: list[Override], values: list[Override]) -> Iterable[DictConfig]:
    """The configuration of every combination of swept groups, without the overrides of single values."""
    return map(_composed, itertools.islice(_points(chosen, values), COMBINATIONS))


def _points(chosen: list[Override], values: list[Override]) -> Iterator[list[str]]:
    added = [str(o.input_line) for o in values if o.is_hydra_override() and not o.is_sweep_override()]
    for lines in itertools.product(*map(_lines, chosen)):
        yield [*lines, *added]


def _lines(override: Override) -> list[str]:
    """A group's override as one for each of its options."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [_line(override, value) for value in _values(override)]


def _composed(lines: list[str]) -> DictConfig:
    try:
        return compose("config", overrides=lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip()) from None
    except KeyError as error:
        raise ConfigError(f"hydra.job.env_copy: the environment has no {error.args[0]}") from None


def _foreign(
    hold: trust.Hold, chosen: list[Override], values: list[Override], bases: list[DictConfig]
) -> Iterator[str]:
    """What folders that are not trusted say to Hydra: in the compositions that are there, in further ones until each
    option of each group was in one, and in that of the sweep itself, which has nothing of what is swept."""
    points = list(itertools.islice(_points(chosen, values), COMBINATIONS))
    for lines, cfg in zip(points, bases, strict=True):
        yield from hold.problems(cfg, lines)
    options = [_lines(o) for o in chosen]
    yield from hold.too_many(bases[0], math.prod(map(len, options)), COMBINATIONS)
    first, seen = points[0], set(itertools.chain(*points))
    rest = [[*first[:i], line, *first[i + 1 :]] for i, some in enumerate(options) for line in some if line not in seen]
    rest += _points([o for o in chosen if not o.is_sweep_override()], values)
    for lines in rest:
        if lines not in points:
            yield from hold.problems(_composed(lines), lines)


def _line(override: Override, value: Any) -> str:
    return f"{str(override.input_line).split('=')[0]}={value}"


def _wrong_key(override: Override, bases: list[DictConfig]) -> list[str]:
    key = override.key_or_group
    if override.is_add() or override.is_force_add():
        return []
    without = [cfg for cfg in bases if not _has(cfg, key)]
    if not without:
        return []
    if len(without) < len(bases):
        group = key.split(".")[0]
        names = sorted({str(OmegaConf.select(cfg, f"hydra.runtime.choices.{group}")) for cfg in without})
        return [f"{key}: not a key of {', '.join(f'{group}={n}' for n in names)}; sweep those options apart"]
    keys = sorted({k for cfg in bases for k in _keys(cfg) if not k.startswith("hydra")})
    group, _, name = key.rpartition(".")
    own = {k.rpartition(".")[2]: k for k in keys if group and k.rpartition(".")[0] == group}
    if not own:
        return [f"{key}: no such key{nearest(key, [*keys, *{k.split('.')[0] for k in keys}])}"]
    if hint := nearest(name, own):
        return [f"{key}: no such key{hint.replace('mean ', f'mean {group}.')}"]
    return [f"{key}: no such key; {group} has {', '.join(sorted(own.values()))}"]


def _has(cfg: DictConfig, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):  # `in` denies a key without a value
            return False
        node = node._get_node(part)
    return True


def _keys(cfg: DictConfig, prefix: str = "") -> Iterable[str]:
    for key in cfg:
        name = f"{prefix}{key!s}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _keys(node, f"{name}.")
        elif not str(key).startswith("_"):
            yield name


def _wrong_values(override: Override, bases: list[DictConfig]) -> list[str]:
    if override.is_delete():
        return []
    if override.is_interval_sweep() and (problem := _wrong_interval(override, searching(bases[0]))):
        return [problem]
    problems = []
    for cfg, value in itertools.product(bases[:1], _values(override)):
        try:
            _apply(copy.deepcopy(cfg), override, value)
        except OmegaConfBaseException as error:
            problems.append(f"{override.key_or_group}={value}: {str(error).splitlines()[0]}")
    return problems


def _wrong_interval(override: Override, search: bool) -> str | None:
    line, found = override.input_line, override.value()
    assert isinstance(found, IntervalSweep)
    low, high = float(found.start or 0), float(found.end or 0)
    if not search:
        key = override.key_or_group
        return f"{line}: an interval is for a search, such as +search=tpe; a grid takes values, {key}=1,2"
    if not low < high:
        return f"{line}: the interval is empty; the lower end comes first, as in interval({min(low, high):g}, 1)"
    if unknown := sorted(found.tags - {"log"}):
        return f"{line}: tag {unknown[0]} means nothing{nearest(unknown[0], ['log'])}; the one tag is log"
    if "log" in found.tags and low <= 0:
        return f"{line}: a logarithm begins above 0, as in tag(log, interval(1e-5, 1e-2))"
    return None


def _apply(cfg: DictConfig, override: Override, value: Any) -> None:
    with open_dict(cfg):
        if override.is_delete():
            return
        plain = OmegaConf.create(value) if isinstance(value, dict | list) else value
        OmegaConf.update(cfg, override.key_or_group, plain, merge=not isinstance(plain, ListConfig))


def _variants(bases: list[DictConfig], tasks: list[Override]) -> Iterable[DictConfig]:
    """Each base with the first value of everything, then with every other swept value once."""
    for base in bases:
        whole = copy.deepcopy(base)
        with open_dict(whole):
            del whole["hydra"]
        for override in tasks:
            if values := _values(override):
                _apply(whole, override, values[0])
        yield whole
        for override in tasks:
            for value in _values(override)[1:]:
                variant = copy.deepcopy(whole)
                _apply(variant, override, value)
                yield variant


def _check_data(bases: list[DictConfig], tasks: list[Override], scores: list[str]) -> None:
    """All data that the jobs will use, as their tasks tell of them without training.

    `scores`: what a search wants of the validation part."""
    seen: dict[str, int] = {}
    for cfg in _variants(bases, tasks):
        try:
            if (key := components.inputs(cfg)) not in seen:
                seen[key] = components.task(cfg).data().parts.get("val", 0)
                if scores:
                    objective.check_part(seen[key], scores)
            if OmegaConf.select(cfg, "pruner._target_"):
                pruning.refuse(cfg, components.task_class(cfg).spec, seen[key])
        except SegsweepError as error:
            raise ConfigError(str(error)) from None
