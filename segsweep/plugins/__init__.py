"""Hydra plugins that come with segsweep.

Hydra looks for plugins in the top-level namespace package `hydra_plugins`; a wheel installs them there, of a checkout
this folder is one more place in which Python finds a part of that package.
"""

import sys
from pathlib import Path


def register() -> None:
    """Have `segsweep/plugins/hydra_plugins` found, before Hydra discovers its plugins."""
    here = Path(__file__).parent
    if (here / "hydra_plugins").is_dir() and str(here) not in sys.path:
        sys.path.append(str(here))  # not hydra_plugins.__path__: that is made anew with every change of sys.path
