"""Launchers and a sweeper for segsweep: this machine's devices, a plan, and a grid with exceptions."""
