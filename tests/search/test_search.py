"""What a search asks, tells and counts: real studies, jobs that train nothing."""

import contextlib
import json
import math
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import postgres
import pytest
from commands import until
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.samplers import GridSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from toy_search import Batches, Toy, search, study

from segsweep.core import artifacts, locks
from segsweep.core.errors import ConfigError
from segsweep.core.session import session
from segsweep.search.study import Seeded, Study, counted
from segsweep.sweeps import sweep

RATE = "optim.lr=tag(log,interval(1e-4,1e-1))"


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


@pytest.fixture(autouse=True)
def said() -> list[str]:
    """What a search says."""
    texts: list[str] = []
    session().sink = lambda event: texts.append(event.get("text", ""))
    return texts


@pytest.fixture
def run(tmp_path, url) -> Callable[..., Any]:
    """A search of the study `s`, each time in a sweep folder of its own."""

    def run(*overrides: str, trials: int = 4, **settings: Any) -> Any:
        folder = tmp_path / f"sweep{time.monotonic_ns()}"
        if make := settings.pop("make", None):
            settings["launcher"] = make(folder)
        given = [*overrides, f"search.trials={trials}"]
        for key, value in (("search.study", "s"), ("search.storage", url)):
            given += [] if any(o.startswith(key) for o in overrides) else [f"{key}={value}"]
        return search(folder, *given, **settings)

    return run


def states(url: str) -> dict[str, int]:
    return dict(Counter(t.state.name for t in counted(study(url).trials)))


def trained(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_a_study_that_is_continued_runs_what_is_missing_and_its_numbers_go_on(run, url, tmp_path):
    run(trials=3)
    assert states(url) == {"COMPLETE": 3}
    launcher = run(trials=5)
    assert states(url) == {"COMPLETE": 5}
    assert sorted(int(path.name) for path in launcher.folder.iterdir() if path.is_dir()) == [3, 4]
    assert len(trained(tmp_path)) == len(set(trained(tmp_path))) == 5
    run(trials=5)
    assert len(trained(tmp_path)) == 5


def test_each_free_slot_has_a_trial_at_once_told_with_what_is_known(run, url):
    seen = []

    class Watching(Toy):
        def submit(self, overrides, number):
            seen.append((len(self.running), states(url).get("COMPLETE", 0)))
            super().submit(overrides, number)

    assert run(trials=6, make=lambda folder: Watching(folder, slots=3)).most == 3
    assert seen == [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.slow
def test_a_search_that_was_interrupted_goes_on_as_it_would_have(run, tmp_path, url):
    one = {"make": lambda folder: Toy(folder, slots=1)}
    run(trials=9, **one)
    other = f"search.storage=sqlite:///{tmp_path}/other.db"
    for trials in (2, 7, 9):
        run(other, trials=trials, **one)
    points = [[t.params for t in study(u).trials] for u in (url, other.partition("=")[2])]
    assert points[0] == points[1]
    run(f"search.storage=sqlite:///{tmp_path}/third.db", "search.seed=1", trials=2, **one)
    assert [t.params for t in study(f"sqlite:///{tmp_path}/third.db").trials] != points[0][:2]


def test_failed_and_pruned_trials_are_told_as_that_and_the_search_goes_on(run, url):
    ends = {"optim=sgd": "failed", "batch_size=8": "pruned"}
    run(trials=12, make=lambda folder: Toy(folder, ends=ends))
    found = states(url)
    assert sum(found.values()) == 12
    assert set(found) == {"COMPLETE", "FAIL", "PRUNED"}
    for trial in study(url).trials:
        expected = "FAIL" if trial.params["optim"] == "sgd" else "PRUNED" if trial.params["batch_size"] == 8 else None
        assert trial.state.name == (expected or "COMPLETE")


def test_without_a_pruner_the_same_search_takes_pruned_trials_to_their_end(run, url, said):
    run(trials=12, make=lambda folder: Toy(folder, ends={"batch_size=8": "pruned"}))
    pruned = [t for t in study(url).trials if t.state.name == "PRUNED"]
    run("pruner=none", trials=12)
    heirs = [t for t in study(url).trials if "instead_of" in t.user_attrs]
    assert [t.params for t in heirs] == [t.params for t in pruned] != []
    assert all(t.state.name == "COMPLETE" for t in heirs)
    assert len(study(url).trials) == 12 + len(pruned)
    assert any("12 of 12 trials (12 complete)" in text for text in said)


def test_a_share_of_failures_can_stop_the_search(run, url):
    with pytest.raises(HydraException, match="max_failure_rate=0.5"):
        run(
            "hydra.sweeper.max_failure_rate=0.5",
            trials=20,
            make=lambda folder: Toy(folder, ends={"search.study='s'": "failed"}),
        )
    run("hydra.sweeper.max_failure_rate=0.5", "search.study=t", trials=2)
    assert study(url, "t").best_value > 0


def test_the_best_trial_is_the_best_by_the_metrics_own_direction(run, url, said):
    run("search.objective=[val/loss]", trials=6)
    found = study(url)
    assert found.best_value == min(t.value for t in found.trials)
    assert any(f"best val/loss {found.best_value:.4f} in trial {found.best_trial.number}" in text for text in said)


@pytest.mark.parametrize(("epoch", "share"), [("best", 1), ("last", 1), ("2", 2 / 3), ("1", 1 / 3)])
def test_the_score_is_that_of_the_epoch_asked_for(run, url, epoch, share):
    run(f"search.epoch={epoch}", trials=1)
    (trial,) = study(url).trials
    assert trial.value == pytest.approx(share * (1 - abs(math.log10(trial.params["optim.lr"]) + 2) / 4), abs=1e-6)


def test_a_point_that_is_known_from_another_search_costs_nothing(run, url, tmp_path):
    first = run(trials=3)
    run("search.study=other", trials=3)
    assert len(trained(tmp_path)) == 3
    assert [t.value for t in study(url, "other").trials] == [t.value for t in study(url).trials]
    assert {t.user_attrs["status"] for t in study(url, "other").trials} == {"reused"}
    assert first.most == 2


@pytest.mark.parametrize("preset", ["random", "tpe"])
def test_a_point_that_the_study_has_is_not_asked_again_and_a_finite_space_ends(preset, run, url, tmp_path, said):
    small = ["model=unet", "loss=bce,dice", "optim=sgd,adam", "optim.lr=0.01", "batch_size=8", "search.when=[]"]
    run(*small, "model.width=int(interval(4,9))", preset=preset, trials=50)
    points = [str(t.params) for t in counted(study(url).trials)]
    assert len(points) == len(set(points)) == 24, "to the last: nothing is left to luck"
    assert len(trained(tmp_path)) == 24
    assert any("24 points" in text for text in said)


def test_where_the_best_is_known_a_draw_of_what_was_good_comes_before_one_of_anything(run, url):
    """The score is of the rate alone. TPE's own answer soon is a known point; 8 of 48 have the best rate."""
    rates = "optim.lr=0.01,0.03,0.1,0.001,0.0003,0.0001"
    small = ["model=unet,r2unet", "loss=bce,dice", "optim=sgd,adam", rates, "batch_size=8,16", "search.when=[]"]
    run(*small, "pruner=none", trials=26, make=lambda folder: Toy(folder, slots=1))
    late = [t.params["optim.lr"] for t in counted(study(url).trials)][8:]
    assert late.count(0.01) > len(late) / 3, "a sixth by chance"


def test_a_grid_has_every_point_once(run, url):
    run("loss=bce,dice", "batch_size=8,16", "optim.lr=0.01", "model=unet", "optim=adam", preset="grid", trials=48)
    assert sorted((t.params["loss"], t.params["batch_size"]) for t in study(url).trials) == [
        ("bce", 8), ("bce", 16), ("dice", 8), ("dice", 16),
    ]  # fmt: skip


def test_limits_are_constraints_that_the_sampler_knows_and_the_best_trial_keeps(run, url):
    wide = ["model.width=int(interval(2,32))", "optim.lr=0.01", "search.max_parameters=100", "search.max_seconds=30"]
    run(*wide, "search.objective=[val/dice]", trials=16)
    found = study(url)
    for trial in found.trials:
        width = trial.params["model.width"]
        assert trial.constraints == pytest.approx({"max_parameters": width**2 / 100 - 1, "max_seconds": width / 30 - 1})
    assert found.best_trial.params["model.width"] <= 10
    later = [t.params["model.width"] <= 10 for t in found.trials[8:]]
    assert sum(later) > len(later) / 2, "27 % of the interval is within the limit"


def test_a_value_is_asked_only_where_its_condition_holds(run, url):
    when = "search.when=['optim=sgd: optim.momentum=interval(0.5,0.9)','optim.momentum>0.7: optim.nesterov=true,false']"
    run(when, trials=14)
    kinds = Counter()
    for trial in study(url).trials:
        momentum = trial.params.get("optim.momentum")
        assert (momentum is not None) == (trial.params["optim"] == "sgd")
        assert ("optim.nesterov" in trial.params) == (momentum is not None and momentum > 0.7)
        kinds[len(trial.params)] += 1
    assert len(kinds) == 3


def test_a_function_of_ones_own_may_extend_the_space_once_the_environment_allows_it(run, url, allow):
    own = "hydra.sweeper.custom_search_space=toy_search.extend"
    with pytest.raises(HydraException, match="toy_search.extend"):
        run(own, trials=1)
    allow("toy_search.*")
    run(own, trials=3)
    assert all(0 <= t.params["optim.weight_decay"] <= 0.1 for t in counted(study(url).trials))


def test_the_command_line_replaces_and_adds_to_a_presets_space(run, url):
    launcher = run("optim=sgd", "batch_size=4", "optim.momentum=0.8", "model.width=4,8", trials=3)
    for trial in study(url).trials:
        assert set(trial.params) == {"model", "loss", "optim.lr", "model.width"}
    job = json.loads((launcher.folder / "0" / "job.json").read_text())
    assert {"optim=sgd", "batch_size=4", "optim.momentum=0.8", "+search=tpe"} <= set(job["overrides"])
    assert {"search.study='s'", "search.trial=0"} <= set(job["overrides"])


def test_a_samplers_own_complaint_is_told_before_any_job(run, tmp_path):
    with pytest.raises(HydraException, match=r"hydra\.sweeper\.sampler: .*population_size"):
        run("hydra.sweeper.sampler.population_size=1", preset="nsga2")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["it's", "Prüfung 1", "back\\slash"])
def test_any_name_of_a_study_reaches_its_jobs(run, url, name):
    launcher = run(f"search.study={QuotedString(name, Quote.single).with_quotes()}", trials=1)
    entry = json.loads((launcher.folder / "0" / "job.json").read_text())
    given = OverridesParser.create().parse_overrides(entry["overrides"])
    assert {o.key_or_group: o.value() for o in given}["search.study"] == name
    assert len(study(url, name).trials) == 1


def test_two_objectives_make_a_front(run, url, said):
    run("model.width=int(interval(2,32))", preset="nsga2", trials=24)
    found = study(url)
    assert [d.name for d in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert all(t.values[1] == t.params["model.width"] for t in counted(found.trials))
    assert any(f"{len(found.best_trials)} on the Pareto front" in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["random", "cmaes", "gp"])
def test_every_preset_searches(run, url, preset):
    run(preset=preset, trials=8)
    assert states(url) == {"COMPLETE": 8}


def test_a_launcher_that_takes_batches_only_is_given_batches(run, url):
    assert run("hydra.sweeper.n_jobs=3", trials=7, make=Batches).most == 3
    assert states(url) == {"COMPLETE": 7}


def test_trials_of_a_search_that_is_stopped_are_put_back_and_taken_up_first(run, url, tmp_path):
    class Stopped(Toy):
        def wait(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(trials=5, make=Stopped)
    assert states(url) == {"WAITING": 2}
    begun = [t.params for t in study(url).trials[:2]]
    run(trials=5)
    assert states(url) == {"COMPLETE": 5}
    assert [t.params for t in counted(study(url).trials)][:2] == begun


def test_no_run_says_that_its_trial_runs_once_its_process_has_ended(run, url, tmp_path):
    class Begun(Toy):
        def submit(self, overrides, number):
            super().submit(overrides, number)
            (trial,) = (int(o.partition("=")[2]) for o in overrides if o.startswith("search.trial="))
            note(f"run{trial}", trial)

        def wait(self):
            raise KeyboardInterrupt

    def note(name, trial, study="s"):
        about = {"study": study, "number": trial, "state": "RUNNING"}
        artifacts.write_json(tmp_path / "runs" / name / "trial.json", about)

    def noted():
        found = {file.parent.name: artifacts.read_json(file) for file in tmp_path.glob("runs/*/trial.json")}
        return {name: about["state"] for name, about in found.items() if about["state"] != "COMPLETE"}

    with pytest.raises(KeyboardInterrupt):
        run(trials=5, make=Begun)
    assert noted() == {"run0": "FAIL", "run1": "FAIL"}
    note("run0", 0)  # as of a process that was killed
    note("taken up again", 1)
    note("of another study", 0, "t")
    with locks.lock(tmp_path / "runs" / "taken up again"):
        run(trials=5)
    assert noted() == {"run0": "FAIL", "run1": "FAIL", "taken up again": "RUNNING", "of another study": "RUNNING"}


def test_without_a_name_a_study_is_named_by_what_it_searches(tmp_path, url):
    import optuna

    def names() -> list[str]:
        return optuna.get_all_study_names(url)

    def go(*overrides: str) -> None:
        search(tmp_path / f"s{time.monotonic_ns()}", *overrides, f"search.storage={url}")

    go("search.trials=1")
    go("search.trials=2")
    assert len(names()) == 1
    go("search.trials=1", "epochs=2")
    go("search.trials=1", "search.seed=1")
    assert len(names()) == 3
    assert all(re.fullmatch("tpe-[0-9a-f]{8}", name) for name in names())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optim.lr=interval(0.1,0.2)"], r"optim.lr: FloatDistribution\(high=0.1.*there, FloatDistribution\(high=0.2"),
        (["epochs=2"], "epochs: 4 there, 2 here"),
        (["search.objective=[val/loss]"], "direction: maximize there, minimize here"),
        (["search.objective=[val/dice,gflops]"], "direction: maximize there, maximize, minimize here"),
        (["search.objective=[val/iou]"], "search.objective: val/dice there, val/iou here"),
        (["loss=bce"], "loss: CategoricalDistribution.* there, bce here"),
        (["search.max_seconds=5"], "search.max_seconds: none there, 5.0 here"),
    ],
)
def test_a_study_of_another_search_is_refused_before_any_job(run, url, overrides, says):
    run(trials=1)
    with pytest.raises(HydraException, match=says):
        run(*overrides, trials=3)
    assert len(study(url).trials) == 1


def test_a_journal_whose_last_line_is_cut_off_is_told(run, tmp_path):
    (tmp_path / "journal.log").write_text('{"op_code": 0, "worker_id"')
    with pytest.raises(HydraException, match="its last line is cut off"):
        run(f"search.storage=journal:///{tmp_path}/journal.log")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("postgresql://u:secret@127.0.0.1:1/none", r"postgresql://\*\*\*@127.0.0.1:1/none: cannot be opened"),
        ("nosuch://host/db", "nosuch"),
        ("optuna.db", "an address is needed, such as sqlite:///"),
        ("sqlite:////proc/none/optuna.db", "cannot be opened"),
        ("sqlite://", "names no file"),
        ("journal:////proc/none/optuna.log", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_told_before_any_job(run, tmp_path, address, says):
    with pytest.raises(HydraException, match=says):
        run(f"search.storage={address}")
    assert not (tmp_path / "log").exists()


def test_a_journal_that_another_process_is_writing_is_waited_for_and_its_folder_made(tmp_path, monkeypatch):
    from segsweep.search import study as module

    file = tmp_path / "some" / "where" / "journal.log"
    study = module.open_storage(f"journal:///{file}").create_new_study([StudyDirection.MAXIMIZE], "s")
    whole = file.read_text()
    file.write_text(whole[:-1])  # its last line has no end yet
    monkeypatch.setattr(module.time, "sleep", lambda seconds: file.write_text(whole))
    assert module.open_storage(f"journal:///{file}").get_study_name_from_id(study) == "s"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("No module named 'psycopg2'; is it installed?", "; pip install 'segsweep[postgres]'"),
        ("psycopg2: connection refused", ""),
        ("the driver is not installed", ""),
    ],
)
def test_how_a_driver_is_installed_is_said_where_it_is_not(monkeypatch, tmp_path, error, told):
    from segsweep.search import study as module

    asked = []

    def storage(url, engine_kwargs):
        asked.append(url)
        raise ImportError(error)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "RDBStorage", storage)
    with pytest.raises(ConfigError) as caught:
        module.open_storage("postgresql://host/base")
    assert str(caught.value).endswith(f"cannot be opened: {error}{told}")
    assert asked == ["postgresql+psycopg2://host/base"]
    assert not list(tmp_path.iterdir())  # as a database of SQLite would have left


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage(request, tmp_path) -> Iterator[str]:
    if request.param == "postgresql":
        if postgres.PG_CTL is None:
            pytest.skip("no PostgreSQL on this machine")
        with postgres.server() as server:
            yield server.url
    else:
        yield f"{request.param}:///{tmp_path}/optuna.{request.param}"


@pytest.mark.slow
def test_two_processes_one_killed_make_the_total_exactly(tmp_path, storage):
    """Two slots each; each trial is trained once, none is left running."""
    toy = str(Path(__file__).with_name("toy_search.py"))
    given = ["search.study=s", f"search.storage={storage}", "search.trials=24"]

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, toy, str(tmp_path / name), "0.15", *given]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, text=True, **streams)

    both = [start("a"), start("b")]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    until(lambda: len(list(tmp_path.glob("b/*/job.json"))) >= 3 or both[1].poll() is not None)
    both[1].send_signal(signal.SIGKILL)
    both[1].communicate()
    output, errors = both[0].communicate(timeout=120)
    assert both[0].returncode == 0, output + errors
    trials = study(storage).trials
    ended = counted(trials)
    assert Counter(t.state.name for t in ended) == {"COMPLETE": 24}
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert len({str(t.params) for t in ended}) == 24
    assert max(Counter(trained(tmp_path)).values()) == 1
    assert len(trained(tmp_path)) == 24
    assert {t.user_attrs["owner"]["folder"] for t in ended} == {str(tmp_path / "a"), str(tmp_path / "b")}
    assert any("instead_of" in t.user_attrs for t in ended), "the killed process had trials in hand"


def test_a_storage_that_goes_away_stops_the_search_and_nothing_is_lost(tmp_path):
    if postgres.PG_CTL is None:
        pytest.skip("no PostgreSQL on this machine")
    session().sweep = sweep.Sweep(asked="python -m segsweep -m +search=tpe")
    with postgres.server() as server:

        class Leaving(Toy):
            def submit(self, overrides, number):
                super().submit(overrides, number)
                if number == 3:
                    server.stop()

        given = ["search.study=s", f"search.storage={server.url}", "search.trials=6"]
        with pytest.raises(HydraException) as caught:
            search(tmp_path / "one", *given, launcher=Leaving(tmp_path / "one"))
        assert "To go on when the storage is back: python -m segsweep -m +search=tpe" in str(caught.value)
        begun = trained(tmp_path)
        assert len(begun) == 4, "what ran went on to its end"
        server.start()
        search(tmp_path / "two", *given)
        assert states(server.url) == {"COMPLETE": 6}
    assert len(trained(tmp_path)) == len(set(trained(tmp_path))) == 6


def test_of_two_heirs_one_counts_and_it_has_the_place_of_the_first_try():
    def trial(number: int, **attributes: Any) -> FrozenTrial:
        return FrozenTrial(
            number=number, trial_id=number, state=TrialState.FAIL, value=None, datetime_start=None,
            datetime_complete=None, params={}, distributions={}, user_attrs=attributes, system_attrs={},
            intermediate_values={},
        )  # fmt: skip

    heirs = [trial(3, instead_of=1, origin=1), trial(4, instead_of=1, origin=1), trial(5, instead_of=3, origin=1)]
    found = counted([trial(0), trial(1), trial(2), *heirs, trial(6, withdrawn="late")])
    assert [t.number for t in found] == [0, 5, 2]


def part(url: str, folder: Path, host: str = "") -> Study:
    """A process of a search, as it is there before its first trial."""
    made = Study("s", url, RandomSampler(), ["maximize"], {}, folder)
    made.owner |= {"host": host} if host else {}
    return made


def test_a_trial_that_is_put_back_twice_keeps_the_place_of_its_first_try(tmp_path, url):
    here = part(url, tmp_path)
    for _ in range(2):
        assert here.claim(3) is not None
    here.put_back(0)
    first = here.claim(3)
    assert first is not None
    assert (first.number, first.user_attrs["origin"]) == (2, 0)
    here.put_back(2)
    second = here.claim(3)
    assert second is not None
    assert (second.number, second.user_attrs["origin"]) == (3, 0)
    assert [t.number for t in counted(here.trials())] == [3, 1]


def test_the_point_of_a_grid_that_nobody_worked_on_is_asked_again(tmp_path, url):
    here = Study("s", url, GridSampler({"x": [0, 1]}), ["maximize"], {}, tmp_path)
    left = here.claim(2)
    assert left is not None
    left.suggest_categorical("x", [0, 1])
    here.withdraw(left, "late")
    trials = [here.claim(2) for _ in range(2)]
    assert sorted(trial.suggest_categorical("x", [0, 1]) for trial in trials if trial) == [0, 1]


def test_a_process_is_known_by_its_machine(tmp_path, url):
    assert part(url, tmp_path).owner["host"].startswith(socket.gethostname())


def test_what_a_sampler_of_a_finite_space_says_at_its_end_is_no_error_and_anything_else_is(tmp_path, url):
    for says, ends in (("`Study.stop` is supposed to be invoked inside", True), ("something is wrong", False)):

        class Ending(RandomSampler):
            def after_trial(self, *given):
                raise RuntimeError(says)  # noqa: B023

        sampler = Seeded(lambda seed, repeats: Ending(seed), 0)
        with contextlib.nullcontext() if ends else pytest.raises(RuntimeError, match=says):
            sampler.after_trial(None, None, TrialState.COMPLETE, [1.0])


def test_on_another_machine_a_process_is_dead_when_it_gives_no_sign_of_life(tmp_path, url, monkeypatch):
    from segsweep.search import study as module

    here, there = (part(url, tmp_path / name, name) for name in ("here", "there"))
    clock = SimpleNamespace(sleep=time.sleep, now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    mine = there.claim(2)
    assert mine is not None
    assert here.claim(2) is not None
    for count in range(3):  # alive
        mine.set_user_attr("beat", count)
        clock.now += module.GRACE - 1
        assert here.claim(2) is None
    clock.now += module.GRACE + 1
    taken = here.claim(2)
    assert taken is not None
    assert taken.user_attrs["instead_of"] == mine.number
    assert there.tell(mine, TrialState.COMPLETE, [1.0], {}, {}) is False


def test_what_somebody_else_has_queued_is_run_if_this_search_could_have_asked_it_and_else_left_out(run, url, said):
    run(trials=1)
    odd = [{"+model._target_": "os.system"}, {"loss": "../../x"}, {"optim.lr": 5.0}, {"optim.lr": "0.01"}]
    for params in [*odd, {"loss": "dice", "optim.lr": 0.02}]:
        study(url).enqueue_trial(params)
    log = FloatDistribution(1e-4, 1e-1, log=True)
    kinds = {"hydra.job.env_set.PATH": ("/tmp", CategoricalDistribution(["/tmp", "/"]))}
    kinds |= {"\x1b[2J": (1, CategoricalDistribution([1, 2])), "optim.lr": (0.03, log)}
    for key, (value, kind) in kinds.items():
        study(url).add_trial(create_trial(state=TrialState.WAITING, params={key: value}, distributions={key: kind}))
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:  # by hand, round Optuna
        other = distribution_to_json(FloatDistribution(1e-4, 1e-1))
        file.execute("update trial_params set distribution_json = ? where param_value = 0.03", [other])
    launcher = run(trials=5)
    jobs = [json.loads(path.read_text())["overrides"] for path in launcher.folder.glob("*/job.json")]
    assert len(jobs) == 4
    assert {o.partition("=")[0] for job in jobs for o in job if not o.startswith(("+search", "search."))} <= {
        *("model", "loss", "optim", "optim.lr", "optim.momentum", "batch_size", "paths.runs", "tracking"),
        "hydra.sweep.dir",
    }
    assert sum({"loss=dice", "optim.lr=0.02"} <= set(job) for job in jobs) == 1
    assert states(url) == {"COMPLETE": 5}
    told = "\n".join(text for text in said if "which somebody has queued, is not of this search" in text)
    assert len(told.splitlines()) == len(odd) + len(kinds)
    for part in (
        "optim.lr=0.03",
        "+model._target_",
        "loss=../../x",
        "optim.lr=5.0",
        "optim.lr=0.01",
        "hydra.job.env_set.PATH",
    ):
        assert part in told
    assert "\x1b" not in told
    withdrawn = [t for t in study(url).trials if "withdrawn" in t.user_attrs]
    assert [t.state for t in withdrawn] == [TrialState.FAIL] * len(told.splitlines())


def test_where_locks_cannot_be_told_a_living_process_is_not_taken_for_dead(tmp_path, monkeypatch):
    """Its signs of life count then, as those of another machine."""
    (tmp_path / "lock").touch()
    study = Study.__new__(Study)
    study.owner, study._silent = {"host": "a", "folder": "here", "id": "1"}, {}
    owner = {"host": "a", "folder": str(tmp_path), "id": "2"}
    trial = create_trial(state=TrialState.RUNNING, user_attrs={"owner": owner, "beat": 1})
    monkeypatch.setattr("segsweep.core.locks.held", lambda folder: None)
    assert not study._dead(trial)
    monkeypatch.setattr("segsweep.core.locks.held", lambda folder: False)
    assert study._dead(trial)
