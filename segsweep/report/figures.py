"""Every picture of the report, each drawn once and saved as PNG (files, Markdown) and as SVG whose ink is the page's
own, light or dark.

Panels are small and single, so that the page can set them side by side on a desk and one below the other on a phone.
"""

import re
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FixedFormatter, MaxNLocator

from segsweep.report.content import Figure, joined
from segsweep.report.statistics import Interval, nanmean

INK = "#010203"  # stands for the text colour: black in the PNG, `currentColor` in the page
COLOURS = ["#2f7fd0", "#e0602e", "#1f9d6b", "#b65fc0", "#b8860b", "#d6457a"]  # all legible on white and on near-black
GREY = "#8c8c8c"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # else each drawing lays out all the labels once more to find it
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
} | dict.fromkeys(
    ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"], INK
)

PANEL = (4.2, 2.9)  # inches
WIDE = 5.0


def _as_written(axes: Any) -> None:
    """No text but the numbers of an axis is a formula: a value of a setting may have two `$`."""
    axis = [a for a in (axes.xaxis, axes.yaxis) if not isinstance(a.get_major_formatter(), FixedFormatter)]
    numbers = {id(text) for a in axis for text in a.findobj(Text) if text is not a.label}
    for text in axes.findobj(Text):
        if id(text) not in numbers:
            text.set_parse_math(False)


def _plot(
    name: str, alt: str, caption: str, size: tuple[float, float], draw: Callable[[Any], None], left: float = 0.62
) -> Figure:
    """Draw on one axes of `size` inches, `left` of them for the labels of y, and save both forms."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        canvas = Canvas(figsize=size)
        width, height = size
        axes = canvas.add_axes((left / width, 0.46 / height, 1 - (left + 0.14) / width, 1 - 0.76 / height))
        draw(axes)
        _as_written(axes)
        if max(map(abs, axes.get_ylim())) >= 1e4:  # 1.9M: there is no room for more
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        png, svg = BytesIO(), BytesIO()
        canvas.savefig(png, format="png", dpi=120, facecolor="white")
        canvas.savefig(
            svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return Figure(name, alt, caption, png.getvalue(), _inline(svg.getvalue().decode(), name, alt))


def _inline(svg: str, name: str, alt: str) -> str:
    """The SVG as part of a page: ids of its own, the page's ink, no style that leaks, and words for a screen reader."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def forest(
    name: str,
    alt: str,
    caption: str,
    labels: Sequence[str],
    lines: Sequence[list[Interval | None]],
    *,
    points: Sequence[np.ndarray] = (),
    zero: bool = False,
    xlabel: str,
) -> Figure:
    """Intervals under their label; `lines` has the main one and, thinner, a second; `points` (units,) are ticks."""

    def draw(axes: Any) -> None:
        for i, (label, intervals) in enumerate(zip(labels, lines, strict=True)):
            axes.annotate(label, (0, i - 0.42), xycoords=("axes fraction", "data"), fontsize=9, va="center")
            if points:
                values = points[i][~np.isnan(points[i])]
                axes.plot(values, np.full(len(values), float(i)), "|", color=GREY, markersize=7, alpha=0.8)
            for width, colour, interval in (
                (3, COLOURS[0], intervals[0]),
                (1.2, COLOURS[1], intervals[1] if len(intervals) > 1 else None),
            ):
                if interval:
                    y = i + (0.18 if colour == COLOURS[1] else 0)
                    axes.plot(
                        [interval.low, interval.high], [y, y], color=colour, linewidth=width, solid_capstyle="butt"
                    )
                    axes.plot([interval.mean], [y], "o", color=colour, markersize=5)
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_ylim(len(labels) - 0.4, -0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")

    return _plot(name, alt, caption, (WIDE, 0.9 + 0.44 * len(labels)), draw, left=0.12)


def curves(
    name: str,
    alt: str,
    caption: str,
    title: str,
    series: Sequence[tuple[str, np.ndarray, str, str]],
    legend: str = "lower right",
) -> Figure:
    """Mean of each (label, (runs, epochs), colour, line style) by epoch, with a band from lowest to highest run."""

    def draw(axes: Any) -> None:
        for label, values, colour, style in series:
            epochs = np.arange(1, values.shape[1] + 1)
            front = colour != GREY
            mark = "o" if values.shape[1] == 1 else None
            axes.plot(
                epochs,
                nanmean(values, 0),
                style,
                color=colour,
                label=label or None,
                alpha=1 if front else 0.4,
                marker=mark,
                zorder=2 + front,
            )
            if len(values) > 1 and front:
                low, high = (
                    np.where(np.isnan(values), np.inf, values).min(0),
                    np.where(np.isnan(values), -np.inf, values).max(0),
                )
                axes.fill_between(epochs, low, high, where=np.isfinite(low), color=colour, alpha=0.18, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axes.grid()
        if any(label for label, *_ in series):
            axes.legend(loc=legend, handlelength=1.6)

    return _plot(name, alt, caption, PANEL, draw)


def tradeoff(
    name: str,
    what: str,
    cost: np.ndarray,
    intervals: Sequence[Interval | None],
    value: np.ndarray,
    front: list[int],
    labels: list[str],
    score: str,
    title: str,
    spec: str,
) -> Figure:
    """`score` against a cost (log scale over a decade), numbered as in the tables, with the Pareto front as a line."""
    many = len(value) > 20

    def draw(axes: Any) -> None:
        for x, interval in zip(cost, intervals, strict=True):
            if interval and not many:
                axes.plot([x, x], [interval.low, interval.high], color=GREY, linewidth=1, alpha=0.7)
        axes.plot(cost, value, "o", color=GREY, markersize=4)
        axes.plot(cost[front], value[front], "o", color=COLOURS[0], markersize=6)
        axes.plot(cost[front], value[front], drawstyle="steps-post", color=COLOURS[0], linewidth=1, linestyle=":")
        known = cost[~np.isnan(cost)]
        if known.size and known.min() > 0 and known.max() > 10 * known.min():
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=4)
        if known.size and known.max() > 1e4:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(what)
        axes.set_title(title)
        axes.grid()
        _numbers(axes, cost, value, [*front, *(() if many else range(len(value)))])

    steps = [f"row {i + 1} ({labels[i]}: {cost[i]:,.4g} {what}, {score} {value[i]:{spec}})" for i in front[:8]]
    more = f" and {len(front) - 8} more" if len(front) > 8 else ""
    alt = f"{score} against {what} for {len(value)} rows. On the Pareto front, cheapest first: {joined(steps)}{more}."
    caption = f"{score} against {what}; numbers are rows, the dotted line is the Pareto front."
    return _plot(name, alt, caption, PANEL, draw)


def _numbers(axes: Any, cost: np.ndarray, value: np.ndarray, rows: list[int]) -> None:
    """Write the row's number at its point, the first in `rows` first; one that would lie upon another is left out."""
    placed: list[np.ndarray] = []
    for i in dict.fromkeys(rows):
        if np.isnan(cost[i]) or np.isnan(value[i]):
            continue
        at = axes.transAxes.inverted().transform(axes.transData.transform((cost[i], value[i])))
        if all(abs(at[0] - other[0]) > 0.05 or abs(at[1] - other[1]) > 0.06 for other in placed):
            placed.append(at)
            axes.annotate(str(i + 1), (cost[i], value[i]), xytext=(4, 3), textcoords="offset points", fontsize=8)


def rates(
    name: str,
    alt: str,
    caption: str,
    title: str,
    series: Sequence[tuple[str, list[float], list[float], list[Interval | None]]],
) -> Figure:
    """Scores against the learning rate on a log scale: (label, rates, means, intervals) a line."""

    def draw(axes: Any) -> None:
        for i, (label, x, means, intervals) in enumerate(series):
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(x, means, "o-", color=colour, label=label)
            for place, interval in zip(x, intervals, strict=True):
                if interval:
                    axes.plot([place, place], [interval.low, interval.high], color=colour, linewidth=1, alpha=0.6)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_title(title)
        axes.grid()
        axes.legend(loc="best")

    return _plot(name, alt, caption, (WIDE, 3.4), draw)


def bars(name: str, alt: str, caption: str, labels: Sequence[str], groups: dict[str, list[float]]) -> Figure:
    """Shares in 0..1 as bars under their label, one colour a group."""

    def draw(axes: Any) -> None:
        for g, (group, shares) in enumerate(groups.items()):
            axes.barh(np.arange(len(labels)) + 0.05 + 0.24 * g, shares, height=0.22, color=COLOURS[g], label=group)
        for i, label in enumerate(labels):
            axes.annotate(label, (0, i - 0.26), xycoords=("axes fraction", "data"), fontsize=9, va="center")
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_yticks([])
        axes.set_xlabel("importance (each evaluator adds up to 1)")
        axes.legend(loc="lower right")

    return _plot(name, alt, caption, (WIDE, 1.0 + 0.48 * len(labels)), draw, left=0.12)


def sparkline(values: np.ndarray, label: str, bounds: tuple[float, float]) -> str:
    """A curve the height of a line of text, as inline SVG; `values` (epochs,) from the lower to the upper of `bounds`,
    where one is infinite from the least to the greatest of them."""
    if values.size < 2:
        return ""
    known = values[np.isfinite(values)]
    low, high = bounds if np.isfinite(bounds).all() or not known.size else (known.min(), known.max())
    values = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    x = np.linspace(1, 59, len(values))
    points = " ".join(
        f"{a:.0f},{15 - 14 * b:.1f}" for a, b in zip(x, np.clip(np.nan_to_num(values), 0, 1), strict=True)
    )
    start = f'<svg class="spark" viewBox="0 0 60 16" role="img" aria-label="{escape(label)}">'
    return f'{start}<polyline points="{points}"/></svg>'
