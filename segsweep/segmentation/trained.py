"""A trained run, ready for use: found by whatever names it, its network built from its own configuration.

Which weights count is a choice: `last` are those after the last epoch, `best` those of the best validation Dice, and
without a choice it is those that the run's test describes.
"""

import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from segsweep.core import artifacts, checkpoints
from segsweep.core.environment import spare_dynamo, versions
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import first_line
from segsweep.segmentation import networks
from segsweep.segmentation.data.labels import ONE, Labels, labels_of
from segsweep.segmentation.data.source import Size, patch_of
from segsweep.tracking import recall
from segsweep.tracking.store import NotVouchedError


@dataclass(frozen=True)
class Trained:
    """model: in evaluation mode on the CPU, (B, channels, H, W) float32 -> logits (B, C, H, W) of the classes of
    `labels`, (B, 1, H, W) of one structure. config: the run's own.

    size: that images are brought to, see `data.source.Size`. room: height and width to which they are padded at least.
    patch: those of the crops that it was trained on.
    info: run.json. weights: last or best."""

    folder: Path
    config: DictConfig
    info: dict[str, Any]
    weights: str
    epoch: int
    model: nn.Module
    channels: int
    size: Size
    labels: Labels = ONE
    room: tuple[int, int] | None = None
    patch: tuple[int, int] | None = None

    @property
    def signature(self) -> str:
        return str(self.info.get("signature") or self.folder.name)

    @property
    def precision(self) -> str:
        """What the run computed in, fp32 or bf16."""
        return str(self.info.get("precision") or "fp32")

    @property
    def millimetres(self) -> bool:
        """Whether the run knew the spacing of all its volumes."""
        return (self.info.get("data") or {}).get("unit") == "mm"

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


def _tested(folder: Path) -> str:
    """The weights that a run's test describes; of a run with an average of them, its last ones are that average."""
    try:
        return "best" if recall.configuration(folder).get("test_weights") == "best" else "last"
    except (OSError, YAMLError, OmegaConfBaseException, SegsweepError):  # which whoever builds the network tells
        return "last"


def _refuse_other(folder: Path) -> None:
    """Raise SegsweepError where a run is of another task than this one."""
    try:
        config = recall.configuration(folder)
    except (OSError, YAMLError, OmegaConfBaseException, SegsweepError):  # as above
        return
    if not {"model", "data"} <= set(map(str, config)):
        raise SegsweepError(
            f"{folder}: a run of the task {OmegaConf.select(config, 'task._target_')}, of which only its own code can "
            "load a network; runs of task=segmentation have one that predicts"
        )


def load(folder: Path, weights: str | None = None) -> Trained:
    """The run in `folder` with its `last` or `best` weights; None: those that were tested. Raises SegsweepError
    naming the file that will not do."""
    spare_dynamo()
    weights = weights or _tested(folder)
    file = folder / f"{weights}.pt"
    _refuse_other(folder)
    info = artifacts.read_json(folder / "run.json")
    if not isinstance(info, dict):
        raise SegsweepError(f"{folder / 'run.json'}: missing or damaged; expected the record of a finished run")
    if not file.exists() and not _fetched(file):
        others = [name for name in ("last", "best") if (folder / f"{name}.pt").exists()]
        pruned = artifacts.read_json(folder / "pruned.json")
        ended = "is finished, and its weights are neither here nor in MLflow"
        if not artifacts.result(folder):
            ended = f"was pruned {pruned['reason']}; pruner=none takes it to its end" if pruned else "has not finished"
        hint = f"; there is --weights {others[0]}" if others else f": the run {ended}"
        raise SegsweepError(f"{file}: no such checkpoint{hint}")
    other = _version(info)
    try:
        config = recall.configuration(folder)
        height, width, channels = (int(side) for side in info["data"]["image_shape"])
        size = config.data.get("image_size")
        size = size if size is None or isinstance(size, int) else list(size)
        patch = patch_of(config.data.get("patch"), (height, width))
        room = (height, width) if info["data"].get("padded") or patch else None
        labels = labels_of(OmegaConf.to_container(config.data, resolve=True))
        model = networks.network(config.model, channels, labels.outputs, patch or (height, width))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise SegsweepError(f"{folder / 'config.yaml'}: cannot be read: {error}") from error
    except SegsweepError:
        raise
    except Exception as error:  # a configuration of another version, or a component that is not installed here
        raise SegsweepError(f"{folder}: its network cannot be built: {error}{other}") from error
    try:
        checkpoints.check(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        mend = "The run's own command (in run.json) mends the weights of a finished run"
        raise SegsweepError(f"{file}: damaged, or not a checkpoint of segsweep: {reason}. {mend}{other}") from error
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
    return Trained(folder, config, info, weights, int(state["epoch"]), model, channels, size, labels, room, patch)


def _version(info: dict[str, Any]) -> str:
    """What to do where the record is of another version of the program."""
    made = artifacts.made_by(info)
    commit = f" (commit {info['commit']})" if info.get("commit") else ""
    return (
        f"\nThe run was made by segsweep {made.get('segsweep', 'of unknown version')}{commit} with torch "
        f"{made.get('torch', '?')}; this is segsweep {versions().get('segsweep')} with torch {torch.__version__}. "
        "Use the program of the run, or train it anew"
    )


def _fetched(file: Path) -> bool:
    """Of a run that MLflow answered the weights come when they are needed."""
    try:
        return recall.fetch(file)
    except NotVouchedError as error:
        raise SegsweepError(f"{file}: is in MLflow alone, which is not asked: {error}") from error
    except Exception as error:  # MLflow raises what its back end raises
        reason = first_line(error)
        raise SegsweepError(f"{file}: MLflow has it and does not give it now: {reason}") from error
