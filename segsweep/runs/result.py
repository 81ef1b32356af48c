"""What a task's `train` gives, held against what its Spec says that it measures."""

import math
from collections.abc import Mapping
from typing import Any

from segsweep.core.errors import NotFiniteError, TaskError
from segsweep.runs.loop import plain
from segsweep.task import Result, Spec


def checked(result: Result, spec: Spec, made: str) -> Result:
    """With plain numbers. Raise TaskError where a test's numbers are not what the task said that it measures, and
    NotFiniteError where one is none, but for the NaN of a mean over units of which none has a value."""
    for name, found, example in (("metrics", result.metrics, "{'test/loss': 0.1}"), ("units", result.units, "{}")):
        if not isinstance(found, Mapping):
            raise TaskError(
                f"{made}: Result has {type(found).__name__} for its {name}; a mapping is needed, such as {example}"
            )
    metrics: dict[str, Any] = {}
    for key, value in result.metrics.items():
        if spec.metric(key) is None:
            raise TaskError(
                f"{made}: Result has {key}, which is none of its metrics: test/{', test/'.join(spec.metrics)}"
            )
        metrics[key] = plain(value)
        if metrics[key] is None:
            raise TaskError(f"{made}: Result has {type(value).__name__} for {key}; a number is needed")
    if spec.scores and not result.units:
        raise TaskError(f"{made}: Result has no {spec.unit}; a value of {', '.join(spec.scores)} is needed for each")
    units: dict[str, dict[str, Any]] = {}
    for unit, values in result.units.items():
        if not isinstance(values, Mapping):
            example = ", ".join(f"{name!r}: 0.5" for name in spec.scores or ("score",))
            raise TaskError(
                f"{made}: Result has {type(values).__name__} for {spec.unit} {unit}; a mapping is needed, {{{example}}}"
            )
        if lacks := [name for name in spec.scores if name not in values]:
            raise TaskError(f"{made}: Result has no {lacks[0]} for {spec.unit} {unit}; NaN where it is undefined")
        units[unit] = {name: _column(name, value, spec, f"{made}: Result", unit) for name, value in values.items()}
    for key, value in metrics.items():
        name = key.partition("/")[2]
        undefined = math.isnan(value) and name in spec.scores and _undefined(units, name)
        if not math.isfinite(value) and not undefined:
            raise NotFiniteError(f"{made}: Result has {value} for {key}; a finite number is needed")
    return Result(metrics, units)


def _column(name: str, value: Any, spec: Spec, said: str, unit: str) -> Any:
    """A score as a plain number; a further column may be text."""
    if value is None:
        return math.nan
    if isinstance(value, str) and name not in (*spec.scores, spec.unit):
        return value
    if (number := plain(value, truths=True)) is None or name == spec.unit:
        wanted = "its name has that column" if name == spec.unit else "a number is needed, NaN where it is undefined"
        raise TaskError(f"{said} has {type(value).__name__} for {name} of {spec.unit} {unit}; {wanted}")
    return number


def _undefined(units: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Whether no unit has a value of a metric."""
    return all(math.isnan(values[name]) for values in units.values())
