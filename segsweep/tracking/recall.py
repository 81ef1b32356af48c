"""Answers from what was copied to MLflow: finished runs of other machines, their weights, and where runs lie.

`tracking.py` is the way there, this the way back.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError, printable
from segsweep.core.session import session
from segsweep.masks import told
from segsweep.tracking.store import STATE, alone, connect, database, default, find, lacks, sweeps_of

log = logging.getLogger(__name__)

RECORD = ("config.yaml", "run.json", "split.json", "history.jsonl", "patients.csv", "result.json")
"""Without these a run is not answered from MLflow."""
FILES = (*RECORD, "overlays.npz", "failure.json", "pruned.json")
SILENCE = 60.0
"""Seconds for which a store that did not answer is not asked again."""


def configuration(folder: Path) -> DictConfig:
    """The one that a run folder's record has. It may be anybody's, so that nothing in it is looked up: a record has
    values alone.

    Raises OSError, and what OmegaConf and YAML raise where it is damaged; SegsweepError naming a value that is none."""
    file = folder / "config.yaml"
    found = OmegaConf.load(file)
    for line in OmegaConf.to_yaml(found).splitlines():
        if "${" in line:
            raise SegsweepError(f"{file}: {printable(line.strip())}: a run's record has values, and nothing to look up")
    assert isinstance(found, DictConfig)
    return found


class Restorer:
    """Brings back what MLflow has, and leaves a store that did not answer alone for a while.

    ask: asked instead of MLflow: in a launcher's worker the parent, which has MLflow imported and connected to once a
    sweep."""

    def __init__(self, ask: Callable[[Path, str, str], bool] | None = None):
        self.ask = ask
        self.silent: dict[str, float] = {}  # store -> until when it is not asked again

    def restore(
        self,
        folder: Path,
        uri: str | None,
        experiment: str,
        sweep: Path | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Whether MLflow has the run of `folder` finished, by another machine; then its files are there, result.json
        last.

        Weights stay in MLflow until somebody needs them (`fetch`). False too where MLflow does not answer or its record
        is not whole, which the log says. `sweep`: the folder of the sweep that asks, which knows if its store is new.
        `wanted`: whether who asked still waits; if not, the files are somebody else's by now and are left as they are.
        """
        file = database(uri or "")
        new = ((artifacts.read_json(sweep / "sweep.json") or {}) if sweep else {}).get("mlflow") or {}
        if uri is None or (file and (new.get("new") or not file.exists())):
            return False
        if time.monotonic() < self.silent.get(uri, 0) or lacks(uri, folder.name):
            return False
        if self.ask:
            return self.ask(folder, uri, experiment)
        try:
            with alone(folder):
                return _restore(folder, uri, experiment, wanted)
        except Exception as error:  # MLflow raises what its back end raises; the run is trained then
            self.silent[uri] = time.monotonic() + SILENCE
            reason = told((str(error) or type(error).__name__).splitlines()[0])
            log.warning("MLflow was not asked for %s: %s", folder.name, reason)
            return False


def restorer() -> Restorer:
    """The session's."""
    here = session()
    here.restorer = here.restorer or Restorer()
    return here.restorer


def _restore(folder: Path, uri: str, experiment: str, wanted: Callable[[], bool]) -> bool:
    client = connect(uri)
    if (run := find(client, experiment, folder.name, "FINISHED")) is None:
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
    state |= {"sweeps": sweeps_of(run), "epochs": len(artifacts.read_lines(folder / "history.jsonl"))}
    artifacts.write_json(folder / STATE, state)
    return True


def fetch(weights: Path) -> bool:
    """Bring a file of weights that MLflow keeps into its run folder; False where MLflow has none.

    Raises what MLflow raises."""
    if not (weights.parent / STATE).exists():
        return False
    with alone(weights.parent):
        return fetch_alone(weights)


def fetch_alone(weights: Path) -> bool:
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
        return {signature for signature in signatures if find(client, experiment, signature, "FINISHED")}
    except Exception as error:
        log.warning("MLflow was not asked: %s", (str(error) or type(error).__name__).splitlines()[0])
        return set()


def find_runs(reference: str, uri: str | None = None) -> list[Path]:
    """Run folders of an MLflow experiment's name or a run's id, as their descriptions give them.

    `uri`: the store, where it is not `store.default`."""
    uri = uri or default()
    if (file := database(uri)) and not file.exists():  # to ask is no reason to make one
        raise SegsweepError(f"{uri}: there is no such store")
    client = connect(uri)
    experiment = client.get_experiment_by_name(reference)
    runs = client.search_runs([experiment.experiment_id]) if experiment else [client.get_run(reference)]
    notes = [run.data.tags.get("mlflow.note.content", "") for run in runs]
    return [Path(note.split("Folder: `")[1].rstrip("`")) for note in notes if "Folder: `" in note]
