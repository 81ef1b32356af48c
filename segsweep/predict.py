"""`python -m segsweep.predict`: of the segmentation task."""

import sys

from segsweep.segmentation.predictions import main

if __name__ == "__main__":
    sys.exit(main())
