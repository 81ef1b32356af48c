"""One's own script: `segsweep.main(Digits)`, or a function with its metric. Its arguments are keys at the root."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segsweep.core import environment, source
from segsweep.runs import identity
from segsweep.runs.identity import recorded
from segsweep.sweeps import doors, why

SCRIPT = Path(__file__).parents[1] / "examples" / "script"
FUNCTION = """
import segsweep
seen = []
def train(run, *, lr: float = 0.1, width: int = 8, model: str = "mlp"):
    seen.append((lr, width, run.seed))
    return lr * width + run.seed
def start():
    segsweep.main(train, metric="loss", direction="min")
"""
CLASS = "import segsweep\nclass A: ...\ndef start():\n    segsweep.main(A)"
HERE = ("hydra/launcher=basic", "tracking=none", "report=false")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, stdin=None)


def runs(folder: Path) -> list[dict]:
    files = sorted(folder.glob("multirun/runs/*/result.json"))
    return [json.loads(f.read_text()) | json.loads((f.parent / "run.json").read_text()) for f in files]


def test_arguments_of_a_function_are_keys_at_the_root_and_a_second_time_nothing_is_called(through, tmp_path):
    code, said, module = through(FUNCTION, "-m", "lr=0.1,0.2", "seed=0,1", *HERE)
    assert code == 0, said
    assert module.seen == [(0.1, 8, 0), (0.1, 8, 1), (0.2, 8, 0), (0.2, 8, 1)]
    found = {(run["factors"]["lr"], run["factors"]["seed"]): run["objective"] for run in runs(tmp_path)}
    assert found == pytest.approx({(0.1, 0): 0.8, (0.1, 1): 1.8, (0.2, 0): 1.6, (0.2, 1): 2.6})
    assert {run["metrics"]["val/loss"] for run in runs(tmp_path)} == set(found.values())  # and none of a test
    assert not any(key.startswith("test/") for run in runs(tmp_path) for key in run["metrics"])
    groups = {run["group"]: run["factors"]["lr"] for run in runs(tmp_path)}
    assert sorted(groups.values()) == [0.1, 0.2]  # seeds are repeats
    module.start()
    assert len(module.seen) == len(runs(tmp_path)) == 4  # all answered
    again = through(FUNCTION, "-m", "lr=0.1,0.2", "seed=0,1", *HERE)
    assert again[0] == 0
    assert len(list(tmp_path.glob("multirun/runs/*"))) == 4 + 4  # another module: what it is called is part of it


def test_what_is_reused_says_that_its_data_are_not_watched_and_data_are_part_of_a_run(through, tmp_path, capfd):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    watched = FUNCTION.replace('direction="min"', 'direction="min", data="data"')
    for text in (FUNCTION, watched):
        _, _, module = through(text, *HERE[1:])
        for edited, trained in ((False, 0), (True, 1)):
            module.seen.clear()
            if edited:
                (tmp_path / "data" / "a.csv").write_text("2" + text)
            try:
                module.start()
            except SystemExit as end:
                pytest.fail(str(end))
            assert len(module.seen) == (trained if text is watched else 0)
            assert ("the data are not watched" in "".join(capfd.readouterr())) == (text is not watched)


@pytest.mark.parametrize(
    ("source", "arguments", "says"),
    [
        (FUNCTION, ["lrr=1"], "lrr: no such key; did you mean lr?"),
        (FUNCTION, ["width=2.5"], "width=2.5: must be a whole number"),
        (FUNCTION, ["lr=fast"], "lr=fast: must be a number"),
        (FUNCTION, ["batch_size=4"], "batch_size: no such key"),
        (FUNCTION, ["-m", "lr=interval(0, 1)"], "an interval is for a search, such as +search=tpe"),
        (FUNCTION, ["-m", "+search=tpe", "seed=0,1"], "a search would choose the luckiest seed"),
        (FUNCTION, ["-m", "+search=tpe", "lr=0.1,0.2", "search.objective=[test/loss]"], "nothing is chosen on"),
        (FUNCTION, ["--config-name", "other"], "--config-name: not taken"),
        (FUNCTION.replace("lr: float = 0.1", "lr: float"), [], "lr: a value is needed, lr=..."),
        (FUNCTION.replace("lr: float = 0.1", "search: int = 1"), [], "takes search, which is a key of the engine"),
        (FUNCTION.replace("lr: float = 0.1", "lr: float = object()"), [], "a default is a number, a text, a path"),
        (FUNCTION.replace("lr: float = 0.1", "lr=b'a'"), [], "train(lr=b'a'): a default is a number, a text, a path"),
        (FUNCTION.replace("lr: float = 0.1", "lr=[HTTPMethod.GET]").replace("\n", "\nfrom http import HTTPMethod\n", 1),
         [], "a default is a number, a text, a path"),
        (FUNCTION.replace("lr: float = 0.1", "defaults: int = 1"), [], "takes defaults, which is a key of Hydra"),
        (FUNCTION.replace("lr: float = 0.1", "_target_: int = 1"), [], "takes _target_, which is a key of Hydra"),
        (FUNCTION.replace('"min"', '"min", data=lambda: 1'), [], "is inside something else"),
        (FUNCTION.replace('"min"', '"min", data=__import__("functools").partial(lambda: 1)'),
         [], "cannot be told to another process"),
        (FUNCTION.replace('"min"', '"min", data=all_of').replace("\ndef ", "\ndef all_of(*them): ...\ndef ", 1),
         [], "takes *them; it is given settings by their names"),
        (FUNCTION.replace('"min"', '"min", data=leaves').replace("\ndef ", "\ndef leaves(): raise SystemExit\ndef ", 1),
         [], "data= of train(): sys.exit(None)"),
        (FUNCTION.replace('"min"', '"min", data="/dev/zero"'), [], "data=/dev/zero: no regular file"),
        (FUNCTION.replace("lr: float = 0.1", "lr=10**400"), [], "a default is a number, a text, a path"),
        (FUNCTION.replace("lr: float = 0.1", "epochs='three'"), [], "epochs='three'): a whole number is needed"),
        (FUNCTION.replace("lr: float = 0.1", "epochs=2.0"), [], "epochs=2.0): a whole number is needed"),
        (FUNCTION.replace("lr: float = 0.1", "epochs=True"), [], "epochs=True): a whole number is needed"),
        (FUNCTION.replace("lr: float = 0.1", "seed=None"), [], "seed=None): a whole number is needed"),
        (FUNCTION.replace("lr: float = 0.1", "device=0"), [], "device=0): a text is needed"),
        (FUNCTION.replace('"loss", direction="min"', '{"loss": ["min"]}'), [], "loss has direction ['min']"),
        (FUNCTION.replace('"min"', '["min"]'), [], "loss has direction ['min']; allowed are min and max"),
        (FUNCTION.replace('"min"', '"min", ignored=5'), [], "segsweep.main(ignored=5): a key as text is needed"),
        (FUNCTION.replace('"min"', '"min", repeats=[5]'), [], "segsweep.main(repeats=(5,)): a key as text is needed"),
        (FUNCTION.replace("train(run, *,", "train(data, *,"), [], "its first argument is not run"),
        (FUNCTION.replace('"mlp"):', '"mlp", **more):'), [], "it takes *more"),
        (FUNCTION.replace(', direction="min"', ""), [], "metric= and direction= are needed"),
        (FUNCTION.replace('"min"', '"down"'), [], "loss has direction 'down'; allowed are min and max"),
        (FUNCTION.replace('"min"', '"min", config_path="conf"'), [], "config_path=...): not of a script"),
        (FUNCTION.replace("(train, ", "(lambda run: 1, "), [], "is inside something else"),
        (FUNCTION.replace('"min"', '"min", ignored="widht"'), [], "ignored=...): widht is no key; did you mean width?"),
        (FUNCTION.replace('"min"', '"min", repeats=["fold"]'), [], "segsweep.main(repeats=...): fold is no key"),
        (CLASS, [], "has no data()"),
        (CLASS.replace("(A)", "(A, metric='a')"), [], "a task class says itself"),
        ("import segsweep\ndef start():\n    segsweep.main(3)", [], "found int"),
    ],
)  # fmt: skip
def test_a_wrong_use_is_one_sentence_and_nothing_is_trained(through, tmp_path, source, arguments, says):
    code, said, _ = through(source, *arguments)
    assert code == 1
    assert says in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ("'text'", "train() returned str; a number (loss), a mapping of metrics or a segsweep.task.Result is needed"),
        ("None", "train() returned nothing; a number (loss)"),
        ("float('nan')", "train() returned nan for loss"),
        ("{'accuracy': 1}", "train() returned accuracy, and no loss, its metric"),
        ("{'loss': 'low'}", "train() returned str for loss; a number is needed"),
        ("True", "train() returned bool"),
        ("Result({'test/lost': 1.0})", "Result has test/lost, which is none of its metrics"),
        ("Result({'val/loss': 1.0}, {'a': {}})", "Result has no loss for unit a"),
        ("Result({'val/loss': 1.0}, {'a': {'loss': 'x'}})", "Result has str for loss of unit a; a number is needed"),
        ("Result({'val/loss': 1.0})", "Result has no unit; a value of loss is needed for each"),
        ("Result({'val/loss': float('nan')})", "Result has nan for val/loss; a finite number is needed"),
        ("Result({'val/loss': float('-inf')})", "Result has -inf for val/loss; a finite number is needed"),
        ("Result({'val/loss': True})", "Result has bool for val/loss; a number is needed"),
        ("sys.exit('bad data')", "sys.exit('bad data') ("),
        ("sys.exit(0)", "sys.exit(0) ("),
        ("Result([1.0])", "Result has list for its metrics; a mapping is needed, such as {'test/loss': 0.1}"),
        ("Result({'val/loss': 1.0}, {'a': 3})", "Result has int for unit a; a mapping is needed, {'loss': 0.5}"),
        ("{'loss': 0.5, 'val/loss': 0.7}", "train() returned both loss and val/loss, which are one"),
        ("[][1]", "IndexError: list index out of range ("),
    ],
)
def test_a_wrong_return_is_one_sentence_and_a_failed_job(through, returns, says):
    source = FUNCTION.replace("return lr * width + run.seed", f"return {returns}")
    if "unit" in says:
        source = source.replace('"loss", direction="min"', '{"loss": Metric(title="L", direction="min", by_unit=True)}')
    source = "import sys\nfrom segsweep.task import Metric\nfrom segsweep.task import Result\n" + source
    code, said, _ = through(source, *HERE[1:])
    assert code == 1
    assert re.search(
        rf"failed: {'nan' if 'nan' in says or 'inf ' in says else 'error'}: (door\S+: )?{re.escape(says)}", said
    ), said
    assert "Traceback" not in said


def test_a_result_may_hold_numpys_numbers_and_the_nan_of_a_mean_over_units_without_a_value(through, tmp_path):
    result = "Result({'val/loss': np.float32(0.5), 'test/loss': np.nan}, {'a': {'loss': np.nan}})"
    source = FUNCTION.replace("return lr * width + run.seed", f"return {result}")
    source = source.replace('"loss", direction="min"', '{"loss": Metric(title="L", direction="min", by_unit=True)}')
    code, said, _ = through(f"import numpy as np\nfrom segsweep.task import Metric, Result\n{source}", *HERE[1:])
    assert code == 0, said
    assert runs(tmp_path)[0]["metrics"]["val/loss"] == 0.5


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${x", r"a\${x}", r"\\${lr}", "${epochs} and ${", "plain"])
def test_a_text_is_what_it_says_in_training_and_in_the_record(through, tmp_path, text):
    source = FUNCTION.replace('"mlp"', repr(text)).replace("append((lr", "append((model, lr")
    source = source.replace("import segsweep", "import segsweep\nimport numpy").replace("= 0.1", "= numpy.float64(0.1)")
    code, said, module = through(source, *HERE[1:])
    assert code == 0, said
    assert [given[:2] for given in module.seen] == [(text, 0.1)]
    (folder,) = (tmp_path / "multirun" / "runs").iterdir()
    assert recorded(folder)[0].config["model"] == text


def test_a_single_run_that_ends_its_process_is_no_success(tmp_path):
    source = FUNCTION.replace("def start():\n    ", "").replace("return lr", "__import__('os')._exit(0)\n    return lr")
    (tmp_path / "mine.py").write_text(source.replace("segsweep.main", 'if __name__ == "__main__":\n    segsweep.main'))
    done = python(tmp_path, "mine.py", *HERE[1:])
    assert done.returncode == 1
    assert "train() ended its own process, os._exit(0), before it had a result: the job failed" in done.stderr
    assert runs(tmp_path) == []


NEVER = """
import segsweep
def train(run, *, ever: bool = False):
    for epoch in run.epochs():
        epoch.report({"val/loss": 1.0 if ever and epoch.number == 1 else float("nan")})
def start():
    segsweep.main(train, metric="loss", direction="min")
"""


def test_a_run_whose_chosen_metric_never_has_a_value_is_a_failed_job(through, tmp_path):
    code, said, module = through(NEVER, "-m", "ever=false,true", "epochs=2", *HERE)
    assert code == 1
    assert "val/loss, by which this task chooses (Spec.select), had no finite value in any of its 2 epochs" in said
    assert [run["objective"] for run in runs(tmp_path)] == [1.0]


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "history.jsonl", "result.json", "last.pt"])
def test_a_task_that_writes_a_file_of_the_engines_is_told_and_leaves_no_record(through, tmp_path, name):
    source = FUNCTION.replace("return lr", f"(run.folder / '{name}').write_text('1'); return lr")
    code, said, _ = through(source, *HERE[1:])
    assert code == 1
    assert f"train() wrote {name} in run.folder, where files of that name are the engine's own" in said, said
    assert not list(tmp_path.glob(f"multirun/runs/*/{name}"))


def test_a_default_that_is_a_tuple_arrives_as_one(through):
    source = FUNCTION.replace('model: str = "mlp"', "sizes=((1, 2), (3,)), plain=[1]").replace(
        "return lr * width", "return 1 if (sizes, plain) == (((1, 2), (5,)), [1]) else [][1]"
    )
    code, said, _ = through(source, "sizes=[[1,2],[5]]", *HERE[1:])
    assert code == 0, said


def test_a_default_that_is_a_path_is_a_text_to_the_command_line_and_arrives_as_a_path(through, tmp_path):
    source = "from pathlib import Path\n" + FUNCTION.replace('model: str = "mlp"', "at=Path('a'), more=[Path('b')]")
    source = source.replace("return lr", "assert (at, more) == (Path('c'), [Path('b')])\n    return lr")
    code, said, _ = through(source, "at=c", *HERE[1:])
    assert code == 0, said
    (run,) = runs(tmp_path)
    assert (run["factors"]["at"], run["factors"]["more"]) == ("c", ["b"])


DATA = """
import functools
class Watched:
    def __call__(self, place="a.csv"):
        return place
def watched(folder, place="a.csv"):
    return folder + place
def everything(**settings):
    return settings["folder"] + "a.csv"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "data", ["everything", "functools.partial(watched, '')", "Watched()", "Watched().__call__", "watched"]
)
def test_data_may_be_told_by_whatever_can_be_called(tmp_path, data):
    """In other processes, too, in which the script has another name."""
    (tmp_path / "a.csv").write_text("1")
    source = FUNCTION.replace("def start():\n    ", "") + "\n"
    source = source.replace('"mlp"', '"mlp", folder: str = ""').replace('"min"', f'"min", data={data}')
    (tmp_path / "mine.py").write_text(
        DATA + source.replace("segsweep.main", 'if __name__ == "__main__":\n    segsweep.main')
    )
    line = ("mine.py", "-m", "lr=0.1,0.2", "tracking=none", "report=false", "hydra.launcher.jobs_per_device=1")
    done = python(tmp_path, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    digests = [run["data"]["digest"] for run in runs(tmp_path)]
    assert len(digests) == 2
    assert len(set(digests) - {None}) == 1
    assert python(tmp_path, *line).stdout.count("reused") >= 2
    (tmp_path / "a.csv").write_text("2")
    assert python(tmp_path, *line).returncode == 0
    assert len(runs(tmp_path)) == 4


def test_a_mapping_is_kept_and_what_has_no_direction_is_compared_by_nobody(through, tmp_path):
    source = FUNCTION.replace("return lr * width + run.seed", "return {'loss': 1, 'accuracy': 0.5, 'speed': 3}")
    source = source.replace('"loss", direction="min"', '{"loss": "min", "accuracy": "max"}')
    assert through(source, *HERE[1:])[0] == 0
    (run,) = runs(tmp_path)
    assert run["metrics"] == {"val/loss": 1, "val/accuracy": 0.5}
    assert run["task"]["metrics"]["accuracy"]["direction"] == "max"
    assert run["returned"] == {"speed": 3}


def test_an_argument_called_epochs_is_the_engines_and_parts_runs_of_different_length(through, tmp_path):
    source = (
        FUNCTION.replace("lr: float = 0.1", "epochs: int = 3")
        .replace("lr * width", "epochs")
        .replace("(lr, ", "(epochs, ")
    )
    code, said, module = through(source, "-m", "epochs=3,5", *HERE)
    assert code == 0, said
    assert [seen[0] for seen in module.seen] == [3, 5]
    assert len({run["trajectory"] for run in runs(tmp_path)}) == 2
    plain = through(FUNCTION, "-m", "epochs=3,5", *HERE)
    assert plain[0] == 0
    assert len({run["trajectory"] for run in runs(tmp_path) if "lr" in run["factors"]}) == 1


def test_a_script_says_why_and_accepts_without_training(through, tmp_path, capfd):
    code, said, module = through(FUNCTION, "lr=0.2", *HERE[1:])
    assert code == 0, said
    (job,) = map(str, tmp_path.glob("multirun/2*/0"))

    def ask(*arguments: str) -> tuple[int, str]:
        sys.argv[1:] = arguments
        source.code.cache_clear()
        capfd.readouterr()
        try:
            module.start()
        except SystemExit as end:
            return end.code, "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    assert "The same run: its record answers." in ask("--why", job)[1]
    file = Path(module.__file__)
    file.write_text(file.read_text() + "\nother = 1\n")
    code, said = ask("--why", job)
    assert (code, f" --why --accept {job} --reason TEXT" in said) == (0, True), said
    assert why.main([job]) == why.main([job, "--accept", "--reason", "x"]) == 1  # of `python -m segsweep.why`
    assert capfd.readouterr().err.count(f" --why {job}\n") == 2
    assert ask("--why", job, "--accept", "--reason", "nobody reads it")[0] == 0
    assert ask(*HERE[1:], "lr=0.2")[0] == 0
    assert len(module.seen) == 1
    code, said, _ = through(FUNCTION, "--why", job)  # another script
    assert (code, "its own program alone can compose it" in said) == (1, True), said


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("return lr", ["spec", "data", "two epochs", "metrics", "units", "again", "epochs"]),
        (
            "for epoch in run.epochs():\n        epoch.report({'val/loss': lr / epoch.number})",
            ["spec", "data", "two epochs", "metrics", "units", "again", "interrupt", "prune", "longer", "shorter"],
        ),
    ],
)
def test_a_script_is_checked_by_itself(through, tmp_path, body, names):
    source = FUNCTION.replace("return lr * width + run.seed", body)
    code, said, module = through(source, "--check", "lr=0.2")
    lines = said.splitlines()
    assert [line[7:].partition(":")[0] for line in lines[:-1]] == names, said
    assert (code, lines[-1]) == (0, "All well.")
    told = "digest=None, so nobody watches whether they change; `data=` of segsweep.main says what they are"
    assert lines[1] == f"noted  data: {told}"
    assert {seen[0] for seen in module.seen} == {0.2}
    assert not (tmp_path / "multirun").exists()
    assert through(source, "--check", "lrr=1")[:2] == (1, "lrr: no such key; did you mean lr?\n")


def test_the_help_and_the_whole_configuration_of_a_script(through):
    _, said, _ = through(FUNCTION.replace("    seen.append", '    """Fits."""\n    seen.append'), "--help")
    assert re.search(r"\.train: Fits\.", said)
    assert re.match(r"door\S+\.train\n\n", through(FUNCTION, "--help")[1])  # without words of its own
    *_, afterwards = said.strip().partition("  Afterwards\n")
    assert {line[:4].isspace() and not line[4].isspace() for line in afterwards.splitlines()} == {True}, said
    assert "    lr=0.1\n    width=8\n    model=mlp\n" in said
    assert not re.search(r"unet|dice|slice|optim", said)
    _, said, _ = through(FUNCTION, "--cfg", "job")
    composed = OmegaConf.create(said)
    assert (composed.lr, composed.model, composed.epochs) == (0.1, "mlp", 6)
    assert "data" not in composed
    assert OmegaConf.create(through(FUNCTION, "--cfg", "hydra")[1]).hydra.searchpath == []


def test_a_task_class_says_all_itself_and_needs_no_leave(through, tmp_path, monkeypatch):
    source = (Path(__file__).parents[1] / "examples" / "digits" / "digits.py").read_text()
    monkeypatch.delenv("SEGSWEEP_ALLOW", raising=False)
    source += "\ndef start():\n    import segsweep\n    segsweep.main(Digits)\n"
    code, said, _ = through(source, "-m", "hidden=8", "epochs=1,2", *HERE)
    assert code == 0, said
    assert {run["trained_epochs"] for run in runs(tmp_path)} == {1}
    assert "hidden=-1: must be at least 1" in through(source, "hidden=-1")[1]
    assert "not allowed to be called" in through(source, "+task.model={_target_: os.getcwd}")[1]


def test_its_hydra_has_no_published_sweeper_but_the_guarded_one(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION + "start()\n")
    done = python(tmp_path, "mine.py", "hydra/sweeper=optuna", "--cfg", "hydra")
    assert done.stderr == ""
    assert OmegaConf.create(done.stdout).hydra.sweeper._target_ == "segsweep.plugins.published.OptunaSweeper"


def test_a_module_beside_it_is_found_by_workers_before_other_packages_and_after_pythons_own(tmp_path, monkeypatch):
    for place, name in (("site-packages", "beside"), ("own", "beside"), ("own", "queue")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / f"{name}.py").write_text(f"found = {place!r}\n")
    (tmp_path / "own" / "script_of_test.py").write_text("import beside, queue\n")
    own = str(tmp_path / "own")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages"), own])  # as `child.ordered` has it
    monkeypatch.delenv("PYTHONPATH", raising=False)
    try:
        found = doors._load("script_of_test", f"{own}/script_of_test.py", own)
        assert found.beside.found == "own"
        assert hasattr(found.queue, "SimpleQueue")
    finally:
        for name in ("script_of_test", "beside"):
            sys.modules.pop(name, None)


def test_importing_segsweep_and_naming_its_door_imports_nothing_heavy():
    code = "import segsweep, sys; segsweep.main; print({'torch', 'mlflow', 'optuna'} & set(sys.modules))"
    assert python(Path.cwd(), "-c", code).stdout.strip() == "set()"
    assert python(Path.cwd(), "-c", "import segsweep, sys; print('hydra' in sys.modules)").stdout.strip() == "False"


def test_what_is_no_file_and_a_name_of_pythons_own_are_told(tmp_path):
    call = "import segsweep\ndef train(run): return 1\nsegsweep.main(train, metric='a', direction='min')\n"
    done = python(tmp_path, "-c", call)
    assert (done.returncode, "put it into one: python my_script.py" in done.stderr) == (1, True), done.stderr
    (tmp_path / "tomllib.py").write_text(call)
    done = python(tmp_path, "tomllib.py")
    assert (done.returncode, "another module is called tomllib" in done.stderr) == (1, True), done.stderr
    (tmp_path / "bare.py").write_text("import segsweep\n@segsweep.main\ndef main(cfg): return 1\n")
    done = python(tmp_path, "bare.py")
    assert (done.returncode, "metric= and direction= are needed" in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_debugger_stops_in_this_process(tmp_path):
    source = (
        FUNCTION.replace("    seen.append", "    breakpoint()\n    seen.append") + "if __name__ == '__main__': start()"
    )
    (tmp_path / "script.py").write_text(source)
    line = [sys.executable, "script.py", "-m", "lr=1", *HERE]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, input="p 'lr is', lr\nc\n")
    assert done.returncode == 0, done.stderr
    assert "(Pdb) ('lr is', 1)" in done.stdout


@pytest.mark.slow
def test_the_example_that_was_killed_goes_on_to_the_same_bits_and_is_answered_and_reported(tmp_path):
    """In workers, which load the script by its path, and a module beside it."""
    folders = [Path(shutil.copytree(SCRIPT, tmp_path / name)) for name in ("killed", "whole")]
    for folder in folders:
        script = folder / "digits.py"
        (folder / "beside.py").write_text("def said(text): print('beside says', text, end='')\n")
        script.write_text(
            script.read_text().replace("    model =", "    from beside import said; said(lr)\n    model =")
        )
    grid = ("digits.py", "-m", "lr=0.01,0.03", "epochs=1,4", "hidden=16", "tracking=none")
    how = {"cwd": folders[0], "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    killed = subprocess.Popen([sys.executable, *grid], **how)
    while not any(folders[0].glob("multirun/trajectories/*/state_0002.pt")) and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done, whole = (python(folder, *grid) for folder in folders)
    assert done.returncode == whole.returncode == 0, done.stdout + done.stderr + whole.stderr
    assert "beside says 0.01" in whole.stderr  # prints reach the screen, without a new line too
    histories = [
        {
            file.parent.name: [
                {k: v for k, v in json.loads(line).items() if "/" in k} for line in file.read_text().splitlines()
            ]
            for file in folder.glob("multirun/runs/*/history.jsonl")
        }
        for folder in folders
    ]
    assert len(histories[0]) == 4
    assert histories[0] == histories[1]
    again = python(folders[0], *grid)
    assert again.stdout.count(" reused ") == 4, again.stdout
    assert "the data are not watched" in again.stdout
    page = next(folders[1].glob("multirun/2*/report.md")).read_text()
    assert "Compared over seeds alone" in page
    assert "`python digits.py lr=0.01 epochs=1 hidden=16 tracking=none" in page
    assert not re.search(r"dice|patient|slice|tumou?r|mask|pixel|test accuracy", page, re.IGNORECASE)


def test_the_commit_of_a_run_is_that_of_the_repository_of_ones_own_code(through, tmp_path, monkeypatch):
    apart = tmp_path.parent / f"{tmp_path.name}-apart"
    apart.mkdir()

    def git(*words: str, folder: Path = tmp_path) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        told = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
        return told.stdout.strip()

    git("init", "-q")
    (tmp_path / "notes").write_text("1")
    git("add", "notes")
    git("commit", "-qm", "first")
    monkeypatch.chdir(apart)  # what decides is where the code lies, not where it is started
    assert through(FUNCTION, *HERE[1:])[0] == 0
    monkeypatch.chdir(tmp_path)
    environment.commit.cache_clear()
    (tmp_path / "notes").write_text("2")
    assert through(FUNCTION, *HERE[1:])[0] == 0
    first, second = (runs(folder)[0] for folder in (apart, tmp_path))
    head = git("rev-parse", "--short=12", "HEAD")
    assert (first["commit"], second["commit"]) == (head, f"{head}+")
    engine = environment.commit(Path(environment.__file__).parent)
    assert first["versions"].get("segsweep commit") == engine != head
    segmentation = {"task": {"_target_": "segsweep.segmentation.task.Segmentation"}}
    assert identity.Identity(segmentation, {}, "", "", {}).home == source.PACKAGE
    assert identity.Identity({"task": {"_target_": "installed.Task"}}, {}, "", "", {}).home == tmp_path


@pytest.mark.parametrize(
    ("hint", "given", "says"),
    [
        ('Literal["adam", "sgd"]', "rmsprop", "model=rmsprop: allowed are adam, sgd"),
        ('Literal["adam", "sgd"]', "adm", "model=adm: allowed are adam, sgd; did you mean adam?"),
        ('Literal["adam"] | Literal["sgd"] | None', "x", "model=x: allowed are adam, sgd, null"),
        ('Literal["adam"] | float', "x", "model=x: allowed are adam, a number"),
        ("Literal[1, 2]", "true", "model=True: allowed are 1, 2"),
        ('Annotated[Literal["adam", "10"], "which"]', "10", "model=10: allowed are adam, '10'; did you mean '10'?"),
        ('Literal["adam", None, True]', "x", "model=x: allowed are adam, null, true"),
        ('Literal["adam", "sgd"]', "sgd", ""),
        ('Literal["adam"] | None', "null", ""),
        ('Literal["adam"] | float', "2", ""),
    ],
)
def test_the_values_that_a_literal_lists_are_the_allowed_ones(through, hint, given, says):
    source = "from typing import Annotated, Literal\n" + FUNCTION.replace('model: str = "mlp"', f"model: {hint}")
    code, said, module = through(source, f"model={given}", *HERE[1:])
    assert code == bool(says), said
    assert not says or said == f"{says}\n"
    assert len(module.seen) == (not says)


LOOP = "for epoch in run.epochs():\n        epoch.report({'val/loss': lr, **EXTRA})\n    return RETURNED"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (
            "{'train/mse': 1}",
            'no metric of this task; to have mse too: metric={"loss": "min", "mse": "min"} in segsweep',
        ),
        ("{'val/accuracy': 1}", 'to have accuracy too: metric={"loss": "min", "accuracy": "max"} in segsweep.main;'),
        ("{'train/lost': 1}", "train/lost is no metric of this task; did you mean train/loss?; a key is PART/NAME"),
    ],
)
def test_a_report_of_what_is_no_metric_says_how_it_becomes_one(through, extra, says):
    body = LOOP.replace("EXTRA", extra).replace("RETURNED", "None")
    code, said, _ = through(FUNCTION.replace("return lr * width + run.seed", body), *HERE[1:])
    assert code == 1
    assert says in said


def test_a_number_of_a_test_by_another_name_is_told(through, tmp_path):
    body = LOOP.replace("EXTRA", "{}").replace("RETURNED", "{'test_loss': 1, 'train_speed': 2}")
    code, said, _ = through(FUNCTION.replace("return lr * width + run.seed", body), *HERE[1:])
    assert code == 0, said
    told = "train() returned what is kept, and compared by nobody: test_loss is called test/loss here"
    assert said.count(told) == 1, said
    assert "train_speed" not in said
    body = "return {'test_loss': 1}"
    _, said, _ = through(FUNCTION.replace("return lr * width + run.seed", body), *HERE[1:])
    assert "returned test_loss, and no loss, its metric (test_loss is called test/loss here)" in said


def test_mistakes_beside_a_wrong_option_are_told_with_it(through):
    line = ("-m", "pruner=mpl,median", "pruner.odd=1", "sed=0", "lr=x", "epochs=0", "hydra/launcher=basic")
    code, said, _ = through(FUNCTION, *line)
    assert code == 1
    assert [text.partition(":")[0] for text in said.splitlines()] == ["pruner=mpl", "sed", "epochs=0", "lr=x"], said
