"""What it costs that a power cut loses at most the last epoch: flushes (fsync) an epoch and a job, and their time.

    python -m benchmarks.durability [--jobs 20] [--rounds 3] [--place FOLDER]

Sweeps of jobs with and without flushing take turns in one process; without, os.fsync does nothing. FOLDER lies on the
disk that is asked about; by default it is a temporary one.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from benchmarks import common
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.runs.run import run

JOB = ["data.patients=6", "data.slices=8", "data.image_size=32", "model.width=4", "model.depth=2", "scheduler=constant"]
EPOCHS = 4


class Flushes:
    """Stands in for os.fsync, which it counts and times. real: whether it does what it says."""

    def __init__(self) -> None:
        self.fsync, self.real, self.count, self.seconds = os.fsync, True, 0, 0.0

    def __call__(self, file: Any) -> None:
        self.count += 1
        began = time.perf_counter()
        if self.real:
            self.fsync(file)
        self.seconds += time.perf_counter() - began


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
    os.fsync = flushes  # type: ignore[assignment]
    sides: dict[str, list[float]] = {"without": [], "with": []}
    spent: list[float] = []
    try:
        with tempfile.TemporaryDirectory(dir=args.place) as place:
            cfg = composed(Path(place) / "cache")
            counts = []
            for epochs in (1, 1, 1 + EPOCHS):  # the first makes the folders of all
                flushes.count = 0
                job(cfg, Path(place) / "runs", seed=1000 + len(counts), epochs=epochs)
                counts.append(flushes.count)
            for number in range(args.rounds):
                for side, seconds in sides.items():
                    flushes.real, flushes.seconds, flushes.count = side == "with", 0.0, 0
                    began = time.perf_counter()
                    for seed in range(args.jobs):
                        job(cfg, Path(place) / f"{side}{number}", seed, EPOCHS)
                    seconds.append(time.perf_counter() - began)
                spent.append(flushes.seconds)
                print(" ".join(f"{side} {seconds[-1]:.2f} s" for side, seconds in sides.items()), flush=True)
    finally:
        os.fsync = flushes.fsync
    an_epoch = (counts[2] - counts[1]) / EPOCHS
    one = statistics.median(spent) / flushes.count
    common.write(
        args.out,
        "durability",
        {
            "machine": common.machine(torch.device("cpu")),
            "data": "phantom",
            "job": [*JOB, f"epochs={EPOCHS}"],
            "jobs": args.jobs,
            "flushes": {"an_epoch": an_epoch, "a_job_beside": counts[1] - an_epoch, "seconds": one},
            "seconds": {side: statistics.median(seconds) for side, seconds in sides.items()},
            "flushing": statistics.median(spent),
        }
        | common.ratio(sides["with"], sides["without"]),
    )


if __name__ == "__main__":
    main()
