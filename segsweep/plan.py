"""What is known of a job before it runs: its identity, how much of it is on disk, and what the rest should cost.

Costs are predicted from records of runs that are alike, whatever number of threads they had; where there is none, jobs
are ordered by their slices.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segsweep import artifacts, components
from segsweep.artifacts import Checkpoints
from segsweep.errors import SegsweepError
from segsweep.signature import IGNORED, code, signatures, without

RECORDS = 500
"""Most records that are read for their times, the newest first."""
SECONDS_A_SLICE = 0.005
"""Where nothing has been measured. Only the order of jobs hangs on it."""


@dataclass
class Point:
    """One job of a plan. `state`: finished, pruned (as it was asked now), failed, continue or new; `epoch`: complete
    epochs on disk, of `epochs`; `pruned`: the epoch at which one ended it; `pruner`: whether one may end it."""

    signature: str
    trajectory: str
    folder: Path
    state: str
    epoch: int
    epochs: int
    alike: tuple[Any, ...]
    network: str
    train: int
    held_out: int
    note: str = ""
    pruned: int | None = None
    pruner: bool = False

    @property
    def answered(self) -> bool:
        """Whether the record answers, so that nothing is trained."""
        return self.state in ("finished", "pruned")


@dataclass
class Measured:
    """Seconds to train on and to evaluate one slice, seconds a run beside those, peak bytes."""

    train: float
    held_out: float
    beside: float
    memory: int


class Planner:
    """Reads every data set, network and record once. `runs`: `paths.runs`."""

    def __init__(self, runs: Path):
        self.runs = runs
        self._data: dict[str, Any] = {}
        self._builders: dict[str, Callable[[], tuple[int, float]]] = {}
        self._networks: dict[str, tuple[int, float]] = {}
        self._measured: dict[tuple[Any, ...], Measured] | None = None

    def point(self, cfg: DictConfig, choices: dict[str, Any]) -> Point:
        """Of a composed configuration; raises SegsweepError where its data or its split is not usable."""
        from segsweep.device import pick_device, pick_precision
        from segsweep.environment import device_name

        manifest, (height, width, channels) = self._look(cfg)
        split = components.build("split", cfg.split)(manifest.patients)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        device = pick_device(cfg.device)
        precision = config["precision"] = pick_precision(cfg.precision, device)
        own = code(*components.modules(without(config, IGNORED)))
        ids = signatures(config, manifest.digest, split.digest, own)
        folder = self.runs / "runs" / ids["signature"]
        there = [e for e in Checkpoints(self.runs / "trajectories" / ids["trajectory"]).epochs() if e <= cfg.epochs]
        finished = cfg.reuse and (folder / "result.json").exists()
        failed = (folder / "failure.json").exists()
        state = "failed" if failed else "continue" if there and cfg.reuse else "new"
        pruned = artifacts.read_json(folder / "pruned.json") if cfg.reuse else None
        pruner = bool(OmegaConf.select(cfg, "pruner._target_"))
        if pruned and pruner:
            from segsweep.metrics import SPEC
            from segsweep.pruning import same

            state = "pruned" if same(pruned, cfg, SPEC) else state
        state = "finished" if finished else state
        network = str((config["model"], channels, height, width))
        self._builders[network] = partial(_measure, cfg.model, channels, height, width)
        size = height, width, channels
        return Point(
            signature=ids["signature"],
            trajectory=ids["trajectory"],
            folder=folder,
            state=state,
            epoch=cfg.epochs if finished else max(there, default=0) if cfg.reuse else 0,
            epochs=cfg.epochs,
            alike=_alike(choices, config["model"], size, cfg.batch_size, precision, device_name(device)),
            network=network,
            train=len(split.train),
            held_out=len(split.val) or len(split.test),
            pruned=pruned["epoch"] if pruned else None,
            pruner=pruner,
        )

    def _look(self, cfg: DictConfig) -> tuple[Any, tuple[int, int, int]]:
        """The manifest, and the shape of an image: of the first patient, decoded."""
        key = str(OmegaConf.to_container(cfg.data, resolve=True))
        if key not in self._data:
            dataset = components.build("data", cfg.data)
            manifest = dataset.scan(Path(cfg.paths.cache))
            images, _ = dataset.decode(manifest, next(iter(manifest.patients)))
            self._data[key] = manifest, images.shape[1:]
        return self._data[key]

    def network(self, point: Point) -> tuple[int, float]:
        """Parameters, and GFLOP of one image forward."""
        if point.network not in self._networks:
            self._networks[point.network] = self._builders[point.network]()
        return self._networks[point.network]

    def epoch_gflops(self, point: Point) -> float:
        """Training (a backward pass costs two forward ones) and evaluation of one epoch."""
        return self.network(point)[1] * (3 * point.train + point.held_out)

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
        return left * point.train * (statistics.median(rates) if rates else SECONDS_A_SLICE)


def _measure(model: DictConfig, channels: int, height: int, width: int) -> tuple[int, float]:
    from segsweep.evaluate import flops

    network = components.build("model", model, in_channels=channels)
    return sum(p.numel() for p in network.parameters() if p.requires_grad), flops(network, channels, height, width)


def _alike(choices: dict[str, Any], model: dict[str, Any], *others: Any) -> tuple[Any, ...]:
    """Jobs of the same key take about the same time a slice: `others` are image shape, batch, precision and device."""
    arguments = sorted((k, str(v)) for k, v in model.items() if not k.startswith("_"))
    shape, batch, precision, device = others
    device = device.split(",")[0]  # less the number of threads, which the launcher decides
    return choices.get("model"), *arguments, choices.get("augment"), tuple(shape), batch, precision, device


def _read(runs: Path) -> dict[tuple[Any, ...], Measured]:
    """The times of the newest finished runs, by what makes them alike."""
    folders = sorted((f.parent for f in runs.glob("runs/*/result.json")), key=lambda f: f.stat().st_mtime)[-RECORDS:]
    found: dict[tuple[Any, ...], list[Measured]] = {}
    for folder in folders:
        run, result = (artifacts.read_json(folder / name) or {} for name in ("run.json", "result.json"))
        try:
            factors, split, epochs = run["factors"], run["split"], result["epochs"]
            model = {k.removeprefix("model."): v for k, v in factors.items() if k.startswith("model.")}
            others = run["data"]["image_shape"], factors["batch_size"], run["precision"], run["device"]
            key = _alike(run["choices"], model, *others)
            beside = result["total_seconds"] - result["training_seconds"] - result["evaluation_seconds"]
            times = Measured(
                train=result["training_seconds"] / epochs / split["train"],
                held_out=result["evaluation_seconds"] / epochs / (split["val"] or split["test"]),
                beside=max(beside, 0.0),
                memory=result["peak_memory_bytes"],
            )
        except (KeyError, TypeError, ZeroDivisionError):
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
            rows.append((str(number), name, str(points[number - 1]).splitlines()[0], *[""] * 5))
            continue
        state = {"continue": "to continue", "failed": "failed, again"}.get(point.state, point.state)
        over = point.answered or point.state == "duplicate"
        time = None if over else planner.seconds(point, left)
        seconds += time or 0
        unknown += not over and time is None
        memory = (measured := planner.measured(point)) and f"{measured.memory / 2**20:,.0f} MiB"
        rows.append(
            (str(number), name, f"{state} {point.note}".strip(), str(left), f"{planner.network(point)[0]:,}")
            + (f"{planner.epoch_gflops(point):,.4g}", "" if over else clock(time), memory or "not measured")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    aligned = [str.rjust, str.ljust, str.ljust] + [str.rjust] * 5
    lines = ["  ".join(a(c, w) for a, c, w in zip(aligned, row, widths, strict=True)).rstrip() for row in rows]
    work = sum(planner.epoch_gflops(p) * n for p, n in zip(known, todo, strict=True) if p)
    states = [p.state if p else "not possible" for p in known]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    expected = f"about {clock(seconds)} one after another" if seconds or not unknown else "time not measured yet"
    more = f"; {unknown} of the jobs are like none that was measured" if unknown and seconds else ""
    most = "at most " if any(p.pruner for p, n in zip(known, todo, strict=True) if p and n) else ""
    lines += ["", f"{len(points)} jobs: {counts}"]
    lines += [f"{most}{sum(todo)} epochs, {work / 1000:,.4g} TFLOP, {expected}{more}"]
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
