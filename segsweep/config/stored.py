"""What Hydra is told of the engine where another configuration comes first: its keys and groups, in ConfigStore.

They come in by the way of Hydra's own first configuration, which every composition begins with."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from segsweep.config.schema import Config, conf_dir, schema
from segsweep.core.signature import OWN


def store_engine(at: str, keys: dict[str, Any], help_option: str) -> None:
    """The engine's keys and groups: at the root, or in their node."""
    package, group = ("_global_." + at.rstrip(".")).rstrip("."), at.replace(".", "/")
    whole = _read(conf_dir() / "config.yaml", at)
    own: Any = OmegaConf.to_container(whole, resolve=False)
    hydra, _ = own.pop("hydra"), own.pop("defaults")
    keep(group=OWN, name="engine", node=OmegaConf.merge(schema(), own, keys))
    for name in ("pruner", "tracking"):
        _keep_all(conf_dir() / name, f"{group}{name}", at)
    for name in ("launcher", "sweeper", "hydra_logging", "job_logging"):
        _keep_all(conf_dir() / "hydra" / name, f"hydra/{name}", at)
    if at:
        store_searches(f"{group}search")
    usual = {"launcher": "local", "sweeper": "grid", "hydra_logging": "quiet", "help": help_option}
    usual |= {} if at else {"job_logging": "quiet"}  # what an application writes to its log is to be seen as before
    told = ConfigStore.instance().load("hydra/config.yaml")  # by an application, too
    node: Any = OmegaConf.structured(HydraConf()) if told.provider == OWN else told.node.copy()
    plain, defaults = HydraConf().defaults, OmegaConf.to_container(node.defaults)
    assert isinstance(defaults, list)
    defaults = [
        {k: usual.get(k, v) for k, v in d.items()} if isinstance(d, dict) and d in plain else d for d in defaults
    ]
    defaults += [f"/{OWN}/engine@{package}"]
    defaults += [
        {f"/{group}{name}@_global_.{at}{name}": option} for name, option in (("pruner", "none"), ("tracking", "mlflow"))
    ]
    if not at:  # an application may look for what Hydra itself writes
        node.output_subdir = None
    node.defaults, node.callbacks[OWN] = defaults, hydra["callbacks"]["sweep"]
    for part, key in (("run", "dir"), ("sweep", "dir"), ("sweep", "subdir")):
        if OmegaConf.is_missing(node[part], key):
            node[part][key] = hydra[part][key]
    keep(group="hydra", name="config", node=node)


def store_searches(group: str) -> None:
    """The presets of a search, less what they say of a task: the space is the command line's."""
    for file in (conf_dir() / "search").glob("*.yaml"):
        found = OmegaConf.load(file)
        defaults = [d for d in found.defaults if isinstance(d, DictConfig) and "hydra" in str(d)]
        sampler = OmegaConf.select(found, "hydra.sweeper.sampler") or {}
        node = {"defaults": ["_self_", *map(dict, defaults)], "hydra": {"sweeper": {"sampler": sampler}}}
        keep(group=group, name=file.stem, node=node, package="_global_")


def _keep_all(folder: Path, group: str, at: str) -> None:
    for file in folder.glob("*.yaml"):
        keep(group=group, name=file.stem, node=_read(file, at))


def keep(**facts: Any) -> None:
    ConfigStore.instance().store(provider=OWN, replace=True, **facts)


def _read(file: Path, at: str) -> DictConfig:
    """A file of conf/, whose references to the engine's keys are to those below `at`."""
    keys = "|".join(f.name for f in fields(Config))
    text = re.sub(rf"\$\{{(?=(?:{keys})\b)", f"${{{at}", file.read_text(encoding="utf-8"))
    found = OmegaConf.create(text)
    assert isinstance(found, DictConfig)
    for formatter in found.get("formatters", {}).values() if at else ():
        del formatter["class"]  # which an application's whitelist lacks; a job's file and the streams are told anyway
    return found
