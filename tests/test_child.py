"""Where processes look for modules: a file beside the command takes the place of no module, and runs by being imported
by its name alone, as one's own package is."""

import contextlib
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from segsweep.core import child

BEFORE = "import runpy, sys; print(*sys.modules)"
"""What Python itself imports before it runs a module, and nobody can come before."""
OTHERS = ("hydra", "mlflow", "numpy", "omegaconf", "optuna", "torch", "yaml")
OWN = "from segsweep.segmentation.losses import Dice\nimport timeit, queue\nclass Mine(Dice): ...\n"
TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "epochs=1"]
TINY += ["tracking=none", "report=false"]


@pytest.fixture
def trapped(tmp_path, monkeypatch) -> Path:
    """A working folder with a file for every module of the standard library that is there, and for some of others: each
    leaves its name in `ran`, and fails."""
    there = subprocess.run([sys.executable, "-P", "-c", BEFORE], capture_output=True, text=True).stdout.split()
    for name in filter(find_spec, (sys.stdlib_module_names | {*OTHERS}) - {*there, *sys.builtin_module_names}):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + '\\n')\nraise ImportError('a trap')\n"
        )
    (tmp_path / "mine_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*given, str(Path(child.__file__).parents[2])]))
    return tmp_path


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split() if (folder / "ran").exists() else []


LAUNCHERS = {
    "local": [],
    "submitit": ["hydra/launcher=slurm", "hydra.launcher.executor=local"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_and_its_workers_take_no_module_from_the_working_folder_but_ones_own(trapped, launcher):
    pytest.importorskip("torch" if launcher == "local" else launcher)
    done = subprocess.run(
        [sys.executable, "-m", "segsweep", "-m", "seed=0,1", "loss=dice", "loss._target_=mine_of_test.Mine", *TINY,
         *LAUNCHERS[launcher]],
        env=os.environ | {"SEGSWEEP_ALLOW": "mine_of_test.*", "SEGSWEEP_CACHE": "cache"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished") == 2
    assert ran(trapped) == []


@pytest.mark.parametrize("program", ["report", "sync", "predict"])
def test_the_other_programs_take_none_either(trapped, program):
    done = subprocess.run([sys.executable, "-m", f"segsweep.{program}", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ran(trapped) == []


def test_a_process_that_this_one_starts_takes_none_and_finds_ones_own(trapped, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    code = "import queue, timeit, mine_of_test; print(mine_of_test.__file__, *sys.argv[1:])"
    done = subprocess.run(child.command(code, "a b"), capture_output=True, text=True)
    assert done.stdout == f"{trapped / 'mine_of_test.py'} a b\n", done.stderr
    assert ran(trapped) == []


def test_the_working_and_the_scripts_folder_come_last_and_those_that_pythonpath_names_do_not(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "scripts" / "mine.py"), raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/kept", "", str(tmp_path)]))
    path = [str(tmp_path / "scripts"), "", "/kept", str(tmp_path), "/usr/lib", str(tmp_path / "work")]
    late = [str(tmp_path / "scripts"), str(tmp_path / "work")]
    assert child.ordered(path) == ["/kept", str(tmp_path), "/usr/lib", *late]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "work"))
    assert child.ordered(["", "/usr/lib"]) == ["", "/usr/lib"]


@pytest.mark.parametrize("typing", [False, True])
def test_a_ctrl_c_ends_a_program_before_its_first_job_and_no_notebook_that_runs_it(monkeypatch, typing):
    before, codes = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(os, "_exit", codes.append)
    if typing:
        monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    else:
        monkeypatch.delattr(sys, "ps1", raising=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child.leave_at_once()
        with pytest.raises(KeyboardInterrupt) if typing else contextlib.nullcontext():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert codes == ([] if typing else [130])


def test_a_package_that_lies_in_the_working_folder_alone_is_not_installed(tmp_path, monkeypatch):
    for name in ("extra_of_test", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('run')")
    (tmp_path / "single_of_test.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", child.ordered([str(tmp_path), *sys.path]))
    assert not child.installed("extra_of_test")
    assert not child.installed("single_of_test")
    assert not child.installed("nowhere_of_test")
    assert child.installed("json")
    assert child.installed("torch")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # a choice
    assert child.installed("extra_of_test")


def test_what_trains_in_the_programs_own_process_is_looked_through_for_garbage_as_often_as_anywhere(tmp_path):
    """Its cycles may hold tensors. ~2 s"""
    (tmp_path / "own.py").write_text(
        "import gc\nfrom segsweep.task import Data, Metric, Result, Spec\n"
        "class Own:\n"
        "    spec = Spec(metrics={'error': Metric(title='Error', direction='min')}, select='val/error', epochs=False)\n"
        "    def __init__(self): pass\n"
        "    def data(self): return Data(digest=None)\n"
        "    def train(self, run):\n"
        "        print('looks', *gc.get_threshold())\n"
        "        return Result({'val/error': 1.0, 'test/error': 1.0})\n"
    )
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "own.yaml").write_text("_target_: own.Own\n")
    given = ["--config-dir", "conf", "task=own", "tracking=none"]
    allowed = os.environ | {
        "SEGSWEEP_ALLOW": "own.*",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(child.__file__).parents[2])]),
    }
    code = f"import gc, sys; usual = gc.get_threshold(); sys.argv = ['segsweep', *{given!r}]\n"
    code += "from segsweep.__main__ import main\nprint('usual', *usual); main()"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, executable=sys.executable, cwd=tmp_path, env=allowed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    says = {
        line.split(" ")[0]: line.split(" ")[1:] for line in done.stdout.splitlines() if line[:5] in ("usual", "looks")
    }
    assert says["looks"] == says["usual"]
