"""The MLflow model registry: a run's network in it, and the run behind a registered model.

The ONNX flavour is the sturdiest that MLflow has: a standard graph without pickle and without code, so a clean
environment needs neither segsweep nor torch to load it with `mlflow.pyfunc`, and no version of either can break it.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import first_line, masked
from segsweep.core.program import typed
from segsweep.tracking.mirrors import push
from segsweep.tracking.store import connect, default, vouched

REQUIREMENTS = ("mlflow", "numpy", "onnx", "onnxruntime")
"""All that loading and predicting needs; pinned to the versions that the export was checked with."""


def register(
    name: str, run: Path, graph: Path, example: np.ndarray, output: np.ndarray, facts: dict[str, str], experiment: str
) -> str:
    """Log the ONNX file `graph` under the run's MLflow run as a new version of the registered model `name`.

    example: (B, C, H, W) float32 input and output: its logits (B, 1, H, W), from which the signature is made, for any
    B. facts: tags of the version. Returns models:/NAME/VERSION. Raises SegsweepError."""
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    uri = (artifacts.read_json(run / artifacts.MLFLOW) or {}).get("uri")
    uri = vouched(uri) if uri else default()
    single = np.dtype(np.float32)
    image = Schema([TensorSpec(single, (-1, *example.shape[1:]))])  # without a name: `predict` then takes the array
    logits = Schema([TensorSpec(single, (-1, *output.shape[1:]), "logits")])
    try:
        run_id = push(run, uri, experiment, None, final=True)
        client = connect(uri)
        mlflow.set_tracking_uri(client.tracking_uri)
        with mlflow.start_run(run_id=run_id):
            made = mlflow.onnx.log_model(
                onnx.load(graph),
                name=name,
                registered_model_name=name,
                signature=ModelSignature(image, logits),
                input_example=example,
                pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
                save_as_external_data=False,
                onnx_execution_providers=["CPUExecutionProvider"],  # what the required onnxruntime has; others warn
                metadata=facts,
            )
        number = str(made.registered_model_version)
        for key, value in (facts | {"signature": run.name, "folder": str(run.resolve())}).items():
            client.set_model_version_tag(name, number, key, value)
    except Exception as error:  # MLflow raises what its back end raises
        raise SegsweepError(f"MLflow at {masked(uri)} did not take the model {name}: {first_line(error)}") from error
    return f"models:/{name}/{number}"


def origin(reference: str) -> tuple[Path | None, str]:
    """The run folder that a registered model was exported from, as it was then, and its MLflow run's id."""
    name, _, number = reference.removeprefix("models:/").partition("/")
    if not name or (not number and "@" not in name):
        raise SegsweepError(f"{reference}: expected models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS")
    client: Any = connect(default())
    try:
        if "@" in name:
            found = client.get_model_version_by_alias(*name.split("@", 1))
        elif number == "latest":
            versions = client.search_model_versions(f"name = '{name}'")
            found = max(versions, key=lambda v: int(v.version), default=None)
            if found is None:
                raise SegsweepError(f"{reference}: MLflow at {masked(default())} has no registered model {name}")
        else:
            found = client.get_model_version(name, number)
    except SegsweepError:
        raise
    except Exception as error:
        raise SegsweepError(f"{reference}: MLflow at {masked(default())}: {first_line(error)}") from error
    if not found.run_id:
        raise SegsweepError(f"{reference}: this model belongs to no run; register it with {typed('export')}")
    folder = found.tags.get("folder")
    return Path(folder) if folder else None, found.run_id
