"""The task of segmentation: image and mask files to a trained network and a table of its test patients."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from segsweep.core import artifacts
from segsweep.core.device import autocast, compile_seconds, compiled, pick_device, pick_precision
from segsweep.core.errors import DataError
from segsweep.core.session import session
from segsweep.segmentation import classes, figures, groups, networks, schedules, scores
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.labels import labels_of
from segsweep.segmentation.data.source import Manifest, patch_of
from segsweep.segmentation.data.split import Split
from segsweep.segmentation.evaluate import Evaluation, evaluate, flops, patient_table
from segsweep.segmentation.losses import Counted, DeeplySupervised
from segsweep.segmentation.metrics import CONFUSION, METRICS, SPEC, spec_for, spec_of, summarise
from segsweep.segmentation.train import averaging, fit, sizes
from segsweep.segmentation.windows import starts
from segsweep.task import Data, Range, Result, Run, Spec

_gflops: dict[str, float] = {}
"""A cache: of the networks that this process has trained, by their configuration and image size."""


class Segmentation:
    """One network on one data set. The groups are the nodes of conf/ with a `_target_`, the values those of its keys;
    cache: the folder of decoded data sets."""

    spec = SPEC

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        loss: Mapping[str, Any],
        optim: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        data: Mapping[str, Any],
        split: Mapping[str, Any],
        augment: Mapping[str, Any],
        batch_size: Annotated[int, Range(least=1)],
        eval_batch_size: Annotated[int, Range(least=1)],
        micro_batches: Annotated[int, Range(least=1)],
        deep_supervision: list[float] | None,
        ema: Annotated[float | None, Range(above=0)],
        early_stopping: Annotated[int | None, Range(least=1)],
        test_weights: Annotated[str, Range(choices=("last", "best", "ema"))],
        metrics: list[Any],
        clip_norm: Annotated[float | None, Range(above=0, most=1e30)],
        precision: Annotated[str, Range(choices=("auto", "fp32", "bf16"))],
        device: str,
        compile: bool,
        workers: Annotated[int, Range(least=0)],
        cache: str,
    ):
        self.groups = {"model": model, "loss": loss, "optim": optim, "scheduler": scheduler}
        self.groups |= {"data": data, "split": split, "augment": augment}
        self.labels = labels_of(data)
        self.scores = scores.chosen(metrics, tuple(METRICS))
        self.spec = spec_of(self.labels, self.scores)
        self.batch_size, self.eval_batch_size, self.micro_batches = batch_size, eval_batch_size, micro_batches
        self.deep_supervision = deep_supervision
        self.ema, self.early_stopping, self.test_weights = ema, early_stopping, test_weights
        self.clip_norm, self.compile, self.workers, self.cache = clip_norm, compile, workers, Path(cache)
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)

    @classmethod
    def spec_for(cls, given: Mapping[str, Any]) -> Spec:
        return spec_for(given)

    @classmethod
    def problems(cls, given: Mapping[str, Any]) -> list[str]:
        return groups.problems(given)

    def _build(self, group: str, **given: Any) -> Any:
        return groups.build(group, self.groups[group], **given)

    @cached_property
    def dataset(self) -> Any:
        made = self._build("data")
        if (own := labels_of(made)) != self.labels:
            raise DataError(
                f"data: {type(made).__name__} has classes of its own, {own.told}, which are not those of "
                "data.classes; let `classes` be an argument, which the YAML of the data set gives"
            )
        return made

    def patch(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Height and width of the crops of images of a height and a width. Raises DataError where they are larger."""
        return patch_of(getattr(self.dataset, "patch", None), shape)

    @cached_property
    def manifest(self) -> Manifest:
        return self.dataset.scan(self.cache)

    @cached_property
    def split(self) -> Split:
        return self._build("split")(self.manifest.patients)

    def data(self) -> Data:
        """Scans and divides; decodes no image. The device does not belong to the identity, the arithmetic does. Raises
        DataError where a setting goes by the validation part and there is none."""
        patients = self.manifest.patients
        parts = {part: len(getattr(self.split, part)) for part in ("train", "val", "test")}
        chosen = {"early_stopping": self.early_stopping, "test_weights": self.test_weights}
        if (wanting := groups.by_validation(self.groups | chosen)) and not parts["val"]:
            raise DataError(groups.needs_validation(wanting[0]))
        return Data(
            digest=self.manifest.digest,
            split=self.split.digest,
            parts=parts,
            leaks=self.split.leaks,
            settings={"precision": self.precision},
            choices={"loss": groups.loss_of(self.labels)},
            facts={"patients": len(patients), "slices": sum(map(len, patients.values())), "image_shape": None},
        )

    def size(self) -> dict[str, Any]:
        """Of the network for an image of the first patient, which is decoded for it."""
        images, _ = self.dataset.decode(self.manifest, next(iter(self.manifest.patients)))
        size = self.patch(images.shape[1:3]) or images.shape[1:3]
        model = networks.network(self.groups["model"], images.shape[3], self.labels.outputs, size)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {"parameters": parameters, "gflops": self.cost(model, images.shape[1:], "meta")}

    def cost(self, model: torch.nn.Module, shape: Sequence[int], device: torch.device | str) -> float:
        """GFLOP of an image of a height, a width and channels, in its windows where there is a patch."""
        patch = self.patch(shape) or (shape[0], shape[1])
        windows = len(starts(shape[0], patch[0])) * len(starts(shape[1], patch[1]))
        return windows * flops(model, shape[2], *patch, device, self.labels.outputs)

    def train(self, run: Run) -> Result:
        """split.json, pictures, the overlays' arrays and the confusion of classes are files of the run."""
        artifacts.write_json(run.folder / "split.json", self.split.to_json())
        volumes = cache.load(self.dataset, self.manifest, self.cache, self.workers or os.cpu_count() or 1)
        patch = self.patch(volumes.images.shape[1:3])
        batches = partial(Batches, volumes, device=self.device, patch=patch)
        split, part = self.split, self.data().part
        known = self._told(volumes, patch)
        train = batches(split.train, batch_size=self.batch_size, augment=self._build("augment"), shuffle=True)
        test = batches(split.test, batch_size=self.eval_batch_size)
        held_out = batches(split.val, batch_size=self.eval_batch_size) if part == "val" else test
        train.resident()  # a set that goes to the GPU goes there before the first epoch's time begins
        shape = [*volumes.images.shape[1:]]

        torch.manual_seed(run.seed)
        outputs = self.labels.outputs
        model = networks.network(self.groups["model"], shape[2], outputs, patch or (shape[0], shape[1]))
        networks.check_outputs(model, shape[2], self.deep_supervision)
        model = model.to(self.device, memory_format=torch.channels_last)
        node = classes.with_weights(self.groups["loss"], volumes, split)
        known |= {"loss_weights": node["weights"]} if node.get("weights") else {}
        loss = groups.build("loss", node).to(self.device)
        loss = Counted(loss) if volumes.void else loss
        loss = DeeplySupervised(loss, self.deep_supervision) if self.deep_supervision else loss
        optimizer = self._build("optim")(model.parameters())
        scheduler = schedules.schedule(self.groups["scheduler"], optimizer, len(train))
        average = None
        if self.ema is not None:  # of BatchNorm's running statistics, too, so that they are those of averaged weights
            average = AveragedModel(model, multi_avg_fn=averaging(self.ema), use_buffers=True)
        network = f"{self.groups['model']} {shape} by {patch} to {outputs}"
        _gflops[network] = _gflops.get(network) or self.cost(model, shape, self.device)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        run.describe(parameters=parameters, gflops=_gflops[network], data={"image_shape": shape} | known)
        if "monai" in f"{self.groups['model']['_target_']} {self.groups['loss']['_target_']}":
            run.describe(libraries={"monai": version("monai")})

        parts = self.parts(run.retries)
        under = autocast(self.device, self.precision)
        shared: dict[str, Any] = {"patients": len(volumes.patients), "parts": parts, "autocast": under}
        forward = compiled(model, sizes(self.batch_size, parts)) if self.compile else None
        tested = fit(
            run, model, loss, optimizer, scheduler, train, held_out,
            part=part, by=schedules.by(self.groups["scheduler"]), clip_norm=self.clip_norm, forward=forward,
            compile_seconds=compile_seconds, scores=self.scores, average=average,
            scored="ema" if self.test_weights == "ema" else "model", **shared,
        )  # fmt: skip
        if average is not None and self.test_weights == "ema":
            model = average.module
        if self.test_weights == "best":
            model = copy.deepcopy(model)  # the record's last weights are still those of the last epoch
            model.load_state_dict(run.best())
        final = tested or evaluate(model, loss, test, keep=True, probabilities=bool(self.scores), **shared)
        return self._result(run, part, volumes, final)

    def _told(self, volumes: cache.Volumes, patch: tuple[int, int] | None) -> dict[str, Any]:
        """What the record has of the decoded data, and the session says of them."""
        known = classes.scan(volumes, self.split) if self.labels.names else {}
        if known:
            session().emit("text", text=classes.told(known), once=True)
        elif self.labels.void and volumes.void:
            known, told = classes.void(volumes)
            session().emit("text", text=told, once=True)
        if volumes.sizes is not None:
            known |= {"padded": True}
            session().emit("text", text=padding(volumes.sizes, volumes.images.shape), once=True)
        known |= {} if volumes.spacing is None else {"unit": "mm"}
        return known | ({"patch": list(patch)} if patch else {})

    def _result(self, run: Run, part: str, volumes: cache.Volumes, final: Evaluation) -> Result:
        """Of the test, with what it leaves in the run's folder."""
        patients = patient_table(final, volumes, self.split.test)
        if self.labels.names:
            counts = final.counts.sum(0).tolist()
            artifacts.write_json(run.folder / CONFUSION, {"classes": self.labels.names, "pixels": counts})
        figures.draw(run.folder, run.history, part, patients, volumes, self.split.test, final.masks)
        more = scores.of_patients(self.scores, final, volumes, self.split.test)
        metrics = (
            {"loss": final.loss}
            | summarise(final.counts, self.labels.structures)
            | patients.summary
            | scores.means(more)
        )
        units = {row["patient"]: {key: v for key, v in row.items() if key != "patient"} for row in patients.rows}
        units = {patient: values | more.get(patient, {}) for patient, values in units.items()}
        return Result({f"test/{name}": value for name, value in metrics.items()}, units)

    def ends(self, history: list[dict[str, Any]]) -> str:
        """Early stopping: after so many epochs in a row of which none was the best by what this task chooses by."""
        if self.early_stopping is None:
            return ""
        scores, metric = [row.get(self.spec.select) for row in history], self.spec.metric(self.spec.select)
        assert metric
        best, at = -math.inf, 0
        for number, score in enumerate(scores, 1):
            if score is not None and metric.sign * score > best:  # never of NaN
                best, at = metric.sign * score, number
        if len(history) - at < self.early_stopping:
            return ""
        return f"no gain in val {metric.title} since epoch {at} (early_stopping={self.early_stopping}, null goes on)"

    def parts(self, retries: int) -> int:
        """That a batch goes through the network in: twice as many after each time that there was no memory."""
        return self.micro_batches * 2**retries

    def smaller(self, retries: int) -> str:
        """What helps against want of memory."""
        parts = self.parts(retries)
        return (
            f"out of memory with batches of {self.batch_size} in {parts} part{'s' * (parts > 1)}: micro_batches="
            f"{2 * parts}, a smaller batch_size, or hydra.launcher.retries.oom=2, which tries the first"
        )


def padding(sizes: np.ndarray, shape: Sequence[int]) -> str:
    """In one line: the sizes (N, 2) of images, and what they are padded to."""
    several = [f"{height} x {width}" for height, width in sorted({(int(h), int(w)) for h, w in sizes})]
    told = several[0] if len(several) == 1 else f"{len(several)} sizes from {several[0]} to {several[-1]}"
    share = 1 - sizes.prod(1).sum() / (len(sizes) * shape[1] * shape[2])
    return f"Images of {told}, padded to {shape[1]} x {shape[2]}; {share:.2%} of the pixels are padding"
