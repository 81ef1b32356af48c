"""What the report says of one task alone, by modules that the task's description names (`Spec.sections`).

A module may have, all of it optional:

    WORDS: dict          how something is called in this task's sentences, or what gives it of the findings; see
                         `Findings.word`
    unit(found, name)    -> what the values of a metric are in, such as "px", for headings, or ""
    NOTES: dict          metric -> its footnote below the table of results, in place of the metric's `meaning`
    sentences(found)     -> dict: anchor of a section -> sentences that it says too
    columns(found)       -> list of Column, of the table of results
    sections(found)      -> list of Section, which stand before the curves
    note(job)            -> a line below the closing table, or ""
    then(folder)         -> what one would type after a sweep, a folder

`found` is a `Findings`. A record can name any module, and may be of another's making: imported are only those that are
allowed by SEGSWEEP_ALLOW, and of this program those that are called `...sections`, as others have functions of these
names that do other things. What fails is left out and told, since a report is made all the same.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from segsweep.report.content import Cell
from segsweep.task import Spec


@dataclass(frozen=True)
class Column:
    """`before`: heading of the column that it stands before. One cell a row."""

    head: str
    cells: list[Cell]
    before: str
    note: str = ""


def modules(spec: Spec) -> tuple[list[ModuleType], list[str]]:
    """Those that may be imported and can be, and of the others why not."""
    found, problems = [], []
    for name in spec.sections:
        if not _allowed(name):
            problems.append(
                f"{name}: not imported; for your own package set SEGSWEEP_ALLOW=package.* in the environment"
            )
            continue
        try:
            found.append(importlib.import_module(name))
        except Exception as error:  # importing somebody's module can raise anything
            problems.append(f"{name}: cannot be imported: {type(error).__name__}: {error}")
    return found, problems


def _allowed(name: str) -> bool:
    if name.startswith("segsweep."):
        return name.endswith("sections")
    from segsweep.config.whitelist import is_own  # lazily: it takes Hydra

    return is_own(name)


def ask(found: list[ModuleType], what: str, problems: list[str], *arguments: Any) -> list[Any]:
    """What the function `what` of each module that has it returns."""
    answers = []
    for module in found:
        function: Callable[..., Any] | None = getattr(module, what, None)
        try:
            answers += [function(*arguments)] if function else []
        except Exception as error:  # as above
            problems.append(f"{module.__name__}.{what}: left out: {type(error).__name__}: {error}")
    return answers
