"""`python -m segsweep.predict RUN IMAGES... --out DIR`: masks, volumes and, where there is truth, metrics by a run.

Everything up to the logits is training's own code with the run's own values, in batches made as its test made them: on
patients that the run tested, the numbers are those of its patients.csv, to the last digit. Only where a device has less
memory than the run had, a batch goes through the network in more parts.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from torch import nn

from segsweep.config.start import start
from segsweep.core import artifacts, environment
from segsweep.core.device import out_of_memory, pick_device
from segsweep.core.errors import ConfigError, SegsweepError
from segsweep.core.program import typed
from segsweep.runs.find import REFERENCE
from segsweep.runs.find import find as find_run
from segsweep.segmentation.data import cache, volume
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.data.images import padded, sized, target
from segsweep.segmentation.data.images import read as read_pixels
from segsweep.segmentation.data.labels import ONE, Labels, counted
from segsweep.segmentation.data.labels import sizes as sizes_of
from segsweep.segmentation.evaluate import evaluate, patient_table
from segsweep.segmentation.figures import OUTLINES, areas, eroded
from segsweep.segmentation.inputs import MASK, Patient, Slice, find, read
from segsweep.segmentation.metrics import DISTANCES, METRICS, called, mean, spec_of
from segsweep.segmentation.scores import chosen, of_patients
from segsweep.segmentation.trained import Trained, load
from segsweep.task import Metric

HELD = 1 << 30
"""Bytes of decoded pixels held at a time; a batch goes over patients as in training, but not over this border."""
SUFFIX = {"tiff": ".tif", "png": ".png"}
ARRAY = "at the network's size; all slices of a patient in one array, of several volumes one after another by name"
_count = itertools.count()
"""Numbers the groups of images of this process: an address would come again for others once its array is freed."""


class Prediction(NamedTuple):
    """masks: (N, H, W) bool, or uint8 of classes, at the network's size, slices in order. rows: of patients.csv, for
    each patient with truth. probabilities: (N, C, H, W) float16 where they were asked for."""

    masks: np.ndarray
    rows: list[dict[str, Any]]
    probabilities: np.ndarray | None = None


def predict(
    trained: Trained,
    patients: list[Patient],
    device: torch.device,
    probabilities: bool = False,
    measured: Mapping[str, Any] | None = None,
) -> Prediction:
    """The patients' images have one shape and type; `trained.model` is on `device`. measured: the run's `metrics`, see
    `scores.chosen`."""
    stacked = np.concatenate([patient.images for patient in patients])
    counts = [len(patient.images) for patient in patients]
    truths = [p.empty if p.truth is None else p.truth for p in patients]
    known = np.stack([cache.statistics(p.images, masks) for p, masks in zip(patients, truths, strict=True)])
    shift, scale, clip = cache.normalisation(known, trained.config.data.normalise, stacked.dtype)
    volumes = cache.Volumes(
        images=stacked,
        masks=np.concatenate(truths),
        patient=np.repeat(np.arange(len(patients)), counts),
        patients=[patient.name for patient in patients],
        slices=[item.name for patient in patients for item in patient.slices],
        shift=shift,
        scale=scale,
        clip=clip,
        digest="",
        key=f"predict-{next(_count)}",
        labels=trained.labels,
        **stacks(patients, trained.size),
    )
    if trained.room:
        volumes.sizes = sizes_of(volumes.masks)
    if trained.labels.void or trained.room:
        volumes.pixels = counted(volumes.masks, max(2, trained.labels.outputs))
    index = np.arange(len(stacked))
    batches = Batches(volumes, index, batch_size=trained.config.eval_batch_size, device=device, patch=trained.patch)
    asked = partial(evaluate, trained.model, _Zero(), batches, patients=len(patients), keep=True)
    scored = np.repeat([patient.truth is not None for patient in patients], counts)
    wanted = probabilities or (bool(measured) and bool(scored.any()))
    found, parts = None, trained.parts
    while found is None:
        try:
            found = asked(autocast=trained.autocast(device), parts=parts, probabilities=wanted)
        except RuntimeError as error:
            if not out_of_memory(error) or parts >= trained.config.eval_batch_size:
                raise
            parts *= 2
    assert found.masks is not None
    rows: list[dict[str, Any]] = []
    if scored.any():
        shares = None if found.probabilities is None else found.probabilities[scored]
        part = dataclasses.replace(found, masks=found.masks[scored], probabilities=shares)
        rows = patient_table(part, volumes, index[scored]).rows
        more = of_patients(measured or {}, part, volumes, index[scored])
        rows = [row | more.get(row["patient"], {}) for row in rows]
    return Prediction(found.masks, rows, found.probabilities if probabilities else None)


def measured_by(trained: Trained) -> tuple[dict[str, Any], list[str]]:
    """The scores that the run has beside those of every run, by name, and a sentence for each that cannot be had here,
    which keeps no mask from being predicted."""
    entries = trained.config.get("metrics")  # a run of before these has none
    found: dict[str, Any] = {}
    lacking: list[str] = []
    for entry in entries if isinstance(entries, ListConfig) else ():
        try:
            plain = OmegaConf.to_container(entry) if isinstance(entry, DictConfig) else entry
            found |= chosen([plain], (*METRICS, *found))
        except ConfigError as error:
            lacking.append(f"Not measured: {error}")
    return found, lacking


def stacks(patients: list[Patient], size: Any) -> dict[str, np.ndarray]:
    """As in `cache.Volumes`, where slices of a patient may not all lie on one another."""
    items = [(patient.name, item) for patient in patients for item in patient.slices]
    if not any(item.stack for _, item in items):
        return {}
    known = [(name, item.stack) for name, item in items]
    found = {"stack": np.array([list(dict.fromkeys(known)).index(one) for one in known])}
    several = [volume.ADDRESS.match(str(item.file)) for _, item in items]
    heads = {one: volume.header(*one) for one in {(m["file"], int(m["axis"])) for m in several if m}}
    spacing = {one[0]: head.at(target(head.shape[1:], size)) for one, head in heads.items()}
    if None in spacing.values() or not spacing:
        return found
    return found | {"spacing": np.array([spacing[item.stack] for _, item in items])}


class _Zero(nn.Module):
    """In the place of a loss, which a prediction has none of."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.new_zeros(())


def groups(patients: Iterable[Patient]) -> Iterator[list[Patient]]:
    """Patients that are predicted together: of one shape and type, and no more than memory should hold."""
    held: list[Patient] = []
    for patient in patients:
        kind, size = (patient.images.shape[1:], patient.images.dtype), patient.images.nbytes
        if held and (
            kind != (held[0].images.shape[1:], held[0].images.dtype) or size + sum(p.images.nbytes for p in held) > HELD
        ):
            yield held
            held = []
        held.append(patient)
    if held:
        yield held


def at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (h, w) bool or uint8 at another (height, width), the nearest pixel."""
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def overlay(image: np.ndarray, mask: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """(H, W, 3) uint8: the image (H, W, C) stretched for display and the outlines of (H, W) masks of bool, or of uint8,
    each class in its colour and the truth dashed."""
    channels = (0, 1, 2) if image.shape[2] == 3 else (0, 0, 0)
    shown = image[..., channels].astype(np.float32)
    low, high = np.percentile(shown, (1, 99.5), axis=(0, 1), keepdims=True)
    page = (255 * np.clip((shown - low) / np.maximum(high - low, 1), 0, 1)).astype(np.uint8)
    several = [(truth, "truth"), (mask, "prediction")]
    for area, kind in several if mask.dtype == bool else reversed(several):
        if area is None:
            continue
        dashes = np.indices(area.shape).sum(0) // 4 % 2 == 0
        for inside, colour in areas(area, OUTLINES[kind]):
            edge = inside & ~eroded(inside)
            page[edge & dashes if kind == "truth" and area.dtype != bool else edge] = colour
    return page


def as_given(
    patient: Patient, masks: np.ndarray, labels: Labels = ONE
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Of the masks (D, h, w) of a patient each at its file's size, and its region of interest there, of bool."""
    for place, (item, size) in enumerate(zip(patient.slices, patient.sizes, strict=True)):
        height, width = sizes_of(patient.empty[place : place + 1])[0]
        mask = at_size(masks[place, :height, :width], size)
        region = read_pixels(str(item.region), mask=True) > 0 if labels.roi else None
        yield (mask if region is None else mask * region), region


def predict_array(trained: Trained, given: np.ndarray, device: torch.device) -> np.ndarray:
    """Masks (N, H, W) of bool, or uint8 of the classes' numbers, of images (N, H, W, C), or (N, H, W) of one channel,
    uint8 or uint16, taken as the slices of one patient. Raises SegsweepError where they are not such images."""
    stack = given[..., None] if given.ndim == 3 else given
    wanted = f"(N, H, W, {trained.channels})" + ", or (N, H, W)" * (trained.channels == 1)
    if stack.ndim != 4 or stack.shape[3] != trained.channels or not stack.size:
        raise SegsweepError(f"an array of shape {given.shape}: the run was trained on images of {wanted}")
    if given.dtype not in (np.uint8, np.uint16):
        raise SegsweepError(f"an array of {given.dtype}: images are uint8 or uint16, as in files, not normalised")
    if trained.labels.roi:
        raise SegsweepError(
            f"the run has regions of interest (data.roi={trained.labels.roi}): give files, not an array"
        )
    blank = np.zeros(stack.shape[1:3], np.uint8)
    pairs = [sized(image, blank, trained.size, trained.labels, None, "an array") for image in stack]
    images, empty = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    if trained.room is not None:
        height, width = (max(sides) for sides in zip(trained.room, images.shape[1:3], strict=True))
        images, empty = padded(list(images), list(empty), (height, width))
    slices = [Slice(Path("array"), "array", str(n), None) for n in range(len(stack))]
    patient = Patient("array", slices, images, None, [(stack.shape[1], stack.shape[2])] * len(stack), empty)
    trained.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return np.stack([mask for mask, _ in as_given(patient, predict(trained, [patient], device).masks)])


def predict_paths(trained: Trained, given: list[Path], device: torch.device) -> dict[str, list[np.ndarray]]:
    """Patient -> a mask (H, W) for each slice at its file's size, as of `predict_array`. Raises SegsweepError naming
    each file that cannot be used."""
    patients, problems = find(given, trained.config.data)
    trained.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found: dict[str, list[np.ndarray]] = {}
    for group in groups(read(patients, trained.size, trained.channels, problems, trained.labels, trained.room)):
        masks, start = predict(trained, group, device).masks, 0
        for patient in group:
            stop = start + len(patient.slices)
            found[patient.name] = [mask for mask, _ in as_given(patient, masks[start:stop], trained.labels)]
            start = stop
    if problems:
        raise SegsweepError("\n".join(problems))
    return found


def write(
    patient: Patient, masks: np.ndarray, out: Path, kind: str, overlays: bool, labels: Labels = ONE
) -> dict[str, float]:
    """The masks (D, h, w) of a patient at its files' sizes, with the values that files have for the classes, 0 and 255
    of one structure, or 0 and 1 in a volume; returns the volume of each in pixels, under the columns' names, and in
    millilitres where all files say their spacing."""
    names = ["", *(f"/{name}" for name in labels.structures)]
    pixels, millilitres = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    known = True
    written: dict[str, list[np.ndarray]] = {}
    for item, (mask, region) in zip(patient.slices, as_given(patient, masks, labels), strict=True):
        found = volume.ADDRESS.match(str(item.file))
        spacing = volume.header(found["file"], int(found["axis"])).spacing if found else None
        known &= spacing is not None
        for name, inside in zip(names, [mask > 0, *(mask == k for k in range(1, labels.outputs))], strict=True):
            pixels[name] += int(inside.sum())
            millilitres[name] += float(inside.sum() * np.prod(spacing or 0) / 1000)
        if found:
            values = labels.write(mask) if labels.names else mask.astype(np.uint8)
            written.setdefault(found["file"], []).append(values)
            axis = int(found["axis"])
        else:
            with artifacts.atomic(mask_file(out, patient.name, item.file, kind)) as partial:
                Image.fromarray(labels.write(mask)).save(partial)
        if overlays:
            truth = None if patient.truth is None else _truth(str(item.truth), labels, region)
            with artifacts.atomic(out / patient.name / f"{volume.stem(item.file)}_overlay.png") as partial:
                Image.fromarray(overlay(read_pixels(str(item.file)), mask, truth)).save(partial)
    for file, several in written.items():
        with artifacts.atomic(mask_file(out, patient.name, Path(file), kind)) as partial:
            volume.write(np.stack(several), file, axis, partial)
    told = {f"volume_pixels{name}": count for name, count in pixels.items()}
    return told | ({f"volume_ml{name}": round(ml, 6) for name, ml in millilitres.items()} if known else {})


def _truth(file: str, labels: Labels, region: np.ndarray | None) -> np.ndarray:
    """A mask's file at its own size, as masks are here; 0 outside its region (H, W) of bool."""
    mask = read_pixels(file, mask=True)
    known = mask if region is None else mask[region]
    found = labels.read(known, file) if labels.names else (known > 0) & ~np.isin(known, labels.ignore)
    if region is None:
        return found
    whole = np.zeros(mask.shape, found.dtype)
    whole[region] = found
    return whole


def mask_file(out: Path, patient: str, image: Path, kind: str) -> Path:
    """Of an image, or of the volume that a slice is of."""
    file = Path(volume.file_of(image))
    return out / patient / f"{volume.stem(file)}{MASK}{'.nii.gz' if volume.is_volume(file) else SUFFIX[kind]}"


def predict_files(
    trained: Trained,
    given: list[Path],
    out: Path,
    *,
    kind: str,
    overlays: bool,
    device: torch.device,
    probabilities: bool = False,
    measured: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Predict `given` and write everything into `out`: masks, predictions.csv, predictions.json.

    measured: see `predict`. Returns the rows of predictions.csv and what went wrong, naming files. Raises SegsweepError
    if `out` would overwrite what is read."""
    patients, problems = find(given, trained.config.data)
    sources = {
        Path(volume.file_of(p)).resolve()
        for slices in patients.values()
        for item in slices
        for p in (item.file, item.truth, item.region)
        if p
    }
    for name, slices in patients.items():
        for item in slices:
            if mask_file(out, name, item.file, kind).resolve() in sources:
                raise SegsweepError(
                    f"--out {out}: the mask of {item.file} would overwrite a file that is read; give another folder"
                )
    for folder in (path for path in given if path.is_dir()):
        if out.resolve().is_relative_to(folder.resolve()):
            raise SegsweepError(
                f"--out {out}: lies in {folder}, whose images are read: the next prediction would take masks for "
                "images; give another folder"
            )
    trained.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows: list[dict[str, Any]] = []
    scores: dict[str, dict[str, Any]] = {}
    labels = trained.labels
    for group in groups(read(patients, trained.size, trained.channels, problems, labels, trained.room)):
        found = predict(trained, group, device, probabilities, measured)
        scores |= {row["patient"]: row for row in found.rows}
        start = 0
        for patient in group:
            stop = start + len(patient.slices)
            measured = write(patient, found.masks[start:stop], out, kind, overlays, labels)
            if found.probabilities is not None:
                with artifacts.atomic(out / patient.name / "probabilities.npy") as partial, open(partial, "wb") as file:
                    np.save(file, found.probabilities[start:stop], allow_pickle=False)
            known = {"patient": patient.name, "part": trained.part(patient.name), "slices": len(patient.slices)}
            rows.append(known | measured)
            start = stop
    columns: dict[str, Any] = next(iter(scores.values()), {})
    for row in rows:
        row |= {key: scores.get(row["patient"], {}).get(key) for key in columns if key not in row}
    if rows:
        shown = [{key: artifacts.cell(value) for key, value in row.items()} for row in rows]
        artifacts.write_csv(out / "predictions.csv", shown)
    about: dict[str, Any] = {"run": trained.signature, "folder": str(trained.folder), "weights": trained.weights}
    about |= {"epoch": trained.epoch, "image_size": trained.size, "precision": trained.precision}
    if labels.names:
        about |= {"classes": dict(zip(labels.names, labels.values, strict=True))}
    if probabilities:
        about |= {"probabilities": f"probabilities.npy: (slices, classes, height, width) float16, {ARRAY}"}
    about |= {
        "device": environment.device_name(device),
        "segsweep": environment.versions().get("segsweep"),
        "problems": problems,
    }
    artifacts.write_json(out / "predictions.json", about)
    return rows, problems


def tell(
    trained: Trained,
    rows: list[dict[str, Any]],
    out: Path,
    single: bool,
    measured: Mapping[str, Any],
    probabilities: bool = False,
) -> None:
    """Print the patients and what their numbers mean. single: files were given, not only folders."""
    spec = spec_of(trained.labels, measured)
    for row in rows:
        dice = row.get("dice")
        text = "" if dice is None else f"  {spec.metrics['dice'].title} {dice:{METRICS['dice'].format}}"
        part = f"  ({row['part']} of this run)" if row["part"] != "new" else ""
        print(f"{row['patient']}: {row['slices']} slices, volume {row['volume_pixels']} pixels{text}{part}")
    form = METRICS["dice"].format
    if scored := [row for row in rows if row.get("missed") is not None]:
        keys = ["dice", *(f"dice/{name}" for name in trained.labels.structures)]
        means = {key: mean(np.array([row[key] for row in scored])) for key in keys}
        defined = sum(row["dice"] == row["dice"] for row in scored)
        told = (f"{called(key.partition('/')[2])} {value:{form}}" for key, value in means.items() if "/" in key)
        rule = ""
        if trained.labels.structures:
            rule = f" over the classes that each has or was given, without the background; by class: {', '.join(told)}"
        size = "the files' own size"
        if trained.size:
            size = (
                f"{trained.size} x {trained.size} pixels" if isinstance(trained.size, int) else f"{trained.size} pixels"
            )
        print(
            f"Mean Dice (patients: {defined}): {means['dice']:{form}}{rule}. "
            f"Metrics are taken at {size}, as in training; masks and volumes are at the size of each file"
        )
        if measured:
            print(f"Mean {', '.join(_mean(scored, name, spec.metrics[name]) for name in measured)}")
    if trained.config.data.normalise != "unit" and single:
        print(
            f"Normalisation ({trained.config.data.normalise}) is over all slices of a patient, here over the files "
            "given: give the patient's folder for the masks that they have among all"
        )
    if seen := [row["patient"] for row in rows if row["part"] in ("train", "val")]:
        print(f"{len(seen)} of {len(rows)} patients were in this run's training or validation: theirs is no test")
    if rows:
        print(f"Masks: {out}   table: {out / 'predictions.csv'}")
    if rows and probabilities:
        print(f"Probabilities: {out}/*/probabilities.npy, {ARRAY}")


def _mean(rows: list[dict[str, Any]], name: str, metric: Metric) -> str:
    """Of a score over the patients of which it is defined, in words."""
    values = np.array([row[name] for row in rows])
    units = {"mm" if any(key.startswith("truth_ml") and row[key] is not None for key in row) else "px" for row in rows}
    unit = f" {' or '.join(sorted(units))}" if name in DISTANCES else ""
    return f"{metric.title} {mean(values):{metric.format}}{unit} (patients: {(values == values).sum()})"


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all was predicted, 1 something was not, and is named."""
    start()
    parser = argparse.ArgumentParser(
        prog=typed("predict"),
        description="Predict masks with a trained run, whose own preprocessing is applied.",
    )
    parser.add_argument("run", metavar="RUN", help=REFERENCE)
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", type=Path, help="a file, a folder, a patient's folder, a Kaggle archive"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--weights", choices=("last", "best"), help="default: those that the run's test describes")
    parser.add_argument("--format", choices=tuple(SUFFIX), default="tiff", help="of the masks")
    parser.add_argument(
        "--probabilities", action="store_true", help=f"those of each class too, as PATIENT/probabilities.npy, {ARRAY}"
    )
    parser.add_argument("--overlays", action="store_true", help="the images with truth and prediction outlined, as PNG")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--runs", type=Path, default=Path("multirun"), help="folder of runs/ and the sweeps")
    options = parser.parse_args(arguments)
    try:
        folder, why = find_run(options.run, options.runs)
        trained = load(folder, options.weights)
        average = ", their average" if trained.config.get("test_weights") == "ema" else ""
        print(f"{why[0].upper()}{why[1:]}; {trained.weights} weights{average}, epoch {trained.epoch}")
        device = pick_device(options.device)
        measured, lacking = measured_by(trained)
        for text in lacking:
            print(text, file=sys.stderr)
        rows, problems = predict_files(
            trained,
            options.images,
            options.out,
            kind=options.format,
            overlays=options.overlays,
            device=device,
            probabilities=options.probabilities,
            measured=measured,
        )
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        print(
            f"{options.device}: too little memory for one slice at a time; predict with --device cpu", file=sys.stderr
        )
        return 1
    except (SegsweepError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    single = any(path.is_file() for path in options.images)
    tell(trained, rows, options.out, single, measured, options.probabilities)
    for problem in problems:
        print(f"Error: {problem}", file=sys.stderr)
    return 1 if problems else 0
