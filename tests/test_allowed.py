"""What a configuration from elsewhere may call: classes that are listed, of the kind that their place takes."""

import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from segsweep.config import components, whitelist
from segsweep.config.schema import conf_dir
from segsweep.config.whitelist import KINDS
from segsweep.core.errors import ConfigError
from segsweep.search import pruning
from segsweep.segmentation import groups

UNET = "segsweep.segmentation.models.unet.UNet"


def refused(group: str, node: dict) -> str:
    """What is said of it, by the check and by whoever builds it unchecked."""
    with pytest.raises(ConfigError) as told:
        components.build(KINDS | groups.KINDS, group, OmegaConf.create(node))
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=["model.width=4"])
    OmegaConf.set_struct(cfg, False)
    cfg[group] = node
    assert str(told.value) in [*components.check(cfg), *pruning.problems(cfg, components.spec_of(cfg))]
    return str(told.value)


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "os.system"),
        ("model", "segsweep.segmentation.data.cache.os.system"),
        ("model", "segsweep.segmentation.data.cache._help"),
        ("model", "segsweep.segmentation.data.cache._build"),
        ("data", "segsweep.segmentation.data.cache._build"),
        ("data", "segsweep.segmentation.data.cache.load"),
        ("data", "segsweep.segmentation.data.folder.Path"),
        ("split", "segsweep.segmentation.data.split.Path"),
        ("augment", "segsweep.segmentation.data.augment.torch.load"),
        ("model", "torch.nn.attention._fa3._fa3_import_module"),
        ("model", "torch.nn.modules.module.warnings.warn"),
        ("model", "torch.nn.Parameter"),
        ("model", "torch.nn.functional.relu"),
        ("model", "torch.optim.SGD"),
        ("loss", "segsweep.segmentation.losses.F.relu"),
        ("optim", "torch.nn.Linear"),
        ("optim", "torch.optim.lr_scheduler.StepLR"),
        ("scheduler", "torch.optim.lr_scheduler.Optimizer"),
        ("pruner", "optuna.pruners.warnings.warn"),
        ("pruner", "optuna.samplers.TPESampler"),
        ("model", "__main__.anything"),
        ("model", ""),
    ],
)
def test_a_target_that_is_not_listed_for_its_group_is_refused(group, target):
    text = refused(group, {"_target_": target})
    assert text.startswith(f"{group}._target_={target}: ")
    assert "allowed" in text


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ({"_target_": UNET, "width": {"_target_": "segsweep.segmentation.data.cache._help"}}, "model.width"),
        ({"_target_": UNET, "width": [[{"_target_": "os.getcwd"}]]}, "model.width[0][0]"),
        ({"_target_": UNET, "width": {"a": {"_target_": "torch.nn.ReLU"}}}, "model.width.a"),
        ({"_target_": UNET, "width": "${oc.create:{_target_: os.getcwd}}"}, "model.width"),
        ({"_target_": "torch.nn.LSTM", "input_size": {"_target_": "torch.nn.ReLU"}}, "model.input_size"),
        ({"_target_": "torch.nn.Linear", "_args_": [1]}, "model._args_"),
        ({"_target_": UNET, "_execution_whitelist_": "*"}, "model._execution_whitelist_"),
        ({"_target_": ["os.getcwd"]}, "model._target_"),
    ],
)
def test_a_component_inside_another_is_refused_where_none_is_declared(node, place):
    with pytest.raises(ConfigError) as told:
        groups.build("model", OmegaConf.create(node))
    assert str(told.value).startswith(place)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_component_inside_another_is_allowed_where_one_is_declared():
    inner = {"_target_": "optuna.pruners.MedianPruner"}
    made = components.build(
        KINDS, "pruner", {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": inner, "patience": 1}
    )
    assert type(made._wrapped_pruner).__name__ == "MedianPruner"
    wrong = {"_target_": "torch.nn.ReLU"}
    with pytest.raises(ConfigError, match=r"pruner\.wrapped_pruner\._target_=torch\.nn\.ReLU: not allowed"):
        components.build(
            KINDS, "pruner", {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": wrong, "patience": 1}
        )


def test_a_name_that_is_not_listed_is_refused_before_its_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "bad_of_test.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refused("model", {"_target_": "bad_of_test.Net"})
    refused("model", {"_target_": "bad_of_test"})
    assert "bad_of_test" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_a_misspelt_class_is_told_with_the_nearest_of_its_kind():
    assert "torch.optim has no Adm; did you mean Adam?" in refused("optim", {"_target_": "torch.optim.Adm"})


def test_ones_own_package_is_allowed_with_all_that_it_takes(tmp_path, monkeypatch, allow):
    (tmp_path / "kit_of_test.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, in_channels, act):\n"
        "        super().__init__()\n"
        "        self.act, self.last = act, torch.nn.Conv2d(in_channels, 1, 1)\n"
        "    @classmethod\n"
        "    def small(cls, in_channels): return cls(in_channels, torch.nn.Tanh())\n"
        "def number(in_channels): return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    allow("kit_of_test.*")
    node = {"_target_": "kit_of_test.Net", "act": {"_target_": "torch.nn.ReLU"}}
    assert isinstance(groups.build("model", node, in_channels=3).act, torch.nn.ReLU)
    assert isinstance(groups.build("model", {"_target_": "kit_of_test.Net.small"}, in_channels=3).act, torch.nn.Tanh)
    with pytest.raises(ConfigError, match=r"model\.act\._target_=os\.getcwd: not allowed"):
        groups.build("model", node | {"act": {"_target_": "os.getcwd"}}, in_channels=3)
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("config", overrides=["~model.width", "~model.depth", "model._target_=kit_of_test.number"])
    assert components.check(cfg) == ["model: gives int; a torch.nn.Module is needed"]


def test_what_hydra_may_call_is_no_component_and_components_are_nothing_for_hydra():
    assert not [
        entry for entry in whitelist.hydras() if entry.startswith(("torch", "segsweep.segmentation.data", "optuna"))
    ]
    assert "not allowed" in refused("model", {"_target_": "logging.FileHandler", "filename": "x"})


def test_the_environment_is_read_once(monkeypatch, allow):
    allow("mine.*")
    assert whitelist.own() == ("mine.*",)
    monkeypatch.setenv("SEGSWEEP_ALLOW", "os.*")  # as hydra.job.env_set would
    assert whitelist.own() == ("mine.*",)


@pytest.mark.parametrize("entry", ["dictnet*", "my package.*", "*", "a..b", "/home/me/net.py"])
def test_an_entry_of_the_environment_that_names_nothing_is_told_by_itself(allow, entry):
    """And not by Hydra, which advises to switch its own list off."""
    allow(entry)
    with pytest.raises(ConfigError, match=r"SEGSWEEP_ALLOW=.* names nothing; it takes package\.\*"):
        whitelist.own()
