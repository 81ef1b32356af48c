"""`segsweep ui`: serves MLflow's store of the working folder on this machine alone, and says where its views are."""

import argparse
import os
import socket
import sys

from segsweep.core.errors import SegsweepError
from segsweep.core.masks import first_line, learn, masked
from segsweep.core.program import pasted, typed
from segsweep.tracking import store

HOST = "127.0.0.1"
"""MLflow asks nobody for a password, so it is for this machine alone."""


def main(arguments: list[str] | None = None) -> int:
    """Become MLflow's server, until Ctrl-C; 1 and a sentence where there is nothing to serve or no port for it."""
    parser = argparse.ArgumentParser(
        prog=typed("ui"),
        description=f"Serve MLflow's table, charts and pages of runs on {HOST}, for this machine alone.",
    )
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    parser.add_argument(
        "--store",
        metavar="URI",
        help=f"the address of the store, tracking.uri of a sweep; default: MLFLOW_TRACKING_URI, or {store.PLACE}",
    )
    options = parser.parse_args(arguments)
    uri = options.store or store.default()
    learn(uri)
    try:
        views = addresses(uri, options.port)
    except SegsweepError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(views), "Ctrl-C ends it.", sep="\n", flush=True)
    line = ["-m", "mlflow", "ui", "--host", HOST, "--port", str(options.port), "--uvicorn-opts", "--log-level warning"]
    # The address not as an argument, which everybody on the machine can list; and in the working folder a module may
    # have the name of one that MLflow imports.
    environment = {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"} | os.environ  # of what it serves with
    environment |= {"MLFLOW_BACKEND_STORE_URI": uri, "PYTHONSAFEPATH": "1"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.execve(sys.executable, [sys.executable, *line, "--workers", "1"], environment)


def addresses(uri: str, port: int) -> list[str]:
    """A line for each view of the store at `uri`. Raises SegsweepError where there is none, or no such port is free."""
    if uri.startswith(("http:", "https:")):
        raise SegsweepError(f"{masked(uri)}: a server, which has its pages at this address: open it in a browser")
    if (file := store.database(uri)) and not file.exists():
        other = "" if uri == store.PLACE else f" {pasted([f'tracking.uri={masked(uri)}'])}"
        raise SegsweepError(
            f"{file}: no store of MLflow here. A sweep makes it, as {typed()} -m optim=sgd,adam{other} does; one that "
            "is elsewhere is named by --store, as in --store sqlite:////home/me/mlruns/mlflow.db"
        )
    if not 0 < port < 2**16:
        raise SegsweepError(f"--port {port}: must be from 1 to {2**16 - 1}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SegsweepError(f"--port {port}: {error.strerror}; give another, as in --port {port + 1}") from None
    try:
        experiments = store.connect(uri).search_experiments()
    except Exception as error:  # MLflow raises what its back end raises
        raise SegsweepError(f"{masked(uri)}: no store that this MLflow reads: {first_line(error)}") from error
    found, begin = [], f"http://{HOST}:{port}/#/experiments"
    for experiment in experiments:
        names = [key.removeprefix(store.SHARED) for key in sorted(experiment.tags) if key.startswith(store.SHARED)]
        for name in names:
            charts = name.startswith(store.FACTORS)
            kind = "charts by setting" if charts else "runs, best first"
            place = f"{experiment.experiment_id}/runs?viewStateShareKey={name}{'&compareRunsMode=CHART' * charts}"
            found.append(f"{experiment.name}, {kind}:  {begin}/{place}")
    return found or [f"No run of segsweep is in it yet:  {begin}"]
