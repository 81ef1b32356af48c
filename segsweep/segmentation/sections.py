"""What the report says of a segmentation alone: overlays, pixels, image sizes, tumours. See `segsweep.report.own`."""

from io import BytesIO
from typing import Any

import numpy as np

from segsweep.report.content import Block, Figure, Section, joined, number, plural
from segsweep.report.own import Column
from segsweep.report.records import Job, Run
from segsweep.report.statistics import nanmean

OVERLAID = 12  # rows with overlays
WORDS = {
    "accuracy": "pixel accuracy",
    "gflops": "GFLOPs an image",
    "hd95": "HD95 (px)",
    "leaks": "neighbours of test slices were trained on",
    "leaking": (
        "Their slices were dealt out singly, so that a patient's neighbouring slices lie in training and test."
    ),
}
NOTES = {
    "iou": "",
    "hd95": "95th percentile of the surface distance; a missed tumour counts as the volume's diagonal",
}


def sentences(found: Any) -> dict[str, list[str]]:
    return {
        "summary": [*_sizes(found), *_accuracy(found)],
        "results": [*_parts(found), *_undefined(found)],
        "contrasts": (
            [
                "A contrast of image sizes compares Dice at two sizes, each against truth resized to it: it holds the"
                " measure as well as the network."
            ]
            if any(c.factor == "data.image_size" for c in found.analysis.contrasts)
            else []
        ),
        "overfitting": [
            "Training figures are gathered while the weights still move, evaluation after the epoch: early on, a test"
            " loss below the training loss is no sign of generalisation."
        ],
        "method": [
            "Dice, IoU and HD95 are of a patient's whole volume; a mean is over patients. Truth and prediction both"
            " empty: undefined, left out and counted; exactly one empty: 0, with HD95 the volume's diagonal. Accuracy"
            " is over all pixels."
        ],
    }


def _sizes(found: Any) -> list[str]:
    """Each row is scored at its own, against truth of that size."""
    sizes = sorted({row.factors["data.image_size"] for row in found.rows if "data.image_size" in row.factors})
    if len(sizes) < 2:
        return []
    return [
        f"Rows of {joined([f'{size} px' for size in sizes])} are **scored at their own size**, against truth resized to"
        " it: what they differ in may be the measure as well as the network, and HD95 is in pixels of another size."
    ]


def _accuracy(found: Any) -> list[str]:
    accuracy = np.array([row.metric("test/accuracy") for row in found.rows])
    nothing = _accuracy_of_nothing(found)
    if nothing is None or np.isnan(accuracy).all():
        return []
    accuracies, dices = (
        f"is {low}" if low == high else f"lies between {low} and {high}"
        for low, high in (
            (f"{np.nanmin(accuracy):.4f}", f"{np.nanmax(accuracy):.4f}"),
            (f"{np.nanmin(found.means):.3f}", f"{np.nanmax(found.means):.3f}"),
        )
    )
    return [
        f"Pixel accuracy {accuracies} while mean Dice {dices}; predicting no tumour anywhere would have an accuracy of"
        f" {nothing:.4f} and a Dice of 0 on every patient with a tumour."
    ]


def _accuracy_of_nothing(found: Any) -> float | None:
    """On the first row's patients; None where other rows were tested on other data."""
    if len({found.data(i) for i in range(len(found.rows))}) > 1:
        return None
    known = {patient: values for row in found.rows[:1] for run in row.runs for patient, values in run.units.items()}
    truth = sum(v.get("truth_pixels", np.nan) for v in known.values())
    pixels = sum(v.get(k, np.nan) for v in known.values() for k in ("tp", "fp", "fn", "tn"))
    return float(1 - truth / pixels) if known and pixels > 0 and truth == truth else None


def _parts(found: Any) -> list[str]:
    divided = {found.title(i): parts(run) for i, row in enumerate(found.rows) for run in row.runs if parts(run)}
    if not divided:
        return []
    named = joined([f"{title} in {count}" for title, count in list(divided.items())[:6]])
    more = f" and {len(divided) - 6} more" if len(divided) > 6 else ""
    return [
        f"For want of memory batches went through the network in parts: {named}{more}. The loss is that of the whole"
        " batch, but BatchNorm saw the parts, and training took longer: these rows differ in that too."
    ]


def parts(run: Run) -> int:
    """In how many parts its batches went through the network for want of memory; 0 where no more than asked for."""
    count = int(run.result.get("micro_batches") or 1)
    return count if count > run.factors.get("micro_batches", 1) else 0


def _undefined(found: Any) -> list[str]:
    undefined = sum(run.metrics.get("test/undefined") or 0 for row in found.rows for run in row.runs)
    if not undefined:
        return []
    return [
        f"{undefined:g} times a patient had neither tumour nor prediction: Dice is undefined there and left out of the"
        " means."
    ]


def columns(found: Any) -> list[Column]:
    lost = [sum(r.metrics.get("test/missed") or 0 for r in row.runs) / max(len(row.seeds), 1) for row in found.rows]
    missed = [number(count, "g" if count == int(count) else ".1f") for count in lost]
    note = "patients with a tumour and none predicted, a mean over the seeds"
    rates = [number(row.metric("images_per_second"), ",.0f") for row in found.rows]
    return [Column("missed", missed, "train loss", note), Column("images/s", rates, "peak memory (MiB)")]


def note(job: Job) -> str:
    if not (job.run and (count := parts(job.run))):
        return ""
    return f"for want of memory its batches went through the network in {count} parts, which BatchNorm saw"


def sections(found: Any) -> list[Section]:
    blocks = _overlays(found)
    return [Section("overlays", "What does it look like?", blocks)] if blocks else []


def overlays(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Patient -> image (H, W, C) uint8, truth, prediction (H, W) bool, slice; empty without a readable file."""
    try:
        with np.load(run.folder / "overlays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("slice", "image", "truth", "prediction")}
            return {str(p): {k: v[i] for k, v in arrays.items()} for i, p in enumerate(file["patient"])}
    except (OSError, ValueError, KeyError, IndexError, EOFError):
        return {}


def _overlays(found: Any) -> list[Block]:
    """Best, median and worst patient, the same for all rows; of repeats, the first run's prediction."""
    shown: dict[int, dict[str, tuple[Run, dict[str, np.ndarray]]]] = {}
    common: set[str] = set()
    for i, row in enumerate(found.rows[: 4 * OVERLAID]):  # a few more than are shown, in case some have none
        kept = {
            patient: (run, p)
            for run in reversed(row.runs)
            for patient, p in overlays(run).items()
            if patient in run.units
        }
        same = (common or set(kept)) & set(kept) if found.data(i) == found.data(next(iter(shown), i)) else set()
        if len(same) >= min(3, len(common) or 1) and len(shown) < OVERLAID:
            shown[i], common = kept, same
    dice = {p: float(nanmean(np.array([kept[p][0].units[p]["dice"] for kept in shown.values()]))) for p in common}
    ranked = sorted((p for p in dice if dice[p] == dice[p]), key=lambda p: (-dice[p], p))
    if not ranked:
        return []
    blocks: list[Block] = [
        "Each patient's slice with the largest tumour; truth dashed green, prediction solid orange. Best, median and"
        f" worst by the mean Dice of the rows shown ({plural(len(ranked), 'patient')} in common)."
    ]
    if len(shown) < len(found.rows):
        blocks.append(
            f"Shown are {len(shown)} of {len(found.rows)} rows: the best that kept overlays of these patients, at most"
            f" {OVERLAID}."
        )
    places = {0: "best", (len(ranked) - 1) // 2: "median", len(ranked) - 1: "worst"}
    if len(ranked) < 3:
        places = dict(enumerate(["best", "worst"][: len(ranked)]))
    for place, role in places.items():
        patient = ranked[place]
        picture = next(iter(shown.values()))[patient][1]
        alt = f"Slice {picture['slice']} of the {role} patient, {patient}, with the true tumour outlined"
        panel = [overlay(f"overlay-{role}-truth", alt, "truth alone", picture["image"], picture["truth"], None)]
        for i, kept in shown.items():
            run, picture = kept[patient]
            title = found.title(i) + (f", seed {run.seed}" if len(found.rows[i].seeds) > 1 else "")
            score = f"{title}: Dice {run.units[patient]['dice']:.3f}"
            alt = f"Slice {picture['slice']} of the {role} patient with truth and prediction outlined; {score}"
            arrays = (picture["image"], picture["truth"], picture["prediction"])
            panel.append(overlay(f"overlay-{role}-row{i + 1}", alt, score, *arrays))
        blocks += [f"**{role.capitalize()} patient**: {patient}, mean Dice {dice[patient]:.3f}", panel]
    return blocks


def overlay(
    name: str, alt: str, caption: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray | None
) -> Figure:
    """One slice (H, W, C) uint8 in grey, the truth's outline dashed green, the prediction's solid orange; magnified to
    about 256 px.

    Of three channels the middle one is shown: FLAIR in LGG and in the phantom, where tumour is plainest.
    """
    from PIL import Image  # these take a while, and the closing table needs neither
    from scipy import ndimage

    grey = image[..., 1 if image.shape[-1] == 3 else 0]
    factor = max(1, round(256 / max(grey.shape)))

    def large(array: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(array, factor, 0), factor, 1)

    pixels = large(grey) // 4  # 64 greys, then the two colours
    rows, columns = np.indices(pixels.shape)
    for mask, colour, pattern in (
        (prediction, 64, np.ones_like(rows, bool)),
        (truth, 65, (rows + columns) // 5 % 2 == 0),
    ):
        if mask is not None:
            inside = large(np.asarray(mask, bool))
            edge = inside & ~ndimage.binary_erosion(inside, iterations=2 if factor > 1 else 1)
            pixels[edge & pattern] = colour
    picture = Image.fromarray(pixels.astype(np.uint8), mode="P")
    picture.putpalette([level for grey in range(64) for level in [grey * 255 // 63] * 3] + [255, 120, 40, 40, 235, 140])
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return Figure(name, alt, caption, buffer.getvalue())
