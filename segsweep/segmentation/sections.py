"""What the report says of a segmentation alone: overlays, classes, pixels, image sizes. See `segsweep.report.own`."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core import artifacts
from segsweep.core.program import typed
from segsweep.report.content import Block, Cell, Figure, Section, Table, joined, number, plural
from segsweep.report.findings import ranged
from segsweep.report.own import Column
from segsweep.report.record import Job, Run
from segsweep.report.statistics import nanmean
from segsweep.segmentation.data.labels import COLOURS, PADDED, colours
from segsweep.segmentation.metrics import CONFUSION, DISTANCES, METRICS, SCORES, called
from segsweep.segmentation.scores import BUILT_IN

OVERLAID = 12  # rows with overlays
CONFUSED = 4  # rows with a confusion matrix
WORDS = {
    "hd95": METRICS["hd95"].title,
    "assd": BUILT_IN["assd"].metric.title,
    "accuracy": "pixel accuracy",
    "gflops": "GFLOPs an image",
    "leaks": "neighbours of test slices were trained on",
    "leaking": (
        "Their slices were dealt out singly, so that a patient's neighbouring slices lie in training and test."
    ),
}
NOTES = {
    "iou": "",
    "hd95": "95th percentile of the surface distance; where one is empty, the volume's diagonal",
}


def units(found: Any) -> set[str]:
    """Of distances, in the rows."""
    return {str((run.info.get("data") or {}).get("unit") or "px") for row in found.rows for run in row.runs} or {"px"}


def unit(found: Any, name: str) -> str:
    return " or ".join(sorted(units(found))) if name.partition("/")[0] in DISTANCES else ""


def sentences(found: Any) -> dict[str, list[str]]:
    return {
        "summary": [*_rule(found), *_sizes(found), *_accuracy(found)],
        "results": [*_rule(found), *_region(found), *_parts(found), *_undefined(found)],
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
        ]
        + [f"{sentence} The rule of the empty masks holds for each class of a patient." for sentence in _rule(found)],
    }


def _square(pixels: Any, names: Any) -> bool:
    """Whether a file that may be damaged has a number for each two of the classes."""
    rows = pixels if isinstance(pixels, list) and isinstance(names, list) else []
    whole = all(isinstance(r, list) and len(r) == len(rows) and all(isinstance(n, int) for n in r) for r in rows)
    return bool(rows) and whole and len(names) == len(rows)


def structures(found: Any) -> list[str]:
    """The classes that are scored; none where there is one structure."""
    return [name.partition("/")[2] for name in found.spec.metrics if name.startswith("missed/")]


def _rule(found: Any) -> list[str]:
    """How values of several classes become one, which others do otherwise."""
    if not (names := structures(found)):
        return []
    if name := found.spec.primary.partition("/")[2]:
        return [
            f"Rows are compared by **{called(name)} alone**: a mean is over the patients that have it or were given it."
        ]
    return [
        f"Scores are means over **{joined([called(name) for name in names])}, without the background**: first over the"
        " classes that a patient has or was given, then over patients."
    ]


def _region(found: Any) -> list[str]:
    """Published scores differ in this more than in networks."""
    several = {str(row.factors["data.roi"]) for row in found.rows if row.factors.get("data.roi")}
    if not several:
        return []
    named = joined([f"`{roi}`" for roi in sorted(several)])
    return [
        f"Pixels outside the **region of interest** ({named}) are in no score and were in no loss: rows without one"
        " are scored on other pixels."
    ]


def _sizes(found: Any) -> list[str]:
    """Each row is scored at its own, against truth of that size."""
    given = [row.factors["data.image_size"] for row in found.rows if "data.image_size" in row.factors]
    named = {f"{size} px" if size else "that of the files": size for size in given}
    if len(named) < 2:
        return []
    sizes = sorted(named, key=lambda text: (len(text), text))
    return [
        f"Rows of {joined(sizes)} are **scored at their own size**, against truth resized to it: what they differ in"
        " may be the measure as well as the network, and HD95 is in pixels of another size."
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
    what = (
        "a class of a patient was neither there nor predicted"
        if structures(found)
        else ("a patient had neither tumour nor prediction")
    )
    return [f"{undefined:g} times {what}: Dice is undefined there and left out of the means."]


def columns(found: Any) -> list[Column]:
    lost = [sum(r.metrics.get("test/missed") or 0 for r in row.runs) / max(len(row.seeds), 1) for row in found.rows]
    missed = [number(count, "g" if count == int(count) else ".1f") for count in lost]
    note = "patients with a tumour and none predicted, a mean over the seeds"
    if structures(found):
        note = "times a class was there in a patient's volume and no pixel of it predicted, a mean over the seeds"
    rates = [number(row.metric("images_per_second"), ",.0f") for row in found.rows]
    return [Column("missed", missed, "train loss", note), Column("images/s", rates, "peak memory (MiB)")]


def note(job: Job) -> str:
    if not (job.run and (count := parts(job.run))):
        return ""
    return f"for want of memory its batches went through the network in {count} parts, which BatchNorm saw"


def then(folder: Path) -> str:
    return f"{typed('predict')} best:{folder} IMAGES --out masks   the best network on images of yours"


def sections(found: Any) -> list[Section]:
    made = [
        ("classes", "How each class scored", _by_class(found)),
        ("confusion", "What is taken for what", _confusion(found)),
    ]
    made.append(("overlays", "What does it look like?", _overlays(found)))
    return [Section(anchor, title, blocks) for anchor, title, blocks in made if blocks]


def _by_class(found: Any) -> list[Block]:
    """A line for each row and class, with the interval of its mean over patients."""
    if not (names := structures(found)):
        return []
    comparison, scores = found.comparison, found.spec.scores
    kinds = list(dict.fromkeys([*SCORES, *(name.partition("/")[0] for name in scores if "/" in name)]))
    plain = [scores[f"{kind}/{names[0]}"].title.removesuffix(f" of {called(names[0])}") for kind in kinds]
    titles = [title + found.measured_in(kind) for title, kind in zip(plain, kinds, strict=True)]
    marks: dict[str, dict[int, str]] = {}
    for key, bests in comparison.best.items():
        marks[key] = {}
        for best in bests:
            if len(best.tied) < best.rivals:
                marks[key] |= dict.fromkeys([best.row, *best.tied], "tied" if best.tied else "best")
    rows: list[list[Cell | str]] = []
    for name in names:
        for i, row in enumerate(found.rows):
            cells: list[Cell | str] = [called(name), Cell(found.title(i), i)]
            for kind in kinds:
                key = f"{kind}/{name}"
                metric = scores[key]
                mean = comparison.mean(i, key)
                form = metric.mean_format or (".3f" if kind in SCORES else metric.format)
                text = ranged(comparison.interval(i, key), mean, form)
                cells.append(Cell(text, mean if mean == mean else "", marks[key].get(i, "")))
            dice = comparison.by_unit(i, f"dice/{name}")
            cells += [number(float((~np.isnan(dice)).sum()), "g"), number(row.metric(f"test/undefined/{name}"), "g")]
            rows.append(cells)
    head = ["class", "row", *titles, f"{found.units}", "left out"]
    notes = {
        found.units: "that have the class, or were given it",
        "left out": "without the class and without a pixel predicted of it, a mean over the repeats",
    }
    return [Table("Each class against all others: means over patients with 95 % intervals.", head, rows, notes)]


def _confusion(found: Any) -> list[Block]:
    """Shares of the pixels of each class, for the best rows; repeats pooled."""
    blocks: list[Block] = []
    for i, row in enumerate(found.rows):
        kept = [artifacts.read_json(run.folder / CONFUSION) for run in row.runs]
        good = [k for k in kept if isinstance(k, dict) and _square(k.get("pixels"), k.get("classes"))]
        if not good or len(blocks) == CONFUSED:
            continue
        names = good[0]["classes"]
        pixels = np.sum([np.array(k["pixels"], dtype=np.float64) for k in good if k["classes"] == names], axis=0)
        rows: list[list[Cell | str]] = []
        for t, name in enumerate(names):
            total = pixels[t].sum()
            shares = [number(pixels[t, q] / total if total else None, ".2%") for q in range(len(names))]
            rows.append([called(name), *shares, number(total, ",.0f")])
        head = ["truth", *(f"taken for {called(name)}" for name in names), "pixels"]
        blocks.append(
            Table(f"{found.title(i)}: of the test's pixels of each class, the share taken for which.", head, rows)
        )
    if blocks and len(found.rows) > len(blocks):
        blocks.append(f"Shown are the best {len(blocks)} rows of {len(found.rows)} that kept it.")
    return blocks


def overlays(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Patient -> image (H, W, C) uint8, truth, prediction (H, W) bool, or uint8 of `classes`, slice; empty without a
    readable file."""
    try:
        with np.load(run.folder / "overlays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("slice", "image", "truth", "prediction")}
            names = {"classes": file["classes"]} if "classes" in file else {}
            size = file["size"] if "size" in file else [arrays["image"].shape[1:3]] * len(file["patient"])
            cut = [
                {k: v[i][:h, :w] if v.ndim > 1 else v[i] for k, v in arrays.items()} for i, (h, w) in enumerate(size)
            ]
            return {str(p): one | names for p, one in zip(file["patient"], cut, strict=True)}
    except (OSError, ValueError, TypeError, KeyError, IndexError, EOFError):
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
    score, title = (found.spec.primary, found.metric.title) if structures(found) else ("dice", "Dice")
    dice = {p: float(nanmean(np.array([kept[p][0].units[p][score] for kept in shown.values()]))) for p in common}
    ranked = sorted((p for p in dice if dice[p] == dice[p]), key=lambda p: (-dice[p], p))
    if not ranked:
        return []
    lines = "largest tumour; truth dashed green, prediction solid orange"
    if several := structures(found):
        named = joined([f"{called(n)} {colour}" for n, colour in zip(several, _cycled(len(several)), strict=True)])
        lines = f"largest structures; truth dashed, prediction solid, each class in its colour: {named}"
    blocks: list[Block] = [
        f"Each patient's slice with the {lines}. Best, median and"
        f" worst by the mean {title} of the rows shown ({plural(len(ranked), 'patient')} in common)."
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
        alt = f"Slice {picture['slice']} of the {role} patient, {patient}, with the truth outlined"
        panel = [overlay(f"overlay-{role}-truth", alt, "truth alone", picture["image"], picture["truth"], None)]
        for i, kept in shown.items():
            run, picture = kept[patient]
            row = found.title(i) + (f", seed {run.seed}" if len(found.rows[i].seeds) > 1 else "")
            caption = f"{row}: {title} {run.units[patient][score]:.3f}"
            alt = f"Slice {picture['slice']} of the {role} patient with truth and prediction outlined; {caption}"
            arrays = (picture["image"], picture["truth"], picture["prediction"])
            panel.append(overlay(f"overlay-{role}-row{i + 1}", alt, caption, *arrays))
        blocks += [f"**{role.capitalize()} patient**: {patient}, mean {title} {dice[patient]:.3f}", panel]
    return blocks


def _cycled(count: int) -> list[str]:
    return [list(COLOURS)[k % len(COLOURS)] for k in range(count)]


def overlay(
    name: str, alt: str, caption: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray | None
) -> Figure:
    """One slice (H, W, C) uint8 in grey, the truth's outline dashed green, the prediction's solid orange, or both in
    the colours of the classes where they are uint8; magnified to about 256 px.

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
            classes = [None] if mask.dtype == bool else [k for k in np.unique(mask) if 0 < k < PADDED]
            for k in classes:
                inside = large(np.asarray(mask, bool) if k is None else mask == k)
                edge = inside & ~ndimage.binary_erosion(inside, iterations=2 if factor > 1 else 1)
                pixels[edge & pattern] = colour if k is None else 66 + (int(k) - 1) % len(COLOURS)
    picture = Image.fromarray(pixels.astype(np.uint8), mode="P")
    palette = [level for grey in range(64) for level in [grey * 255 // 63] * 3] + [255, 120, 40, 40, 235, 140]
    more = [level for colour in colours(len(COLOURS)) for level in colour] if pixels.max() > 65 else []
    picture.putpalette(palette + more)
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return Figure(name, alt, caption, buffer.getvalue())
