"""What a task's test gives is made plain, or refused in a sentence."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_task

from segsweep.core import artifacts
from segsweep.core.errors import TaskError
from segsweep.report import records
from segsweep.runs.result import checked
from segsweep.task import Result

SPEC = toy_task.Line.spec


def units(*values: object) -> dict:
    return {str(n): {"rmse": value} for n, value in enumerate(values)}


def test_scores_of_units_may_come_as_metrics_do():
    given = units(torch.tensor(0.5), np.float32(0.25), np.array([2]), None, math.nan, 1)
    found = [values["rmse"] for values in checked(Result({"test/rmse": 1.0}, given), SPEC, "Line").units.values()]
    assert [type(value) for value in found] == [float, float, int, float, float, int]
    assert found[:3] == [0.5, 0.25, 2]
    assert [math.isnan(value) for value in found] == [False, False, False, True, True, False]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rmse": "0.5"}, "Line: Result has str for rmse of point a; a number is needed, NaN where it is undefined"),
        ({"rmse": torch.ones(2)}, "Line: Result has Tensor for rmse of point a; a number is needed"),
        ({"rmse": 1.0, "of": [1]}, "Line: Result has list for of of point a; a number is needed"),
        ({"rmse": 1.0, "point": "b"}, "Line: Result has str for point of point a; its name has that column"),
    ],
)
def test_what_is_no_score_is_named_with_its_unit(values, says):
    with pytest.raises(TaskError) as error:
        checked(Result({"test/rmse": 1.0}, {"a": values}), SPEC, "Line")
    assert str(error.value).startswith(says)


def test_units_with_other_columns_are_written_and_read_with_all_of_them(tmp_path: Path):
    given = {"a": {"rmse": 0.5, "place": "north"}, "b": {"rmse": math.nan, "of": 3}}
    rows = [{"point": name, **values} for name, values in checked(Result({}, given), SPEC, "Line").units.items()]
    artifacts.write_csv(tmp_path / SPEC.table, rows)
    run = records.Run(tmp_path, "s", "finished", {"task": SPEC.to_json()})
    problems: list[str] = []
    read = records._units(run, problems)
    assert not problems
    assert read["a"]["rmse"] == 0.5
    assert (math.isnan(read["b"]["rmse"]), read["b"]["of"]) == (True, 3)
    assert "place" not in read["a"]
