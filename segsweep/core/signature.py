"""What makes two runs the same run: a hash of everything that decides the numbers.

The full resolved configuration counts, less a short list of keys that decide where and how fast but not what; a delta
against defaults would call two runs the same after a default has changed. So does the code: this program's, and every
module of one's own that a component reaches by importing, outside site-packages and the standard library.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from segsweep.task import Spec

OWN = "segsweep"
"""The node that holds the engine's keys in the configuration of another Hydra application."""
IGNORED = ("device", "reuse", "report", "checkpoint", "paths", "tracking", "sweep", "search", "pruner")
"""Keys of the engine that do not change a result: a pruned run is the beginning of the whole one. A task adds its own
(`Spec.ignored`)."""
PACKAGE = Path(__file__).resolve().parents[1]
CODE = ("segsweep.core.device", "segsweep.runs.loop")
"""What takes part in every task's results."""
ADAPTERS = ("lightning.py",)
"""What takes part in those of a task that imports it."""


def digest(value: Any, exact: bool = False) -> str:
    """16 hex digits of the SHA-256 of `value` as sorted JSON, where 1 and 1.0 are one value unless `exact`."""
    plain = value if exact else _plain(value)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def without(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy less the dotted `keys`."""
    kept: dict[str, Any] = {}
    for key, item in config.items():
        if key in keys:
            continue
        inner = tuple(k.removeprefix(f"{key}.") for k in keys if k.startswith(f"{key}."))
        kept[key] = without(item, inner) if inner and isinstance(item, Mapping) else item
    return kept


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is no mapping, or an empty one."""
    for key, item in node.items():
        if isinstance(item, Mapping) and item:
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def left_out(at: str, spec: Spec) -> tuple[str, ...]:
    """The keys that decide no number; `at`: how the engine's begin."""
    epochs = () if spec.epochs else (f"{at}epochs",)
    return (*(f"{at}{key}" for key in IGNORED), *spec.ignored, *epochs)


def at_rest(config: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Dotted key and value of each setting that is at the value at which it decides nothing (`Spec.neutral`)."""
    found = {}
    for key, neutral in spec.neutral.items():
        *path, last = key.split(".")
        node: Any = config
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and last in node and digest(node[last]) == digest(neutral):  # false is not 0
            found[key] = node[last]
    return found


def endings(config: Mapping[str, Any], spec: Spec) -> tuple[str, ...]:
    """The keys of the settings that decide how a run ends and none of its epochs (`Spec.endings`)."""
    given = dict(leaves(config))
    return tuple(key for key, of in spec.endings.items() if key in given and (not of or given[key] in of))


def deciding(config: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """What of `config` is more than a setting `at_rest`."""
    return without(config, tuple(at_rest(config, spec)))


def signatures(
    kept: Mapping[str, Any],
    like: Mapping[str, Any],
    data: str,
    split: str,
    files: Mapping[str, str],
    epochs: str,
    endings: tuple[str, ...] = (),
) -> dict[str, str]:
    """`signature`, `group` and `trajectory` (less the keys `epochs` and `endings`) of what is `kept` of a resolved
    configuration: all that decides a number. like: the same less what repeats differ in, by which they are a group.

    `files`: what `code` gives. A schedule that looks at the total carries it in its own arguments (`T_max: ${epochs}`),
    so that runs of different length share a trajectory exactly when their epochs are the same computation. In the
    configuration of another application 1 and 1.0 are two values: of its keys nobody knows that they are floats.
    """
    exact = epochs != "epochs"
    identity: dict[str, Any] = {"config": kept, "code": fingerprint(files)}
    whole = identity | {"data": data, "split": split}
    return {
        "signature": digest(whole, exact),
        "group": digest(identity | {"data": data, "config": like}, exact),
        "trajectory": digest(whole | {"config": without(kept, (epochs, *endings))}, exact),
    }


def factors(config: dict[str, Any], choices: dict[str, Any]) -> dict[str, Any]:
    """What identifies a run, flat and under the keys of the command line: `model`, `model.width`, `optim.lr`, ...; a
    task's before the engine's. `config`: without what decides no number."""
    flat: dict[str, Any] = {}
    for key, item in sorted(config.items(), key=lambda entry: entry[0] in ("epochs", "seed", OWN)):
        _flatten(str(key), item, choices, flat)
    return flat


def _flatten(key: str, item: Any, choices: Mapping[str, Any], flat: dict[str, Any]) -> None:
    if not isinstance(item, dict) or not item:
        flat[key] = item
        return
    if option := choices.get(key.replace(".", "/")) or item.get("_target_"):
        flat[key] = option
    for name, value in item.items():
        if not str(name).startswith("_"):
            _flatten(f"{key}.{name}", value, choices, flat)


def fingerprint(files: Mapping[str, str]) -> str:
    """Of the code in `files`, by whatever name it was imported: `src.net`, `net`, or the script that was started."""
    return digest(sorted([name, files[full]] for full, name in short(files).items()))


def short(names: Iterable[str]) -> dict[str, str]:
    """Module -> the last part of its name, or as many of the last as it takes to be no other's."""
    alike: dict[str, list[list[str]]] = {}
    for name in names:
        parts = name.split(".")
        alike.setdefault(parts[-1], []).append(parts)
    found: dict[str, str] = {}
    for several in alike.values():
        length = 1
        while len({tuple(parts[-length:]) for parts in several}) < len(several):
            length += 1
        found |= {".".join(parts): ".".join(parts[-length:]) for parts in several}
    return found


@cache
def code(*modules: str) -> dict[str, str]:
    """Module -> hash of its code: of this program's that compute results, and of one's own that `modules` reach.

    Comments, docstrings and layout do not count: those retrain nothing. A process keeps what it has found, as it keeps
    what it has imported."""
    files = {name: PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in CODE}
    return hashes(files | reached(*modules))


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: digest(_code(file)) for name, file in files.items()}


@cache
def places(*modules: str) -> dict[str, str]:
    """Module -> file of one's own code that `modules` reach, for the record."""
    return {name: str(file) for name, file in reached(*modules).items()}


def reached(*modules: str) -> dict[str, Path]:
    """Module -> file of one's own code that importing `modules` comes to, read and not run: their packages, what they
    import at any place, and what that imports; neither the standard library nor installed packages nor this one."""
    found: dict[str, Path] = {}
    todo, seen = list(modules), set()
    while todo:
        if (name := todo.pop()) in seen:
            continue
        seen.add(name)
        todo += [name.rpartition(".")[0]] if "." in name else []
        origin, is_package = _find(name)
        if origin is None or not is_own(origin):
            continue
        found[origin.stem if name == "__main__" else name] = origin
        if origin.suffix == ".py":
            todo += _imports(origin, name if is_package else name.rpartition(".")[0])
    return found


def _find(name: str) -> tuple[Path | None, bool]:
    """A module's file, None where it has none, and whether it is a package. Imports nothing."""
    top, *rest = name.split(".")
    if top in sys.stdlib_module_names or not top:
        return None, False
    if file := getattr(sys.modules.get(name), "__file__", None):
        return Path(file), hasattr(sys.modules[name], "__path__")
    try:
        spec = importlib.util.find_spec(top)
        for length in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None, False
            spec = PathFinder.find_spec(".".join([top, *rest[: length + 1]]), list(spec.submodule_search_locations))
    except (ImportError, ValueError):  # a module that was made without a place in the system of imports
        return None, False
    if spec is None:
        return None, False
    return Path(spec.origin) if spec.has_location and spec.origin else None, spec.submodule_search_locations is not None


def unwatched(watched: Collection[Path], folders: Collection[Path]) -> dict[str, Path]:
    """Module -> file of one's own code in `folders` that was loaded by now, in ways that reading does not see, and is
    none of the files that are `watched`; both without links."""
    found, stdlib = {}, sysconfig.get_path("stdlib")
    for name, module in list(sys.modules.items()):
        text = getattr(module, "__file__", None) or "/"
        if "/site-packages/" in text or "/dist-packages/" in text or text.startswith(stdlib):
            continue  # of thousands, to look at few files
        file = Path(text).resolve()
        if name in ("__main__", "__mp_main__") or not file.is_file() or file in watched:
            continue
        inside = any(file.is_relative_to(folder) for folder in folders) and not file.is_relative_to(PACKAGE)
        if inside and is_own(file):
            found[name] = file
    return found


def is_own(file: Path) -> bool:
    file = file.resolve()
    if file.is_relative_to(PACKAGE):  # a room that holds a task is a task's code; the others are the engine
        top = file.relative_to(PACKAGE).parts[0]
        return top in ADAPTERS or (PACKAGE / top / "task.py").exists()
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return not installed and not file.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


_IMPORTING = ("import_module", "__import__", "get_method", "get_static_method", "get_class", "get_object")
"""Functions that import what a text names: Python's, and Hydra's."""


def _imports(file: Path, package: str) -> Iterator[str]:
    """All that a module may import, by absolute names; of `from a import b` both a and a.b, whichever is a module."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                around = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
                base = ".".join([*around, *([module] if module else [])])
                yield base
                yield from (f"{base}.{name.name}" for name in names)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called in _IMPORTING:
                given = dict(zip(("name", "package"), node.args, strict=False))
                given |= {word.arg: word.value for word in node.keywords if word.arg}
                texts = {key: item.value for key, item in given.items() if isinstance(item, ast.Constant)}
                named = texts.get("path", texts.get("name"))
                if not isinstance(named, str):
                    continue
                with contextlib.suppress(ImportError):  # beyond the top of a package, which fails when it is run, too
                    yield importlib.util.resolve_name(named, str(texts.get("package") or package))
                if called.startswith("get_"):
                    yield named.rpartition(".")[0]


def _code(file: Path) -> str:
    """What a module's code is compared by."""
    if file.suffix != ".py":  # compiled
        return hashlib.sha256(file.read_bytes()).hexdigest()
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            case ast.Expr(value=ast.Constant()):
                node.value = ast.Constant(None)  # the description below a constant
    return ast.unparse(tree)  # unlike a dump the same in all versions of Python
