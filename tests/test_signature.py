"""What makes two runs the same run."""

import copy
import dataclasses
import gc
import importlib
import json
import os
import sys
import types

import pytest
from hydra import compose, initialize_config_dir

from segsweep.config.schema import conf_dir
from segsweep.core import signature, source
from segsweep.runs.identity import identity
from segsweep.segmentation.metrics import SPEC
from segsweep.task import Data

CONFIG = {
    "model": {"_target_": "segsweep.segmentation.models.unet.UNet", "width": 16},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0},
    "data": {
        "_target_": "segsweep.segmentation.data.lgg.LGG",
        "root": "/somewhere",
        "image_size": 64,
        "model_width": 16,
    },
    "split": {"_target_": "segsweep.segmentation.data.split.KFold", "fold": 0},
    "epochs": 5,
    "seed": 0,
    "device": "cpu",
    "paths": {"runs": "multirun", "cache": "cache"},
}


def ids(changes: dict | None = None, data: str = "d", split: str = "s", config: dict = CONFIG) -> dict[str, str]:
    config = copy.deepcopy(config)
    for key, value in (changes or {}).items():
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = value
    kept = signature.without(config, (*signature.IGNORED, *SPEC.ignored))
    like = signature.without(kept, ("seed", *SPEC.repeats))
    return signature.signatures(kept, like, data, split, {}, "epochs")


def test_the_order_of_keys_does_not_matter():
    assert ids({}) == ids(config=dict(reversed(CONFIG.items())))


def test_a_whole_number_is_the_same_however_it_is_written():
    assert signature.digest({"a": [1, 0, -3]}) == signature.digest({"a": [1.0, 0.0, -3.0]})
    assert len({signature.digest(value) for value in (1, 1.5, True, "1", None)}) == 5


@pytest.mark.parametrize("key", ["device", "paths.runs", "data.root", "data.model_width"])
def test_where_and_how_fast_does_not_count(key):
    assert ids({key: "elsewhere"}) == ids()


def test_a_key_within_something_that_has_no_keys_takes_nothing_away():
    config = {"split": None, "data": {"root": "x", "size": 8}}
    assert signature.without(config, ("split.file", "data.root")) == {"split": None, "data": {"size": 8}}


def test_a_setting_that_came_later_counts_once_it_decides_something():
    spec = dataclasses.replace(SPEC, neutral={"loss.weights": None, "data.scale": 1, "ema": None})
    old = {"data": {"root": "x"}, "loss": {"smooth": 1}}
    new = {"data": {"root": "x", "scale": 1.0}, "loss": {"smooth": 1, "weights": None}, "ema": None}
    assert signature.deciding(new, spec) == old == signature.deciding(old, spec)
    for key in spec.neutral:
        group, _, name = key.rpartition(".")
        assert signature.deciding(new | ({group: {**new[group], name: 2}} if group else {name: 2}), spec) != old
    assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))).neutral == spec.neutral


def test_false_is_not_the_number_at_which_a_setting_decides_nothing():
    spec = dataclasses.replace(SPEC, neutral={"ema": False})
    assert [signature.deciding({"ema": value}, spec) for value in (False, 0, 0.0)] == [{}, {"ema": 0}, {"ema": 0.0}]


SIX = {
    "base_r2unet": "03c0284da2bcaf0f",
    "base_unet": "3c9d460367b06635",
    "dice_unet": "707cdaf4e54ee2de",
    "r2unet_config_1": "77c17257dc5608f4",
    "unet_config_1": "998b106fc0563917",
    "unet_config_2": "83aa81dee11a8d6d",
}


@pytest.mark.parametrize("name", SIX)
def test_six_runs_are_the_runs_that_they_were(name):
    """From the first release on: a key that comes later has a value at which it changes none (`Spec.neutral`)."""
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=[f"experiment={name}", "data.root=x"])
    found = identity(cfg, SPEC, Data(digest="d", split="s", settings={"precision": "fp32"}))
    assert dataclasses.replace(found, files={}).ids["signature"] == SIX[name]


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


def test_settings_that_decide_how_a_run_ends_are_in_its_signature_and_its_epochs_are_shared():
    spec = dataclasses.replace(SPEC, neutral={"patience": None}, endings={"patience": (), "tested": ("last", "best")})
    plain = {"lr": 1, "tested": "last"}
    found = {}
    for key, value in (("patience", None), ("patience", 3), ("tested", "best"), ("tested", "mean"), ("lr", 2)):
        config = signature.deciding(plain | {key: value}, spec)
        ends = signature.endings(config, spec)
        found[key, value] = signature.signatures(config, config, "d", "s", {}, "epochs", ends)
    assert len({ids["signature"] for ids in found.values()}) == 5
    shared = [found[of]["trajectory"] for of in (("patience", None), ("patience", 3), ("tested", "best"))]
    assert len(set(shared)) == 1
    assert len({shared[0], found["tested", "mean"]["trajectory"], found["lr", 2]["trajectory"]}) == 3


def test_code_that_decides_no_epoch_is_in_the_signature_and_not_in_the_trajectory():
    config, net = {"lr": 1, "metrics": ["mine.Score"]}, {"net": "a"}

    def made(files, trained=None, config=config):
        return signature.signatures(config, config, "d", "s", files, "epochs", ("metrics",), trained)

    plain = made(net, config={"lr": 1})
    found = [made(net | {"mine": version}, net) for version in "bc"]
    assert {ids["trajectory"] for ids in found} == {plain["trajectory"]}
    assert len({ids["signature"] for ids in (plain, *found)}) == len({ids["group"] for ids in (plain, *found)}) == 3
    assert made(net | {"mine": "b"})["signature"] == found[0]["signature"]  # that of a record of before
    assert made(net | {"mine": "b"})["trajectory"] != plain["trajectory"]


def test_the_ignore_list_names_keys_of_the_schema():
    from segsweep.config.schema import Config

    known = set(Config.__dataclass_fields__)
    assert {key.split(".")[0] for key in signature.IGNORED} <= known


def test_comments_and_docstrings_retrain_nothing_and_code_does(tmp_path):
    plain, commented, changed = (tmp_path / name for name in ("a.py", "b.py", "c.py"))
    plain.write_text("def f(x):\n    return x + 1\n")
    commented.write_text("def f(x):  # why\n\n    return (x + 1)\n")
    changed.write_text("def f(x):\n    return x + 2\n")
    with_doc = tmp_path / "d.py"
    with_doc.write_text('def f(x):\n    """Old."""\n    return x + 1\n')
    found = source.hashes({file.stem: file for file in (plain, commented, changed, with_doc)})
    assert found["a"] == found["b"] == found["d"]
    assert found["a"] != found["c"]


NET = "class Net:\n    pass\n"
PROJECTS = {
    "its own module": ({"mine.py": NET}, "mine.Net", "mine.py"),
    "re-exported by its package": (
        {"mine/__init__.py": "from mine.net import Net\n", "mine/net.py": NET},
        *("mine.Net", "mine/net.py"),
    ),
    "the package itself": (
        {"mine/__init__.py": "from mine.net import Net\n", "mine/net.py": NET},
        "mine.net.Net",
        "mine/__init__.py",
    ),
    "a helper two modules away": (
        {"mine/__init__.py": "", "mine/net.py": f"from . import blocks\n{NET}"}
        | {"mine/blocks.py": "def f():\n    from .deep.ops import g\n", "mine/deep/ops.py": "def g(): ..."},
        *("mine.net.Net", "mine/deep/ops.py"),
    ),
    "a module named as one of this program's": (
        {"model.py": f"import train\n{NET}", "train.py": "rate = 1\n"},
        *("model.Net", "train.py"),
    ),
    "a folder without __init__": (
        {"src/net.py": f"from src.blocks import f\n{NET}", "src/blocks.py": "f = 1\n"},
        "src.net.Net",
        "src/blocks.py",
    ),
    "imported by name": (
        {"mine.py": f"import importlib\n{NET}part = importlib.import_module('part')\n", "part.py": "a = 1\n"},
        "mine.Net",
        "part.py",
    ),
    "imported by a relative name": (
        {"mine/__init__.py": "", "mine/net.py": f"import importlib\n{NET}importlib.import_module('.part', 'mine')\n"}
        | {"mine/part.py": "a = 1\n"},
        *("mine.net.Net", "mine/part.py"),
    ),
    "imported by a named name": (
        {"mine.py": f"import importlib\n{NET}part = importlib.import_module(name='part')\n", "part.py": "a = 1\n"},
        *("mine.Net", "part.py"),
    ),
    "got by Hydra": (
        {"mine.py": f"from hydra.utils import get_method\n{NET}f = get_method('part.f')\n", "part.py": "f = len\n"},
        *("mine.Net", "part.py"),
    ),
    "what it inherits from, made at run time": (
        {"mine.py": "name = 'ba' + 'se'\nclass Net(__import__(name).Base):\n    pass\n", "base.py": "class Base: ..."},
        *("mine.Net", "base.py"),
    ),
    "behind a partial": (
        {
            "mine.py": "import functools\nimport real\nNet = functools.partial(real.Real, width=1)\n",
            "real.py": "class Real: ...",
        },
        *("mine.Net", "real.py"),
    ),
    "a loop of imports": ({"a.py": f"import b\n{NET}", "b.py": "import a\n"}, "a.Net", "b.py"),
}


OWN = {name.split("/")[0].removesuffix(".py") for files, _, _ in PROJECTS.values() for name in files}


def own_code(folder, target, allow, monkeypatch) -> dict[str, str]:
    """As a process that is started now would find it."""
    from segsweep.config import whitelist

    allow(f"{target.split('.')[0]}.*")
    monkeypatch.syspath_prepend(str(folder))
    for name in list(sys.modules):
        if name.split(".")[0] in OWN:
            del sys.modules[name]
    importlib.invalidate_caches()
    return source.code.__wrapped__(*whitelist.modules({"model": [{"list": [{"_target_": target}]}]}))


@pytest.mark.parametrize("project", PROJECTS)
def test_an_edit_of_what_a_component_reaches_is_another_run(project, tmp_path, allow, monkeypatch):
    files, target, edited = PROJECTS[project]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = own_code(tmp_path, target, allow, monkeypatch)
    assert own_code(tmp_path, target, allow, monkeypatch) == before
    (tmp_path / edited).write_text(files[edited] + "\nlr = 2\n")
    os.utime(tmp_path / edited, (0, 0))  # so that Python does not take its bytecode for this
    after = own_code(tmp_path, target, allow, monkeypatch)
    module = edited.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert [name for name in after if after[name] != before.get(name)] == [module]
    assert signature.fingerprint(after) != signature.fingerprint(before)


def test_code_that_is_installed_or_not_reached_is_not_watched(tmp_path, allow, monkeypatch):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "far.py").write_text("x = 1\n")
    (tmp_path / "beside.py").write_text("x = 1\n")
    (tmp_path / "mine.py").write_text(f"import json, torch.nn, far, segsweep.runs.run\n{NET}")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    assert set(own_code(tmp_path, "mine.Net", allow, monkeypatch)) - set(source.code()) == {"mine"}


def test_the_script_that_was_started_is_the_module_that_it_is(tmp_path, monkeypatch):
    script = tmp_path / "net.py"
    script.write_text(NET)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    as_script = source.code.__wrapped__("__main__")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert signature.fingerprint(as_script) == signature.fingerprint(source.code.__wrapped__("net"))


def test_the_code_of_the_program_that_decides_numbers_is_watched():
    names = {name for name in source.code(*SPEC.code) if not name.endswith(("segmentation", "data", "models"))}
    room = source.PACKAGE / "segmentation"
    files = {".".join(["segsweep", *f.relative_to(room.parent).with_suffix("").parts]) for f in room.rglob("*.py")}
    doors = {
        f"segsweep.segmentation.{name}"
        for name in ("predict", "predictions", "export", "trained", "inputs", "sections")
    }
    assert names == {name for name in files - doors if not name.endswith("__init__")} | set(source.CODE)


def test_a_file_of_another_encoding_is_read_as_python_does(tmp_path):
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "utf.py").write_text("name = 'é'\n")
    assert len(set(source.hashes({name: tmp_path / f"{name}.py" for name in ("latin", "utf")}).values())) == 1


def test_what_a_process_has_read_of_code_another_need_not_and_others_cannot_say(tmp_path, allow, monkeypatch):
    """Each turn is a process of its own: what it knows is gone."""

    def turn() -> tuple[dict[str, str], int]:
        for kept in (source._known, source._kept):
            kept.cache_clear()
        read.clear()
        return own_code(tmp_path / "src", "mine.Net", allow, monkeypatch), len(read)

    read, parsed, cache = [], source._parsed, tmp_path / "cache"
    monkeypatch.setenv("SEGSWEEP_CACHE", str(cache))
    monkeypatch.setattr(source, "_parsed", lambda text: read.append(text) or parsed(text))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mine.py").write_text(f"import beside\n{NET}")
    (tmp_path / "src" / "beside.py").write_text("x = 1\n")
    first, count = turn()
    assert count == 2 + len(source.CODE)
    assert turn() == (first, 0)
    (tmp_path / "src" / "beside.py").write_text("x = 2\n")
    second, count = turn()
    assert [name for name in second if second[name] != first[name]] == ["beside"]
    assert count == 1
    for mode in (0o770, 0o707):
        cache.chmod(mode)
        assert turn() == (second, 2 + len(source.CODE))
    cache.chmod(0o700)
    kept = json.loads((cache / source.KEPT).read_text())
    other = kept | {"made": ["of another version"], "modules": {k: [[], "wrong"] for k in kept["modules"]}}
    for damaged in ("{", "[]", "{}", json.dumps(other), json.dumps(kept | {"modules": []}), '{"modules": 3}'):
        (cache / source.KEPT).write_text(damaged)
        assert turn()[0] == second


def test_modules_of_one_last_name_are_told_apart_by_as_much_of_their_names_as_it_takes():
    one, other = ({"a.net": x, "b.net": y, "c": "z"} for x, y in (("1", "2"), ("2", "1")))
    assert signature.fingerprint(one) != signature.fingerprint(other)
    assert signature.fingerprint(one) == signature.fingerprint({f"src.{name}": code for name, code in one.items()})
    assert signature.short(["a.net", "b.net", "net", "x.c"]) == {
        "a.net": "a.net",
        "b.net": "b.net",
        "net": "net",
        "x.c": "c",
    }


def test_this_programs_own_modules_are_known_by_their_last_names():
    assert all("." not in name for name in signature.short(source.code(*SPEC.code)).values())


def test_looking_at_what_is_loaded_bears_modules_that_come_meanwhile():
    """As another thread imports, here what ends in a search for garbage does (milliseconds)."""
    born = []

    class Late:
        def __init__(self):
            self.circle = self

        def __del__(self):
            if len(born) < 400:
                born.append(f"late_{len(born)}")
                sys.modules[born[-1]] = types.ModuleType(born[-1])
                Late()

    usual = gc.get_threshold()
    try:
        Late()
        gc.set_threshold(20, 1, 1)
        assert source.unwatched(set(), set()) == {}
        gc.set_threshold(*usual)
        assert born
    finally:
        gc.set_threshold(*usual)
        born += [""] * 400
        gc.collect()
        for name in filter(None, born):
            sys.modules.pop(name, None)
