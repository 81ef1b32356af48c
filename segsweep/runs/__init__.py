"""One run: reused, resumed or trained, and its record."""
