"""segsweep: sweeps over training code, segmentation networks first, and an honest answer to which configuration is
better."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "main":  # the door for scripts and applications: Hydra is imported where somebody goes through it
        from segsweep.sweeps.doors import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
