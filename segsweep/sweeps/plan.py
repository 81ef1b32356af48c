"""What is known of a job before it runs: its identity, how much of it is on disk, and what the rest should cost.

Costs are predicted from records of runs that are alike, whatever number of threads they had; where there is none, jobs
are ordered by their samples.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segsweep.config import components
from segsweep.config.schema import engine, under
from segsweep.core import accepted, artifacts
from segsweep.core.checkpoints import Checkpoints
from segsweep.core.errors import SegsweepError, printable
from segsweep.core.masks import first_line
from segsweep.core.session import session
from segsweep.core.signature import OWN
from segsweep.runs.identity import identity, repeats
from segsweep.task import Data, Spec, Task

RECORDS = 500
"""Most records that are read for their times, the newest first."""
SECONDS_A_SAMPLE = 0.005
"""Where nothing has been measured. Only the order of jobs hangs on it."""


@dataclass
class Point:
    """One job of a plan. `state`: finished, pruned (as it was asked now), failed, continue or new; `epoch`: complete
    epochs on disk, of `epochs`; `pruned`: the epoch at which one ended it; `pruner`: whether one may end it;
    `early`: whether a setting may (`Spec.endings`); `stands`: for it, a record of other code (`accepted`)."""

    signature: str
    trajectory: str
    folder: Path
    state: str
    epoch: int
    epochs: int
    alike: tuple[Any, ...]
    train: int
    held_out: int
    spec: Spec
    note: str = ""
    pruned: int | None = None
    pruner: bool = False
    early: bool = False
    stands: bool = False

    @property
    def answered(self) -> bool:
        """Whether the record answers, so that nothing is trained."""
        return self.state in ("finished", "pruned")


@dataclass
class Measured:
    """Seconds to train on and to evaluate one sample, seconds a run beside those, peak bytes."""

    train: float
    held_out: float
    beside: float
    memory: int


class Planner:
    """Reads every data set, network and record once. `runs`: `paths.runs` of the sweep, where times are looked up."""

    def __init__(self, runs: Path):
        self.runs = runs
        self._data: dict[str, tuple[Task, Data]] = {}
        self._sizes: dict[tuple[Any, ...], Callable[[], dict[str, Any]]] = {}
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._measured: dict[tuple[Any, ...], Measured] | None = None

    def point(self, cfg: DictConfig, choices: dict[str, Any], values: dict[str, Any] | None = None) -> Point:
        """Of a composed configuration, whose values may be resolved already (`compose.Own`); raises SegsweepError where
        its data or its split is not usable."""
        from segsweep.core.device import pick_device
        from segsweep.core.environment import device_name

        task, data = self._look(cfg, values)
        spec = task.spec
        asked, at = engine(cfg), under(cfg)
        device = pick_device(asked.device)
        lead = session().sweep
        found = identity(cfg, spec, data, lead.folder if lead else None, values)
        runs = Path(asked.paths.runs)  # its own, which need not be the sweep's
        stands = accepted.standing(runs, found.ids["signature"]) if asked.reuse else None
        ids = stands["ids"] if stands else found.ids
        folder = runs / "runs" / ids["signature"]
        length = asked.epochs if spec.epochs else 1
        states = Checkpoints(runs / "trajectories" / ids["trajectory"])
        lapsed = accepted.lapsed(states) or length + 1
        there = [epoch for epoch in states.epochs() if epoch <= length and epoch < lapsed]
        result = artifacts.result(folder) if asked.reuse else None
        finished = result is not None
        failed = (folder / "failure.json").exists()
        state = "failed" if failed else "continue" if there and asked.reuse else "new"
        pruned = artifacts.read_json(folder / "pruned.json") if asked.reuse else None
        pruner = bool(OmegaConf.select(asked, "pruner._target_"))
        if pruned and pruner:
            from segsweep.search.pruning import same

            state = "pruned" if same(pruned, cfg, spec) else state
        state = "finished" if finished else state
        stopped = artifacts.stopped(result or {}).partition(":")[0]
        alike = _alike(found.factors(choices, spec, at), spec, device_name(device))
        if alike not in self._sizes:
            kept = cfg.copy()  # that of the next job may be this one, changed
            self._sizes[alike] = lambda: _size(kept)
        return Point(
            signature=ids["signature"],
            trajectory=ids["trajectory"],
            folder=folder,
            state=state,
            epoch=length if finished else max(there, default=0) if asked.reuse else 0,
            epochs=length,
            alike=alike,
            train=data.parts.get("train", 1),
            held_out=data.parts.get(data.part, 1),
            spec=spec,
            note=", ".join(
                filter(None, ["accepted " + accepted.told(stands) if stands else "", stopped and f"({stopped})"])
            ),
            pruned=pruned["epoch"] if pruned else None,
            pruner=pruner,
            stands=stands is not None,
            # what decides metrics, or which of a few weights is tested, ends no run
            early=any(not spec.endings[key] and key not in spec.describing for key in found.endings),
        )

    def _look(self, cfg: DictConfig, values: dict[str, Any] | None) -> tuple[Task, Data]:
        """A task of the same data, which need not be the job's own, and what it says of them."""
        if (key := components.inputs(cfg, values)) not in self._data:
            task = components.task(cfg)
            self._data[key] = task, task.data()
        return self._data[key]

    def size(self, point: Point) -> dict[str, Any]:
        """parameters, and gflops of one sample forward, where its task can tell."""
        if point.alike not in self._known:
            self._known[point.alike] = self._sizes[point.alike]()
        return self._known[point.alike]

    def epoch_gflops(self, point: Point) -> float | None:
        """Training (a backward pass costs two forward ones) and evaluation of one epoch."""
        one = self.size(point).get("gflops")
        return None if one is None else one * (3 * point.train + point.held_out)

    def measured(self, point: Point) -> Measured | None:
        if self._measured is None:
            self._measured = _read(self.runs)
        return self._measured.get(point.alike)

    def seconds(self, point: Point, epochs: int) -> float | None:
        """Expected time of `epochs` epochs and the final test; None where nothing alike has been measured."""
        found = self.measured(point)
        if found is None:
            return None
        return epochs * (found.train * point.train + found.held_out * point.held_out) + found.beside

    def cost(self, point: Point) -> float:
        """Seconds that are left of a job, measured or guessed: what jobs are ordered by. The guess leaves the network
        out: to count its operations costs torch seconds of imports, in which the first job could train."""
        left = point.epochs - point.epoch
        known = self.seconds(point, left)
        if known is not None:
            return known
        rates = [measured.train for measured in (self._measured or {}).values()]
        return left * point.train * (statistics.median(rates) if rates else SECONDS_A_SAMPLE)


def _size(cfg: DictConfig) -> dict[str, Any]:
    task = components.task(cfg)
    return task.size() if hasattr(task, "size") else {}


def _alike(found: dict[str, Any], spec: Spec, device: str) -> tuple[Any, ...]:
    """Jobs of the same key take about the same time a sample. `found`: a run's factors."""
    apart = ("epochs", f"{OWN}.epochs", *repeats(spec, ""), f"{OWN}.seed")
    decide = [k for k in found if (any(fnmatch(k, p) for p in spec.pace) if spec.pace else k not in apart)]
    device = device.split(",")[0]  # less the number of threads, which the launcher decides
    return *((key, str(found[key])) for key in sorted(decide)), device


def _read(runs: Path) -> dict[tuple[Any, ...], Measured]:
    """The times of the newest finished runs, by what makes them alike."""
    folders = sorted((f.parent for f in runs.glob("runs/*/result.json")), key=lambda f: f.stat().st_mtime)[-RECORDS:]
    found: dict[tuple[Any, ...], list[Measured]] = {}
    for folder in folders:
        run, result = (artifacts.read_json(folder / name) or {} for name in ("run.json", "result.json"))
        try:
            split, epochs = run["split"], result["epochs"]
            key = _alike(run["factors"], Spec.from_json(run["task"]), run["device"])
            beside = result["total_seconds"] - result["training_seconds"] - result["evaluation_seconds"]
            times = Measured(
                train=result["training_seconds"] / epochs / split.get("train", 1),
                held_out=result["evaluation_seconds"] / epochs / (split.get("val") or split.get("test", 1)),
                beside=max(beside, 0.0),
                memory=result["peak_memory_bytes"],
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue  # a record of an older program
        found.setdefault(key, []).append(times)
    middle = statistics.median
    return {
        key: Measured(
            train=middle(m.train for m in all_),
            held_out=middle(m.held_out for m in all_),
            beside=middle(m.beside for m in all_),
            memory=max(m.memory for m in all_),
        )
        for key, all_ in found.items()
    }


def share(points: Sequence[Point | None]) -> list[int]:
    """Epochs that each job has left when it shares those of the others; a Point's note says where they are from.

    Jobs that differ in `epochs` alone are one trajectory: the longest costs its own length, the others nothing more.
    """
    todo = [0] * len(points)
    first: dict[str, int] = {}
    reached: dict[str, tuple[int, int]] = {}
    for number in sorted(range(len(points)), key=lambda n: (p.epochs if (p := points[n]) else 0, n)):
        point = points[number]
        if point is None:
            continue
        if point.signature in first:
            point.state, point.note = "duplicate", f"of job {first[point.signature] + 1}"
            continue
        first[point.signature] = number
        if point.state == "pruned":
            point.note = f"at epoch {point.pruned}, can be continued with pruner=none"
        if point.answered:
            continue
        epoch, other = reached.get(point.trajectory, (0, -1))
        if epoch > point.epoch:
            point.note = f"epochs 1-{epoch} with job {other + 1}"
        elif point.epoch:
            point.note = f"from epoch {point.epoch}" + (f", pruned at {point.pruned}" if point.pruned else "")
        todo[number] = point.epochs - max(epoch, point.epoch)
        reached[point.trajectory] = point.epochs, number
    return todo


def table(names: Sequence[str], points: Sequence[Point | SegsweepError], planner: Planner) -> str:
    """The plan as text: one line a job, then the totals."""
    known = [p if isinstance(p, Point) else None for p in points]
    todo = share(known)
    header = ("job", "what varies", "state", "epochs left", "parameters", "GFLOP/epoch", "time", "memory")
    rows: list[tuple[str, ...]] = [header]
    seconds, unknown = 0.0, 0
    for number, (name, point, left) in enumerate(zip(names, known, todo, strict=True), 1):
        if point is None:
            rows.append((str(number), name, first_line(points[number - 1]), *[""] * 5))
            continue
        state = {"continue": "to continue", "failed": "failed, again"}.get(point.state, point.state)
        over = point.answered or point.state == "duplicate"
        time = None if over else planner.seconds(point, left)
        seconds += time or 0
        unknown += not over and time is None
        memory = (measured := planner.measured(point)) and f"{measured.memory / 2**20:,.0f} MiB"
        parameters, work = planner.size(point).get("parameters"), planner.epoch_gflops(point)
        rows.append(
            (str(number), name, f"{state} {point.note}".strip(), str(left))
            + ("–" if parameters is None else f"{parameters:,}", "–" if work is None else f"{work:,.4g}")
            + ("" if over else clock(time), memory or "not measured")
        )
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    aligned = [str.rjust, str.ljust, str.ljust] + [str.rjust] * 5
    lines = ["  ".join(a(c, w) for a, c, w in zip(aligned, row, widths, strict=True)).rstrip() for row in rows]
    each = [(planner.epoch_gflops(p) or 0.0) * n for p, n in zip(known, todo, strict=True) if p]
    states = [p.state if p else "not possible" for p in known]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    expected = f"about {clock(seconds)} one after another" if seconds or not unknown else "time not measured yet"
    more = f"; {unknown} of the jobs are like none that was measured" if unknown and seconds else ""
    most = "at most " if any(p.pruner or p.early for p, n in zip(known, todo, strict=True) if p and n) else ""
    lines += ["", f"{len(points)} jobs: {counts}"]
    lines += [f"{most}{sum(todo)} epochs, {f'{sum(each) / 1000:,.4g} TFLOP, ' if any(each) else ''}{expected}{more}"]
    return "\n".join(lines)


def clock(seconds: float | None) -> str:
    """12 s, 3:20 min, 1:02:05 h."""
    if seconds is None:
        return "not measured"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
