"""`make quick` runs the tests that a change is most likely to break, for a minute; and the suite leaves alone what is
its reader's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import quick


@pytest.fixture(scope="module")
def files():
    return quick.files()


PLANTED = {
    "segsweep/core/__init__.py": "",
    "segsweep/core/low.py": "",
    "segsweep/middle.py": "def f():\n    from .core.low import name",
    "segsweep/__main__.py": "import segsweep.middle",
    "tests/toys.py": "import segsweep.middle",
    "tests/test_low.py": "from segsweep.core import low",
    "tests/part/test_toys.py": "import toys; conf = 'part.yaml'",
    "tests/test_command.py": 'subprocess.run([sys.executable, "-m", "segsweep"])',
    "tests/test_other.py": "import segsweep.core",
}


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [
        ({"segsweep/core/low.py"}, ["low", "toys", "command"]),
        ({"segsweep/middle.py", "conf/net/toys.yaml"}, ["toys", "command"]),
        ({"tests/test_other.py", "tests/toys.py"}, ["other", "toys"]),
        ({"conf/part.yaml"}, ["toys"]),
        ({"LICENSE"}, []),
        (set(), ["low", "other", "toys", "command"]),  # the core
    ],
)
def test_who_imports_or_names_what_was_changed_is_chosen_the_nearest_first(changed, chosen):
    assert [quick.dotted(path) for path in quick.nearest(changed, PLANTED)] == [f"test_{name}" for name in chosen]


def test_each_module_of_the_program_has_a_test_that_is_near_to_it(files):
    modules = [path for path in files if path.startswith("segsweep/")]
    assert len(modules) > 100
    assert [path for path in modules if not quick.nearest({path}, files)] == []
    assert quick.nearest({"segsweep/core/masks.py"}, files)[0] == "tests/test_masks.py"


def test_after_its_minute_no_test_begins():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(here / "test_display.py")]
    environment = os.environ | {"SEGSWEEP_UNTIL": "1"}  # a second after 1970 began
    done = subprocess.run(command, cwd=here.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 skipped" in done.stdout
    assert "passed" not in done.stdout


def test_the_suite_writes_to_no_cache_of_who_runs_it():
    assert not Path(os.environ["SEGSWEEP_CACHE"]).is_relative_to(Path.home() / ".cache")
