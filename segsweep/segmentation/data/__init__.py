"""Data sets, splits, the decoded cache, and batches on the device."""
