"""In what two trainings that should be one differ, in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segsweep.task import PARTS, Spec

MOST = 3
"""Most things of a kind that a sentence names."""


def first_difference(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> str:
    """The first epoch and metric in which two histories differ, "" where they do not."""
    for one, two in zip(a, b, strict=False):
        keys = [key for key in dict.fromkeys([*one, *two]) if key.partition("/")[0] in PARTS]
        differ = [key for key in keys if not same(one.get(key), two.get(key))]
        if differ:
            others = f" (and {listed(differ[1:])})" if differ[1:] else ""
            values = f"{short(one.get(differ[0]))}, then {short(two.get(differ[0]))}"
            return f"the values differ from epoch {one['epoch']} on, {differ[0]}: {values}{others}"
    return "" if len(a) == len(b) else f"there are {len(a)} epochs, then {len(b)}"


def other_test(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    for key in a:
        if not same(_plain(a[key]), _plain(b.get(key))):
            what = "test" if str(key).startswith("test/") else "result"
            return f"the {what} differs, {key}: {short(a[key])}, then {short(b.get(key))}"
    return ""


def other_units(a: Mapping[str, Any], b: Mapping[str, Any], spec: Spec) -> str:
    if a.keys() != b.keys():
        other = sorted(map(str, a.keys() ^ b.keys()))
        return f"the test is of other {spec.unit}s: {listed(other)} in one run alone"
    for unit, name in ((unit, name) for unit in a for name in spec.scores):
        if not same(_plain(a[unit].get(name)), _plain(b[unit].get(name))):
            return f"{name} of {spec.unit} {unit} differs: {short(a[unit].get(name))}, then {short(b[unit].get(name))}"
    return ""


def same(a: Any, b: Any) -> bool:
    """To the last bit; NaN is NaN."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        one, two = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return torch.equal(one, two)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def where(a: Any, b: Any, path: str = "") -> str:
    """The first key at which two states differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            if key not in a or key not in b or not same(a[key], b[key]):
                return where(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    return f" ({path})" if path else ""


def _plain(value: Any) -> Any:
    """As a run has it, whatever is none as it is."""
    from segsweep.runs.loop import plain

    found = plain(value, truths=True)
    return value if found is None else found


def same_file(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()


def short(value: Any) -> str:
    text = str(_plain(value))
    return text if len(text) <= 40 else f"{text[:40]}..."


def listed(names: Any) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:MOST]) + (f" and {len(texts) - MOST} more" if len(texts) > MOST else "")
