"""What a search optimises: numbers of a run's record, read in one place whoever asks.

A score is of the validation part, at one epoch; never of the test part, which would then be no test any more.
"""

import math
from pathlib import Path
from typing import Any

from segsweep.core import artifacts
from segsweep.core.errors import ConfigError, SegsweepError, nearest
from segsweep.task import Metric, Spec

COSTS = {
    "training_seconds": Metric(title="Training", direction="min", format=".1f", meaning="seconds of training steps"),
    "gflops": Metric(title="GFLOP", direction="min", format=".3g", meaning="GFLOP of one sample forward"),
    "parameters": Metric(title="Parameters", direction="min", format=",.0f", meaning="trainable parameters"),
}


def scores(spec: Spec) -> dict[str, Metric]:
    """What a search and a pruner can go by: all that is measured after every epoch."""
    return {f"val/{name}": metric for name, metric in spec.metrics.items() if metric.by_epoch}


def objectives(spec: Spec) -> dict[str, Metric]:
    return scores(spec) | COSTS


def direction(name: str, spec: Spec) -> str:
    """`maximize` or `minimize`, as the metric's own definition has it."""
    return {"max": "maximize", "min": "minimize"}[objectives(spec)[name].direction]


def problems(search: Any, epochs: int, spec: Spec, at: str = "") -> list[str]:
    """Every mistake of `search.objective` and `search.epoch`, one sentence each. at: how the engine's keys begin."""
    found, allowed = [], objectives(spec)
    names = list(search.objective)
    for name in names:
        if name not in allowed:
            test = name.startswith("test/")
            why = "nothing is chosen on the test part" if test else "no such objective"
            hint = nearest(name.replace("test/", "val/"), allowed)
            found.append(f"{at}search.objective={name}: {why}{hint}; allowed are {', '.join(allowed)}")
    if not names or names[0] in COSTS or len(set(names)) < len(names):
        found.append(
            f"{at}search.objective=[{','.join(names)}]: a score such as {spec.select} comes first, and none comes twice"
        )
    epoch = search.epoch
    if epoch not in ("best", "last") and (not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 1):
        found.append(f"{at}search.epoch={epoch}: allowed are best, last, or the number of an epoch")
    elif isinstance(epoch, int) and not spec.epochs:
        found.append(f"{at}search.epoch={epoch}: this task trains at one go and has no epochs; leave it out")
    elif isinstance(epoch, int) and epoch > epochs:
        found.append(f"{at}search.epoch={epoch}: a run has epochs={epochs}")
    return found


def values(run: Path, names: list[str], epoch: str | int, spec: Spec) -> list[float]:
    """The objectives of a finished run folder, all of the same epoch: `best` by the first of them, `last`, or a number.

    Raises SegsweepError where the record has no such number, as for a score that is undefined in every epoch."""
    history, result = artifacts.read_lines(run / "history.jsonl"), artifacts.read_json(run / "result.json") or {}
    row = _row(history, names[0], epoch, spec)
    found = result | ({} if history else result.get("metrics") or {}) | row  # where there are no epochs, the one number
    numbers = [found.get(name) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if not isinstance(number, int | float) or not math.isfinite(number):
            where = f" in epoch {row['epoch']}" if row else " in any epoch" * spec.epochs
            if not row and any(name in each for each in history):
                where = " in each epoch: some were trained before it was asked for; reuse=false trains them again"
            if isinstance(epoch, int) and 0 < len(history) < epoch:
                where = f" in epoch {epoch} (search.epoch), as the run ended after {len(history)}"
            raise SegsweepError(f"{run}: {name} is not a number{where}, so the search learns nothing of it")
    return [float(number) for number in numbers if number is not None]


def _row(history: list[dict[str, Any]], name: str, epoch: str | int, spec: Spec) -> dict[str, Any]:
    defined = [row for row in history if isinstance(row.get(name), int | float)]
    if epoch == "best":
        if defined and any(name not in each for each in history):
            return {}  # the best of the others is not the best
        pick = max if objectives(spec)[name].sign > 0 else min
        return pick(defined, key=lambda row: row[name], default={})
    number = len(history) if epoch == "last" else epoch
    return next((row for row in defined if row["epoch"] == number), {})


def validation(spec: Spec) -> str:
    """What to do where there is no validation part."""
    return f"give them one, as with {spec.validation}" if spec.validation else "give them one in the task's data()"


def check_part(samples: int, names: list[str], spec: Spec, at: str = "") -> None:
    """`samples`: in the validation part. at: how the engine's keys begin. Raises ConfigError where there is none to
    search on."""
    if not samples:
        raise ConfigError(
            f"{at}search.objective={names[0]}: these data have no validation part, and nothing is chosen on the test "
            f"part; {validation(spec)}"
        )
