"""The pictures of one run: its curves and the overlays of three patients.

Curves by matplotlib's object interface, without its global state: several runs may draw in one process.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from segsweep import artifacts

CURVES = ("loss", "accuracy", "dice")
TITLES = {"loss": "Loss", "accuracy": "Pixel accuracy", "dice": "Dice, mean of patients"}
OUTLINES = {"truth": (255, 176, 0), "prediction": (0, 208, 255)}
TILE, GAP = 288, 8
"""Pixels: the longer side of an overlay, and between two."""


def save(figure: Figure, path: Path) -> None:
    with artifacts.atomic(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def curves(history: list[dict[str, Any]], part: str) -> Figure:
    """Loss, accuracy and Dice of training and of `part` ("val" or "test") against the epoch."""
    figure = Figure(figsize=(12, 3.4), dpi=100)
    epochs = [row["epoch"] for row in history]
    for place, name in enumerate(CURVES):
        axes = figure.add_axes((0.045 + 0.325 * place, 0.15, 0.295, 0.75))  # a layout engine takes as long as drawing
        for source, style in (("train", "o--"), (part, "o-")):
            values = [np.nan if row[f"{source}/{name}"] is None else row[f"{source}/{name}"] for row in history]
            axes.plot(epochs, values, style, label=source, markersize=4)
        axes.set(title=TITLES[name], xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def overlays(shown: dict[str, np.ndarray], dice: dict[str, float]) -> Image.Image:
    """Image, truth and prediction of the best, the median and the worst patient.

    `shown`: patient, slice (n,), image (n, H, W, C) uint8, truth and prediction (n, H, W) bool; `dice`: by patient.
    Drawn by hand, a tenth of the time that matplotlib takes: every run has one.
    """
    scored = sorted((p for p in shown["patient"] if not np.isnan(dice[p])), key=lambda p: -dice[p])
    picked = {"best": scored[0], "median": scored[len(scored) // 2], "worst": scored[-1]} if scored else {}
    height, width = (max(1, round(side * TILE / max(shown["image"].shape[1:3]))) for side in shown["image"].shape[1:3])
    page = Image.new("RGB", (3 * (width + GAP) + GAP, max(len(picked), 1) * (height + 2 * GAP) + GAP), "white")
    pen = ImageDraw.Draw(page)
    for row, (rank, patient) in enumerate(picked.items()):
        at, top = list(shown["patient"]).index(patient), row * (height + 2 * GAP) + 2 * GAP
        image = shown["image"][at] if shown["image"].shape[-1] == 3 else shown["image"][at][..., :1].repeat(3, -1)
        titles = f"{rank}: {patient}, Dice {dice[patient]:.3f}", "truth", "prediction"
        for column, (title, kind) in enumerate(zip(titles, (None, *OUTLINES), strict=True)):
            tile = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST))
            if kind:
                mask = np.array(Image.fromarray(shown[kind][at]).resize((width, height), Image.Resampling.NEAREST))
                tile[mask & ~binary_erosion(mask, iterations=2)] = OUTLINES[kind]
            left = GAP + column * (width + GAP)
            page.paste(Image.fromarray(tile), (left, top))
            pen.text((left, top - 14), title, fill="black")
    return page


def draw(
    folder: Path, history: list[dict[str, Any]], part: str, patients: Any, volumes: Any, test: Any, masks: Any
) -> None:
    """Write curves.png, overlays.npz and overlays.png of a run. `masks`: predictions (len(test), H, W) bool."""
    save(curves(history, part), folder / "curves.png")
    shown = largest_slices(volumes, test, masks)
    with artifacts.atomic(folder / "overlays.npz") as partial:
        np.savez_compressed(partial, **shown)  # type: ignore[arg-type]
    with artifacts.atomic(folder / "overlays.png") as partial:
        overlays(shown, {row["patient"]: row["dice"] for row in patients.rows}).save(partial)


def largest_slices(volumes: Any, test: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Of every test patient the slice with the most tumour, its image stretched to 0-255 for display."""
    owner, sizes = volumes.patient[test], volumes.masks[test].sum((1, 2), dtype=np.int64)
    rows = [np.flatnonzero(owner == p)[sizes[owner == p].argmax()] for p in np.unique(owner)]
    images = volumes.images[test[rows]].astype(np.float32)
    low, high = np.percentile(images, (1, 99.5), axis=(1, 2), keepdims=True)
    return {
        "patient": np.array([volumes.patients[owner[r]] for r in rows]),
        "slice": np.array([volumes.slices[test[r]] for r in rows]),
        "image": (255 * np.clip((images - low) / np.maximum(high - low, 1), 0, 1)).astype(np.uint8),
        "truth": volumes.masks[test[rows]] > 0,
        "prediction": masks[rows],
    }
