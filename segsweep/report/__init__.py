"""The comparison report: tables, curves, overlays and tested contrasts, from records alone; it never trains."""
