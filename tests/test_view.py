"""The views that MLflow's UI opens show what the runs of a task record, under the names that they record it."""

import base64
import json
import zlib

import pytest
from test_task import RMSE

from segsweep.segmentation import metrics
from segsweep.tracking import store

FACTORS = {"task": "segmentation", "batch_size": 16, "precision": "fp32", "model": "unet", "model.width": 8}
FACTORS |= {"optim": "adam", "optim.lr": 0.1, "epochs": 3, "seed": 0}
OPTIONS = {"task": "segmentation", "model": "unet", "optim": "adam", "tracking": "mlflow"}
HOUSES = {"task": "houses", "task.lr": 0.1, "task.width": 4, "epochs": 3, "seed": 0, "split.fold": 1}


def state_of(view: str) -> dict:
    header, _, packed = json.loads(view)["state"].partition(";")
    assert header == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.mark.parametrize("name", [store.VIEW, store.FACTORS])
def test_a_saved_view_reads_as_mlflow_writes_one(name):
    view = store.saved_view(name, store.columns(metrics.SPEC, FACTORS, OPTIONS))
    state = state_of(view)
    assert json.loads(view)["name"] == name
    assert "metrics.`test/dice`" in state["selectedColumns"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/dice`", False)
    assert state["orderByKey"] in state["selectedColumns"]
    shown = {column[len("params.`") : -1] for column in state["selectedColumns"] if column.startswith("params.")}
    assert shown == {"task", "model", "optim", "optim.lr", "batch_size", "epochs", "seed"}
    grouped = {key["groupByData"] for key in state["groupBy"]["groupByKeys"]} if state["groupBy"] else set()
    assert grouped == ({"model", "optim"} if name == store.FACTORS else set())


def test_the_view_of_a_task_that_minimises_has_its_metrics_and_the_lowest_first():
    shown = store.columns(RMSE, HOUSES, {"task": "houses"})
    state = state_of(store.saved_view(store.FACTORS, shown))
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/rmse`", True)
    assert {"params.`task.width`", "metrics.`train/loss`", "metrics.`test/loss`"} <= set(state["selectedColumns"])
    assert not any("dice" in column for column in state["selectedColumns"])
    grouped = [key["groupByData"] for key in state["groupBy"]["groupByKeys"]]
    assert grouped == ["task", "task.lr", "task.width", "epochs"]


def test_two_tasks_in_one_experiment_have_views_of_their_own(uri):
    client = store.connect(uri)
    first, second = store.columns(RMSE, HOUSES, {"task": "houses"}), store.columns(metrics.SPEC, FACTORS, OPTIONS)
    made = store.experiment_id(client, "e", first)
    assert {store.experiment_id(client, "e", shown) for shown in (None, second, first, second)} == {made}
    tags = client.get_experiment(made).tags
    views = {key.rpartition(".")[2]: state_of(tags[key])["orderByKey"] for key in tags if "sharedViewState" in key}
    rmse, dice = "metrics.`test/rmse`", "metrics.`test/dice`"
    assert views == {
        **{"segsweep": rmse, "segsweep-factors": rmse},
        **{"segsweep-segmentation": dice, "segsweep-factors-segmentation": dice},
    }
