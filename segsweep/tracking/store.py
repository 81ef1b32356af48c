"""MLflow's store: opened, made where there is none, with segsweep's experiment and the views that its UI offers.

Nothing but this, `tracking.py`, which copies runs there, `recall.py`, which answers from them, and `registry.py`, which
keeps models there, imports mlflow.
"""

import base64
import contextlib
import fcntl
import json
import logging
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from segsweep.core import artifacts
from segsweep.masks import reach

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VIEW, FACTORS = "segsweep", "segsweep-factors"
"""Names and keys of the saved views that MLflow's UI offers: the runs of all sweeps, best first, with these columns;
and the same grouped by network, loss and optimizer, so that a line of the table and a bar of the charts is a mean over
the runs that share them."""
COLUMNS = (
    *(f"params.`{name}`" for name in ("model", "loss", "optim", "optim.lr", "epochs", "batch_size", "seed")),
    *(f"metrics.`{name}`" for name in ("test/dice", "test/hd95", "test/missed", "test/accuracy", "test/loss")),
    *(f"metrics.`{name}`" for name in ("train/loss", "train/accuracy", "training_seconds", "parameters")),
    "tags.`status`",
)
STATE = "mlflow.json"
"""In a run folder: what of it MLflow has."""
QUERY = "?timeout=60"
"""Seconds that SQLite waits for another writer."""

_clients: "dict[str, tuple[int, MlflowClient]]" = {}
"""Of each database file: its inode, by which another of the same name is told, and the client that has it open."""


def connect(uri: str) -> "MlflowClient":
    """A client whose store exists; an address of a record is `reach`ed.

    One process alone makes a database file: two at once would lock each other out."""
    from mlflow import MlflowClient

    uri = reach(uri)
    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries: what came of them is said at the end
    file = database(uri)
    if file is None:
        return MlflowClient(uri)
    opened = _clients.get(uri)
    if opened and file.exists() and file.stat().st_ino == opened[0]:
        return opened[1]
    with artifacts.made(file, _make):
        client = MlflowClient(uri if "?" in uri else uri + QUERY)
        client.search_experiments(max_results=1)
        _clients[uri] = file.stat().st_ino, client
        return client


def default() -> str:
    """Where nothing says which: MLFLOW_TRACKING_URI of the environment, else the one below the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlruns/mlflow.db"


def database(uri: str) -> Path | None:
    """The file of an SQLite store, None for a server."""
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None


def lacks(uri: str, signature: str) -> bool:
    """Whether an SQLite store surely has no run of this signature. It is asked without MLflow, whose import takes
    seconds; False where that is not possible."""
    file = database(uri)
    if file is None:
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            asked = "SELECT 1 FROM tags WHERE key = 'signature' AND value = ? LIMIT 1"
            return connection.execute(asked, (signature,)).fetchone() is None
    except sqlite3.Error:
        return False


def find(client: "MlflowClient", experiment: str, signature: str, status: str | None = None) -> "Run | None":
    """The run of a signature; of several the latest."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    asked = f"tags.signature = '{signature}'" + (f" and attributes.status = '{status}'" if status else "")
    runs = client.search_runs([found.experiment_id], asked, max_results=1)
    return runs[0] if runs else None


def sweeps_of(run: "Run") -> list[str]:
    """The sweeps that asked for a run so far, on whatever machine."""
    named = run.data.tags.get("sweeps")
    return named.split(", ") if named else []


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process and thread at a time copies the run of `folder`, to MLflow or from it."""
    with (folder / "mlflow.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _make(file: Path) -> None:
    """A copy of an empty store, which MLflow takes seconds to make: kept beside the decoded data, whole or not at all.

    A store whose process is killed amid MLflow's migrations can never be opened again."""
    from mlflow import MlflowClient
    from mlflow.version import VERSION

    def make(place: Path) -> None:
        client = MlflowClient(f"sqlite:///{place.resolve()}")
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()

    for left in ("-wal", "-shm"):  # of a store that was deleted by hand: SQLite would take them for the new one's
        file.with_name(file.name + left).unlink(missing_ok=True)
    with artifacts.atomic(file) as partial:
        try:
            empty = (
                Path(os.environ.get("SEGSWEEP_CACHE") or Path.home() / ".cache" / "segsweep") / f"mlflow-{VERSION}.db"
            )
            if not empty.exists():
                empty.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with artifacts.atomic(empty) as whole:
                    make(whole)
            shutil.copyfile(empty, partial)
        except (OSError, RuntimeError):  # no home, or none that can be written
            make(partial)
        artifacts.share(partial)
        with contextlib.closing(sqlite3.connect(partial)) as connection:
            connection.execute("UPDATE experiments SET artifact_location = ?", (str(file.parent.resolve() / "0"),))
            connection.commit()


def experiment_id(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    file = database(client.tracking_uri)
    place = (file.parent.resolve() / "artifacts" / name).as_uri() if file else None
    tags = {"mlflow.experimentKind": "custom_model_development"}
    tags |= {f"mlflow.sharedViewState.{view}": saved_view(view) for view in (VIEW, FACTORS)}
    try:
        return client.create_experiment(name, artifact_location=place, tags=tags)
    except Exception:  # another process was quicker
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def saved_view(name: str) -> str:
    """VIEW or FACTORS, as MLflow's own "Save as new view" writes a view into a tag of the experiment."""
    keys = [{"mode": "param", "groupByData": factor} for factor in ("model", "loss", "optim")]
    group = {"aggregateFunction": "average", "groupByKeys": keys} if name == FACTORS else None
    state = {"searchFilter": "tags.signature LIKE '%'", "orderByKey": "metrics.`test/dice`", "orderByAsc": False}
    state |= {"startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs"}
    state |= {"selectedColumns": list(COLUMNS), "columnOrder": [], "columnWidths": {}, "groupBy": group}
    state |= {"runsHiddenMode": "FIRST_10_RUNS", "useGroupedValuesInCharts": True, "hideEmptyCharts": True}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    made = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": made, "updatedAt": made, "state": f"deflate;{packed}"})
