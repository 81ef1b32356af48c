"""A configuration as the shortest thing that makes it again: a file for `experiment=`, and a command line.

What the run folder holds is the whole resolved configuration; what is written is how it differs from the defaults.
"""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.schema import GROUPS, conf_dir
from segsweep.config.start import start
from segsweep.config.trust import plainly
from segsweep.core import artifacts
from segsweep.core.errors import printable
from segsweep.core.signature import IGNORED

PLACES = ("data.root", "split.file")
"""Keys that belong to a machine: asked for on the command line, left out of a file."""
_ABSENT = object()
_KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
"""Of a component no `_target_` and the like: its group's option says what it is."""


@dataclass
class Winner:
    """The option of each group that is not the default; the values that differ from those of these options; the keys
    that were left out, as a file may not have them: records and studies may be anybody's."""

    choices: dict[str, str]
    values: dict[str, Any]
    left: list[str]


def of_run(folder: Path) -> Winner:
    """From a run's record."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    chosen = (artifacts.read_json(folder / "run.json") or {}).get("choices") or {}
    leaves = {key: value for key, value in _leaves(config) if not key.rpartition(".")[2].startswith("_")}
    return _winner({g: chosen[g] for g in GROUPS if chosen.get(g)}, leaves)


def of_trial(params: Mapping[str, Any], asked: Mapping[str, str]) -> Winner:
    """From a study alone: what a trial drew, and what the search kept fixed (key -> text), if it says so."""
    drawn = {key.lstrip("+"): value for key, value in params.items()}
    texts = {key: text for key, text in asked.items() if isinstance(text, str)}
    fixed = {key: _parsed(text) for key, text in texts.items() if "Distribution(" not in text and "search." not in key}
    whole = fixed | drawn
    values = {key: value for key, value in whole.items() if key not in GROUPS}
    return _winner({g: str(whole[g]) for g in GROUPS if g in whole}, values)


def _winner(choices: dict[str, str], values: dict[str, Any]) -> Winner:
    known = {group: option for group, option in choices.items() if _is_option(group, str(option))}
    left = [f"{group}={option}" for group, option in choices.items() if group not in known]
    names, kept = set(map(str, _compose(known)[1])) - {"hydra"}, {}
    for key, value in values.items():
        group = key.partition(".")[0]
        inside = any(key.startswith(f"{other}.") for other in values)
        if _is_key(key, names) and _is_plain(value) and not inside and (group in known or group not in choices):
            kept[key] = value
        elif group not in IGNORED:
            left.append(key)
    return Winner(*difference(known, kept, left), list(map(printable, left)))


def _is_option(group: str, name: str) -> bool:
    return bool(re.fullmatch(r"[\w-]+", name)) and (conf_dir() / group / f"{name}.yaml").is_file()


def _is_key(key: str, names: set[str]) -> bool:
    group, dot, _ = key.partition(".")
    return bool(_KEY.fullmatch(key)) and group in names and bool(dot) == (group in GROUPS)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, list) and _is_plain(item) for item in value)
    if isinstance(value, str):
        return value.isprintable() and plainly(value)
    return value is None or isinstance(value, bool | int | float)


def difference(
    choices: dict[str, str], values: Mapping[str, Any], left: list[str] | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """`choices` and `values` less what is the default, keys that no default has with a `+` as on the command line.

    Interpolated defaults come last, since they follow the values that they point at. left: gets the keys whose place
    takes no such value; without it that is an error."""
    usual, _ = _compose({})
    kept = {group: option for group, option in choices.items() if usual[group] != option}
    _, base = _compose(kept)
    found: dict[str, Any] = {}
    wanted = {k: v for k, v in values.items() if k not in IGNORED and k.split(".")[0] not in IGNORED or k in PLACES}
    for interpolated in (False, True):
        for key, value in wanted.items():
            parent, _, last = key.rpartition(".")
            node = OmegaConf.select(base, parent) if parent else base
            known = isinstance(node, DictConfig) and last in list(node)
            plain: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
            raw = plain.get(last)
            same = known and value in (raw, OmegaConf.select(base, key, default=_ABSENT))
            linked = known and OmegaConf.is_interpolation(node, last)
            if not same and linked is interpolated and not last.startswith("_"):
                try:
                    with open_dict(base):
                        OmegaConf.update(base, key, value, merge=False)
                    found[key if known else f"+{key}"] = value
                except OmegaConfBaseException:
                    if left is None:
                        raise
                    left.append(key)
    return kept, found


def experiment(head: list[str], choices: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """The text of `experiment/NAME.yaml`; `head`: comment lines, each of which stays one."""
    nested: dict[str, Any] = {}
    if choices:
        nested["defaults"] = [{f"override /{group}": option} for group, option in choices.items()]
    for key, value in sorted(values.items(), key=lambda item: "." in item[0]):
        if key not in PLACES:
            *groups, last = key.removeprefix("+").split(".")
            node = nested
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = value
    lines = ["# @package _global_", *(f"# {printable(line)}".rstrip() for line in head)]
    return "\n".join(lines) + "\n" + (yaml.safe_dump(nested, sort_keys=False) if nested else "")


def command(choices: Mapping[str, str], values: Mapping[str, Any], *before: str) -> str:
    """The command line that trains it; `before`: arguments that come first."""
    words = [f"{key}={_text(value)}" for key, value in {**choices, **values}.items()]
    return shlex.join(["python", "-m", "segsweep", *before, *words])


def _compose(choices: Mapping[str, str]) -> tuple[dict[str, str], DictConfig]:
    start()  # who reads a record in a notebook has not
    with initialize_config_dir(str(conf_dir())):
        lines = [f"{group}={option}" for group, option in choices.items()]
        cfg = compose("config", overrides=lines, return_hydra_config=True)
        chosen: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    return chosen, cfg


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parsed(text: str) -> Any:
    """A value back from its text in a study."""
    named = {"None": None, "True": True, "False": False}
    if text in named:
        return named[text]
    for kind in (int, float):  # YAML takes 1e-05 for text
        with contextlib.suppress(ValueError):
            return kind(text)
    with contextlib.suppress(yaml.YAMLError):
        return text if "${" in text else yaml.safe_load(text)
    return text


def _text(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if isinstance(value, str):
        plain = value and all(c.isalnum() or c in "_-./:%@+" for c in value) and _parsed(value) == value
        return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    return repr(value) if isinstance(value, float) else json.dumps(value)
