"""A power cut loses at most the last epoch, a full disk nothing that was there; both are played through here."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import medium
import pytest
import torch
import toy_task
from omegaconf import OmegaConf

from segsweep.core import artifacts, locks
from segsweep.core.session import Session, begin
from segsweep.runs.loop import Loop
from segsweep.sweeps.sweep import Sweep, _behind_the_jobs


@pytest.fixture
def cfg(tmp_path, allow):
    allow("toy_task.*")
    return toy_task.composed(tmp_path, "checkpoint.keep=1", "task.worse=2")


@pytest.fixture
def epochs(monkeypatch):
    """The numbers of the epochs that are trained, in order."""
    trained, end = [], Loop._end

    def ended(self, state, row):
        trained.append(row["epoch"])
        return end(self, state, row)

    monkeypatch.setattr(Loop, "_end", ended)
    return trained


def record(folder: Path) -> dict:
    """All of a run folder that a finished answer stands on, less what is measured."""
    weights = {name: torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt")}
    return {
        "metrics": json.loads((folder / "result.json").read_text())["metrics"],
        "history": artifacts.read_lines(folder / "history.jsonl"),
        "signature": json.loads((folder / "run.json").read_text())["signature"],
        "table": (folder / "points.csv").read_text(),
        "own": [(folder / name).read_text() for name in ("own.txt", "sub/more.txt")],
        "config": "task:" in (folder / "config.yaml").read_text(),
        "weights": {n: (w["epoch"], {k: t.tolist() for k, t in w["model"].items()}) for n, w in weights.items()},
    }


def cuts(root: Path, recorder: medium.Medium):
    """(event before the cut, epochs trained by then, what is left), each state of the medium once."""
    seen, trained = set(), 0
    for cut, event in enumerate(recorder.events, 1):
        trained = event[1] if event[0] == "epoch" else trained
        for tree in recorder.left(cut):
            key = (trained, tuple(sorted(tree.items())))
            if key not in seen:
                seen.add(key)
                yield event, trained, tree


@pytest.mark.slow
def test_a_power_cut_after_any_call_loses_at_most_the_last_epoch(tmp_path, cfg, epochs, monkeypatch):
    runs = tmp_path / "runs"
    runs.mkdir()
    with monkeypatch.context() as patch:
        recorder = medium.Medium(runs, patch)
        end = Loop._end
        patch.setattr(Loop, "_end", lambda *given: (recorder.events.append(("epoch", given[2]["epoch"])), end(*given)))
        whole = record(toy_task.do(cfg, runs).folder)
    assert whole["weights"]["best.pt"][0] == 3
    assert [event[1] for event in recorder.events if event[0] == "epoch"] == [1, 2, 3]
    states = list(cuts(runs, recorder))
    assert len(states) > 50
    for number, (event, trained, tree) in enumerate(states):
        place = tmp_path / "cut" / str(number)
        medium.write(tree, place)
        epochs.clear()
        again = toy_task.do(cfg, place)
        assert again.status in artifacts.WHOLE, (event, again.error)
        assert len(epochs) <= 3 - max(trained - 1, 0), (event, epochs)
        assert record(again.folder) == whole, event
        ended = tree.get(f"runs/{again.signature}/result.json")
        if ended:  # what it stands on was on the medium before it
            assert (again.folder / "result.json").read_bytes() == ended, event
    assert all(f"runs/{again.signature}/result.json" in tree for tree in recorder.left(len(recorder.events)))


@pytest.mark.slow
def test_a_power_cut_while_a_run_is_trained_anew_leaves_the_old_record_or_the_new(tmp_path, cfg, epochs, monkeypatch):
    runs = tmp_path / "runs"
    first = toy_task.do(cfg, runs)
    whole, old = record(first.folder), (first.folder / "result.json").read_bytes()
    with monkeypatch.context() as patch:
        recorder = medium.Medium(runs, patch)
        assert toy_task.do(cfg, runs, reuse=False).status == "finished"
    assert (first.folder / "result.json").read_bytes() != old
    epochs.clear()
    for number, (event, _, tree) in enumerate(cuts(runs, recorder)):
        place = tmp_path / "cut" / str(number)
        medium.write(tree, place)
        assert toy_task.do(cfg, place).status == "reused", event
        assert record(place / "runs" / first.signature) == whole, event
    assert number > 20
    assert not epochs


@pytest.mark.slow
def test_a_power_cut_while_a_finished_run_with_damaged_weights_is_tested_again_leaves_its_record(
    tmp_path, cfg, monkeypatch
):
    runs = tmp_path / "runs"
    folder = toy_task.do(cfg, runs).folder
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:200])
    with monkeypatch.context() as patch:
        recorder = medium.Medium(runs, patch)
        assert toy_task.do(cfg, runs).status == "reused"
    trees = [tree for _, _, tree in cuts(runs, recorder)]
    assert len(trees) > 50
    for tree in trees:
        left = {name: tree.get(f"runs/{folder.name}/{name}") for name in (*artifacts.RECORD, "best.pt", "points.csv")}
        assert all(left.values()), left.keys()


@contextlib.contextmanager
def mounted(image: Path, place: Path):
    """An ext4 file system in a file, which by itself brings nothing to the medium for ten minutes."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-o", "loop,commit=600", str(image), str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no loop device can be mounted here: not root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_power_cut_on_a_loop_device_loses_at_most_the_last_epoch_and_nothing_of_a_finished_run(
    tmp_path, cfg, epochs, monkeypatch
):
    """What the file behind the device holds is what is on the medium: it is copied after each epoch and at the end."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no mkfs.ext4 here")
    image, place, cut = tmp_path / "image", tmp_path / "disk", []

    def power_cut() -> None:
        cut.append((len(epochs), shutil.copyfile(image, tmp_path / f"cut{len(cut)}")))

    with image.open("wb") as file:
        file.truncate(32 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with mounted(image, place), monkeypatch.context() as patch:
        end = Loop._end
        patch.setattr(Loop, "_end", lambda *given: (end(*given), power_cut()))
        whole = record(toy_task.do(cfg, place / "runs").folder)
        power_cut()
    assert [done for done, _ in cut] == [1, 2, 3, 3]
    for done, left in cut:
        with mounted(left, place):
            epochs.clear()
            again = toy_task.do(cfg, place / "runs")
            assert record(again.folder) == whole, (done, again.error)
            assert len(epochs) <= 3 - done + 1
    assert again.status == "reused"
    assert not epochs


def test_an_epoch_is_flushed_in_three_calls_and_one_that_is_no_best_in_two(tmp_path, cfg, monkeypatch):
    """And of a job what ends it: six files, two of the task's own and the folder of one, its table, its folder twice;
    new folders."""
    (tmp_path / "runs").mkdir()
    recorder = medium.Medium(tmp_path / "runs", monkeypatch)
    end = Loop._end
    monkeypatch.setattr(Loop, "_end", lambda *a: (recorder.events.append(("epoch", a[2]["epoch"])), end(*a)))
    assert toy_task.do(cfg, tmp_path / "runs").status == "finished"
    kinds = "".join({"fsync": "f", "epoch": "e"}.get(event[0], "") for event in recorder.events)
    before, one, two, rest = kinds.split("e")
    assert (before.count("f"), one.count("f"), two.count("f")) == (4, 3, 2)
    assert rest.count("f") == 3 + 12


def test_files_that_are_written_together_are_flushed_at_once_and_none_has_its_name_before(tmp_path, monkeypatch):
    """Each flush waits until all have begun. ~0 s"""
    all_begun, flush = threading.Barrier(3, timeout=60), artifacts.flush
    seen = []

    def flushed(path):
        all_begun.wait()
        seen.append(sorted(file.name for file in tmp_path.glob("[!.]*")))
        flush(path)

    monkeypatch.setattr(artifacts, "flush", flushed)
    (tmp_path / "there").write_text("c")
    with artifacts.Together() as files:
        artifacts.write_text(tmp_path / "b", "b", files)
        artifacts.write_text(tmp_path / "a", "a", files)
        files.add(tmp_path / "there")
    assert seen == [["there"]] * 3
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "a", "b": "b", "there": "c"}


def test_a_file_of_a_tasks_own_that_goes_meanwhile_is_no_error_and_one_that_is_written_is(tmp_path):
    with artifacts.Together() as files:
        files.add(tmp_path / "gone")
        artifacts.write_text(tmp_path / "a", "a", files)
    files = artifacts.Together()
    artifacts.write_text(tmp_path / "b", "b", files)
    next(tmp_path.glob(".b*")).unlink()
    with pytest.raises(FileNotFoundError), files:
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_where_no_thread_can_be_started_files_are_flushed_one_by_one(tmp_path, monkeypatch):
    flushed, flush = [], artifacts.flush

    def none_left(*given):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    monkeypatch.setattr(artifacts, "flush", lambda path: (flush(path), flushed.append(path)))
    with artifacts.Together() as files:
        for name in "ab":
            artifacts.write_text(tmp_path / name, name, files)
    assert len(flushed) == 2
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_of_files_that_are_written_together_none_has_its_name_where_the_block_or_a_flush_fails(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("before")

    def write(then):
        with artifacts.Together() as files:
            artifacts.write_text(tmp_path / "a", "a", files)
            artifacts.write_text(tmp_path / "b", "b", files)
            files.add(tmp_path / "a")
            then()

    def no_room(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(KeyError):
        write(lambda: {}["x"])
    monkeypatch.setattr(artifacts, "flush", no_room)
    with pytest.raises(OSError, match="No space"):
        write(lambda: None)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "before"}


class Full:
    """A disk on which the call of this number fails: writing, flushing, renaming, linking, making a folder."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.left, self.failed = str(root), -1, ""
        for name in ("fsync", "replace", "link", "mkdir"):
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))
        real = Path.open

        def opened(path, mode="r", *given, **more):
            file = real(path, mode, *given, **more)
            if mode[0] in "wa" and str(path.absolute()).startswith(self.root):
                write = file.write
                file = Written(file, lambda content: (self.count(f"write {path.name}"), write(content))[1])
            return file

        monkeypatch.setattr(Path, "open", opened)

    def _failing(self, name, real):
        def call(*given, **more):
            self.count(name)
            return real(*given, **more)

        return call

    def count(self, what: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.failed = what
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Written:
    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def __iter__(self):
        return iter(self._file)


@pytest.mark.slow
def test_each_write_flush_and_rename_that_fails_for_want_of_room_is_one_line_and_loses_nothing(
    tmp_path, cfg, epochs, monkeypatch
):
    whole = record(toy_task.do(cfg, tmp_path / "whole", epochs=2).folder)
    failed, number = [], 0
    with monkeypatch.context() as patch:
        disk = Full(tmp_path, patch)
        while True:
            number += 1
            runs, disk.failed, disk.left = tmp_path / str(number), "", number
            outcome = toy_task.do(cfg, runs, epochs=2)
            disk.left = -1
            if not disk.failed:
                break
            failed.append(disk.failed.split()[0])
            assert (outcome.status == "failed") or record(outcome.folder) == whole, disk.failed
            if outcome.status == "failed":
                assert outcome.error.endswith("python -m segsweep.clean lists what can go"), disk.failed
                assert "\n" not in outcome.error
            there = len(list(runs.glob("trajectories/*/state_*.pt")))
            epochs.clear()
            again = toy_task.do(cfg, runs, epochs=2)
            assert record(again.folder) == whole, disk.failed
            assert not there or len(epochs) < 2
            assert not list(runs.glob("trajectories/*/.*"))
    assert failed.count("write") > 15
    assert failed.count("fsync") == 6 + 3 + 2 + 11
    assert failed.count("replace") == 13


def test_a_sweep_whose_folder_cannot_be_made_ends_with_one_line(tmp_path, capsys):
    """Hydra would warn of an error in a callback, and start the jobs."""
    (tmp_path / "file").touch()
    sweep = Sweep()
    with pytest.raises(SystemExit) as ended:
        sweep.open(tmp_path / "file" / "sweep", OmegaConf.create({"report": False}), parent=False)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{tmp_path}/file/sweep cannot be written (Not a directory)\n"
    assert sweep.abandon()


def test_a_sweep_that_is_stopped_while_it_waits_for_its_folder_has_none_and_touches_nothing(tmp_path):
    """Hydra makes a warning of an exception; of a Ctrl-C it does not."""
    begin(Session()).stop()
    sweep = Sweep()
    with locks.lock(tmp_path / "sweep"), pytest.raises(KeyboardInterrupt):
        sweep.open(tmp_path / "sweep", OmegaConf.create({"report": False}), parent=False)
    assert sweep.finish(stopped=True) == 130
    assert os.listdir(tmp_path / "sweep") == ["lock"]


def test_a_command_that_runs_behind_all_others_ends_though_it_may_not_take_more(monkeypatch):
    """As under `nice`, where no thread may have a better place than its process."""
    asked = []
    monkeypatch.setattr(os, "getpriority", lambda *_: 10)
    monkeypatch.setattr(os, "setpriority", lambda kind, who, nice: asked.append(nice))
    _behind_the_jobs()
    assert asked == [10]

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    place = {"uri": "sqlite:///x.db", "experiment": "e", "run_id": None, "error": None}
    sweep = Sweep()
    sweep._open_parent(Path("x"), {"name": "x", "command": "", "mlflow": place}, None)
    assert sweep._imported.is_set()
    assert place["error"] == "[Errno 13] Permission denied"


SIZES = (24, 100, 115, 130, 145, 160, 175, 190, 205, 220) if os.environ.get("SEGSWEEP_SOAK") else (24, 130, 180)


@pytest.mark.slow
@pytest.mark.parametrize("kib", SIZES)
def test_on_a_full_disk_a_sweep_ends_with_its_table_and_the_next_goes_on(tmp_path, kib):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of so many KiB cannot be mounted here: not root")
    toy_task.overrides(tmp_path, small)
    command = [sys.executable, "-m", "segsweep", "-m", "--config-dir", str(tmp_path / "conf"), "task=line"]
    command += ["task.lr=0.1,0.2,0.3", "tracking=none", "epochs=3", "report=false", "hydra.launcher.jobs_per_device=1"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    how = {"env": os.environ | {"SEGSWEEP_ALLOW": "toy_task.*", "PYTHONPATH": paths}, "text": True}
    try:
        first = subprocess.run([*command, f"paths.runs={small}"], capture_output=True, cwd=tmp_path, **how)
        said = first.stdout + first.stderr
        assert first.returncode == 1, said
        assert "Traceback" not in said
        assert "Error" not in re.sub(r"failed in .*: OSError: \[Errno 28\]", "", said), said
        finished = {path.parent.name: path.read_bytes() for path in small.glob("runs/*/result.json")}
        assert said.count(": finished in") == len(finished)
        if kib == 24:  # not even a sweep's record
            assert said.strip().endswith("python -m segsweep.clean lists what can go")
            assert not any(small.iterdir())
        else:
            assert re.search("train +test", first.stdout)
            assert "No space left on device" in said
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        again = subprocess.run([*command, f"paths.runs={small}"], capture_output=True, cwd=tmp_path, **how)
        assert again.returncode == 0, again.stdout + again.stderr
        # and one whose epochs were all there, and only its answer was not
        assert again.stdout.count(" reused ") >= len(finished)
        for name, content in finished.items():
            assert (small / "runs" / name / "result.json").read_bytes() == content
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_runs_that_one_may_not_look_at_are_a_sentence_each_and_the_sweep_has_its_table(tmp_path):
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    if bare and not shutil.which(bare[0]):
        pytest.skip("root may look at everything")
    runs = tmp_path / "runs"
    (runs / "runs").mkdir(parents=True)
    toy_task.overrides(tmp_path, runs)
    command = [*bare, sys.executable, "-m", "segsweep", "-m", "--config-dir", str(tmp_path / "conf"), "task=line"]
    command += ["task.lr=0.1,0.2", "tracking=none", "epochs=1", "report=false", f"paths.runs={runs}"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"SEGSWEEP_ALLOW": "toy_task.*", "PYTHONPATH": paths}
    (runs / "runs").chmod(0)
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    finally:
        (runs / "runs").chmod(0o755)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("cannot be written (Permission denied): it is read-only or another user's") >= 2
    assert "train  test" in done.stdout


def test_a_job_that_its_launcher_closes_on_a_full_disk_costs_a_line_of_the_log(tmp_path, monkeypatch, caplog):
    from segsweep.plugins._jobs import Job

    def full(*given, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts, "write_json", full)
    Job(0, [], tmp_path / "sweep" / "0").close("failed", "killed", "the worker is gone")
    assert "job.json cannot be written: No space left on device" in caplog.text
