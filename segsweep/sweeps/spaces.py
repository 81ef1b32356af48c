"""What is wrong with what a search is told: its space, the conditional part of it, its objective."""

import contextlib
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config import components
from segsweep.config.conditions import condition
from segsweep.config.hold import is_place
from segsweep.config.schema import engine, under
from segsweep.core.signature import IGNORED, OWN
from segsweep.search import objective
from segsweep.sweeps.mistakes import wrong_options, wrong_settings
from segsweep.sweeps.overrides import apply, compositions, each_value, keys_of, variants


def wrong_objective(bases: list[DictConfig], tasks: list[Override]) -> list[str]:
    """Of the scores that each job tells its launcher, where the command line gives them."""
    at = under(bases[0])
    given = [o for o in tasks if o.key_or_group in (f"{at}search.objective", f"{at}search.epoch", f"{at}epochs")]
    if all(o.key_or_group == f"{at}epochs" for o in given):
        return []
    problems = []
    with contextlib.suppress(OmegaConfBaseException, TypeError, ValueError):  # of another type, which is told
        for cfg in variants(bases, [*given, *_describing(bases[0], tasks)]):
            spec, own = components.spec_of(cfg), engine(cfg)
            problems += objective.problems(own.search, own.epochs, spec) if spec else []
    return problems


def wrong_search(
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
            apply(cfg, override, min(map(int, each_value(override))) if override in spaces else override.value())
    for override in _describing(cfg, overrides):
        if values := each_value(override):
            apply(cfg, override, values[0])
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
        problems += [p for o in chosen for p in wrong_options(o, loader.get_group_options(o.key_or_group))]
        if not problems:
            own = [o for o in values if not o.key_or_group.startswith("hydra.")]
            problems += wrong_settings(list(compositions(name, chosen, values)), [*own, override])
    return problems


def _describing(cfg: DictConfig, tasks: list[Override]) -> list[Override]:
    """Those that a task's metrics may depend on."""
    spec = components.spec_of(cfg)
    if spec is None or not hasattr(components.task_class(cfg), "spec_for"):
        return []
    named = (*spec.inputs, *spec.describing) if spec.inputs else ()
    return [o for o in tasks if not named or o.key_or_group.split(".")[0] in named]


def _searchable(cfg: DictConfig) -> str:
    """An example with a setting of the task at hand: its learning rate, or else the first number."""
    apart = ("hydra", *((OWN,) if under(cfg) else IGNORED))  # an application calls its own keys as it likes
    chosen = {key: OmegaConf.select(cfg, key) for key in keys_of(cfg) if key.partition(".")[0] not in apart}
    numbers = [key for key, value in chosen.items() if isinstance(value, float)]
    rates = [key for key in numbers if key.rpartition(".")[2] == "lr"]
    key = next(iter([*rates, *numbers]), "KEY")
    return f"'{key}=tag(log, interval(1e-4, 1e-1))'" if key in rates else f"'{key}=interval(0.1, 0.9)' or {key}=0.1,0.2"
