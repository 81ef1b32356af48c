"""Real data for the tests: eight patients of LGG, restored to a git-ignored folder from `../shared/lgg` if it is there.

Where the folder is there and broken the tests fail; only where there is none are they skipped.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import forked
import pytest

from segsweep.config.start import start

# Before anything imports torch, and for all processes that tests start: networks of a few thousand parameters are
# slower on two threads than on one, and the suite runs on every core already.
os.environ["OMP_NUM_THREADS"] = "1"

# Nor does a test write to, or clean, what is the user's own. Of one process of pytest or of several: the first is told.
MADE = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["SEGSWEEP_CACHE"] = MADE = tempfile.mkdtemp(prefix="segsweep-tests-")

start()
forked.install()

REPOSITORY = Path(__file__).resolve().parent.parent
PACKED = REPOSITORY.parent / "shared" / "lgg"


UNTIL = float(os.environ.get("SEGSWEEP_UNTIL", "inf"))
"""Seconds since 1970 at which `make quick` is over."""


def pytest_collection_modifyitems(items):
    """Files with slow tests first, and of the others those with many, as they are long, and with several processes what
    is long must not begin last; in `make quick` as they were given."""
    if "SEGSWEEP_UNTIL" in os.environ:
        return
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -count[item.path]))


def pytest_runtest_setup():
    if time.time() > UNTIL:
        pytest.skip("no time left in this minute: `make test` runs it")


def pytest_unconfigure():
    if MADE:
        shutil.rmtree(MADE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _session():
    """Each test has one of its own: nobody is told of events, and nobody has asked to stop."""
    from segsweep.core.session import Session, begin

    here = begin(Session())
    yield
    if here.copier:
        here.copier.close()
    if here.pool:
        here.pool.close()
    begin(Session())  # a module's fixture is made before the next test's own, and knows nothing of this one's


@pytest.fixture(scope="session")
def lgg() -> Path:
    """Folder with `kaggle_3m/` of eight patients. Not to be written to: copy what is to be broken."""
    if not PACKED.exists():
        pytest.skip(f"real data not at hand: no {PACKED}")
    folder = REPOSITORY / "tests" / ".lgg"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(PACKED / "unpack.py"), str(folder), "--patients", "8"]
    with open(folder / ".lock", "w") as lock:  # test processes side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{PACKED} is there and cannot be unpacked:\n{done.stdout}{done.stderr}"
    return folder


@pytest.fixture
def allow(monkeypatch):
    """`allow("mine.*")`: SEGSWEEP_ALLOW for this process, which reads it once, and for those that it starts."""
    from segsweep.config import whitelist

    def set_to(packages: str) -> None:
        monkeypatch.setenv("SEGSWEEP_ALLOW", packages)
        whitelist.own.cache_clear()

    yield set_to
    whitelist.own.cache_clear()


@pytest.fixture(scope="session")
def made_store(tmp_path_factory):
    """Making a store takes seconds: one is made, and copied."""
    folder = tmp_path_factory.mktemp("store")
    from segsweep.tracking import store

    store.connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def uri(made_store, tmp_path):
    (tmp_path / "mlruns").mkdir()
    for file in made_store.parent.glob("mlflow.db*"):
        shutil.copy(file, tmp_path / "mlruns")
    return f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.fixture
def through(tmp_path, monkeypatch, capfd):
    """`through(source, *arguments)`: a module that goes through a door, in this process; its exit code, what it printed
    and the module. Hydra forgets afterwards what it was told."""
    import copy
    import importlib
    import itertools
    import logging

    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins

    Plugins.instance()  # some of which tell Hydra of options, once in a process
    before = copy.deepcopy(ConfigStore.instance().repo)
    root = logging.getLogger()
    handlers = list(root.handlers)
    numbers = itertools.count()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(source: str, *arguments: str, call: str = "start"):
        name = f"door_{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        code, module = 0, None
        try:
            module = importlib.import_module(name)
            getattr(module, call)()
        except SystemExit as end:
            code = end.code or 0
        return code, "".join(capfd.readouterr()), module

    yield run
    GlobalHydra.instance().clear()
    ConfigStore.instance().repo = before
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)  # it writes to a stream that is gone
        handler.close()
