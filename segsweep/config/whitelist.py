"""Whom a configuration may call: allowed by kind and list, refused by name before anything is imported.

A configuration from elsewhere therefore cannot call anything but what is listed here, by the task that is asked for,
and in SEGSWEEP_ALLOW.
"""

import contextlib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from segsweep.config.before import renamed
from segsweep.core import child
from segsweep.core.errors import ConfigError, nearest, printable
from segsweep.core.session import session

ALLOW = "SEGSWEEP_ALLOW"
ENTRY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(\.\*)?")


@dataclass(frozen=True)
class Kind:
    """What a group's `_target_` may be without any leave: a public class that is found in one of `modules` (and made
    there, if it is this program's), or is one of `names` (dotted) of a package that the extra of its name installs; and
    a subclass of `base` (dotted) or a class with all `methods`. grouped: it is a group of conf/, with options; else the
    items of a list."""

    modules: tuple[str, ...]
    base: str | None = None
    methods: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    grouped: bool = True

    def lists(self, target: str) -> bool:
        """By its name alone, before anything is imported."""
        module, _, name = target.rpartition(".")
        public = module in self.modules and name.isidentifier() and not name.startswith("_")
        return public or target in self.names

    def fits(self, found: Any, target: str) -> bool:
        if not isinstance(found, type):
            return False
        at_home = not target.startswith("segsweep.") or found.__module__ == target.rpartition(".")[0]
        return at_home and self.is_base_of(found)

    def is_base_of(self, found: type) -> bool:
        if self.base:
            return issubclass(found, _get(self.base))
        return all(callable(getattr(found, method, None)) for method in self.methods)

    def __str__(self) -> str:
        names = [*(f"{module}.NAME" for module in self.modules), *self.names]
        return f"{', '.join(names)} ({self.what})"

    @property
    def what(self) -> str:
        return f"a {self.base}" if self.base else f"something with {' and '.join(self.methods)}"


ROOMS = tuple(sorted(file.parent.name for file in Path(__file__).resolve().parents[1].glob("*/task.py")))
"""Those of this program that hold a task."""
KINDS = {
    "task": Kind(tuple(f"segsweep.{room}.task" for room in ROOMS), methods=("data", "train")),
    "pruner": Kind(("optuna.pruners",), "optuna.pruners.BasePruner"),
}
"""Of what the engine builds. A task lists its own beside them."""
HYDRAS = (
    "segsweep.sweeps.sweep.SweepCallback",
    "logging.StreamHandler",
    "logging.FileHandler",
    "segsweep.core.masks.Formatter",
)
"""What Hydra calls for itself, and a component of a run may not."""
GETTERS = tuple(f"hydra.utils.get_{what}" for what in ("method", "static_method", "class", "object"))
"""What gives the function or class that its argument `path` names."""
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_")


@cache
def every() -> dict[str, Kind]:
    """Of the engine and of all tasks of this program; those of a room are in its module `kinds`."""
    found = dict(KINDS)
    for room in ROOMS:
        found |= importlib.import_module(f"segsweep.{room}.kinds").KINDS
    return found


def groups() -> list[str]:
    """Of conf/, whose options decide the numbers of a run."""
    return [group for group, kind in every().items() if kind.grouped and group != "pruner"]


@cache
def own() -> tuple[str, ...]:
    """One's own packages, SEGSWEEP_ALLOW=mypackage.*: trusted as code is, as a configuration may call anything in them.

    Read once, so that nothing which a job's configuration does to the environment adds to it. Raises ConfigError for
    what is no name."""
    entries = tuple(entry.strip() for entry in os.environ.get(ALLOW, "").split(",") if entry.strip())
    if wrong := [entry for entry in entries if not ENTRY.fullmatch(entry)]:
        raise ConfigError(
            f"{ALLOW}={','.join(entries)}: {printable(wrong[0])} names nothing; it takes package.*, package.Name, or "
            "several with a comma"
        )
    return entries


def is_own(target: str) -> bool:
    if (door := session().door) and door.trusts(target):
        return True
    return any(target == entry or (entry.endswith(".*") and target.startswith(entry[:-1])) for entry in own())


def hydras() -> list[str]:
    """What Hydra may call for itself: nothing of what a component may be."""
    return [*HYDRAS, *own()]


def locate(target: str, kind: Kind) -> Any:
    """The class that `target` names, or anything of one's own.

    Raises ConfigError, before its module is imported, where the name is not listed, and where it is of another kind."""
    target = renamed(target)
    if is_own(target):
        try:
            return door.component if (door := session().door) and target == door.target else _get(target)
        except Exception as error:  # importing somebody's module can raise anything
            raise ConfigError(f"cannot be imported: {error.__cause__ or error}") from error
    if not kind.lists(target):
        hint = f"for your own package set {ALLOW}=package.* in the environment"
        raise ConfigError(f"not allowed to be called; allowed are {kind}; {hint}")
    package = target.partition(".")[0]
    if target in kind.names and not child.installed(package):
        raise ConfigError(f"{package} is not installed: pip install 'segsweep[{package}]'")
    try:
        found = _get(target)
    except (ImportError, AttributeError):
        module, _, name = target.rpartition(".")
        names = [n for n, value in vars(importlib.import_module(module)).items() if kind.fits(value, f"{module}.{n}")]
        raise ConfigError(f"{module} has no {name}{nearest(name, names)}") from None
    if not kind.fits(found, target):
        raise ConfigError(f"not allowed to be called; allowed are {kind}")
    return found


def _get(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module or "." not in module:
            raise
        return getattr(_get(module), name)  # of a class: mypackage.Net.small


def targets(kinds: Mapping[str, Kind], group: str, node: Any) -> list[str]:
    """The names of all that building a group's resolved `node` calls: as they are given, and as Hydra finds them.

    Raises ConfigError naming the first that is not allowed. A component inside another is allowed where an argument is
    declared for it (`wrapped_pruner: BasePruner | None`); inside one's own, of every kind."""
    found: list[str] = []
    _collect(kinds, group, node, (kinds[group],), found)
    return found


def _collect(all_kinds: Mapping[str, Kind], place: str, node: Any, kinds: tuple[Kind, ...], found: list[str]) -> None:
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            _collect(all_kinds, f"{place}[{index}]", item, kinds, found)
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    inside: Callable[[str], tuple[Kind, ...]] = lambda key: kinds  # noqa: E731 - in a mapping, as around it
    if target is not None:
        if not isinstance(target, str):
            raise ConfigError(f"{place}._target_={target}: the name of a class is needed")
        if unknown := [key for key in node if str(key).startswith("_") and key not in SPECIAL]:
            raise ConfigError(f"{place}.{unknown[0]}: not allowed; a component takes {', '.join(SPECIAL)} and its keys")
        kind = next((k for k in kinds if k.lists(target)), kinds[0] if kinds else None)
        if kind is None and not is_own(target):
            raise ConfigError(f"{place}._target_={target}: not allowed to be called; nothing is to be built here")
        try:
            component = locate(target, kind or KINDS["task"])  # the latter: one's own, of which no kind is asked
        except ConfigError as error:
            raise ConfigError(f"{place}._target_={target}: {error}") from error.__cause__
        found += [target, f"{getattr(component, '__module__', '')}.{getattr(component, '__qualname__', '')}"]
        inside = _declared(all_kinds.values(), component, is_own(target))
    for key, item in node.items():
        if isinstance(item, Mapping | list | tuple):
            _collect(all_kinds, f"{place}.{key}", item, inside(str(key)), found)


def _declared(kinds: Collection[Kind], component: Any, free: bool) -> Callable[[str], tuple[Kind, ...]]:
    """Argument -> the kinds of component that it takes; `free`: every argument takes all."""
    if free:
        return lambda key: tuple(kinds)
    hints: dict[str, Any] = {}
    with contextlib.suppress(TypeError, NameError, AttributeError):  # annotations that cannot be read declare nothing
        hints = get_type_hints(component.__init__)
    # a base that nothing has imported is no annotation's
    known = [kind for kind in kinds if kind.base and kind.base.rpartition(".")[0] in sys.modules]
    return lambda key: tuple(kind for kind in known if any(map(kind.is_base_of, _classes(hints.get(key)))))


def _classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def modules(config: Mapping[str, Any]) -> set[str]:
    """Modules of one's own, and of other packages, that the targets of a resolved configuration lie in: the one that
    names it, the one that it was written in, and those of what it inherits from."""
    found: set[str] = set()
    door = session().door
    if door and door.app:  # what names a module is looked at, and nothing imported
        named = [*_targets(config), door.target]
        return {name.rsplit(".", cut)[0] for name in named for cut in range(1, name.count(".") + 1)}
    for target in filter(is_own, _targets(config)):
        thing = locate(target, KINDS["task"]) if door and target == door.target else _get(target)
        while hasattr(thing, "__wrapped__") or isinstance(thing, functools.partial):
            thing = thing.func if isinstance(thing, functools.partial) else thing.__wrapped__
        kinds = inspect.getmro(thing) if isinstance(thing, type) else (thing,)
        names = {getattr(each, "__module__", None) or "" for each in kinds}
        found |= {target.rpartition(".")[0], *(names - {"__main__"})}  # which is the script, by its own name here
    return found


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str):
            yield target
            if target in GETTERS and isinstance(path := node.get("path"), str):
                yield path
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from _targets(item)
