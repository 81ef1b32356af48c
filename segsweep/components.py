"""The only reader of `_target_`: holds every group against its target's signature, and builds it.

conf/ is the registry: a component is any class or function that the whitelist allows, and its keyword arguments are its
schema. A configuration from elsewhere therefore cannot call anything but what is listed here.
"""

import importlib
import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import execution_whitelist, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config import GROUPS, Config, range_problem, ranges
from segsweep.errors import SegsweepError, nearest

ALLOW = "SEGSWEEP_ALLOW"
PRUNERS = "optuna.pruners.*"
GIVEN = {"model": {"in_channels"}, "optim": {"params"}, "scheduler": {"optimizer"}}
"""Arguments that the run itself passes."""


HYDRAS = ("segsweep.sweep.SweepCallback", "logging.StreamHandler", "logging.FileHandler", "logging.Formatter")
"""What Hydra calls for itself, and a component of a run may not."""


def whitelist() -> list[str]:
    """Targets that a component may be. One's own package: SEGSWEEP_ALLOW=mypackage.* in the environment, which a
    configuration from elsewhere cannot set."""
    own = [entry.strip() for entry in os.environ.get(ALLOW, "").split(",") if entry.strip()]
    return ["segsweep.models.*", "segsweep.losses.*", "segsweep.data.*", "torch.nn.*", "torch.optim.*", PRUNERS, *own]


def allowed(target: str) -> bool:
    return any(target == entry or (entry.endswith(".*") and target.startswith(entry[:-1])) for entry in whitelist())


def build(node: DictConfig, **given: Any) -> Any:
    """The component of a group; ValueError and TypeError of its constructor keep their message."""
    try:
        return instantiate(node, **given, _execution_whitelist_=execution_whitelist(whitelist(), reset=True))
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
    known = {f.name for f in fields(Config)}
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
    found = [problem for problem in problems if problem]
    optimizer = None
    wrong = [f"${{{key}}}" for key in ranges() if any(problem.startswith(f"{key}=") for problem in found)]
    for group in GROUPS:
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

    from segsweep.environment import spare_dynamo

    spare_dynamo()
    try:
        node = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        return [f"{group}: {str(error).splitlines()[0]}"], None
    assert isinstance(node, dict)
    target = node.get("_target_")
    if not isinstance(target, str):
        return [f"{group}: no _target_; choose an option, such as {group}={_default(group)}"], None
    if not allowed(target):
        return [
            f"{group}._target_={target}: not allowed to be called; allowed are {', '.join(whitelist())}; "
            f"for your own package set {ALLOW}=package.* in the environment"
        ], None
    try:
        module, _, name = target.rpartition(".")
        signature = inspect.signature(getattr(importlib.import_module(module), name))
    except Exception as error:  # importing somebody's module can raise anything
        return [f"{group}._target_={target}: cannot be imported: {error}"], None
    mistakes = _check_keys(group, node, signature)
    if group in ("optim", "scheduler") and node.get("_partial_") is not True:
        (added,) = GIVEN[group]
        mistakes.append(f"{group}: its YAML needs _partial_: true, as the run adds {added} to {target}")
    if group in ("optim", "scheduler") and target.startswith("torch.") and not mistakes:
        mistakes = _check_ranges(group, node)
    if mistakes or (group == "scheduler" and optimizer is None):
        return mistakes, None
    known = f"{group} {node} {type(optimizer)}"
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
                component = build(cfg[group], **given)
            made = component(**dummy) if dummy else component
            attempt(made) if attempt else _try(group, made)
            _right[known] = made if group == "optim" else None
            return [], _right[known]
    except SegsweepError as error:
        return [str(error)], None
    except Exception as error:  # a constructor says in its own way what it does not take
        return [f"{group}: {error}"], None


def _try(group: str, made: Any) -> None:
    """One step on next to nothing, for what constructors let through: a loss that is no mean, a schedule over zero."""
    import torch

    if group == "loss":
        target = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        value = made(torch.zeros(2, 1, 2, 2), target)
        if value.ndim:
            raise ValueError(f"gives {tuple(value.shape)} numbers for a batch; one is needed")
        if not torch.allclose(value, made(torch.zeros(4, 1, 2, 2), target.repeat(2, 1, 1, 1)), rtol=0.2):
            raise ValueError("grows with the batch: the mean over a batch is needed, not the sum")
    elif group == "scheduler":
        with warnings.catch_warnings(action="ignore"):  # the optimizer has made no step: it would import the compiler
            made.step()
        if not 0 <= (lr := made.get_last_lr()[0]) < math.inf:
            raise ValueError(f"makes the learning rate {lr:g} after an epoch; it must stay at 0 or above")


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
