"""The table that closes a sweep in the terminal: one line a job, only what varies as columns, what all share in the
caption.
"""

from collections import Counter
from collections.abc import Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from segsweep.config.before import spec_of
from segsweep.core import artifacts
from segsweep.core.errors import printable
from segsweep.core.masks import first_line
from segsweep.report import own
from segsweep.report.comparison import key, show, telling
from segsweep.report.content import inside
from segsweep.report.record import Job
from segsweep.task import Spec

STYLES = {"failed": "red", "pruned": "yellow", "interrupted": "yellow", "never started": "yellow", "finished": "green"}
STYLES |= {"stopped early": "green"}


def table(jobs: Sequence[Job], width: int | None = None, color: bool = False, spec: Spec | None = None) -> str:
    """The jobs of a sweep (`records.read([folder]).jobs`) as text, with ANSI colours on request. `spec`: of their task;
    default: what most runs say.

    The caption is folded to `width` (default: the terminal's); the table itself is never cut, it needs what it needs.
    """
    spec = spec or _spec(jobs)
    metrics_shown = _metrics(jobs, spec)
    settings = [dict(job.run.factors if job.run else {}) or dict(job.varied) for job in jobs]
    known = [s for s in settings if s]
    names = list(dict.fromkeys(name for s in known for name in s))
    levels = {name: {key(s[name]) for s in known if name in s} for name in names}
    partial = {name for name in names if any(name not in s for s in known)}
    columns = [
        name for name in names if len(levels[name]) > 1
    ]  # a key that only some options have, with one value, tells nothing
    same = {name: known[0][name] for name in names if len(levels[name]) == 1 and name not in partial}
    shared = ", ".join(f"{name}={show(value)}" for name, value in telling(same, spec).items())

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("job", *columns):
        drawn.add_column(_text(name, "."), no_wrap=True, justify="right" if name == "job" else "left")
    drawn.add_column("status", no_wrap=True)
    for name in (*(title for title, _, _ in metrics_shown), "seconds", "parameters"):
        drawn.add_column(_text(name, "\n"), justify="right", no_wrap=True)
    for job, found in zip(jobs, settings, strict=True):
        metrics = job.run.metrics if job.run else {}
        # a job that failed may have been asked for a run that is finished, by an earlier one
        done = job.run is not None and job.run.status == "finished" and job.status != "failed"
        cells = [_number(metrics.get(name) if done else None, spec) for _, name, spec in metrics_shown]
        cells += [
            _number(job.seconds, ",.1f"),
            _number(metrics.get("parameters") or (job.run.info.get("parameters") if job.run else None), ",d"),
        ]
        state = Text(printable(job.status), style=STYLES.get(job.status, ""))
        drawn.add_row(
            str(job.number) if job.number >= 0 else "–",
            *(_text(show(found[c])) if c in found else "–" for c in columns),
            state,
            *cells,
        )

    console = Console(
        file=StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False,
        force_jupyter=False,  # it would show the table there, and write nothing
    )  # fmt: skip
    room = console.width
    console.width = max(room, Measurement.get(console, console.options.update(width=10_000), drawn).maximum)
    console.print(drawn)
    console.width = room
    if shared and len(jobs) > 1:
        console.print(_text(f"All: {shared}"))
    if blind := [job for job in jobs if job.status == "reused" and job.run and job.run.unwatched]:
        told = "data=[...] of segsweep.main, or the digest of a task's Data, says what they are"
        text = f"{_whose(blind)}: answered from the record; the data are not watched ({told})"
        console.print(Text(text), soft_wrap=True)
    if tested := [job for job in jobs if job.tested]:
        console.print(Text(f"{_whose(tested)}: {artifacts.TESTED}"), soft_wrap=True)
    modules, _ = own.modules(spec)
    for job in jobs:
        if text := artifacts.stopped(job.run.result) if job.run and job.status in artifacts.WHOLE else "":
            console.print(Text(printable(f"job {job.number} {text}")), soft_wrap=True)
        if job.error:
            first = first_line(job.error)
            text = f"job {job.number} {job.status}: {f'{job.error_class}: ' if job.error_class else ''}{first}"
            console.print(Text(printable(text), style=STYLES.get(job.status, "red")), soft_wrap=True)
        for text in own.ask(modules, "note", [], job):
            if text:
                console.print(Text(printable(f"job {job.number}: {text}"), style="yellow"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines()) + "\n"  # type: ignore[attr-defined]


def _whose(jobs: Sequence[Job]) -> str:
    return f"job{'s' * (len(jobs) > 1)} {', '.join(str(job.number) for job in jobs)}"


def _text(said: str, fold: str = "") -> Text:
    """As it is, whatever it would be to Rich or the terminal, on two lines after the first `fold`."""
    first, sign, rest = said.partition(fold) if fold else (said, "", "")
    return Text(f"{printable(first)}{sign.strip()}\n{printable(rest)}" if sign else printable(first))


def _spec(jobs: Sequence[Job]) -> Spec:
    """Of the task that most runs are of."""
    specs = {job.run.spec.primary: job.run.spec for job in jobs if job.run}
    counts = Counter(job.run.spec.primary for job in jobs if job.run)
    return specs[counts.most_common(1)[0][0]] if specs else spec_of({})


def _metrics(jobs: Sequence[Job], spec: Spec) -> list[tuple[str, str, str]]:
    """Heading, key and format: what no unit has a value of, in training and test; then what runs are compared by."""
    final = (
        "test" if spec.scores or any(f"test/{spec.primary}" in job.run.metrics for job in jobs if job.run) else "val"
    )
    plain = [(name, m) for name, m in spec.metrics.items() if m.column != "" and not m.by_unit and name != spec.primary]
    ended = [job.run.metrics for job in jobs if job.run and job.run.status == "finished"]
    found = [
        (part, name, m, m.format)
        for part in ("train", final)
        for name, m in plain
        if not ended or any(f"{part}/{name}" in metrics for metrics in ended)
    ]
    metric = spec.metrics[spec.primary]
    found.append((final, spec.primary, metric, metric.mean_format or metric.format))
    heads = {name: m.column or (m.title if m is metric else inside(m.title)) for _, name, m, _ in found}
    return [(f"{part}\n{heads[name]}", f"{part}/{name}", form) for part, name, _, form in found]


def _number(value: object, spec: str) -> str:
    if not isinstance(value, int | float) or value != value:
        return "–"
    return format(int(value) if spec.endswith("d") else value, spec)
