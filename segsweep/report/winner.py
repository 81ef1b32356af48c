"""A configuration as the shortest thing that makes it again: a file for `experiment=`, and a command line.

What the run folder holds is the whole resolved configuration; what is written is how it differs from the defaults. An
option of one's own, which is no file of conf/, is written beside it as it was, so that nothing else is needed.
"""

import contextlib
import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.hold import plainly
from segsweep.config.schema import Config, conf_dir
from segsweep.config.start import start
from segsweep.config.whitelist import SPECIAL, every, groups, is_own
from segsweep.core import artifacts
from segsweep.core.errors import printable
from segsweep.core.program import pasted
from segsweep.core.signature import IGNORED, OWN, leaves

PROGRAM = ("python", "-m", "segsweep")
PLACES = ("data.root", "split.file")
"""Keys that belong to a machine: asked for on the command line, left out of a file."""
_ABSENT = object()
_KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
"""Of a component no `_target_` and the like: its group's option says what it is."""
_NAME = re.compile(r"[\w-]+")


@dataclass
class Winner:
    """The option of each group that is not the default; the values that differ from those of these options; the keys
    that were left out, as a file may not have them: records and studies may be anybody's. own: group -> what the option
    of one's own has, for a file; a task's is all that is not the engine's."""

    choices: dict[str, str]
    values: dict[str, Any]
    left: list[str]
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    program: tuple[str, ...] = PROGRAM
    plus: str = ""
    """Before `experiment=`: an application has no such group among its own."""

    def command(self, *before: str) -> str:
        """The command line that trains it; `before`: arguments that come first."""
        return command(self.choices, self.values, *before, program=self.program)

    def again(self, name: str, folder: Path) -> str:
        """The command line that trains it by its file, `experiment/NAME.yaml` in the folder."""
        places = {key: value for key, value in self.values.items() if key in PLACES}
        named = {f"{self.plus}experiment": name, **places}
        return command({}, named, "--config-dir", str(folder), program=self.program)


def of_run(folder: Path, drawn: Collection[str] = ()) -> Winner:
    """From a run's record. `drawn`: keys whose values are told though an option of one's own has them."""
    info = artifacts.read_json(folder / "run.json") or {}
    decided, chosen = info.get("factors") or {}, info.get("choices") or {}
    if f"{OWN}.task" in decided or ("task" in decided and "task" not in chosen):  # which is no option of conf/
        return _elsewhere(shlex.split(str(info.get("command") or "")), info)
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    choices = {g: str(chosen[g]) for g in groups() if chosen.get(g)}
    engines = {f.name for f in fields(Config)} - {"task"}
    own = {g: config[g] for g, option in choices.items() if _is_own(g, option, config.get(g))}
    if "task" in own:
        own = {"task": {key: value for key, value in config.items() if key not in engines}}
    own = {group: node for group, node in own.items() if all(map(_may_stand, leaves(node)))}
    choices = {"task": choices["task"]} if "task" in own else choices
    inside = {*own, *own.get("task", {})}
    plain = {key: value for key, value in leaves(config) if not key.rpartition(".")[2].startswith("_")}
    told = {key: plain.pop(key) for key in list(plain) if key.partition(".")[0] in inside}
    found = _winner({group: option for group, option in choices.items() if group not in own}, plain)
    named = {key.lstrip("+") for key in drawn}
    values = {key: value for key, value in told.items() if key in named} | found.values
    return replace(found, choices={group: choices[group] for group in own} | found.choices, values=values, own=own)


def _is_own(group: str, option: str, node: Any) -> bool:
    """Whether a record has an option that is no file of conf/, of a component that may be called here."""
    named = isinstance(node, Mapping) and isinstance(node.get("_target_"), str)
    return named and bool(_NAME.fullmatch(option)) and not _is_option(group, option)


def _may_stand(leaf: tuple[str, Any]) -> bool:
    """Whether a leaf of an option of one's own may be written into a file: plain, and what it calls is allowed."""
    key, value = leaf
    *around, last = key.split(".")
    if last == "_target_":
        return isinstance(value, str) and (is_own(value) or any(kind.lists(value) for kind in every().values()))
    return (
        all(map(_KEY.fullmatch, around))
        and bool(_KEY.fullmatch(last) or last in SPECIAL)
        and (value == {} or _is_plain(value))
    )


def option(group: str, node: Mapping[str, Any]) -> str:
    """The text of `GROUP/OPTION.yaml`."""
    head = "# As it was in the run; in whole, it needs no other file.\n"
    return ("# @package _global_\n" if group == "task" else "") + head + yaml.safe_dump(dict(node), sort_keys=False)


def _elsewhere(words: list[str], info: Mapping[str, Any]) -> Winner:
    """Of a script or another application: what was typed, as far as the run's record knows these keys."""
    count = next((n for n, word in enumerate(words) if "=" in word), len(words))
    chosen, factors = info.get("choices") or {}, info.get("factors") or {}
    app = any(str(key).startswith(f"{OWN}.") for key in factors)
    plus = "+" if app and "experiment" not in chosen else ""
    choices: dict[str, str] = {}
    values: dict[str, Any] = {}
    left: list[str] = []
    for word in words[count:]:
        try:
            override = OverridesParser.create().parse_override(word)
            key, value = override.key_or_group, override.value()
        except HydraException:
            continue
        engine = key.startswith((f"{OWN}.", f"{OWN}/")) or not app or (key == "search" and override.is_add())
        if engine and re.split(r"[./]", re.sub(rf"^{OWN}[./]", "", key))[0] in IGNORED:
            continue
        if key in chosen and isinstance(value, str) and re.fullmatch(r"[\w-]+", value):
            choices[key] = value
        elif key in factors and _KEY.fullmatch(key) and _is_plain(value):
            values[key] = value
        else:
            left.append(printable(word))
    return Winner(choices, values, left, program=tuple(words[:count]), plus=plus)


def of_trial(params: Mapping[str, Any], asked: Mapping[str, str]) -> Winner:
    """From a study alone: what a trial drew, and what the search kept fixed (key -> text), if it says so."""
    drawn = {key.lstrip("+"): value for key, value in params.items()}
    texts = {key: text for key, text in asked.items() if isinstance(text, str)}
    fixed = {key: _parsed(text) for key, text in texts.items() if "Distribution(" not in text and "search." not in key}
    whole = fixed | drawn
    values = {key: value for key, value in whole.items() if key not in groups()}
    return _winner({g: str(whole[g]) for g in groups() if g in whole}, values)


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
    return bool(_NAME.fullmatch(name)) and (conf_dir() / group / f"{name}.yaml").is_file()


def _is_key(key: str, names: set[str]) -> bool:
    group, dot, _ = key.partition(".")
    return bool(_KEY.fullmatch(key)) and group in names and bool(dot) == (group in groups())


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, list) and _is_plain(item) for item in value)
    if isinstance(value, str):
        return value.isprintable() and plainly(value)
    return value is None or isinstance(value, bool | int | float)


def difference(
    choices: dict[str, str], values: Mapping[str, Any], left: list[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """`choices` and `values` less what is the default, keys that no default has with a `+` as on the command line.

    Interpolated defaults come last, since they follow the values that they point at. left: gets the keys whose place
    takes no such value."""
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


def command(
    choices: Mapping[str, str], values: Mapping[str, Any], *before: str, program: tuple[str, ...] = PROGRAM
) -> str:
    """The command line that trains it; `before`: arguments that come first."""
    words = [f"{key}={_text(value)}" for key, value in {**choices, **values}.items()]
    return pasted([*program, *before, *words])


def _compose(choices: Mapping[str, str]) -> tuple[dict[str, str], DictConfig]:
    start()  # who reads a record in a notebook has not
    with initialize_config_dir(str(conf_dir())):
        lines = [f"{group}={option}" for group, option in choices.items()]
        cfg = compose("config", overrides=lines, return_hydra_config=True)
        chosen: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    return chosen, cfg


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
