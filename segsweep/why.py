"""`python -m segsweep.why`: why two runs are not the same one, and letting a record stand."""

import sys

from segsweep.sweeps.why import main

if __name__ == "__main__":
    sys.exit(main())
