"""What a task says of itself survives its record."""

import dataclasses
import json
import math
import re

import pytest

from segsweep.core.signature import left_out
from segsweep.segmentation import metrics
from segsweep.task import Data, Metric, Spec

RMSE = Spec(
    metrics={
        "loss": Metric(title="Loss", direction="min", scale=("loss",)),
        "rmse": Metric(title="RMSE", direction="min", format=".2f", bounds=(0, math.inf), by_unit=True),
    },
    select="val/rmse",
    unit="house",
    sample="house",
    repeats=("split.fold",),
    sections=("mine.sections.residuals",),
    endings={"patience": (), "tested": ("last", "best")},
)


def test_a_description_is_the_same_after_strict_json():
    there = json.loads(json.dumps(RMSE.to_json(), allow_nan=False))
    assert Spec.from_json(there) == RMSE


def test_a_record_from_before_tasks_named_their_inputs_has_the_groups_that_decided_the_data():
    record = RMSE.to_json()
    del record["inputs"]
    assert Spec.from_json(record).inputs == ("data", "split")
    assert Spec.from_json(RMSE.to_json()).inputs == ()


def test_the_number_of_epochs_is_no_part_of_a_task_that_has_none():
    without = left_out("", dataclasses.replace(RMSE, epochs=False, ignored=("workers",)))
    assert set(without) - set(left_out("", RMSE)) == {"workers", "epochs"}
    assert "app.epochs" in left_out("app.", dataclasses.replace(RMSE, epochs=False))


def test_what_a_later_version_adds_is_no_error_and_what_is_none_is_told():
    record = RMSE.to_json()
    record["new"], record["metrics"]["rmse"]["new"] = 1, 2
    assert Spec.from_json(record) == RMSE
    for broken in ({}, {"metrics": {"a": {}}}, {"metrics": {"a": {"title": "A", "direction": "up"}}, "select": "a"}):
        with pytest.raises(ValueError, match="task|direction"):
            Spec.from_json(broken)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"direction": "maximize"}, "direction='maximize': allowed are max, min; did you mean max?"),
        ({"direction": "minimise"}, "allowed are max, min; did you mean min?"),
        ({"direction": "Max"}, "direction='Max': allowed are max, min"),
        ({"direction": None}, "direction=None: allowed are max, min"),
        ({"format": "four digits"}, "format='four digits': allowed are such as .3f"),
        ({"bounds": (1, 0)}, "bounds=(1, 0): allowed are two numbers, the first below the second"),
        ({"bounds": (None, 1)}, "bounds=(None, 1): allowed are two numbers"),
    ],
)
def test_a_metric_that_is_none_is_told_when_it_is_made(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Metric(**{"title": "A", "direction": "max"} | given)


def test_runs_are_compared_by_the_first_metric_that_units_have():
    assert (RMSE.primary, metrics.SPEC.primary) == ("rmse", "dice")
    assert list(metrics.SPEC.scores) == ["dice", "iou", "hd95"]
    alone = Spec(metrics={"a": Metric(title="A", direction="max")}, select="val/a")
    assert alone.primary == "a"


def test_a_value_is_known_by_its_key():
    assert RMSE.metric("val/rmse") is RMSE.metrics["rmse"]
    assert RMSE.metric("test/rmse").sign == -1
    assert RMSE.metric("seconds") is RMSE.metric("lr/rmse") is None


def test_every_epoch_is_scored_on_the_validation_part_where_there_is_one():
    assert Data(digest="d", parts={"train": 3, "val": 1, "test": 1}).part == "val"
    assert Data(digest="d", parts={"train": 3, "val": 0, "test": 1}).part == "test"
