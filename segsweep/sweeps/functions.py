"""A function that trains, as a task: what it is called with, and what is made of what it returns."""

import contextlib
import functools
import inspect
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from segsweep.core import contents
from segsweep.core.errors import ConfigError, DataError, NotFiniteError, SegsweepError, TaskError
from segsweep.core.session import session
from segsweep.core.signature import OWN
from segsweep.task import PARTS, WORD, Data, Metric, Result, Spec

log = logging.getLogger(__name__)

USAGE = (
    "segsweep.main takes a task class, segsweep.main(Digits); a function with its metric, segsweep.main(train, "
    'metric="loss", direction="min"); or stands over the main(cfg) of a Hydra application, '
    '@segsweep.main(config_path="conf", config_name="config", metric="loss", direction="min")'
)


@dataclass(frozen=True)
class Asked:
    """What `main` was told of a function."""

    metric: Any = None
    direction: str | None = None
    data: Any = None
    ignored: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return self == Asked()

    def spec(self, ignored: tuple[str, ...] = ()) -> Spec:
        """Raises ConfigError."""
        words = {"min": "min", "minimize": "min", "max": "max", "maximize": "max"}
        if self.metric is None or (isinstance(self.metric, str) and self.direction is None):
            raise ConfigError(f"segsweep.main: metric= and direction= are needed, as nobody else knows which. {USAGE}")
        if not isinstance(self.metric, str) and self.direction is not None:
            raise ConfigError(
                "segsweep.main: direction= is for one metric; of several each has its own in metric={...}"
            )
        several = {self.metric: self.direction} if isinstance(self.metric, str) else self.metric
        if not isinstance(several, Mapping) or not several:
            raise ConfigError(
                f"segsweep.main(metric={self.metric!r}): a name is needed, or names with their directions"
            )
        for word, keys in (("ignored", self.ignored), ("repeats", self.repeats)):
            if not isinstance(keys, tuple) or not all(isinstance(key, str) for key in keys):
                raise ConfigError(f"segsweep.main({word}={keys!r}): a key as text is needed, or a list of such")
        metrics = {}
        for name, found in several.items():
            if not isinstance(name, str) or not WORD.fullmatch(name):
                raise ConfigError(f"segsweep.main(metric=...): {name!r} is no name of letters, digits, _ and -")
            if not isinstance(found, Metric) and (not isinstance(found, str) or found not in words):
                raise ConfigError(f"segsweep.main: {name} has direction {found!r}; allowed are min and max")
            if not isinstance(found, Metric):
                found = Metric(title=name[:1].upper() + name[1:], direction=words[found], format=".4g")  # type: ignore[arg-type]
            metrics[name] = found
        return Spec(
            metrics=metrics,
            select=f"val/{next(iter(metrics))}",
            ignored=(*self.ignored, *ignored),
            repeats=self.repeats,
        )


_ASKS = re.compile(rf"\$\{{(?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})*?(?<!\w)(?<!\w\.){OWN}(?!\w)")
"""In an interpolation, whatever resolver it calls, and inside others."""


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, str):
        yield node


class _Function:
    """`_call` it, and make of what it returns a `Result`."""

    spec: ClassVar[Spec]
    function: ClassVar[Any]
    asked: ClassVar[Asked]
    takes_run: ClassVar[bool] = True

    def _call(self, run: Any) -> Any:
        raise NotImplementedError

    def _watched(self) -> Any:
        raise NotImplementedError

    def data(self) -> Data:
        try:
            found = self._watched() if callable(self.asked.data) else self.asked.data
            return Data(digest=contents.digest(found, Path(inspect.getfile(inspect.unwrap(self.function))).parent))
        except SegsweepError:
            raise
        except (Exception, SystemExit) as error:  # of somebody's function
            said = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
            raise DataError(f"data= of {named(self.function)}: {said}") from error

    def train(self, run: Any) -> Result:
        found = self._call(run)
        return _result(found, self.spec, named(self.function), run)


class Script(_Function):
    def __init__(self, **values: Any):
        self.values = values

    def _call(self, run: Any) -> Any:
        return self.function(run, **self.values)

    def _watched(self) -> Any:
        return self.asked.data(**self.values)


class App(_Function):
    def __init__(self, cfg: DictConfig):
        self.cfg = cfg.copy()
        with open_dict(self.cfg):
            self.cfg.pop("hydra", None)  # see `compose.with_environment`
        with open_dict(self.cfg):
            engine = self.cfg.pop(OWN)
            if any(map(_ASKS.search, _texts(OmegaConf.to_container(self.cfg)))):  # the application means to know
                self.cfg[OWN] = engine

    def _call(self, run: Any) -> Any:
        with _in_its_folder():
            return self.function(self.cfg, run) if self.takes_run else self.function(self.cfg)

    def _watched(self) -> Any:
        return self.asked.data(self.cfg)


def adapted(function: Any, asked: Asked, kind: type[_Function]) -> type[_Function]:
    """The function as a task class, with its arguments and their annotations. Raises ConfigError."""
    facts: dict[str, Any] = {"function": staticmethod(function), "asked": asked, "__module__": function.__module__}
    if kind is App:
        facts["takes_run"] = takes_run(function)
        return type(
            function.__name__, (kind,), facts | {"spec": asked.spec(() if facts["takes_run"] else (f"{OWN}.epochs",))}
        )
    everything = list(inspect.signature(function).parameters.values())
    others = everything[1:]
    bad = [p.name for p in others if p.kind not in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if [p.name for p in everything[:1]] != ["run"] or bad:
        wrong = f"it takes *{bad[0]}" if bad else "its first argument is not run"
        raise ConfigError(
            f"segsweep.main({named(function)}): {wrong}; a training function is train(run, *, lr: float = 0.1, ...)"
        )

    def __init__(self: Any, **values: Any) -> None:
        Script.__init__(self, **values)

    __init__.__wrapped__ = function  # type: ignore[attr-defined]
    __init__.__annotations__ = {k: v for k, v in function.__annotations__.items() if k not in ("run", "return")}
    facts |= {
        "__init__": __init__,
        "__signature__": inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in others]),
        "spec": asked.spec(),
    }
    return type(function.__name__, (kind,), facts)


def takes_run(function: Any) -> bool:
    """Whether it is main(cfg, run), and not main(cfg). Raises ConfigError where it is neither."""
    if not inspect.isfunction(inspect.unwrap(function)):
        raise ConfigError(f"@segsweep.main: over a {type(function).__name__}. {USAGE}")
    parameters = list(inspect.signature(function).parameters.values())
    needed = [p for p in parameters if p.default is p.empty]
    plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed)
    if not plain or len(needed) not in (1, 2) or (len(needed) == 2 and needed[1].name != "run"):
        raise ConfigError(
            f"@segsweep.main: {function.__name__}({', '.join(map(str, parameters))}) takes other arguments "
            "than (cfg) or (cfg, run)"
        )
    return len(needed) == 2


@contextlib.contextmanager
def _in_its_folder() -> Iterator[None]:
    """`hydra.job.chdir` is for the application; the engine stays where it was started."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or not hydra.job.chdir:
        yield
        return
    here = session()
    here.place = Path.cwd()
    try:
        with contextlib.chdir(hydra.runtime.output_dir):
            yield
    finally:
        here.place = None


def _result(found: Any, spec: Spec, name: str, run: Any) -> Result:
    """Of what a function returned; raises TaskError and NotFiniteError."""
    from segsweep.runs.loop import plain  # with torch, which `--help` does without

    looped = run.state is not None
    if isinstance(found, Result):
        return found
    chosen = spec.select.partition("/")[2]
    if found is None and looped:
        return Result({})
    number = plain(found)
    several = {chosen: found} if number is not None else found
    if not isinstance(several, Mapping):
        wanted = f"a number ({chosen}), a mapping of metrics or a segsweep.task.Result"
        raise TaskError(f"{name} returned {'nothing' if found is None else type(found).__name__}; {wanted} is needed")
    metrics: dict[str, float] = {}
    beside: dict[str, Any] = {}
    for key, value in several.items():
        full = str(key) if str(key).partition("/")[0] in PARTS and "/" in str(key) else f"val/{key}"
        number = plain(value)
        if full in metrics:
            raise TaskError(
                f"{name} returned both {full.partition('/')[2]} and {full}, which are one; give one of them"
            )
        if spec.metric(full) is None:
            beside[str(key)] = number if number is not None else str(value)
        elif number is None:
            raise TaskError(f"{name} returned {type(value).__name__} for {key}; a number is needed")
        elif math.isfinite(number):
            metrics[full] = number
        else:
            raise NotFiniteError(f"{name} returned {number} for {key}")
    parts = [(key, *key.partition("_")[::2]) for key in beside]
    told = [f"{key} is called {part}/{of} here" for key, part, of in parts if part in PARTS and of in spec.metrics]
    if spec.select not in metrics and not looped:
        called = f" ({'; '.join(told)})" if told else ""
        found = ", ".join(map(str, several)) or "nothing"
        raise TaskError(f"{name} returned {found}, and no {chosen}, its metric{called}")
    if told:
        _tell(f"{name} returned what is kept, and compared by nobody: {'; '.join(told)}")
    if beside:  # kept, and compared by nobody, as nobody said which way is better
        run.describe(returned=beside)
    return Result(metrics)


@functools.cache
def _tell(text: str) -> None:
    """Once in a process."""
    log.warning(text)


def named(thing: Any) -> str:
    return (
        f"{getattr(thing, '__name__', thing)}()"
        if inspect.isfunction(thing)
        else str(getattr(thing, "__name__", thing))
    )
