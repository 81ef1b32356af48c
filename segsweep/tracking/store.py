"""MLflow's store: opened, made where there is none, with segsweep's experiment and the views that its UI offers.

Nothing but this, `mirrors.py`, which copies runs there, `recall.py`, which answers from them, and `registry.py`, which
keeps models there, imports mlflow.
"""

import base64
import contextlib
import json
import logging
import os
import re
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from segsweep.core import artifacts, locks
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import masked, near, reach
from segsweep.core.session import importing, session
from segsweep.task import Spec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VIEW, FACTORS = "segsweep", "segsweep-factors"
"""Names and keys of the saved views that MLflow's UI offers: the runs of all sweeps, best first, with the columns of
their task; and the same grouped by its options, so that a line of the table and a bar of the charts is a mean over the
runs that share them. A second task in one experiment has views of its own, `segsweep-TASK`."""
OF_TASK = "segsweep.task"
"""Tag of an experiment: the task that VIEW is of."""
PLACE = "sqlite:///mlruns/mlflow.db"
"""Of a store where nothing says another."""
SHARED = "mlflow.sharedViewState."
"""How the tags of an experiment begin in which MLflow keeps saved views."""
FIGURES = "figures"
"""Folder of a run's pictures among its artifacts."""
STATE = artifacts.MLFLOW
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
    # now, as another thread may go to another folder; MLflow knows stores by their addresses, too
    file = Path(session().place or Path.cwd(), file)
    opened = _clients.get(uri)
    if opened and file.exists() and file.stat().st_ino == opened[0]:
        return opened[1]
    with locks.made(file, _make), importing():  # of the store's own code
        whole = uri if "?" in str(file) else "?".join([f"sqlite:///{file}", *uri.split("?")[1:]])
        client = MlflowClient(whole if "?" in whole else whole + QUERY)
        client.search_experiments(max_results=1)
        _clients[uri] = file.stat().st_ino, client
        return client


def load() -> None:
    """Import MLflow, which takes seconds, and what is used of it."""
    with importing():
        import mlflow.entities
        import mlflow.tracking  # noqa: F401


def default() -> str:
    """Where nothing says which: MLFLOW_TRACKING_URI of the environment, else the one below the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or PLACE


class NotVouchedError(SegsweepError):
    """An address that nobody but a run's folder has."""


def vouched(uri: str, *own: str | None) -> str:
    """An address that a run's folder has, which may be anybody's: passwords of the environment would go there.

    own: addresses that the command itself has. Raises NotVouchedError where it is none of these, nor `default`, nor a
    file below the working folder."""
    shown = masked(uri)
    if near(uri) or shown in {masked(known) for known in (*own, default()) if known}:
        return uri
    raise NotVouchedError(
        f"{shown}: an address that the run's folder alone names is not used; if it is yours, give it in "
        "MLFLOW_TRACKING_URI, or to segsweep.sync as --uri"
    )


def database(uri: str) -> Path | None:
    """The file of an SQLite store, from the command's working folder; None for a server."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(session().place or "", uri.removeprefix("sqlite:///").split("?")[0])


def here(uri: str) -> bool:
    """Whether a store is a file or a folder of this machine, and no server."""
    return database(uri) is not None or "://" not in uri or uri.startswith("file:")


def lacks(uri: str, signature: str) -> bool:
    """Whether an SQLite store surely has no run of this signature. It is asked without MLflow, whose import takes
    seconds; False where that is not possible."""
    found = _ask(uri, "SELECT 1 FROM tags WHERE key = 'signature' AND value = ? LIMIT 1", signature)
    return found == []


def recorded(uri: str) -> set[str] | None:
    """All that an SQLite store has runs of, asked as `lacks` does; None where that is not possible."""
    found = _ask(uri, "SELECT value FROM tags WHERE key = 'signature'")
    return None if found is None else {signature for (signature,) in found}


def _ask(uri: str, query: str, *values: str) -> list[Any] | None:
    if (file := database(uri)) is None:
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error:
        return None


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
    with locks.alone(folder / "mlflow.lock"):
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
            empty = artifacts.cache_folder() / f"mlflow-{VERSION}.db"
            if not empty.exists():
                empty.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with artifacts.atomic(empty) as whole:
                    make(whole)
            shutil.copyfile(empty, partial)
        except (OSError, RuntimeError):  # no home, or none that can be written
            make(partial)
        locks.share(partial)
        with contextlib.closing(sqlite3.connect(partial)) as connection:
            connection.execute("UPDATE experiments SET artifact_location = ?", (str(file.parent.resolve() / "0"),))
            connection.commit()


def kept_as(name: str) -> str:
    """Where MLflow keeps a file of a run's folder: weights and pictures in folders of their own, the rest as it is."""
    if name in artifacts.WEIGHTS:
        return f"weights/{name}"
    return f"{FIGURES}/{name}" if "/" not in name and name.endswith((".png", ".jpg", ".svg")) else name


class Columns(NamedTuple):
    """What the views show of a task's runs: settings, and of these the groups of options; metrics; the best first."""

    task: str
    settings: list[str]
    groups: list[str]
    metrics: list[str]
    order: str
    ascending: bool


def columns(spec: Spec, factors: Mapping[str, Any], choices: Mapping[str, Any]) -> Columns:
    """factors, choices: as in run.json, of any run of the task."""
    groups = [name for name in factors if name in choices]
    own = [name for name in factors if name.startswith("task.")]
    usual = [name for name in factors if name.rpartition(".")[2] in ("lr", "batch_size", "epochs", "seed")]
    shown = [name for name, metric in spec.metrics.items() if metric.column != ""]
    shown.sort(key=lambda name: (name != spec.primary, not spec.metrics[name].by_unit))
    order = f"test/{spec.primary}" if spec.scores else spec.select
    metrics = [order, *(f"test/{name}" for name in shown)]
    metrics += [f"train/{name}" for name in shown if not spec.metrics[name].by_unit]
    ascending = spec.metrics[spec.primary].direction == "min"
    settings = list(dict.fromkeys([*groups, *own, *usual]))
    alike = [name for name in groups if name != "task"] or [n for n in settings if n not in ("seed", *spec.repeats)]
    return Columns(str(choices.get("task") or "task"), settings, alike, list(dict.fromkeys(metrics)), order, ascending)


def columns_of(run: Mapping[str, Any]) -> Columns | None:
    """`run`: run.json. None where it says nothing of its task, as those of an older program do not."""
    with contextlib.suppress(ValueError):
        return columns(Spec.from_json(run.get("task") or {}), run["factors"], run.get("choices") or {})
    return None


def experiment_id(client: "MlflowClient", name: str, shown: Columns | None = None) -> str:
    """Of an experiment that is made where there is none, with views of what is `shown`."""
    found = client.get_experiment_by_name(name)
    if found is None:
        file = database(client.tracking_uri)
        folder = re.sub(r"/|^\.+$", "_", name)  # anybody's configuration may say it: it leads nowhere else
        place = (file.parent.resolve() / "artifacts" / folder).as_uri() if file else None
        tags = {"mlflow.experimentKind": "custom_model_development"} | (_views(shown) if shown else {})
        try:
            return client.create_experiment(name, artifact_location=place, tags=tags)
        except Exception:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if shown and found.tags.get(OF_TASK) != shown.task:
        first = f"{SHARED}{VIEW}" not in found.tags
        for key, value in _views(shown, "" if first else f"-{shown.task}").items():
            if key not in found.tags:
                client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def _views(shown: Columns, end: str = "") -> dict[str, str]:
    """Tags of an experiment; `end` of the views' names, for a task that is not its first."""
    tags = {f"{SHARED}{view}{end}": saved_view(f"{view}{end}", shown) for view in (VIEW, FACTORS)}
    return tags | ({} if end else {OF_TASK: shown.task})


def saved_view(name: str, shown: Columns) -> str:
    """VIEW or FACTORS, as MLflow's own "Save as new view" writes a view into a tag of the experiment."""
    keys = [{"mode": "param", "groupByData": factor} for factor in shown.groups]
    group = {"aggregateFunction": "average", "groupByKeys": keys} if name.startswith(FACTORS) else None
    order = {"orderByKey": f"metrics.`{shown.order}`", "orderByAsc": shown.ascending}
    named = [*(f"params.`{key}`" for key in shown.settings), *(f"metrics.`{key}`" for key in shown.metrics)]
    named += ["metrics.`training_seconds`", "metrics.`parameters`", "tags.`status`"]
    state = {"searchFilter": "tags.signature LIKE '%'"} | order
    state |= {"startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs"}
    state |= {"selectedColumns": named, "columnOrder": [], "columnWidths": {}, "groupBy": group}
    state |= {"runsHiddenMode": "FIRST_10_RUNS", "useGroupedValuesInCharts": True, "hideEmptyCharts": True}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    made = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": made, "updatedAt": made, "state": f"deflate;{packed}"})
