"""All that the sections draw on, worked out at most once, and the few phrases that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from segsweep.report import own
from segsweep.report.comparison import Comparison, Configuration, digest, show, varied
from segsweep.report.content import Section, joined, many, plus
from segsweep.report.contrasts import Analysis, Contrast, analyse
from segsweep.report.learning import (
    Convergence,
    Importance,
    Overfitting,
    RateSeries,
    convergence,
    importance,
    learning_rates,
    overfitting,
)
from segsweep.report.record import Record
from segsweep.report.statistics import LEVEL, Interval
from segsweep.task import Metric, Spec


@dataclass
class Findings:
    """The comparison and every analysis of it; `rows` are the configurations, the best first."""

    comparison: Comparison

    @property
    def record(self) -> Record:
        return self.comparison.record

    @property
    def rows(self) -> list[Configuration]:
        return self.comparison.rows

    @cached_property
    def analysis(self) -> Analysis:
        return analyse(self.comparison)

    @property
    def of_leaks(self) -> list[Contrast]:
        """The contrasts of a split that leaks and one that does not."""
        rows, found = self.rows, self.analysis.contrasts
        return [c for c in found if c.factor == "split" and all(rows[p.a].leaks != rows[p.b].leaks for p in c.pairs)]

    @property
    def spec(self) -> Spec:
        return self.comparison.spec

    @property
    def metric(self) -> Metric:
        """What the rows are compared by."""
        return self.comparison.metric

    @property
    def score(self) -> str:
        """Its name in sentences."""
        return self.metric.title if self.comparison.part == "test" else f"validation {self.metric.title}"

    @property
    def form(self) -> str:
        """How its means and differences are written."""
        return self.metric.mean_format or self.metric.format

    @property
    def better(self) -> str:
        return "higher" if self.metric.sign > 0 else "lower"

    @property
    def worse(self) -> str:
        return "lower" if self.metric.sign > 0 else "higher"

    @property
    def best(self) -> str:
        return "highest" if self.metric.sign > 0 else "lowest"

    @property
    def unit(self) -> str:
        """What the rows are compared on: where no unit has a score, the seeds."""
        return "seed" if self.comparison.alone else self.spec.unit

    @property
    def open(self) -> str:
        """What a comparison over seeds alone leaves open."""
        return (
            f"Compared over seeds alone: no {self.spec.unit} was scored; what another test sample would give is open."
        )

    @property
    def units(self) -> str:
        return many(self.unit)

    @property
    def samples(self) -> str:
        return many(self.spec.sample)

    @property
    def others(self) -> dict[str, Metric]:
        """Metrics without a value for each unit that tables and curves show."""
        return {k: m for k, m in self.spec.metrics.items() if m.column != "" and not m.by_unit}

    @cached_property
    def modules(self) -> tuple[list[ModuleType], list[str]]:
        """With what is the task's own; and why others are left out."""
        return own.modules(self.spec)

    def word(self, name: str, usual: str) -> str:
        """How a metric, a cost or a fact is called in this task's sentences, if not by its usual name."""
        said = [module.WORDS[name] for module in self.modules[0] if name in getattr(module, "WORDS", {})]
        return str(said[-1](self) if callable(said[-1]) else said[-1]) if said else usual

    def measured_in(self, name: str) -> str:
        """What stands behind a metric in a heading: what its values are in, where this task says so."""
        return "".join(f" ({unit})" for unit in own.ask(self.modules[0], "unit", [], self, name) if unit)

    def footnote(self, name: str) -> str:
        notes = [module.NOTES[name] for module in self.modules[0] if name in getattr(module, "NOTES", {})]
        return str(notes[-1]) if notes else self.spec.metrics[name].meaning

    @cached_property
    def own(self) -> "Own":
        modules, problems = self.modules[0], list(self.modules[1])
        sentences: dict[str, list[str]] = {}
        for said in own.ask(modules, "sentences", problems, self):
            for anchor, more in said.items():
                sentences.setdefault(anchor, []).extend(more)
        columns = [column for found in own.ask(modules, "columns", problems, self) for column in found]
        sections = [section for found in own.ask(modules, "sections", problems, self) for section in found]
        return Own(sentences, columns, sections, problems)

    @cached_property
    def intervals(self) -> list[Interval | None]:
        """Of the mean score, by row."""
        return [self.comparison.interval(i) for i in range(len(self.rows))]

    @cached_property
    def means(self) -> np.ndarray:
        """(rows,) mean score of the units."""
        return np.array([self.comparison.mean(i) for i in range(len(self.rows))])

    @cached_property
    def importance(self) -> Importance | None:
        return importance(self.comparison)

    @cached_property
    def rates(self) -> list[RateSeries]:
        return learning_rates(self.comparison)

    @cached_property
    def followed(self) -> str:
        """The metric whose values in training and evaluation are held against each other: the primary one, or where no
        run measured that in training, the loss."""
        primary = self.spec.primary
        return primary if "loss" not in self.spec.metrics or any(overfitting(r, primary) for r in self.rows) else "loss"

    @cached_property
    def overfitting(self) -> list[Overfitting | None]:
        return [overfitting(row, self.followed) for row in self.rows]

    @cached_property
    def convergence(self) -> list[Convergence | None]:
        return [convergence(row) for row in self.rows]

    @cached_property
    def varied(self) -> tuple[list[str], dict[str, Any]]:
        return varied(self.rows)

    @property
    def arenas(self) -> int:
        return len({row.arena for row in self.rows})

    @property
    def devices(self) -> list[str]:
        return list(
            dict.fromkeys(str(run.info.get("device") or "not recorded") for row in self.rows for run in row.runs)
        )

    def title(self, row: int) -> str:
        """How a row is called everywhere: its number, its label, and a warning where its split leaks or a run of it was
        accepted for edited code."""
        marks = [name for name, has in (("leaks", "leaks"), ("accepted", "lent")) if getattr(self.rows[row], has)]
        return f"{row + 1}. {self.rows[row].label}{f' ({joined(marks)})' if marks else ''}"

    def data(self, row: int) -> str:
        run = self.rows[row].runs[0]
        return f"{(run.info.get('data') or {}).get('name') or 'unknown data'} {digest(run, 'data')[:8]}".strip()

    def setting(self, factor: str, level: str) -> str:
        """A level of a factor in a sentence: `adam`, but `optim.lr=0.001`."""
        return level if factor in ("model", "loss", "optim", "scheduler") else f"{factor}={level}"

    def scored(self, row: int) -> str:
        """Its mean score with the interval."""
        return ranged(self.intervals[row], float(self.means[row]), self.form)

    def signed(self, c: Contrast) -> str:
        """A contrast's difference with its interval."""
        return ranged(c.interval, c.mean, self.form, plus) if c.interval else f"{plus(c.mean, self.form)}, no interval"

    def span(self, low: float, high: float) -> str:
        return f"[{plus(low, self.form)}, {plus(high, self.form)}]"


@dataclass(frozen=True)
class Own:
    """What a task's own modules say; `problems`: what was left out of it."""

    sentences: dict[str, list[str]]
    columns: list[own.Column]
    sections: list[Section]
    problems: list[str]


def ranged(interval: Interval | None, mean: float, spec: str, text: Callable[[float, str], str] = format) -> str:
    """0.812 [0.763, 0.850], or the mean alone where there is no interval. `text`: of a number by its format."""
    if mean != mean:
        return "–"
    span = f" [{text(interval.low, spec)}, {text(interval.high, spec)}]" if interval else ""
    return text(mean, spec) + span


def shared(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={show(value)}`" for name, value in settings.items())


def p_value(p: float) -> str:
    """Three decimals, and one more where three would round across the level."""
    near = f"{p:.3f}" == f"{LEVEL:.3f}"
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.4f}" if near else f"{p:.3f}"
