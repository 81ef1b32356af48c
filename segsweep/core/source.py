"""The code that a run's numbers come from: this program's own, and every module of one's own that a component reaches
by importing, outside site-packages and the standard library. It is read and not run.
"""

import ast
import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from segsweep.core import artifacts
from segsweep.core.signature import digest

PACKAGE = Path(__file__).resolve().parents[1]
STDLIB = os.path.dirname(os.__file__)
"""Not by sysconfig, which answers wrongly or not at all while another thread asks it for the first time."""
CODE = ("segsweep.core.device", "segsweep.runs.loop")
"""What takes part in every task's results."""
ADAPTERS = ("lightning.py",)
"""What takes part in those of a task that imports it."""
KEPT, MOST = "code.json", 1000
"""In the cache folder: what is known of modules' contents, and of how many at most."""


@cache
def code(*modules: str) -> dict[str, str]:
    """Module -> hash of its code: of this program's that compute results, and of one's own that `modules` reach.

    Comments, docstrings and layout do not count: those retrain nothing. A process keeps what it has found, as it keeps
    what it has imported."""
    files = {name: PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in CODE}
    return hashes(files | reached(*modules))


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    found = {name: _read(file)[1] if file.suffix == ".py" else _whole(file) for name, file in files.items()}
    _keep()
    return found


def _whole(file: Path) -> str:
    """Of what is compiled."""
    return digest(hashlib.sha256(file.read_bytes()).hexdigest())


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
    found = {}
    # a copy, as Python says: of a list each pair is an object, whose making may look for garbage, whose end runs code
    for name, module in sys.modules.copy().items():
        text = getattr(module, "__file__", None) or "/"
        if "/site-packages/" in text or "/dist-packages/" in text or text.startswith(STDLIB):
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
    return not installed and not file.is_relative_to(Path(STDLIB).resolve())


_IMPORTING = ("import_module", "__import__", "get_method", "get_static_method", "get_class", "get_object")
"""Functions that import what a text names: Python's, and Hydra's."""


def _imports(file: Path, package: str) -> Iterator[str]:
    """All that a module may import, by absolute names; of `from a import b` both a and a.b, whichever is a module."""
    parts = package.split(".")
    for level, base, names in _read(file)[0]:
        if level > len(parts):  # beyond the top of a package, which fails when it is run, too
            continue
        around = parts[: len(parts) + 1 - level] if level else []
        whole = ".".join([*around, *([base] if base else [])])
        yield whole
        yield from (f"{whole}.{name}" for name in names)


_Imports = list[tuple[int, str, tuple[str, ...]]]
"""Each with its level, as in `from .. import`, its module, and what is taken of it."""


def _read(file: Path) -> tuple[_Imports, str]:
    """A module's imports, and the digest of what its code is compared by: known of its contents, or found out."""
    text, known = file.read_bytes(), _known()
    key = hashlib.sha256(text).hexdigest()
    if key not in known:
        known[key] = _parsed(text)
    return known[key]


@cache
def _known() -> dict[str, tuple[_Imports, str]]:
    """By the hash of a module's contents."""
    return dict(_kept())


@cache
def _kept() -> dict[str, tuple[_Imports, str]]:
    """What another process has found out, which costs a tenth of a second; not where others could write."""
    there = artifacts.cache_folder()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        about = there.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o022:
            kept = artifacts.parse_json(there / KEPT)
            if kept["made"] == _made() and not (there / KEPT).stat().st_mode & 0o022:
                texts = kept["modules"].items()
                return {key: ([(n, base, tuple(names)) for n, base, names in some], str(d)) for key, (some, d) in texts}
    return {}


@cache
def _made() -> list[str]:
    """By what is it read: another Python, or another version of this module, may find something else."""
    return [sys.version, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]


def _keep() -> None:
    if len(_known()) <= len(_kept()):
        return
    _kept().update(_known())
    with contextlib.suppress(OSError):  # a folder of others, a full disk: it will be found out again
        (there := artifacts.cache_folder()).mkdir(mode=0o700, parents=True, exist_ok=True)
        latest = dict(list(_known().items())[-MOST:])
        artifacts.write_json(there / KEPT, {"made": _made(), "modules": latest})


def _parsed(text: bytes) -> tuple[_Imports, str]:
    tree = ast.parse(text)
    imports: _Imports = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imports += [(0, name.name, ()) for name in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                imports.append((level, module or "", tuple(name.name for name in names)))
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called in _IMPORTING:
                imports += _named(node, called)
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            case ast.Expr(value=ast.Constant()):
                node.value = ast.Constant(None)  # the description below a constant
    return imports, digest(ast.unparse(tree))  # unlike a dump the same in all versions of Python


def _named(call: ast.Call, called: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """What a call imports by a text."""
    given = dict(zip(("name", "package"), call.args, strict=False))
    given |= {word.arg: word.value for word in call.keywords if word.arg}
    texts = {key: item.value for key, item in given.items() if isinstance(item, ast.Constant)}
    named, package = texts.get("path", texts.get("name")), texts.get("package")
    if not isinstance(named, str):
        return
    if package:
        with contextlib.suppress(ImportError):
            named = importlib.util.resolve_name(named, str(package))
    base = named.lstrip(".")
    yield len(named) - len(base), base, ()
    if called.startswith("get_"):
        yield 0, named.rpartition(".")[0], ()
