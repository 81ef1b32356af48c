"""The figures of a search: its history, what the pruner saw, slices, parallel coordinates, the Pareto front."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from segsweep.report import figures
from segsweep.report.content import Block, Cell, Figure, Section, Table, joined, plural
from segsweep.report.search.trials import Found, point, score, short

MOST_SLICES, MOST_AXES = 24, 10
COLOURS = {TrialState.COMPLETE: figures.COLOURS[0], TrialState.PRUNED: figures.COLOURS[1]}


def history(found: Found) -> Section | None:
    """Scores in order of the trials, with the best so far."""
    if not found.within:
        return None
    plots = []
    for i, name in enumerate(found.objectives):
        scored = [t for t in found.trials if not math.isnan(found.score(t, i))]
        best = [found.score(t, i) for t in found.within]
        running = np.maximum.accumulate(best) if found.sign(i) > 0 else np.minimum.accumulate(best)

        def draw(axes: Any, i: int = i, name: str = name, scored: Any = scored, running: Any = running) -> None:
            for state, colour in COLOURS.items():
                some = [t for t in scored if t.state is state]
                if some:
                    x, y = [t.number for t in some], [found.score(t, i) for t in some]
                    axes.plot(
                        x,
                        y,
                        "o" if state is TrialState.COMPLETE else "x",
                        color=colour,
                        markersize=4,
                        label=state.name.lower(),
                    )
            axes.step([t.number for t in found.within], running, where="post", color=figures.GREY, label="best so far")
            axes.set_xlabel("trial")
            axes.set_title(name)
            _large(axes.yaxis, running)
            axes.legend(loc="best")

        text = f"{name} of each trial. Best so far: {running[0]:.4g} at first, {running[-1]:.4g} in the end, reached"
        text += f" at trial {found.within[int(np.argmax(running == running[-1]))].number}."
        if over := len(found.complete) - len(found.within):
            text += f" {plural(over, 'trial')} over a limit {'is' if over == 1 else 'are'} never the best."
        plots.append(figures._plot(f"history-{i}", text, text, (6.0, 3.2), draw))
    return Section("history", "History", [plots])


def curves(found: Found) -> Section | None:
    """Every trial's values by epoch, as the pruner saw them."""
    seen = [t for t in found.trials if t.intermediate_values]
    if len(seen) < 2:
        return None

    def draw(axes: Any) -> None:
        for state, colour in [*COLOURS.items(), (None, figures.GREY)]:
            for t in [t for t in seen if (t.state if t.state in COLOURS else None) is state]:
                epochs = sorted(t.intermediate_values)
                mark = "o" if len(epochs) == 1 else None
                axes.plot(
                    epochs,
                    [t.intermediate_values[e] for e in epochs],
                    color=colour,
                    alpha=0.6,
                    linewidth=1,
                    marker=mark,
                    markersize=3,
                )
        axes.set_xlabel("epoch")
        axes.set_title(found.objectives[0])

    pruned = sum(t.state is TrialState.PRUNED for t in seen)
    text = f"{found.objectives[0]} by epoch of {plural(len(seen), 'trial')}: blue complete, orange pruned ({pruned})."
    return Section("curves", "What the pruner saw", [[figures._plot("curves", text, text, (6.0, 3.2), draw)]])


def slices(found: Found) -> Section | None:
    """The objectives against each hyperparameter by itself."""
    if not found.complete:
        return None
    plots = []
    for i, name in enumerate(found.objectives):
        for param in found.params[:MOST_SLICES]:
            trials = [t for t in found.trials if param in t.params and not math.isnan(found.score(t, i))]
            if len({str(t.params[param]) for t in trials}) > 1:
                plots.append(_slice(found, i, name, param, trials))
    more = len(found.params) - MOST_SLICES
    rest: list[Block] = [f"{plural(more, 'more hyperparameter')} not drawn."] if more > 0 else []
    return Section("slices", "Slices", [plots, *rest]) if plots else None


def _slice(found: Found, objective: int, name: str, param: str, trials: list[FrozenTrial]) -> Figure:
    place, ticks, log = _axis(param, trials)

    def draw(axes: Any) -> None:
        for state, colour in COLOURS.items():
            some = [t for t in trials if t.state is state]
            mark = "o" if state is TrialState.COMPLETE else "x"
            axes.plot(
                [place(t) for t in some],
                [found.score(t, objective) for t in some],
                mark,
                color=colour,
                markersize=4,
                alpha=0.7,
            )
        if log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_xlabel(param)
        axes.set_title(name)
        _large(axes.yaxis, [found.score(t, objective) for t in trials])

    done = [t for t in trials if t in found.within]
    top = max(done, key=lambda t: found.sign(objective) * found.score(t, objective), default=trials[0])
    text = f"{name} against {param} in {plural(len(trials), 'trial')}; the best has {short(top.params[param])}."
    key = "".join(c if c.isalnum() else "-" for c in param)
    return figures._plot(f"slice-{objective}-{key}", text, text, figures.PANEL, draw)


def _axis(param: str, trials: Sequence[FrozenTrial]) -> tuple[Callable[[FrozenTrial], float], list[str], bool]:
    """Where a trial lies on a hyperparameter's axis; the ticks' names where it is a choice; whether it is a log."""
    kinds = [t.distributions[param] for t in trials]
    if any(isinstance(kind, CategoricalDistribution) for kind in kinds):
        levels = sorted({short(t.params[param]) for t in trials}, key=lambda text: (len(text), text))
        return lambda t: float(levels.index(short(t.params[param]))), levels, False
    return lambda t: float(t.params[param]), [], any(getattr(kind, "log", False) for kind in kinds)


def parallel(found: Found) -> Section | None:
    """Every trial as a line across its hyperparameters to its score; what a trial does not have lies at the bottom."""
    params = found.params[:MOST_AXES]
    if len(found.complete) < 2 or len(params) < 2:
        return None
    plots = []
    for i, name in enumerate(found.objectives):
        scores = np.array([found.score(t, i) for t in found.complete])
        best, worst = (scores.max(), scores.min()) if found.sign(i) > 0 else (scores.min(), scores.max())
        shade = (scores - worst) / (best - worst) if best != worst else np.ones(len(scores))
        columns, labels = [], []
        for param in params:
            have = [t for t in found.complete if param in t.params]
            place, ticks, log = _axis(param, have) if have else (lambda t: 0.0, [], False)
            values = np.array([place(t) if param in t.params else np.nan for t in found.complete])
            values = np.log(values) if log else values
            low, high = (np.nanmin(values), np.nanmax(values)) if have else (0.0, 0.0)
            columns.append((values - low) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.5))
            ends = [short(pick(have, key=place).params[param]) for pick in (min, max)] if have else ["", ""]
            labels.append((param, ticks or ends, len(have) < len(found.complete)))
        rows = np.column_stack([*columns, shade])
        ends = [f"{worst:.3g}", f"{best:.3g}"]
        plots.append(_parallel(i, name, rows, [*labels, (name, ends, False)], shade))
    return Section("parallel", "Parallel coordinates", [plots])


def _parallel(
    objective: int, name: str, rows: np.ndarray, labels: list[tuple[str, list[str], bool]], shade: np.ndarray
) -> Figure:
    """rows: (trials, axes) in 0..1, NaN where a trial does not have it; shade: (trials,) 1 = best."""
    absent = -0.15
    top = np.argsort(-shade, kind="stable")[: math.ceil(len(shade) / 10)]

    def draw(axes: Any) -> None:
        for k in np.argsort(shade):
            line = np.where(np.isnan(rows[k]), absent, rows[k])
            axes.plot(
                line,
                color=figures.COLOURS[0] if k in top else figures.GREY,
                alpha=0.25 + 0.65 * shade[k],
                linewidth=1,
            )
        for x, (_, ticks, partial) in enumerate(labels):
            axes.axvline(x, color=figures.INK, linewidth=0.6)
            for j, tick in enumerate(ticks):
                y = j / (len(ticks) - 1) if len(ticks) > 1 else 0.5
                axes.annotate(tick, (x, y), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
            if partial:
                axes.annotate(
                    "not there", (x, absent), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center"
                )
        names = [label.replace(".", ".\n", 1) for label, _, _ in labels]
        axes.set_xticks(range(len(labels)), names, fontsize=8)
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(labels) - 0.6)
        axes.spines[["left", "bottom"]].set_visible(False)

    names = joined([label for label, _, _ in labels])
    text = f"Each complete trial as a line to its {name}; blue: the best tenth. Axes: {names}."
    return figures._plot(f"parallel-{objective}", text, text, (max(6.0, 1.3 * len(labels)), 3.6), draw, left=0.4)


def pareto(found: Found) -> Section | None:
    """Pairs of objectives with the front."""
    if len(found.objectives) < 2 or not found.complete:
        return None
    front = {t.number for t in found.best}
    plots = []
    for j in range(1, len(found.objectives)):
        a, b = found.objectives[0], found.objectives[j]

        def draw(axes: Any, j: int = j, a: str = a, b: str = b) -> None:
            rest = [t for t in found.complete if t.number not in front]
            axes.plot([t.values[j] for t in rest], [t.values[0] for t in rest], "o", color=figures.GREY, markersize=4)
            line = sorted(found.best, key=lambda t: t.values[j])
            axes.plot(
                [t.values[j] for t in line], [t.values[0] for t in line], "o-", color=figures.COLOURS[0], markersize=5
            )
            for t in line:
                axes.annotate(
                    str(t.number), (t.values[j], t.values[0]), xytext=(4, 3), textcoords="offset points", fontsize=8
                )
            axes.set_xlabel(b)
            axes.set_title(a)
            _large(axes.xaxis, [t.values[j] for t in found.complete])

        text = f"{a} against {b}; the Pareto front in blue, with the trials' numbers: no other trial is better in one"
        text += " and as good in the other."
        if len(found.within) < len(found.complete):
            text = text.replace("no other trial", "no other trial within all limits")
        plots.append(figures._plot(f"pareto-{j}", text, text, (6.0, 3.4), draw))
    rows: list[list[Cell | str]] = [
        [Cell(str(t.number), t.number), *(Cell(score(v), v) for v in t.values), point(t)] for t in found.best
    ]
    return Section(
        "pareto", "Pareto front", [plots, Table("The front.", ["trial", *found.objectives, "settings"], rows)]
    )


def _large(axis: Any, values: Sequence[float]) -> None:
    """1.9 M in place of 1.9 and, elsewhere, 1e6."""
    if max(map(abs, values), default=0) >= 1e4:
        axis.set_major_formatter(EngFormatter())
