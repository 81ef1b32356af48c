"""`python -m segsweep.export`: of the segmentation task."""

import sys

from segsweep.segmentation.export import main

if __name__ == "__main__":
    sys.exit(main())
