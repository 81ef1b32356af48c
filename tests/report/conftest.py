"""Lets the tests of the report import `records.py` and `browser.py` beside them, whatever pytest's import mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
