"""The command line that asked for what is done, as one would type it again, and what it says."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from segsweep.core import artifacts
from segsweep.core.masks import masked
from segsweep.core.program import pasted, typed
from segsweep.core.session import session
from segsweep.tracking.store import PLACE


def command() -> str:
    """The command line that started this process, as one would type it."""
    return masked(f"{program()} {pasted(sys.argv[1:])}".strip())


def program() -> str:
    """The command less its arguments."""
    return pasted(door.program if (door := session().door) else ("python", "-m", "segsweep"))


def named() -> list[str]:
    """Arguments that say which configuration an application begins with, where they were given."""
    return list(door.named) if (door := session().door) else []


def raw(overrides: Any) -> list[str]:
    """As they were given: to look one up would put an address in the place of its name."""
    found: Any = OmegaConf.to_container(overrides, resolve=False)
    return found


def milestones(overrides: list[str], key: str = "epochs") -> list[int]:
    """Every value of `epochs` that a command line asks for, by the `key` it has there: the states to keep on the way to
    the longest."""
    found: set[int] = set()
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group == key:
            values = override.sweep_iterator() if override.is_discrete_sweep() else [override.value()]
            found |= {int(str(v)) for v in values if str(v).isdigit()}
    return sorted(found)


def look(uri: str) -> str:
    """How one looks at what MLflow keeps at `uri`, from the working directory; "" where its address says it."""
    if uri.startswith(("http:", "https:")):
        return ""
    return f"{typed('ui')}{'' if uri == PLACE else f' --store {pasted([masked(uri)])}'}"


def hide_passwords(*files: Path) -> None:
    """Out of what Hydra itself writes, where a command line has it do so."""
    for file in files:
        if file.is_file() and masked(text := file.read_text(encoding="utf-8")) != text:
            artifacts.write_text(file, text)
