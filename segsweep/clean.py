"""`python -m segsweep.clean`: removes what can be made again, or is of no more use."""

import sys

from segsweep.segmentation.data.cache import stored
from segsweep.sweeps import clean


def main() -> int:
    return clean.main(stored)


if __name__ == "__main__":
    sys.exit(main())
