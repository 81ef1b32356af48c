"""The pictures of a run: drawn from whatever the history holds, with the outlines where the masks are."""

import math

import numpy as np
import pytest

from segsweep.segmentation import figures


def history(*values: float | None) -> list[dict]:
    keys = [f"{part}/{name}" for part in ("train", "val") for name in figures.CURVES]
    return [{"epoch": epoch} | dict.fromkeys(keys, value) for epoch, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        (0.0, 1.0, 0.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.08, 0.53, 0.0, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (1, 3, 1, [1, 2, 3]),
        (1, 100, 1, [20, 40, 60, 80, 100]),
        (0.5, 0.5, 0.0, []),
        (1, 1, 1, [1]),
        (-2.0, 3.0, 0.0, [-2, -1, 0, 1, 2, 3]),
    ],
)
def test_ticks_are_round(low, high, least, expected):
    assert figures._ticks(low, high, least) == pytest.approx(expected)


@pytest.mark.parametrize("values", [(0.5,), (0.5, None, 0.3), (None, None), (math.nan, 0.2), (0.7, 0.7, 0.7)])
def test_curves_are_drawn_whatever_is_missing(values):
    page = np.array(figures.curves(history(*values), "val"))
    assert page.shape == (340, 1200, 3)
    orange = (np.abs(page.astype(int) - (255, 127, 14)).sum(-1) < 30)[30:290]  # the lines, not the legend
    known = [v for v in values if v is not None and math.isfinite(v)]
    assert orange.any() == bool(known)


def test_a_higher_value_lies_higher():
    page = np.array(figures.curves(history(0.1, 0.9), "val"))[30:290, :400]
    orange = np.abs(page.astype(int) - (255, 127, 14)).sum(-1) < 30
    rows, columns = np.nonzero(orange)
    assert rows[columns.argmax()] < rows[columns.argmin()]


@pytest.mark.parametrize(("channels", "size"), [(3, (20, 20)), (1, (20, 40)), (4, (40, 20))])
def test_overlays_outline_truth_and_prediction_of_best_median_and_worst(channels, size):
    shown = {
        "patient": np.array(["a", "b", "c", "d"]),
        "slice": np.array(["1"] * 4),
        "image": np.zeros((4, *size, channels), np.uint8),
        "truth": np.zeros((4, *size), bool),
        "prediction": np.zeros((4, *size), bool),
    }
    shown["truth"][:, 5:15, 5:15] = True
    shown["prediction"][0, 5:10, 5:10] = True
    page = np.array(figures.overlays(shown, {"a": 0.4, "b": 0.0, "c": math.nan, "d": 0.0}))
    height, width = (round(side * figures.TILE / max(size)) for side in size)
    assert page.shape == (3 * (height + 2 * figures.GAP) + figures.GAP, 3 * (width + figures.GAP) + figures.GAP, 3)
    for kind, column, count in (("truth", 1, 3), ("prediction", 2, 1)):  # b and d have nothing predicted
        found = (page == figures.OUTLINES[kind]).all(-1)
        rows, columns = np.nonzero(found)
        assert set(columns // (width + figures.GAP)) == {column}
        assert len(set(rows // (height + 2 * figures.GAP))) == count


def test_no_scored_patient_is_an_empty_page():
    empty = {"patient": np.array(["a"]), "slice": np.array(["1"]), "image": np.zeros((1, 8, 8, 3), np.uint8)}
    masks = {"truth": np.zeros((1, 8, 8), bool), "prediction": np.zeros((1, 8, 8), bool)}
    assert (np.array(figures.overlays(empty | masks, {"a": math.nan})) == 255).all()
