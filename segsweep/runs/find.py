"""A run, found by whatever names it: its folder, its signature, a sweep that it is the best of, or MLflow."""

import atexit
import re
import shutil
import tempfile
from pathlib import Path

from segsweep.config.before import spec_of
from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError, nearest
from segsweep.core.masks import first_line

REFERENCE = (
    "a run folder; a run's signature or its unique beginning; best:SWEEP (the run of a sweep with the best "
    "validation score); an MLflow run id; a registered model, models:/NAME/VERSION"
)
RUN_ID = re.compile(r"[A-Za-z0-9][\w-]{0,255}")
"""What MLflow itself allows."""


def find(reference: str, root: Path) -> tuple[Path, str]:
    """The run folder that `reference` names (see REFERENCE), and one sentence on why it is this one.

    `root`: the folder that holds `runs/` and the sweeps. Raises SegsweepError."""
    if reference.startswith("best:"):
        return _best(reference.removeprefix("best:"), root)
    if reference.startswith("models:/"):
        return _registered(reference)
    place = Path(reference)
    if place.is_dir():
        job = artifacts.read_json(place / "job.json") or {}
        if job.get("run"):
            place = (place / job["run"]).resolve()
        if (place / "run.json").exists():
            return place, f"run {place.name}"
        if (place / "sweep.json").exists():
            raise SegsweepError(f"{reference}: a sweep, not a run; its best run is best:{reference}")
        raise SegsweepError(f"{reference}: no run.json in it; expected {REFERENCE}")
    runs = sorted(p for p in (root / "runs").glob("*") if p.is_dir()) if (root / "runs").is_dir() else []
    found = [p for p in runs if p.name.startswith(reference)]
    if len(found) == 1:
        return found[0], f"run {found[0].name}"
    if found:
        names = ", ".join(p.name for p in found[:5])
        raise SegsweepError(f"{reference}: {len(found)} runs begin so: {names}; give more of the signature")
    if len(reference) == 32 and all(c in "0123456789abcdef" for c in reference):
        return _mlflow_run(reference), f"MLflow run {reference}"
    close = nearest(reference, (p.name for p in runs))
    raise SegsweepError(f"{reference}: no such run under {root / 'runs'}{close}. Expected {REFERENCE}")


def _best(name: str, root: Path) -> tuple[Path, str]:
    """The finished run of a sweep with the best objective that was measured on validation."""
    folder = next((p for p in (Path(name), root / name) if (p / "sweep.json").exists()), None)
    if folder is None:
        sweeps = [p.parent.name for p in root.glob("*/sweep.json")]
        raise SegsweepError(f"best:{name}: no such sweep{nearest(name, sweeps)}; expected a folder with sweep.json")
    scored: dict[Path, float] = {}
    tested, spec, tasks = 0, spec_of({}), set()
    for run in dict.fromkeys(job["folder"] for job in artifacts.jobs(folder) if job["folder"]):
        result, info = (artifacts.read_json(run / file) or {} for file in ("result.json", "run.json"))
        if result.get("status") != "finished" or result.get("objective") is None:
            continue
        spec = spec_of(info)
        tasks.add((spec.select, spec.unit, spec.metrics[spec.select.partition("/")[2]].direction))
        if info.get("evaluated_on") == "val":
            scored[run] = result["objective"]
        else:
            tested += 1
    if len(tasks) > 1:
        scores = " and ".join(f"{select} of a {unit}" for select, unit, _ in sorted(tasks))
        raise SegsweepError(
            f"best:{name}: its runs are of several tasks ({scores}), which have no common best: name a run"
        )
    if not scored:
        why = f"{tested} of them have only a test part" if tested else "none has finished"
        raise SegsweepError(
            f"best:{name}: no run of this sweep has a validation score ({why}). A run chosen by its test would have a "
            f"test score that is too good: name the run itself, or sweep with {spec.validation or 'a validation part'}"
        )
    metric = spec.metrics[spec.select.partition("/")[2]]
    highest = metric.direction == "max"
    best = max(scored, key=lambda run: (scored[run] if highest else -scored[run], run.name))
    left = f"; {tested} without a validation part were not considered" if tested else ""
    value = f"validation {metric.title}, {scored[best]:{metric.format}}"
    first = "highest" if highest else "lowest"
    why = f"the {first} {value} (of its best epoch: --weights best), of {len(scored)} finished runs"
    return best, f"run {best.name}: {why} of {folder}{left}"


def _mlflow_run(run_id: str) -> Path:
    """Its run folder where it still is, else what MLflow keeps of it."""
    from segsweep.tracking.recall import find_runs

    try:
        found = find_runs(run_id)
    except Exception as error:  # MLflow raises what its back end raises
        raise SegsweepError(f"{run_id}: MLflow has no such run: {first_line(error)}") from error
    if not found:
        raise SegsweepError(
            f"{run_id}: this MLflow run is no run of segsweep (a sweep's parent?); name one of its runs"
        )
    return found[0] if (found[0] / "run.json").exists() else _download(run_id)


def _registered(reference: str) -> tuple[Path, str]:
    from segsweep.tracking import registry

    folder, run_id = registry.origin(reference)
    there = folder is not None and (folder / "run.json").exists()
    place = folder if there and folder else _download(run_id)
    return place, f"registered model {reference}, run {place.name if there else run_id}"


def _download(run_id: str) -> Path:
    """A run folder made of the files that MLflow keeps of a run; it goes with this process."""
    from segsweep.tracking.recall import download

    place = tempfile.mkdtemp(prefix="segsweep-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    if not RUN_ID.fullmatch(run_id):  # it names a folder here, and may be a server's word
        raise SegsweepError(f"{run_id!r}: not the id of an MLflow run")
    folder = Path(place) / run_id
    download(run_id, folder)
    if not (folder / "run.json").exists():
        raise SegsweepError(f"{run_id}: MLflow keeps no run.json of this run; expected a run that segsweep recorded")
    return folder
