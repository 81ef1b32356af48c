"""The composer of a sweep's jobs: it gives what Hydra gives, whatever a job asks for, and asks Hydra once a kind."""

import itertools
import random
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.compose import KINDS, Composer, Own, bare
from segsweep.config.schema import conf_dir, resolved

ASKED = ["data.patients=6", "tracking=none", "hydra.sweep.dir=somewhere"]


@pytest.fixture
def master() -> Any:
    with initialize_config_dir(str(conf_dir())):
        yield compose("config", overrides=[*ASKED, "hydra/launcher=local"], return_hydra_config=True)


class Counted:
    """Hydra's loader, with its number of compositions."""

    def __init__(self) -> None:
        self.real, self.calls = GlobalHydra.instance().config_loader(), 0

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.calls += 1
        return self.real.load_sweep_config(master, overrides)


def everything(config: DictConfig) -> tuple[Any, Any, list[Any]]:
    """The text as written, the values with their types, and each node's class and flags."""
    nodes: list[Any] = []

    def walk(node: Any) -> None:
        nodes.append((type(node), node._metadata.key, node._metadata.ref_type, dict(node._metadata.flags or {})))
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            for key in node:
                walk(node._get_node(key))

    walk(config)
    task = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_yaml(config), repr(OmegaConf.to_container(task, resolve=True)), nodes


PAIRS = {
    "numbers": (["optim.lr=0.1", "seed=1"], ["optim.lr=1e-3", "seed=2"], 1),
    "a whole number where a fraction was": (["optim.lr=0.1"], ["optim.lr=1"], 1),
    "nothing": (["clip_norm=1.0"], ["clip_norm=null"], 1),
    "something after nothing": (["clip_norm=null"], ["clip_norm=2"], 1),
    "truth": (["report=true"], ["report=false"], 1),
    "text": (["tracking.experiment=a"], ["tracking.experiment='b c: [1]'"], 1),
    "an interpolation": (["epochs=3"], ["epochs=${seed}"], 1),
    "a number after an interpolation": (["epochs=${seed}"], ["epochs=3"], 1),
    "what others refer to": (["epochs=3", "seed=1"], ["epochs=7", "seed=1"], 1),
    "groups": (["model=unet", "seed=1"], ["model=r2unet", "seed=1"], 2),
    "a group and its value": (["optim=sgd", "optim.lr=1"], ["optim=adam", "optim.lr=2"], 2),
    "a nested value": (["split.test=0.3"], ["split.test=0.25"], 1),
    "a list": (["optim.betas=[0.5,0.9]"], ["optim.betas=[0.6,0.9]"], 2),
    "a whole mapping": (["split={val: 0.2}"], ["split={val: 0.3}"], 2),
    "a value that is deleted then": (["split.val=0.2", "~split.val"], ["split.val=0.3", "~split.val"], 2),
    "a value, deleted with what is around it": (["search.seed=2", "~search"], ["search.seed=3", "~search"], 2),
    "a value and its group after it": (["optim.lr=0.2", "optim=sgd"], ["optim.lr=0.3", "optim=sgd"], 1),
    "a value and the mapping around it": (
        ["split.val=0.2", "split={val: 0.3}"], ["split.val=0.25", "split={val: 0.3}"], 2,
    ),
    "additions": (["+seen.a=1", "seed=1"], ["+seen.a=2", "seed=1"], 2),
    "forced": (["++optim.extra=1", "seed=1"], ["++optim.extra=1", "seed=2"], 1),
    "deletions": (["~clip_norm", "seed=1"], ["~clip_norm", "seed=2"], 1),
    "an experiment": (["experiment=base_unet", "seed=1"], ["experiment=base_r2unet", "seed=1"], 2),
    "order": (["seed=1", "epochs=2"], ["epochs=2", "seed=1"], 2),
    "Hydra's own": (["hydra.job.chdir=false", "seed=1"], ["hydra.job.chdir=true", "seed=1"], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_job_has_the_configuration_that_hydra_composes(name, master):
    first, second, compositions = PAIRS[name]
    loader = Counted()
    composer = Composer(loader, master)  # type: ignore[arg-type]
    for asked in (first, second, first):
        wanted = outcome(lambda asked=asked: everything(loader.real.load_sweep_config(master, asked)))
        assert outcome(lambda asked=asked: everything(composer(asked))) == wanted
    assert loader.calls >= compositions
    if compositions == 1:
        assert loader.calls == 1


@pytest.mark.parametrize("name", PAIRS)
def test_its_own_part_and_its_values_are_those_of_that_configuration(name, master):
    first, second, _ = PAIRS[name]
    composer = Composer(GlobalHydra.instance().config_loader(), master)
    for asked in (first, second):
        wanted = outcome(lambda asked=asked: own_of(composer.loader.load_sweep_config(master, asked)))
        assert outcome(lambda asked=asked: values_of(composer.own(asked))) == wanted


def own_of(config: DictConfig) -> Any:
    own, choices = bare(config)
    return repr(resolved(own)), OmegaConf.to_yaml(own), choices


def values_of(own: Own) -> Any:
    return repr(own.values or resolved(own.cfg)), OmegaConf.to_yaml(own.cfg), own.choices


def test_what_refers_to_a_value_follows_it_by_whatever_steps(master):
    fixed = ["+near={a: '${epochs}', b: '${oc.env:HOME}'}"]
    fixed += ["+far={a: '${near.a}', b: ['x ${far.a}', '${near}'], c: '${.a}', d: '${given:clip_norm,1,2}'}"]
    loader = Counted()
    composer, draw = Composer(loader, master), random.Random(0)  # type: ignore[arg-type]
    options = {"epochs": (3, 4, 9), "clip_norm": ("null", 1), "near.b": (1, "'two words'", "null"), "seed": (0, 1)}
    quick = 0
    for _ in range(12):
        asked = [*fixed, *(f"{key}={draw.choice(values)}" for key, values in options.items())]
        found = composer.own(asked)
        quick += found.values is not None
        assert values_of(found) == own_of(loader.real.load_sweep_config(master, asked))
    assert (loader.calls, quick) == (1, 12)


NAMED = {
    "given of a key that a value names": ("{w: clip_norm, y: '${given:${x.w},1,2}'}", "clip_norm", ("null", 1)),
    "several of a key that a value names": ("{w: clip_norm, y: '${several:${x.w},many,one}'}", "clip_norm", (5, 1)),
    "a key of which a value is a part": ("{a: clip, y: '${given:${x.a}_norm,1,2}'}", "clip_norm", ("null", 1)),
    "a key with a dash": ("{my-key: '${clip_norm}', y: '${given:x.my-key,1,2}'}", "clip_norm", ("null", 1)),
    "escaped braces": ("{y: '${clip_norm}'}", "clip_norm", (5, r"$\{seed\}")),
    "a key in brackets": ("{a: [1, 2], y: '${x.a[0]}'}", "x.a.0", (3, 4)),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_refers_in_ways_that_are_not_read_off_its_text_follows_too(name, master):
    """~0.5 s each: Hydra composes five times."""
    added, key, values = NAMED[name]
    composer = Composer(GlobalHydra.instance().config_loader(), master)
    for value, seed in ((values[0], 1), (values[1], 2), (values[0], 2)):
        asked = [f"+x={added}", f"{key}={value}", f"seed={seed}"]
        wanted = outcome(lambda asked=asked: own_of(composer.loader.load_sweep_config(master, asked)))
        assert outcome(lambda asked=asked: values_of(composer.own(asked))) == wanted


def test_what_hydra_composes_for_its_own_part_is_composed_once(master):
    loader = Counted()
    composer = Composer(loader, master)  # type: ignore[arg-type]
    for number, asked in enumerate((["split={val: 0.2}"], ["split={val: 0.3}"]), 1):
        assert composer.own(asked).values
        assert composer(asked).split.val == composer.own(asked).cfg.split.val
        assert loader.calls == number


def test_after_a_value_that_could_not_be_looked_up_nothing_is_left_of_it(master, monkeypatch):
    composer = Composer(GlobalHydra.instance().config_loader(), master)
    composer.own(["epochs=3", "seed=1"])
    real = OmegaConf.to_container

    def fails(node, **options):
        if isinstance(node, DictConfig) and options.get("resolve"):
            raise RuntimeError("of somebody's own")
        return real(node, **options)

    asked = [["+x={y: '${split}'}", f"split.val={value}"] for value in (0.1, 0.2, 0.3)]
    composer.own(asked[0])
    with monkeypatch.context() as broken:
        broken.setattr(OmegaConf, "to_container", fails)
        with pytest.raises(RuntimeError):
            composer.own(asked[1])
    for again in (asked[1], asked[2]):
        assert values_of(composer.own(again)) == own_of(composer.loader.load_sweep_config(master, again))


def test_values_of_one_job_are_not_changed_by_the_next(master):
    composer = Composer(Counted(), master)  # type: ignore[arg-type]
    composer(["optim.lr=1"])
    first, second = composer.own(["optim.lr=2"]), composer.own(["optim.lr=3"])
    assert first.values
    assert second.values
    assert (first.values["optim"]["lr"], second.values["optim"]["lr"]) == (2, 3)


def outcome(what: Any) -> Any:
    try:
        return what()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("wrong", ["optim.lrr=1", "optim.lr.x=1", "seed=[", "split=3", "nothing=1", "seed.x=2", "@=1"])
def test_a_mistake_is_told_in_hydras_words(wrong, master):
    loader = Counted()
    composer = Composer(loader, master)  # type: ignore[arg-type]
    composer(["seed=1"])
    for asked in (["seed=2", wrong], [wrong], ["seed=3", wrong]):
        told = outcome(lambda asked=asked: everything(composer(asked)))
        assert told == outcome(lambda asked=asked: everything(loader.real.load_sweep_config(master, asked)))


def test_what_one_job_does_to_its_configuration_no_other_sees(master):
    composer = Composer(Counted(), master)  # type: ignore[arg-type]
    for seed in (1, 2, 3):
        config = composer([f"seed={seed}"])
        assert (config.optim.lr, config.seed) == (0.002, seed)
        config.optim.lr = 7.0


def test_a_grid_is_composed_once_for_each_choice_of_its_groups(master):
    loader = Counted()
    composer = Composer(loader, master)  # type: ignore[arg-type]
    grid = itertools.product(("unet", "r2unet"), ("sgd", "adam"), (0.1, 0.01, 0.001), range(5))
    for model, optim, lr, seed in grid:
        config = composer([f"model={model}", f"optim={optim}", f"optim.lr={lr}", f"seed={seed}"])
        assert (config.hydra.runtime.choices.optim, config.optim.lr, config.seed) == (optim, lr, seed)
    assert loader.calls == 4


@pytest.mark.slow
def test_no_more_kinds_are_kept_than_fit_in_memory(master):
    composer = Composer(Counted(), master)  # type: ignore[arg-type]
    for number in range(KINDS + 3):
        composer([f"+seen.x{number}=1"])
    assert len(composer.known) == KINDS
