"""`python -m segsweep.clean`: what can go goes, what is of use or in use stays."""

import errno
import fcntl
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import toy_task

from segsweep import clean, sync
from segsweep.core import accepted, artifacts, locks
from segsweep.runs import clean as found
from segsweep.runs import record
from segsweep.runs.loop import Loop
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.phantom import Phantom


@pytest.fixture
def cfg(tmp_path, allow):
    allow("toy_task.*")
    return toy_task.composed(tmp_path, "task.worse=3")


@pytest.fixture
def runs(tmp_path, cfg, monkeypatch):
    """Of a finished run, one that failed in its second epoch and one that was cut off there; `named` by their seeds."""
    runs, end = tmp_path / "runs", Loop._end

    def failing(self, state, row):
        end(self, state, row)
        if row["epoch"] == 2:
            raise RuntimeError("in the second epoch")

    toy_task.do(cfg, runs, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_end", failing)
        failed, cut = (toy_task.do(cfg, runs, seed=seed) for seed in (1, 2))
    assert failed.status == cut.status == "failed"
    (cut.folder / "failure.json").unlink()
    return runs


def run(runs: Path, *more: str, monkeypatch, code: int = 0) -> None:
    monkeypatch.setattr(sys, "argv", ["clean", str(runs), "--cache", str(runs.parent / "cache"), *more])
    assert clean.main() == code


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_of_finished_runs_and_failed_ones_go_and_a_finished_run_is_answered_to_the_bit(
    runs, cfg, monkeypatch, capsys
):
    finished = next(path.parent for path in runs.glob("runs/*/result.json"))
    whole, all_ = tree(finished), tree(runs)
    run(runs, "--dry-run", monkeypatch=monkeypatch)
    assert tree(runs) == all_
    planned = capsys.readouterr().out
    run(runs, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert said.replace("Removed.", "") == planned.replace("Nothing was removed (--dry-run).", "")
    gone = {path: content for path, content in all_.items() if path not in tree(runs)}
    names = {Path(path).name for path in gone}
    assert {"state_0003.pt", "best_0003.pt", "end_0003", "failure.json"} <= names
    assert "in all: " in said
    assert tree(finished) == whole
    assert not list(runs.glob("runs/*/failure.json"))
    assert len(list(runs.glob("trajectories/*/state_0002.pt"))) == 1  # of the one that was cut off
    assert toy_task.do(cfg, runs, seed=0).status == "reused"
    assert toy_task.do(cfg, runs, seed=2).status == "continued"
    assert toy_task.do(cfg, runs, seed=1).status == "finished"


def test_sizes_count_what_has_two_names_once_and_their_sum_is_what_the_disk_gains(runs, monkeypatch, capsys):
    (folder,) = {path.parent for path in runs.glob("trajectories/*/state_0003.pt")}
    names = {(path.stat().st_ino, path.stat().st_size) for path in folder.iterdir() if path.name != "lock"}
    from segsweep.runs.clean import items, shown

    item = next(item for item in items(runs) if item.kind == "checkpoints")
    assert (item.place, item.bytes) == (folder, sum(size for _, size in names))
    run(runs, "--what", "checkpoints", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert f"checkpoints: 1, {shown(item.bytes)}\nin all: {shown(item.bytes)}" in out
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert [shown(n) for n in (0, 999, 1000, 123_456, 5 * 10**9)] == ["0 B", "999 B", "1 kB", "123 kB", "5 GB"]


def test_states_that_an_accepted_record_lends_go_with_its_own_and_are_room_only_together(runs, monkeypatch, capsys):
    from segsweep.runs.clean import gain, items, shown

    (folder,) = (path.parent for path in runs.glob("runs/*/result.json"))
    accepted.accept(folder, {"signature": "5", "group": "6", "trajectory": "7" * 16, "code": "8", "files": {}})
    found = [item for item in items(runs) if item.kind == "checkpoints"]
    old, new = sorted(found, key=lambda item: item.place.name == "7" * 16)
    assert new.place == runs / "trajectories" / ("7" * 16)
    mark = (new.place / accepted.FILE).stat().st_size
    assert (gain([old]), gain([new]), gain([old, new])) == (0, mark, old.bytes + mark)
    run(runs, "--what", "checkpoints", monkeypatch=monkeypatch)
    assert f"checkpoints: 2, {shown(old.bytes + mark)}" in capsys.readouterr().out
    assert not list(new.place.glob("*.pt")) + list(old.place.glob("*.pt"))
    assert accepted.standing(runs, "5")


def test_what_could_be_gone_on_with_goes_on_request_alone(runs, cfg, monkeypatch):
    run(runs, "--what", "unfinished", monkeypatch=monkeypatch)
    assert len(list(runs.glob("runs/*/failure.json"))) == 1
    assert len(list(runs.glob("trajectories/*/state_0003.pt"))) == 1
    assert toy_task.do(cfg, runs, seed=2).status == "finished"  # from its first epoch


@pytest.mark.parametrize("which", ["runs", "trajectories"])
def test_what_a_job_holds_is_left_alone_and_said(runs, monkeypatch, capsys, which):
    before = tree(runs / which)
    with ExitStack() as job:
        for folder in (runs / which).iterdir():
            job.enter_context(locks.lock(folder))
        run(runs, "--what", "failed", monkeypatch=monkeypatch)
    assert tree(runs / which) == before
    assert "in use: left" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["failed", "checkpoints"])
def test_what_became_of_use_after_it_was_found_is_left_alone_and_said(runs, cfg, monkeypatch, capsys, which):
    """Found as failed or of no more use; before it is removed another process trains it on, and lets go of it."""
    real, meanwhile = found.items, {"failed": {"seed": 1}, "checkpoints": {"seed": 0, "epochs": 5}}

    def items(place):
        listed = real(place)
        with monkeypatch.context() as patch:
            if which == "checkpoints":  # a longer run of these states, which is cut off
                patch.setattr(Loop, "finish", lambda self: 1 / 0)
            toy_task.do(cfg, runs, **meanwhile[which])
        for file in runs.glob("runs/*/failure.json"):
            file.unlink()
        return listed

    monkeypatch.setattr(found, "items", items)
    run(runs, "--what", which, monkeypatch=monkeypatch)
    assert len(list(runs.glob("runs/*/result.json"))) == 2 - (which == "checkpoints")
    assert list(runs.glob("trajectories/*/state_0003.pt"))
    said = capsys.readouterr().out
    assert f"{found.CHANGED}: left" in said
    assert "Nothing was removed." in said or which == "failed"


def test_a_file_that_goes_while_sizes_are_taken_is_left_out(runs, monkeypatch):
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: (path.name == "state_0002.pt" and path.unlink(), real(path))[1])
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # as it was a moment ago
    assert all(item.bytes for item in found.items(runs))


def test_what_may_not_be_opened_is_a_failure_and_not_in_use(runs, monkeypatch, capsys):
    real = Path.open

    def open_(path, *args, **options):
        if path.name == "lock" and args == ("a",):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_)
    run(runs, monkeypatch=monkeypatch, code=1)
    said = capsys.readouterr()
    assert "was not removed: Permission denied: " in said.err
    assert "in use" not in said.out
    assert "Nothing was removed." in said.out


def test_where_nobody_can_tell_what_is_in_use_that_is_said(runs, monkeypatch, capsys):
    def flock(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    before = tree(runs)
    monkeypatch.setattr(fcntl, "flock", flock)
    run(runs, monkeypatch=monkeypatch, code=1)
    assert "was not removed: its file system has no locks" in capsys.readouterr().err
    assert tree(runs) == before


def test_checkpoints_stay_where_a_finished_run_has_lost_its_weights(runs, cfg, monkeypatch):
    file = next(path.parent for path in runs.glob("runs/*/result.json")) / "last.pt"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    run(runs, monkeypatch=monkeypatch)
    assert toy_task.do(cfg, runs, seed=0).status == "reused"  # tested again from its last state
    assert len(file.read_bytes()) == len(content)


def test_a_folder_that_cannot_be_removed_is_named_and_the_others_go(runs, monkeypatch, capsys):
    real = Path.unlink

    def unlink(path, missing_ok=False):
        if path.name == "failure.json":
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    run(runs, monkeypatch=monkeypatch, code=1)
    assert "was not removed: Operation not permitted: " in capsys.readouterr().err
    assert not list(runs.glob("trajectories/*/state_0003.pt"))


def test_decoded_sets_go_and_one_that_is_in_use_stays(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    place = tmp_path / "cache"
    loaded = []
    for seed in (0, 1):
        data = Phantom(
            seed=seed, patients=2, slices=4, noise=0.0, bias=0.0, image_size=16, normalise="unit", model_width=4
        )
        loaded.append(cache.load(data, data.scan(place), place, workers=1))
    (place / "mlflow-3.db").touch()
    half = place / f"{loaded[0].key[::-1]}.tmp-machine-1-f"
    half.mkdir()
    (place / f"{loaded[0].key[::-1]}.lock").touch()
    kept = np.array(loaded[1].images)
    del loaded[0]
    run(tmp_path / "runs", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "decoded: 2, " in out
    assert out.count("in use: left") == 1
    assert {path.name for path in place.iterdir() if path.suffix not in (".lock", ".json")} == {
        loaded[0].key,
        "mlflow-3.db",
    }
    np.testing.assert_array_equal(loaded[0].images, kept)
    loaded.clear()
    run(tmp_path / "runs", monkeypatch=monkeypatch)
    assert not [path for path in place.iterdir() if path.is_dir()]


def test_where_nothing_can_go_or_is_there_that_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    run(tmp_path / "runs", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "Nothing can go.\n"
    shutil.rmtree(tmp_path / "runs")
    run(tmp_path / "runs", monkeypatch=monkeypatch, code=1)
    assert "no such folder; give the one that paths.runs names" in capsys.readouterr().err


def half_replaced(folder: Path, cfg, monkeypatch) -> dict[str, bytes]:
    """Train a finished run anew and cut it off where its result is the last that has not moved."""
    replace = os.replace

    def cut(old, new):
        if Path(old) == folder / artifacts.NEXT / "result.json":
            raise KeyboardInterrupt
        return replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(record.os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            toy_task.do(cfg, folder.parent.parent, seed=0, reuse=False)
    return tree(folder)


def test_a_whole_run_that_has_begun_to_take_an_old_ones_place_stays_and_takes_it(runs, cfg, monkeypatch):
    finished = next(path.parent for path in runs.glob("runs/*/result.json"))
    before = half_replaced(finished, cfg, monkeypatch)
    assert ".anew/result.json" in before
    run(runs, "--what", "unfinished", monkeypatch=monkeypatch)
    assert tree(finished) == before
    assert toy_task.do(cfg, runs, seed=0).status == "reused"
    assert (finished / "result.json").read_bytes() == before[".anew/result.json"]


def test_a_folder_that_holds_files_of_two_runs_is_made_one_before_it_is_mirrored(runs, cfg, monkeypatch):
    finished = next(path.parent for path in runs.glob("runs/*/result.json"))
    before = half_replaced(finished, cfg, monkeypatch)
    mirrored: list[dict[str, bytes]] = []
    monkeypatch.setattr(sync.mirrors, "push", lambda folder, *about, **more: mirrored.append(tree(folder)))
    monkeypatch.setattr(sys, "argv", ["sync", str(finished), "--uri", "sqlite:///x.db"])
    assert sync.main() == 0
    assert mirrored[0]["result.json"] == before[".anew/result.json"]
    assert not any(name.startswith(".anew") for name in mirrored[0])


def test_what_another_program_has_there_stays_and_gets_no_file(runs, monkeypatch, tmp_path):
    for name in ("exp1", "0123456789abcdef"):  # which is named as a run is, and none
        for place, file in (("runs", "events.out"), ("trajectories", "episode.npz")):
            (runs / place / name).mkdir()
            (runs / place / name / file).write_text("mine")
    (runs / "runs" / "exp1" / "config.yaml").write_text("mine: 1")
    elsewhere = tmp_path / "elsewhere"
    unfinished = next(path for path in (runs / "runs").iterdir() if found._kind(path) == "unfinished")
    shutil.copytree(unfinished, elsewhere)
    (runs / "runs" / "fedcba9876543210").symlink_to(elsewhere)
    (runs / "trajectories" / "fedcba9876543210").symlink_to(elsewhere)
    (elsewhere / "state_0001.pt").write_text("mine")
    places = (runs / at / name for at in ("runs", "trajectories") for name in ("exp1", "0123456789abcdef"))
    own = [elsewhere, *places]
    before = [sorted(folder.rglob("*")) for folder in own]
    run(runs, "--what", "unfinished", "failed", "checkpoints", monkeypatch=monkeypatch)
    assert [sorted(folder.rglob("*")) for folder in own] == before
    assert not (unfinished / "run.json").exists()
