"""A trained run, ready for use: found by whatever names it, its network built from its own configuration.

Which weights count is a choice: `last` are those that the run's test describes, `best` those of the best
validation Dice.
"""

import atexit
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from segsweep import __version__
from segsweep.config import components
from segsweep.core import artifacts
from segsweep.core.environment import spare_dynamo
from segsweep.core.errors import SegsweepError, nearest
from segsweep.segmentation.metrics import METRICS
from segsweep.tracking import recall

REFERENCE = (
    "a run folder; a run's signature or its unique beginning; best:SWEEP (the run of a sweep with the highest "
    "validation Dice); an MLflow run id; a registered model, models:/NAME/VERSION"
)


@dataclass(frozen=True)
class Trained:
    """model: in evaluation mode on the CPU, (B, channels, H, W) float32 -> logits (B, 1, H, W). config: the run's own.

    size: pixels a side that images are brought to, None: as they are. info: run.json. weights: last or best."""

    folder: Path
    config: DictConfig
    info: dict[str, Any]
    weights: str
    epoch: int
    model: nn.Module
    channels: int
    size: int | None

    @property
    def signature(self) -> str:
        return str(self.info.get("signature") or self.folder.name)

    @property
    def precision(self) -> str:
        """What the run computed in, fp32 or bf16."""
        return str(self.info.get("precision") or "fp32")

    @property
    def parts(self) -> int:
        """In how many parts its batches went through the network in the end, for want of memory."""
        result = artifacts.read_json(self.folder / "result.json") or {}
        return int(result.get("micro_batches") or self.config.get("micro_batches", 1))

    def autocast(self, device: torch.device) -> "partial[torch.autocast]":
        return partial(torch.autocast, device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def part(self, patient: str) -> str:
        """Where the run had a patient: train, val, test, or new."""
        split = artifacts.read_json(self.folder / "split.json") or {}
        return next((part for part in ("train", "val", "test") if patient in (split.get(part) or {})), "new")


def load(folder: Path, weights: str = "last") -> Trained:
    """The run in `folder` with its `last` or `best` weights. Raises SegsweepError naming the file that will not do."""
    spare_dynamo()
    file = folder / f"{weights}.pt"
    info = artifacts.read_json(folder / "run.json")
    if not isinstance(info, dict):
        raise SegsweepError(f"{folder / 'run.json'}: missing or damaged; expected the record of a finished run")
    if not file.exists() and not _fetched(file):
        others = [name for name in ("last", "best") if (folder / f"{name}.pt").exists()]
        pruned = artifacts.read_json(folder / "pruned.json")
        ended = "is finished, and its weights are neither here nor in MLflow"
        if not (folder / "result.json").exists():
            ended = f"was pruned {pruned['reason']}; pruner=none takes it to its end" if pruned else "has not finished"
        hint = f"; there is --weights {others[0]}" if others else f": the run {ended}"
        raise SegsweepError(f"{file}: no such checkpoint{hint}")
    other = _version(info)
    try:
        config = recall.configuration(folder)
        channels, size = int(info["data"]["image_shape"][2]), config.data.get("image_size")
        model = components.build("model", config.model, in_channels=channels)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise SegsweepError(f"{folder / 'config.yaml'}: cannot be read: {error}") from error
    except SegsweepError:
        raise
    except Exception as error:  # a configuration of another version, or a component that is not installed here
        raise SegsweepError(f"{folder}: its network cannot be built: {error}{other}") from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SegsweepError(f"{file}: damaged, or not a checkpoint of segsweep: {reason}{other}") from error
    if not isinstance(state, dict) or not {"epoch", "model"} <= state.keys():
        raise SegsweepError(f"{file}: not a checkpoint of segsweep: expected the keys epoch and model{other}")
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SegsweepError(
            f"{file}: does not fit the network that its run describes: {' '.join(reasons[1:3] or reasons)[:400]}{other}"
        ) from error
    model.eval()
    return Trained(folder, config, info, weights, int(state["epoch"]), model, channels, size)


def _version(info: dict[str, Any]) -> str:
    """What to do where the record is of another version of the program."""
    made = info.get("versions") or {}
    commit = f" (commit {info['commit']})" if info.get("commit") else ""
    return (
        f"\nThe run was made by segsweep {made.get('segsweep', 'of unknown version')}{commit} with torch "
        f"{made.get('torch', '?')}; this is segsweep {__version__} with torch {torch.__version__}. "
        "Use the program of the run, or train it anew"
    )


def find(reference: str, root: Path) -> tuple[Path, str]:
    """The run folder that `reference` names (see REFERENCE), and one sentence on why it is this one.

    `root`: the folder that holds `runs/` and the sweeps. Raises SegsweepError."""
    if reference.startswith("best:"):
        return _best(reference.removeprefix("best:"), root)
    if reference.startswith("models:/"):
        return _registered(reference)
    place = Path(reference)
    if place.is_dir():
        job = artifacts.read_json(place / "job.json") or {}
        if job.get("run"):
            place = (place / job["run"]).resolve()
        if (place / "run.json").exists():
            return place, f"run {place.name}"
        if (place / "sweep.json").exists():
            raise SegsweepError(f"{reference}: a sweep, not a run; its best run is best:{reference}")
        raise SegsweepError(f"{reference}: no run.json in it; expected {REFERENCE}")
    runs = sorted(p for p in (root / "runs").glob("*") if p.is_dir()) if (root / "runs").is_dir() else []
    found = [p for p in runs if p.name.startswith(reference)]
    if len(found) == 1:
        return found[0], f"run {found[0].name}"
    if found:
        names = ", ".join(p.name for p in found[:5])
        raise SegsweepError(f"{reference}: {len(found)} runs begin so: {names}; give more of the signature")
    if len(reference) == 32 and all(c in "0123456789abcdef" for c in reference):
        return _mlflow_run(reference), f"MLflow run {reference}"
    close = nearest(reference, (p.name for p in runs))
    raise SegsweepError(f"{reference}: no such run under {root / 'runs'}{close}. Expected {REFERENCE}")


def _fetched(file: Path) -> bool:
    """Of a run that MLflow answered the weights come when they are needed."""
    try:
        return recall.fetch(file)
    except Exception as error:  # MLflow raises what its back end raises
        reason = str(error).splitlines()[0]
        raise SegsweepError(f"{file}: MLflow has it and does not give it now: {reason}") from error


def _best(name: str, root: Path) -> tuple[Path, str]:
    """The finished run of a sweep with the highest objective that was measured on validation."""
    folder = next((p for p in (Path(name), root / name) if (p / "sweep.json").exists()), None)
    if folder is None:
        sweeps = [p.parent.name for p in root.glob("*/sweep.json")]
        raise SegsweepError(f"best:{name}: no such sweep{nearest(name, sweeps)}; expected a folder with sweep.json")
    scored: dict[Path, float] = {}
    tested = 0
    for run in {job["folder"] for job in artifacts.jobs(folder) if job["folder"]}:
        result, info = (artifacts.read_json(run / file) or {} for file in ("result.json", "run.json"))
        if result.get("status") != "finished" or result.get("objective") is None:
            continue
        if info.get("evaluated_on") == "val":
            scored[run] = result["objective"]
        else:
            tested += 1
    if not scored:
        why = f"{tested} of them have only a test part" if tested else "none has finished"
        raise SegsweepError(
            f"best:{name}: no run of this sweep has a validation Dice ({why}). A run chosen by its test would have a "
            "test score that is too good: name the run itself, or sweep with split.val=0.2"
        )
    best = max(scored, key=lambda run: (scored[run], run.name))
    left = f"; {tested} without a validation part were not considered" if tested else ""
    value = f"{scored[best]:{METRICS['dice'].format}}"
    why = f"the highest validation Dice, {value} (of its best epoch: --weights best), of {len(scored)} finished runs"
    return best, f"run {best.name}: {why} of {folder}{left}"


def _mlflow_run(run_id: str) -> Path:
    """Its run folder where it still is, else what MLflow keeps of it."""
    from segsweep.tracking.recall import find_runs

    try:
        found = find_runs(run_id)
    except Exception as error:  # MLflow raises what its back end raises
        raise SegsweepError(f"{run_id}: MLflow has no such run: {str(error).splitlines()[0]}") from error
    if not found:
        raise SegsweepError(
            f"{run_id}: this MLflow run is no run of segsweep (a sweep's parent?); name one of its runs"
        )
    return found[0] if (found[0] / "run.json").exists() else _download(run_id)


def _registered(reference: str) -> tuple[Path, str]:
    from segsweep.tracking import registry

    folder, run_id = registry.origin(reference)
    there = folder is not None and (folder / "run.json").exists()
    place = folder if there and folder else _download(run_id)
    return place, f"registered model {reference}, run {place.name if there else run_id}"


def _download(run_id: str) -> Path:
    """A run folder made of the files that MLflow keeps of a run; it goes with this process."""
    from segsweep.tracking import registry

    place = tempfile.mkdtemp(prefix="segsweep-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = Path(place) / run_id
    registry.download(run_id, folder)
    for file in (folder / "weights").glob("*.pt"):
        file.rename(folder / file.name)
    if not (folder / "run.json").exists():
        raise SegsweepError(f"{run_id}: MLflow keeps no run.json of this run; expected a run that segsweep recorded")
    return folder
