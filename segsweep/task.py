"""What the engine asks of a task: data with an identity, a training loop of its own, metrics that know which way is up.

A task is any class whose constructor's keyword arguments are its settings. The engine gives it identity, reuse, exact
resume, epochs shared by runs of different length, pruning, search, a record, MLflow and the report; nothing here knows
what is trained.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

PARTS = ("train", "val", "test")
FORMAT, WORD = re.compile(r",?(\.\d{1,2})?[efg%]"), re.compile(r"[^\W\d_][\w -]*")


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a setting may be, beside its annotation: `lr: Annotated[float, Range(above=0)]`.

    Args:
        least: the least that is allowed.
        above: what it has to be more than.
        most: the most that is allowed.
        choices: the texts that are allowed; empty: any.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: which direction is better, how it is shown, and what values it can have.

    Args:
        title: column heading.
        direction: "max" where more is better, "min" where less is.
        format: Python's format specification of a value: `.3f`, `,.0f`, `.2e`, `.3g`, `.1%`.
        mean_format: that of a mean, beside its interval and in sentences, where it is another.
        column: heading of a narrow column, where the title is too long; "" where it is in no table of the report.
        meaning: one line for a footnote.
        bounds: the least and the greatest value that one unit can have; infinite where there is none.
        by_unit: the test has a value for every unit, so that runs are compared by it with intervals and tests.
        by_epoch: it is measured after every epoch, so that a search and a pruner can go by it.
        scale: keys of the configuration on which the scale of its values depends, such as the loss's own: runs that
            differ in one of them are not compared by it.
        measured: digest of the code and settings that measure it, where these are a user's own; "" where they are the
            task's. Epochs that were trained before have no value of it where it was another's.

    Raises ValueError where it is none: a direction that is a little misspelt would be searched the wrong way.
    """

    title: str
    direction: Literal["max", "min"]
    format: str = ".4f"
    mean_format: str = ""
    column: str | None = None
    meaning: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    by_unit: bool = False
    by_epoch: bool = True
    scale: tuple[str, ...] = ()
    measured: str = ""

    def __post_init__(self) -> None:
        if reason := _defect(self):
            raise ValueError(f"Metric(title={self.title!r}): {reason}")

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is, so that a difference times this is positive for the better."""
        return 1 if self.direction == "max" else -1


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is fixed for a task. It goes into run.json, so that a report needs none of the task's code.

    Args:
        metrics: by name; the record's values have keys PART/NAME such as val/loss. Runs are compared by the first that
            has a value for every unit (`primary`).
        select: what is best, of an epoch, a search and a pruner unless they are told otherwise: val/NAME.
        unit: what is random in a test and has scores of its own: a person, an image, a user.
        sample: what the sizes of the parts count.
        repeats: keys beside `seed` in which the repeats of one configuration differ.
        ignored: keys that decide no number: where data lie, how many processes read them.
        code: modules that decide numbers, beside what the task's own module imports.
        inputs: arguments of the constructor that decide what `data()` gives; empty: any of them may. A difference of
            data or split is put down to one that is named here, and to nothing else.
        alike: keys in which runs have to agree for their scores to be compared while they train, beside their data.
        validation: settings that give a validation part, as messages name them: `split.val=0.15`.
        epochs: whether it trains in epochs; False: `train` runs through once without `run.epochs`, and its result has
            the metrics of all parts. `epochs` is then no part of a run's identity, and nothing can be pruned.
        pace: factors that decide how long an epoch takes, with * for any ending; empty: all but the repeats may.
        sections: modules with what the report says of this task alone; see `segsweep.report.own`.
        neutral: settings that came after the first runs were made, with the value at which they decide nothing: then
            they are no part of an identity, which stays what it was without them.
        describing: further arguments that decide its metrics, beside `inputs`, for `spec_for`.
        endings: settings that decide when a run ends, or what is tested then, and nothing of its epochs, with the
            values of which that is so (none given: of all). They are part of its signature; its epochs are shared with
            runs that have others.
    """

    metrics: Mapping[str, Metric]
    select: str
    unit: str = "unit"
    sample: str = "sample"
    repeats: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    validation: str = ""
    epochs: bool = True
    pace: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    neutral: Mapping[str, Any] = field(default_factory=dict)
    describing: tuple[str, ...] = ()
    endings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Metric]:
        """The metrics with a value for every unit of a test, in order."""
        return {name: metric for name, metric in self.metrics.items() if metric.by_unit}

    @property
    def primary(self) -> str:
        """What runs are compared by, the first of `scores` or else the metric of `select`."""
        return next(iter(self.scores), self.select.partition("/")[2])

    @property
    def table(self) -> str:
        """File of a run with a line for every unit of its test; its first column is named as the unit is."""
        return f"{self.unit}s.csv"

    def metric(self, key: str) -> Metric | None:
        """Of a value's key, such as val/loss; None where it is none of a metric."""
        part, _, name = key.partition("/")
        return self.metrics.get(name) if part in PARTS else None

    def told(self, part: str, name: str, values: Mapping[str, Any]) -> str:
        """A metric of a part in a line: `val accuracy 0.812`; "" where it has no value."""
        metric, value = self.metrics.get(name), values.get(f"{part}/{name}")
        if metric is None or not isinstance(value, int | float):
            return ""
        return f"{part} {metric.title} {value:{metric.mean_format or metric.format}}"

    def to_json(self) -> dict[str, Any]:
        """For run.json; infinite bounds are null there."""
        kept = ("select", "unit", "sample", "repeats", "ignored", "inputs", "validation", "epochs", "pace", "sections")
        about = {name: getattr(self, name) for name in kept} | {"neutral": dict(self.neutral)}
        about["endings"] = {key: list(values) for key, values in self.endings.items()}
        plain = Metric.__dataclass_fields__
        metrics = {name: {key: getattr(metric, key) for key in plain} for name, metric in self.metrics.items()}
        for entry in metrics.values():
            entry["bounds"] = [bound if math.isfinite(bound) else None for bound in entry["bounds"]]
        return {"metrics": metrics} | about

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Of `to_json`; keys that this version does not know are left out. Raises ValueError where it is none."""
        try:
            metrics = {}
            for name, entry in record["metrics"].items():
                known = {key: value for key, value in entry.items() if key in Metric.__dataclass_fields__}
                low, high = known.get("bounds") or (None, None)
                known["bounds"] = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
                known["scale"] = tuple(known.get("scale") or ())
                metrics[name] = Metric(**known)
            known = {key: record[key] for key in cls.__dataclass_fields__ if key in record and key != "metrics"}
            known.setdefault("inputs", ("data", "split"))  # groups that decided it before tasks said so
            known["endings"] = {key: tuple(values) for key, values in (known.get("endings") or {}).items()}
            lists = {key: tuple(value) for key, value in known.items() if isinstance(value, list | tuple)}
            spec = cls(metrics=metrics, **(known | lists))
            for name, kind in _KINDS.items():
                value = getattr(spec, name)
                several = value if kind in (tuple, Mapping) and isinstance(value, kind) else ()
                if not isinstance(value, kind) or not all(isinstance(item, str) for item in several):
                    raise ValueError(f"{name}={value!r}: not {_SAID[kind]}")
            for key in ("unit", "sample"):  # of which a file's name is made
                if not WORD.fullmatch(getattr(spec, key)):
                    raise ValueError(f"{key}={getattr(spec, key)!r}: not a word")
            if spec.primary not in metrics:
                raise ValueError(f"select={spec.select}: no such metric; there are {', '.join(metrics) or 'none'}")
            return spec
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not the description of a task: {type(error).__name__}: {error}") from error


_KINDS: dict[str, Any] = dict.fromkeys(("repeats", "ignored", "inputs", "pace", "sections"), tuple)
_KINDS |= {"select": str, "unit": str, "sample": str, "validation": str, "epochs": bool, "neutral": Mapping}
_SAID = {tuple: "a list of text", str: "text", bool: "true or false", Mapping: "a mapping"}
"""Of `to_json`'s keys, what a record has to have there."""


def _defect(metric: Metric) -> str | None:
    """What makes it none."""
    if metric.direction not in ("max", "min"):
        meant = {"maxi": "max", "mini": "min"}.get(str(metric.direction).lower()[:4])
        return f"direction={metric.direction!r}: allowed are max, min{f'; did you mean {meant}?' if meant else ''}"
    for key in ("format", "mean_format"):
        value = getattr(metric, key)
        if not isinstance(value, str) or (value and not FORMAT.fullmatch(value)):
            return f"{key}={value!r}: allowed are such as .3f, ,.0f, .2e, .3g, .1%"
    bounds = metric.bounds
    pair = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)
    if not pair or not bounds[0] < bounds[1]:
        return f"bounds={bounds!r}: allowed are two numbers, the first below the second"
    text = (metric.title, metric.meaning, "" if metric.column is None else metric.column, *metric.scale)
    plain = all(isinstance(part, str) and part.isprintable() for part in text)  # it is shown in terminals
    return None if plain and metric.title else "text is expected, and a title"


@dataclass(frozen=True, kw_only=True)
class Data:
    """The identity of what is trained on.

    Args:
        digest: of the contents, whatever they are called and wherever they lie; None: nobody watches them, and a row
            that was reused says so.
        split: digest of who is in which part.
        parts: number of samples in train, val (0 where there is none: each epoch is then scored on test) and test;
            empty where nobody counts them, and then epochs are scored on val.
        leaks: whether a unit is in two parts.
        settings: of the configuration, as resolved here: `precision: bf16` for auto.
        choices: the option of a group that its option `auto` stands for here, as tables and the record name it.
        facts: for the record.
    """

    digest: str | None
    split: str = ""
    parts: Mapping[str, int] = field(default_factory=dict)
    leaks: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """What every epoch is scored on, the validation part where there is one."""
        return "val" if self.parts.get("val", not self.parts) else "test"


class Result(NamedTuple):
    """How a trained network did in its test.

    Args:
        metrics: test/NAME -> value; of a task without epochs train/NAME and val/NAME too.
        units: unit -> NAME -> value, NaN where it is undefined; further columns are kept.
    """

    metrics: Mapping[str, float]
    units: Mapping[str, Mapping[str, Any]] = {}


class Stateful(Protocol):
    """As torch.distributed.checkpoint.stateful.Stateful: networks, optimizers, schedules, whatever goes on changing."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Epoch(Protocol):
    """One pass over the training data.

    Attributes:
        number: from 1.
        seed: of the run's seed and the number alone; `random`, numpy and torch start each epoch with it, so that an
            epoch that is resumed is the one that would have been.
        last: whether no further one comes, of a run that is over early (`Task.ends`) known once it is reported; it may
            decide what is evaluated and told as facts, and nothing of the training, as a longer run takes these epochs
            over (`python -m segsweep.check` finds what does).
    """

    number: int
    last: bool
    seed: int

    def step(self, done: float) -> None:
        """For the display: the share of the epoch that is done, 0 to 1."""

    def report(self, metrics: Mapping[str, float], **facts: float) -> None:
        """Once an epoch: metrics train/NAME, and val/NAME or test/NAME; facts such as lr=. Seconds are the engine's."""


class Run(Protocol):
    """What the engine hands to a task's `train`.

    Attributes:
        spec: the task's.
        seed: of the run.
        device: as torch names it.
        folder: of the record; what is written there is kept and mirrored.
        retries: how often this job ran out of memory before.
        history: a row for each epoch until now, those of an earlier process included.
    """

    spec: Spec
    seed: int
    device: str
    folder: Path
    retries: int
    history: list[dict[str, Any]]

    def describe(self, **facts: Any) -> None:
        """Facts for run.json that are known only now: parameters=, gflops=."""

    def epochs(self, **state: Stateful) -> Iterator[Epoch]:
        """The epochs that are left to train, the state of those before loaded into `state`; weights are made of
        `model`."""

    def best(self) -> dict[str, Any]:
        """After the loop: the state_dict of `model` after the epoch that was best by what the task chooses by."""


class Task(Protocol):
    """Its constructor's keyword arguments are its settings, from `task.*` or the top-level keys of their names.

    Where its metrics depend on its settings, a class method `spec_for(given) -> Spec` says which they are for those of
    `spec.inputs` and `spec.describing` (of all where the former is empty), as far as they are known; `spec` of the
    object made of them is the same.

    Beside these it may have `size() -> dict`, parameters and gflops of a sample, for a plan, `smaller(retries) -> str`,
    what helps where memory was short, and a class method `problems(given) -> list[str]`: one sentence for each mistake
    that annotations cannot tell, in its settings and `epochs`, of which those are given that are right so far.

    `ends(history) -> str`, asked after each epoch but the last: why the run is over with the epochs of `history`, "" if
    it goes on. By these rows alone, as it is asked again of epochs that were trained before. The run is then `stopped
    early`: tested as any other, and finished. The settings that decide it are among the Spec's `endings`."""

    spec: ClassVar[Spec]

    def data(self) -> Data:
        """Trains nothing; raises DataError."""

    def train(self, run: Run) -> Result:
        """Build, loop over `run.epochs(...)` (or fit at one go, where the Spec has epochs=False), test."""
