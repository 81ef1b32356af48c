"""Whose word a configuration is: the program's own, the user's, or somebody's, by the folder that it is from."""

import os
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path_from_sources, get_args
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf._utils import split_key
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from segsweep.config.schema import conf_dir
from segsweep.core.errors import ConfigError, printable
from segsweep.core.masks import first_line
from segsweep.core.session import session

TRUST = "SEGSWEEP_CONF"
NOWHERE = "pkg://hydra.conf"
"""On the search path of what has no folder of its own, since Hydra wants one: where it finds its own anyway."""


def foreign(args: Namespace) -> list[tuple[str, str]]:
    """Folders that a parsed command line names and nobody vouches for: each as it was written, and where."""
    own = trusted()
    folder = args.config_dir
    named = [(folder, "--config-dir")] if folder is not None and Path(folder).resolve() not in own else []
    if (door := session().door) and args.config_path is not None:
        place = path_of(door.place(args.config_path) or "")
        named += [(place, "--config-path")] if "://" in place or (place and Path(place).resolve() not in own) else []
    paths = [o for o in parsed(line for line in args.overrides if "searchpath" in line) if is_searchpath(o)]
    texts = [str(entry) for o in paths for entry in listed(o)]
    named += [(t, "hydra.searchpath") for t in texts if "://" in path_of(t) or Path(path_of(t)).resolve() not in own]
    return named


@dataclass(frozen=True)
class Root:
    """What a command line is composed from: places of Hydra's search path, and the primary configuration's name."""

    places: tuple[str, ...]
    name: str | None


def root(args: Namespace) -> Root:
    """The installed conf/, or the folder of the application or script that came by a door, which are trusted as their
    code is, or the one that --config-path names in its place."""
    if (door := session().door) is None:
        return Root((f"file://{conf_dir()}",), "config")
    place = door.place(args.config_path)
    return Root((place or NOWHERE,), args.config_name or door.config_name)


def question(argv: list[str]) -> Namespace | None:
    """Raise ConfigError for a command line that only asks, where answering would do more than show text: `--help` sets
    up Hydra's log as the configuration says. What it gives is to be `hold.held` before it is answered."""
    args = get_args(argv)
    refuse(args)
    if not (args.help or args.hydra_help) or not (folders := foreign(args)):
        return None
    if args.hydra_help:
        raise ConfigError(f"--hydra-help tells of Hydra alone: leave {folders[0][1]} out")
    return args


def own_root(args: Namespace) -> Root:
    """The same without a --config-path that nobody vouches for."""
    door = session().door
    if door is None or not any(where == "--config-path" for _, where in foreign(args)):
        return root(args)
    return Root((door.place() or NOWHERE,), door.config_name)


def trusted() -> set[Path]:
    """The installed conf/, the folder of the application that came by a door, and those that SEGSWEEP_CONF names."""
    own = door.place() if (door := session().door) else None
    return {*named(), *(path.resolve() for path in [conf_dir(), *([Path(path_of(own))] if own else [])])}


@cache
def named() -> tuple[Path, ...]:
    """Folders of one's own, SEGSWEEP_CONF=FOLDER:...: read once, as SEGSWEEP_ALLOW is."""
    texts = os.environ.get(TRUST, "").split(os.pathsep)
    return tuple(Path(text).resolve() for text in texts if text.strip())


def refuse(args: Namespace) -> None:
    """Raise ConfigError for what puts another configuration in the place of this program's."""
    door = session().door
    for flag in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, flag) is not None and not (door and door.app and flag != "experimental_rerun"):
            raise ConfigError(
                f"--{flag.replace('_', '-')}: not taken, as what is checked is the program's own configuration; "
                "put your options into a folder, such as my_conf/experiment/mine.yaml, and give --config-dir my_conf"
            )
    if door and foreign(args):  # without one the program's own comes first
        _refuse_searchpath(args)


def _refuse_searchpath(args: Namespace) -> None:
    """Raise ConfigError where the primary configuration is from a folder that is not trusted and names further places.
    It is read here alone: to compose it would import what it names, pkg://NAME."""
    own, places = root(args), trusted()
    if own.name is None:
        return
    beside = [f"file://{Path(args.config_dir).absolute()}"] if args.config_dir else []
    try:
        found = loader_of(*own.places, *beside).repository.load_config(own.name)
        named = found and OmegaConf.select(found.config, "hydra.searchpath")
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{own.name}: {first_line(error)}") from None
    place = path_of(found.path or "") if found else ""
    if named and ("://" in place or Path(place).resolve() not in places):
        raise ConfigError(
            f"hydra.searchpath: set by {own.name}.yaml under {printable(place)}, which may name no further "
            "places; give it on the command line" + hint(foreign(args))
        )


def hint(named: Iterable[tuple[str, str]]) -> str:
    folders = [text for text, _ in named if "://" not in path_of(text)]
    return f", or trust the folder: {TRUST}={os.pathsep.join(folders)}" if folders else ""


def loader_of(*places: str) -> ConfigLoaderImpl:
    return ConfigLoaderImpl(create_config_search_path_from_sources(places))


def parsed(lines: Iterable[str]) -> list[Override]:
    """The overrides that can be read; of the others it is told elsewhere."""
    found = []
    for line in lines:
        try:
            found.append(OverridesParser.create().parse_override(line))
        except HydraException:
            continue
    return found


def is_searchpath(override: Override) -> bool:
    return split_key(override.key_or_group) == ["hydra", "searchpath"]


def listed(override: Override) -> list[Any]:
    value = override.value()
    return value if isinstance(value, list) else [value]


def path_of(text: str) -> str:
    return text.removeprefix("file://")
