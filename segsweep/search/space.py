"""The space of a search: what of the command line is searched, what is fixed, and what is searched only sometimes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_optuna_distribution_from_override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from segsweep.config.conditions import condition


@dataclass
class Space:
    """What is searched and what is fixed, by key as on the command line. when: (condition, key, values), in order."""

    searched: dict[str, BaseDistribution]
    fixed: dict[str, str]
    deleted: list[str]
    when: list[tuple[str, str, BaseDistribution]]

    @property
    def size(self) -> float:
        """Number of points; infinite where there is an interval or a condition."""
        try:
            return math.inf if self.when else math.prod(map(len, self.choices().values()))
        except ValueError:
            return math.inf

    def choices(self) -> dict[str, Sequence[Any]]:
        """All values of each key; ValueError where one has an interval."""
        return {key: OptunaSweeperImpl._to_grid_sampler_choices(found) for key, found in self.searched.items()}

    def texts(self) -> dict[str, str]:
        return {k: str(d) for k, d in self.searched.items()} | {f"{k} when {c}": str(d) for c, k, d in self.when}


def read_space(params: Any, when: Sequence[str], arguments: Sequence[str], at: str = "search.when") -> Space:
    """params: of hydra.sweeper, which the command line's `arguments` replace key by key. at: the key of `when`. Raises
    HydraException."""
    parser = OverridesParser.create()
    lines = [*(f"{key}={value}" for key, value in (params or {}).items()), *arguments]
    space = Space({}, {}, [], [])
    for override in parser.parse_overrides(lines):
        if override.is_delete():
            space.deleted.append(str(override.input_line))
            continue
        key = override.get_key_element()
        found = _distribution(override)
        space.searched.pop(key, None)
        space.fixed.pop(key, None)
        if isinstance(found, BaseDistribution):
            space.searched[key] = found
        else:
            space.fixed[key] = found
    given = {key.lstrip("+") for key in space.fixed}
    for text in when:
        where, colon, line = text.partition(":")
        try:
            override = parser.parse_override(line.strip())
            found = _distribution(override)
        except HydraException:
            colon = ""
        if not colon or not isinstance(found, BaseDistribution):
            raise CompactHydraException(
                f"{at}: {text!r}: write CONDITION: KEY=VALUES, as in 'optim=sgd: optim.momentum=interval(0.0, 0.99)'"
            )
        condition(where, at)
        if override.key_or_group not in given:
            space.when.append((where.strip(), override.get_key_element(), found))
    if not space.searched and not space.when:
        raise CompactHydraException(
            "There is nothing to search: give values or an interval, as in KEY=1,2 'KEY=tag(log, interval(1e-4, 1e-1))'"
        )
    return space


def _distribution(override: Any) -> BaseDistribution | str:
    """Of one override; a choice of one value is that value."""
    try:
        found = create_optuna_distribution_from_override(override)
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise CompactHydraException(f"{override.input_line}: {error}") from None
    single = isinstance(found, CategoricalDistribution) and len(found.choices) == 1
    return str(found.choices[0]) if single else found


class Foreign(Exception):
    """A trial of the study is not of this search: which of its keys and values."""


def watched(trial: Trial, drawn: dict[str, Any], there: dict[str, Any]) -> None:
    """From here on what is suggested to `trial` stands in `drawn`. there: what it had before, being queued by somebody:
    raises Foreign for a value that the search could not have drawn."""
    suggest = trial._suggest

    def noted(key: str, found: BaseDistribution) -> Any:
        if key in there and not contains(found, there[key]):
            raise Foreign(f"{key}={there[key]}")
        try:
            drawn[key] = suggest(key, found)
        except ValueError:
            if key in there:  # as a value of another kind of distribution
                raise Foreign(f"{key}={there[key]}") from None
            raise
        return drawn[key]

    trial._suggest = noted  # type: ignore[assignment, method-assign]


def contains(found: BaseDistribution, value: Any) -> bool:
    """Whether a value, read from a study, is one of a distribution's, in its type too."""
    if isinstance(found, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in found.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert isinstance(found, FloatDistribution | IntDistribution)
    if isinstance(found, IntDistribution) and value != int(value):
        return False
    rounding = 1e-9  # of what a sampler made of the ends of an interval
    return found.low - rounding * abs(found.low) <= value <= found.high + rounding * abs(found.high)
