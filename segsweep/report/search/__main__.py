"""python -m segsweep.report.search STUDY --storage URL"""

import sys

from segsweep.report.search.pages import main

if __name__ == "__main__":
    sys.exit(main())
