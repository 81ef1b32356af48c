"""Hydra plugins that come with segsweep.

Hydra looks for plugins in the top-level namespace package `hydra_plugins`; a wheel installs them there, a checkout adds
this folder to the namespace.
"""

from pathlib import Path


def register() -> None:
    """Add `segsweep/plugins/hydra_plugins` to the namespace, before Hydra discovers its plugins."""
    import hydra_plugins

    here = str(Path(__file__).parent / "hydra_plugins")
    if Path(here).is_dir() and here not in hydra_plugins.__path__:
        hydra_plugins.__path__.append(here)
