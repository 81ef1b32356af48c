"""All mistakes of a command line at once, before any data is read or any job starts.

Hydra reports the first mistake that it meets, job by job; here the overrides are taken one at a time, held against what
conf/ and the components allow, and answered with the nearest right name.
"""

import contextlib
import copy
import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.initialize import initialize_config_search_path
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from segsweep.config import components, trust
from segsweep.config.compose import bare
from segsweep.config.conditions import condition
from segsweep.config.hold import Hold, is_place
from segsweep.config.schema import engine, range_problem, ranges, under
from segsweep.core.errors import ConfigError, SegsweepError, nearest
from segsweep.core.masks import first_line
from segsweep.core.program import COMMANDS, pasted
from segsweep.core.session import session
from segsweep.core.signature import IGNORED, OWN
from segsweep.search import objective, pruning

COMBINATIONS = 64
"""Most combinations of swept groups that are composed here; the rest is checked job by job."""


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
    with initialize_config_search_path([*root.places, *_beside_it(args)]):
        loader = GlobalHydra.instance().config_loader()
        hold = Hold(args, loader) if trust.foreign(args) else None
        lines: list[str] = args.overrides
        while True:
            try:
                overrides = OverridesParser.create(config_loader=loader).parse_overrides(lines)
                groups = {o.key_or_group: loader.get_group_options(o.key_or_group) for o in overrides}
            except HydraException as error:
                raise ConfigError("\n".join(_unreadable(lines)) or str(error).strip()) from None
            needs = [] if args.multirun else _needs_multirun(overrides)
            problems: list[str] = []
            chosen = [o for o in overrides if groups[o.key_or_group]]
            values = [o for o in overrides if not groups[o.key_or_group]]
            for override in chosen:
                problems += _wrong_options(override, groups[override.key_or_group])
            if problems:
                _stop([*needs, *problems, *_beside_wrong_options(root.name, chosen, groups, values)])
            bases = list(_compositions(root.name, chosen, values))
            if not args.multirun and bases[0].hydra.mode is RunMode.MULTIRUN:  # as plain Hydra goes by it
                args.multirun, needs, argv = True, [], ["-m", *argv]
            _stop(needs)
            if hold:
                _stop(_foreign(root.name, hold, chosen, values, bases))
            if not (beside := _beside(bases[0], overrides)):
                swept = {id(o) for o in chosen if o.is_sweep_override()}
                master = next(iter(_compositions(root.name, [o for o in chosen if id(o) not in swept], values)))
                break
            lines = beside + lines
        search = args.multirun and searching(bases[0])
        tasks = [o for o in values if not o.key_or_group.startswith("hydra.")]
        problems += _wrong(bases, tasks)
        if search:
            problems += _wrong_search(root.name, loader, lines, overrides, bases)
        else:
            problems += _wrong_objective(bases, tasks)
        _stop(problems)
    if door := session().door:
        added = {o.key_or_group for o in overrides}
        for text in door.unknown(bases[0], {*_keys(bases[0]), *added}):
            print(text, file=sys.stderr)
    _check_data(bases, tasks, list(engine(bases[0]).search.objective) if search else [])
    here = not args.multirun or "BasicLauncher" in str(OmegaConf.select(bases[0], "hydra.launcher._target_"))
    argv = [*argv, *_numbered(bases[0])]
    if not args.multirun:
        return Checked(1, argv, bool(hold), here, hold)
    late = {o.input_line for o in tasks if not o.is_sweep_override() and not _has(master, o.key_or_group)}
    late -= {o.input_line for o in tasks if o.is_add() or o.is_force_add() or o.is_delete()}
    argv = [_late(argument) if argument in late else argument for argument in argv]
    several = [o for o in overrides if o.is_sweep_override()]
    return Checked(None if search else math.prod(len(_values(o)) for o in several), argv, bool(hold), here, hold)


def _beside_it(args: Any) -> list[str]:
    return [] if args.config_dir is None else [f"file://{Path(args.config_dir).absolute()}"]


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
    with initialize_config_search_path([*root.places, *_beside_it(args)]):
        whole = _composed(root.name, args.overrides)
        found = bare(whole)
    if output:
        with open_dict(whole.hydra):
            whole.hydra.runtime.output_dir = output
        HydraConfig.instance().set_config(whole)
    return found


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


def _describing(cfg: DictConfig, tasks: list[Override]) -> list[Override]:
    """Those that a task's metrics may depend on."""
    spec = components.spec_of(cfg)
    if spec is None or not hasattr(components.task_class(cfg), "spec_for"):
        return []
    named = (*spec.inputs, *spec.describing) if spec.inputs else ()
    return [o for o in tasks if not named or o.key_or_group.split(".")[0] in named]


def _wrong_objective(bases: list[DictConfig], tasks: list[Override]) -> list[str]:
    """Of the scores that each job tells its launcher, where the command line gives them."""
    at = under(bases[0])
    given = [o for o in tasks if o.key_or_group in (f"{at}search.objective", f"{at}search.epoch", f"{at}epochs")]
    if all(o.key_or_group == f"{at}epochs" for o in given):
        return []
    problems = []
    with contextlib.suppress(OmegaConfBaseException, TypeError, ValueError):  # of another type, which is told
        for cfg in _variants(bases, [*given, *_describing(bases[0], tasks)]):
            spec, own = components.spec_of(cfg), engine(cfg)
            problems += objective.problems(own.search, own.epochs, spec) if spec else []
    return problems


def _wrong_search(
    name: str | None, loader: Any, lines: list[str], overrides: list[Override], bases: list[DictConfig]
) -> list[str]:
    """Of a search's space, its conditional part included, and its objective."""
    cfg = bases[0].copy()
    at = under(cfg)
    spaces = [o for o in overrides if o.is_sweep_override()]
    own = [o for o in overrides if o.key_or_group.startswith(f"{at}search.") or o.key_or_group == f"{at}epochs"]
    problems = [
        f"{o.input_line}: a search does not search its own settings; give one value"
        for o in own
        if o in spaces and o.key_or_group != f"{at}epochs"
    ]
    if not any(re.search(r"(search|sampler)=grid$", line) for line in lines):
        spec = components.spec_of(cfg)
        luck = {key: f"the easiest {key.rpartition('.')[2]}" for key in (spec.repeats if spec else ())}
        luck |= {"seed": "the luckiest seed", f"{at}seed": "the luckiest seed"}
        luck |= {f"{at}pruner".replace(".", "/"): "who was not pruned"}
        problems += [
            f"{o.input_line}: a search would choose {luck[o.key_or_group]}; give one value, and repeat the winner"
            for o in spaces
            if o.key_or_group in luck
        ]
    for override in own:
        with contextlib.suppress(OmegaConfBaseException, TypeError, ValueError):  # of another type, which was told
            _apply(cfg, override, min(map(int, _values(override))) if override in spaces else override.value())
    for override in _describing(cfg, overrides):
        if values := _values(override):
            _apply(cfg, override, values[0])
    spec = components.spec_of(cfg)
    search = engine(cfg).search
    problems += objective.problems(search, engine(cfg).epochs, spec, at) if spec else []
    if not spaces and not search.when:
        problems.append(f"There is nothing to search: give values or an interval, as in {_searchable(cfg)}")
    for text in search.when:
        where, _, line = text.partition(":")
        try:
            terms = condition(where, f"{at}search.when")
            override = OverridesParser.create(config_loader=loader).parse_override(line.strip())
        except HydraException as error:
            problems.append(str(error).strip() if "no condition" in str(error) else f"{at}search.when: {text}: {error}")
            continue
        if any(re.match(r"hydra\b", part or "") for part in (override.key_or_group, override.package)):
            problems.append(f"{at}search.when: {text}: what Hydra itself is told is no part of a search")
            continue
        if is_place(override.key_or_group, at):
            problems.append(f"{at}search.when: {text}: where a run goes is no part of a search")
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
            problems += _wrong(list(_compositions(name, chosen, values)), [*own, override])
    return problems


def _searchable(cfg: DictConfig) -> str:
    """An example with a setting of the task at hand: its learning rate, or else the first number."""
    apart = ("hydra", *((OWN,) if under(cfg) else IGNORED))  # an application calls its own keys as it likes
    chosen = {key: OmegaConf.select(cfg, key) for key in _keys(cfg) if key.partition(".")[0] not in apart}
    numbers = [key for key, value in chosen.items() if isinstance(value, float)]
    rates = [key for key in numbers if key.rpartition(".")[2] == "lr"]
    key = next(iter([*rates, *numbers]), "KEY")
    return f"'{key}=tag(log, interval(1e-4, 1e-1))'" if key in rates else f"'{key}=interval(0.1, 0.9)' or {key}=0.1,0.2"


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
            brackets = any(value.count(a) != value.count(b) for a, b in ("()", "[]", "{}"))
            left_open = brackets or any(value.count(sign) % 2 for sign in "'\"")
            text += "; is a bracket or a quote left open?" * left_open
            text += "" if equals or session().door else nearest(line, COMMANDS)
            if equals and (not left_open or re.search(r"[\\^?*+|]", value)):  # the latter of a regular expression
                quoted = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
                with contextlib.suppress(HydraException):
                    OverridesParser.create().parse_override(quoted)
                    text += f"{' A' if left_open else '; a'} text with such signs has to be quoted, for the shell too: "
                    text += pasted([quoted])
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
    if override.is_delete():
        return []
    if None in (values := _values(override)):  # which Hydra fails on
        optional = f"; without one, leave {group} out" if group == "experiment" else ""
        return [f"{group}=null: an option is needed{optional}; allowed are {', '.join(options)}"]
    return [
        f"{group}={value}: no such option{nearest(str(value), options)}; allowed are {', '.join(options)}"
        for value in values
        if str(value).removesuffix(".yaml") not in options
    ]


def _beside_wrong_options(
    name: str | None, chosen: list[Override], groups: dict[str, list[str]], values: list[Override]
) -> list[str]:
    """Mistakes of single values where options are wrong, as far as those leave them to be seen: what is below such a
    group, or may be anywhere by a task or an experiment that is not there, nobody knows."""
    kept, unknown = [], []
    for override in chosen:
        wrong = _wrong_options(override, groups[override.key_or_group])
        good = {str(value).removesuffix(".yaml") for value in _values(override)} & {*groups[override.key_or_group]}
        lines = [line for line, value in zip(_lines(override), _values(override), strict=True) if str(value) in good]
        kept += [lines] if lines else [] if wrong else [_lines(override)]
        unknown += [override.key_or_group.replace("/", ".")] if wrong else []
    if {group.rpartition(".")[2] for group in unknown} & {"experiment", "task"}:
        return []
    added = [str(o.input_line) for o in values if o.is_hydra_override() and not o.is_sweep_override()]
    tasks = [o for o in values if not f"{o.key_or_group}.".startswith(("hydra.", *(f"{group}." for group in unknown)))]
    try:
        points = itertools.islice(itertools.product(*kept), COMBINATIONS)
        bases = [_composed(name, [*lines, *added]) for lines in points]
        wrong_values = {o.input_line: _wrong_key(o, bases) or _wrong_values(o, bases) for o in tasks}
        right = [o for o in tasks if not wrong_values[o.input_line]]
        others = [text for cfg in _variants(bases, right) for text in components.wrong_values(cfg)]
    except (ConfigError, OmegaConfBaseException):  # it is the wrong options' doing
        return []
    return [*itertools.chain(*wrong_values.values()), *others]


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


def _compositions(name: str | None, chosen: list[Override], values: list[Override]) -> Iterable[DictConfig]:
    """The configuration of every combination of swept groups, without the overrides of single values."""
    return (_composed(name, lines) for lines in itertools.islice(_points(chosen, values), COMBINATIONS))


def _points(chosen: list[Override], values: list[Override]) -> Iterator[list[str]]:
    added = [str(o.input_line) for o in values if o.is_hydra_override() and not o.is_sweep_override()]
    for lines in itertools.product(*map(_lines, chosen)):
        yield [*lines, *added]


def _lines(override: Override) -> list[str]:
    """A group's override as one for each of its options."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [_line(override, value) for value in _values(override)]


def _composed(name: str | None, lines: list[str]) -> DictConfig:
    try:
        return compose(name, overrides=lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeError, AttributeError) as error:
        if isinstance(error, HydraException | OmegaConfBaseException) and (told := str(error).strip()):
            raise ConfigError(told) from None
        what = " ".join(str(error).split()) or type(error).__name__  # the last are Hydra's, of `hydra: null`
        raise ConfigError(f"{' '.join(lines) or 'config.yaml'}: a file of it is no configuration: {what}") from None
    except KeyError as error:
        raise ConfigError(f"hydra.job.env_copy: the environment has no {error.args[0]}") from None


def _foreign(
    name: str | None, hold: Hold, chosen: list[Override], values: list[Override], bases: list[DictConfig]
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
            yield from hold.problems(_composed(name, lines), lines)


def _line(override: Override, value: Any) -> str:
    return f"{str(override.input_line).split('=')[0]}={value}"


def _wrong_key(override: Override, bases: list[DictConfig]) -> list[str]:
    key = override.key_or_group
    if override.is_add() and key == "search" and under(bases[0]) and isinstance(override.value(), str):
        instead = f"segsweep's is +{OWN}/search={override.value()}"
        return [f"{override.input_line}: this application has a `search` of its own; {instead}"]
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
    if group == f"{under(bases[0])}task" and name in components.arguments(bases[0]):
        return [f"{key}: an argument of the task that its option does not name is added, +{override.input_line}"]
    own = {k.rpartition(".")[2]: k for k in keys if group and k.rpartition(".")[0] == group}
    if (at := under(bases[0])) and (meant := _of_the_engine(override, bases[0], at)):
        return [f"{key}: no such key; did you mean {meant}?"]
    if not own:
        return [f"{key}: no such key{nearest(key, [*keys, *{k.split('.')[0] for k in keys}])}"]
    if hint := nearest(name, own):
        return [f"{key}: no such key{hint.replace('mean ', f'mean {group}.')}"]
    return [f"{key}: no such key; {group} has {', '.join(sorted(own.values()))}"]


def _of_the_engine(override: Override, cfg: DictConfig, at: str) -> str:
    """What a key of an application that it has not is called where the engine has it; "" where that has none."""
    key, group = override.key_or_group, f"{OWN}/{override.key_or_group}"
    if key == "search" or group in cfg.hydra.runtime.choices:
        plus = "" if group in cfg.hydra.runtime.choices else "+"
        return f"{plus}{group}={str(override.input_line).partition('=')[2]}"
    return f"{at}{key}" if _has(cfg, f"{at}{key}") else ""


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
    if override.is_interval_sweep() and (problem := _wrong_interval(override, bases[0])):
        return [problem]
    key, problems = override.key_or_group, []
    rule = ranges().get("seed") if key == f"{under(bases[0])}seed" else None
    copied = None
    for value in _values(override):
        if copied is None or isinstance(value, dict | list):
            copied = copy.deepcopy(bases[0])
        try:
            _apply(copied, override, value)
            found = rule and range_problem(key, OmegaConf.select(copied, key), rule)
            problems += [found] if found else []
        except OmegaConfBaseException as error:
            problems.append(f"{key}={value}: {first_line(error)}")
    return problems


def _wrong_interval(override: Override, base: DictConfig) -> str | None:
    line, found = override.input_line, override.value()
    assert isinstance(found, IntervalSweep)
    low, high = float(found.start or 0), float(found.end or 0)
    if not searching(base):
        key, at = override.key_or_group, under(base).replace(".", "/")
        return f"{line}: an interval is for a search, such as +{at}search=tpe; a grid takes values, {key}=1,2"
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
            group, _, name = override.key_or_group.rpartition(".")
            node = OmegaConf.select(cfg, group) if group else cfg
            if isinstance(node, DictConfig):
                node.pop(name, None)
            return
        plain = OmegaConf.create(value) if isinstance(value, dict | list) else value
        OmegaConf.update(cfg, override.key_or_group, plain, merge=not isinstance(plain, ListConfig))


def _variants(bases: list[DictConfig], tasks: list[Override]) -> Iterable[DictConfig]:
    """Each base with the first value of everything, then with every other swept value once: but for those of a seed to
    which nothing refers, which decide nothing that is checked here, and may be thousands."""
    for base in bases:
        whole, _ = bare(base)
        for override in tasks:
            if values := _values(override):
                _apply(whole, override, values[0])
        yield whole
        seed = f"{under(whole)}seed"
        written = OmegaConf.to_yaml(whole) if any(o.key_or_group == seed for o in tasks) else ""
        alone = not re.search(r"\$\{[^}]*seed", written) and "seed" not in components.arguments(whole)
        for override in tasks:
            if override.key_or_group == seed and alone:
                continue
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
