"""Sweeps as they lie on disk, read into plain dataclasses: the one reader of run folders in the report.

Nothing here refuses a damaged record: what cannot be read is left out and said in `problems`, because a sweep with
failures needs its report most.
"""

import csv
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.config.before import spec_of
from segsweep.core import accepted, artifacts
from segsweep.core.artifacts import WHOLE, parse_json
from segsweep.core.errors import SegsweepError, nearest
from segsweep.core.masks import first_line
from segsweep.core.signature import OWN
from segsweep.task import Spec


@dataclass
class Run:
    """One run folder. `status`: finished, pruned, failed or unfinished; `info` is run.json, `result` is result.json, or
    pruned.json of a run that was pruned; `accepted`: by whom it was let stand for edited code (`accepted.entries`);
    `pooled`: the group of that code, where another run here is of it or was accepted for it; `folded`: factors that a
    chosen option says already."""

    folder: Path
    signature: str
    status: str
    info: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    error_class: str = ""
    history: dict[str, np.ndarray] = field(default_factory=dict)  # column -> (epochs,)
    units: dict[str, dict[str, float]] = field(default_factory=dict)  # unit -> column -> value, NaN = undefined
    accepted: list[dict[str, Any]] = field(default_factory=list)
    pooled: str = ""
    folded: set[str] = field(default_factory=set)

    @cached_property
    def spec(self) -> Spec:
        return spec_of(self.info)

    @property
    def group(self) -> str:
        return self.pooled or str(self.info.get("group") or self.signature)

    @property
    def settings(self) -> dict[str, Any]:
        """With the values of settings that decide nothing at them, which its identity is without."""
        told = self.info.get("factors") or {}
        return told | {key: value for key, value in self.spec.neutral.items() if key not in told}

    @property
    def factors(self) -> dict[str, Any]:
        """The settings without those that a chosen option says already."""
        return {key: value for key, value in self.settings.items() if key not in self.folded}

    @property
    def choices(self) -> dict[str, str]:
        """Key of a group of options, as the command line takes it (`net`, `net/act`) -> the option."""
        return {key: option for key, option in (self.info.get("choices") or {}).items() if isinstance(option, str)}

    @property
    def typed(self) -> set[str]:
        """Keys that its command sets."""
        try:
            words = shlex.split(self.command)
        except ValueError:  # a damaged record
            return set()
        return {word.split("=")[0].lstrip("+~") for word in words if "=" in word}

    @property
    def metrics(self) -> dict[str, float]:
        return {
            **{k: v for k, v in self.result.items() if isinstance(v, int | float)},
            **(self.result.get("metrics") or {}),
        }

    @property
    def seed_key(self) -> str:
        """`seed`, which another application may have of its own, or the engine's in such an application."""
        return f"{OWN}.seed" if "seed" not in self.factors and f"{OWN}.seed" in self.factors else "seed"

    @property
    def seed(self) -> Any:
        return self.factors.get(self.seed_key, 0)

    @property
    def repeat(self) -> tuple[Any, ...]:
        """Values of the keys beside the seed in which repeats differ; None where the run has no such key."""
        return tuple(self.factors.get(key) for key in self.spec.repeats)

    @property
    def lent(self) -> bool:
        """Whether it rests on somebody's word that an edit of the code changes nothing."""
        return bool(self.accepted or self.info.get("accepted"))

    @property
    def command(self) -> str:
        return str(self.info.get("command") or "not recorded")

    @property
    def unwatched(self) -> bool:
        """Whether nobody looks if the data are still what they were."""
        data = self.info.get("data") or {}
        return "digest" in data and data["digest"] is None

    @property
    def split(self) -> dict[str, Any]:
        return self.info.get("split") or {}

    @property
    def counted(self) -> bool:
        """Whether anybody said how much is in which part."""
        return "leaks" not in self.split or bool({"train", "val", "test"} & self.split.keys())

    @property
    def leaks(self) -> bool:
        return bool(self.split.get("leaks"))

    @property
    def evaluated_on(self) -> str:
        return str(
            self.info.get("evaluated_on") or ("val" if any(k.startswith("val/") for k in self.history) else "test")
        )


@dataclass
class Job:
    """One job of a sweep (job.json) with its run, where there is one; `number` is -1 for a run named by itself.
    `since`: the job that finished later with the same settings, where this one did not."""

    sweep: str
    number: int
    status: str
    overrides: list[str] = field(default_factory=list)
    varied: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    error: str = ""
    error_class: str = ""
    run: Run | None = None
    started: str = ""
    since: str = ""

    @property
    def name(self) -> str:
        return f"{self.sweep} / {self.number}" if self.number >= 0 else self.sweep

    @property
    def asked(self) -> str:
        """What it was to train, whatever its code: its settings, or where they are not recorded, how it was told."""
        settings = self.run.settings if self.run else {}
        return json.dumps(settings, sort_keys=True) if settings else " ".join(sorted(self.overrides))


@dataclass
class Record:
    """All that was asked for: the jobs in order, the distinct runs behind them, and what was missing or unreadable.

    `runs` are those of one task, the one that most have, as `spec` describes it; `others` are of other tasks."""

    names: list[str]
    jobs: list[Job]
    runs: list[Run]
    problems: list[str]
    searched: set[str] = field(default_factory=set)  # factors that a search drew from an interval
    asked: set[str] = field(default_factory=set)  # keys that a search sets, or a job that finished
    commands: dict[str, str] = field(default_factory=dict)  # sweep that is no search -> what started it
    others: list[Run] = field(default_factory=list)

    @property
    def lost(self) -> list[Job]:
        """Jobs that did not finish, and whose settings have not finished since."""
        return [job for job in self.jobs if job.status not in WHOLE and not job.since]

    @cached_property
    def spec(self) -> Spec:
        """Of the latest run: a description may have grown since the first."""
        return max(self.runs, key=lambda run: str(run.info.get("created") or "")).spec if self.runs else spec_of({})


def read(sources: Sequence[Path | str]) -> Record:
    """Read sweep or run folders, or (where no such folder is) MLflow experiments and run ids; a run counts once.

    Raises SegsweepError where a source is neither a sweep nor holds runs.
    """
    record = Record([], [], [], [])
    runs: dict[str, Run] = {}
    for source in sources:
        before = len(record.jobs)
        for folder in _folders(source, record.problems):
            if (
                (folder / "run.json").exists()
                or (folder / "result.json").exists()
                or (folder / "failure.json").exists()
                or (folder / "pruned.json").exists()
            ):
                run = _shared(runs, folder, record.problems)
                record.jobs.append(
                    Job(
                        folder.parent.name,
                        -1,
                        run.status,
                        [],
                        {},
                        run.metrics.get("total_seconds"),
                        run.error,
                        run.error_class,
                        run,
                    )
                )
            else:
                _read_sweep(folder, runs, record)
        if len(record.jobs) == before and not (Path(source) / "sweep.json").exists():
            raise SegsweepError(
                f"{source}: no run in it. A sweep folder holds numbered job folders with a job.json, as in"
                " multirun/<sweep>."
            )
        record.names.append(Path(source).resolve().name)
    record.runs = list(runs.values())
    _settle(record)
    _note_since(record.jobs)
    return record


def _note_since(jobs: list[Job]) -> None:
    done: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.started):
        if job.status in WHOLE and job.asked:
            done.setdefault(job.asked, []).append(job)
    for job in jobs:
        if job.status not in WHOLE and job.started:
            job.since = next((later.name for later in done.get(job.asked, []) if later.started > job.started), "")


def _settle(record: Record) -> None:
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
        if not run.info and run.status == "finished":
            run.units = _units(run, record.problems)
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


def _folders(source: Path | str, problems: list[str]) -> list[Path]:
    folder = Path(source)
    if folder.is_dir():
        if folder.name == "runs":
            return sorted(p for p in folder.iterdir() if p.is_dir())
        nested = sorted(p.parent for p in folder.glob("*/sweep.json")) if not any(folder.glob("*.json")) else []
        if nested:
            found = "\n".join(f"  {p}" for p in nested[-8:])
            raise SegsweepError(
                f"{folder} holds {len(nested)} sweeps, not one. Name those to compare, for example\n{found}"
            )
        return [folder]
    from segsweep.tracking.recall import find_runs  # lazily: mlflow takes seconds to import, and folders do not need it

    try:
        named = find_runs(str(source))  # of another machine: where they are here, if they were reused here
    except Exception as error:  # MLflow raises what its back end raises
        reason = first_line(error)
        raise SegsweepError(
            f"{source}: no such folder, and no experiment or run of MLflow has this name: {reason}"
        ) from error
    here = [run if run.is_dir() else Path("multirun/runs") / run.name for run in named]
    if not (there := [run for run in here if run.is_dir()]):
        raise SegsweepError(f"{source}: its {len(named)} runs are in MLflow, and no folder of them is on this machine")
    if away := len(here) - len(there):
        problems.append(f"{source}: {away} of its {len(named)} runs are in MLflow, with no folder on this machine")
    return there


def _read_sweep(folder: Path, runs: dict[str, Run], record: Record) -> None:
    """Append the sweep's jobs; a job whose record is lost, or that never started, is one too."""
    sweep = _json(folder / "sweep.json", record.problems) or {}
    space = (sweep.get("search") or {}).get("space") or {}
    if sweep.get("command") and not sweep.get("search"):
        record.commands[folder.name] = str(sweep["command"])
    record.asked |= {key.split(" when ")[0].lstrip("+~") for key in space}
    record.searched |= {key.split(" when ")[0].lstrip("+") for key, d in space.items() if str(d).startswith("Float")}
    numbers = {int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit()}
    for number in sorted(numbers | set(range(sweep.get("jobs") or 0))):
        job = _json(folder / str(number) / "job.json", record.problems) if number in numbers else None
        if job is None:
            status = "unreadable" if number in numbers else "never started"
            record.jobs.append(
                Job(folder.name, number, status, error="job.json is missing or damaged" if number in numbers else "")
            )
            continue
        run = None
        if job.get("run"):
            target = (folder / str(number) / job["run"]).resolve()
            if target.is_dir():
                run = _shared(runs, target, record.problems)
        status = run.status if run and run.status in ("failed", "pruned") else str(job.get("status") or "unknown")
        if run is None and status in WHOLE:
            status = "run folder gone"
        elif run and run.status == "unfinished" and status in WHOLE:
            status = "result missing"
        error = job.get("error") or (run.error if run else "")
        if status == "running" and not (artifacts.held(folder) or (run and artifacts.held(run.folder))):
            status = "interrupted"  # nobody is at it who could say so
        if status == "pruned" and run and run.status == "finished":  # continued to its end since
            status, error = "finished", ""
        kind = job.get("class") or (run.error_class if run else "")
        overrides, varied = job.get("overrides") or [], job.get("varied") or {}
        if run and run.status == "finished":
            record.asked |= {str(word).split("=")[0].lstrip("+~") for word in overrides}
        record.jobs.append(
            Job(
                folder.name,
                number,
                status,
                overrides,
                varied,
                job.get("seconds"),
                str(error or ""),
                str(kind or ""),
                run,
                str(job.get("started") or ""),
            )
        )


def _shared(runs: dict[str, Run], folder: Path, problems: list[str]) -> Run:
    key = str(folder.resolve())
    if key not in runs:
        runs[key] = _read_run(folder, problems)
    return runs[key]


def _read_run(folder: Path, problems: list[str]) -> Run:
    info = _json(folder / "run.json", problems) or {}
    result = _json(folder / "result.json", problems, needed=False)
    if result is not None and not isinstance(result.get("metrics"), dict):
        problems.append(f"{_short(folder / 'result.json')} has no metrics: taken as absent")
        result = None
    failure = _json(folder / "failure.json", problems, needed=False) if result is None else None
    if result is None and failure is None:
        result = _json(folder / "pruned.json", problems, needed=False)
    status = str(result.get("status") or "finished") if result else "failed" if failure else "unfinished"
    run = Run(folder, str(info.get("signature") or folder.name), status, info, result or {})
    run.accepted = accepted.entries(folder)
    if failure:
        run.error, run.error_class = str(failure.get("error") or "no message"), str(failure.get("class") or "error")
    elif status == "pruned":
        run.error = str(run.result.get("reason") or "")
    run.history = _history(folder / "history.jsonl", problems)
    try:
        if run.info and run.spec and status == "finished":
            run.units = _units(run, problems)
    except ValueError as error:
        problems.append(f"{_short(folder / 'run.json')}: its task cannot be read, so the run is left out: {error}")
    return run


def _json(path: Path, problems: list[str], needed: bool = True) -> dict[str, Any] | None:
    try:
        return parse_json(path)
    except FileNotFoundError:
        if needed:
            problems.append(f"{_short(path)} is missing")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{_short(path)} cannot be read: {error}")
        return None


def _history(path: Path, problems: list[str]) -> dict[str, np.ndarray]:
    """Columns over the epochs; of an epoch written twice (after a resume) the last counts, a torn line is left out."""
    lines: dict[int, dict[str, Any]] = {}
    torn = 0
    if not path.exists():
        return {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            lines[int(row["epoch"])] = {key: _number(value) for key, value in row.items()}
        except (ValueError, KeyError, TypeError):
            torn += bool(line.strip())
    if torn:
        problems.append(f"{_short(path)}: {torn} damaged line{'s' * (torn > 1)} left out")
    rows = [lines[epoch] for epoch in sorted(lines)]
    columns = dict.fromkeys(k for row in rows for k in row)
    return {key: np.array([_number(row.get(key)) for row in rows]) for key in columns}


def _units(run: Run, problems: list[str]) -> dict[str, dict[str, float]]:
    """Of the file that the task's description names; a task without a score of units may have none."""
    path, unit = run.folder / run.spec.table, run.spec.unit
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError(f"no {unit} in it")
        cells = [(key, value) for row in rows for key, value in row.items() if key not in run.spec.scores]
        texts = {key for key, value in cells if key not in (unit, None) and not _is_number(value)}
        return {row.pop(unit): {k: _number(v) for k, v in row.items() if k not in texts} for row in rows}
    except FileNotFoundError:
        if run.spec.scores:
            problems.append(f"{_short(path)} is missing: the run has no interval and takes part in no contrast")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        problems.append(
            f"{_short(path)} cannot be read ({error}): the run has no interval and takes part in no contrast"
        )
    return {}


def _number(value: Any) -> float:
    """Text, number or truth value as a float; an empty cell or null is NaN."""
    if value in (None, ""):
        return float("nan")
    return float(value == "True") if value in ("True", "False") else float(value)


def _is_number(value: Any) -> bool:
    try:
        _number(value)
    except (TypeError, ValueError):
        return False
    return True


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
