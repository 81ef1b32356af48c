"""Configurations and records of earlier versions, as they are read today."""

import importlib
from collections.abc import Mapping
from typing import Any

from segsweep.task import Spec

OLD = {
    "segsweep.models.": "segsweep.segmentation.models.",
    "segsweep.data.": "segsweep.segmentation.data.",
    "segsweep.losses.": "segsweep.segmentation.losses.",
    "segsweep.segmentation.Segmentation": "segsweep.segmentation.task.Segmentation",
}
"""Beginnings of targets, as configurations and records of before name them -> as they are now."""
FIRST = "segsweep.segmentation.metrics.SPEC"
"""Of records from before tasks described themselves."""


def today(node: Any) -> Any:
    """A copy of a resolved node with the names of before, see OLD, replaced."""
    if isinstance(node, Mapping):
        return {key: renamed(item) if key == "_target_" else today(item) for key, item in node.items()}
    return [today(item) for item in node] if isinstance(node, list | tuple) else node


def renamed(target: Any) -> Any:
    if isinstance(target, str):
        for old, new in OLD.items():
            if target.startswith(old):
                return new + target.removeprefix(old)
    return target


def spec_of(info: Mapping[str, Any]) -> Spec:
    """What a run.json says of its task. Raises ValueError where that is damaged."""
    if info.get("task") is None:  # from before tasks described themselves, when all were of one
        module, _, name = FIRST.rpartition(".")
        return Spec.from_json(getattr(importlib.import_module(module), name).to_json())
    return Spec.from_json(info["task"])
