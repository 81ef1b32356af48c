"""Synthetic records, written exactly as the training code writes them, so that the report can be tested without
training anything.
"""

import csv
import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.report.record import Record, Run

BASE: dict[str, Any] = {
    "model": "unet",
    "model.width": 16,
    "loss": "bce",
    "optim": "sgd",
    "optim.lr": 0.001,
    "optim.momentum": 0.9,
    "scheduler": "constant",
    "data": "phantom",
    "data.image_size": 64,
    "split": "patient",
    "split.test": 0.2,
    "augment": "none",
    "epochs": 5,
    "batch_size": 16,
    "seed": 0,
}
NESTED = {
    "optim": {"sgd": {"optim.momentum": 0.9}, "adam": {"optim.betas": [0.9, 0.999]}},
    "model": {"r2unet": {"model.t": 2}},
}
COST = {"unet": (1_942_289, 6.1), "r2unet": (1_332_817, 6.5)}
PATIENTS = [f"patient_{i:02}" for i in range(20)]


def factors(**changes: Any) -> dict[str, Any]:
    """BASE with changes (`optim_lr=` for `optim.lr`), and the keys that come with the chosen options."""
    found = dict(BASE)
    changes = {
        key.replace("_", ".", 1) if key.split("_")[0] in ("model", "optim", "data", "split") else key: v
        for key, v in changes.items()
    }
    for group, options in NESTED.items():
        for option, keys in options.items():
            for key in keys:
                found.pop(key, None)
            if changes.get(group, BASE[group]) == option:
                found |= keys
    return found | changes


@dataclass
class Spec:
    """One run to write: its factors, the Dice of each test patient (NaN = undefined), and how it ended."""

    factors: dict[str, Any] = field(default_factory=factors)
    dice: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PATIENTS, 0.8))
    status: str = "finished"  # finished, reused, pruned, failed, interrupted
    error: str = "CUDA out of memory: asked for 2.0 GiB"
    kind: str = "oom"
    experiment: str | None = None
    seconds: float = 30.0
    data: str = "d" * 16  # digest of the data
    split: str = ""  # digest of the split; "" = worked out from the patients
    code: str = "c" * 16  # the program's fingerprint
    overlays: bool = True
    lag: float = 1.5  # epochs: how slowly the Dice rises
    overfits: float = 0.0  # Dice that training gains over the evaluation, in the end


def simulate(
    rng: np.random.Generator, shift: float = 0.0, noise: float = 0.3, difficulty: np.ndarray | None = None
) -> dict[str, float]:
    """Skewed Dice of PATIENTS: logistic of a patient's difficulty, the run's shift and a heavy-tailed interaction."""
    z = difficulties(rng) if difficulty is None else difficulty
    dice = 1 / (1 + np.exp(-(z + shift + noise * rng.standard_t(5, len(z)))))
    return {f"patient_{i:02}": float(d) for i, d in enumerate(dice)}


def difficulties(rng: np.random.Generator, patients: int = len(PATIENTS)) -> np.ndarray:
    """As published for LGG: a median near 0.88, a mean near 0.84, and now and then a patient who is nearly lost."""
    return 2.0 + 0.9 * rng.standard_normal(patients) - np.where(rng.random(patients) < 0.08, 1.8, 0)


def write_sweep(root: Path, name: str, specs: list[Spec], expected: int | None = None) -> Path:
    """A sweep folder with its jobs, and the run folders beside it; returns the sweep folder. A spec's status `missing`
    writes no run folder.
    """
    sweep = root / name
    for number, spec in enumerate(specs):
        signature = _hash([spec.factors, spec.data, spec.split])
        folder = root / "runs" / signature
        if spec.status != "missing":
            write_run(folder, spec, signature)
        failed = spec.status == "failed"
        _write_json(
            sweep / str(number) / "job.json",
            {
                "number": number,
                "overrides": [f"{k}={v}" for k, v in spec.factors.items()],
                "signature": signature,
                "run": f"../../runs/{signature}",
                "status": "finished" if spec.status == "missing" else spec.status,
                "seconds": spec.seconds,
                "objective": _mean(spec),
                "error": spec.error if failed else None,
                "class": spec.kind if failed else None,
                "varied": {k: v for k, v in spec.factors.items() if BASE.get(k) != v},
            },
        )
    head = {
        "name": name,
        "command": "python -m segsweep -m ...",
        "overrides": [],
        "started": "2026-01-01T00:00:00",
        "finished": None,
    }
    _write_json(sweep / "sweep.json", head | {"jobs": len(specs) if expected is None else expected, "mlflow": None})
    return sweep


def in_memory(specs: list[Spec]) -> Record:
    """The same runs as the report would read them, without the disk: for simulations of many sweeps."""
    runs = []
    for spec in specs:
        f, part = spec.factors, _hash([spec.factors["split"], list(spec.dice)])
        info = {
            "factors": f,
            "group": _group(spec),
            "command": _command(spec),
            "choices": {"experiment": spec.experiment},
        }
        info |= {"code": spec.code, "versions": {"torch": "2.13.0"}}
        info |= {
            "data": {"name": f["data"], "digest": spec.data},
            "split": {"digest": spec.split or part, "leaks": f["split"] == "slice"},
        }
        patients = {p: {"dice": d, "iou": d / (2 - d), "hd95": 30 * (1 - d)} for p, d in spec.dice.items()}
        metrics = {"metrics": {"test/dice": _mean(spec)}}
        runs.append(Run(Path(), _hash([f, spec.data, spec.split]), spec.status, info, metrics, units=patients))
    return Record(["simulated"], [], runs, [])


def write_run(folder: Path, spec: Spec, signature: str) -> None:
    """One run folder."""
    f, patients = spec.factors, list(spec.dice)
    parameters, gflops = COST[f["model"]]
    kind = f["split"]
    split_digest = spec.split or _hash([kind, patients])
    run = {
        "signature": signature,
        "group": _group(spec),
        "trajectory": signature,
        "code": spec.code,
        "name": f"{f['model']}-{f['optim']}",
        "command": _command(spec),
        "created": "2026-01-01T00:00:00",
        "factors": f,
        "choices": {"model": f["model"], "optim": f["optim"], "experiment": spec.experiment},
        "data": {"name": f["data"], "digest": spec.data, "patients": 100, "slices": 2000, "image_shape": [3, 64, 64]},
        "split": {"kind": kind, "digest": split_digest, "leaks": kind == "slice", "train": 1600, "val": 0, "test": 400},
        "parameters": parameters,
        "gflops": gflops,
        "device": "cpu: synthetic",
        "precision": "bf16",
        "versions": {"segsweep": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "commit": "0123abcd",
        "evaluated_on": "test",
    }
    _write_json(folder / "run.json", run)
    slices = {p: [f"{p}_{i}" for i in range(1, 4)] for p in patients}
    _write_json(
        folder / "split.json",
        {"kind": kind, "train": {"other": ["other_1"]}, "val": {}, "test": slices, "leaks": kind == "slice"},
    )
    history = _history(spec)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")
    if spec.status == "failed":
        _write_json(
            folder / "failure.json",
            {"status": "failed", "class": spec.kind, "error": spec.error, "traceback": "...", "epoch": 2},
        )
        return
    if spec.status == "interrupted":
        return
    metrics = {key: value for key, value in history[-1].items() if "/" in key}
    if spec.status == "pruned":
        record = {"status": "pruned", "epoch": len(history), "epochs": spec.factors["epochs"], "metrics": metrics}
        record |= {"reason": "after epoch 2 of 5 by halving: val/dice 0.1000; 3 of 4 like it were better there"}
        _write_json(folder / "pruned.json", record | {"parameters": parameters, "training_seconds": 0.9 * spec.seconds})
        return
    rows = [_patient(p, dice) for p, dice in spec.dice.items()]
    with (folder / "patients.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    defined = [row for row in rows if row["dice"] != ""]
    metrics |= {
        f"test/{k}": float(np.mean([row[k] for row in defined])) for k in ("dice", "iou", "precision", "recall", "hd95")
    }
    metrics |= {"test/missed": sum(row["missed"] for row in rows), "test/undefined": len(rows) - len(defined)}
    if spec.overlays:
        _write_overlays(folder / "overlays.npz", spec)
    result = {
        "status": "finished",
        "epochs": len(history),
        "metrics": metrics,
        "training_seconds": 0.9 * spec.seconds,
    }
    result |= {
        "evaluation_seconds": 0.1 * spec.seconds,
        "total_seconds": spec.seconds,
        "images_per_second": 1600 * len(history) / spec.seconds,
    }
    result |= {
        "peak_memory_bytes": 123_456_789,
        "parameters": parameters,
        "gflops": gflops,
        "objective": metrics["test/dice"],
    }
    _write_json(folder / "result.json", result)


def _group(spec: Spec) -> str:
    return _hash(
        [{k: v for k, v in spec.factors.items() if k not in ("seed", "split.fold")}, spec.data, spec.experiment]
    )


def _command(spec: Spec) -> str:
    nested = {key for options in NESTED.values() for keys in options.values() for key in keys}
    overrides = [f"{k}={v}" for k, v in spec.factors.items() if BASE.get(k) != v and k not in nested]
    return " ".join(["python -m segsweep", *([f"experiment={spec.experiment}"] if spec.experiment else []), *overrides])


def _mean(spec: Spec) -> float:
    values = np.array(list(spec.dice.values()))
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _history(spec: Spec) -> list[dict[str, float]]:
    epochs = np.arange(1, spec.factors["epochs"] + 1)
    rise = (1 - np.exp(-epochs / spec.lag)) / (1 - np.exp(-epochs[-1] / spec.lag))
    mean, lines = _mean(spec), []
    for epoch, part in zip(epochs.tolist(), rise.tolist(), strict=True):
        line: dict[str, float] = {
            "epoch": epoch,
            "lr": spec.factors["optim.lr"],
            "seconds": 0.9 * spec.seconds / len(epochs),
            "eval_seconds": 0.5,
        }
        line["images_per_second"] = 1600 * len(epochs) / spec.seconds
        for name, dice in (
            ("train", min((mean + spec.overfits * epoch / epochs[-1]) * part, 1.0)),
            ("test", mean * part),
        ):
            values = {
                "loss": 0.7 * (1 - dice) + 0.01,
                "accuracy": 0.97 + 0.025 * dice,
                "dice": dice,
                "iou": dice / (2 - dice),
            }
            line |= {f"{name}/{key}": value for key, value in (values | {"precision": dice, "recall": dice}).items()}
        lines.append(line)
    return lines[:2] if spec.status in ("failed", "pruned", "interrupted") else lines


def _patient(patient: str, dice: float) -> dict[str, Any]:
    truth = 0 if np.isnan(dice) else 1000
    tp = round(truth * np.nan_to_num(dice))
    wrong = truth - tp
    row: dict[str, Any] = {
        "patient": patient,
        "slices": 20,
        "truth_pixels": truth,
        "predicted_pixels": truth,
        "tp": tp,
        "fp": wrong,
        "fn": wrong,
    }
    row |= {"tn": 20 * 64 * 64 - tp - 2 * wrong}
    if np.isnan(dice):
        return row | {"dice": "", "iou": "", "precision": "", "recall": "", "accuracy": 1.0, "hd95": "", "missed": 0}
    accuracy = (row["tp"] + row["tn"]) / (20 * 64 * 64)
    scores = {
        "dice": dice,
        "iou": dice / (2 - dice),
        "precision": dice,
        "recall": dice,
        "accuracy": accuracy,
        "hd95": 30 * (1 - dice),
    }
    return row | scores | {"missed": int(dice == 0)}


def _write_overlays(path: Path, spec: Spec) -> None:
    y, x = np.mgrid[:64, :64]
    image = np.repeat(np.clip(220 - 5 * np.hypot(x - 32, y - 32), 0, 255).astype(np.uint8)[None, ..., None], 3, -1)
    truth = np.hypot(x - 38, y - 28) < 9
    many = len(spec.dice)
    prediction = np.stack([np.hypot(x - 38 - 9 * (1 - np.nan_to_num(d)), y - 28) < 9 for d in spec.dice.values()])
    np.savez_compressed(
        path,
        patient=np.array(list(spec.dice)),
        slice=np.array([f"{p}_2" for p in spec.dice]),
        image=np.repeat(image, many, 0),
        truth=np.repeat(truth[None], many, 0),
        prediction=prediction,
    )


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
