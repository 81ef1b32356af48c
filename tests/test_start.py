"""Importing changes nothing in a process; what has to be changed once, `start` changes, wherever a job runs."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from segsweep.config.schema import conf_dir
from segsweep.config.start import Started
from segsweep.sweeps.job import job

PACKAGE = Path(__file__).resolve().parents[1] / "segsweep"
MODULES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))
STATE = """
import atexit, os, signal, sys, threading
import hydra_plugins, optuna, torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

def state():
    resolvers = sorted(name for name in ("part_of", "sweep_name") if OmegaConf.has_resolver(name))
    return {
        "resolvers": resolvers, "schemas": sorted(ConfigStore.instance().repo), "environment": dict(os.environ),
        "plugins": list(hydra_plugins.__path__), "optuna": optuna.logging.get_verbosity(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "exit": atexit._ncallbacks(), "threads": threading.active_count(), "steps": id(torch.optim.SGD.step),
    }
"""


def run(code: str, *arguments: str) -> str:
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}  # this process has started
    done = subprocess.run([sys.executable, "-c", STATE + code, *arguments], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORTED = """
import importlib
importlib.import_module("segsweep")
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
print({key: (before[key], after[key]) for key in after if before[key] != after[key]})
from segsweep.config.start import start
start()
started = state()
print(sorted(key for key in after if started[key] != after[key]))
"""


def test_importing_changes_nothing_and_starting_does():
    """What other libraries change when they are imported has been changed before."""
    own = [name for name in MODULES if "hydra_plugins" not in name and not name.endswith(("__main__", "__init__"))]
    assert len(own) > 60
    others = "import matplotlib.figure, matplotlib.backends.backend_agg, scipy.stats, mlflow, rich, sqlalchemy\n"
    imported, started = run(others + IMPORTED, *own).splitlines()
    assert imported == "{}"
    assert started == "['environment', 'plugins', 'resolvers', 'schemas']"


UNPICKLED = """
import pickle
task, config = pickle.load(open(sys.argv[1], "rb"))
print(config.hydra.sweep.dir, task.__module__)
"""


@pytest.mark.parametrize(("task", "well"), [(Started(job), True), (job, False)])
def test_where_a_job_is_unpickled_its_folder_has_a_name_before_it_is_called(tmp_path, task, well):
    """As launchers of others do, which know nothing of segsweep; a plain function would leave them without."""
    with initialize_config_dir(str(conf_dir())):
        config = compose("config", overrides=["paths.runs=here"], return_hydra_config=True)
    folder = config.hydra.sweep.dir
    assert isinstance(config, DictConfig)
    (tmp_path / "job").write_bytes(pickle.dumps((task, config)))
    if well:
        assert run(UNPICKLED, str(tmp_path / "job")).split() == [folder, "segsweep.sweeps.job"]
    else:
        with pytest.raises(AssertionError, match="sweep_name"):
            run(UNPICKLED, str(tmp_path / "job"))
