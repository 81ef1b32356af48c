"""Real data for the tests: eight patients of LGG, restored to a git-ignored folder from `../shared/lgg` if it is there.

Where the folder is there and broken the tests fail; only where there is none are they skipped.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from segsweep.config.start import start

# Before anything imports torch, and for all processes that tests start: networks of a few thousand parameters are
# slower on two threads than on one, and the suite runs on every core already.
os.environ["OMP_NUM_THREADS"] = "1"

start()

REPOSITORY = Path(__file__).resolve().parent.parent
PACKED = REPOSITORY.parent / "shared" / "lgg"


def pytest_collection_modifyitems(items):
    """Files with slow tests first: with several processes what is long must not begin last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


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
    from segsweep.config import components

    def set_to(packages: str) -> None:
        monkeypatch.setenv("SEGSWEEP_ALLOW", packages)
        components.own.cache_clear()

    yield set_to
    components.own.cache_clear()


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
