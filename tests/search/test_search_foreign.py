"""A study's storage may be anybody's: what is in it is read, and runs nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import pytest
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import CmaEsSampler
from optuna.trial import TrialState, create_trial
from toy_search import Batches, search, study

from segsweep.core.session import session
from segsweep.search.sampler import guarded

LINES = ["optim.lr=interval(0.001,0.1)", "optim.weight_decay=interval(0.0,0.1)", "optim=adamw"]
INTERVALS = {"optim.lr": FloatDistribution(0.001, 0.1), "optim.weight_decay": FloatDistribution(0.0, 0.1)}
PUBLISHED = ["hydra.sweeper.study_name=s", "hydra.sweeper.direction=maximize"]


class Attack:
    """Pickled, it makes a folder where it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


def ask(url: str, folder: Path, published: bool, *overrides: str, trials: int) -> Any:
    if published:
        given = [*PUBLISHED, f"hydra.sweeper.storage={url}", f"hydra.sweeper.n_trials={trials}"]
        return search(folder, *given, *overrides, preset=None, launcher=Batches(folder))
    given = [
        "search.study=s",
        f"search.storage={url}",
        f"search.trials={trials}",
        "hydra.sweeper.sampler.n_startup_trials=1",
    ]
    return search(folder, *given, *overrides, preset="cmaes")


def plant(url: str, **attributes: str) -> None:
    made = create_trial(
        state=TrialState.COMPLETE, value=0.5, params={"optim.lr": 0.05, "optim.weight_decay": 0.05},
        distributions=INTERVALS, system_attrs=attributes,
    )  # fmt: skip
    study(url).add_trial(made)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("published", [False, True])
def test_a_pickle_that_somebody_has_put_in_the_place_of_cma_es_state_is_refused(url, tmp_path, published):
    sampler = ["hydra/sweeper/sampler=cmaes"] if published else []
    ask(url, tmp_path / "a", published, *sampler, *LINES, trials=1)
    plant(url, **{"cma:optimizer:0": pickle.dumps(Attack(tmp_path / "mark")).hex()})
    with pytest.raises(HydraException, match=r"Trial 1 of the study .*it names posix.mkdir.*somebody else"):
        ask(url, tmp_path / "b", published, *sampler, *LINES, trials=4)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["", "no hex", pickle.dumps(np.zeros(3)).hex(), pickle.dumps(3).hex()])
def test_what_is_no_optimizer_is_told_too(url, tmp_path, text):
    ask(url, tmp_path / "a", False, *LINES, trials=1)
    plant(url, **{"cma:optimizer:0": text})
    with pytest.raises(HydraException, match="Trial 1 of the study holds something else"):
        ask(url, tmp_path / "b", False, *LINES, trials=4)


BOUNDS = {"mean": np.full(2, 0.5), "sigma": 0.2, "bounds": np.array([[0.0, 1.0], [0.0, 1.0]]), "seed": 1}


@pytest.mark.parametrize("protocol", [pickle.DEFAULT_PROTOCOL, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    "made",
    [cmaes.CMA(**BOUNDS), cmaes.CMA(**BOUNDS, lr_adapt=True), cmaes.SepCMA(**BOUNDS),
     cmaes.CMAwM(**BOUNDS, steps=np.array([0.0, 0.1]))],
)  # fmt: skip
def test_the_state_of_each_kind_of_cma_es_is_read_whole(made, protocol):
    def asked(optimizer: Any) -> np.ndarray:
        found = optimizer.ask()
        return found[1] if isinstance(found, tuple) else found

    made.tell([(asked(made), np.float64(number)) for number in range(made.population_size)])
    sampler = guarded(CmaEsSampler())
    pickled = pickle.dumps(made, protocol=protocol)
    trial = create_trial(value=0.0, system_attrs=sampler._split_optimizer_str(pickled.hex()))
    both = sampler._restore_optimizer([trial]), pickle.loads(pickled)
    for optimizer in both:
        optimizer._rng.seed(3)
    np.testing.assert_array_equal(*map(asked, both))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_published_sweeper_leaves_out_what_somebody_else_has_queued(url, tmp_path):
    said: list[str] = []
    session().sink = lambda event: said.append(event.get("text", ""))
    ask(url, tmp_path / "a", True, *LINES, trials=1)
    for key, value in (("hydra.job.env_set.PATH", "/tmp"), ("+model._target_", "os.system"), ("optim", "sgd")):
        kind = CategoricalDistribution([value, "other"])
        study(url).add_trial(create_trial(state=TrialState.WAITING, params={key: value}, distributions={key: kind}))
    study(url).enqueue_trial({"optim.lr": 7.0})
    study(url).enqueue_trial({"loss": "dice"})
    study(url).enqueue_trial({"optim.lr": 0.02})
    launcher = ask(url, tmp_path / "b", True, *LINES, trials=2)
    jobs = [path.read_text() for path in launcher.folder.glob("*/job.json")]
    assert len(jobs) == 2
    assert not any(word in job for job in jobs for word in ("PATH", "_target_", "sgd", "7.0", "loss="))
    assert sum('"optim.lr=0.02"' in job for job in jobs) == 1
    assert len([text for text in said if "which somebody has queued" in text]) == 5
