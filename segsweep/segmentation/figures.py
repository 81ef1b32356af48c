"""The pictures of one run: its curves and the overlays of three patients.

Drawn by hand: every run has them, and matplotlib takes a fifth of a second for the two, and half a second to import.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segsweep.core import artifacts
from segsweep.segmentation.data.labels import PADDED, VOID, colours, unseen

CURVES = {"loss": "Loss", "accuracy": "Pixel accuracy", "dice": "Dice, mean of patients"}
COLOURS = ("#1f77b4", "#ff7f0e")
OUTLINES = {"truth": (255, 176, 0), "prediction": (0, 208, 255)}
TILE, GAP = 288, 8
"""Pixels: the longer side of an overlay, and between two."""


def curves(history: list[dict[str, Any]], part: str) -> Image.Image:
    """Loss, accuracy and Dice of training and of `part` ("val" or "test") against the epoch, (1200, 340) pixels."""
    page = Image.new("RGB", (2400, 680), "white")  # twice the size, halved at the end: smooth lines
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(24)
    epochs = [row["epoch"] for row in history]
    for panel, (name, title) in enumerate(CURVES.items()):
        left, right, top, bottom = 800 * panel + 110, 800 * panel + 780, 60, 580
        lines = {source: [row[f"{source}/{name}"] for row in history] for source in ("train", part)}
        known = [v for values in lines.values() for v in values if v is not None and math.isfinite(v)] or [0.0, 1.0]
        across, up = _scale(min(epochs), max(epochs), left, right), _scale(min(known), max(known), bottom, top)
        for tick in _ticks(min(epochs), max(epochs), least=1):
            pen.line((across(tick), top, across(tick), bottom), "#dddddd", 2)
            pen.text((across(tick), bottom + 10), f"{tick:g}", "black", font, "ma")
        for tick in _ticks(min(known), max(known)):
            pen.line((left, up(tick), right, up(tick)), "#dddddd", 2)
            pen.text((left - 12, up(tick)), f"{tick:.4g}", "black", font, "rm")
        pen.rectangle((left, top, right, bottom), outline="black", width=2)
        pen.text(((left + right) / 2, 44), title, "black", ImageFont.load_default(30), "ms")
        pen.text(((left + right) / 2, 650), "epoch", "black", font, "ms")
        for colour, values in zip(COLOURS, lines.values(), strict=True):
            places = [(across(e), up(v)) for e, v in zip(epochs, values, strict=True) if v in known]
            pen.line(places, colour, 4, joint="curve")
            for x, y in places:
                pen.ellipse((x - 6, y - 6, x + 6, y + 6), colour)
    for number, (colour, source) in enumerate(zip(COLOURS, ("train", part), strict=True)):
        pen.text((130 + 110 * number, 44), source, colour, font, "ms")
    return page.reduce(2)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to pixels, with a twentieth of the range free at both ends."""
    room = (high - low) / 20 or 0.5
    return lambda value: start + (end - start) * (value - low + room) / (high - low + 2 * room)


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """About five round numbers from low to high: multiples of 1, 2 or 5 times a power of ten, at least `least`."""
    rough = max((high - low) / 5, least) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def overlays(shown: dict[str, np.ndarray], dice: dict[str, float]) -> Image.Image:
    """Image, truth and prediction of the best, the median and the worst patient.

    `shown`: patient, slice (n,), image (n, H, W, C) uint8, truth and prediction (n, H, W) bool, or uint8 of `classes`,
    which have a colour each then, named below; `dice`: by patient.
    """
    names = [str(name) for name in shown.get("classes", ())][1:]
    scored = sorted((p for p in shown["patient"] if not np.isnan(dice[p])), key=lambda p: -dice[p])
    picked = {"best": scored[0], "median": scored[len(scored) // 2], "worst": scored[-1]} if scored else {}
    height, width = (max(1, round(side * TILE / max(shown["image"].shape[1:3]))) for side in shown["image"].shape[1:3])
    below = 2 * GAP * bool(names)
    page = Image.new("RGB", (3 * (width + GAP) + GAP, max(len(picked), 1) * (height + 2 * GAP) + GAP + below), "white")
    pen = ImageDraw.Draw(page)
    for row, (rank, patient) in enumerate(picked.items()):
        at, top = list(shown["patient"]).index(patient), row * (height + 2 * GAP) + 2 * GAP
        image = shown["image"][at] if shown["image"].shape[-1] == 3 else shown["image"][at][..., :1].repeat(3, -1)
        titles = f"{rank}: {patient}, Dice {dice[patient]:.3f}", "truth", "prediction"
        for column, (title, kind) in enumerate(zip(titles, (None, *OUTLINES), strict=True)):
            tile = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST))
            if kind:
                mask = np.array(Image.fromarray(shown[kind][at]).resize((width, height), Image.Resampling.NEAREST))
                for area, colour in areas(mask, OUTLINES[kind]):
                    tile[area & ~eroded(eroded(area))] = colour
            left = GAP + column * (width + GAP)
            page.paste(Image.fromarray(tile), (left, top))
            pen.text((left, top - 14), title, fill="black")
    left = GAP
    for name, colour in zip(names, colours(len(names)), strict=True):
        pen.rectangle((left, page.height - 2 * GAP, left + GAP, page.height - GAP), fill=colour)
        pen.text((left + GAP + 4, page.height - 2 * GAP - 2), name, fill="black")
        left += 3 * GAP + int(pen.textlength(name))
    return page


def areas(mask: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
    """What is outlined of a mask (H, W) and how: one structure of bool in `colour`, each class of uint8 in its own."""
    if mask.dtype == bool:
        return [(mask, colour)]
    present = [int(k) for k in np.unique(mask) if 0 < k < PADDED]
    return [(mask == k, colours(k)[-1]) for k in present]


def eroded(area: np.ndarray) -> np.ndarray:
    """(H, W) bool, without what has one of its four neighbours outside of it; so is what lies beyond the image.
    By hand, as scipy's takes longer to import than a run to draw all that it draws."""
    wide = np.pad(area, 1)
    return area & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]


def draw(
    folder: Path, history: list[dict[str, Any]], part: str, patients: Any, volumes: Any, test: Any, masks: Any
) -> None:
    """Write curves.png, overlays.npz and overlays.png of a run. `masks`: predictions (len(test), H, W) bool, or uint8
    of classes."""
    with artifacts.atomic(folder / "curves.png") as partial:
        curves(history, part).save(partial, compress_level=1)
    shown = largest_slices(volumes, test, masks)
    with artifacts.atomic(folder / "overlays.npz") as partial:
        np.savez_compressed(partial, **shown)  # type: ignore[arg-type]
    with artifacts.atomic(folder / "overlays.png") as partial:
        overlays(shown, {row["patient"]: row["dice"] for row in patients.rows}).save(partial, compress_level=1)


def largest_slices(volumes: Any, test: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Of every test patient the slice with the most tumour, or most of all classes but the background, its image
    stretched to 0-255 for display; where images are padded, the `size` of each without that."""
    names, owner, truth = volumes.labels.names, volumes.patient[test], volumes.masks[test]
    if names or volumes.void:
        truth = (truth > 0) & (truth < PADDED)
    sizes = truth.sum((1, 2), dtype=np.int64)
    rows = [np.flatnonzero(owner == p)[sizes[owner == p].argmax()] for p in np.unique(owner)]
    images = volumes.images[test[rows]].astype(np.float32)
    low, high = np.percentile(images, (1, 99.5), axis=(1, 2), keepdims=True)
    shown, outside = volumes.masks[test[rows]], unseen(volumes.masks[test[rows]])
    more = {"classes": np.array(names)} if names else {}
    more |= {} if volumes.sizes is None else {"size": volumes.sizes[test[rows]]}
    return {
        "patient": np.array([volumes.patients[owner[r]] for r in rows]),
        "slice": np.array([volumes.slices[test[r]] for r in rows]),
        "image": (255 * np.clip((images - low) / np.maximum(high - low, 1), 0, 1)).astype(np.uint8),
        "truth": np.where(outside, VOID, shown) if names else shown == 1,
        "prediction": masks[rows] * ~outside,
    } | more
