"""The views that MLflow's UI opens show what the runs record, under the names that they record it."""

import base64
import json
import zlib

import pytest

from segsweep.tracking import store


@pytest.mark.parametrize("name", [store.VIEW, store.FACTORS])
def test_a_saved_view_reads_as_mlflow_writes_one(name):
    view = json.loads(store.saved_view(name))
    header, _, packed = view["state"].partition(";")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert (view["name"], header) == (name, "deflate")
    assert "metrics.`test/dice`" in state["selectedColumns"]
    assert state["orderByKey"] in state["selectedColumns"]
    shown = {column[len("params.`") : -1] for column in state["selectedColumns"] if column.startswith("params.")}
    grouped = {key["groupByData"] for key in state["groupBy"]["groupByKeys"]} if state["groupBy"] else set()
    assert grouped == ({"model", "loss", "optim"} if name == store.FACTORS else set())
    assert grouped <= shown
