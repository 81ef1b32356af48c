"""The next point of a search: the sampler that the preset names, and how it comes to points that are not known yet."""

import functools
import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from hydra.errors import CompactHydraException, HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, PartialFixedSampler, RandomSampler
from optuna.trial import FrozenTrial

from segsweep.core.errors import SegsweepError, printable
from segsweep.search.space import Space

DRAWS = 10
"""Points in a row that the study has already, up to which the sampler's model is still asked for the next."""
OPTIMIZERS = {("cmaes._cma", "CMA"), ("cmaes._sepcma", "SepCMA"), ("cmaes._cmawm", "CMAwM")}
NUMBERS = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.numeric", "_frombuffer")}
NUMBERS |= {(f"numpy.{core}.multiarray", made) for core in ("_core", "core") for made in ("scalar", "_reconstruct")}


class _Restored(pickle.Unpickler):
    """Of what is pickled calls no more than an optimizer of cmaes, and the arrays and numbers in it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in OPTIMIZERS | NUMBERS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def guarded(sampler: Any) -> Any:
    """CMA-ES keeps its optimizer pickled in the study's storage, where everybody may write who can reach it: the
    sampler, which reads it by `_Restored` alone."""
    if isinstance(sampler, CmaEsSampler):
        sampler._restore_optimizer = functools.partial(_restore, sampler)  # type: ignore[method-assign]
    return sampler


def _restore(sampler: CmaEsSampler, completed: list[FrozenTrial]) -> Any:
    """As Optuna's own. Raises SegsweepError where what is there is no optimizer."""
    for trial in reversed(completed):
        parts = {k: text for k, text in trial.system_attrs.items() if k.startswith(sampler._attr_key_optimizer)}
        if parts:
            try:
                found = _Restored(io.BytesIO(bytes.fromhex(sampler._concat_optimizer_attrs(parts)))).load()
                if (type(found).__module__, type(found).__name__) not in OPTIMIZERS:
                    raise ValueError(f"it is of the type {type(found).__name__}")
                return found
            except Exception as error:  # of a pickle that anybody can have made
                raise SegsweepError(
                    f"Trial {trial.number} of the study holds something else in the place of CMA-ES' state "
                    f"({printable(error)}), and is not read: somebody else has written to this storage. Search in "
                    "another study, or with another sampler"
                ) from error
    return None


def make_sampler(
    settings: DictConfig, space: Space, seed: int, known: Callable[[], list[dict[str, Any]]]
) -> Callable[[int, int], BaseSampler]:
    """(seed of a trial, points in a row that were known already) -> its sampler.

    `settings`: of hydra.sweeper.sampler; `seed`: of the search; `known`: the points that the study has. Where what TPE
    holds for best is known already, it would say the same again: of its candidates the one with the best ratio of
    densities wins, and among a few values that is always the same. So it is asked for a single one, a draw from the
    density of what was good; and in the end a point is drawn at random. Raises CompactHydraException.
    """
    node = {key: v for key, v in OmegaConf.to_container(settings).items() if v is not None}  # type: ignore[union-attr]
    target = str(node.get("_target_"))
    node.pop("seed", None)  # search.seed is the one
    tpe = target.endswith(".TPESampler")
    if tpe:
        node["constant_liar"] = True  # what still runs is taken for bad, so that two workers do not go to one place
    grid = None
    if target.endswith(".GridSampler"):
        if math.isinf(space.size):
            raise CompactHydraException(
                "hydra/sweeper/sampler=grid: needs values, not an interval or a condition, for every key; "
                "use +search=tpe or +search=random"
            )
        grid = space.choices()

    def make(own: int, repeats: int = 0) -> BaseSampler:
        if repeats and grid is None and (repeats > DRAWS or not tpe):
            return _unknown(own, space, known)
        given = node | ({"n_ei_candidates": 1} if repeats and grid is None else {})
        if target.endswith((".QMCSampler", ".GridSampler")):  # one sequence of points, which all trials share
            own = seed
        allowed = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
        made = guarded(instantiate(given, seed=own, _execution_whitelist_=allowed))
        return made(grid) if isinstance(made, functools.partial) else made

    try:
        make(0)
    except (HydraException, ImportError, ValueError, TypeError) as error:  # the last two are Optuna's own
        raise CompactHydraException(f"hydra.sweeper.sampler: {error.__cause__ or error}") from None
    return make


def _unknown(seed: int, space: Space, known: Callable[[], list[dict[str, Any]]]) -> BaseSampler:
    """A random point, in a space that ends one that the study does not have."""
    random = RandomSampler(seed=seed)
    if math.isinf(space.size):
        return random
    choices, draw = space.choices(), np.random.default_rng(seed)
    whole = [params for params in known() if params.keys() == choices.keys()]  # not what is just being asked for
    if len(whole) >= space.size:
        return random
    while (point := {key: given[int(draw.integers(len(given)))] for key, given in choices.items()}) in whole:
        pass
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return PartialFixedSampler(point, random)
