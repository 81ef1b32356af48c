"""The task of segmentation: image and mask files to a trained network and a table of its test patients."""

import copy
import math
import os
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segsweep.core import artifacts
from segsweep.core.device import autocast, compile_seconds, compiled, pick_device, pick_precision
from segsweep.core.errors import DataError
from segsweep.core.session import session
from segsweep.segmentation import classes, figures, groups, schedules, scores
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.labels import labels_of
from segsweep.segmentation.data.source import Manifest
from segsweep.segmentation.data.split import Split
from segsweep.segmentation.evaluate import evaluate, flops, patient_table
from segsweep.segmentation.losses import Counted
from segsweep.segmentation.metrics import CONFUSION, METRICS, SPEC, spec_for, spec_of, summarise
from segsweep.segmentation.train import fit, sizes
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

    @cached_property
    def manifest(self) -> Manifest:
        return self.dataset.scan(self.cache)

    @cached_property
    def split(self) -> Split:
        return self._build("split")(self.manifest.patients)

    def data(self) -> Data:
        """Scans and divides; decodes nothing. The device does not belong to the identity, the arithmetic does. Raises
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
        height, width, channels = images.shape[1:]
        model = groups.network(self.groups["model"], channels, self.labels.outputs)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {"parameters": parameters, "gflops": flops(model, channels, height, width, outputs=self.labels.outputs)}

    def train(self, run: Run) -> Result:
        """split.json, pictures, the overlays' arrays and the confusion of classes are files of the run."""
        artifacts.write_json(run.folder / "split.json", self.split.to_json())
        volumes = cache.load(self.dataset, self.manifest, self.cache, self.workers or os.cpu_count() or 1)
        batches = partial(Batches, volumes, device=self.device)
        split, part = self.split, self.data().part
        known = classes.scan(volumes, split) if self.labels.names else {}
        if known:
            session().emit("text", text=classes.told(known), once=True)
        train = batches(split.train, batch_size=self.batch_size, augment=self._build("augment"), shuffle=True)
        test = batches(split.test, batch_size=self.eval_batch_size)
        held_out = batches(split.val, batch_size=self.eval_batch_size) if part == "val" else test
        train.resident()  # a set that goes to the GPU goes there before the first epoch's time begins
        height, width, channels = volumes.images.shape[1:]

        torch.manual_seed(run.seed)
        outputs = self.labels.outputs
        model = groups.network(self.groups["model"], channels, outputs)
        model = model.to(self.device, memory_format=torch.channels_last)
        node = classes.with_weights(self.groups["loss"], volumes, split)
        known |= {"loss_weights": node["weights"]} if node.get("weights") else {}
        loss = groups.build("loss", node).to(self.device)
        loss = Counted(loss) if volumes.void else loss
        optimizer = self._build("optim")(model.parameters())
        scheduler = schedules.schedule(self.groups["scheduler"], optimizer, len(train))
        average = None
        if self.ema is not None:  # of BatchNorm's running statistics, too, so that they are those of averaged weights
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.ema), use_buffers=True)
        network = f"{self.groups['model']} {channels}x{height}x{width} to {outputs}"
        _gflops[network] = _gflops.get(network) or flops(model, channels, height, width, self.device, outputs)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        shape = list(volumes.images.shape[1:])
        run.describe(parameters=parameters, gflops=_gflops[network], data={"image_shape": shape} | known)

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
        patients = patient_table(final, volumes, split.test)
        if self.labels.names:
            counts = final.counts.sum(0).tolist()
            artifacts.write_json(run.folder / CONFUSION, {"classes": self.labels.names, "pixels": counts})
        figures.draw(run.folder, run.history, part, patients, volumes, split.test, final.masks)
        more = scores.of_patients(self.scores, final, volumes, split.test)
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
