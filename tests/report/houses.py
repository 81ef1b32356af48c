"""Records of a task that is no segmentation: prices of houses in thousands, by the root mean square error of each."""

import csv
import json
import math
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.report.record import Record, Run
from segsweep.task import Metric, Spec

RMSE = Metric(
    title="RMSE", direction="min", format=".1f", bounds=(0.0, math.inf), by_unit=True, meaning="in thousands of euros"
)
MAE = Metric(title="MAE", direction="min", format=".1f", bounds=(0.0, math.inf), by_unit=True, meaning="median of five")
LOSS = Metric(title="Loss", direction="min", format=",.0f", scale=("loss",))
FIT = Metric(title="R2", direction="max", format=".3f", bounds=(-math.inf, 1.0))
HOUSES = Spec(
    metrics={"loss": LOSS, "rmse": RMSE, "mae": MAE, "fit": FIT},
    select="val/rmse",
    unit="house",
    sample="room",
    repeats=("cv.part",),
)
ALONE = Spec(  # no house has a score of its own
    metrics={"loss": LOSS, "rmse": Metric(title="RMSE", direction="min", format=".1f", bounds=(0.0, math.inf))},
    select="val/rmse",
    unit="house",
    sample="house",
)
BASE = {"trees": 100, "lr": 0.1, "features": "all", "loss": "square", "epochs": 6, "seed": 0}


@dataclass
class House:
    """One run: its settings, the score of each unit (or of the run alone), and where it ended."""

    factors: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    spec: Spec = HOUSES
    status: str = "finished"
    start: float = 2.0  # what the first epoch has, as a multiple of the last
    ahead: float = 0.0  # share by which training is better than the evaluation in the last epoch
    part: str = "test"
    leaks: bool = False
    data: str = "d" * 16
    split: str = "s" * 16
    more: dict[str, Any] = field(default_factory=dict)  # of run.json
    overrides: list[str] = field(default_factory=list)  # of job.json

    @property
    def all(self) -> dict[str, Any]:
        return BASE | self.factors

    @property
    def score(self) -> float:
        return float(np.nanmean(list(self.scores.values())))


def errors(rng: np.random.Generator, shift: float = 0.0, noise: float = 8.0, level: np.ndarray | None = None):
    """Skewed errors in the hundreds of 24 houses: a house's own difficulty, the run's shift and an interaction."""
    level = levels(rng) if level is None else level
    values = np.maximum(level + shift + noise * rng.standard_t(5, len(level)), 1.0)
    return {f"h{i:02}": float(value) for i, value in enumerate(values)}


def levels(rng: np.random.Generator, houses: int = 24) -> np.ndarray:
    return 250 + 60 * rng.standard_normal(houses) + np.where(rng.random(houses) < 0.1, 250, 0)


def info(house: House) -> dict[str, Any]:
    factors = house.all
    same = {k: v for k, v in factors.items() if k not in ("seed", *house.spec.repeats)}
    command = " ".join(f"{k}={v}" for k, v in factors.items() if BASE.get(k) != v)
    return {
        "signature": _hash([factors, house.data, house.split, house.spec.unit, house.more.get("code")]),
        "group": _hash([same, house.data, house.more.get("code")]),
        "command": f"python -m segsweep task=prices {command}".strip(),
        "created": "2026-01-01T00:00:00",
        "factors": factors,
        "task": json.loads(json.dumps(house.spec.to_json(), allow_nan=False)),
        "data": {"name": "prices", "digest": house.data, "houses": 120, "rooms": 700},
        "split": {"kind": None, "digest": house.split, "leaks": house.leaks, "train": 500, "val": 100, "test": 100},
        "code": "c" * 16,
        "versions": {"segsweep": "0.1.0", "torch": "2.13.0"},
        "device": "cpu: synthetic",
        "evaluated_on": "val",
    } | house.more


def history(house: House) -> list[dict[str, float]]:
    epochs, sign = house.all["epochs"], house.spec.metrics[house.spec.primary].sign
    rows = []
    for epoch in range(1, epochs + 1):
        left = (house.start - 1) * math.exp(-2.5 * (epoch - 1)) if epochs > 1 else 0.0
        value = house.score - sign * abs(house.score) * left
        train = value + sign * abs(house.score) * house.ahead * epoch / epochs
        row: dict[str, float] = {"epoch": epoch, "seconds": 2.0}
        for part, score in (("train", train), ("val", value)):
            row |= {f"{part}/loss": score**2, f"{part}/{house.spec.primary}": score}
        rows.append(row)
    return rows


def result(house: House) -> dict[str, Any]:
    last = {key: value for key, value in history(house)[-1].items() if "/" in key}
    final = {f"{house.part}/{house.spec.primary}": house.score, f"{house.part}/loss": house.score**2}
    if "fit" in house.spec.metrics:
        final[f"{house.part}/fit"] = 1 - house.score / 1000
    about = {"status": "finished", "metrics": last | final, "training_seconds": 10.0 + house.all["trees"]}
    return about | {"total_seconds": 20.0, "parameters": house.all["trees"] * 10}


def write(root: Path, runs: list[House], name: str = "sweep", command: str = "") -> Path:
    """A sweep folder with its jobs, as the engine leaves it."""
    sweep = root / name
    for number, house in enumerate(runs):
        about = info(house)
        folder = root / "runs" / about["signature"]
        _json(folder / "run.json", about)
        lines = "".join(json.dumps(row) + "\n" for row in history(house))
        (folder / "history.jsonl").write_text(lines, encoding="utf-8")
        if house.status == "finished":
            _json(folder / "result.json", result(house))
            if house.spec.scores:
                with (folder / f"{house.spec.unit}s.csv").open("w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    writer.writerow([house.spec.unit, *house.spec.scores])
                    others = len(house.spec.scores) - 1
                    rows = [[u, v, *[0.8 * v] * others] for u, v in house.scores.items()]
                    writer.writerows([[u, *("" if v != v else v for v in values)] for u, *values in rows])
        else:
            _json(folder / "failure.json", {"status": "failed", "class": "error", "error": "no prices"})
        job = {"number": number, "run": f"../../runs/{about['signature']}", "status": house.status, "seconds": 12.5}
        _json(sweep / str(number) / "job.json", job | {"overrides": house.overrides, "varied": house.factors})
    _json(sweep / "sweep.json", {"name": name, "jobs": len(runs), "command": command})
    return sweep


def in_memory(runs: list[House]) -> Record:
    """The same without the disk."""
    made = []
    for house in runs:
        units = {u: {house.spec.primary: v} for u, v in house.scores.items()} if house.spec.scores else {}
        columns = {k: np.array([row[k] for row in history(house)]) for k in history(house)[0]}
        about = info(house)
        made.append(Run(Path(), about["signature"], house.status, about, result(house), history=columns, units=units))
    return Record(["simulated"], [], made, [])


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
