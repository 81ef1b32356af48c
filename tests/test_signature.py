"""What makes two runs the same run."""

import copy

import pytest

from segsweep import signature

CONFIG = {
    "model": {"_target_": "segsweep.models.unet.UNet", "width": 16},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0},
    "data": {"_target_": "segsweep.data.lgg.LGG", "root": "/somewhere", "image_size": 64, "model_width": 16},
    "split": {"_target_": "segsweep.data.split.KFold", "fold": 0},
    "epochs": 5,
    "seed": 0,
    "device": "cpu",
    "paths": {"runs": "multirun", "cache": "cache"},
}


def ids(changes: dict | None = None, data: str = "d", split: str = "s") -> dict[str, str]:
    config = copy.deepcopy(CONFIG)
    for key, value in (changes or {}).items():
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = value
    return signature.signatures(config, data, split)


def test_the_order_of_keys_does_not_matter():
    assert signature.signatures(dict(reversed(CONFIG.items())), "d", "s") == ids()


def test_a_whole_number_is_the_same_however_it_is_written():
    assert signature.digest({"a": [1, 0, -3]}) == signature.digest({"a": [1.0, 0.0, -3.0]})
    assert len({signature.digest(value) for value in (1, 1.5, True, "1", None)}) == 5


@pytest.mark.parametrize("key", ["device", "paths.runs", "data.root", "data.model_width"])
def test_where_and_how_fast_does_not_count(key):
    assert ids({key: "elsewhere"}) == ids()


@pytest.mark.parametrize(("key", "value"), [("model.width", 8), ("seed", 1), ("epochs", 6), ("data.image_size", 32)])
def test_what_is_computed_counts(key, value):
    assert ids({key: value})["signature"] != ids()["signature"]


def test_other_data_or_another_split_is_another_run():
    assert len({ids()["signature"], ids(data="e")["signature"], ids(split="t")["signature"]}) == 3


@pytest.mark.parametrize("changes", [{"seed": 7}, {"split.fold": 3}])
def test_repeats_share_a_group_and_nothing_else(changes):
    repeat = ids(changes, split="another")
    assert repeat["group"] == ids()["group"]
    assert repeat["signature"] != ids()["signature"]
    assert repeat["trajectory"] != ids()["trajectory"]


def test_runs_that_differ_in_epochs_share_a_trajectory_unless_the_schedule_looks_at_the_total():
    assert ids({"epochs": 10})["trajectory"] == ids()["trajectory"]
    five, ten = ids({"scheduler.T_max": 5}), ids({"scheduler.T_max": 10, "epochs": 10})
    assert five["trajectory"] != ten["trajectory"]


def test_the_ignore_list_names_keys_of_the_schema():
    from segsweep.config import Config

    known = set(Config.__dataclass_fields__)
    assert {key.split(".")[0] for key in signature.IGNORED} <= known


def test_comments_and_docstrings_retrain_nothing_and_code_does(tmp_path):
    plain, commented, changed = (tmp_path / name for name in ("a.py", "b.py", "c.py"))
    plain.write_text("def f(x):\n    return x + 1\n")
    commented.write_text("def f(x):  # why\n\n    return (x + 1)\n")
    changed.write_text("def f(x):\n    return x + 2\n")
    assert signature._code(plain) == signature._code(commented)
    assert signature._code(plain) != signature._code(changed)
    with_doc = tmp_path / "d.py"
    with_doc.write_text('def f(x):\n    """Old."""\n    return x + 1\n')
    assert signature._code(with_doc) == signature._code(plain)


def test_a_component_of_ones_own_belongs_to_the_identity(tmp_path, monkeypatch):
    module = tmp_path / "mine_for_signature.py"
    module.write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = signature.code_fingerprint.__wrapped__("mine_for_signature")
    module.write_text("def f():\n    return 2\n")
    assert signature.code_fingerprint.__wrapped__("mine_for_signature") != before
