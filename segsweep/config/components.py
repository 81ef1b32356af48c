"""Holds what is asked for against the signature of the task and of the components that it takes, and builds them.

conf/ is the registry: a component is any class that the whitelist allows, and its keyword arguments are its schema.
"""

import inspect
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import execution_whitelist, instantiate
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.before import today
from segsweep.config.schema import Config, engine, range_problem, ranges, resolved, under
from segsweep.config.whitelist import KINDS, ROOMS, SPECIAL, Kind, locate, own, targets
from segsweep.core.artifacts import NO_ROOM
from segsweep.core.errors import ConfigError, SegsweepError, nearest
from segsweep.core.masks import first_line
from segsweep.core.session import session
from segsweep.core.signature import OWN
from segsweep.task import Range, Spec


def task(cfg: DictConfig) -> Any:
    """What a composed configuration asks to be trained; ValueError and TypeError of its constructor keep their message.

    An argument that `task` does not give is the top-level key or group of its name; the function of another application
    is given its configuration as it is."""
    door = session().door
    if OWN in cfg:
        return task_class(cfg)(cfg)
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    given = {key: values[key] for key in _from_the_top(values["task"]) if key in values}
    if door and values["task"]["_target_"] == door.target:
        given |= {key: item for key, item in values["task"].items() if key not in SPECIAL}
        of = inspect.signature(door.component).parameters
        return door.component(
            **{key: _like(of[key].default, item) if key in of else item for key, item in given.items()}
        )
    return build(KINDS, "task", values["task"] | {"_partial_": True})(**given)


def _like(default: Any, found: Any) -> Any:
    """What a configuration has as a list or a text, as the tuple or the path that an argument's default is."""
    if isinstance(default, Path) and isinstance(found, str | int | float):
        return Path(str(found))
    if isinstance(default, tuple | list) and isinstance(found, list):
        items = [_like(default[0] if default else None, item) for item in found]
        return tuple(items) if isinstance(default, tuple) else items
    if isinstance(default, Mapping) and isinstance(found, Mapping):
        return {key: _like(default.get(key), item) for key, item in found.items()}
    return found


def task_class(cfg: DictConfig) -> Any:
    """Of a configuration that has been checked."""
    return locate(engine(cfg).task._target_, KINDS["task"])


def arguments(cfg: DictConfig) -> set[str]:
    """Of the constructor of a configuration's task; empty where it is none, which `check` tells."""
    try:
        return {*inspect.signature(task_class(cfg)).parameters}
    except (ConfigError, OmegaConfBaseException, TypeError, ValueError):
        return set()


def spec_of(cfg: DictConfig) -> Spec | None:
    """What the task of a configuration says of itself; None where it is none, which `check` tells."""
    try:
        made = locate(str(engine(cfg).task._target_), KINDS["task"])
    except (ConfigError, OmegaConfBaseException):
        return None
    found = getattr(made, "spec", None)
    if isinstance(found, Spec) and hasattr(made, "spec_for"):
        node = _select(cfg, "task") or {}
        names = (*found.inputs, *found.describing) if found.inputs else inspect.signature(made).parameters
        given = {name: _select(cfg, f"task.{name}" if name in node else name) for name in names}
        found = made.spec_for({name: _known(item) for name, item in given.items() if item is not None})
    return found if isinstance(found, Spec) else None


def _known(item: Any) -> Any:
    """As plain values; what cannot be resolved yet is left as it is written."""
    if not isinstance(item, Container):
        return item
    try:
        return OmegaConf.to_container(item, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_container(item)


def select_of(target: str) -> str:
    """For conf/: what a task chooses by; "" where it is none."""
    found = spec_of(OmegaConf.create({"task": {"_target_": target}}))
    return found.select if found else ""


def inputs(cfg: DictConfig, values: Mapping[str, Any] | None = None) -> str:
    """What `data()` of a task, and its spec, depend on, as text. values: of `cfg`, where they are resolved already."""
    spec, values = task_class(cfg).spec, resolved(cfg) if values is None else values
    named = (*spec.inputs, *spec.describing) if spec.inputs else ()
    given = {key: (values["task"] | values).get(key) for key in named} if named else values
    return f"{engine(cfg).task._target_} {given}"


def _from_the_top(node: Mapping[str, Any]) -> list[str]:
    """Arguments of a task that its own node does not give."""
    return [name for name in inspect.signature(locate(node["_target_"], KINDS["task"])).parameters if name not in node]


def of_length(cfg: DictConfig, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, of a configuration, with the length of training under the task too where its constructor takes it as
    `epochs`: what it does with it is known to nobody, so runs of other lengths share no epochs."""
    node = values.get("task")
    if OWN in cfg or not isinstance(node, dict) or "epochs" in node or "epochs" not in arguments(cfg):
        return values
    return values | {"task": node | {"epochs": cfg.epochs}}


def _check_task(cfg: DictConfig) -> tuple[list[str], set[str], dict[str, Any]]:
    """The mistakes of a task's settings, the top-level keys that are arguments of it, and the arguments without one."""
    try:
        node: Any = today(OmegaConf.to_container(engine(cfg).task, resolve=True))
        if not isinstance(node.get("_target_"), str):
            return [f"task: no _target_; choose an option, such as task={ROOMS[0]}"], set(), {}
        targets(KINDS, "task", node)
        made = locate(node["_target_"], KINDS["task"])
        spec = getattr(made, "spec", None)
        if not isinstance(spec, Spec):
            problem = f"task._target_={node['_target_']}: has no `spec`, a task.Spec that says what it measures"
            return [problem], set(), {}
        if OWN in cfg:  # its settings are its own matter
            name, epochs = made.__name__, engine(cfg).epochs
            none = f"{OWN}.epochs={epochs}: {name}(cfg) has no epochs; def {name}(cfg, run) has"
            return [none] if epochs != 1 and not made.takes_run else [], set(), {}
        signature, hints = inspect.signature(made), get_type_hints(made.__init__, include_extras=True)
    except (ConfigError, OmegaConfBaseException, TypeError, ValueError, NameError) as error:
        text = first_line(error)
        return [text if isinstance(error, ConfigError) else f"task: {text}"], set(), {}
    given: dict[str, Any] = {}
    top = {name for name in signature.parameters if name not in node and name in cfg}
    wrong = mistakes_of_keys("task", node | dict.fromkeys(top), signature)
    for name in [name for name in signature.parameters if name in node or name in top]:
        key = name if name in top else f"task.{name}"
        try:
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            if isinstance(found, Container):
                found = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            wrong.append(f"{key}: {first_line(error)}")
            continue
        told = any(text.startswith(f"task.{name}=") for text in wrong)
        if misfit := _misfit(key, found, hints.get(name)):
            wrong += [] if told else [misfit]
        elif not told:
            given[name] = found
    return wrong, top, given


def _misfit(key: str, found: Any, hint: Any) -> str | None:
    """One sentence where a plain value is not of an argument's annotation, or outside of its range."""
    rules = [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Range)]
    plain = hint.__origin__ if get_origin(hint) is Annotated else hint
    parts = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    kinds = {part for part in parts if get_origin(part) is not Literal}
    allowed = [item for part in parts if get_origin(part) is Literal for item in get_args(part)]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if kinds <= words.keys():
        whole = isinstance(found, float) and found.is_integer()
        good = type(found) in kinds or (float in kinds and type(found) is int) or (whole and int in kinds)
        listed = any(found == item and isinstance(found, bool) == isinstance(item, bool) for item in allowed)
        if not good and not listed:
            others = [words[kind] for kind in words if kind in kinds]
            if not allowed:
                return f"{key}={found}: must be {' or '.join(others)}"
            typed = {"None": "null", "True": "true", "False": "false"}
            named = [item if isinstance(item, str) and item.isidentifier() else repr(item) for item in allowed]
            shown = [typed.get(name, name) for name in named]
            return f"{key}={found}: allowed are {', '.join([*shown, *others])}{nearest(found, shown)}"
    return next((problem for rule in rules if (problem := range_problem(key, found, rule))), None)


def build(kinds: Mapping[str, Kind], group: str, node: Any, **given: Any) -> Any:
    """The component of a group that `kinds` lists; ValueError and TypeError of its constructor keep their message.

    What is checked is what is built: Hydra is given the resolved node and may call its checked targets alone."""
    plain = today(OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node)
    allowed = execution_whitelist([*targets(kinds, group, plain), *own()], reset=True)
    try:
        return instantiate(plain, **given, _execution_whitelist_=allowed)
    except InstantiationException as error:
        raise error.__cause__ or error from None


def check(cfg: DictConfig) -> list[str]:
    """Every mistake of a composed configuration, one sentence each; reads no data and trains nothing."""
    node, at = engine(cfg), under(cfg)
    try:
        missing = [f"{at}{key}: a value is needed, {at}{key}=..." for key in sorted(OmegaConf.missing_keys(node))]
    except OmegaConfBaseException as error:
        return [first_line(error)]
    if missing:
        return missing
    wrong_task, of_task, given = _check_task(cfg)
    known = {f.name for f in fields(Config)} | of_task
    known |= {"hydra"} if session().door else set()  # see `compose.with_environment`
    problems: list[str | None] = [
        f"{at}{key}: no such key{nearest(key, known)}; an argument of a group's component is added as +group.key=value"
        for key in map(str, node)
        if key not in known
    ]
    problems += [_folder_problem(f"{at}{key}", _select(node, key)) for key in ("paths.runs", "paths.cache")]
    problems.append(_uri_problem(f"{at}tracking", _select(node, "tracking.uri")))
    if str(_select(node, "device")).startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            problems.append(
                f"{at}device={node.device}: torch finds no CUDA device; use {at}device=cpu or {at}device=auto"
            )
    problems += out_of_range(cfg)
    found = [problem for problem in problems if problem] + wrong_task
    keys = [*ranges(), *of_task]
    wrong = [f"${{{key}}}" for key in keys if any(problem.startswith(f"{key}=") for problem in found)]
    for name in given.keys() & {*map(str, cfg)}:
        if any(key in str(OmegaConf.to_container(cfg)[name]) for key in wrong):  # type: ignore[call-overload,index]
            del given[name]  # it has a wrong value from there, and would say the same again in its own words
    if given and hasattr(task_class(cfg), "problems"):
        if not any(problem.startswith("epochs") for problem in found):
            given["epochs"] = node.epochs
        found += task_class(cfg).problems(given)
    return found


def out_of_range(cfg: DictConfig) -> list[str]:
    """Of the engine's own values, one sentence each."""
    node, at = engine(cfg), under(cfg)
    problems: list[str | None] = []
    for key, rule in ranges().items():
        try:
            problems.append(range_problem(f"{at}{key}", OmegaConf.select(node, key, throw_on_missing=True), rule))
        except OmegaConfBaseException as error:
            problems.append(f"{at}{key}: {first_line(error)}")
    return [problem for problem in problems if problem]


def wrong_values(cfg: DictConfig) -> list[str]:
    """Of single settings, the engine's and the task's, whatever the groups are."""
    return out_of_range(cfg) + _check_task(cfg)[0]


def mistakes(
    kinds: Mapping[str, Kind], group: str, node: Mapping[str, Any], *, added: Collection[str] = (), option: str = "none"
) -> list[str]:
    """What is wrong with a group's resolved `node` before anything is built of it. added: arguments that the run passes
    itself; option: one of the group, for a hint."""
    target = node.get("_target_")
    if not isinstance(target, str):
        return [f"{group}: no _target_; choose an option, such as {group}={option}"]
    try:
        targets(kinds, group, node)
        signature = inspect.signature(locate(target, kinds[group]))
    except (ConfigError, TypeError, ValueError) as error:  # the last two: of what has no signature, or is not callable
        return [f"{error}" if isinstance(error, ConfigError) else f"{group}._target_={target}: {error}"]
    return mistakes_of_keys(group, node, signature, added)


def tried(group: str, known: str, make: Callable[[], Any]) -> tuple[list[str], Any]:
    """The mistake that `make` comes to, and what it gives. A range is held by the constructor that it belongs to, so
    building is the check. known: text on which alone the outcome depends."""
    if known not in _right:
        try:
            _right[known] = make()
        except SegsweepError as error:
            return [str(error)], None
        except Exception as error:  # a constructor says in its own way what it does not take
            return [f"{group}: {error}"], None
    return [], _right[known]


URIS = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
"""Places that MLflow keeps its record in."""
_right: dict[str, Any] = {}
"""Groups that this process has found without a mistake: the jobs of a sweep have most of them in common."""


def _folder_problem(key: str, text: Any) -> str | None:
    if not text:
        return f"{key} is empty: a folder is needed"
    folder = Path(text)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        return f"{key}={text}: {there} is a file; a folder is needed"
    wrong = f"{key}={text}: {there} cannot be written to"
    if not os.access(there, os.W_OK | os.X_OK):
        return wrong
    try:  # root may do everything, except where a file system takes no folder (/proc)
        if os.geteuid() == 0 and there.absolute() != folder.absolute():
            os.rmdir(tempfile.mkdtemp(prefix=".segsweep-", dir=there))
    except OSError as error:  # of a full disk the job says more
        return None if error.errno in NO_ROOM else f"{wrong} ({error.strerror})"
    return None


def _uri_problem(key: str, uri: Any) -> str | None:
    scheme = str(uri).partition(":")[0].partition("+")[0]
    if uri is None or (":" in str(uri) and scheme in URIS):
        return None
    hint = "; MLflow keeps no records in plain files any more" if scheme == "file" or ":" not in str(uri) else ""
    return f"{key}.uri={uri}: must begin with {', '.join(f'{s}:' for s in URIS)}{hint}; or {key.replace('.', '/')}=none"


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def mistakes_of_keys(
    group: str, node: Mapping[Any, Any], signature: inspect.Signature, added: Collection[str] = ()
) -> list[str]:
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    settable = takes - set(added)
    keys = {key for key in node if key not in SPECIAL}
    unknown = [
        f"{group}.{key}: {node['_target_']} takes no such argument{nearest(key, settable)}; "
        f"it takes {', '.join(sorted(settable))}"
        for key in sorted(keys - settable)
    ]
    unknown += [
        f"{group}.{p.name}={node[p.name]}: must be a number"
        for p in parameters
        if isinstance(node.get(p.name), str) and _is_number(p)
    ]
    needed = {p.name for p in parameters if p.default is p.empty and p.name in settable}
    return unknown + [f"{group}.{key}: a value is needed" for key in sorted(needed - keys)]


def _is_number(parameter: inspect.Parameter) -> bool:
    kinds = str(parameter.annotation)
    numeric = isinstance(parameter.default, int | float) or "int" in kinds or "float" in kinds
    return numeric and "str" not in kinds and not isinstance(parameter.default, bool)
