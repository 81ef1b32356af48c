"""The pictures of one run: its curves and the overlays of three patients.

Drawn with matplotlib's object interface, without its global state: several runs may draw in one process.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segsweep import artifacts

CURVES = ("loss", "accuracy", "dice")
TITLES = {"loss": "Loss", "accuracy": "Pixel accuracy", "dice": "Dice, mean of patients"}


def save(figure: Figure, path: Path) -> None:
    with artifacts.atomic(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def curves(history: list[dict[str, Any]], part: str) -> Figure:
    """Loss, accuracy and Dice of training and of `part` ("val" or "test") against the epoch."""
    figure = Figure(figsize=(12, 3.4), layout="constrained", dpi=100)
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 3), CURVES, strict=True):
        for source, style in (("train", "o--"), (part, "o-")):
            values = [np.nan if row[f"{source}/{name}"] is None else row[f"{source}/{name}"] for row in history]
            axes.plot(epochs, values, style, label=source, markersize=4)
        axes.set(title=TITLES[name], xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def overlays(shown: dict[str, np.ndarray], dice: dict[str, float]) -> Figure:
    """Image, truth and prediction of the best, the median and the worst patient.

    `shown`: patient, slice (n,), image (n, H, W, C) uint8, truth and prediction (n, H, W) bool; `dice`: by patient.
    """
    scored = sorted((p for p in shown["patient"] if not np.isnan(dice[p])), key=lambda p: -dice[p])
    picked = {"best": scored[0], "median": scored[len(scored) // 2], "worst": scored[-1]} if scored else {}
    figure = Figure(figsize=(9, 3.1 * max(len(picked), 1)), layout="constrained", dpi=100)
    grid = figure.subplots(max(len(picked), 1), 3, squeeze=False)
    for row, (rank, patient) in zip(grid, picked.items(), strict=False):
        at = list(shown["patient"]).index(patient)
        image = shown["image"][at]
        for axes, title, mask in zip(
            row, ("image", "truth", "prediction"), (None, shown["truth"][at], shown["prediction"][at]), strict=True
        ):
            axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray")
            if mask is not None and mask.any():
                axes.contour(mask, levels=[0.5], colors="#ffb000" if title == "truth" else "#00d0ff", linewidths=1.5)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{rank}: {patient}, Dice {dice[patient]:.3f}" if mask is None else title, fontsize=8)
    return figure


def draw(
    folder: Path, history: list[dict[str, Any]], part: str, patients: Any, volumes: Any, test: Any, masks: Any
) -> None:
    """Write curves.png, overlays.npz and overlays.png of a run. `masks`: predictions (len(test), H, W) bool."""
    save(curves(history, part), folder / "curves.png")
    shown = largest_slices(volumes, test, masks)
    with artifacts.atomic(folder / "overlays.npz") as partial:
        np.savez_compressed(partial, **shown)  # type: ignore[arg-type]
    save(overlays(shown, {row["patient"]: row["dice"] for row in patients.rows}), folder / "overlays.png")


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
