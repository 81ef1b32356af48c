"""What a process needs once, whatever it is for. Importing segsweep changes nothing; every program of it calls `start`.

A program of one's own that composes conf/, or asks MLflow by these modules, calls it too."""

import contextlib
import math
import os
import secrets
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf

from segsweep.config.schema import OF_KEYS, OF_VALUES, schema
from segsweep.core import child
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import guard_streams
from segsweep.core.session import session

if TYPE_CHECKING:
    from segsweep.sweeps.doors import Door


@cache
def start() -> None:
    """Make known to OmegaConf and Hydra what conf/ names, resolvers and the schema; and to MLflow, which reads its
    environment when it is imported, how to behave. The first call in a process does it."""
    resolvers: tuple[Callable[..., Any], ...] = (_part_of, _select_of, _several, _given)
    for name, resolver in zip((*OF_VALUES, *OF_KEYS), resolvers, strict=True):
        OmegaConf.register_resolver(name, resolver, replace=True)
    OmegaConf.register_resolver("sweep_name", _sweep_name, use_cache=True, replace=True)
    ConfigStore.instance().store(name="schema", node=schema(), provider="segsweep")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked to tell MLflow's makers what is run
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _part_of(whole: Any, share: Any) -> int:
    return max(1, math.ceil(whole * share))


def _several(key: str, many: str, one: str, *, _root_: DictConfig) -> str:
    """`many` where the value of `key` is a number above 1 or a list or mapping of more than one item, `one` where it is
    not, or not there."""
    given = OmegaConf.select(_root_, key)
    count = len(given) if isinstance(given, DictConfig | ListConfig) else given
    return many if isinstance(count, int) and count > 1 else one


def _given(key: Any, then: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """`then` where `key` has a value, `otherwise` where it is null or not there."""
    return otherwise if OmegaConf.select(_root_, str(key)) is None else then


def _select_of(target: str) -> str:
    from segsweep.config.components import select_of  # what is never asked for a task need not import what builds one

    return select_of(target)


def _sweep_name() -> str:
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(2)}"


class Started:
    """`task`, for launchers: a process in which it is unpickled has been started. Hydra asks there for a job's folder,
    which a resolver names, before it calls the task."""

    def __init__(self, task: Callable[[DictConfig], Any], module: str = ""):
        self.task, self.__module__ = task, module or task.__module__  # by the latter Hydra names what it runs
        if door := session().door:
            self.__wrapped__ = door.wrapped  # or by this

    def __call__(self, cfg: DictConfig) -> Any:
        return self.task(cfg)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.task, session().door, child.added(sys.path), sys.flags.safe_path)


def _unpickled(
    task: Callable[[DictConfig], Any], door: "Door | None", folders: list[str], safe: bool
) -> Callable[[DictConfig], Any]:
    child.join(folders, safe)
    guard_streams()  # which go to files in the sweep's folder
    start()
    session().door = door
    if door:
        with contextlib.suppress(SegsweepError):  # which the job tells that asks for it
            door.component  # noqa: B018 - its code is loaded: the configurations of its jobs may be of its types
    return task
