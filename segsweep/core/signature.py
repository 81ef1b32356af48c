"""What makes two runs the same run: a hash of everything that decides the numbers.

The full resolved configuration counts, less a short list of keys that decide where and how fast but not what; a delta
against defaults would call two runs the same after a default has changed. So does the code: this program's, and every
module of one's own that a component reaches by importing, outside site-packages and the standard library.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from segsweep.task import Spec

OWN = "segsweep"
"""The node that holds the engine's keys in the configuration of another Hydra application."""
IGNORED = ("device", "reuse", "report", "checkpoint", "paths", "tracking", "sweep", "search", "pruner")
"""Keys of the engine that do not change a result: a pruned run is the beginning of the whole one. A task adds its own
(`Spec.ignored`)."""


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
    trained: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """`signature`, `group` and `trajectory` (less the keys `epochs` and `endings`) of what is `kept` of a resolved
    configuration: all that decides a number. like: the same less what repeats differ in, by which they are a group.

    `files`: what `code` gives; `trained`: of these, what decides the epochs too, where that is not all. A schedule that
    looks at the total carries it in its own arguments (`T_max: ${epochs}`), so that runs of different length share a
    trajectory exactly when their epochs are the same computation. In the configuration of another application 1 and 1.0
    are two values: of its keys nobody knows that they are floats.
    """
    exact = epochs != "epochs"
    identity: dict[str, Any] = {"config": kept, "code": fingerprint(files)}
    whole = identity | {"data": data, "split": split}
    return {
        "signature": digest(whole, exact),
        "group": digest(identity | {"data": data, "config": like}, exact),
        "trajectory": digest(
            whole
            | {"config": without(kept, (epochs, *endings)), "code": fingerprint(files if trained is None else trained)},
            exact,
        ),
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
