"""All that the sections draw on, worked out at most once, and the few phrases that several of them share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from segsweep.report.comparison import Comparison, Configuration, digest, show, varied
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
from segsweep.report.records import Record
from segsweep.report.statistics import LEVEL, Interval


@dataclass
class Findings:
    """The comparison and every analysis of it; `rows` are the configurations, best Dice first."""

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

    @cached_property
    def dice(self) -> list[Interval | None]:
        return [self.comparison.interval(i) for i in range(len(self.rows))]

    @cached_property
    def means(self) -> np.ndarray:
        """(rows,) mean Dice of the patients."""
        return np.array([self.comparison.mean(i) for i in range(len(self.rows))])

    @cached_property
    def importance(self) -> Importance | None:
        return importance(self.record.runs)

    @cached_property
    def rates(self) -> list[RateSeries]:
        return learning_rates(self.comparison)

    @cached_property
    def overfitting(self) -> list[Overfitting | None]:
        return [overfitting(row) for row in self.rows]

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
    def sizes(self) -> list[int]:
        """Image sizes of the rows, in pixels: each row is scored at its own, against truth of that size."""
        return sorted({row.factors["data.image_size"] for row in self.rows if "data.image_size" in row.factors})

    @property
    def devices(self) -> list[str]:
        return list(
            dict.fromkeys(str(run.info.get("device") or "not recorded") for row in self.rows for run in row.runs)
        )

    def title(self, row: int) -> str:
        """How a row is called everywhere: its number, its label, and a warning where its split leaks."""
        return f"{row + 1}. {self.rows[row].label}{' (leaks)' if self.rows[row].leaks else ''}"

    def data(self, row: int) -> str:
        run = self.rows[row].runs[0]
        return f"{(run.info.get('data') or {}).get('name', 'unknown data')} {digest(run, 'data')[:8]}".strip()

    def setting(self, factor: str, level: str) -> str:
        """A level of a factor in a sentence: `adam`, but `optim.lr=0.001`."""
        return level if factor in ("model", "loss", "optim", "scheduler") else f"{factor}={level}"


def ranged(interval: Interval | None, mean: float, spec: str = ".3f") -> str:
    """0.812 [0.763, 0.850], or the mean alone where there is no interval."""
    if mean != mean:
        return "–"
    return f"{mean:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]" if interval else f"{mean:{spec}}"


def signed(c: Contrast) -> str:
    """A contrast's difference with its interval."""
    return (
        f"{c.mean:+.3f} [{c.interval.low:+.3f}, {c.interval.high:+.3f}]"
        if c.interval
        else f"{c.mean:+.3f}, no interval"
    )


def shared(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={show(value)}`" for name, value in settings.items())


def p_value(p: float) -> str:
    """Three decimals, and one more where three would round across the level."""
    near = f"{p:.3f}" == f"{LEVEL:.3f}"
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.4f}" if near else f"{p:.3f}"
