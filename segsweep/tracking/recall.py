"""Answers from what was copied to MLflow: finished runs of other machines, their weights, and where runs lie.

`mirrors.py` is the way there, this the way back.
"""

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from segsweep.core import accepted, artifacts
from segsweep.core.errors import SegsweepError, printable
from segsweep.core.masks import first_line, masked
from segsweep.core.session import session, thread
from segsweep.core.signature import OWN
from segsweep.task import Spec
from segsweep.tracking.store import (
    FIGURES,
    STATE,
    alone,
    connect,
    database,
    default,
    find,
    kept_as,
    lacks,
    recorded,
    sweeps_of,
    vouched,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

SILENCE = 300.0
"""Seconds for which a store that did not answer is not asked again."""
PATIENCE = 5.0
"""Seconds that a job waits for a server to say whether it knows its run; then it is trained."""


def configuration(folder: Path) -> DictConfig:
    """The one that a run folder's record has. It may be anybody's, so that nothing in it is looked up: a record has
    values alone, and what an application's says beside them is text.

    Raises OSError, and what OmegaConf and YAML raise where it is damaged; SegsweepError naming a value that is none."""
    file = folder / "config.yaml"
    found = OmegaConf.load(file)
    if OWN in found:
        found = OmegaConf.create(artifacts.literal(OmegaConf.to_container(found, resolve=False)))
    elif asks := next(_asking(OmegaConf.to_container(found, resolve=False)), None):
        raise SegsweepError(f"{file}: {printable(asks)}: a run's record has values, and nothing to look up")
    assert isinstance(found, DictConfig)
    return found


def _asking(node: Any, key: str = "") -> Iterator[str]:
    """What looks something up, with its key: behind an even number of backslashes, as with an odd one it is text."""
    if isinstance(node, dict | list):
        for name, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _asking(item, str(name))
    elif isinstance(node, str) and re.search(r"(?<!\\)(\\\\)*\$\{", node):
        yield f"{key}: {node}"


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
            client = connect(uri)
            run = _in_time(find, client, experiment, folder.name, "FINISHED", wait=None if file else PATIENCE)
            if run is None:
                return False
            try:
                with alone(folder):
                    return _restore(client, run, folder, uri, experiment, wanted)
            except Exception as error:  # of this record, if the store still answers
                _in_time(find, client, experiment, folder.name, "FINISHED", wait=None if file else PATIENCE)
                about = "MLflow's run %s of %s cannot be restored, and it is trained again: %s"
                log.warning(about, run.info.run_id, folder.name, first_line(error))
        except Exception as error:  # MLflow raises what its back end raises; the run is trained then
            self.silent[uri] = time.monotonic() + SILENCE
            log.warning("MLflow was not asked for %s: %s", folder.name, first_line(error))
        return False


def restorer() -> Restorer:
    """The session's."""
    here = session()
    here.restorer = here.restorer or Restorer()
    return here.restorer


def _in_time(ask: Callable[..., Any], *given: Any, wait: float | None) -> Any:
    """What `ask` gives. Raises what it raises, and TimeoutError after `wait` seconds, when nobody listens any more."""
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(ask(*given))
        except Exception as error:  # of whoever asks
            answer.set_exception(error)

    thread(work, name="mlflow asked")
    try:
        return answer.result(wait)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {wait:.0f} s") from None


def _restore(
    client: "MlflowClient", run: "Run", folder: Path, uri: str, experiment: str, wanted: Callable[[], bool]
) -> bool:
    run_id = run.info.run_id
    for half in folder.glob(".restore-*"):  # of a process that was killed
        shutil.rmtree(half, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as place:
        there = _Kept(run.info.artifact_uri, client.tracking_uri)
        lost = [name for name in artifacts.RECORD if name not in there]
        if not lost:
            got = {name: there.bring(name, place) for name in artifacts.RECORD}
            files = _files(got["run.json"], got["result.json"], there)
            lost = [name for name in files if kept_as(name) not in there]
        if lost:
            log.warning("MLflow's run %s of %s lacks %s: it is trained again", run_id, folder.name, ", ".join(lost))
            return False
        files = [*files, *(name for name in (accepted.FILE,) if name in there)]
        got = {name: there.bring(name, place) for name in files} | got
        if not wanted():
            return False
        _put(got, folder)  # result.json last
    for ended in ("failure.json", "pruned.json"):
        (folder / ended).unlink(missing_ok=True)
    status = (artifacts.read_json(folder / "result.json") or {}).get("status")
    state: dict[str, Any] = {"uri": uri, "experiment": experiment, "status": status, "run_id": run_id}
    state |= {"sweeps": sweeps_of(run), "epochs": len(artifacts.read_lines(folder / "history.jsonl"))}
    artifacts.write_json(folder / STATE, state)
    return True


def _put(got: dict[str, Path], folder: Path) -> None:
    for name, file in got.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / name)


def download(run_id: str, folder: Path) -> None:
    """What MLflow keeps of a run into `folder`, under these names and no other, but for its history and result: the
    folder is no record that answers. Raises SegsweepError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        client = connect(default())
        there = _Kept(client.get_run(run_id).info.artifact_uri, client.tracking_uri)
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder) as place:
            own = [name for name in (*artifacts.RECORD, *artifacts.WEIGHTS) if kept_as(name) in there]
            got, none = {name: there.bring(name, place) for name in own}, Path(place) / "none"
            tasks = _files(got.get("run.json", none), got.pop("result.json", none), there)
            got.pop("history.jsonl", None)
            _put(got | {name: there.bring(name, place) for name in tasks if kept_as(name) in there}, folder)
    except Exception as error:  # MLflow raises what its back end raises
        raise SegsweepError(f"{run_id}: MLflow does not give the files of this run: {first_line(error)}") from error


def inside(file: str, place: str) -> Path:
    """A downloaded file, which has to lie in the folder that it was to go to. Raises ValueError."""
    path = Path(file)
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(Path(place).resolve()):
        raise ValueError(f"{file} is no file that was asked for")
    return path


class _Kept:
    """What MLflow keeps below `root`, folder by folder as it is asked for: `name in kept`."""

    def __init__(self, root: str, store: str):
        self.root, self.store = root, store
        self.known: dict[str, set[str]] = {}

    def names(self, folder: str = "") -> set[str]:
        from mlflow.artifacts import list_artifacts

        if folder not in self.known:
            found = list_artifacts(f"{self.root}/{folder}".rstrip("/"), tracking_uri=self.store)
            self.known[folder] = {Path(file.path).name for file in found if not file.is_dir}
        return self.known[folder]

    def bring(self, name: str, place: str) -> Path:
        """A file of a run's folder, into the folder `place`; whatever names a server gives, under the one it has here.

        Raises what MLflow raises, and ValueError where it is no file."""
        from mlflow.artifacts import download_artifacts

        beside = (Path(place) / name).parent
        beside.mkdir(parents=True, exist_ok=True)
        given = download_artifacts(f"{self.root}/{kept_as(name)}", dst_path=str(beside), tracking_uri=self.store)
        return inside(given, place)

    def __contains__(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        return last in self.names(folder)


def _files(run: Path, result: Path, there: _Kept) -> list[str]:
    """The files that a run's task wrote, as its result says; where that is of an older program, those that are kept."""
    if isinstance(listed := (artifacts.read_json(result) or {}).get("files"), list):
        return [name for name in listed if isinstance(name, str) and artifacts.is_tasks(name)]
    found = {name for name in (*there.names(), *there.names(FIGURES)) if kept_as(name) in there}
    with contextlib.suppress(ValueError):
        spec = Spec.from_json((artifacts.read_json(run) or {}).get("task") or {})
        found |= {spec.table} if spec.scores else set()
    return sorted(filter(artifacts.is_tasks, found))


def fetch(weights: Path) -> bool:
    """Bring a file of weights that MLflow keeps into its run folder; False where MLflow has none.

    Raises what MLflow raises."""
    if not (weights.parent / STATE).exists():
        return False
    with alone(weights.parent):
        return fetch_alone(weights)


def fetch_alone(weights: Path, *own: str) -> bool:
    """own: stores that the command itself names."""
    state = artifacts.read_json(weights.parent / STATE) or {}
    if "run_id" not in state or not artifacts.result(weights.parent):
        return False
    client = connect(vouched(state["uri"], *own))
    if f"weights/{weights.name}" not in {file.path for file in client.list_artifacts(state["run_id"], "weights")}:
        return False
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=weights.parent) as place:
        got = inside(client.download_artifacts(state["run_id"], f"weights/{weights.name}", place), place)
        os.replace(got, weights)
    return True


def finished(uri: str | None, experiment: str, signatures: Iterable[str]) -> set[str]:
    """Those of the signatures that MLflow has finished runs of; none where it does not answer. Changes nothing."""
    file = database(uri or "")
    if uri is None or (file and not file.exists()):
        return set()
    known = recorded(uri)
    if not (signatures := [signature for signature in signatures if known is None or signature in known]):
        return set()
    try:
        client = connect(uri)
        return {signature for signature in signatures if find(client, experiment, signature, "FINISHED")}
    except Exception as error:
        log.warning("MLflow was not asked: %s", first_line(error))
        return set()


def find_runs(reference: str) -> list[Path]:
    """Run folders of an MLflow experiment's name or a run's id in `store.default`, as their descriptions give them."""
    uri = default()
    if (file := database(uri)) and not file.exists():  # to ask is no reason to make one
        raise SegsweepError(f"{masked(uri)}: there is no such store")
    client = connect(uri)
    experiment = client.get_experiment_by_name(reference)
    runs = client.search_runs([experiment.experiment_id]) if experiment else [client.get_run(reference)]
    notes = [run.data.tags.get("mlflow.note.content", "") for run in runs]
    return [Path(note.split("Folder: `")[1].rstrip("`")) for note in notes if "Folder: `" in note]
