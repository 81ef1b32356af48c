"""What a label image tells apart: classes that exclude one another, or one structure, and pixels that are void.

Inside the program a mask has the place of a class among the classes, 0 to C - 1, and VOID where nothing is to count.
Without classes it is the mask of one structure, {0, 1}, and a network has one map of logits for it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segsweep.core.errors import DataError

VOID = 255
"""Of a pixel that enters no loss, no metric and no count."""
OUTSIDE = 254
"""Of a pixel outside the region of interest: void, and its image does not count either. Batches have VOID for it."""
PADDED = 253
"""The same below and to the right of an image that is smaller than others of its set."""
MOST = 254
"""Classes that a mask of 8 bit can tell apart, beside VOID and what a file has without leave."""
TOP = 65535
RULES = ("inverse", "median")
"""By which class weights come from the training part, see `weights`."""
NAME = re.compile(r"\w[\w.-]*")
COLOURS = {
    "orange": (230, 159, 0),
    "light blue": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "red": (213, 94, 0),
    "pink": (204, 121, 167),
    "blue": (0, 114, 178),
}
"""Colours of the classes after the background, and again from the first where there are more; Okabe and Ito's, which
are told apart without red or green."""
KINDS = (
    "expected a number of them, the background included, such as 4 for the values 0 to 3; or their names, the "
    "background first, [background,organ], with the values in the files where those are others, "
    "[background:0,organ:128]"
)


@dataclass(frozen=True)
class Labels:
    """names: of the classes, the background first; none: one structure. values: what files have for each. ignore:
    values of files that are void. roi: what names the files of the region outside which nothing counts."""

    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = ()
    roi: str | None = None

    @property
    def outputs(self) -> int:
        """Maps of logits that a network needs."""
        return len(self.names) or 1

    @property
    def void(self) -> tuple[int, ...]:
        """What masks may have beside the classes."""
        return (VOID,) * bool(self.names or self.ignore or self.roi) + (OUTSIDE,) * bool(self.roi)

    @property
    def structures(self) -> tuple[str, ...]:
        """The classes that are scored: all but the background; none where there is one structure without a name."""
        return self.names[1:]

    def read(self, mask: np.ndarray, file: str) -> np.ndarray:
        """A label file's values (H, W) as uint8 classes and VOID. Raises DataError naming the file and the values that
        are none of them."""
        table = np.full(TOP + 1, MOST, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.ignore)] = VOID
        found = table[mask]
        if (found == MOST).any():
            outside = np.unique(mask[found == MOST])
            hint = " (is it an image, or compressed with loss as JPEG is?)" if len(outside) > 8 else ""
            several = ", ".join(map(str, outside[:4])) + (f" and {len(outside) - 4} more" if len(outside) > 4 else "")
            raise DataError(
                f"{file}: label values outside the classes: {several}; data.classes has {self.told}: give more "
                f"classes, or name what is not to count, data.ignore=[{outside[0]}]{hint}"
            )
        return found

    def write(self, mask: np.ndarray) -> np.ndarray:
        """Classes (H, W) as the values that files have for them, uint8, or uint16 where one is above 255; one structure
        as 0 and 255."""
        values = np.array(self.values or (0, 255))
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[mask.astype(np.uint8)]

    @property
    def told(self) -> str:
        """The classes with their values, in a sentence."""
        if not self.names:
            return "one structure"
        if self.values == tuple(range(len(self.values))) == tuple(int(n) if n.isdecimal() else -1 for n in self.names):
            return f"the values 0 to {len(self.values) - 1}"
        return ", ".join(f"{name} {value}" for name, value in zip(self.names, self.values, strict=True))


ONE = Labels()


def labels(classes: Any, ignore: Any = ()) -> Labels:
    """What `data.classes` and `data.ignore` say. Raises DataError naming the key."""
    void = [ignore] if isinstance(ignore, int) else list(ignore or ())
    if wrong := [value for value in void if not _is_value(value)]:
        raise DataError(f"data.ignore={wrong[0]}: expected label values, whole numbers from 0 to {TOP}, such as [255]")
    names: list[Any]
    values: list[Any]
    if classes is None or (isinstance(classes, int) and not isinstance(classes, bool)):
        count = 1 if classes is None else classes
        if not 1 <= count < MOST:
            raise DataError(f"data.classes={classes}: 1 to {MOST - 1} are possible; {KINDS}")
        names, values = [str(n) for n in range(count)], list(range(count))
    elif isinstance(classes, str | bytes | Mapping) or not hasattr(classes, "__iter__"):
        raise DataError(f"data.classes={classes}: {KINDS}")
    else:
        told = [str(item).partition(":") if isinstance(item, str) else (item, "", "") for item in classes]
        names = [name for name, _, _ in told]
        values = [
            (int(value) if value.isdecimal() else value) if colon else n for n, (_, colon, value) in enumerate(told)
        ]
    shown = f"data.classes={list(classes) if isinstance(classes, Sequence) else classes}"
    if not 1 <= len(names) < MOST or any(not isinstance(name, str) or not NAME.fullmatch(name) for name in names):
        raise DataError(f"{shown}: a name is of letters, digits, _, - and dots, and there is one at least; {KINDS}")
    if len(set(names)) < len(names) or len(set(values)) < len(values):
        raise DataError(f"{shown}: two classes have the same name or value; each has its own")
    if wrong := [value for value in values if not _is_value(value)]:
        raise DataError(f"{shown}: {wrong[0]} is no label value; expected whole numbers from 0 to {TOP}")
    if len(names) == 1:  # masks of two values, as without the key
        names, values = [], []
    if both := set(void) & set(values or [0]):
        raise DataError(f"data.ignore={void}: {min(both)} is the value of a class; a value is either")
    return Labels(tuple(names), tuple(values), tuple(void))


def labels_of(data: Any) -> Labels:
    """Of a data set, or of the node of its configuration: its `classes`, `ignore` and `roi`, where it has them."""
    get = data.get if isinstance(data, Mapping) else lambda key: getattr(data, key, None)
    return replace(labels(get("classes"), get("ignore")), roi=get("roi") or None)


def unseen(masks: Any) -> Any:
    """Where an array or a tensor of masks is OUTSIDE or PADDED."""
    return (masks >= PADDED) & (masks < VOID)


def sizes(masks: np.ndarray) -> np.ndarray:
    """The height and width of the image in each of masks (N, H, W), without what is PADDED: (N, 2) int64."""
    return np.stack([(masks[:, :, 0] != PADDED).sum(1), (masks[:, 0] != PADDED).sum(1)], axis=1)


def counted(masks: np.ndarray, count: int) -> np.ndarray:
    """Pixels of each of `count` classes, and then of those that are void, in each of masks (N, H, W): (N, count + 1)
    int64."""
    found = np.zeros((len(masks), count + 1), np.int64)
    for row, mask in zip(found, masks, strict=True):
        several = np.bincount(mask.ravel(), minlength=VOID + 1)
        row[:count], row[count] = several[:count], several[PADDED:].sum()
    return found


def weights(rule: str, pixels: np.ndarray) -> list[float]:
    """A weight for each class from the pixels of the training slices (N, C), each class having some.

    inverse: all pixels / (C * those of the class). median: the median of the classes' frequencies / that of the class,
    a frequency being of the slices that have the class (Eigen and Fergus 2015, arXiv 1411.4734)."""
    pixels = pixels.astype(np.float64)
    if rule == "inverse":
        return (pixels.sum() / (pixels.shape[1] * pixels.sum(0))).tolist()
    there = (pixels > 0) * pixels.sum(1, keepdims=True)
    frequency = pixels.sum(0) / there.sum(0)
    return (np.median(frequency) / frequency).tolist()


def colours(count: int) -> list[tuple[int, int, int]]:
    """Of so many classes after the background."""
    return [list(COLOURS.values())[k % len(COLOURS)] for k in range(count)]


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOP
