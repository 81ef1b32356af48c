"""Epochs that a search needs to find the best point of a full grid, beside the grid's own.

    python -m benchmarks.search_worth SWEEP_FOLDER [--seeds 100] [--slots 2]

SWEEP_FOLDER: a grid whose runs are all finished. Training again on the same CPU would give the same curves, so each
search is replayed over them: space, sampler, study, pruner and order of events are those of `python -m segsweep`, and
only the epochs are looked up. An epoch takes the median seconds of its run's epochs: jobs end in the order they would.
What a search has spent counts every epoch begun until it is told a value, those of other slots included.
"""

import argparse
import heapq
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.storages import InMemoryStorage

from benchmarks import common
from segsweep.config.components import hydras
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.core import artifacts
from segsweep.search import objective
from segsweep.search.pruning import Judge, same
from segsweep.segmentation.metrics import SPEC

start()
from segsweep.plugins.search import SearchSweeper  # noqa: E402 - the namespace has to know it first

EARLY = ["pruner.min_resource=2", "pruner.reduction_factor=3"]
SEARCHES = {
    "TPE, halving": ["+search=tpe"],
    "TPE, halving from epoch 2, a third": ["+search=tpe", *EARLY],
    "TPE": ["+search=tpe", "pruner=none"],
    "random, halving": ["+search=random"],
    "random": ["+search=random", "pruner=none"],
    "the grid in random order": ["+search=grid"],
}
NEAR = 0.005
"""Of validation Dice: what is as close to the best is counted beside it."""
Point = tuple[tuple[str, str], ...]


class Decided(Exception):
    """The rest of the search is of no interest."""


class Grid:
    """A finished grid. `curves`: point -> its history, one dict an epoch; `swept`, `fixed`: the command's overrides.

    Raises SystemExit where a combination is not finished."""

    def __init__(self, folder: Path):
        overrides = (artifacts.read_json(folder / "sweep.json") or {})["overrides"]
        parsed = OverridesParser.create().parse_overrides(overrides)
        self.swept = [o.input_line for o in parsed if o.is_sweep_override()]
        self.fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
        self.keys = {o.get_key_element() for o in parsed if o.is_sweep_override()}
        self.curves: dict[Point, list[dict[str, Any]]] = {}
        self.facts: dict[str, Any] = {}
        for file in folder.glob("*/job.json"):
            job = artifacts.read_json(file) or {}
            run = file.parent / job.get("run", "")
            if job.get("status") in ("finished", "continued", "reused"):
                self.curves[self.point(job["overrides"])] = artifacts.read_lines(run / "history.jsonl")
                self.facts = artifacts.read_json(run / "run.json") or {}
        self.best = max(self.value(point) for point in self.curves)
        size = math.prod(len(list(o.sweep_iterator())) for o in parsed if o.is_sweep_override())
        if len(self.curves) < size:
            raise SystemExit(f"{folder}: {len(self.curves)} of {size} points are finished; start its command again")

    def value(self, point: Point) -> float:
        """The highest validation Dice of its epochs, as `search.epoch=best` has it."""
        return max(row["val/dice"] for row in self.curves[point])

    def point(self, overrides: list[str]) -> Point:
        """What of a job's overrides is swept, as `1e-2` and `0.01` are one value."""
        mine = [o for o in overrides if o.partition("=")[0] in self.keys]
        parsed = OverridesParser.create().parse_overrides(mine)
        return tuple(sorted((o.get_key_element(), str(o.value())) for o in parsed))


class Replay:
    """A launcher that trains nothing: the curves of a grid, at the pace at which they were made.

    now: seconds. epochs: begun by all slots so far. told: (epochs by then, value) of each trial that was trained to its
    end, in order. known: point -> its epochs and, if it was pruned, its pruned.json; what a later search finds.
    Decided ends the search when it is told `enough`, or once `least` epochs are begun and all `hopes` are pruned."""

    def __init__(self, grid: Grid, config: DictConfig, slots: int, known: dict[Point, tuple[int, Any]] | None = None):
        self.grid, self.slots, self.folder = grid, list(range(slots)), Path(config.hydra.sweep.dir)
        self.config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        self.known = {} if known is None else known
        self.now, self.epochs = 0.0, 0
        self.least, self.enough = 0, math.inf
        self.hopes: set[Point] = set(grid.curves)
        self.told: list[tuple[int, float]] = []
        self._queue: list[tuple[float, int, Iterator[float]]] = []

    def submit(self, overrides: list[str], number: int) -> None:
        heapq.heappush(self._queue, (self.now, number, self._job(overrides, number)))

    def wait(self) -> tuple[int, JobReturn]:
        while True:
            self.now, number, job = heapq.heappop(self._queue)
            if (seconds := next(job, None)) is None:
                done = JobReturn(status=JobStatus.COMPLETED)
                done.return_value = math.nan
                return number, done
            heapq.heappush(self._queue, (self.now + seconds, number, job))

    def _job(self, overrides: list[str], number: int) -> Iterator[float]:
        """What `run.run` and `train.fit` do with a job, less the training; gives the seconds of each epoch."""
        point, cfg = self.grid.point(overrides), self.config.copy()
        cfg.search.trial = number
        curve, name = self.grid.curves[point], " ".join("=".join(pair) for pair in point)
        seconds = statistics.median(row["seconds"] + row["eval_seconds"] for row in curve)
        about = {"pruner": "", "data": "", "split": "", "sweep": None}
        judge = Judge(cfg, SPEC, signature=name, name=name, **about) if cfg.pruner["_target_"] else None
        done, pruned = self.known.get(point, (0, None))
        status = "pruned" if judge and pruned and same(pruned, cfg, SPEC) else "finished"
        with judge or nullcontext():
            while status == "finished" and done < len(curve):
                if done and judge and (end := judge(curve[:done])):
                    status, self.known[point] = "pruned", (done, end.record)
                    break
                self.epochs += 1
                yield seconds
                done += 1
                self.known[point] = done, None
            if judge:
                judge.end("PRUNED" if status == "pruned" else "COMPLETE", curve[:done])
        run = self.folder / "runs" / name.replace("/", "-")
        artifacts.write_lines(run / "history.jsonl", curve[:done])
        artifacts.write_json(self.folder / str(number) / "job.json", {"status": status, "run": f"../runs/{run.name}"})
        if status != "pruned":
            search = cfg.search
            self.told.append((self.epochs, objective.values(run, list(search.objective), search.epoch, SPEC)[0]))
        else:
            self.hopes.discard(point)
        if (self.told and self.told[-1][1] >= self.enough) or (not self.hopes and self.epochs >= self.least):
            raise Decided


class Player:
    """Searches of one kind over a grid: a preset's settings on the grid's space; overrides: as on the command line."""

    def __init__(self, grid: Grid, overrides: list[str], slots: int = 2):
        self.grid, self.slots = grid, slots
        with initialize_config_dir(str(conf_dir())):
            given = [*overrides, *grid.fixed, "tracking=none", "hydra.sweep.dir=."]
            self.config = compose("config", overrides=given, return_hydra_config=True)
            self.context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(), hydras())
        self.config.hydra.sweeper.params, self.config.search.when = {}, []
        self.config.search.study, self.config.search.storage = "replay", "memory://"
        if not any(o.startswith("search.trials=") for o in overrides):
            self.config.search.trials = len(grid.curves)

    def play(
        self, seed: int, goals: Sequence[float] = (), least: int = 0, known: dict[Point, Any] | None = None
    ) -> tuple[Replay, Any]:
        """One search: its launcher, and its storage. It goes on until its trials are over, or it is told the highest of
        the goals, or all points that reach the lowest are pruned and `least` epochs begun."""
        storage = InMemoryStorage()
        here = mock.patch("segsweep.search.study.open_storage", return_value=storage)
        with tempfile.TemporaryDirectory() as folder, here:
            config = self.config.copy()
            config.search.seed, config.hydra.sweep.dir = seed, folder
            sweeper = SearchSweeper(**{k: v for k, v in config.hydra.sweeper.items() if k != "_target_"})
            sweeper.config, sweeper.hydra_context = config, self.context
            sweeper.launcher = Replay(self.grid, config, self.slots, known)
            if goals:
                sweeper.launcher.least, sweeper.launcher.enough = least, max(goals)
                sweeper.launcher.hopes = {p for p in self.grid.curves if self.grid.value(p) >= min(goals)}
            with suppress(Decided):
                sweeper.sweep([*self.grid.swept, *self.grid.fixed])
            return sweeper.launcher, storage


def spread(found: list[float]) -> dict[str, Any]:
    """Infinite where a search never came there. A quantile is one of the values, the higher of two."""
    shares = {"least": 0.0, "lower": 0.25, "median": 0.5, "upper": 0.75, "most": 1.0}
    values = {name: float(np.quantile(found, share, method="higher")) for name, share in shares.items()}
    listed = {name: value if math.isfinite(value) else None for name, value in values.items()}
    five = [value if math.isfinite(value) else None for value in found[:5]]
    return listed | {"first_five": five, "never": found.count(math.inf)}


def compare(grid: Grid, searches: dict[str, list[str]], seeds: int, slots: int) -> dict[str, Any]:
    """Of each kind of search, over the seeds: epochs until the best value of the grid, and until one NEAR it; and the
    highest value that it is told within a third of the grid's epochs."""
    rows: dict[str, Any] = {}
    goals = {"best": grid.best, "near": grid.best - NEAR}
    third = sum(map(len, grid.curves.values())) // 3
    for name, overrides in searches.items():
        player = Player(grid, overrides, slots)
        told = [player.play(seed, list(goals.values()), third)[0].told for seed in range(seeds)]
        rows[name] = {
            key: spread([next((epochs for epochs, value in one if value >= goal), math.inf) for one in told])
            for key, goal in goals.items()
        }
        within = [max((value for epochs, value in one if epochs <= third), default=0.0) for one in told]
        rows[name]["within_a_third"] = spread(within) | {"reached": sum(value >= grid.best for value in within)}
        print(name, rows[name], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of a finished grid")
    parser.add_argument("--seeds", type=int, default=100, help="searches of each kind")
    parser.add_argument("--slots", type=int, default=2, help="jobs at once")
    parser.add_argument("--name", default="search_worth", help="of the result")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the results")
    args = parser.parse_args()
    grid = Grid(args.sweep)
    dice = {point: grid.value(point) for point in grid.curves}
    best = max(dice, key=dice.__getitem__)
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "data": grid.facts["choices"]["data"]}
    result |= {"slots": args.slots, "seeds": args.seeds, "near": NEAR}
    result["grid"] = {
        "space": grid.swept,
        "points": len(dice),
        "epochs": sum(map(len, grid.curves.values())),
        "best": {"point": [f"{key}={value}" for key, value in best], "val/dice": dice[best]},
        "near": sum(value >= grid.best - NEAR for value in dice.values()),
        "trained_on": {key: grid.facts[key] for key in result["machine"].keys() & grid.facts.keys()},
    }
    result["searches"] = compare(grid, SEARCHES, args.seeds, args.slots)
    common.write(args.out, args.name, result)


if __name__ == "__main__":
    main()
