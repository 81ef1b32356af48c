"""python -m segsweep.report.search STUDY --storage URL: what a search found, read from its study alone.

A sweep's folder will do instead of a study's name; then the best configuration is taken from its run. Nothing is
trained. At the end of a search it is made without being asked for.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from segsweep.config.start import start
from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError
from segsweep.core.program import typed
from segsweep.report import figures, render, winner
from segsweep.report.content import Block, Cell, Code, Section, Table, joined, number, plural
from segsweep.report.learning import FEWEST_RUNS, weighed
from segsweep.report.search.figures import curves, history, parallel, pareto, slices
from segsweep.report.search.trials import Found, load, of_sweep, point, scores
from segsweep.search.study import shown

"""Complete trials below which no importance is worked out, and as many again for each hyperparameter are wished for."""
MOST_ROWS, MOST_FRONT = 500, 20
DEFAULT = "sqlite:///mlruns/optuna.db"


def write(found: Found, out: Path, title: str | None = None) -> Path:
    """`search.html` in `out` and, in `out`/search, the pictures as PNG and the best configurations; the page's path."""
    best = winners(found, out / "search")
    sections = [section for make in SECTIONS if (section := make(found))]
    if best:
        sections.insert(1, chosen(found, best))
    for name, png in render.pictures(sections).items():
        with artifacts.atomic(out / "search" / name) as partial:
            partial.write_bytes(png)
    made = f"Made {datetime.now():%Y-%m-%d %H:%M} from the study in {shown(found.storage)}. Nothing was trained for it."
    artifacts.write_text(out / "search.html", render.html(title or f"Search {found.study.study_name}", made, sections))
    return out / "search.html"


def winners(found: Found, folder: Path) -> list[tuple[FrozenTrial, list[str], Path, str]]:
    """Write each best configuration as `experiment/NAME.yaml`: the trial, its command lines (by the file, and without
    it), its file, and a sentence on what was left out, if anything was."""
    made = []
    options: dict[Path, str] = {}
    for rank, trial in enumerate(found.best[:MOST_FRONT]):
        name = "best" if rank == 0 else f"front_{rank + 1}"
        file = folder / "experiment" / f"{name}.yaml"
        run = found.run(trial)
        best = winner.of_run(run, trial.params) if run else winner.of_trial(trial.params, found.asked)
        for group, node in best.own.items():
            text, place = winner.option(group, node), folder / group / f"{best.choices[group]}.yaml"
            if options.setdefault(place, text) != text:  # of another point of the front
                best.choices[group] += f"_{rank + 1}"
                place = place.with_name(f"{best.choices[group]}.yaml")
            artifacts.write_text(place, text)
        again, line = best.again(name, folder), best.command(*(["--config-dir", str(folder)] if best.own else []))
        left = (
            f"Left out, being no option, key or plain value of this program: {joined(best.left)}." if best.left else ""
        )
        whole = run or found.asked
        head = [
            f"{'Best' if len(found.best) == 1 else 'One of the best'} of the search {found.study.study_name}: "
            f"trial {trial.number}, {scores(found, trial)}.",
            f"  {again}",
            "The same as a command line:",
            f"  {line}",
            *([left] if left else []),
            *(
                []
                if whole
                else ["The study says only what was searched: whatever else was given has to be given again."]
            ),
        ]
        artifacts.write_text(file, winner.experiment(head, best.choices, best.values))
        made.append((trial, [again, line], file, left))
    return made


def chosen(found: Found, best: Sequence[tuple[FrozenTrial, list[str], Path, str]]) -> Section:
    """What to do next."""
    blocks: list[Block] = []
    for trial, lines, file, left in best:
        blocks += [f"Trial {trial.number}, {scores(found, trial)}, as `{file}`, and as a command line:"]
        blocks += [Code("\n".join(lines)), *([left] if left else [])]
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
        least, most = min(epochs), max(epochs)
        span = f"{least} to {most} epochs, {np.mean(epochs):.1f} on average" if least < most else plural(most, "epoch")
        blocks.append(
            f"Pruned after {span}. A pruned trial's score is that of its last epoch; it takes no part in"
            " the importance and is never the best."
        )
    if not found.complete:
        blocks.append("**No trial is complete yet: there is nothing to compare.**")
    return Section("summary", "Summary", blocks)


def importance(found: Found) -> Section | None:
    """How much each hyperparameter matters, by which method, resting on how many trials."""
    varied = [p for p in found.params if len({str(t.params[p]) for t in found.complete if p in t.params}) > 1]
    if not found.complete or len(varied) < 2:
        return None
    if len(found.complete) < FEWEST_RUNS:
        few = plural(len(found.complete), "complete trial")
        text = f"Not worked out: it would rest on {few}, and wants at least {FEWEST_RUNS}."
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
    if len(found.complete) < FEWEST_RUNS * len(varied):
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
    if len({found.score(t, objective) for t in found.complete}) < 2:
        return {}
    study = optuna.create_study(direction=found.study.directions[objective])
    study.add_trials([_alone(t, found.score(t, objective)) for t in found.complete])
    return weighed(study, everywhere, varied)


def _alone(trial: FrozenTrial, value: float) -> FrozenTrial:
    return optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value)


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
        rows.append([*cells, point(t), str(t.user_attrs.get("error") or "–")])
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


def main(arguments: list[str] | None = None) -> int:
    """Write the page; 1 and a plain message where there is nothing to write it from."""
    start()
    parser = argparse.ArgumentParser(prog=typed("search"), description=__doc__)
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
    except (SegsweepError, OSError) as error:  # the second: --out cannot be written
        print(error, file=sys.stderr)
        return 1
    print(page)
    if found.best:
        print(f"{out}/search/experiment/best.yaml")
    return 0
