"""The sections of the report, in the order in which a person asks.

To add one, write a function `(Findings) -> Section | None` in a file of this folder and put it in SECTIONS; None leaves
it out. What is of one task alone is in a module of that task (`segsweep.report.own`), its sections before the curves.
"""

from collections.abc import Callable

from segsweep.report.content import Section
from segsweep.report.findings import Findings
from segsweep.report.sections.evidence import confounded, contrasts, method, repeats, tradeoffs
from segsweep.report.sections.provenance import provenance
from segsweep.report.sections.results import hyperparameters, missing, results
from segsweep.report.sections.summary import summary
from segsweep.report.sections.training import curves, importance, learning_rate, overfitting


def make(found: Findings) -> list[Section]:
    """All that there is something to say in."""
    made = []
    for section in SECTIONS:
        made += found.own.sections if section is curves else []
        made += [one] if (one := section(found)) else []
    return made


SECTIONS: list[Callable[[Findings], Section | None]] = [
    summary,
    missing,
    hyperparameters,
    results,
    contrasts,
    confounded,
    repeats,
    tradeoffs,
    curves,
    overfitting,
    learning_rate,
    importance,
    provenance,
    method,
]
