"""What is wrong with an override or with the configurations that it is in: each a line, with the nearest right name."""

import contextlib
import copy
import itertools
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config import components
from segsweep.config.schema import engine, range_problem, ranges, under
from segsweep.core.errors import ConfigError, nearest
from segsweep.core.masks import first_line
from segsweep.core.program import COMMANDS, pasted
from segsweep.core.session import session
from segsweep.core.signature import OWN
from segsweep.search import pruning
from segsweep.sweeps.overrides import (
    COMBINATIONS,
    apply,
    composition,
    each_line,
    each_value,
    has_key,
    keys_of,
    searching,
    variants,
)


def unreadable(lines: list[str]) -> list[str]:
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


def wrong_settings(bases: list[DictConfig], tasks: list[Override]) -> list[str]:
    wrong = {o.input_line: _wrong_key(o, bases) or _wrong_values(o, bases) for o in tasks}
    problems = [mistake for mistakes in wrong.values() for mistake in mistakes]
    for base in bases:
        places: dict[str, None] = {}  # an option may have one of its own
        for cfg in variants([base], [o for o in tasks if not wrong[o.input_line]]):
            spec = components.spec_of(cfg)
            problems += [*components.check(cfg), *(pruning.problems(cfg, spec) if spec else [])]
            with contextlib.suppress(OmegaConfBaseException):  # of which a job tells
                places[str(OmegaConf.select(engine(cfg), "paths.runs"))] = None
        if len(places) > 1:
            at = f"{under(base)}paths.runs"
            problems.append(f"{at}: {', '.join(places)}: where runs go is no part of a sweep; give one value")
    return problems


def wrong_options(override: Override, options: list[str]) -> list[str]:
    group = override.key_or_group
    if override.is_sweep_override() and not each_value(override):
        return [f"{override.input_line}: fits no option; allowed are {', '.join(options)}"]
    if override.is_delete():
        return []
    if None in (values := each_value(override)):  # which Hydra fails on
        optional = f"; without one, leave {group} out" if group == "experiment" else ""
        return [f"{group}=null: an option is needed{optional}; allowed are {', '.join(options)}"]
    return [
        f"{group}={value}: no such option{nearest(str(value), options)}; allowed are {', '.join(options)}"
        for value in values
        if str(value).removesuffix(".yaml") not in options
    ]


def beside_wrong_options(
    name: str | None, chosen: list[Override], groups: dict[str, list[str]], values: list[Override]
) -> list[str]:
    """Mistakes of single values where options are wrong, as far as those leave them to be seen: what is below such a
    group, or may be anywhere by a task or an experiment that is not there, nobody knows."""
    kept, unknown = [], []
    for override in chosen:
        wrong = wrong_options(override, groups[override.key_or_group])
        good = {str(value).removesuffix(".yaml") for value in each_value(override)} & {*groups[override.key_or_group]}
        lines = [
            line for line, value in zip(each_line(override), each_value(override), strict=True) if str(value) in good
        ]
        kept += [lines] if lines else [] if wrong else [each_line(override)]
        unknown += [override.key_or_group.replace("/", ".")] if wrong else []
    if {group.rpartition(".")[2] for group in unknown} & {"experiment", "task"}:
        return []
    added = [str(o.input_line) for o in values if o.is_hydra_override() and not o.is_sweep_override()]
    tasks = [o for o in values if not f"{o.key_or_group}.".startswith(("hydra.", *(f"{group}." for group in unknown)))]
    try:
        points = itertools.islice(itertools.product(*kept), COMBINATIONS)
        bases = [composition(name, [*lines, *added]) for lines in points]
        wrong_values = {o.input_line: _wrong_key(o, bases) or _wrong_values(o, bases) for o in tasks}
        right = [o for o in tasks if not wrong_values[o.input_line]]
        others = [text for cfg in variants(bases, right) for text in components.wrong_values(cfg)]
    except (ConfigError, OmegaConfBaseException):  # it is the wrong options' doing
        return []
    return [*itertools.chain(*wrong_values.values()), *others]


def _wrong_key(override: Override, bases: list[DictConfig]) -> list[str]:
    key = override.key_or_group
    if override.is_add() and key == "search" and under(bases[0]) and isinstance(override.value(), str):
        instead = f"segsweep's is +{OWN}/search={override.value()}"
        return [f"{override.input_line}: this application has a `search` of its own; {instead}"]
    if override.is_add() or override.is_force_add():
        return []
    without = [cfg for cfg in bases if not has_key(cfg, key)]
    if not without:
        return []
    if len(without) < len(bases):
        group = key.split(".")[0]
        names = sorted({str(OmegaConf.select(cfg, f"hydra.runtime.choices.{group}")) for cfg in without})
        return [f"{key}: not a key of {', '.join(f'{group}={n}' for n in names)}; sweep those options apart"]
    keys = sorted({k for cfg in bases for k in keys_of(cfg) if not k.startswith("hydra")})
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
    return f"{at}{key}" if has_key(cfg, f"{at}{key}") else ""


def _wrong_values(override: Override, bases: list[DictConfig]) -> list[str]:
    if override.is_delete():
        return []
    if override.is_interval_sweep() and (problem := _wrong_interval(override, bases[0])):
        return [problem]
    key, problems = override.key_or_group, []
    rule = ranges().get("seed") if key == f"{under(bases[0])}seed" else None
    copied = None
    for value in each_value(override):
        if copied is None or isinstance(value, dict | list):
            copied = copy.deepcopy(bases[0])
        try:
            apply(copied, override, value)
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
