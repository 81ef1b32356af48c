"""Splits of a made-up list of patients; sizes and folds by hand."""

import json
from itertools import combinations

import numpy as np
import pytest

from segsweep.core.errors import DataError
from segsweep.segmentation.data.split import PARTS, ByPatient, BySlice, FromFile, KFold

PATIENTS = {f"p{k}": [f"p{k}_{s}" for s in range(1, 3 + k)] for k in range(10)}  # 2 to 11 slices, 65 in all


def indices(patients):
    """Where the slices of these patients are among all."""
    owners = [patient for patient, names in PATIENTS.items() for _ in names]
    return [i for i, owner in enumerate(owners) if owner in patients]


def assert_disjoint(split, total=65):
    together = np.concatenate([split.train, split.val, split.test])
    assert sorted(together) == list(range(total))
    assert together.dtype == np.int64


def test_by_patient_keeps_patients_whole():
    split = ByPatient(val=0.15, test=0.2, seed=0)(PATIENTS)
    assert {part: len(names) for part, names in split.patients.items()} == {"train": 6, "val": 2, "test": 2}
    for part in PARTS:
        assert getattr(split, part).tolist() == indices(split.patients[part])
    assert_disjoint(split)
    assert not split.leaks


def test_by_patient_is_fixed_by_its_seed_and_by_nothing_else():
    first = ByPatient(val=0.2, test=0.2, seed=3)(PATIENTS)
    again = ByPatient(val=0.2, test=0.2, seed=3)(PATIENTS)
    other = ByPatient(val=0.2, test=0.2, seed=4)(PATIENTS)
    assert first.digest == again.digest != other.digest
    assert first.patients["test"] == ["p4", "p8"]  # of this version; another would make recorded splits untrue
    order = ByPatient(val=0.0, test=0.5, seed=3)(PATIENTS).patients["test"]
    joined = ByPatient(val=0.0, test=0.5, seed=3)(PATIENTS | {"q": ["q_1"]}).patients["test"]
    assert len(set(order) - set(joined)) <= 1


def test_no_validation_part():
    split = ByPatient(val=0, test=0.2, seed=0)(PATIENTS)
    assert len(split.val) == 0
    assert_disjoint(split)


def test_by_slice_leaks_and_says_so():
    split = BySlice(val=0.1, test=0.2, seed=0)(PATIENTS)
    assert (len(split.test), len(split.val)) == (13, 7)
    assert_disjoint(split)
    assert split.leaks
    assert set(split.patients["test"]) & set(split.patients["train"])
    assert split.to_json()["leaks"] is True


def test_by_slice_of_patients_with_one_slice_each_does_not_leak():
    assert not BySlice(val=0.0, test=0.2, seed=0)({f"p{k}": ["only"] for k in range(10)}).leaks


def test_folds_test_every_patient_once():
    splits = [KFold(folds=4, fold=k, val=0.15, seed=0)(PATIENTS) for k in range(4)]
    tests = [set(split.patients["test"]) for split in splits]
    assert sorted(map(len, tests)) == [2, 2, 3, 3]
    assert set().union(*tests) == set(PATIENTS)
    assert all(not a & b for a, b in combinations(tests, 2))
    for split in splits:
        assert_disjoint(split)
        assert len(split.patients["val"]) == 1  # 15 % of 7 or 8
        assert not split.leaks


def test_fewer_patients_than_folds():
    with pytest.raises(DataError, match=r"split\.folds=11: the data has 10 patients; .* 2 to 10 folds"):
        KFold(folds=11, fold=0, val=0.0, seed=0)(PATIENTS)


def write(tmp_path, content):
    (tmp_path / "split.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return FromFile(file=str(tmp_path / "split.json"))


def test_a_file_says_who_is_where_and_leaves_others_out(tmp_path):
    split = write(tmp_path, {"train": ["p3", "p1"], "val": [], "test": ["p0"]})(PATIENTS)
    assert split.train.tolist() == indices(["p1", "p3"])
    assert split.test.tolist() == [0, 1]
    assert split.to_json() == {
        "kind": "file",
        "train": {"p1": PATIENTS["p1"], "p3": PATIENTS["p3"]},
        "val": {},
        "test": {"p0": ["p0_1", "p0_2"]},
        "leaks": False,
    }


def test_the_record_of_a_run_is_a_split_file(tmp_path):
    split = ByPatient(val=0.15, test=0.2, seed=0)(PATIENTS)
    again = write(tmp_path, split.to_json())(PATIENTS)
    assert again.digest == split.digest
    np.testing.assert_array_equal(again.test, split.test)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["p1"], "test": ["p99"]}, r"split\.json: patient p99 of test is not in the data; did you mean p9\?"),
        ({"train": ["p1", "p2"], "test": ["p2"]}, r"patient p2 is in train and again in test"),
        ({"train": ["p1", "p1"], "test": ["p2"]}, r"patient p1 is in train and again in train"),
        ({"train": ["p1"]}, r"the part test is empty"),
        ({"train": [], "test": ["p1"]}, r"the part train is empty"),
        ({"train": ["p1"], "tset": ["p2"]}, r"a part 'tset'; did you mean test\?"),
        ({"train": "p1", "test": ["p2"]}, r"train is not a list of names"),
        ([1], r"expected \{\"train\""),
        ("{", r"split\.json: not JSON"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, content)(PATIENTS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"split\.file=.*gone\.json: cannot be read: No such file"):
        FromFile(file=str(tmp_path / "gone.json"))(PATIENTS)


def test_a_share_that_gives_nobody_is_refused():
    with pytest.raises(DataError, match=r"split\.test=0\.01: of 10 patients that is none; expected at least 0\.05"):
        ByPatient(val=0.0, test=0.01, seed=0)(PATIENTS)
    with pytest.raises(DataError, match=r"split\.val=0\.01: .* or 0 for no validation"):
        ByPatient(val=0.01, test=0.2, seed=0)(PATIENTS)
    with pytest.raises(DataError, match=r"the part train is empty \(2 patients"):
        ByPatient(val=0.45, test=0.45, seed=0)({"a": ["a_1"], "b": ["b_1"]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByPatient(val=0.5, test=0.5, seed=0), r"split\.test=0\.5, split\.val=0\.5"),
        (lambda: ByPatient(val=0.0, test=0.0, seed=0), r"split\.test=0\.0"),
        (lambda: BySlice(val=-0.1, test=0.2, seed=0), r"split\.val=-0\.1: expected a number from 0 to"),
        (lambda: ByPatient(val=0.1, test=0.2, seed=-1), r"split\.seed=-1"),
        (lambda: KFold(folds=5, fold=5, val=0.0, seed=0), r"split\.fold=5: expected a whole number from 0 to 4"),
        (lambda: KFold(folds=1, fold=0, val=0.0, seed=0), r"split\.folds=1"),
    ],
)
def test_wrong_values_name_their_key(make, message):
    with pytest.raises(DataError, match=message):
        make()
