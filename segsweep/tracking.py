"""Copies run folders to MLflow, and answers from what other machines copied there.

`push` is idempotent and knows from `mlflow.json` in the folder what is already there, so that live logging, catching up
after an outage (`python -m segsweep.sync`) and resuming an interrupted run are one piece of code.
"""

import colorsys
import contextlib
import fcntl
import getpass
import json
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsweep import artifacts
from segsweep.errors import SegsweepError
from segsweep.store import QUERY, connect, database, experiment_id, lacks

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

STATE = "mlflow.json"
RECORD = ("config.yaml", "run.json", "split.json", "history.jsonl", "patients.csv", "result.json")
"""Without these a run is not answered from MLflow."""
FILES = (*RECORD, "overlays.npz", "failure.json", "pruned.json")
FIGURES = ("curves.png", "overlays.png")
WEIGHTS = ("last.pt", "best.pt")
TIMES = ("training_seconds", "evaluation_seconds", "total_seconds", "images_per_second", "parameters", "gflops")

SILENCE = 60.0
"""Seconds for which a store that did not answer is not asked again."""
LINKS = 50
"""Most links in a sweep's description, which is a tag too."""
SWEEPS = 200
"""Most sweeps that a run's tag names, the latest: MLflow's tags are bounded."""

_queue: "queue.Queue[Mirror | None]" = queue.Queue()
_thread: threading.Thread | None = None
elsewhere: "Callable[[Mirror], None] | None" = None
"""Set in a launcher's worker, whose parent copies for all: MLflow is imported and connected to once a sweep."""
ask: "Callable[[Path, str, str], bool] | None" = None
"""Set with it: the parent's `restore`."""
_silent: dict[str, float] = {}


class Mirror:
    """Copies one run folder in the background: at the start, after each epoch and, in the end, whole."""

    def __init__(self, folder: Path, tracking: Any, sweep: Path | None):
        self.folder, self.uri, self.experiment, self.sweep = folder, tracking.uri, tracking.experiment, sweep
        self.final = False

    def __enter__(self) -> "Mirror":
        self.update()
        return self

    def __exit__(self, *exception: object) -> None:
        self.final = True
        self.update()

    def update(self) -> None:
        global _thread
        if self.uri is None:
            return
        if elsewhere:
            elsewhere(self)
            return
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_work, name="mlflow", daemon=True)
            _thread.start()
        _queue.put(self)


def _work() -> None:
    unreachable: set[Path] = set()
    while (mirror := _queue.get()) is not None:
        folder = mirror.folder
        try:
            if mirror.final or folder not in unreachable:  # while out of reach, only the end is tried again
                push(folder, mirror.uri, mirror.experiment, mirror.sweep, final=mirror.final)
        except Exception as error:  # MLflow raises what its back end raises; none of it may cost a run
            unreachable.add(folder)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.info("MLflow: %s", error)
            with contextlib.suppress(OSError):
                artifacts.write_json(folder / STATE, (artifacts.read_json(folder / STATE) or {}) | {"error": reason})
        finally:
            _queue.task_done()


def lacking(folder: Path) -> str | None:
    """Why MLflow does not have all of a run folder; None where it does, or was never asked to."""
    return (artifacts.read_json(folder / STATE) or {}).get("error")


def flush() -> None:
    """Wait until everything is copied, or known to be out of reach."""
    _queue.join()


def forget(folder: Path) -> None:
    """The run of `folder` is trained anew: its next copy takes the place of the one that MLflow has."""
    artifacts.write_json(folder / STATE, {"anew": True})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process and thread at a time copies the run of `folder`, to MLflow or from it."""
    with (folder / "mlflow.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def restore(
    folder: Path,
    uri: str | None,
    experiment: str,
    sweep: Path | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> bool:
    """Whether MLflow has the run of `folder` finished, by another machine; then its files are there, result.json last.

    Weights stay in MLflow until somebody needs them (`fetch`). False too where MLflow does not answer or its record is
    not whole, which the log says. `sweep`: the folder of the sweep that asks, which knows if its store is new.
    `wanted`: whether who asked still waits; if not, the files are somebody else's by now and are left as they are."""
    file = database(uri or "")
    new = ((artifacts.read_json(sweep / "sweep.json") or {}) if sweep else {}).get("mlflow") or {}
    if uri is None or (file and (new.get("new") or not file.exists())) or time.monotonic() < _silent.get(uri, 0):
        return False
    if lacks(uri, folder.name):
        return False
    if ask:
        return ask(folder, uri, experiment)
    try:
        with _alone(folder):
            return _restore(folder, uri, experiment, wanted)
    except Exception as error:  # MLflow raises what its back end raises; the run is trained then
        _silent[uri] = time.monotonic() + SILENCE
        log.warning(
            "MLflow was not asked for %s: %s", folder.name, (str(error) or type(error).__name__).splitlines()[0]
        )
        return False


def _restore(folder: Path, uri: str, experiment: str, wanted: Callable[[], bool]) -> bool:
    client = connect(uri)
    if (run := _find(client, experiment, folder.name, "FINISHED")) is None:
        return False
    from mlflow.artifacts import download_artifacts, list_artifacts

    run_id, root, store = run.info.run_id, run.info.artifact_uri, client.tracking_uri
    there = {Path(file.path).name for file in list_artifacts(root, tracking_uri=store)}
    if lost := [name for name in RECORD if name not in there]:
        log.warning("MLflow's run %s of %s lacks %s: it is trained again", run_id, folder.name, ", ".join(lost))
        return False
    for half in folder.glob(".restore-*"):  # of a process that was killed
        shutil.rmtree(half, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as place:
        for name in there & {*FILES, "figures"} - {"failure.json", "pruned.json"}:
            download_artifacts(f"{root}/{name}", dst_path=place, tracking_uri=store)
        if not wanted():
            return False
        files = [file for file in Path(place).rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == "result.json"):
            os.replace(file, folder / file.name)
    for ended in ("failure.json", "pruned.json"):
        (folder / ended).unlink(missing_ok=True)
    status = (artifacts.read_json(folder / "result.json") or {}).get("status")
    state: dict[str, Any] = {"uri": uri, "experiment": experiment, "status": status, "run_id": run_id}
    state |= {"sweeps": _sweeps(run), "epochs": len(artifacts.read_lines(folder / "history.jsonl"))}
    artifacts.write_json(folder / STATE, state)
    return True


def fetch(weights: Path) -> bool:
    """Bring a file of weights that MLflow keeps into its run folder; False where MLflow has none.

    Raises what MLflow raises."""
    if not (weights.parent / STATE).exists():
        return False
    with _alone(weights.parent):
        return _fetch(weights)


def _fetch(weights: Path) -> bool:
    state = artifacts.read_json(weights.parent / STATE) or {}
    if "run_id" not in state or not (weights.parent / "result.json").exists():
        return False
    client = connect(state["uri"])
    if f"weights/{weights.name}" not in {file.path for file in client.list_artifacts(state["run_id"], "weights")}:
        return False
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=weights.parent) as place:
        os.replace(client.download_artifacts(state["run_id"], f"weights/{weights.name}", place), weights)
    return True


def finished(uri: str | None, experiment: str, signatures: Iterable[str]) -> set[str]:
    """Those of the signatures that MLflow has finished runs of; none where it does not answer. Changes nothing."""
    file = database(uri or "")
    if uri is None or (file and not file.exists()):
        return set()
    if not (signatures := [signature for signature in signatures if not lacks(uri, signature)]):
        return set()
    try:
        client = connect(uri)
        return {signature for signature in signatures if _find(client, experiment, signature, "FINISHED")}
    except Exception as error:
        log.warning("MLflow was not asked: %s", (str(error) or type(error).__name__).splitlines()[0])
        return set()


def push(folder: Path, uri: str, experiment: str, sweep: Path | None, *, final: bool) -> str:
    """Bring MLflow's record of `folder` up to date and return its run id; one process at a time.

    `sweep`: the folder of the sweep that asks, whose parent run a new run goes under.
    `final`: nobody works on the folder now, so the run is closed: FINISHED, FAILED, or KILLED when it was interrupted
    or pruned, which the tag `status` tells apart.
    """
    with _alone(folder):
        return _push(folder, uri, experiment, sweep, final)


def _push(folder: Path, uri: str, experiment: str, sweep: Path | None, final: bool) -> str:
    from mlflow.entities import Metric

    run = artifacts.read_json(folder / "run.json") or {}
    state = artifacts.read_json(folder / STATE) or {}
    client = connect(uri)
    known = (state.get("uri"), state.get("experiment")) == (uri, experiment) and "run_id" in state
    if not known and "run_id" in state and not (folder / "last.pt").exists():  # its weights may be in another store
        try:
            for name in WEIGHTS:
                _fetch(folder / name)
        except Exception as error:  # that store may be gone: all else is still copied
            log.warning("%s: its weights stay in %s, which does not answer: %s", folder.name, state["uri"], error)
    if not known or not _there(client, state["run_id"]):
        found = _find(client, experiment, folder.name)
        if found and state.get("anew"):
            client.delete_run(found.info.run_id)
            found = None
        run_id = found.info.run_id if found else _create(client, experiment, run, folder, sweep)
        logged = client.get_metric_history(run_id, "train/loss") if found else []
        state = {"uri": uri, "experiment": experiment, "status": None, "run_id": run_id}
        state["sweeps"] = _sweeps(found) if found else []
        state["made_by"] = sweep.name if sweep and not found else None
        state["epochs"] = max((metric.step for metric in logged), default=0)
    run_id = state["run_id"]
    if sweep and sweep.name not in state["sweeps"]:
        state["sweeps"] = [*state["sweeps"], sweep.name][-SWEEPS:]
        client.set_tag(run_id, "sweeps", ", ".join(state["sweeps"]))

    trial = artifacts.read_json(folder / "trial.json") or {}
    if trial != state.get("trial", {}):
        for tag, key in (("study", "study"), ("trial", "number"), ("trial.state", "state")):
            client.set_tag(run_id, tag, str(trial.get(key)))
        state["trial"] = trial
    history = artifacts.read_lines(folder / "history.jsonl")
    now = int(time.time() * 1000)
    new = history[state["epochs"] :]
    values = [
        Metric(key, value, now, row["epoch"])
        for row in new
        for key, value in row.items()
        if key != "epoch" and value is not None
    ]
    result = artifacts.read_json(folder / "result.json")
    failure = artifacts.read_json(folder / "failure.json")
    pruned = artifacts.read_json(folder / "pruned.json")
    ended = "failed" if failure else "pruned" if pruned else "interrupted" if final else "running"
    status = result["status"] if result else ended
    if result and state["status"] != status:
        # one value at step 0: MLflow draws such metrics as bars, side by side
        values += [Metric(k, float(v), now, 0) for k, v in _final_metrics(result, history).items()]
    for start in range(0, len(values), 1000):
        client.log_batch(run_id, metrics=values[start : start + 1000])
    state["epochs"] = max(state["epochs"], len(history))

    if status != state["status"]:
        client.set_tag(run_id, "status", status)
        tags = client.get_run(run_id).data.tags  # of an earlier end, here or on another machine
        for tag in {"failure", "error", "pruned"} & tags.keys():
            client.delete_tag(run_id, tag)
        if pruned and not result:
            client.set_tag(run_id, "pruned", pruned["reason"])
        if failure and not result:
            client.set_tag(run_id, "failure", failure["class"])
            client.set_tag(run_id, "error", failure["error"][:4000])
        if status == "running":
            client.update_run(run_id, status="RUNNING")
        else:
            for names, place in ((FILES, None), (FIGURES, "figures"), (WEIGHTS, "weights")):
                for file in (folder / name for name in names):
                    if file.exists():
                        client.log_artifact(run_id, str(file), place)
            closed = {"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")
            client.set_terminated(run_id, closed)
        state["status"] = status
    artifacts.write_json(folder / STATE, {key: value for key, value in state.items() if key != "error"})
    return run_id


def _final_metrics(result: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, float]:
    logged = set(history[-1]) if history else set()
    found = {key: value for key, value in result["metrics"].items() if key not in logged}
    found |= {key: result[key] for key in TIMES}
    found |= {"peak_memory_mib": result["peak_memory_bytes"] / 2**20, "objective": result["objective"]}
    if "micro_batches" not in logged:
        found["micro_batches"] = result.get("micro_batches")
    return {key: value for key, value in found.items() if value is not None}


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
        if folder.is_dir() and not artifacts.held(folder):
            if (folder / "run.json").exists():  # it may have ended well, and been killed before it could say so
                push(folder, uri, experiment, None, final=True)
                continue
            client.set_tag(run.info.run_id, "status", "interrupted")
            client.set_terminated(run.info.run_id, "KILLED")


def _find(client: "MlflowClient", experiment: str, signature: str, status: str | None = None) -> "Run | None":
    """The run of a signature; of several the latest."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    asked = f"tags.signature = '{signature}'" + (f" and attributes.status = '{status}'" if status else "")
    runs = client.search_runs([found.experiment_id], asked, max_results=1)
    return runs[0] if runs else None


def _sweeps(run: "Run") -> list[str]:
    """The sweeps that asked for a run so far, on whatever machine."""
    named = run.data.tags.get("sweeps")
    return named.split(", ") if named else []


def _create(client: "MlflowClient", experiment: str, run: dict[str, Any], folder: Path, sweep: Path | None) -> str:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    tags = {"signature": folder.name, "group": run["group"], "trajectory": run["trajectory"], "device": run["device"]}
    tags |= {"mlflow.source.name": "segsweep", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    tags |= {"mlflow.note.content": f"`{run['command']}`\n\nFolder: `{folder}`", "evaluated_on": run["evaluated_on"]}
    tags |= {"mlflow.runColor": _color(folder.name)}  # its own choice repeats colours among a handful of runs
    tags |= {"split.leaks": str(run["split"]["leaks"]).lower(), "versions": json.dumps(run["versions"])}
    if run.get("commit"):
        tags["mlflow.source.git.commit"] = run["commit"]
    if parent := _parent(sweep, uri=client.tracking_uri):
        tags["mlflow.parentRunId"] = parent
    made = client.create_run(experiment_id(client, experiment), tags=tags, run_name=run["name"])
    client.log_batch(made.info.run_id, params=[Param(k, str(v)) for k, v in run["factors"].items()])
    data = run["data"]
    dataset = Dataset(
        data["name"],
        data["digest"][:32],
        "local",
        json.dumps({"patients": data["patients"], "slices": data["slices"]}),
        profile=json.dumps({key: run["split"][key] for key in ("train", "val", "test")}),
    )
    client.log_inputs(made.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    return made.info.run_id


def _parent(sweep: Path | None, uri: str, patience: float = 60) -> str | None:
    """The parent run's id; it is made while the first job already reads its data, so it may have to be waited for, but
    not where the sweep was killed before it was made."""
    until, alive = time.monotonic() + patience, True
    while sweep and alive and time.monotonic() < until:
        alive = artifacts.held(sweep)  # first, so that what it wrote last is read
        mlflow = (artifacts.read_json(sweep / "sweep.json") or {}).get("mlflow")
        if not mlflow or not mlflow["parent"] or mlflow["error"] or mlflow["uri"] != uri.removesuffix(QUERY):
            return None
        if mlflow["run_id"]:
            return mlflow["run_id"]
        time.sleep(0.1)
    return None


def _color(signature: str) -> str:
    red, green, blue = colorsys.hls_to_rgb(int(signature[:8], 16) / 16**8, 0.45, 0.65)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def start_parent(uri: str, experiment: str, name: str, command: str) -> str:
    """The parent run of a sweep, under which MLflow's UI groups its jobs."""
    client = connect(uri)
    tags = {"mlflow.source.name": "segsweep", "mlflow.source.type": "LOCAL", "mlflow.user": _user(), "sweep": name}
    tags |= {"mlflow.note.content": f"`{command}`"}
    return client.create_run(experiment_id(client, experiment), tags=tags, run_name=name).info.run_id


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


def find_runs(reference: str, uri: str | None = None) -> list[Path]:
    """Run folders of an MLflow experiment's name or a run's id, as their descriptions give them.

    `uri`: the store; default: MLFLOW_TRACKING_URI of the environment, else the one below the working directory."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    if (file := database(uri)) and not file.exists():  # to ask is no reason to make one
        raise SegsweepError(f"{uri}: there is no such store")
    client = connect(uri)
    experiment = client.get_experiment_by_name(reference)
    runs = client.search_runs([experiment.experiment_id]) if experiment else [client.get_run(reference)]
    notes = [run.data.tags.get("mlflow.note.content", "") for run in runs]
    return [Path(note.split("Folder: `")[1].rstrip("`")) for note in notes if "Folder: `" in note]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
