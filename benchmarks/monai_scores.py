"""Dice and HD95 of every class and test patient of a sweep's runs beside MONAI's of the same predictions.

    python -m benchmarks.monai_scores SWEEP DATA [--out FOLDER]

SWEEP: the folder of a sweep over classes of volumes; DATA: the images that it was trained on. Each run predicts its
test patients again. MONAI is given the same arrays: of Dice a patient's volumes as one, of HD95 each volume apart, the
mean of which is the patient's. Where truth or prediction of a class is empty MONAI has no number, or infinity: these
are counted, and segsweep's rule is in docs/segmentation.md.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance  # type: ignore[attr-defined]

from benchmarks import common
from segsweep.core import artifacts
from segsweep.segmentation.data.labels import PADDED
from segsweep.segmentation.data.labels import sizes as sizes_of
from segsweep.segmentation.inputs import find, read
from segsweep.segmentation.predict import groups, predict, stacks
from segsweep.segmentation.trained import load


def theirs(truth: np.ndarray, masks: np.ndarray, stack: np.ndarray, spacing: Any, classes: int) -> dict[str, list[Any]]:
    """Of (D, H, W) uint8 of one patient: MONAI's scores of each class but the background."""
    kept = np.where(truth < PADDED, masks, 0)

    def hot(labels: np.ndarray) -> torch.Tensor:
        known = np.where(labels < PADDED, labels, 0).astype(np.int64)
        return torch.nn.functional.one_hot(torch.from_numpy(known), classes).movedim(-1, 0)[None].float()

    dice = compute_dice(hot(kept), hot(truth), include_background=False, ignore_empty=True)[0].tolist()
    distances = []
    for one in np.unique(stack):
        at = stack == one
        given = {} if spacing is None else {"spacing": spacing[at][0].tolist()}
        found = compute_hausdorff_distance(hot(kept[at]), hot(truth[at]), percentile=95, **given)
        distances.append(found[0].tolist())
    return {"dice": dice, "hd95": np.mean(distances, 0).tolist()}


def compared(folder: Path, data: Path) -> Iterator[dict[str, Any]]:
    """One row a patient and class of a run's test."""
    trained = load(folder)
    files, problems = find([data], trained.config.data)
    files = {name: slices for name, slices in files.items() if trained.part(name) == "test"}
    labels = trained.labels
    several = read(files, trained.size, trained.channels, problems, labels, trained.room)
    for group in groups(several, trained.millimetres):
        found, start = predict(trained, group, torch.device("cpu")), 0
        about = stacks(group, trained.size, trained.millimetres)
        for patient, ours in zip(group, found.rows, strict=True):
            part = slice(start, start + len(patient.slices))
            start = part.stop
            assert patient.truth is not None
            height, width = sizes_of(patient.empty).max(0)
            spacing = about["spacing"][part] if "spacing" in about else None
            arrays = (patient.truth[:, :height, :width], found.masks[part, :height, :width])
            other = theirs(*arrays, about["stack"][part], spacing, labels.outputs)
            for number, name in enumerate(labels.structures):
                row = {"patient": patient.name, "class": name}
                for score, values in other.items():
                    row |= {score: ours[f"{score}/{name}"], f"monai_{score}": values[number]}
                yield row
    if problems:
        raise SystemExit("\n".join(problems))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    rows = []
    for job in artifacts.jobs(args.sweep):
        if job["folder"] and artifacts.result(job["folder"]):
            rows += [{"job": job["number"], **row} for row in compared(job["folder"], args.data)]
            print(f"job {job['number']}: {len(rows)} rows", flush=True)
    result: dict[str, Any] = {"machine": common.machine(torch.device("cpu")), "rows": len(rows)}
    for score in ("dice", "hd95"):
        both = [(row[score], row[f"monai_{score}"]) for row in rows if math.isfinite(row[f"monai_{score}"])]
        apart = max(abs(a - b) for a, b in both)
        result[score] = {"both": len(both), "furthest_apart": apart}
        print(f"{score}: {len(both)} of {len(rows)} where MONAI has a number, at most {apart:.2g} apart")
    artifacts.write_csv(args.out / "monai_scores.csv", rows)
    common.write(args.out, "monai_scores", result)


if __name__ == "__main__":
    main()
