"""What makes two runs the same run: a hash of everything that decides the numbers.

The full resolved configuration counts, less a short list of keys that decide where and how fast but not what; a delta
against defaults would call two runs the same after a default has changed.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

IGNORED = (
    "device", "workers", "compile", "reuse", "report", "checkpoint", "paths", "tracking", "sweep", "search", "pruner",
    "data.root", "data.model_width", "split.file",
)  # fmt: skip
"""Keys that do not change a result: a pruned run is the beginning of the whole one; the manifest's hash covers
`data.root`, and `model.width` `data.model_width`."""
REPEATS = ("seed", "split.fold")
"""Keys in which the repeats of one configuration differ."""
CODE = ("models", "data", "losses.py", "metrics.py", "train.py", "evaluate.py")
"""What computes results, inside the package."""


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as JSON with sorted keys, where 1 and 1.0 are one value."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


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


def signatures(config: Mapping[str, Any], data: str, split: str) -> dict[str, str]:
    """`signature`, `group` (less seed and fold) and `trajectory` (less epochs) of a resolved configuration.

    A schedule that looks at the total carries it in its own arguments (`T_max: ${epochs}`), so that runs of different
    length share a trajectory exactly when their epochs are the same computation.
    """
    kept = without(config, IGNORED)
    identity: dict[str, Any] = {"config": kept, "code": code_fingerprint(*_foreign(kept))}
    whole = identity | {"data": data, "split": split}
    return {
        "signature": digest(whole),
        "group": digest(identity | {"data": data, "config": without(identity["config"], REPEATS)}),
        "trajectory": digest(whole | {"config": without(identity["config"], ("epochs",))}),
    }


def _foreign(config: Any) -> Iterator[str]:
    """Modules outside segsweep and torch that the configuration's targets live in."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if isinstance(target, str) and target.split(".")[0] not in ("segsweep", "torch"):
            yield target.rpartition(".")[0]
        for item in config.values():
            yield from _foreign(item)


@lru_cache
def code_fingerprint(*modules: str) -> str:
    """Hash of the code that computes results, without comments, docstrings and layout: those retrain nothing."""
    package = Path(__file__).parent
    own = [f for name in CODE for f in ([package / name] if name.endswith(".py") else (package / name).glob("*.py"))]
    code = {str(file.relative_to(package)): _code(file) for file in own}
    for module in modules:  # that module alone, not what it imports
        if (spec := importlib.util.find_spec(module)) and spec.origin:
            code[f"module {module}"] = _code(Path(spec.origin))
    return digest(code)


def _code(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            case ast.Expr(value=ast.Constant()):
                node.value = ast.Constant(None)  # the description below a constant
    return ast.unparse(tree)  # unlike a dump the same in all versions of Python
