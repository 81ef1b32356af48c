"""Copies run folders to MLflow.

`push` is idempotent and knows from `mlflow.json` in the folder what is already there, so that live logging, catching up
after an outage (`python -m segsweep.sync`) and resuming an interrupted run are one piece of code.
"""

import colorsys
import getpass
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsweep.core import accepted, artifacts, locks
from segsweep.core.artifacts import WEIGHTS
from segsweep.core.masks import masked
from segsweep.task import PARTS
from segsweep.tracking.recall import fetch_alone
from segsweep.tracking.store import (
    QUERY,
    STATE,
    Columns,
    alone,
    columns_of,
    connect,
    experiment_id,
    find,
    kept_as,
    sweeps_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

FILES = (*artifacts.RECORD, "failure.json", "pruned.json")
TIMES = ("training_seconds", "evaluation_seconds", "total_seconds", "images_per_second", "parameters", "gflops")

LINKS = 50
"""Most links in a sweep's description, which is a tag too."""
SWEEPS = 200
"""Most sweeps that a run's tag names, the latest: MLflow's tags are bounded."""


def forget(folder: Path) -> None:
    """The run of `folder` is trained anew: its next copy takes the place of the one that MLflow has."""
    with alone(folder):  # a copy under way would write over it what it has read before
        artifacts.write_json(folder / STATE, {"anew": True})


def push(folder: Path, uri: str, experiment: str, sweep: Path | None, *, final: bool) -> str:
    """Bring MLflow's record of `folder` up to date and return its run id; one process at a time.

    `sweep`: the folder of the sweep that asks, whose parent run a new run goes under.
    `final`: nobody works on the folder now, so the run is closed: FINISHED, FAILED, or KILLED when it was interrupted
    or pruned, which the tag `status` tells apart.
    """
    with alone(folder):
        return _push(folder, uri, experiment, sweep, final)


def _push(folder: Path, uri: str, experiment: str, sweep: Path | None, final: bool) -> str:
    from mlflow.entities import Metric

    run = artifacts.read_json(folder / "run.json") or {}
    state = artifacts.read_json(folder / STATE) or {}
    client = connect(uri)
    known = (state.get("uri"), state.get("experiment")) == (masked(uri), experiment) and "run_id" in state
    if not known and "run_id" in state and not (folder / "last.pt").exists():  # its weights may be in another store
        try:
            for name in WEIGHTS:
                fetch_alone(folder / name, uri)
        except Exception as error:  # that store may be gone: all else is still copied
            log.warning("%s: its weights stay in %s, which does not answer: %s", folder.name, state["uri"], error)
    if not known or not _there(client, state["run_id"]):
        found = find(client, experiment, folder.name)
        if found and state.get("anew"):
            client.delete_run(found.info.run_id)
            found = None
        made = "" if found else _create(client, experiment, run, folder, _parent(sweep, uri))
        run_id = found.info.run_id if found else _first(client, experiment, folder.name, made)
        state = {"uri": masked(uri), "experiment": experiment, "status": None, "run_id": run_id}
        state["sweeps"] = sweeps_of(found) if found else []
        state["made_by"] = sweep.name if sweep and not found else None
        state["epochs"] = 0 if run_id == made else _epochs(client, run_id)
    result = artifacts.result(folder)
    if result and state["status"] != "finished":
        first = _first(client, experiment, folder.name, state["run_id"])
        state |= {"run_id": first, "epochs": _epochs(client, first)}
    run_id = state["run_id"]
    if sweep and sweep.name not in state["sweeps"]:
        state["sweeps"] = [*state["sweeps"], sweep.name][-SWEEPS:]
        client.set_tag(run_id, "sweeps", ", ".join(state["sweeps"]))

    trial = artifacts.read_json(folder / "trial.json") or {}
    if trial != state.get("trial", {}):
        for tag, key in (("study", "study"), ("trial", "number"), ("trial.state", "state")):
            client.set_tag(run_id, tag, str(trial.get(key)))
        state["trial"] = trial
    acceptances = accepted.entries(folder)
    if acceptances and state.get("accepted") != len(acceptances):  # after its end, too
        client.log_artifact(run_id, str(folder / accepted.FILE))
        client.set_tag(run_id, "accepted", accepted.told(acceptances[-1])[:4000])
        state["accepted"] = len(acceptances)
    history = artifacts.read_lines(folder / "history.jsonl")
    now = int(time.time() * 1000)
    new = history[state["epochs"] :]
    values = [
        Metric(key, value, now, row["epoch"])
        for row in new
        for key, value in row.items()
        if key != "epoch" and value is not None
    ]
    failure = artifacts.read_json(folder / "failure.json")
    pruned = artifacts.read_json(folder / "pruned.json")
    ended = "failed" if failure else "pruned" if pruned else "interrupted" if final else "running"
    status = result["status"] if result else ended
    if result and state["status"] != status:
        # one value at step 0: MLflow draws such metrics as bars, side by side
        values += [Metric(k, float(v), now, 0) for k, v in _final_metrics(result, history).items()]
    if values:
        client.log_batch(run_id, metrics=values)
    state["epochs"] = max(state["epochs"], len(history))

    if status != state["status"]:
        client.set_tag(run_id, "status", status)
        tags = client.get_run(run_id).data.tags  # of an earlier end, here or on another machine
        for tag in {"failure", "error", "pruned", "stopped"} & tags.keys():
            client.delete_tag(run_id, tag)
        if pruned and not result:
            client.set_tag(run_id, "pruned", pruned["reason"])
        if text := artifacts.stopped(result or {}):
            client.set_tag(run_id, "stopped", text[:4000])
        if failure and not result:
            client.set_tag(run_id, "failure", failure["class"])
            client.set_tag(run_id, "error", failure["error"][:4000])
        if status == "running":
            client.update_run(run_id, status="RUNNING")
        else:
            for name in (*FILES, *WEIGHTS, *artifacts.of_task(folder)):
                if (folder / name).exists():
                    client.log_artifact(run_id, str(folder / name), kept_as(name).rpartition("/")[0] or None)
            closed = {"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")
            client.set_terminated(run_id, closed)
        state["status"] = status
    artifacts.write_json(folder / STATE, {key: value for key, value in state.items() if key != "error"})
    return run_id


def _final_metrics(result: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, float]:
    logged = set(history[-1]) if history else set()
    found = {key: value for key, value in result["metrics"].items() if key not in logged}
    found |= {key: result.get(key) for key in (*TIMES, "objective")}
    if (peak := result.get("peak_memory_bytes")) is not None:
        found["peak_memory_mib"] = peak / 2**20
    if "micro_batches" not in logged:
        found["micro_batches"] = result.get("micro_batches")
    return {key: value for key, value in found.items() if value is not None}


def _first(client: "MlflowClient", experiment: str, signature: str, mine: str) -> str:
    """The first run of this signature, and `mine` deleted, if another machine made one at the same time: of two that
    share no folder each may find none and make one."""
    place = client.get_experiment_by_name(experiment)
    runs = client.search_runs([place.experiment_id], f"tags.signature = '{signature}'") if place else []
    first = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
    if first is None or first.info.run_id == mine:
        return mine
    client.delete_run(mine)
    return first.info.run_id


def _epochs(client: "MlflowClient", run_id: str) -> int:
    """How many epochs of a run are logged."""
    return max((metric.step for metric in client.get_metric_history(run_id, "seconds")), default=0)  # all have it


def _there(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def close_dead(uri: str, experiment: str, runs: Path) -> None:
    """Close what killed processes left as running: sweeps and runs below the folder `runs` that nobody works on."""
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    running = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'") if found else []
    for run in running:
        tags = run.data.tags
        folder = runs / "runs" / tags["signature"] if "signature" in tags else runs / tags.get("sweep", "?")
        if folder.is_dir() and locks.held(folder) is False:
            if (folder / "run.json").exists():  # it may have ended well, and been killed before it could say so
                push(folder, uri, experiment, None, final=True)
                continue
            client.set_tag(run.info.run_id, "status", "interrupted")
            client.set_terminated(run.info.run_id, "KILLED")


def _create(client: "MlflowClient", experiment: str, run: dict[str, Any], folder: Path, parent: str | None) -> str:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param
    from mlflow.exceptions import MlflowException

    tags = {"signature": folder.name, "group": run["group"], "trajectory": run["trajectory"], "device": run["device"]}
    tags |= {"mlflow.source.name": "segsweep", "mlflow.source.type": "LOCAL", "mlflow.user": user()}
    tags |= {"mlflow.note.content": f"`{run['command']}`\n\nFolder: `{folder}`", "evaluated_on": run["evaluated_on"]}
    tags |= {"mlflow.runColor": _color(folder.name)}  # its own choice repeats colours among a handful of runs
    tags |= {"split.leaks": str(run["split"]["leaks"]).lower(), "versions": json.dumps(run["versions"])}
    if run.get("commit"):
        tags["mlflow.source.git.commit"] = run["commit"]
    if parent:
        tags["mlflow.parentRunId"] = parent
    place = experiment_id(client, experiment, columns_of(run))
    made = client.create_run(place, tags=tags, run_name=run["name"])
    client.log_batch(made.info.run_id, params=[Param(k, str(v)) for k, v in run["factors"].items()])
    data = run["data"]
    plain = (int, float, str, bool, list, tuple)
    facts = {k: v for k, v in data.items() if k not in ("name", "digest") and (v is None or isinstance(v, plain))}
    parts = {key: run["split"].get(key) for key in PARTS}
    name, digest = data["name"] or "data", (data["digest"] or "not watched")[:32]
    dataset = Dataset(name, digest, "local", json.dumps(facts), profile=json.dumps(parts))
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    try:
        client.log_inputs(made.info.run_id, inputs)
    except MlflowException:  # of two runs that bring one data set at once, MLflow's store takes it of one
        client.log_inputs(made.info.run_id, inputs)
    return made.info.run_id


def _parent(sweep: Path | None, uri: str, patience: float = 60) -> str | None:
    """The parent run's id; it is made while the first job already reads its data, so it may have to be waited for, but
    not where the sweep was killed before it was made."""
    until, alive = time.monotonic() + patience, True
    while sweep and alive and time.monotonic() < until:
        alive = locks.held(sweep) is not False  # first, so that what it wrote last is read
        mlflow = (artifacts.read_json(sweep / "sweep.json") or {}).get("mlflow")
        if not mlflow or not mlflow["parent"] or mlflow["error"] or mlflow["uri"] != masked(uri.removesuffix(QUERY)):
            return None
        if mlflow["run_id"]:
            return mlflow["run_id"]
        time.sleep(0.1)
    return None


def _color(signature: str) -> str:
    red, green, blue = colorsys.hls_to_rgb(int(signature[:8], 16) / 16**8, 0.45, 0.65)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def start_parent(uri: str, experiment: str, name: str, command: str, columns: Columns | None = None) -> str:
    """The parent run of a sweep, under which MLflow's UI groups its jobs. `columns`: of its task, for the views."""
    client = connect(uri)
    tags = {"mlflow.source.name": "segsweep", "mlflow.source.type": "LOCAL", "mlflow.user": user(), "sweep": name}
    tags |= {"mlflow.note.content": f"`{command}`"}
    return client.create_run(experiment_id(client, experiment, columns), tags=tags, run_name=name).info.run_id


def end_parent(
    uri: str, run_id: str, status: str, files: list[Path], figures: Path, summary: str, jobs: Iterable[Path] = ()
) -> None:
    """Close a sweep's run with its files and the report's `figures`; `summary` (Markdown) goes below the command in its
    description. `jobs`: its run folders.

    MLflow gives a run one parent, the sweep that made it: the description links to those that answered for others."""
    client = connect(uri)
    for file in files:
        if file.exists():
            client.log_artifact(run_id, str(file))
    if figures.is_dir():
        client.log_artifacts(run_id, str(figures), figures.name)
    parent = client.get_run(run_id)
    name, command = parent.info.run_name, parent.data.tags.get("mlflow.note.content", "").split("\n")[0]
    states = {folder.name: artifacts.read_json(folder / STATE) or {} for folder in jobs}
    reused = {s: state for s, state in states.items() if "run_id" in state and state.get("made_by") != name}
    note = f"{command}\n\n{summary}".strip()
    if reused:
        place = f"#/experiments/{parent.info.experiment_id}/runs/"
        links = [f"- [{s}]({place}{state['run_id']})" for s, state in list(reused.items())[:LINKS]]
        note += f"\n\nAll of its runs: filter by `tags.sweeps LIKE '%{name}%'`. Made by earlier sweeps and reused, "
        note += f"{len(reused)}:\n\n" + "\n".join(links) + ("\n- ..." if len(reused) > len(links) else "")
    client.set_tag(run_id, "mlflow.note.content", note[:8000])
    client.set_terminated(run_id, status)


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
