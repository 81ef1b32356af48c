"""`python -m segsweep.check`: what a task forgot."""

import sys

from segsweep.sweeps.check import main

if __name__ == "__main__":
    sys.exit(main())
