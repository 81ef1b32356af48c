"""Which of the runs that were read are compared, by what, and which of their settings are one."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from segsweep.core.artifacts import WHOLE
from segsweep.core.errors import SegsweepError, nearest
from segsweep.report.record import Job, Record, Run


def note_since(jobs: list[Job]) -> None:
    done: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.started):
        if job.status in WHOLE and job.asked:
            done.setdefault(job.asked, []).append(job)
    for job in jobs:
        if job.status not in WHOLE and job.started:
            job.since = next((later.name for later in done.get(job.asked, []) if later.started > job.started), "")


def settle(record: Record) -> None:
    """Keep in `runs` those of the task that most have, all by its latest description. One whose run.json is lost is
    taken to be of it, one whose task cannot be read is left out."""
    kinds = {run.folder: _kind(run) for run in record.runs if run.info}
    counts = Counter(kind for kind in kinds.values() if kind)
    most = counts.most_common(1)[0][0] if counts else None
    record.others = [run for run in record.runs if kinds.get(run.folder) not in (most, None)]
    kept = [run for run in record.runs if not run.info or (most and kinds[run.folder] == most)]
    spec = Record([], [], [run for run in kept if run.info], []).spec
    for run in record.runs:
        if kinds.get(run.folder) in (most, None):
            run.spec = spec
    record.runs = kept
    alike: dict[str, set[str]] = {}  # group -> those of the runs that are of it, or were accepted for it
    for run in kept:
        for group in (run.group, *(e["group"] for e in run.accepted)):
            alike.setdefault(group, set()).add(run.group)
    for run in kept:
        run.pooled = next((e["group"] for e in reversed(run.accepted) if len(alike[e["group"]]) > 1), "")
    _fold(record)


def _fold(record: Record) -> None:
    """Leave to a chosen option what only follows it: settings of texts and lists in the option's own file, or that are
    written with such a text (`out: curve-${net.name}`). A number that follows an option may be what makes the
    difference, and what somebody typed is a setting of its own."""
    runs = [run for run in record.runs if run.info.get("factors") and run.status == "finished"]
    typed = record.asked.union(*(run.typed for run in runs))
    chosen = {group.replace("/", ".") for run in runs for group in run.choices}
    about = record.spec
    kept = {*about.repeats, *about.inputs, *about.neutral, *(k for m in about.metrics.values() for k in m.scale)}
    kept |= chosen | {key.removesuffix("._target_") for key in typed - chosen}
    told = [run.settings for run in runs]
    names = dict.fromkeys(name for settings in told for name in settings)

    def follows(name: str, group: str) -> bool:
        """Whether it has one value, no number and no truth value, for each option."""
        values: dict[str, set[str]] = {}
        for settings in told:
            if name in settings and isinstance(settings[name], int | float):
                return False
            values.setdefault(settings[group], set()).add(json.dumps(settings.get(name, {}), sort_keys=True))
        return all(len(several) == 1 for several in values.values())

    free = [n for n in names if not any(n == key or n.startswith(f"{key}.") for key in kept - chosen)]
    free = [name for name in free if name not in chosen and len({str(settings.get(name)) for settings in told}) > 1]
    folded: set[str] = set()
    for group in sorted(chosen & names.keys()):
        if not all(isinstance(settings.get(group), str) for settings in told):
            continue
        own = [name for name in free if name.startswith(f"{group}.") and follows(name, group)]
        texts = [group, *(name for name in own if all(isinstance(s.get(name), str) and s[name] for s in told))]
        folded |= {*own, *(name for name in free if follows(name, group) and _written(told, name, texts))}
    for run in record.runs:  # what failed may have been told otherwise
        run.folded = {name for name in folded if run.status == "finished" or not {name, f"{name}._target_"} & run.typed}


def _written(told: list[dict[str, Any]], name: str, texts: list[str]) -> bool:
    """Whether a text is the same everywhere but for one of `texts` within it."""
    if not all(isinstance(settings.get(name), str) for settings in told):
        return False
    forms = ({s[name].replace(s[text], "\0") for s in told} for text in texts)
    return any(len(form) == 1 and "\0" in next(iter(form)) for form in forms)


def by(record: Record, metric: str) -> None:
    """Have the runs of a record compared by a `metric` that units have scores of, or where none has, by any. Raises
    SegsweepError where there is none of that name."""
    spec = record.spec
    allowed = spec.scores or spec.metrics
    if metric not in allowed:
        raise SegsweepError(
            f"--metric {metric}: no such score{nearest(metric, allowed)}; allowed are {', '.join(allowed)}"
        )
    spec = replace(spec, metrics={metric: spec.metrics[metric], **spec.metrics}, select=f"val/{metric}")
    record.spec = spec
    for run in record.runs:
        run.spec = spec


def _kind(run: Run) -> tuple[str, ...] | None:
    """What runs are of one task by; None where that cannot be read."""
    try:
        return run.spec.unit, run.spec.primary, run.spec.metrics[run.spec.primary].direction
    except ValueError:
        return None
