"""The task that comes with the engine: one foreground class on two-dimensional slices."""
