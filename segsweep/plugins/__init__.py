"""Hydra's launchers and sweepers that come with segsweep; Hydra finds them by the entry points of pyproject.toml."""
