"""segsweep: sweeps over segmentation networks, and an honest answer to which configuration is better."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and any(name.split(".")[0] == __name__ for name in sys.orig_argv):
    # `python -m segsweep...` is about to run, and has imported nothing of its own yet
    from segsweep.child import settle

    settle()
