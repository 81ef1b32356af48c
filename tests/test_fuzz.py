"""What nobody has listed runs in nobody's process: drawn from every module that is installed, in configurations, run
folders, studies and folders for --config-dir. `make soak` draws thousands: 200 cases a unit of SEGSWEEP_SOAK."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import hostile
import pytest

SOAK = int(os.environ.get("SEGSWEEP_SOAK", "0"))
CASES = 200 * max(SOAK, 1)


def fuzz(folder: Path, seed: int, cases: int, *hole: str) -> tuple[list[dict], dict[str, int]]:
    """The findings, and how many cases of each kind were refused."""
    given = [str(folder), str(seed), str(cases), *hole]
    command = [sys.executable, str(Path(hostile.__file__)), *given]
    done = subprocess.run(command, executable=sys.executable, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, counts = map(json.loads, done.stdout.splitlines())
    return found, counts


@pytest.mark.slow
def test_fuzz_what_others_have_written_runs_nothing_sends_nothing_and_writes_nowhere_else(tmp_path):
    seed = random.randrange(2**32) if SOAK else 0
    found, counts = fuzz(tmp_path, seed, CASES)
    assert found == [], f"seed {seed}"
    assert counts.pop("best.yaml") > 0
    assert sum(counts.values()) == CASES
    for kind in ("component", "record", "study", "folder_of_others"):
        assert counts[f"{kind} True"] > 0


@pytest.mark.slow
def test_fuzz_sees_planted_holes(tmp_path):
    """Each takes a check out of the program, and is seen by what follows from it."""
    holes = {
        ("list", "record"): "import: ",
        ("list", "component"): "import: ",
        ("pickles", "study"): "pickle.find_class: posix.mkdir",
        ("weights", "record"): "pickle.find_class: posix.mkdir",
        ("hydra", "folder_of_others"): "not refused",
        ("environment", "record"): "not refused",
    }
    found, counts = fuzz(tmp_path, 0, 0, " ".join(hostile.HOLES))
    seen = {(one["hole"], one["kind"], one["found"][: len(holes[one["hole"], one["kind"]])]) for one in found}
    assert {(*by, event) for by, event in holes.items()} <= seen, found
    assert counts == {"best.yaml": counts["best.yaml"]}
