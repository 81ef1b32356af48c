"""python -m segsweep.report.search STUDY --storage URL: what a search found, read from its study alone.

A sweep's folder will do instead of a study's name; then the best configuration is taken from its run. Nothing is
trained. At the end of a search it is made without being asked for.
"""

import argparse
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.ticker import EngFormatter
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from segsweep import artifacts
from segsweep.errors import SegsweepError, nearest
from segsweep.report import figures, render, winner
from segsweep.report.content import Block, Cell, Code, Figure, Section, Table, joined, number, plural
from segsweep.study import ASKED, counted, open_storage, reason, shown

FEWEST = 10
"""Complete trials below which no importance is worked out, and as many again for each hyperparameter are wished for."""
MOST_SLICES, MOST_ROWS, MOST_AXES, MOST_FRONT = 24, 500, 10, 20
COLOURS = {TrialState.COMPLETE: figures.COLOURS[0], TrialState.PRUNED: figures.COLOURS[1]}
DEFAULT = "sqlite:///mlruns/optuna.db"


@dataclass
class Found:
    """A study with what is known around it. `runs`: the folder of all run folders, where one is known."""

    study: optuna.Study
    storage: str
    runs: Path | None

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """Those that count, as the search itself counts."""
        return counted(self.study.get_trials(deepcopy=False))

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        return [t for t in self.trials if t.state is TrialState.COMPLETE and all(map(math.isfinite, t.values))]

    @cached_property
    def objectives(self) -> list[str]:
        asked = self.asked.get("search.objective")
        names = [name.strip() for name in asked.split(",")] if asked else self.study.metric_names or []
        count = len(self.study.directions)
        return (
            list(names)
            if len(names) == count
            else ["objective"]
            if count == 1
            else [f"objective {i}" for i in range(count)]
        )

    @cached_property
    def asked(self) -> dict[str, str]:
        """What the search says of itself, key -> text."""
        found = self.study.user_attrs.get(ASKED)
        return found if isinstance(found, dict) else {}

    @cached_property
    def best(self) -> list[FrozenTrial]:
        """The best trial within all limits, or the Pareto front by its first objective."""
        try:
            front = [self.study.best_trial] if len(self.study.directions) == 1 else self.study.best_trials
        except ValueError:
            return []
        return sorted(front, key=lambda t: (-self.sign(0) * t.values[0], t.number))

    @cached_property
    def params(self) -> list[str]:
        """Every hyperparameter that some trial has, conditional ones included, those of most trials first."""
        counts = Counter(name for trial in self.trials for name in trial.params)
        return [name for name, _ in counts.most_common()]

    def sign(self, objective: int) -> int:
        return 1 if self.study.directions[objective] is optuna.study.StudyDirection.MAXIMIZE else -1

    def run(self, trial: FrozenTrial) -> Path | None:
        signature = trial.user_attrs.get("signature")
        folder = self.runs / "runs" / str(signature) if self.runs and signature else None
        return folder if folder and (folder / "config.yaml").exists() and (folder / "run.json").exists() else None

    def state(self, trial: FrozenTrial) -> str:
        over = trial.state is TrialState.COMPLETE and any(value > 0 for value in trial.constraints.values())
        return "over a limit" if over else {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())

    def score(self, trial: FrozenTrial, objective: int = 0) -> float:
        """NaN where the trial has none; of a pruned one its last."""
        value = trial.values[objective] if trial.values else None
        return float("nan") if value is None else float(value)


def load(name: str, storage: str, runs: Path | None = None) -> Found:
    """Raises SegsweepError with what there is, where there is no such study."""
    file = storage.partition(":///")[2].partition("?")[0]
    if storage.startswith(("sqlite", "journal")) and not Path(file).exists():
        raise SegsweepError(f"--storage {storage}: no such file")
    place = open_storage(storage)
    try:
        names = optuna.get_all_study_names(place)
    except Exception as error:  # a storage raises what its back end raises
        raise SegsweepError(f"--storage {shown(storage)}: cannot be read: {reason(error)}") from error
    if name not in names:
        there = f"{nearest(name, names)}; there are {', '.join(names[-20:])}" if names else "; it holds none"
        raise SegsweepError(f"{name}: no such study in {storage}{there}")
    return Found(optuna.load_study(study_name=name, storage=place), storage, runs)


def write(found: Found, out: Path, title: str | None = None) -> Path:
    """`search.html` in `out` and, in `out`/search, the pictures as PNG and the best configurations; the page's path."""
    best = winners(found, out / "search")
    sections = [section for make in SECTIONS if (section := make(found))]
    if best:
        sections.insert(1, chosen(found, best, out / "search"))
    for name, png in render.pictures(sections).items():
        with artifacts.atomic(out / "search" / name) as partial:
            partial.write_bytes(png)
    made = f"Made {datetime.now():%Y-%m-%d %H:%M} from the study in {shown(found.storage)}. Nothing was trained for it."
    artifacts.write_text(out / "search.html", render.html(title or f"Search {found.study.study_name}", made, sections))
    return out / "search.html"


def winners(found: Found, folder: Path) -> list[tuple[FrozenTrial, Path, str]]:
    """Write each best configuration as `experiment/NAME.yaml`: the trial, its file, and its command line."""
    made = []
    for rank, trial in enumerate(found.best[:MOST_FRONT]):
        name = "best" if rank == 0 else f"front_{rank + 1}"
        file = folder / "experiment" / f"{name}.yaml"
        run = found.run(trial)
        choices, values = winner.of_run(run) if run else winner.of_trial(trial.params, found.asked)
        places = {key: value for key, value in values.items() if key in winner.PLACES}
        whole = run or found.asked
        head = [
            f"{'Best' if len(found.best) == 1 else 'One of the best'} of the search {found.study.study_name}: "
            f"trial {trial.number}, {_scores(found, trial)}.",
            f"  {winner.command({}, {'experiment': name, **places}, '--config-dir', str(folder))}",
            "The same as a command line:",
            f"  {winner.command(choices, values)}",
            *(
                []
                if whole
                else ["The study says only what was searched: whatever else was given has to be given again."]
            ),
        ]
        artifacts.write_text(file, winner.experiment(head, choices, values))
        made.append((trial, file, winner.command(choices, values)))
    return made


def chosen(found: Found, best: Sequence[tuple[FrozenTrial, Path, str]], folder: Path) -> Section:
    """What to do next."""
    blocks: list[Block] = []
    for trial, file, line in best:
        again = f"python -m segsweep --config-dir {folder} experiment={file.stem}"
        blocks += [f"Trial {trial.number}, {_scores(found, trial)}, as `{file}`, and as a command line:"]
        blocks += [Code(f"{again}\n{line}")]
    if len(best) == 1:
        blocks.append(
            "Its score is the best of many on the validation part, and so a little too good; what it is worth says its"
            " test, with more than one seed: add `-m seed=1,2,3`."
        )
    return Section("best", "The best configuration" if len(best) == 1 else "The best configurations", blocks)


def summary(found: Found) -> Section:
    """How many trials ended how, and what was searched."""
    counts = Counter(map(found.state, found.trials))
    states = joined([f"{many} {state}" for state, many in counts.most_common()])
    blocks: list[Block] = [f"{plural(len(found.trials), 'trial')}: {states or 'none'}."]
    goals = [f"{name} ({d.name.lower()})" for name, d in zip(found.objectives, found.study.directions, strict=True)]
    blocks.append(f"Searched for {joined(goals)} over {joined(found.params) or 'nothing'}.")
    epochs = [
        max(t.intermediate_values) for t in found.trials if t.state is TrialState.PRUNED and t.intermediate_values
    ]
    if epochs:
        blocks.append(
            f"Pruned after {min(epochs)} to {max(epochs)} epochs, {np.mean(epochs):.1f} on average. A pruned trial's"
            " score is that of its last epoch; it takes no part in the importance and is never the best."
        )
    if not found.complete:
        blocks.append("**No trial is complete yet: there is nothing to compare.**")
    return Section("summary", "Summary", blocks)


def history(found: Found) -> Section | None:
    """Scores in order of the trials, with the best so far."""
    if not found.complete:
        return None
    plots = []
    for i, name in enumerate(found.objectives):
        scored = [t for t in found.trials if not math.isnan(found.score(t, i))]
        best = [found.score(t, i) for t in found.complete]
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
            axes.step(
                [t.number for t in found.complete], running, where="post", color=figures.GREY, label="best so far"
            )
            axes.set_xlabel("trial")
            axes.set_title(name)
            _large(axes.yaxis, running)
            axes.legend(loc="best")

        text = f"{name} of each trial. Best so far: {running[0]:.4g} at first, {running[-1]:.4g} in the end, reached"
        text += f" at trial {found.complete[int(np.argmax(running == running[-1]))].number}."
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


def importance(found: Found) -> Section | None:
    """How much each hyperparameter matters, by which method, resting on how many trials."""
    varied = [p for p in found.params if len({str(t.params[p]) for t in found.complete if p in t.params}) > 1]
    if not found.complete or len(varied) < 2:
        return None
    if len(found.complete) < FEWEST:
        few = plural(len(found.complete), "complete trial")
        text = f"Not worked out: it would rest on {few}, and wants at least {FEWEST}."
        return Section("importance", "Which hyperparameters mattered?", [text])
    everywhere = [p for p in varied if all(p in t.params for t in found.complete)]
    conditional = [p for p in varied if p not in everywhere]
    blocks: list[Block] = [
        f"Over {plural(len(found.complete), 'complete trial')}. fANOVA (Hutter, Hoos and Leyton-Brown 2014): share of"
        " the variance over the whole space. PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv 2304.10255): what tells"
        " the best tenth from the rest."
    ]
    if conditional:
        blocks.append(f"Only some trials have {joined(conditional)}: fANOVA leaves that out.")
    if len(found.complete) < FEWEST * len(varied):
        blocks.append(f"**That is few for {len(varied)} hyperparameters: a hint, not a finding.**")
    plots = []
    for i, name in enumerate(found.objectives):
        shares = _shares(found, i, varied, everywhere)
        if not shares:
            blocks.append(f"Every trial has the same {name}: there is nothing to explain.")
            continue
        order = sorted(varied, key=lambda p: -max(share.get(p, 0.0) for share in shares.values()))
        rows: list[list[Cell | str]] = [[p, *(number(share.get(p)) for share in shares.values())] for p in order]
        blocks.append(Table(f"Importance for {name}, as shares.", ["hyperparameter", *shares], rows))
        words = "; ".join(f"{k}: " + ", ".join(f"{p} {s[p]:.2f}" for p in order if p in s) for k, s in shares.items())
        drawn = {k: [s.get(p, 0.0) for p in order] for k, s in shares.items()}
        text = f"Importance for {name}. {words}."
        plots.append(figures.bars(f"importance-{i}", text, f"Importance for {name}.", order, drawn))
    return Section("importance", "Which hyperparameters mattered?", [*blocks, *([plots] if plots else [])])


def _shares(found: Found, objective: int, varied: list[str], everywhere: list[str]) -> dict[str, dict[str, float]]:
    """Evaluator -> hyperparameter -> share; an evaluator that cannot say is left out."""
    evaluators: dict[str, tuple[Any, list[str]]] = {
        "fANOVA": (optuna.importance.FanovaImportanceEvaluator(seed=0, n_trees=32), everywhere),
        "PED-ANOVA": (optuna.importance.PedAnovaImportanceEvaluator(), varied),
    }
    shares = {}
    scores = {found.score(t, objective) for t in found.complete}
    study = optuna.create_study(direction=found.study.directions[objective])
    study.add_trials([_alone(t, found.score(t, objective)) for t in found.complete])
    for name, (evaluator, params) in evaluators.items():
        if len(params) > 1 and len(scores) > 1:
            with warnings.catch_warnings(action="ignore"):  # of what is experimental in Optuna, and of few trials
                weights = optuna.importance.get_param_importances(study, evaluator=evaluator, params=params)
            shares[name] = {key: float(value) for key, value in weights.items()}
    return shares


def _alone(trial: FrozenTrial, value: float) -> FrozenTrial:
    return optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value)


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

    done = [t for t in trials if t.state is TrialState.COMPLETE]
    top = max(done, key=lambda t: found.sign(objective) * found.score(t, objective), default=trials[0])
    text = f"{name} against {param} in {plural(len(trials), 'trial')}; the best has {_short(top.params[param])}."
    key = "".join(c if c.isalnum() else "-" for c in param)
    return figures._plot(f"slice-{objective}-{key}", text, text, figures.PANEL, draw)


def _axis(param: str, trials: Sequence[FrozenTrial]) -> tuple[Callable[[FrozenTrial], float], list[str], bool]:
    """Where a trial lies on a hyperparameter's axis; the ticks' names where it is a choice; whether it is a log."""
    kinds = [t.distributions[param] for t in trials]
    if any(isinstance(kind, CategoricalDistribution) for kind in kinds):
        levels = sorted({_short(t.params[param]) for t in trials}, key=lambda text: (len(text), text))
        return lambda t: float(levels.index(_short(t.params[param]))), levels, False
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
            ends = [_short(pick(have, key=place).params[param]) for pick in (min, max)] if have else ["", ""]
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
        plots.append(figures._plot(f"pareto-{j}", text, text, (6.0, 3.4), draw))
    rows: list[list[Cell | str]] = [
        [Cell(str(t.number), t.number), *(Cell(_score(v), v) for v in t.values), _point(t)] for t in found.best
    ]
    return Section(
        "pareto", "Pareto front", [plots, Table("The front.", ["trial", *found.objectives, "settings"], rows)]
    )


def trials(found: Found) -> Section | None:
    """Every trial, best first."""
    if not found.trials:
        return None

    def rank(trial: FrozenTrial) -> tuple[bool, float]:
        score = found.score(trial)
        return trial.state is not TrialState.COMPLETE, math.inf if math.isnan(score) else -found.sign(0) * score

    rows: list[list[Cell | str]] = []
    for t in sorted(found.trials, key=rank)[:MOST_ROWS]:
        cells = [Cell(str(t.number), t.number), Cell(found.state(t), mark="bad" if t.state is TrialState.FAIL else "")]
        cells += [number(found.score(t, i), ".4g") for i in range(len(found.objectives))]
        cells += [number(max(t.intermediate_values, default=None), "d")]
        rows.append([*cells, _point(t), str(t.user_attrs.get("error") or "–")])
    head = ["trial", "state", *found.objectives, "last epoch seen", "settings", "message"]
    limit = f" The best {MOST_ROWS} of {len(found.trials)}." if len(found.trials) > MOST_ROWS else ""
    return Section("trials", "All trials", [Table(f"All trials.{limit}", head, rows, folded=True)])


SECTIONS: list[Callable[[Found], Section | None]] = [
    summary,
    history,
    pareto,
    importance,
    slices,
    parallel,
    curves,
    trials,
]


def _scores(found: Found, trial: FrozenTrial) -> str:
    return joined([f"{name} {_score(value)}" for name, value in zip(found.objectives, trial.values, strict=True)])


def _score(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _large(axis: Any, values: Sequence[float]) -> None:
    """1.9 M in place of 1.9 and, elsewhere, 1e6."""
    if max(map(abs, values), default=0) >= 1e4:
        axis.set_major_formatter(EngFormatter())


def _point(trial: FrozenTrial) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def of_sweep(folder: Path, storage: str | None = None) -> Found:
    """The search that a sweep's folder records. `storage`: its address, where the record hides a password."""
    about = (artifacts.read_json(folder / "sweep.json") or {}).get("search")
    if not about:
        raise SegsweepError(f"{folder}: its sweep.json records no search; name a study and its --storage")
    return load(about["study"], storage or about["storage"], folder.parent)


def main(arguments: list[str] | None = None) -> int:
    """Write the page; 1 and a plain message where there is nothing to write it from."""
    parser = argparse.ArgumentParser(prog="python -m segsweep.report.search", description=__doc__)
    parser.add_argument("study", help="a study's name, or the folder of a sweep that was a search (multirun/<sweep>)")
    parser.add_argument(
        "--storage", help=f"any address that Optuna takes, journal:///FILE included (default: {DEFAULT})"
    )
    parser.add_argument("--out", type=Path, help="where to write (default: the sweep's folder, or outputs/<study>)")
    parser.add_argument(
        "--runs", type=Path, default=Path("multirun"), help="folder with runs/ in it (default: multirun)"
    )
    options = parser.parse_args(arguments)
    sweep = Path(options.study)
    try:
        if (sweep / "sweep.json").exists():
            found = of_sweep(sweep, options.storage)
            out = options.out or sweep
        else:
            found = load(options.study, options.storage or DEFAULT, options.runs)
            out = options.out or Path("outputs") / options.study
        page = write(found, out)
    except SegsweepError as error:
        print(error, file=sys.stderr)
        return 1
    print(page)
    if found.best:
        print(f"{out}/search/experiment/best.yaml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
