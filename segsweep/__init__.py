"""segsweep: sweeps over segmentation networks, and an honest answer to which configuration is better."""

__version__ = "0.1.0"
