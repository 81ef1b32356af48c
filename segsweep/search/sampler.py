"""The next point of a search: the sampler that the preset names, and how it comes to points that are not known yet."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from hydra.errors import CompactHydraException, HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler

from segsweep.search.space import Space

DRAWS = 10
"""Points in a row that the study has already, up to which the sampler's model is still asked for the next."""


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
        made = instantiate(given, seed=own, _execution_whitelist_=allowed)
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
