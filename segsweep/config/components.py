"""The only reader of `_target_`: holds every group against its target's signature, and builds it.

conf/ is the registry: a component is any class or function that the whitelist allows, and its keyword arguments are its
schema. A configuration from elsewhere therefore cannot call anything but what is listed here.
"""

import contextlib
import functools
import importlib
import inspect
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import execution_whitelist, instantiate
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.schema import GROUPS, Config, range_problem, ranges
from segsweep.core.errors import ConfigError, SegsweepError, nearest
from segsweep.task import Range, Spec

ALLOW = "SEGSWEEP_ALLOW"
GIVEN = {"model": {"in_channels"}, "optim": {"params"}, "scheduler": {"optimizer"}}
"""Arguments that the run itself passes."""


@dataclass(frozen=True)
class Kind:
    """What a group's `_target_` may be without any leave: a public class that is found in one of `modules` (and made
    there, if it is this program's), a subclass of `base` (dotted) or a class with all `methods`."""

    modules: tuple[str, ...]
    base: str | None = None
    methods: tuple[str, ...] = ()

    def lists(self, target: str) -> bool:
        """By its name alone, before anything is imported."""
        module, _, name = target.rpartition(".")
        return module in self.modules and name.isidentifier() and not name.startswith("_")

    def fits(self, found: Any, target: str) -> bool:
        if not isinstance(found, type):
            return False
        at_home = not target.startswith("segsweep.") or found.__module__ == target.rpartition(".")[0]
        return at_home and self.is_base_of(found)

    def is_base_of(self, found: type) -> bool:
        if self.base:
            return issubclass(found, _get(self.base))
        return all(callable(getattr(found, method, None)) for method in self.methods)

    def __str__(self) -> str:
        names = [f"{module}.NAME" for module in self.modules]
        return f"{', '.join(names)} ({self.what})"

    @property
    def what(self) -> str:
        return f"a {self.base}" if self.base else f"something with {' and '.join(self.methods)}"


KINDS = {
    "task": Kind(("segsweep.segmentation.task",), methods=("data", "train")),
    "model": Kind(
        ("segsweep.segmentation.models.unet", "segsweep.segmentation.models.r2unet", "torch.nn"), "torch.nn.Module"
    ),
    "loss": Kind(("segsweep.segmentation.losses", "torch.nn"), "torch.nn.Module"),
    "optim": Kind(("torch.optim",), "torch.optim.Optimizer"),
    "scheduler": Kind(("torch.optim.lr_scheduler",), "torch.optim.lr_scheduler.LRScheduler"),
    "data": Kind(
        ("segsweep.segmentation.data.phantom", "segsweep.segmentation.data.lgg", "segsweep.segmentation.data.folder"),
        methods=("scan", "decode"),
    ),
    "split": Kind(("segsweep.segmentation.data.split",), methods=("__call__",)),
    "augment": Kind(("segsweep.segmentation.data.augment",), methods=("__call__",)),
    "pruner": Kind(("optuna.pruners",), "optuna.pruners.BasePruner"),
}
HYDRAS = (
    "segsweep.sweeps.sweep.SweepCallback",
    "logging.StreamHandler",
    "logging.FileHandler",
    "segsweep.masks.Formatter",
)
"""What Hydra calls for itself, and a component of a run may not."""
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_")


@cache
def own() -> tuple[str, ...]:
    """One's own packages, SEGSWEEP_ALLOW=mypackage.*: trusted as code is, as a configuration may call anything in them.

    Read once, so that nothing which a job's configuration does to the environment adds to it."""
    return tuple(entry.strip() for entry in os.environ.get(ALLOW, "").split(",") if entry.strip())


def is_own(target: str) -> bool:
    return any(target == entry or (entry.endswith(".*") and target.startswith(entry[:-1])) for entry in own())


def hydras() -> list[str]:
    """What Hydra may call for itself: nothing of what a component may be."""
    return [*HYDRAS, *own()]


def locate(target: str, kind: Kind) -> Any:
    """The class that `target` names, or anything of one's own.

    Raises ConfigError, before its module is imported, where the name is not listed, and where it is of another kind."""
    if is_own(target):
        try:
            return _get(target)
        except Exception as error:  # importing somebody's module can raise anything
            raise ConfigError(f"cannot be imported: {error.__cause__ or error}") from error
    if not kind.lists(target):
        hint = f"for your own package set {ALLOW}=package.* in the environment"
        raise ConfigError(f"not allowed to be called; allowed are {kind}; {hint}")
    try:
        found = _get(target)
    except (ImportError, AttributeError):
        module, _, name = target.rpartition(".")
        names = [n for n, value in vars(importlib.import_module(module)).items() if kind.fits(value, f"{module}.{n}")]
        raise ConfigError(f"{module} has no {name}{nearest(name, names)}") from None
    if not kind.fits(found, target):
        raise ConfigError(f"not allowed to be called; allowed are {kind}")
    return found


def _get(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module or "." not in module:
            raise
        return getattr(_get(module), name)  # of a class: mypackage.Net.small


def targets(group: str, node: Any) -> list[str]:
    """The names of all that building a group's resolved `node` calls: as they are given, and as Hydra finds them.

    Raises ConfigError naming the first that is not allowed. A component inside another is allowed where an argument is
    declared for it (`wrapped_pruner: BasePruner | None`); inside one's own, of every kind."""
    found: list[str] = []
    _collect(group, node, (KINDS[group],), found)
    return found


def _collect(place: str, node: Any, kinds: tuple[Kind, ...], found: list[str]) -> None:
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            _collect(f"{place}[{index}]", item, kinds, found)
    if not isinstance(node, Mapping):
        return
    target = node.get("_target_")
    inside: Callable[[str], tuple[Kind, ...]] = lambda key: kinds  # noqa: E731 - in a mapping, as around it
    if target is not None:
        if not isinstance(target, str):
            raise ConfigError(f"{place}._target_={target}: the name of a class is needed")
        if unknown := [key for key in node if str(key).startswith("_") and key not in SPECIAL]:
            raise ConfigError(f"{place}.{unknown[0]}: not allowed; a component takes {', '.join(SPECIAL)} and its keys")
        kind = next((k for k in kinds if k.lists(target)), kinds[0] if kinds else None)
        if kind is None and not is_own(target):
            raise ConfigError(f"{place}._target_={target}: not allowed to be called; nothing is to be built here")
        try:
            component = locate(target, kind or KINDS["model"])
        except ConfigError as error:
            raise ConfigError(f"{place}._target_={target}: {error}") from error.__cause__
        found += [target, f"{getattr(component, '__module__', '')}.{getattr(component, '__qualname__', '')}"]
        inside = _declared(component, is_own(target))
    for key, item in node.items():
        if isinstance(item, Mapping | list | tuple):
            _collect(f"{place}.{key}", item, inside(str(key)), found)


def _declared(component: Any, free: bool) -> Callable[[str], tuple[Kind, ...]]:
    """Argument -> the kinds of component that it takes; `free`: every argument takes all."""
    if free:
        return lambda key: tuple(KINDS.values())
    hints: dict[str, Any] = {}
    with contextlib.suppress(TypeError, NameError, AttributeError):  # annotations that cannot be read declare nothing
        hints = get_type_hints(component.__init__)
    # a base that nothing has imported is no annotation's
    known = [kind for kind in KINDS.values() if kind.base and kind.base.rpartition(".")[0] in sys.modules]
    return lambda key: tuple(kind for kind in known if any(map(kind.is_base_of, _classes(hints.get(key)))))


def _classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def modules(config: Mapping[str, Any]) -> set[str]:
    """Modules of one's own, and of other packages, that the targets of a resolved configuration lie in: the one that
    names it, the one that it was written in, and those of what it inherits from."""
    found: set[str] = set()
    for target in _own_targets(config):
        thing = _get(target)
        while hasattr(thing, "__wrapped__") or isinstance(thing, functools.partial):
            thing = thing.func if isinstance(thing, functools.partial) else thing.__wrapped__
        kinds = inspect.getmro(thing) if isinstance(thing, type) else (thing,)
        found |= {target.rpartition(".")[0], *(getattr(each, "__module__", None) or "" for each in kinds)}
    return found


def _own_targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str) and is_own(target):
            yield target
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from _own_targets(item)


def task(cfg: DictConfig) -> Any:
    """What a composed configuration asks to be trained; ValueError and TypeError of its constructor keep their message.

    An argument that `task` does not give is the top-level key or group of its name."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    given = {key: values[key] for key in _from_the_top(values["task"]) if key in values}
    return build("task", values["task"] | {"_partial_": True})(**given)


def task_class(cfg: DictConfig) -> Any:
    """Of a configuration that has been checked."""
    return locate(cfg.task._target_, KINDS["task"])


def spec_of(cfg: DictConfig) -> Spec | None:
    """What the task of a configuration says of itself; None where it is none, which `check` tells."""
    try:
        found = getattr(locate(str(cfg.task._target_), KINDS["task"]), "spec", None)
    except (ConfigError, OmegaConfBaseException):
        return None
    return found if isinstance(found, Spec) else None


def select_of(target: str) -> str:
    """For conf/: what a task chooses by; "" where it is none."""
    found = spec_of(OmegaConf.create({"task": {"_target_": target}}))
    return found.select if found else ""


def inputs(cfg: DictConfig) -> str:
    """What `data()` of a task depends on, as text."""
    named = task_class(cfg).spec.inputs
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return str({key: (values["task"] | values).get(key) for key in named}) if named else str(values)


def _from_the_top(node: Mapping[str, Any]) -> list[str]:
    """Arguments of a task that its own node does not give."""
    return [name for name in inspect.signature(locate(node["_target_"], KINDS["task"])).parameters if name not in node]


def _check_task(cfg: DictConfig) -> tuple[list[str], set[str]]:
    """The mistakes of a task's settings, and the top-level keys that are arguments of it."""
    try:
        node: Any = OmegaConf.to_container(cfg.task, resolve=True)
        if not isinstance(node.get("_target_"), str):
            return ["task: no _target_; choose an option, such as task=segmentation"], set()
        targets("task", node)
        made = locate(node["_target_"], KINDS["task"])
        spec = getattr(made, "spec", None)
        if not isinstance(spec, Spec):
            return [f"task._target_={node['_target_']}: has no `spec`, a task.Spec that says what it measures"], set()
        signature, hints = inspect.signature(made), get_type_hints(made.__init__, include_extras=True)
    except (ConfigError, OmegaConfBaseException, TypeError, ValueError, NameError) as error:
        text = str(error).splitlines()[0]
        return [text if isinstance(error, ConfigError) else f"task: {text}"], set()
    top = {name for name in signature.parameters if name not in node and name in cfg}
    mistakes = _check_keys("task", node | dict.fromkeys(top), signature)
    for name in [name for name in signature.parameters if name in node or name in top]:
        key = name if name in top else f"task.{name}"
        try:
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            mistakes.append(f"{key}: {str(error).splitlines()[0]}")
            continue
        problem = _misfit(key, found, hints.get(name))
        mistakes += [problem] if problem and not any(m.startswith(f"task.{name}=") for m in mistakes) else []
    return mistakes, top


def _misfit(key: str, found: Any, hint: Any) -> str | None:
    """One sentence where a plain value is not of an argument's annotation, or outside of its range."""
    rules = [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Range)]
    kinds = set(get_args(hint.__origin__ if rules else hint)) or {hint.__origin__ if rules else hint}
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if kinds <= words.keys():
        whole = isinstance(found, float) and found.is_integer()
        good = type(found) in kinds or (float in kinds and type(found) is int) or (whole and int in kinds)
        if not good:
            return f"{key}={found}: must be {' or '.join(words[kind] for kind in words if kind in kinds)}"
    return next((problem for rule in rules if (problem := range_problem(key, found, rule))), None)


def build(group: str, node: Any, **given: Any) -> Any:
    """The component of a group; ValueError and TypeError of its constructor keep their message.

    What is checked is what is built: Hydra is given the resolved node and may call its checked targets alone."""
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node
    allowed = execution_whitelist([*targets(group, plain), *own()], reset=True)
    try:
        return instantiate(plain, **given, _execution_whitelist_=allowed)
    except InstantiationException as error:
        raise error.__cause__ or error from None


def check(cfg: DictConfig) -> list[str]:
    """Every mistake of a composed configuration, one sentence each; reads no data and trains nothing."""
    try:
        missing = [f"{key}: a value is needed, {key}=..." for key in sorted(OmegaConf.missing_keys(cfg))]
    except OmegaConfBaseException as error:
        return [str(error).splitlines()[0]]
    if missing:
        return missing
    wrong_task, of_task = _check_task(cfg)
    known = {f.name for f in fields(Config)} | of_task
    problems: list[str | None] = [
        f"{key}: no such key{nearest(key, known)}; an argument of a group's component is added as +group.key=value"
        for key in map(str, cfg)
        if key not in known
    ]
    problems += [_folder_problem(key, _select(cfg, key)) for key in ("paths.runs", "paths.cache")]
    problems.append(_uri_problem(_select(cfg, "tracking.uri")))
    if str(_select(cfg, "device")).startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            problems.append(f"device={cfg.device}: torch finds no CUDA device; use device=cpu or device=auto")
    for key, rule in ranges().items():
        try:
            problems.append(range_problem(key, OmegaConf.select(cfg, key, throw_on_missing=True), rule))
        except OmegaConfBaseException as error:
            problems.append(f"{key}: {str(error).splitlines()[0]}")
    found = [problem for problem in problems if problem] + wrong_task
    optimizer = None
    keys = [*ranges(), *of_task]
    wrong = [f"${{{key}}}" for key in keys if any(problem.startswith(f"{key}=") for problem in found)]
    for group in [group for group in GROUPS if group in of_task]:
        if any(key in str(OmegaConf.to_container(cfg[group])) for key in wrong):
            continue  # it has a wrong value from there, and would say the same again in torch's words
        mistakes, component = _check_group(cfg, group, optimizer)
        found += mistakes
        if group == "optim" and component is not None:
            optimizer = component
    return found


def problems(cfg: DictConfig, group: str, attempt: Callable[[Any], None]) -> list[str]:
    """The mistakes of one group. `attempt`: raises what is wrong with its component, once that is built."""
    return _check_group(cfg, group, None, attempt)[0]


URIS = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
"""Places that MLflow keeps its record in."""
TORCH: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        ("T_max", "T_0", "T_mult", "total_iters", "step_size", "step_size_up", "total_steps", "steps_per_epoch"),
        ("a whole number, at least 1", lambda v: v >= 1 and v % 1 == 0),
    ),
    **dict.fromkeys(("step_size_down", "milestones"), ("whole, at least 0", lambda v: v >= 0 and v % 1 == 0)),
    "lr": ("above 0", lambda v: 0 < v < math.inf),
    "momentum": ("0 to below 1", lambda v: 0 <= v < 1),
    "betas": ("two numbers, each 0 to below 1", lambda v: 0 <= v < 1),
    "eps": ("above 0", lambda v: 0 < v < math.inf),
    "weight_decay": ("at least 0", lambda v: 0 <= v < math.inf),
    "eta_min": ("at least 0", lambda v: 0 <= v < math.inf),
}
"""Ranges of torch's optimizers and schedules that their constructors let pass or report without the key."""

_right: dict[str, Any] = {}
"""Groups that this process has found without a mistake: the jobs of a sweep have most of them in common."""


def _check_group(
    cfg: DictConfig, group: str, optimizer: Any, attempt: Callable[[Any], None] | None = None
) -> tuple[list[str], Any]:
    """The group's mistakes, and the component built on nothing: the network without memory, the optimizer of a dummy.

    A range is held by the constructor that it belongs to, so building is the check."""
    import torch

    from segsweep.core.environment import spare_dynamo

    spare_dynamo()
    try:
        node = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        return [f"{group}: {str(error).splitlines()[0]}"], None
    assert isinstance(node, dict)
    target = node.get("_target_")
    if not isinstance(target, str):
        return [f"{group}: no _target_; choose an option, such as {group}={_default(group)}"], None
    try:
        targets(group, node)
        signature = inspect.signature(locate(target, KINDS[group]))
    except (ConfigError, TypeError, ValueError) as error:  # the last two: of what has no signature, or is not callable
        return [f"{error}" if isinstance(error, ConfigError) else f"{group}._target_={target}: {error}"], None
    mistakes = _check_keys(group, node, signature)
    if group in ("optim", "scheduler") and node.get("_partial_") is not True:
        (added,) = GIVEN[group]
        mistakes.append(f"{group}: its YAML needs _partial_: true, as the run adds {added} to {target}")
    if group in ("optim", "scheduler") and target.startswith("torch.") and not mistakes:
        mistakes = _check_ranges(group, node)
    if mistakes or (group == "scheduler" and optimizer is None):
        return mistakes, None
    epochs = _select(cfg, "epochs") if group == "scheduler" else None
    known = f"{group} {node} {type(optimizer)} {epochs}"
    if known in _right:
        return [], _right[known]
    given: dict[str, Any] = {}
    dummy = {"params": [torch.nn.Parameter(torch.zeros(1))]} if group == "optim" else {}
    if group == "scheduler":
        dummy = {"optimizer": optimizer}
    if group == "model":
        given = {"in_channels": 3}
    try:
        with torch.device("meta") if group == "model" else torch.device("cpu"):
            with warnings.catch_warnings():
                if group == "pruner":  # Optuna calls some of its own experimental
                    warnings.simplefilter("ignore")
                component = build(group, node, **given)
            made = component(**dummy) if dummy else component
            if not KINDS[group].is_base_of(type(made)):
                raise ValueError(f"gives {type(made).__name__}; {KINDS[group].what} is needed")
            attempt(made) if attempt else _try(group, made, epochs)
            _right[known] = made if group == "optim" else None
            return [], _right[known]
    except SegsweepError as error:
        return [str(error)], None
    except Exception as error:  # a constructor says in its own way what it does not take
        return [f"{group}: {error}"], None


def _try(group: str, made: Any, epochs: Any) -> None:
    """One step on next to nothing, for what constructors let through: a loss that is no mean, a schedule over zero, or
    one that is not made for as many steps as the run has `epochs`."""
    import torch

    if group == "loss":
        target = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        value = made(torch.zeros(2, 1, 2, 2), target)
        if value.ndim:
            raise ValueError(f"gives {tuple(value.shape)} numbers for a batch; one is needed")
        if not torch.allclose(value, made(torch.zeros(4, 1, 2, 2), target.repeat(2, 1, 1, 1)), rtol=0.2):
            raise ValueError("grows with the batch: the mean over a batch is needed, not the sum")
    elif group == "scheduler":
        if not isinstance(epochs, int) or epochs < 1:
            return  # it is told of itself, and what it makes of a schedule would be told beside it
        _check_steps(made, epochs, epochs)
        with warnings.catch_warnings(action="ignore"):  # the optimizer has made no step: it would import the compiler
            made.step()
        if not 0 <= (lr := made.get_last_lr()[0]) < math.inf:
            raise ValueError(f"makes the learning rate {lr:g} after an epoch; it must stay at 0 or above")


def _check_steps(schedule: Any, steps: int, epochs: int, inside: str = "") -> None:
    """Raise ValueError where a schedule, or one inside it, is not made to be stepped `steps` times, once an epoch."""
    from torch.optim import lr_scheduler as of_torch

    name, instead = f"{type(schedule).__name__}{inside}", "use scheduler=cosine, poly or constant"
    stepped = f"and a schedule is stepped once an epoch, {steps} times with epochs={epochs}"
    if isinstance(schedule, of_torch.ReduceLROnPlateau):
        raise ValueError(f"{name} steps by a metric, and a run gives its schedule none yet; {instead}")
    if isinstance(schedule, of_torch.OneCycleLR) and (planned := schedule.total_steps) != steps:
        end = f"it would stop at step {steps}" if planned > steps else f"it has no step after {planned}"
        total = "${epochs}" if steps == epochs else steps
        raise ValueError(
            f"{name} plans {planned} steps, {stepped}: {end}; {instead}, or total_steps={total} for one step an epoch"
        )
    if isinstance(schedule, of_torch.CyclicLR) and (cycle := schedule.total_size) > steps:
        raise ValueError(
            f"{name} has a cycle of {cycle:g} steps, {stepped}: it would stop within the first; {instead}, or "
            f"step_size_up and step_size_down that make {steps} at most"
        )
    inside = f" in {name}"
    if isinstance(schedule, of_torch.ChainedScheduler):
        for part in schedule._schedulers:
            _check_steps(part, steps, epochs, inside)
    elif isinstance(schedule, of_torch.SequentialLR):
        bounds = [0, *(min(bound, steps) for bound in schedule._milestones), steps]
        for part, start, stop in zip(schedule._schedulers, bounds, bounds[1:], strict=False):
            _check_steps(part, stop - start, epochs, inside)


def _folder_problem(key: str, text: Any) -> str | None:
    if not text:
        return f"{key} is empty: a folder is needed"
    folder = Path(text)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        return f"{key}={text}: {there} is a file; a folder is needed"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{key}={text}: {there} cannot be written to"


def _uri_problem(uri: Any) -> str | None:
    scheme = str(uri).partition(":")[0].partition("+")[0]
    if uri is None or (":" in str(uri) and scheme in URIS):
        return None
    hint = "; MLflow keeps no records in plain files any more" if scheme == "file" or ":" not in str(uri) else ""
    return f"tracking.uri={uri}: must begin with {', '.join(f'{s}:' for s in URIS)}{hint}; or tracking=none"


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _check_keys(group: str, node: Mapping[Any, Any], signature: inspect.Signature) -> list[str]:
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    settable = takes - GIVEN.get(group, set())
    keys = {key for key in node if key not in ("_target_", "_partial_", "_convert_", "_recursive_")}
    unknown = [
        f"{group}.{key}: {node['_target_']} takes no such argument{nearest(key, settable)}; "
        f"it takes {', '.join(sorted(settable))}"
        for key in sorted(keys - settable)
    ]
    unknown += [
        f"{group}.{p.name}={node[p.name]}: must be a number"
        for p in parameters
        if isinstance(node.get(p.name), str) and _is_number(p)
    ]
    needed = {p.name for p in parameters if p.default is p.empty and p.name in settable}
    return unknown + [f"{group}.{key}: a value is needed" for key in sorted(needed - keys)]


def _check_ranges(group: str, node: Mapping[Any, Any]) -> list[str]:
    found = []
    for key, (rule, good) in TORCH.items():
        given = node.get(key)
        if key == "total_iters" and given == 0 and node.get("factor") == 1:
            continue  # ConstantLR that changes nothing
        values = given if isinstance(given, list) else [given]
        pair = len(values) == 2 and all(isinstance(v, int | float) for v in values)
        if (key == "betas" and key in node and not pair) or any(
            isinstance(v, int | float) and not good(v) for v in values
        ):
            found.append(f"{group}.{key}={given}: must be {rule}")
    return found


def _is_number(parameter: inspect.Parameter) -> bool:
    kinds = str(parameter.annotation)
    numeric = isinstance(parameter.default, int | float) or "int" in kinds or "float" in kinds
    return numeric and "str" not in kinds and not isinstance(parameter.default, bool)


def _default(group: str) -> str:
    return {"model": "unet", "loss": "bce_dice", "optim": "adam", "data": "phantom", "split": "patient"}.get(
        group, "constant" if group == "scheduler" else "none"
    )
