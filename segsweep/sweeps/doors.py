"""`segsweep.main`: one's own script, or an existing Hydra application, with all that the engine does.

    segsweep.main(Digits)                                        a task class of a script
    segsweep.main(train, metric="loss", direction="min")         a function train(run, *, lr: float = 0.1)
    @segsweep.main(config_path="conf", config_name="config", metric="loss", direction="min")
    def main(cfg): ...                                           in place of @hydra.main; or def main(cfg, run)

What a script takes are keys at the root, beside the engine's. An application's conf/ stays what it is, and the engine's
keys lie under `segsweep.` there. They come in by the way of Hydra's own first configuration, which every composition
begins with: so whatever an application says itself, its launcher and sweeper too, is said later and wins.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra._internal.utils import (
    compute_search_path_dir,
    detect_calling_file_or_module_from_task_function,
    get_args,
)
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from segsweep.config import stored
from segsweep.config.schema import Config
from segsweep.config.start import start
from segsweep.config.trust import NOWHERE, refuse
from segsweep.core import artifacts, child
from segsweep.core.errors import ConfigError, SegsweepError, nearest
from segsweep.core.program import typed
from segsweep.core.session import session
from segsweep.core.signature import OWN
from segsweep.sweeps import worker
from segsweep.sweeps.functions import USAGE, App, Asked, Script, adapted, named, takes_run
from segsweep.task import Metric, Spec

_SHARED = ("epochs", "seed", "device")
"""Keys of the engine that a script may take as arguments, too; another default of theirs is then the engine's."""
_MARK = "_segsweep"


def main(
    task: Any = None,
    /,
    *,
    config_path: str | None = None,
    config_name: str | None = None,
    metric: str | Mapping[str, str | Metric] | None = None,
    direction: str | None = None,
    data: Any = None,
    ignored: str | tuple[str, ...] | list[str] = (),
    repeats: str | tuple[str, ...] | list[str] = (),
    version_base: str | None = None,
    execution_whitelist: Any = None,
) -> Any:
    """Start what the command line asks for; without `task` a decorator of a function over a configuration.

    Args:
        config_path, config_name, version_base, execution_whitelist: as for `hydra.main`.
        metric, direction: of the number that a function returns, "min" or "max"; or a mapping of metrics, each with its
            direction or a `task.Metric`, the first of which is what is chosen by.
        data: what is trained on, so that an edit trains anew: a file, a folder, several of them, a digest as text, or a
            function of the configuration (of a script's arguments) that gives one of these.
        ignored: keys that decide no number.
        repeats: keys beside the seed in which repeats of one configuration differ.

    A wrong use is told in a sentence, and so is a failure; the exit code is then not 0. Where another process of the
    engine loads the script, nothing is started."""
    several = ((keys,) if isinstance(keys, str) else keys for keys in (ignored, repeats))
    asked = Asked(metric, direction, data, *(tuple(keys) if isinstance(keys, list) else keys for keys in several))
    at_hydra = {"config_path": config_path, "config_name": config_name, "version_base": version_base}
    if task is not None:
        return _start(lambda: _script(task, asked, [key for key, found in at_hydra.items() if found is not None]))
    try:
        asked.spec()
    except SegsweepError as error:
        _refuse(error)

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def started(*given: Any) -> Any:
            if given:  # as hydra.main does
                return function(*given)
            return _start(lambda: _application(started, at_hydra, execution_whitelist))

        try:
            takes_run(function)
        except SegsweepError as error:
            _refuse(error)
        setattr(started, _MARK, asked)
        return started

    return decorate


def _refuse(error: SegsweepError) -> None:
    """A sentence and exit code 1 where it is the program that was started; else as an exception."""
    if sys._getframe(2).f_globals.get("__name__") == "__main__":
        print(error, file=sys.stderr)
        raise SystemExit(1)
    raise error


def _start(made: Callable[[], "Door"]) -> None:
    here = session()
    if here.door is not None or sys._getframe(2).f_globals.get("__name__") == "__mp_main__":
        return  # a launcher's process, or one of the user's own, that only loads the script
    before, argv = signal.getsignal(signal.SIGINT), list(sys.argv)
    if sys._getframe(2).f_globals.get("__name__") == "__main__":
        child.leave_at_once()
    try:
        here.door = made()
        start()
        code = _answer(here.door, sys.argv[1:])
    except SegsweepError as error:
        print(error, file=sys.stderr)
        code = 1
    finally:
        here.door, sys.argv[:] = None, argv
        signal.signal(signal.SIGINT, before)
    if code:
        raise SystemExit(code)


def _answer(door: "Door", argv: list[str]) -> int:
    """The exit code of what is asked for. `--why` and `--check` are this program's own `python -m segsweep.why` and
    `.check`, as nobody else composes its runs; they train none of them."""
    if argv[:1] == ["--why"]:
        from segsweep.sweeps import why

        return why.main(argv[1:])
    if argv[:1] == ["--check"]:
        from segsweep.sweeps import check

        return check.main(argv[1:])
    from segsweep.sweeps import cli

    door.register(argv)
    return cli.main()


@dataclass(eq=False)
class Door:
    """How code that is not this program's came to the engine, and how other processes come to it.

    target: its name, MODULE.NAME. file: to load the module from; None: by its name. folder: in which its own modules
    lie. program: the command, less its arguments. asked: of a function that was given to `main`. named: what the
    command line says of which configuration an application begins with."""

    target: str
    file: str | None
    folder: str | None
    program: tuple[str, ...]
    app: bool = False
    asked: Asked | None = None
    config_path: str | None = None
    config_name: str | None = None
    version_base: str | None = None
    whitelist: Any = None
    named: tuple[str, ...] = ()

    def unknown(self, cfg: DictConfig, names: Iterable[str]) -> list[str]:
        """Of what an application told `main`, a sentence for each key that a configuration of it has not, `names` being
        those that it has; what is below a group may be in another option."""
        if not self.app:
            return []
        tops, groups = {*map(str, cfg)}, {str(group) for group in cfg.hydra.runtime.choices}

        def known(key: str) -> bool:
            top = key.partition(".")[0]
            return key in names or any(n.startswith(f"{key}.") for n in names) or (top in tops and top in groups)

        asked = getattr(getattr(sys.modules[self.target.rpartition(".")[0]], self.target.rpartition(".")[2]), _MARK)
        return unknown(asked, known, names)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def trusts(self, target: str) -> bool:
        """What the user started is the user's."""
        return target == self.target

    @functools.cached_property
    def component(self) -> Any:
        """The class that is trained by; raises ConfigError."""
        module, _, name = self.target.rpartition(".")
        try:
            found = getattr(_load(module, self.file, self.folder), name)
        except Exception as error:  # somebody's module can raise anything
            raise ConfigError(
                f"{self.file or module} cannot be loaded in another process: {type(error).__name__}: {error}"
            ) from error
        if self.app:
            return adapted(found.__wrapped__, getattr(found, _MARK), App)
        return adapted(found, self.asked, Script) if self.asked else found

    @property
    def wrapped(self) -> Any:
        """By which Hydra names the job and finds conf/; of the process that was started."""
        found = getattr(sys.modules[self.target.rpartition(".")[0]], self.target.rpartition(".")[2])
        return inspect.unwrap(found)

    def place(self, config_path: str | None = None) -> str | None:
        """Of the application's own configuration, on Hydra's search path."""
        path = config_path or self.config_path
        if not self.app or path is None:
            return None
        found = compute_search_path_dir(*detect_calling_file_or_module_from_task_function(self.wrapped), path)
        return found if found is None or "://" in found else f"file://{found}"

    def register(self, argv: list[str]) -> None:
        """Make known to Hydra the engine's options and keys, and a script's arguments, for a command line."""
        Plugins.instance()  # whose own options come first, so that those below take their place
        made, at = self.component, f"{OWN}." if self.app else ""
        if self.app:
            given = get_args(argv)
            refuse(given)
            asked = {"--config-path": given.config_path, "--config-name": given.config_name}
            self.named = tuple(word for pair in asked.items() if pair[1] is not None for word in pair)
        _check_class(made, self.target)
        keys: dict[str, Any] = {"task": {"_target_": self.target}}
        if self.app and not made.takes_run:
            keys["epochs"] = 1
        help_option = "default"
        if not self.app:
            arguments = _arguments(made, self.target)
            _stop_unknown(self.asked, {*arguments} | {f.name for f in fields(Config)})
            keys["task"] |= {"epochs": "${epochs}"} if "epochs" in arguments else {}
            keys |= {key: found for key, found in arguments.items() if key in _SHARED and found != "???"}
            node = {"defaults": ["_self_", {"experiment": None}]} | arguments
            ConfigStore.instance().store(name=str(self.config_name), node=node, replace=True)
            stored.keep(group="hydra/help", name=OWN, node=_help(self, made, arguments))
            help_option = OWN
        stored.store_engine(at, keys, help_option)
        asks = [argument for argument in argv if argument.startswith("+search=")]
        if self.app and not asks:
            return
        if not self.app or not self._has_search(argv):
            stored.store_searches("search")

    def _has_search(self, argv: list[str]) -> bool:
        """Whether the application has a group or a key of that name, which then is meant by `+search=`."""
        from hydra import compose
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from hydra.initialize import initialize_config_search_path

        given = get_args(argv)
        place, name = self.place(given.config_path), given.config_name or self.config_name
        try:
            with initialize_config_search_path([place or NOWHERE]):
                options = GlobalHydra.instance().config_loader().get_group_options("search")
                return bool(options) or "search" in compose(name)
        except HydraException:  # which the checks tell, or --config-name
            return False


def _script(task: Any, asked: Asked, at_hydra: list[str]) -> Door:
    """at_hydra: what was said that is of an application alone. Raises ConfigError."""
    if at_hydra:
        raise ConfigError(f"segsweep.main({named(task)}, {at_hydra[0]}=...): not of a script. {USAGE}")
    if isinstance(task, type):
        if not asked.empty:
            raise ConfigError(
                f"segsweep.main({named(task)}, ...): a task class says itself what it measures and on what"
            )
        return _door(task, config_name=_stem())
    if not inspect.isfunction(task):
        raise ConfigError(f"segsweep.main({task!r}): found {type(task).__name__}. {USAGE}")
    asked.spec()
    door = _door(task, config_name=_stem())
    door.asked = replace(asked, data=_Packed(asked.data)) if callable(asked.data) else asked
    return door


def _application(function: Any, at_hydra: dict[str, Any], whitelist: Any) -> Door:
    return _door(function, app=True, whitelist=whitelist, **at_hydra)


def _door(thing: Any, **facts: Any) -> Door:
    """Where a class or function is, as every process finds it."""
    (spec, file), name = _main(), str(thing.__name__)
    if "<" in thing.__qualname__ or "." in thing.__qualname__:
        raise ConfigError(
            f"segsweep.main: {thing.__qualname__} is inside something else; jobs run in other processes, which find "
            "it at the top of a file alone"
        )
    module, by_file, folder = thing.__module__, None, None
    if module == "__main__" and file is None:
        raise ConfigError(
            "segsweep.main: this is no file, and other processes cannot load it; put it into one: python my_script.py"
        )
    if module == "__main__":
        module, by_file = (spec.name, None) if spec else (_stem(), file)
        there = getattr(sys.modules.get(module), "__file__", None) or file
        if module in sys.stdlib_module_names or Path(str(there)).resolve() != Path(str(file)).resolve():
            raise ConfigError(
                f"{file}: another module is called {module}, which would be loaded in its place; rename it"
            )
        sys.modules[module] = sys.modules["__main__"]
    if file is not None:
        folder = str(Path(file).parent) if spec is None else os.getcwd()  # as Python itself has it first on its path
    if getattr(sys.modules[module], name, None) is not thing:
        raise ConfigError(f"segsweep.main: {module} has another {name}; put segsweep.main over all decorators")
    if spec is not None:
        program: tuple[str, ...] = ("python", "-m", spec.name.removesuffix(".__main__"))
    else:
        program = ("python", sys.argv[0]) if sys.argv[0].endswith(".py") else (Path(sys.argv[0]).name,)
    return Door(f"{module}.{name}", by_file, folder, program, **facts)


def _main() -> tuple[Any, str | None]:
    """How the program was started: the specification of `python -m`, and its file."""
    started = sys.modules["__main__"]
    file = getattr(started, "__file__", None)
    return getattr(started, "__spec__", None), str(Path(file).absolute()) if file else None


def _stem() -> str:
    file = _main()[1]
    return Path(file).stem.replace(".", "_") if file else "script"


def _load(module: str, file: str | None, folder: str | None) -> ModuleType:
    """The module of a script, loaded here under the name that it has in every process but its own."""
    if module in sys.modules:
        return sys.modules[module]
    if folder and folder not in child.named():  # before other people's packages, and after Python's own
        sys.path[:] = [path for path in sys.path if path != folder]
        places = (at for at, path in enumerate(sys.path) if {"site-packages", "dist-packages"} & set(Path(path).parts))
        sys.path.insert(next(places, len(sys.path)), folder)
    if file is None:
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[module]
        raise
    return made


class _Packed:
    """Whatever tells of the data of a script, for another process, which unpacks it once it has loaded that."""

    def __init__(self, thing: Any):
        if inspect.isfunction(thing):
            _door(thing)  # refuses what no other process finds
        try:
            self.packed = pickle.dumps(thing)
            takes = [p for p in inspect.signature(thing).parameters.values() if p.kind is p.VAR_POSITIONAL]
        except Exception as error:  # of whatever it holds
            raise ConfigError(
                f"segsweep.main(data={thing!r}): cannot be told to another process: {type(error).__name__}: {error}"
            ) from None
        if takes:
            raise ConfigError(f"segsweep.main(data={thing!r}): takes {takes[0]}; it is given settings by their names")

    def __call__(self, **values: Any) -> Any:
        """With those of `values` that it takes."""
        thing = worker.unpacked(self.packed)
        bound = getattr(thing, "keywords", {})  # of functools.partial
        parameters = inspect.signature(thing).parameters
        all_ = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return thing(**{name: values[name] for name in values if (all_ or name in parameters) and name not in bound})


def _check_class(made: Any, target: str) -> None:
    lacks = [name for name in ("data", "train") if not callable(getattr(made, name, None))]
    if lacks or not isinstance(getattr(made, "spec", None), Spec):
        wrong = f"no {lacks[0]}()" if lacks else "no `spec`, a segsweep.task.Spec that says what it measures"
        raise ConfigError(f"segsweep.main: {target} has {wrong}. {USAGE}")


def _arguments(made: Any, target: str) -> dict[str, Any]:
    """A script's arguments as keys with their defaults. Raises ConfigError."""
    found = {}
    for p in inspect.signature(made).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise ConfigError(f"segsweep.main: {target} takes {p}; its settings need names")
        own = {f.name for f in fields(Config)} - set(_SHARED) | {"experiment", OWN}
        if p.name in own or p.name in ("hydra", "defaults") or p.name.startswith("_"):
            whose = "the engine" if p.name in own else "Hydra"
            raise ConfigError(f"segsweep.main: {target} takes {p.name}, which is a key of {whose}; call it otherwise")
        kind, what = (str, "a text") if p.name == "device" else (int, "a whole number")
        if p.name in _SHARED and p.default is not p.empty and type(p.default) is not kind:
            raise ConfigError(
                f"segsweep.main: {target}({p.name}={p.default!r}): {what} is needed, as {p.name} is the engine's, too"
            )
        try:
            found[p.name] = "???" if p.default is p.empty else _key(p.default)
        except (TypeError, OverflowError):
            raise ConfigError(
                f"segsweep.main: {target}({p.name}={p.default!r}): a default is a number, a text, a path, null, or a "
                "list or mapping of such, which a command line can give"
            ) from None
    return found


def _key(default: Any) -> Any:
    """A default as a configuration has it. Raises TypeError where it has nothing like it, OverflowError of a number
    that is none of a computer's."""
    if isinstance(default, list | tuple):
        return [_key(item) for item in default]
    if isinstance(default, Mapping):
        return {key: _key(item) for key, item in default.items()}
    if isinstance(default, Enum) or not isinstance(default, Path | str | bool | int | float | None):
        raise TypeError
    if isinstance(default, Path | str):
        return artifacts.literal(str(default))
    if isinstance(default, bool | None):
        return default
    number = float(default)  # of numpy's float64, which is one of Python's
    return int(default) if isinstance(default, int) else number


def unknown(asked: Asked | None, known: Callable[[str], bool], names: Iterable[str]) -> list[str]:
    """A sentence for each of the keys in `ignored` and `repeats` that is none."""
    named = {"ignored": asked.ignored, "repeats": asked.repeats} if asked else {}
    return [
        f"segsweep.main({word}=...): {key} is no key{nearest(key, names)}"
        for word, keys in named.items()
        for key in keys
        if not known(key)
    ]


def _stop_unknown(asked: Asked | None, names: set[str]) -> None:
    if problems := unknown(asked, lambda key: str(key).partition(".")[0] in names, names):
        raise ConfigError("\n".join(problems))


def _help(door: Door, made: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    program = " ".join(door.program)
    about = (inspect.getdoc(getattr(made, "function", made)) or "").split("\n\n")[0]
    keys = "\n".join(f"    {key}={'(needed)' if found == '???' else found}" for key, found in arguments.items())
    own = "  Its settings (key=value)\n" + keys if keys else "  It has no settings of its own."
    title = f"{door.target}: {about}" if about else door.target
    text = (
        f"{title}\n\n"
        f"  {program}                                    one run\n"
        f"  {program} -m KEY=1,2 seed=0,1,2 epochs=5      a sweep: every combination is one job\n"
        f"  {program} -m +search=tpe 'KEY=interval(0, 1)' search.trials=20\n"
        f"  {program} -m ... hydra/launcher=plan         what it would cost; --cfg job: every value\n"
        f"  {program} --check                            what it forgot that exact resume needs\n\n"
        f"{own}\n\n"
        "  The engine's\n"
        "    epochs  seed  device=auto|cpu|cuda|cuda:N  reuse=true|false  report=true|false\n"
        "    pruner=none|median|halving|hyperband|patient  tracking=mlflow|none  paths.runs  search.trials  ...\n\n"
        "  Afterwards\n"
        f"    {typed('report')} multirun/NAME      tables, curves, statistics of a sweep\n"
        f"    {typed('ui')}                        MLflow's table and charts of the runs\n"
        f"    {program} --why multirun/NAME/0             why it would train that run again, or not; trains nothing\n"
    )
    return {"app_name": door.program[-1], "template": artifacts.literal(text.replace("$", "$$"))}
