"""`python -m segsweep.ui`: MLflow's pages of the runs of the working folder."""

import sys

from segsweep.config.start import start
from segsweep.tracking import ui


def main() -> int:
    start()
    return ui.main()


if __name__ == "__main__":
    sys.exit(main())
