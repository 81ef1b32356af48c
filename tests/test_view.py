"""The view that MLflow's UI opens shows what the runs record, under the names that they record it."""

import base64
import json
import zlib

from segsweep import tracking


def test_the_saved_view_reads_as_mlflow_writes_one():
    view = json.loads(tracking.saved_view())
    header, _, packed = view["state"].partition(";")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert (view["name"], header) == ("segsweep", "deflate")
    assert "metrics.`test/dice`" in state["selectedColumns"]
    assert state["orderByKey"] in state["selectedColumns"]
