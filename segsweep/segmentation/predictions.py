"""`python -m segsweep.predict RUN IMAGES... --out DIR`: masks, volumes and, where there is truth, metrics, in files."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segsweep.config.start import start
from segsweep.core import artifacts, environment
from segsweep.core.device import out_of_memory, pick_device
from segsweep.core.errors import SegsweepError
from segsweep.core.program import typed
from segsweep.runs.find import REFERENCE
from segsweep.runs.find import find as find_run
from segsweep.segmentation.data import volume
from segsweep.segmentation.data.images import read as read_pixels
from segsweep.segmentation.data.labels import ONE, Labels
from segsweep.segmentation.figures import OUTLINES, areas, eroded
from segsweep.segmentation.inputs import MASK, Patient, find, read
from segsweep.segmentation.metrics import DISTANCES, METRICS, called, mean, spec_of
from segsweep.segmentation.predict import as_given, groups, measured_by, predict
from segsweep.segmentation.trained import Trained, load
from segsweep.task import Metric

SUFFIX = {"tiff": ".tif", "png": ".png"}
ARRAY = "at the network's size; all slices of a patient in one array, of several volumes one after another by name"


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
    several = read(patients, trained.size, trained.channels, problems, labels, trained.room)
    for group in groups(several, trained.millimetres):
        found = predict(trained, group, device, probabilities, measured)
        scores |= {row["patient"]: row for row in found.rows}
        start = 0
        for patient in group:
            stop = start + len(patient.slices)
            volumes = write(patient, found.masks[start:stop], out, kind, overlays, labels)
            if found.probabilities is not None:
                with artifacts.atomic(out / patient.name / "probabilities.npy") as partial, open(partial, "wb") as file:
                    np.save(file, found.probabilities[start:stop], allow_pickle=False)
            known = {"patient": patient.name, "part": trained.part(patient.name), "slices": len(patient.slices)}
            rows.append(known | volumes)
            start = stop
    columns = dict.fromkeys(key for row in scores.values() for key in row)  # one patient has a spacing, another none
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
