"""`python -m segsweep.ui`: MLflow's pages of the runs of the working folder."""

import sys

from segsweep.tracking.ui import main

if __name__ == "__main__":
    sys.exit(main())
