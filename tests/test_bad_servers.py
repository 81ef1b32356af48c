"""MLflow on a server that is silent, broken or not to be trusted: no job waits for it, and little is asked of it.

Requests and the order of events count here; how long anything takes does not."""

import json
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import toy_task
from omegaconf import OmegaConf
from test_tracking import RESULT, RUN, row

from segsweep import sync
from segsweep.core import artifacts, locks
from segsweep.core.errors import SegsweepError
from segsweep.core.session import session
from segsweep.segmentation.trained import load as load_trained
from segsweep.sweeps import why
from segsweep.sweeps.sweep import Sweep
from segsweep.tracking import copying, mirrors, recall, registry
from segsweep.tracking.store import STATE


class Server(ThreadingHTTPServer):
    """Accepts; answers 500, or nothing before it is `released`."""

    daemon_threads = True

    def __init__(self, silent: bool):
        self.asked: list[str] = []
        self.came = threading.Semaphore(0)
        self.released = threading.Event()
        if not silent:
            self.released.set()
        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.came.release()
        self.server.released.wait()
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *given) -> None:
        pass


@pytest.fixture
def server(request, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # no client gives up by itself
    made = Server(silent=request.param == "silent")
    yield made
    made.released.set()
    made.shutdown()
    made.server_close()


@pytest.fixture
def folders(tmp_path):
    made = [tmp_path / "runs" / f"{n:016x}" for n in range(4)]
    for folder in made:
        artifacts.write_json(folder / "run.json", RUN | {"signature": folder.name})
    return made


def trained(folder: Path, uri: str, epochs: int = 100, after_first: Callable[[], object] = lambda: None) -> None:
    settings = OmegaConf.create({"uri": uri, "experiment": "e"})
    with copying.Mirror(folder, settings, None) as mirror:
        for epoch in range(1, epochs + 1):
            artifacts.write_lines(folder / "history.jsonl", [row(e) for e in range(1, epoch + 1)])
            mirror.update()
            if epoch == 1:
                after_first()
        artifacts.write_json(folder / "result.json", RESULT | {"epochs": epochs})


@pytest.mark.parametrize("server", ["broken"], indirect=True)
def test_a_server_that_answers_500_is_asked_once_and_once_more_at_the_end_whatever_the_epochs_and_jobs(
    server, folders, monkeypatch
):
    failed, note = threading.Event(), copying._note
    monkeypatch.setattr(copying, "_note", lambda *given: (note(*given), failed.set()))
    session().copier = copying.Copier(later=0.0, pause=0.0)
    for folder in folders:
        trained(folder, server.uri)
        failed.wait()
    assert copying.copier().flush()
    assert len(server.asked) == 2
    assert all("500" in copying.lacking(folder) for folder in folders)


def test_while_a_copy_is_under_way_a_hundred_epochs_are_one_copy_and_the_end(folders, monkeypatch):
    copied, begun, go = [], threading.Event(), threading.Event()

    def push(folder, *given, final):
        copied.append((len(artifacts.read_lines(folder / "history.jsonl")), final))
        begun.set()
        go.wait()

    monkeypatch.setattr(mirrors, "push", push)
    session().copier = copying.Copier(later=0.0)
    trained(folders[0], "sqlite:///x", after_first=begun.wait)  # ends, whatever the store does
    go.set()
    assert session().copier.flush()
    assert copied == [(copied[0][0], False), (100, True)]
    assert copied[0][0] <= 1  # the run is told of before its first epoch is


def test_of_a_run_that_goes_on_no_two_copies_are_made_within_a_pause(folders, monkeypatch):
    copied, went = [], threading.Semaphore(0)

    def push(folder, *given, final):
        copied.append((folder, final))
        went.release()

    monkeypatch.setattr(mirrors, "push", push)
    session().copier = copying.Copier(later=0.0, pause=3600.0)
    settings = OmegaConf.create({"uri": "sqlite:///x", "experiment": "e"})
    with copying.Mirror(folders[0], settings, None) as mirror:
        went.acquire()
        for _ in range(20):
            mirror.update()
            copying.Mirror(folders[1], settings, None).__exit__()  # another's end, which goes at once
            went.acquire()
        assert [folder for folder, _ in copied] == [folders[0], *[folders[1]] * 20]
    assert session().copier.flush()
    assert copied[-1] == (folders[0], True)


def test_the_end_of_a_run_is_its_last_copy_whoever_names_its_folder(folders, monkeypatch, tmp_path):
    """A worker tells of its run by an absolute path; who ends the worker in the pause between two copies by another."""
    copied, went = [], threading.Semaphore(0)

    def push(folder, *given, final):
        copied.append(final)
        went.release()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mirrors, "push", push)
    session().copier = copying.Copier(later=0.0, pause=3600.0)
    settings = OmegaConf.create({"uri": "sqlite:///x", "experiment": "e"})
    copying.Mirror(folders[0], settings, None).update()
    went.acquire()
    copying.Mirror(folders[0], settings, None).update()
    copying.Mirror(folders[0].relative_to(tmp_path), settings, None).__exit__()
    assert session().copier.flush()
    assert copied == [False, True]


def test_a_run_that_two_experiments_are_to_have_goes_to_both(folders, monkeypatch):
    copied = []
    monkeypatch.setattr(mirrors, "push", lambda folder, uri, experiment, *given, final: copied.append(experiment))
    session().copier = copying.Copier(later=3600.0)
    for experiment in "ab":  # `tracking.experiment=a,b` of a run that is finished: answered within a moment
        settings = OmegaConf.create({"uri": "sqlite:///x", "experiment": experiment})
        copying.Mirror(folders[0], settings, None).update()
    assert session().copier.flush()
    assert sorted(copied) == ["a", "b"]


class Late(threading.Condition):
    """For who waits with a bound, its seconds are over at once as often as `over` says."""

    def __init__(self, over: int):
        super().__init__()
        self.over, self.waits = over, [threading.Event() for _ in range(over + 1)]

    def wait_for(self, predicate, timeout=None):
        self.waits[len(self.waits) - 1 - self.over].set()
        if self.over:
            self.over -= 1
            seen = self.copier._copies
            super().wait_for(lambda: self.copier._copies > seen)
            return predicate()
        return super().wait_for(predicate)


@pytest.mark.parametrize(("uri", "whole"), [("sqlite:///x", True), ("mlruns", True), ("https://host", False)])
def test_the_end_waits_for_a_slow_store_of_this_machine_as_long_as_copies_come(folders, monkeypatch, uri, whole):
    copied, late = [], Late(over=2)

    def push(folder, *given, final):
        late.waits[min(len(copied), 2)].wait()  # one in the first bound, one in the next, then the others
        copied.append(folder)

    monkeypatch.setattr(mirrors, "push", push)
    session().copier = late.copier = copying.Copier(later=0.0)
    late.copier._changed = late
    settings = OmegaConf.create({"uri": uri, "experiment": "e"})
    for folder in folders:
        copying.Mirror(folder, settings, None).__exit__()
    assert session().copier.flush() is whole
    late.over = 0
    for event in late.waits:
        event.set()
    assert [bool(copying.lacking(folder)) for folder in folders].count(True) == (0 if whole else 3)


def test_one_run_that_a_store_of_this_machine_does_not_take_keeps_none_of_the_others_from_it(folders, monkeypatch):
    copied, go = [], threading.Event()

    def push(folder, *given, final):
        go.wait()
        if folder == folders[0]:
            raise OSError("database is locked")
        copied.append(folder)

    monkeypatch.setattr(mirrors, "push", push)
    session().copier = made = copying.Copier(later=0.0)
    settings = OmegaConf.create({"uri": "sqlite:///x", "experiment": "e"})
    for folder in folders:
        copying.Mirror(folder, settings, None).__exit__()
    made._flushing = True
    go.set()
    assert made.flush()
    assert copied == folders[1:]
    assert [copying.lacking(folder) for folder in folders] == ["database is locked", None, None, None]


@pytest.mark.parametrize("server", ["silent"], indirect=True)
def test_jobs_are_trained_before_a_silent_server_says_a_word_and_it_is_asked_once(
    server, tmp_path, allow, monkeypatch, caplog
):
    allow("toy_task.*")
    monkeypatch.setattr(recall, "PATIENCE", 0.1)
    session().copier = copying.Copier(later=0.0)
    cfg = toy_task.composed(tmp_path)
    settings = {"uri": server.uri, "experiment": "e"}
    ended = [toy_task.do(cfg, tmp_path / "runs", tracking=settings, seed=seed) for seed in range(3)]
    assert [outcome.status for outcome in ended] == ["finished"] * 3
    assert not server.released.is_set()
    for _ in ("whether it knows the first run", "the first copy"):
        assert server.came.acquire(timeout=60)
    assert caplog.text.count("MLflow was not asked") == 1
    assert "no answer within 0 s" in caplog.text
    assert not copying.copier().flush(0.1)
    assert all("did not answer" in copying.lacking(outcome.folder) for outcome in ended)
    assert len(server.asked) == 2


def led(folder: Path, runs: list[Path], place: dict | None) -> Sweep:
    """A sweep of these runs that is about to end."""
    artifacts.write_json(folder / "sweep.json", {"name": folder.name, "mlflow": place})
    for number, run in enumerate(runs):
        job = {"number": number, "run": f"../../runs/{run.name}", "status": "finished"}
        artifacts.write_json(folder / str(number) / "job.json", job)
    sweep = Sweep()
    sweep.folder = folder
    return sweep


@pytest.mark.parametrize("server", ["silent"], indirect=True)
def test_the_end_of_a_command_leaves_a_silent_server_and_says_what_sync_brings(
    server, folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(copying, "END", 0.2)
    for folder in folders:
        trained(folder, server.uri, epochs=1)
    place = {"uri": server.uri, "experiment": "e", "run_id": "a", "error": None, "parent": True}
    led(tmp_path / "sweep", folders, place)._finish_mlflow(tmp_path / "sweep", stopped=False, bad=False)
    assert not server.released.is_set()
    said = capsys.readouterr().err
    assert said.startswith("MLflow was out of reach (it did not answer within 0 s); nothing is lost: ")
    assert said.strip().endswith(f"python -m segsweep.sync {tmp_path / 'sweep'}   brings 4 of 4 runs")


@pytest.mark.parametrize("server", ["silent"], indirect=True)
def test_a_sweep_whose_own_run_cannot_be_closed_ends_all_the_same(server, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(copying, "END", 0.1)
    monkeypatch.setattr("segsweep.sweeps.sweep.SHORT", 0.1)
    place = {"uri": server.uri, "experiment": "e", "run_id": "a", "error": None, "parent": True}
    led(tmp_path / "sweep", folders, place)._finish_mlflow(tmp_path / "sweep", stopped=False, bad=False)
    assert not server.released.is_set()
    assert "did not answer" in capsys.readouterr().err


def test_without_tracking_an_old_error_of_mlflow_is_not_told(folders, tmp_path, capsys):
    artifacts.write_json(folders[0] / STATE, {"error": "of last week"})
    led(tmp_path / "sweep", folders, None)._finish_mlflow(tmp_path / "sweep", stopped=False, bad=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["link", "outside", "folder"])
def test_what_a_server_gives_in_place_of_a_file_is_refused(tmp_path, kind):
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "secret").write_text("of somebody else")
    given = {"link": place / "config.yaml", "outside": place / ".." / "secret", "folder": place / "config.yaml"}[kind]
    if kind == "link":
        given.symlink_to(tmp_path / "secret")
    elif kind == "folder":
        given.mkdir()
    with pytest.raises(ValueError, match="no file that was asked for"):
        recall.inside(str(given), str(place))


def test_a_run_id_of_a_server_names_no_folder_elsewhere(tmp_path, monkeypatch):
    from segsweep.core.errors import SegsweepError
    from segsweep.runs import find as found

    monkeypatch.setattr("segsweep.tracking.registry.origin", lambda reference: (None, "../../x"))
    monkeypatch.setattr("segsweep.tracking.recall.download", lambda *given: pytest.fail("was asked for"))
    with pytest.raises(SegsweepError, match="not the id of an MLflow run"):
        found.find("models:/m/1", tmp_path)


class Attack:
    """Pickled, it makes a folder where it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("by", ["a registered model", "the id of a run"])
@pytest.mark.parametrize(
    ("width", "weights", "says"),
    [
        (
            {"_target_": "mine_of_test.mark"},
            b"",
            r"model\.width\._target_=mine_of_test\.mark: not allowed to be called",
        ),
        ("${oc.env:HOME}", b"", r"width: \$\{oc\.env:HOME\}: a run's record has values, and nothing to look up"),
        (4, None, r"last\.pt: damaged, or not a checkpoint of segsweep"),
    ],
)
def test_what_a_hostile_server_keeps_as_a_run_is_read_and_runs_nothing(
    uri, tmp_path, monkeypatch, by, width, weights, says
):
    from segsweep.core.errors import SegsweepError
    from segsweep.runs import find as found
    from segsweep.segmentation import trained
    from segsweep.tracking import store

    mark, folder = tmp_path / "mark", tmp_path / "runs" / ("0" * 16)
    (tmp_path / "mine_of_test.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nmark = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = {"_target_": "segsweep.segmentation.models.unet.UNet", "width": width, "depth": 2}
    artifacts.write_text(folder / "config.yaml", json.dumps({"model": model, "data": {"image_size": 16}}))
    artifacts.write_json(
        folder / "run.json", RUN | {"signature": folder.name, "data": RUN["data"] | {"image_shape": [16, 16, 3]}}
    )
    artifacts.write_json(folder / "result.json", RESULT)
    (folder / "last.pt").write_bytes(pickle.dumps(Attack(mark)) if weights is None else weights)
    run_id = mirrors.push(folder, uri, "e", None, final=True)
    shutil.rmtree(folder)
    if by == "a registered model":
        client = store.connect(uri)
        client.create_registered_model("m")
        client.create_model_version("m", client.get_run(run_id).info.artifact_uri, run_id, tags={"folder": "../x"})
    place, _ = found.find("models:/m/1" if by == "a registered model" else run_id, tmp_path / "none")
    assert (place / "last.pt").exists()
    with pytest.raises(SegsweepError, match=says):
        trained.load(place)
    assert not mark.exists()


def test_a_run_whose_task_writes_no_split_is_downloaded(uri, folders, tmp_path, monkeypatch):
    (folders[0] / "config.yaml").write_text("{}")
    artifacts.write_json(folders[0] / "result.json", RESULT)
    run_id = mirrors.push(folders[0], uri, "e", None, final=True)
    monkeypatch.setattr(recall, "default", lambda: uri)
    recall.download(run_id, tmp_path / "got")
    assert sorted(file.name for file in (tmp_path / "got").iterdir()) == ["config.yaml", "run.json"]


def test_pictures_and_weights_of_a_server_take_no_other_names(uri, folders, tmp_path, monkeypatch):
    from segsweep.tracking import store

    folder, evil = folders[0], tmp_path / "evil"
    evil.mkdir()
    for name in ("config.yaml", "split.json", "history.jsonl", "patients.csv", "curves.png", "last.pt"):
        (folder / name).write_text(f"{{}} {name}")
    artifacts.write_json(folder / "result.json", RESULT)
    run_id = mirrors.push(folder, uri, "e", None, final=True)
    client = store.connect(uri)
    for name in ("lock", "result.json", "mlflow.json", "last.pt", "x.py"):
        (evil / name).write_text("of the server's")
        client.log_artifact(run_id, str(evil / name), "figures")
    client.log_artifact(run_id, str(evil / "x.py"), "weights")

    there = tmp_path / "there" / folder.name
    with locks.lock(there):
        assert recall.Restorer().restore(there, uri, "e")
        assert locks.held(there)  # by this very file
    files = {file.name for file in there.iterdir()}
    assert {"curves.png", "result.json", STATE} <= files
    assert not files & {"x.py", "last.pt"}
    assert (there / "lock").read_text() == ""
    assert json.loads((there / "result.json").read_text())["metrics"] == RESULT["metrics"]
    monkeypatch.setattr(recall, "default", lambda: uri)
    recall.download(run_id, tmp_path / "got")
    assert sorted(file.name for file in (tmp_path / "got").rglob("*")) == [
        *("config.yaml", "curves.png", "last.pt", "patients.csv", "run.json", "split.json"),
    ]


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "sqlite:////elsewhere/x.db",
        "databricks",
        "/elsewhere",
        "sqlite:///file:/elsewhere/x?uri=true",
    ],
)
def test_an_address_that_a_runs_folder_names_is_asked_if_it_is_ones_own(tmp_path, monkeypatch, uri):
    asked = []
    for module in (recall, mirrors, registry):
        monkeypatch.setattr(module, "connect", lambda uri: asked.append(uri) or 1 / 0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = tmp_path / "here" / "run"
    uri = uri.replace("/elsewhere", f"{tmp_path}/elsewhere")
    artifacts.write_json(run / "mlflow.json", {"uri": uri, "experiment": "e", "run_id": "a" * 32})
    artifacts.write_json(run / "result.json", RESULT)
    artifacts.write_text(run / "config.yaml", f"tracking: {{uri: '{uri}', experiment: e}}\nmodel: {{}}\ndata: {{}}\n")
    artifacts.write_json(run / "run.json", {})
    monkeypatch.setattr(sys, "argv", ["sync", str(run)])
    with pytest.raises(SegsweepError, match="MLFLOW_TRACKING_URI"):
        recall.fetch(run / "best.pt")
    with pytest.raises(SegsweepError, match="is in MLflow alone, which is not asked: .* MLFLOW_TRACKING_URI"):
        load_trained(run, "best")
    why._mirror(run)
    assert sync.main() == 1
    assert asked == []
    monkeypatch.setattr(sys, "argv", ["sync", str(run), "--uri", uri])
    assert sync.main() == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ZeroDivisionError):
        recall.fetch(run / "best.pt")
    assert set(asked) == {uri}
    assert len(asked) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    artifacts.write_json(run / "mlflow.json", {"uri": "sqlite:///mlruns/other.db", "experiment": "e", "run_id": "a"})
    monkeypatch.setattr(sys, "argv", ["sync", str(run)])
    assert sync.main() == 1
    assert asked[2:] == ["sqlite:///mlruns/other.db"]
