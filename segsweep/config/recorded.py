"""Of a command line that a record has, which anybody may have written, what may be composed."""

import contextlib
import io
import re
from argparse import Namespace
from pathlib import Path

from hydra._internal.utils import get_args
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf._utils import split_key

from segsweep.config.hold import unplain
from segsweep.config.trust import TRUST, is_searchpath, listed, path_of, trusted
from segsweep.core.errors import ConfigError, printable
from segsweep.core.session import session
from segsweep.core.signature import OWN

_NAME = re.compile(r"\w[\w-]*(\.yaml)?")


def arguments(words: list[str]) -> Namespace:
    """Of a command line that a record has. Raises ConfigError."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return get_args(words)
    except SystemExit:
        raise ConfigError("its command is none of this program") from None


def composable(args: Namespace, folder: str | None) -> list[str]:
    """Of a command line that a record has, which anybody may have written, what may be composed: values that name other
    keys at most, and options of folders that somebody else has named.

    folder: of options, from the command line of whoever asks. What says how jobs are launched and where a run goes is
    left out, as it decides no number. Raises ConfigError in one sentence."""
    own, door = trusted(), session().door
    words: list[str] = []
    if folder is None and args.config_dir is not None:
        if Path(args.config_dir).resolve() not in own:
            raise ConfigError(
                f"its folder of options is named by its record alone: give --config-dir {printable(args.config_dir)}, "
                f"or trust it: {TRUST}={printable(args.config_dir)}"
            )
        folder = args.config_dir
    words += ["--config-dir", folder] if folder is not None else []
    if args.config_path is not None:
        place = (path_of(door.place(args.config_path) or "") if door else "") or args.config_path
        if "://" in place or Path(place).resolve() not in own:
            where = printable(place)
            raise ConfigError(
                f"--config-path: its configuration is named by its record alone; trust it: {TRUST}={where}"
            )
        words += ["--config-path", args.config_path]
    if args.config_name is not None:
        if not _NAME.fullmatch(args.config_name):
            raise ConfigError(f"--config-name={printable(args.config_name)}: not the name of a file")
        words += ["--config-name", args.config_name]
    if args.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: not taken from a record")
    return [*words, *filter(None, (_recorded(line, own) for line in args.overrides))]


def _recorded(line: str, own: set[Path]) -> str | None:
    """An override of a record; None: it decides no number."""
    shown = printable(line)
    if any(unplain(line.replace("\\", ""))):
        raise ConfigError(f"{shown}: a record may name other keys, ${{key}}, and nothing that reads the environment")
    try:
        override = OverridesParser.create().parse_override(line)
    except HydraException:
        raise ConfigError(f"{shown}: not in Hydra's grammar") from None
    key = override.key_or_group
    top = split_key(key.replace("/", "."))
    if "hydra" in (override.package or "").split(".") or top == ["hydra"]:
        raise ConfigError(f"{shown}: not taken from a record")
    if is_searchpath(override) and any(
        "://" in path_of(text) or Path(path_of(text)).resolve() not in own for text in map(str, listed(override))
    ):
        raise ConfigError(
            f"{shown}: named by its record alone; give the folder with --config-dir, or trust it: {TRUST}"
        )
    if top[0] == "hydra":
        return line if is_searchpath(override) or top[:3] == ["hydra", "job", "env_set"] else None
    top = top[1:] if top[0] == OWN else top
    return None if top[:1] in (["paths"], ["tracking"]) or top[:2] == ["search", "storage"] else line
