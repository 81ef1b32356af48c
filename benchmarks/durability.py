"""What it costs that a power cut loses at most the last epoch: flushes (fsync) an epoch and a job, and their time.

    python -m benchmarks.durability [--jobs 20] [--rounds 3] [--place FOLDER]

Sweeps of jobs with and without flushing take turns in one process; without, os.fsync does nothing. FOLDER lies on the
disk that is asked about; by default it is a temporary one.
"""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from benchmarks import common
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.core.checkpoints import Checkpoints
from segsweep.runs.run import run

JOB = ["data.patients=6", "data.slices=8", "data.image_size=32", "model.width=4", "model.depth=2", "scheduler=constant"]
EPOCHS = 4


class Flushes:
    """Stands in for os.fsync, which it counts and times. real: whether it does what it says.

    seconds: in which one at least was under way, of checkpoints ("epoch") and of the rest ("job"), as several are at
    once."""

    def __init__(self) -> None:
        self.fsync, self.save, self.real = os.fsync, Checkpoints.save, True
        self._lock, self._under_way, self._began = threading.Lock(), 0, 0.0
        self.begin()

    def begin(self) -> None:
        self.count, self.seconds, self._part = 0, {"epoch": 0.0, "job": 0.0}, "job"

    def __enter__(self) -> "Flushes":
        def saved(checkpoints: Checkpoints, *given: Any) -> None:
            self._part = "epoch"
            self.save(checkpoints, *given)
            self._part = "job"

        os.fsync, Checkpoints.save = self._flush, saved  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *_: Any) -> None:
        os.fsync, Checkpoints.save = self.fsync, self.save  # type: ignore[method-assign]

    def _flush(self, file: Any) -> None:
        with self._lock:
            if not self._under_way:
                self._began = time.perf_counter()
            self._under_way += 1
            self.count += 1
        if self.real:
            self.fsync(file)
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                self.seconds[self._part] += time.perf_counter() - self._began


def composed(cache: Path) -> DictConfig:
    start()
    with initialize_config_dir(str(conf_dir())):
        return compose("config", [*JOB, "tracking=none", f"paths.cache={cache}"], return_hydra_config=True)


def job(cfg: DictConfig, runs: Path, seed: int, epochs: int) -> None:
    choices = {group: option for group, option in cfg.hydra.runtime.choices.items() if "/" not in group}
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    with open_dict(own):
        own.paths.runs, own.seed, own.epochs = str(runs), seed, epochs
    done = run(own, choices=choices, name="job", command="", sweep=None, milestones=set())
    if done.status != "finished":
        raise SystemExit(done.error)


def main() -> None:
    parser = common.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--place", type=Path, help="folder on the disk that is asked about")
    args = parser.parse_args()
    flushes = Flushes()
    sides: dict[str, list[float]] = {"without": [], "with": []}
    spent: list[dict[str, float]] = []
    with flushes, tempfile.TemporaryDirectory(dir=args.place) as place:
        cfg = composed(Path(place) / "cache")
        counts = []
        for epochs in (1, 1, 1 + EPOCHS):  # the first makes the folders of all
            flushes.begin()
            job(cfg, Path(place) / "runs", seed=1000 + len(counts), epochs=epochs)
            counts.append(flushes.count)
        for number in range(args.rounds):
            for side, seconds in sides.items():
                flushes.begin()
                flushes.real = side == "with"
                began = time.perf_counter()
                for seed in range(args.jobs):
                    job(cfg, Path(place) / f"{side}{number}", seed, EPOCHS)
                seconds.append(time.perf_counter() - began)
            spent.append(flushes.seconds)
            print(" ".join(f"{side} {seconds[-1]:.2f} s" for side, seconds in sides.items()), flush=True)
    an_epoch = (counts[2] - counts[1]) / EPOCHS
    parts = {part: statistics.median(each[part] for each in spent) / args.jobs for part in ("epoch", "job")}
    common.write(
        args.out,
        "durability",
        {
            "machine": common.machine(torch.device("cpu")),
            "data": "phantom",
            "job": [*JOB, f"epochs={EPOCHS}"],
            "jobs": args.jobs,
            "flushes": {"an_epoch": an_epoch, "a_job_beside": counts[1] - an_epoch},
            "waits": {"an_epoch": parts["epoch"] / EPOCHS, "a_job_beside": parts["job"]},
            "seconds": {side: statistics.median(seconds) for side, seconds in sides.items()},
        }
        | common.ratio(sides["with"], sides["without"]),
    )


if __name__ == "__main__":
    main()
