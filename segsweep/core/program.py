"""By which command one has this program do something: what it tells one to type is of the kind that was typed."""

import os
import sys
from collections.abc import Iterable

from segsweep.core import child

COMMANDS = {
    name: name for name in ("report", "predict", "export", "sync", "check", "why", "clean", "ui")
} | {"search": "report.search"}  # fmt: skip
"""`segsweep NAME` -> the module that it is, `python -m segsweep.MODULE`."""


def run(name: str) -> int:
    """One of COMMANDS, whose arguments are sys.argv[1:]; the exit code."""
    import runpy  # not at the top: before `child.settle` it would be the one in the working folder

    child.quiet()
    try:
        runpy.run_module(f"segsweep.{COMMANDS[name]}", run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    return 0


def typed(name: str = "") -> str:
    """The command `name`, or without a name that which sweeps: by `segsweep` where that was typed, else by Python."""
    if os.path.basename(sys.argv[0]) == "segsweep":
        return f"{_reached(sys.argv[0])} {name}".strip()
    module = f".{COMMANDS[name]}" if name else ""
    return f"{_reached(sys.executable, 'python')} -m segsweep{module}"


def pasted(words: Iterable[str]) -> str:
    """A command line that a shell, and `shlex.split`, take apart into `words` again: as `shlex.join`, which writes one
    quote by five signs, but for words that have quotes and nothing that is more than itself between double ones."""
    import shlex  # as runpy

    def plain(word: str) -> bool:
        return "'" in word and not set(word) & {*'"$`!\n'} and "\\\\" not in word and not word.endswith("\\")

    return " ".join(f'"{word}"' if plain(word) else shlex.quote(word) for word in words)


def _reached(file: str, name: str = "segsweep") -> str:
    """A program by its name, or by its path where the name leads elsewhere and it lies below the working folder."""
    import shutil  # as runpy

    file = os.path.abspath(shutil.which(file) or file)
    found = shutil.which(name)
    near = os.path.relpath(file)
    return name if near.startswith("..") or (found and os.path.abspath(found) == file) else near
