"""Optuna: studies that processes share, objectives, pruners, spaces, samplers."""
