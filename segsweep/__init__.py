"""segsweep: sweeps over training code, segmentation networks first, and an honest answer to which configuration is
better."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and any(name.split(".")[0] == __name__ for name in sys.orig_argv):
    # `python -m segsweep...` is about to run, and has imported nothing of its own yet
    from segsweep.core.child import settle

    settle()

from typing import Any  # not before: it would be the one in the working folder


def __getattr__(name: str) -> Any:
    if name == "main":  # the door for scripts and applications: Hydra is imported where somebody goes through it
        from segsweep.sweeps.doors import main

        return main
    if name in ("load", "sweep"):
        from segsweep import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "load", "main", "sweep"])
