"""What a task says of itself, against what a training of it gave."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segsweep.config import components
from segsweep.config.schema import resolved
from segsweep.core.errors import nearest
from segsweep.core.signature import leaves
from segsweep.sweeps.alike import listed
from segsweep.task import PARTS, Result, Spec


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at. state: ok, wrong or noted; text: what is wrong, and what to do."""

    name: str
    state: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5}  {self.name}{f': {self.text}' if self.text else ''}"


@dataclass
class Trained:
    """What a training came to. ended: by what the engine ended it before its last epoch. state: of each object that
    `run.epochs` was given, in the end; None where it was not called."""

    spec: Spec
    folder: Path
    ended: str = ""
    result: Any = None
    of_function: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] | None = None


class Stop(Exception):
    """With the verdict after which nothing more can be looked at."""


def described(spec: Spec) -> Verdict:
    """What the task says it measures."""
    wrong: list[str] = []
    names = [f"val/{name}" for name, metric in spec.metrics.items() if metric.by_epoch]
    if spec.select not in names:
        wrong.append(f"select={spec.select}: allowed are {', '.join(names) or 'none'}{nearest(spec.select, names)}")
    else:
        try:
            Spec.from_json(spec.to_json())
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise Stop(Verdict("spec", "wrong", "; ".join(wrong)))
    ways = ", ".join(f"{name} ({metric.direction})" for name, metric in spec.metrics.items())
    return Verdict("spec", "ok", ways)


def neutral(cfg: DictConfig, spec: Spec) -> Iterator[Verdict]:
    """Keys of `Spec.neutral` that are none; those of a group's option may be another option's."""
    config = resolved(cfg)
    known = {*config, *(f"task.{name}" for name in components.arguments(cfg)), *(key for key, _ in leaves(config))}
    for key in spec.neutral:
        group = config.get(key.partition(".")[0]) if not key.startswith("task.") else None
        if key not in known and not (isinstance(group, Mapping) and "_target_" in group):
            text = f"Spec.neutral has {key}, which is no key of the configuration{nearest(key, known)}"
            yield Verdict("neutral", "wrong", f"{text}; it keeps no identity as it was")


def measured(whole: Trained) -> Iterator[Verdict]:
    """What was reported, tested and scored, against what the task says it measures."""
    from segsweep.runs.loop import plain

    spec, result = whole.spec, whole.result
    yield Verdict("two epochs" if spec.epochs else "training", "ok", "trained and tested")
    parts = PARTS if whole.state is None or whole.of_function else ("test",)
    wrong = []
    for key, value in result.metrics.items():
        name = str(key).partition("/")[2] or str(key)
        if str(key).partition("/")[0] not in parts:
            wrong.append(f"Result.metrics has {key}; its keys are {', '.join(f'{part}/NAME' for part in parts)}")
        elif spec.metric(key) is None:
            wrong.append(
                f'{key} is not in Spec.metrics, so that nobody knows which way is better: add "{name}": '
                f'Metric(title=..., direction="max" or "min"){nearest(name, spec.metrics)}'
            )
        elif plain(value) is None:
            wrong.append(f"{key} is {type(value).__name__}; a number is needed")
    if wrong:
        yield Verdict("metrics", "wrong", "; ".join(wrong))
    else:
        seen = {key.partition("/")[2] for row in whole.history for key in row} | set(spec.scores)
        seen |= {key.partition("/")[2] for key in result.metrics}
        never = [name for name in spec.metrics if name not in seen]
        text = f"{listed(never)} of Spec.metrics never had a value" if never else ""
        yield Verdict("metrics", "noted" if never else "ok", text)
    yield _scored(spec, result)


def _scored(spec: Spec, result: Result) -> Verdict:
    """Every unit has a score of every metric that is said to have one for each."""
    from segsweep.runs.loop import plain

    units, name = result.units, spec.unit
    if not spec.scores:
        return Verdict("units", "noted", "no metric has by_unit=True, so runs are compared over seeds alone")
    if not units:
        return Verdict(
            "units", "wrong", f"no {name} has a score, though {listed(spec.scores)} should have one for each "
            f"(by_unit): give Result(metrics, units={{{name}: {{metric: value}}}}), or leave by_unit out"
        )  # fmt: skip
    for metric, about in spec.scores.items():
        lacking = [unit for unit, values in units.items() if metric not in values]
        if lacking:
            return Verdict(
                "units", "wrong", f"{len(lacking)} of {len(units)} have no {metric}: {listed(lacking)}; give each "
                f"{name} one, NaN where it is undefined"
            )  # fmt: skip
        scores = {unit: plain(values[metric], truths=True) for unit, values in units.items()}
        if odd := [unit for unit, score in scores.items() if score is None]:
            kind = type(units[odd[0]][metric]).__name__
            return Verdict("units", "wrong", f"{metric} of {listed(odd)} is {kind}; a number is needed")
        low, high = about.bounds
        if out := [unit for unit, score in scores.items() if not low <= score <= high and score == score]:
            told = f"{metric} of {listed(out)} is {scores[out[0]]:g}"
            return Verdict("units", "wrong", f"{told}, outside of its bounds, {low:g} to {high:g}")
    first = set(next(iter(units.values())))
    if uneven := [unit for unit, values in units.items() if set(values) != first]:
        return Verdict("units", "wrong", f"{listed(uneven)}: other columns than the first {name}; give all the same")
    undefined = [unit for unit, values in units.items() if any(values[m] != values[m] for m in spec.scores)]
    if undefined:
        return Verdict("units", "noted", f"{len(undefined)} of {len(units)} have a score that is undefined (NaN)")
    return Verdict("units", "ok", f"{len(units)}, each with {listed(spec.scores)}")
