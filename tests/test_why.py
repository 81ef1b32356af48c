"""What `python -m segsweep.why` says of runs, and what a record that is accepted for edited code may do."""

import importlib
import json
import os
import sys
from pathlib import Path

import medium
import pytest
from test_signature import OWN, PROJECTS

from segsweep.config import trust
from segsweep.core import accepted, artifacts, locks, source
from segsweep.core.errors import SegsweepError
from segsweep.report import records
from segsweep.report.contrasts import _programs
from segsweep.report.files import write as build
from segsweep.runs.run import Outcome, run
from segsweep.sweeps import why
from segsweep.sweeps.overrides import composed
from segsweep.sweeps.plan import Planner

TASK = '''"""A task that trains nothing and counts its epochs."""
import torch
from segsweep.task import Data, Metric, Result, Spec


class Count:
    spec = Spec(
        metrics={
            "loss": Metric(title="Loss", direction="min"),
            "score": Metric(title="Score", direction="max", by_unit=True),
        },
        select="val/score",
    )

    def __init__(self, *, step: float = 1.0, parts: list = (), data_digest: str = "d"):
        self.step, self.data_digest = step, data_digest

    def data(self):
        return Data(digest=self.data_digest, split="s", parts={"train": 4, "val": 2, "test": 2})

    def train(self, run):
        model = torch.nn.Linear(1, 1)
        for epoch in run.epochs(model=model):
            with torch.no_grad():
                model.bias += self.step
            epoch.report({"train/loss": 1 / epoch.number, "val/score": model.bias.item()})
        return Result({"test/score": self.step}, {"a": {"score": self.step}, "b": {"score": self.step + run.seed}})
'''
YAML = "_target_: counting.Count\n_recursive_: false\nstep: 1.0\nparts: []\n"


def fresh() -> None:
    """As a process that is started now."""
    for name in [name for name in sys.modules if name.split(".")[0] in {"counting", *OWN}]:
        del sys.modules[name]
    importlib.invalidate_caches()
    source.code.cache_clear()
    source.places.cache_clear()


@pytest.fixture
def here(tmp_path, monkeypatch, allow) -> Path:
    """A folder with the task and its conf/, in which a command would be typed."""
    allow(",".join(f"{name}.*" for name in ("counting", *OWN)))
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "count.yaml").write_text(YAML)
    (tmp_path / "counting.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(trust.TRUST, "conf")
    trust.named.cache_clear()
    fresh()
    yield tmp_path
    trust.named.cache_clear()
    fresh()


def edit(file: Path, old: str = "", new: str = "\nlr = 2\n") -> None:
    text = file.read_text()
    file.write_text(text.replace(old, new) if old else text + new)
    os.utime(file, (0, 0))  # so that Python does not take its bytecode for this
    fresh()


def command(*overrides: str) -> list[str]:
    return ["--config-dir=conf", "task=count", "tracking=none", "epochs=2", *overrides]


def do(*overrides: str) -> Outcome:
    cfg, choices = composed(command(*overrides))
    line = " ".join(["python", "-m", "segsweep", *command(*overrides)])
    outcome = run(cfg, choices=choices, name="n", command=line, sweep=None, milestones=set())
    assert outcome.error is None
    return outcome


def ask(capsys, *arguments: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert why.main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return said.err if code else said.out


def accept(capsys, folder: Path, code: int = 0) -> str:
    return ask(capsys, "--accept", folder, "--reason", "a rename", "--by", "alex", code=code)


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "lock"}


@pytest.mark.parametrize("project", PROJECTS)
def test_it_names_the_file_that_was_edited_since(project, here, capsys):
    files, target, edited = PROJECTS[project]
    for name, text in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    fresh()
    asked = f"task.parts=[{{list:[{{_target_:{target}}}]}}]"
    first = do(asked)
    assert "The same run: its record answers." in ask(capsys, first.folder)
    edit(here / edited)
    said = ask(capsys, first.folder)
    module = edited.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    lines = [line for line in said.splitlines() if line.startswith("  ")]
    assert [line.split() for line in lines] == [["file", module, f"({here / edited})", "changed"]]
    assert "It would be trained again" in said
    second = do(asked)
    assert second.status == "finished"
    both = ask(capsys, first.signature[:8], second.folder)
    assert f"file  {module} ({here / edited})  changed" in both
    assert "They are two runs: 1 file differs." in both


def test_it_says_which_values_data_and_modules_differ_and_that_versions_decide_nothing(here, capsys):
    (here / "helper.py").write_text("x = 1\n")
    first = do()
    edit(here / "counting.py", "import torch\n", "import torch\nimport helper\n")
    second = do("task.step=2", "+task.data_digest=e", "seed=3")
    record = json.loads((first.folder / "run.json").read_text())
    assert {"torch", "numpy", "python"} <= set(record["versions"])
    record["versions"]["torch"] = "1.0"
    artifacts.write_json(first.folder / "run.json", record)
    said = ask(capsys, first.folder, second.folder)
    for line in (
        "value  task.step  1.0 -> 2",
        "value  seed  0 -> 3",
        "value  task.data_digest  only in the second: e",
        "data  content of the data  d -> e",
        f"file  helper ({here / 'helper.py'})  only in the second",
        f"file  counting ({here / 'counting.py'})  changed",
    ):
        assert line.split() in [found.split() for found in said.splitlines()]
    assert "version of torch: 1.0 -> " in said
    assert "(differs, but does not decide which run it is)" in said
    assert "split" not in said
    assert "They are two runs: 3 values and 2 files and the data differ." in said
    assert "They are the same run" in ask(capsys, second.folder, second.folder)


def test_a_default_that_was_changed_in_a_folder_of_options_is_why(here, capsys):
    first = do()
    edit(here / "conf" / "task" / "count.yaml", "step: 1.0", "step: 4.0")
    said = ask(capsys, first.folder)
    assert "value  task.step  1.0 -> 4.0" in said
    assert "It would be trained again" in said
    assert "--accept" not in said


def test_without_its_options_the_recorded_configuration_is_taken(here, capsys):
    first = do()
    (here / "conf").rename(here / "elsewhere")
    assert "taken is its recorded configuration" in ask(capsys, first.folder)
    said = ask(capsys, first.folder, "--config-dir", "elsewhere")
    assert said.splitlines()[1:] == ["The same run: its record answers."]


HOSTILE = {
    "a package on the search path": ["'hydra.searchpath=[pkg://evil]'"],
    "the same, as a file": ["'hydra.searchpath=[file://evil]'"],
    "the same, added": ["'++hydra.searchpath=[pkg://evil]'", "+evil=x"],
    "the same, in a mapping": ["'++hydra={searchpath: [pkg://evil]}'", "+evil=x"],
    "the environment": ["'task.step=${oc.env:SECRET}'"],
    "the environment, its signs escaped": ["'task.step=$\\{oc.env\\:SECRET\\}'"],
    "the environment, in a variable": ["'+hydra.job.env_set.A=${oc.env:SECRET}'"],
    "an address": ["'task.step=${tracking.uri}'"],
    "a node with an address": ["'+task.parts=${tracking}'"],
    "a folder of options": ["--config-dir=evil"],
    "another first configuration": ["--config-path=evil"],
    "a package as such": ["--config-path=pkg://evil"],
    "one by another name": ["--config-name=../evil/config"],
    "a rerun": ["--experimental-rerun=evil/x.pickle"],
    "another package": ["+task@hydra.job=count"],
    "no command line": ["--nonsense"],
    "a place, in a mapping": ["'++search={storage: http://evil}'"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_words_of_a_record_are_nobodys_command_line(name, here, capsys, monkeypatch):
    folder = do().folder
    monkeypatch.setenv("SECRET", "hunter2")
    mark = here / "mark"
    (here / "evil").mkdir()
    (here / "evil" / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (here / "evil" / "config.yaml").write_text("hydra: {searchpath: ['pkg://evil']}\n")
    info = artifacts.read_json(folder / "run.json")
    artifacts.write_json(folder / "run.json", info | {"command": " ".join([info["command"], *HOSTILE[name]])})
    said = ask(capsys, folder)
    assert "Its command cannot be composed now (" in said
    assert "taken is its recorded configuration" in said
    assert "The same run: its record answers." in said
    assert not mark.exists()
    assert "hunter2" not in said
    assert "evil" not in sys.modules


def test_a_record_says_nothing_of_where_a_run_goes_and_is_kept(here, capsys):
    folder = do().folder
    info, victim = artifacts.read_json(folder / "run.json"), here.parent / "victim"
    words = f"paths.cache={victim} paths.runs={victim} tracking.uri={victim} search.storage=sqlite:///{victim}/x.db"
    words += " hydra/launcher=slurm hydra.launcher.setup=[x]"
    artifacts.write_json(folder / "run.json", info | {"command": f"{info['command']} {words}"})
    reference = why.composition(str(folder), info | {"command": f"{info['command']} {words}"}, None)
    assert "victim" not in str(reference)
    assert "The same run: its record answers." in ask(capsys, folder)
    for line in (f"+search={{storage: {victim}}}", f"++paths={{cache: {victim}}}"):
        words = f"{info['command']} '{line}'"
        if "search" in line:
            with pytest.raises(SegsweepError, match=r"^search\.storage: given by its record"):
                why.composition(str(folder), info | {"command": words}, None)
        else:
            assert "victim" not in str(why.composition(str(folder), info | {"command": words}, None))


def test_options_are_of_the_folder_that_the_asking_command_names(here, capsys, monkeypatch):
    folder = do().folder
    edit(here / "conf" / "task" / "count.yaml", "step: 1.0", "step: 2.0")
    assert "1.0 -> 2.0" in ask(capsys, folder)
    monkeypatch.delenv(trust.TRUST)
    trust.named.cache_clear()
    said = ask(capsys, folder)
    assert "its folder of options is named by its record alone: give --config-dir conf" in said
    assert "The same run" in said
    assert "1.0 -> 2.0" in ask(capsys, folder, "--config-dir", "conf")
    (here / "conf" / "experiment").mkdir()
    (here / "conf" / "experiment" / "x.yaml").write_text("# @package _global_\nhydra: {job: {env_set: {A: b}}}\n")
    info = artifacts.read_json(folder / "run.json")
    artifacts.write_json(folder / "run.json", info | {"command": f"{info['command']} experiment=x"})
    assert "hydra.job.env_set.A: set by a file under conf" in ask(capsys, folder, "--config-dir", "conf")


@pytest.mark.parametrize("damage", ["no such run", "no json", "another rule", "not importable", "not allowed"])
def test_bad_input_is_one_sentence(damage, here, capsys, allow):
    first = do()
    given = str(first.folder)
    if damage == "no such run":
        given = "abcdef"
    elif damage == "no json":
        (first.folder / "run.json").write_text("{")
    elif damage == "another rule":
        record = json.loads((first.folder / "run.json").read_text())
        artifacts.write_json(first.folder / "run.json", record | {"signature": "0" * 16})
    elif damage == "not importable":
        edit(here / "counting.py", "import torch", "import torchh")
    else:
        allow("nothing.*")
    said = ask(capsys, given, code=1)
    expected = {"no such run": "no such run under", "no json": "run.json: missing or damaged", "another rule": "rules"}
    expected |= {"not importable": "cannot be imported: No module named 'torchh'", "not allowed": "SEGSWEEP_ALLOW"}
    assert expected[damage] in said
    assert len(said.splitlines()) == 1


def test_an_accepted_record_answers_the_same_command_and_stays_as_it_was(here, capsys):
    first = do()
    before = content(first.folder)
    edit(here / "counting.py")
    said = accept(capsys, first.folder)
    assert "a longer run goes on from epoch 2" in said
    again = do()
    assert (again.status, again.folder, again.metrics) == ("reused", first.folder, first.metrics)
    assert again.accepted.startswith("by alex on 20")
    assert {k: v for k, v in content(first.folder).items() if k != accepted.FILE} == before
    (entry,) = accepted.entries(first.folder)
    (old, new) = entry["files"].pop("counting")
    assert old != new
    assert (entry["by"], entry["reason"], entry["files"]) == ("alex", "a rename", {})
    assert entry["places"] == {"counting": str(here / "counting.py")}
    told = ask(capsys, first.folder)
    assert "was accepted for" in told
    assert "The record answers all the same, as it was accepted." in told
    cfg, choices = composed(command())
    point = Planner(Path("multirun")).point(cfg, choices)
    assert (point.state, point.signature) == ("finished", first.signature)
    assert point.note.startswith("accepted by alex")
    assert "Accepted already" in accept(capsys, first.folder)
    edit(here / "counting.py")  # and again
    assert do().status == "finished"


def test_an_accepted_record_with_damaged_weights_stays_and_todays_run_is_tested_from_its_states(here, capsys):
    """Other code does not mend what it did not make."""
    first = do()
    edit(here / "counting.py")
    accept(capsys, first.folder)
    (first.folder / "last.pt").write_bytes(b"half")
    before = content(first.folder)
    again = do()
    assert (again.status, again.folder == first.folder, again.metrics) == ("reused", False, first.metrics)
    assert content(first.folder) == before
    assert json.loads((again.folder / "run.json").read_text())["accepted"] == {"run": first.signature, "epochs": 2}


def test_a_power_cut_leaves_no_state_that_passes_for_todays_own_and_no_acceptance_is_lost(here, capsys, monkeypatch):
    first = do()
    edit(here / "counting.py")
    with monkeypatch.context() as patch:
        recorder = medium.Medium(here / "multirun", patch)
        accept(capsys, first.folder)
    (entry,) = accepted.entries(first.folder)
    new = f"trajectories/{entry['trajectory']}"
    for cut in range(len(recorder.events) + 1):
        for tree in recorder.left(cut):
            taken = [name for name in tree if name.startswith(f"{new}/state_")]
            assert not taken or first.signature in tree[f"{new}/{accepted.FILE}"].decode()
    for tree in recorder.left(len(recorder.events)):
        assert b"a rename" in tree[f"runs/{first.signature}/{accepted.FILE}"]
        assert first.signature in tree[f"accepted/{entry['signature']}.json"].decode()


def test_a_longer_run_goes_on_from_an_accepted_one_and_says_so(here, capsys):
    first = do()
    states = content(next((here / "multirun" / "trajectories").iterdir()))
    edit(here / "counting.py")
    accept(capsys, first.folder)
    longer = do("epochs=4")
    assert longer.status == "continued"
    record, result = (json.loads((longer.folder / name).read_text()) for name in ("run.json", "result.json"))
    assert record["accepted"] == {"run": first.signature, "epochs": 2}
    assert result["trained_epochs"] == 2
    assert json.loads((first.folder / "run.json").read_text())["accepted"] is None
    info = json.loads((first.folder / "run.json").read_text())
    assert do("epochs=3").status == "reused"  # of the longer one's epochs
    assert content(here / "multirun" / "trajectories" / info["trajectory"]) == states
    anew = do("epochs=4", "reuse=false")
    assert json.loads((anew.folder / "run.json").read_text())["accepted"] is None


def test_what_is_taken_back_lends_no_states_either(here, capsys):
    first, second = do("epochs=2"), do("epochs=3")
    edit(here / "counting.py")
    for folder in (first.folder, second.folder):
        accept(capsys, folder)
    do("epochs=5")  # trained on from what was lent
    names = [accepted.entries(run.folder)[0]["signature"] for run in (first, second)]
    pointers = [here / "multirun" / accepted.LIST / f"{name}.json" for name in names]
    pointers[1].unlink()
    own = do("epochs=3")  # the first still stands for its epochs
    assert json.loads((own.folder / "run.json").read_text())["accepted"] == {"run": first.signature, "epochs": 2}
    assert json.loads((own.folder / "result.json").read_text())["trained_epochs"] == 1
    pointers[0].unlink()
    assert Planner(Path("multirun")).point(*composed(command("epochs=2"))).state == "new"
    own = do("epochs=2")
    assert (own.status, json.loads((own.folder / "run.json").read_text())["accepted"]) == ("finished", None)
    assert do("epochs=4").status == "continued"


def test_runs_of_one_trajectory_are_accepted_each_for_its_epochs(here, capsys):
    first, second = do("epochs=2"), do("epochs=5")
    edit(here / "counting.py")
    for folder in (first.folder, second.folder, first.folder):
        accept(capsys, folder)
    longer = do("epochs=6")
    record, result = (json.loads((longer.folder / name).read_text()) for name in ("run.json", "result.json"))
    assert (record["accepted"], result["trained_epochs"]) == ({"run": second.signature, "epochs": 5}, 1)
    shorter = do("epochs=3")
    assert json.loads((shorter.folder / "run.json").read_text())["accepted"]["run"] == first.signature
    assert (do("epochs=2").folder, do("epochs=5").folder) == (first.folder, second.folder)


def test_a_run_that_could_take_up_nothing_of_an_accepted_one_is_its_own(here, capsys):
    first = do()
    edit(here / "counting.py")
    accept(capsys, first.folder)
    (entry,) = accepted.entries(first.folder)
    states = here / "multirun" / "trajectories" / entry["trajectory"]
    for state in states.glob("state_*.pt"):
        state.write_bytes(b"half")
    for epochs in (3, 4):  # the second goes on from what the first has made
        own = do(f"epochs={epochs}")
        assert json.loads((own.folder / "run.json").read_text())["accepted"] is None
    assert (own.status, artifacts.read_json(states / accepted.FILE)) == ("continued", {})


@pytest.mark.parametrize("content", [None, "{}", "half"])
def test_a_record_without_its_description_stands_for_no_other(here, capsys, content):
    first = do()
    edit(here / "counting.py")
    accept(capsys, first.folder)
    (entry,) = accepted.entries(first.folder)
    (first.folder / "run.json").unlink()
    if content:
        (first.folder / "run.json").write_text(content)
    assert accepted.standing(here / "multirun", entry["signature"]) is None
    with pytest.raises(SegsweepError, match=r"run\.json is missing or damaged"):
        accepted.accept(first.folder, entry)
    again = do()
    assert (again.status, again.folder == first.folder) == ("reused", False)  # from its states


@pytest.mark.parametrize("lacks", ["nothing", "its options", "its data", "its end"])
def test_accepting_is_offered_where_it_would_be_taken_alone(lacks, here, capsys):
    first = do()
    edit(here / "counting.py")
    if lacks == "its options":
        (here / "conf").rename(here / "elsewhere")
    elif lacks == "its data":
        edit(here / "counting.py", "        return Data(", "        raise OSError('no disk')\n        return Data(")
    elif lacks == "its end":
        (first.folder / "result.json").unlink()
    said = ask(capsys, first.folder)
    assert "It would be trained again" in said
    assert (" --accept " in said) is (lacks == "nothing")
    assert not accept(capsys, first.folder, code=int(lacks != "nothing")).startswith("usage")


def test_a_run_that_is_not_finished_is_the_same_run(here, capsys):
    first = do()
    (first.folder / "result.json").unlink()
    assert "The same run: not finished, it goes on." in ask(capsys, first.folder)
    artifacts.write_json(first.folder / "pruned.json", {})
    assert "The same run: it was pruned; pruner=none takes it to its end." in ask(capsys, first.folder)


def test_training_anew_leaves_an_accepted_record_alone_and_then_answers_itself(here, capsys):
    first = do()
    edit(here / "counting.py")
    accept(capsys, first.folder)
    before = content(first.folder)
    anew = do("reuse=false")
    assert (anew.status, anew.folder == first.folder) == ("finished", False)
    assert content(first.folder) == before
    assert do().folder == anew.folder
    assert "finished too" in ask(capsys, first.folder)


@pytest.mark.parametrize("flag", ["--config-dir conf", "--config-dir=conf"])
def test_a_jobs_folder_stands_for_its_command_with_the_folder_of_its_options(flag, here, capsys):
    cfg, choices = composed(command())
    line = f"python -m segsweep {flag} task=count tracking=none epochs=2"
    first = run(cfg, choices=choices, name="n", command=line, sweep=None, milestones=set())
    job = here / "multirun" / "sweep" / "0"
    job.mkdir(parents=True)
    artifacts.write_json(job / "job.json", {"run": f"../../runs/{first.signature}", "overrides": command()[1:]})
    edit(here / "counting.py")
    assert "cannot be composed" not in ask(capsys, job)
    (here / "conf").rename(here / "elsewhere")
    said = accept(capsys, first.folder, code=1)
    assert "its command cannot be composed now (" in said
    assert "--config-dir" in said
    assert "Accepted:" in ask(capsys, "--accept", job, "--reason", "a rename", "--config-dir", "elsewhere")


def test_what_is_half_accepted_or_trained_anew_since_does_not_answer(here, capsys):
    first = do()
    original = (here / "counting.py").read_text()
    edit(here / "counting.py")
    accept(capsys, first.folder)
    entries = (first.folder / accepted.FILE).read_bytes()
    (first.folder / accepted.FILE).unlink()  # killed between the two files
    now = json.loads(entries)["accepted"][0]["signature"]
    assert accepted.standing(here / "multirun", now) is None
    (first.folder / accepted.FILE).write_bytes(entries)
    assert accepted.standing(here / "multirun", now)["ids"]["signature"] == first.signature
    edit(here / "counting.py", (here / "counting.py").read_text(), original)
    assert do("reuse=false").folder == first.folder
    assert accepted.standing(here / "multirun", now) is None


def test_a_record_that_goes_while_its_job_waits_is_not_trained_over(here, capsys, monkeypatch):
    first = do()
    edit(here / "counting.py")
    accept(capsys, first.folder)
    (first.folder / "result.json").rename(here / "result.json")
    answers = iter([{"ids": json.loads((first.folder / "run.json").read_text())}])
    real = accepted.standing
    monkeypatch.setattr(accepted, "standing", lambda *given: next(answers, None) or real(*given))
    before = content(first.folder)
    other = do()
    assert other.folder != first.folder
    assert (other.folder / "result.json").exists()
    assert content(first.folder) == before


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("nothing differs", "nothing differs today"),
        ("a value", "more than code differs, so it is another run: value task.step 1.0 -> 4.0"),
        ("the data", "more than code differs, so it is another run: data content of the data d -> x"),
        ("no data", "The data cannot be looked at now"),
        ("unfinished", "not finished"),
        ("locked", "a job works on it just now"),
        ("its own run", "today's code has a run of its own"),
        ("a job of today's", "a job trains"),
        ("a copy", "not among the runs of this machine"),
    ],
)
def test_it_is_refused_in_a_sentence(case, says, here, capsys):
    first = do()
    given = first.folder
    if case != "nothing differs":
        edit(here / "counting.py")
    if case == "a value":
        edit(here / "conf" / "task" / "count.yaml", "step: 1.0", "step: 4.0")
    elif case == "the data":
        edit(here / "counting.py", "digest=self.data_digest", "digest='x'")
    elif case == "no data":
        edit(here / "counting.py", "return Data(", "return nothing(")
    elif case == "unfinished":
        (first.folder / "result.json").unlink()
    elif case == "its own run":
        do()
    elif case == "a copy":
        given = first.folder.rename(here / "copy")
    busy = first.folder
    if case == "a job of today's":
        said = ask(capsys, given)
        busy = first.folder.parent / said.split("trained again, as ")[1].split(":")[0]
    if case in ("locked", "a job of today's"):
        with locks.lock(busy):
            said = accept(capsys, given, code=1)
    else:
        said = accept(capsys, given, code=1)
    assert says in " ".join(said.split())
    assert len(said.splitlines()) == 1
    assert not (given / accepted.FILE).exists()
    assert not (here / "multirun" / "accepted").exists()


def neutral(here: Path, old: str, new: str) -> None:
    """Edit at once the default of a setting and the value at which it decides nothing."""
    if not old:
        edit(here / "counting.py", 'select="val/score",', f'select="val/score", neutral={{"task.ema": {new}}},')
        edit(here / "counting.py", "step: float = 1.0,", "step: float = 1.0, ema: float | None = None,")
        return edit(
            here / "conf" / "task" / "count.yaml", "step: 1.0", f"step: 1.0\nema: {new.replace('None', 'null')}"
        )
    edit(here / "counting.py", f'"task.ema": {old}', f'"task.ema": {new}')
    return edit(here / "conf" / "task" / "count.yaml", "ema: null", f"ema: {new}")


def test_a_neutral_value_that_was_edited_with_its_default_is_a_difference_and_accepts_nothing(here, capsys):
    neutral(here, "", "None")
    first = do()
    neutral(here, "None", "0.5")
    assert "task.ema null (neutral) -> 0.5 (neutral)" in " ".join(ask(capsys, first.folder).split())
    said = accept(capsys, first.folder, code=1)
    assert "more than code differs, so it is another run: value task.ema null (neutral) -> 0.5 (neutral)" in said


def test_a_setting_that_came_with_its_neutral_value_is_no_difference(here, capsys):
    first = do()
    neutral(here, "", "None")
    assert "task.ema" not in ask(capsys, first.folder)
    accept(capsys, first.folder)
    assert do().accepted


@pytest.mark.parametrize("broken", [False, True])
def test_what_the_data_decide_may_be_neutral(broken, here, capsys):
    edit(here / "counting.py", 'select="val/score",', 'select="val/score", neutral={"precision": "fp32"},')
    edit(here / "counting.py", "digest=self.data_digest,", 'settings={"precision": "fp32"}, digest=self.data_digest,')
    edit(here / "counting.py", "step: float = 1.0,", 'step: float = 1.0, precision: str = "auto",')
    first = do("+precision=auto")
    assert "precision" not in first.folder.joinpath("run.json").read_text().partition('"factors"')[2].partition("}")[0]
    if broken:  # the data cannot be looked at, and are taken to be what they were
        edit(here / "counting.py", "return Data(", "return nothing(")
    said = ask(capsys, first.folder)
    assert "precision" not in said
    assert ("The same run: its record answers." in said) is not broken


@pytest.mark.parametrize("arguments", [["--accept", "a"], ["--accept", "a", "b", "--reason", "r"], ["a", "--by", "b"]])
def test_who_accepts_says_why_and_of_one_run(arguments, capsys):
    with pytest.raises(SystemExit):
        why.main(arguments)
    assert "--accept" in capsys.readouterr().err


def test_the_report_shows_it_and_pools_what_it_makes_one_program(here, capsys):
    first = do()
    edit(here / "counting.py")
    other, seed = do("task.step=2"), do("seed=1")
    folders = [first.folder, other.folder, seed.folder]
    read = records.read(folders).runs
    assert _programs(read).tolist() == [[False, True, True], [True, False, False], [True, False, False]]
    assert len({r.group for r in read}) == 3
    accept(capsys, first.folder)
    read = records.read(folders).runs
    assert not _programs(read).any()
    assert read[0].group == read[2].group != read[1].group
    page = build(folders, here / "out").with_suffix(".md").read_text()
    assert "(accepted)" in page
    assert "stands for edited code (counting), accepted by alex on 20" in page
    assert "by alex on" in (here / "out" / "runs.csv").read_text()
    (first.folder / accepted.FILE).write_text('{"accepted": [{"signature": 3}, 4]}')
    assert records.read(folders).runs[0].accepted == []


def test_mlflow_is_told_of_it_after_the_run_was_closed(here, capsys, uri):
    from segsweep.tracking import store

    words = command("tracking=mlflow", f"tracking.uri={uri}", "tracking.experiment=e")
    (cfg, choices), line = composed(words), " ".join(["python", "-m", "segsweep", *words])
    first = run(cfg, choices=choices | {"data": "d"}, name="n", command=line, sweep=None, milestones=set())
    from segsweep.core.session import session

    session().copier.flush()
    state = artifacts.read_json(first.folder / store.STATE)
    assert "error" not in state, state
    edit(here / "counting.py")
    accept(capsys, first.folder)
    client = store.connect(uri)
    kept = client.get_run(state["run_id"])
    assert kept.data.tags["accepted"].startswith("by alex on")
    assert accepted.FILE in {file.path for file in client.list_artifacts(state["run_id"])}
    assert kept.info.status == "FINISHED"
