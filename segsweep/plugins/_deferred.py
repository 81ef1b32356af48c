"""Launchers as Hydra finds them whenever it starts: what they need is imported by who uses one."""

import pkgutil
from collections.abc import Sequence
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class Deferred(Launcher):
    """A call gives an object of the class at `made`, MODULE:NAME, with the same settings."""

    made: ClassVar[str]

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        return pkgutil.resolve_name(cls.made)(*args, **settings)

    def setup(self, **about: Any) -> None:
        raise NotImplementedError  # no object is of this class; that Hydra takes it as a whole one

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise NotImplementedError
