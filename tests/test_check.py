"""What `python -m segsweep.check` says of tasks that forget something; each of these forgets one thing."""

import importlib
import sys
from pathlib import Path

import pytest

from segsweep.core import source
from segsweep.sweeps import check
from segsweep.sweeps.overrides import composed

GOOD = '''"""A straight line through points, two weights."""
import random
import sys
import numpy as np
import torch
from segsweep.task import Data, Metric, Result, Spec

X = torch.linspace(-1, 1, 8)[:, None]


class Fit:
    spec = Spec(
        metrics={
            "loss": Metric(title="Loss", direction="min"),
            "error": Metric(title="Error", direction="min", bounds=(0, 100), by_unit=True),
        },
        select="val/loss",
        unit="point",
    )

    def __init__(self, *, lr: float = 0.1):
        self.lr = lr

    def data(self):
        return Data(digest="d", split="s", parts={"train": 8, "val": 8, "test": 8})

    def made(self):
        model = torch.nn.Linear(1, 1)
        return model, torch.optim.Adam(model.parameters(), lr=self.lr)

    def loss(self, model):
        order = torch.randperm(len(X))
        return (model(X[order]) - X[order]).square().mean()

    def fit(self, model, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            loss = self.loss(model)
            loss.backward()
            optimizer.step()
        return loss

    def epoch(self, epoch, model, optimizer):
        epoch.report({"train/loss": self.fit(model, optimizer), "val/loss": (model(X) - X).square().mean()})

    def train(self, run):
        model, optimizer = self.made()
        for epoch in run.epochs(model=model, optimizer=optimizer):
            self.epoch(epoch, model, optimizer)
        return self.test(model)

    @torch.no_grad()
    def test(self, model):
        error = (model(X) - X).abs()[:, 0]
        units = {str(at): {"error": value} for at, value in enumerate(error.tolist())}
        return Result({"test/loss": error.square().mean().item(), "test/error": error.mean().item()}, units)
'''


@pytest.fixture
def said(tmp_path, monkeypatch, allow, capsys):
    """`said(lines)`: what the check says of the good task with methods replaced; its lines by name, and its code."""
    allow("fits.*")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "fit.yaml").write_text("_target_: fits.Own\nlr: 0.1\n")

    def of(lines: str = "    pass", *overrides: str) -> tuple[dict[str, str], int]:
        (tmp_path / "fits.py").write_text(f"{GOOD}\n\nclass Own(Fit):\n{lines}\n")
        sys.modules.pop("fits", None)
        importlib.invalidate_caches()
        source.code.cache_clear()
        source.places.cache_clear()
        code = check.main(["task=fit", "--config-dir", "conf", *overrides])  # it may stand anywhere
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["conf", "fits.py"]
        found = dict.fromkeys(err.splitlines(), "")
        for line in out.splitlines()[:-1]:
            state, _, text = line.partition("  ")
            found[text.strip().partition(":")[0]] = f"{state.strip()}: {text.strip().partition(': ')[2]}"
        return found, code

    yield of
    sys.modules.pop("fits", None)
    source.code.cache_clear()
    source.places.cache_clear()


NAMES = ["spec", "data", "two epochs", "metrics", "units", "again", "interrupt", "prune", "longer", "shorter"]


def test_a_task_that_forgets_nothing_is_well(said):
    found, code = said()
    assert list(found) == NAMES
    assert {text.partition(":")[0] for text in found.values()} == {"ok"}
    assert code == 0


LOOP = """
    def train(self, run):
        model, optimizer = self.made()
        for epoch in run.epochs(STATES):
            self.epoch(epoch, model, optimizer)
        return self.test(model)
"""
HELD = """
    def __init__(self, *, lr: float = 0.1):
        super().__init__(lr=lr)
        self.own = np.random.default_rng(0)

    def loss(self, model):
        return super().loss(model) + 0.1 * self.own.random() * model.weight.square().sum()
"""
GLOBAL = """
    def loss(self, model):
        return super().loss(model) + 0.1 * own.random() * model.weight.square().sum()


own = np.random.default_rng(0)
"""
RELOAD = """
    class Schedule:
        rate = 0.0

        def state_dict(self):
            return {"other": 1, "rate": self.rate}

        def load_state_dict(self, state):
            pass

    def train(self, run):
        model, optimizer = self.made()
        schedule = self.Schedule()
        for epoch in run.epochs(model=model, optimizer=optimizer, schedule=schedule):
            schedule.rate += 0.5
            optimizer.param_groups[0]["lr"] = schedule.rate
            self.epoch(epoch, model, optimizer)
        return self.test(model)
"""
LAST = """
    def epoch(self, epoch, model, optimizer):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch.last else 0.2
        super().epoch(epoch, model, optimizer)
"""
CATCH = """
    def train(self, run):
        model, optimizer = self.made()
        try:
            for epoch in run.epochs(model=model, optimizer=optimizer):
                self.epoch(epoch, model, optimizer)
        except Exception:
            pass
        return self.test(model)
"""
DRAWN = """
    def test(self, model):
        return super().test(model)._replace(metrics={"test/loss": torch.rand(()).item()})
"""


def then(line: str) -> str:
    """A test whose result is changed."""
    return f"""
    def test(self, model):
        result = super().test(model)
        {line}
        return result
"""


SPEC = 'spec = Spec(metrics={"loss": Metric(title="Loss", direction=DIRECTION)}, select=SELECT)'
OPTIMIZER = ["differ from epoch 2 on, train/loss: ", "(model) are taken up whole", "suspected: optimizer (Adam)."]


@pytest.mark.parametrize(
    ("lines", "name", "words"),
    [
        (LOOP.replace("STATES", "model=model"), "interrupt", OPTIMIZER),
        (LOOP.replace("STATES", "model=model"), "prune", ["after a pruner's end it is as after an interruption"]),
        (HELD, "interrupt", ["differ from epoch 2 on", "suspected: self.own (Generator)."]),
        (GLOBAL, "again", ["two undisturbed runs differ", "epoch 1 on, train/loss", "the seed does not set"]),
        (RELOAD, "longer", ["two epochs after one"]),
        (RELOAD, "interrupt", ["Suspected: schedule, whose load_state_dict does not take up", "(rate)"]),
        (LAST, "lengths", ["one epoch of one is not the first of two", "total: ${epochs}"]),
        (CATCH, "interrupt", ["train() went on after the engine had ended it"]),
        (DRAWN, "shorter", ["the test differs, test/loss", "The test draws"]),
        (then("del result.units['3']['error']"), "units", ["1 of 8 have no error: 3; give each point"]),
        (then("result.units.clear()"), "units", ["no point has a score", "error should have one"]),
        (then("result.units['3']['error'] = 'x'"), "units", ["error of 3 is str; a number is needed"]),
        (then("result.units['3']['error'] = -1"), "units", ["error of 3 is -1, outside of its bounds"]),
        (then("result.metrics['test/f1'] = 1.0"), "metrics", ["test/f1 is not in Spec.metrics", '"f1": ']),
        (then("result.metrics['test/loss'] = X"), "metrics", ["test/loss is Tensor; a number is needed"]),
        (then("result.metrics['test/loss'] = True"), "metrics", ["test/loss is bool; a number is needed"]),
        (then("result.metrics['f1'] = 1.0"), "metrics", ["its keys are test/NAME"]),
        (
            then("result.units.pop(random.choice(list(result.units)))"),
            *("shorter", ["the test is of other points", "in one run alone"]),
        ),
        (
            "    def data(self):\n        return Data(digest=str(random.SystemRandom().random()), parts={'val': 1})",
            *("data", ["digest is not the same in two constructions", "of the contents alone"]),
        ),
        (
            f"    {SPEC.replace('DIRECTION', repr('min')).replace('SELECT', repr('val/los'))}",
            *("spec", ["select=val/los: allowed are val/loss; did you mean val/loss?"]),
        ),
        (
            "    def epoch(self, epoch, model, optimizer):\n        epoch.report({'val/f1': 1.0})",
            *("two epochs", ["epoch.report: val/f1 is no metric of this task"]),
        ),
        ("    def train(self, run):\n        return {}['nothing']", "two epochs", ["KeyError: 'nothing'", "fits.py:"]),
        ("    def train(self, run):\n        return 3", "two epochs", ["train() of fits.Own gave int"]),
        ("    def train(self, run):\n        sys.exit(3)", "two epochs", ["sys.exit(3) (", "fits.py:"]),
        ("    def data(self):\n        return 3", "data", ["data() gave int; a task.Data is needed"]),
    ],
)
def test_what_a_task_forgot_is_told_in_words(lines, name, words, said, monkeypatch):
    found, code = said(lines)
    assert found[name].startswith("wrong: "), found
    for word in words:
        assert word in found[name]
    assert code == 1


def test_a_metric_that_is_none_is_one_sentence(said):
    found, code = said(f"    {SPEC.replace('DIRECTION', repr('maximize')).replace('SELECT', repr('val/loss'))}")
    wanted = "cannot be imported: Metric(title='Loss'): direction='maximize': allowed are max, min; did you mean max?"
    assert [line for line in found if line.endswith(wanted)] == [*found][:1]
    assert code == 1


def test_a_chosen_metric_that_never_has_a_value_is_told(said):
    found, code = said("""
    def epoch(self, epoch, model, optimizer):
        self.fit(model, optimizer)
        epoch.report({"train/loss": self.loss(model).item(), "val/loss": float("nan")})
    """)
    assert found["record"].startswith("wrong: val/loss, by which this task chooses"), found
    assert code == 1


def test_a_neutral_key_that_is_none_is_told(said):
    spec = SPEC.replace("DIRECTION", "'min'").replace("SELECT", "'val/loss', neutral={'lr': 0.1, 'task.lr': 0.1}")
    found, code = said(f"    {spec}")
    assert found["neutral"].startswith("wrong: Spec.neutral has lr, which is no key of the configuration"), found
    assert "task.lr, which" not in str(found)
    assert code == 1


def test_what_need_not_be_mended_is_noted(said):
    lines = """
    def data(self):
        return Data(digest=None, split="s", parts={"train": 8, "test": 8})

    def epoch(self, epoch, model, optimizer):
        self.fit(model, optimizer)
        epoch.report({"train/loss": self.loss(model)})

    def test(self, model):
        import secrets
        from pathlib import Path
        (self.folder / "same.txt").write_text("a")
        (self.folder / "log.txt").write_text(secrets.token_hex())
        result = super().test(model)
        result.units["2"]["error"] = float("nan")
        return result

    def train(self, run):
        self.folder = run.folder
        return super().train(run)
"""
    found, code = said(lines)
    assert code == 0
    assert "nobody watches whether they change" in found["data"]
    assert found["files"] == "noted: of what it writes to run.folder, log.txt differ from run to run"
    assert found["units"] == "noted: 1 of 8 have a score that is undefined (NaN)"
    assert "no run of it can be pruned" in found["prune"]


def test_runs_whose_setting_looks_at_epochs_share_none_and_need_not(said, tmp_path):
    lines = """
    def __init__(self, *, lr: float = 0.1, total: int = 1):
        super().__init__(lr=lr)
        self.total = total

    def epoch(self, epoch, model, optimizer):
        optimizer.param_groups[0]["lr"] = self.lr * epoch.number / self.total
        super().epoch(epoch, model, optimizer)
"""
    found, code = said(lines, "+task.total=${epochs}")
    assert (found["lengths"].partition(":")[0], code) == ("ok", 0)
    assert "share none of theirs" in found["lengths"]


def test_mistakes_of_the_command_line_are_told_as_usual(said):
    mistakes = {"task.lrr: no such key; did you mean task.lr?": "", "epochs=0: must be at least 1": ""}
    assert said("    pass", "task.lrr=1", "epochs=0") == (mistakes, 1)
    assert said("    pass", "task.lr=1,2") == ({"task.lr=1,2: several values are a sweep; give one": ""}, 1)


def test_segmentation_is_well(tmp_path, capsys):
    """One network, as little of it as there can be; with a schedule that does not look at the total."""
    tiny = ["data.patients=4", "data.slices=4", "data.image_size=16", "model.width=2", "model.depth=1"]
    cfg, choices = composed([*tiny, f"paths.cache={tmp_path / 'cache'}", "scheduler=constant"])
    found = {verdict.name: verdict for verdict in check.check(cfg, choices)}
    assert list(found) == [*NAMES[:6], "files", *NAMES[6:]]
    assert {verdict.state for verdict in found.values()} <= {"ok", "noted"}, list(map(str, found.values()))
    assert not Path(tmp_path / "multirun").exists()


def test_what_a_run_takes_for_a_number_is_one_here(said):
    lines = then("result.metrics['test/loss'] = X[0]\n        result.units['3']['error'] = np.float32(0.5)")
    found, code = said(lines)
    assert (found["metrics"], found["units"][:2], code) == ("ok: ", "ok", 0)


AT_ONE_GO = """
    spec = Spec(
        metrics={"loss": Metric(title="Loss", direction="min"), "error": Metric(title="E", direction="min")},
        select="val/loss", epochs=False,
    )

    def train(self, run):
        return Result({"train/loss": 0.5, "val/loss": VALUE, "test/loss": 1.0})
"""


def test_a_task_without_epochs_is_trained_twice_and_no_more(said):
    found, code = said(AT_ONE_GO.replace("VALUE", "1.0"))
    assert list(found) == ["spec", "data", "training", "metrics", "units", "again", "epochs"]
    assert found["epochs"].startswith("noted: it trains at one go")
    assert code == 0
    found, code = said(AT_ONE_GO.replace("VALUE", "random.SystemRandom().random()"))
    assert "the result differs, val/loss" in found["again"]
    assert code == 1


@pytest.mark.parametrize("method", ["__init__", "data"])
def test_what_fails_once_the_number_of_epochs_is_another_is_told_and_no_traceback(said, method):
    """Where the lengths of runs are compared, nothing of it has been made before."""
    lines = """
    def __init__(self, *, lr: float = 0.1, total: int = 1):
        super().__init__(lr=lr)
        self.total = total
        METHOD
    def data(self):
        DATA
        return super().data()
"""
    fails = "1 / (total - 1)" if method == "__init__" else "1 / (self.total - 1)"
    lines = lines.replace("METHOD" if method == "__init__" else "DATA", fails)
    lines = lines.replace("METHOD", "").replace("DATA", "")
    found, code = said(lines, "+task.total=${epochs}")
    assert found["lengths"].startswith("wrong: ZeroDivisionError: division by zero (")
    assert code == 1


def test_beside_a_script_it_says_which_command_looks_at_that(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("digits.py").write_text("import segsweep\nsegsweep.main(Digits)\n")
    told = "digits.py goes through segsweep.main: python digits.py --check looks at it\n"
    for arguments, before in ([], ""), (["epochs=2"], ""), (["hidden=2"], "hidden: no such key"):
        assert check.main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith(before)
        assert said.endswith(told)
    monkeypatch.setattr(check, "check", lambda cfg, choices: [])
    for chosen in ["task=segmentation"], ["experiment=base_unet", "data=phantom"], ["model=unet"]:
        assert check.main(chosen) == 0


def test_an_argument_that_the_option_does_not_name_is_to_be_added(said):
    told, code = said("    def __init__(self, *, lr=0.1, mode='x'):\n        super().__init__(lr=lr)", "task.mode=y")
    wanted = "task.mode: an argument of the task that its option does not name is added, +task.mode=y"
    assert (told, code) == ({wanted: ""}, 1)
