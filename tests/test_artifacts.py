"""The record on disk: whole or absent, never half."""

import errno
import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch
from omegaconf import OmegaConf

from segsweep.config.schema import conf_dir
from segsweep.core import artifacts, locks
from segsweep.core.checkpoints import Checkpoints, check
from segsweep.core.errors import SegsweepError
from segsweep.core.session import Session, begin, session


def state(epoch: int) -> dict:
    return {"epoch": epoch, "model": {"w": torch.full((3,), float(epoch))}, "history": [{"epoch": epoch}]}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "x.json"
    artifacts.write_json(file, {"a": 1})

    def fail() -> None:
        with artifacts.atomic(file) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_json_is_strict_where_a_number_is_not_finite(tmp_path):
    artifacts.write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": float("inf")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": None}


def test_damaged_json_is_taken_as_absent_and_said(tmp_path, caplog):
    (tmp_path / "x.json").write_text('{"a": ')
    assert artifacts.read_json(tmp_path / "x.json") is None
    assert "x.json" in caplog.text
    assert artifacts.read_json(tmp_path / "never.json") is None
    for lines in ('{"epoch": 1}\n{"epo', '{"epoch": 1}\n[2]'):
        (tmp_path / "x.jsonl").write_text(lines)
        assert artifacts.read_lines(tmp_path / "x.jsonl") == []


def test_an_undefined_number_is_an_empty_cell(tmp_path):
    artifacts.write_csv(tmp_path / "x.csv", [{"patient": "a", "dice": float("nan")}, {"patient": "b", "dice": 0.5}])
    assert (tmp_path / "x.csv").read_text().splitlines() == ["patient,dice", "a,", "b,0.5"]


def test_the_latest_checkpoint_at_or_before_an_epoch_is_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 4):
        checkpoints.save(state(epoch), None)
    assert [checkpoints.load(until)["epoch"] for until in (1, 3, 4, 9)] == [1, 2, 4, 4]
    assert Checkpoints(tmp_path / "none").load(5) is None


def one_bit(content: bytes) -> bytes:
    """Of a weight, which torch.load takes as it comes."""
    weight = torch.tensor(2.0).numpy().tobytes()
    assert content.count(3 * weight) == 1
    return content.replace(3 * weight, 2 * weight + bytes([*weight[:3], weight[3] ^ 32]))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a checkpoint", one_bit])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, caplog, damage):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save(state(epoch), None)
    file = checkpoints.state(2)
    file.write_bytes(damage(file.read_bytes()))
    assert checkpoints.load(2)["epoch"] == 1
    assert "state_0002.pt is damaged" in caplog.text
    assert checkpoints.epochs() == [1]


def test_weights_are_whole_or_damaged_as_the_library_says_byte_by_byte(tmp_path):
    file, draw = tmp_path / "a.pt", random.Random(0)
    torch.save({f"w{n}": torch.randn(20 + n) for n in range(3)}, file)
    check(file)
    data = file.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, 10, 0):
        file.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="."):
            check(file)
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :])
        try:
            bad = ZipFile(file).testzip()
        except Exception:  # of what it takes for a part, or for compressed
            bad = "the whole"
        if bad:
            with pytest.raises((ValueError, OSError), match="."):
                check(file)


def test_a_checkpoint_cannot_run_code(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), None)
    checkpoints.state(2).write_bytes(pickle.dumps({"epoch": 2, "x": Evil()}, protocol=2))
    torch.save({"epoch": 3, "x": Evil()}, checkpoints.state(3))
    assert checkpoints.load(3)["epoch"] == 1
    assert not (tmp_path / "made").exists()


def test_where_no_configuration_is_composed_the_cache_is_where_conf_says(monkeypatch, tmp_path):
    for name, value in (("SEGSWEEP_CACHE", str(tmp_path)), ("HOME", "/home/somebody")):
        monkeypatch.setenv(name, value)
        assert OmegaConf.load(conf_dir() / "config.yaml").paths.cache == str(artifacts.cache_folder())
        monkeypatch.delenv("SEGSWEEP_CACHE", raising=False)


def test_nothing_of_what_was_trained_is_left_when_it_is_forgotten(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save(state(epoch), state(epoch)["model"])
    checkpoints.end(2)
    checkpoints.state(2).write_bytes(b"half")
    assert checkpoints.load(2)["epoch"] == 1
    checkpoints.clear()
    assert not list(tmp_path.iterdir())


def test_old_checkpoints_go_and_the_ends_of_runs_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in range(1, 8):
        checkpoints.save(state(epoch), state(epoch)["model"] if epoch in (1, 3) else None)
        checkpoints.prune(epoch, keep=2, milestones={5})
    assert checkpoints.epochs() == [5, 6, 7]


def test_a_shorter_run_after_a_longer_one_keeps_its_own_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (5, 6):
        checkpoints.save(state(epoch), None)
    checkpoints.end(6)
    for epoch in (1, 2, 3):
        checkpoints.save(state(epoch), {"epoch": epoch} if epoch == 1 else None)
        checkpoints.prune(epoch, keep=2, milestones={3})
    assert checkpoints.epochs() == [2, 3, 5, 6]
    assert torch.load(checkpoints.best(3))["epoch"] == 1
    checkpoints.save(state(8), None)
    checkpoints.prune(8, keep=1, milestones={8})
    assert checkpoints.epochs() == [6, 8]


def test_the_best_weights_until_an_epoch_stay_with_its_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in range(1, 6):
        checkpoints.save(state(epoch), {"epoch": epoch} if epoch in (1, 3) else None)
        checkpoints.prune(epoch, keep=1, milestones={2})
    assert torch.load(checkpoints.best(2))["epoch"] == 1
    assert torch.load(checkpoints.best(5))["epoch"] == 3


def test_weights_of_an_epoch_that_is_trained_again_are_not_its_best_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch, best in ((1, {"epoch": 1}), (2, {"epoch": 2}), (2, None)):
        checkpoints.save(state(epoch), best)
    assert torch.load(checkpoints.best(2))["epoch"] == 1


def test_the_folder_of_a_file_that_is_to_be_made_is_made(tmp_path):
    file = tmp_path / "some" / "where" / "store"
    with locks.made(file, Path.touch):
        assert file.exists()


def test_a_lock_waits_for_its_holder_and_is_freed_when_the_holder_is_killed(tmp_path):
    code = f"""
from pathlib import Path
from segsweep.core import locks
with locks.lock(Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert locks.held(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with locks.lock(tmp_path):
        pass
    assert not locks.held(tmp_path)
    assert not locks.held(tmp_path / "never")


def test_a_lock_ends_with_its_block_though_a_forked_process_still_has_its_file(tmp_path):
    """As the workers of a data loader that is kept do."""
    over, told = os.pipe()
    with locks.lock(tmp_path):
        if (child := os.fork()) == 0:
            os.close(told)
            os.read(over, 1)
            os._exit(0)
        os.close(over)
    try:
        assert locks.held(tmp_path) is False
    finally:
        os.close(told)
        os.waitpid(child, 0)


def test_a_lock_whose_file_was_taken_away_while_it_was_waited_for_is_taken_of_the_one_that_is_there(tmp_path):
    has, waits = threading.Event(), threading.Event()

    def first() -> None:
        with locks.lock(tmp_path):
            has.set()
            waits.wait(20)
            (tmp_path / "lock").unlink()

    holder = threading.Thread(target=first)
    holder.start()
    has.wait(20)
    events = []
    here = begin(Session(sink=events.append))
    here.wait = lambda seconds: waits.set()  # whoever waits for a lock asks it
    with locks.lock(tmp_path):
        assert locks.held(tmp_path)
    assert [event["text"] for event in events] == [locks.WAITING]
    holder.join()


def test_two_writers_of_one_file_do_not_meet_though_their_processes_have_one_number(tmp_path, monkeypatch):
    """In two containers, or on two machines that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with artifacts.atomic(tmp_path / "x.json") as one:
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        with artifacts.atomic(tmp_path / "x.json") as other:
            one.write_text("one")
            other.write_text("other")
        assert (tmp_path / "x.json").read_text() == "other"
    assert (tmp_path / "x.json").read_text() == "one"
    assert ".other-7-" in other.name
    assert artifacts.unique() != artifacts.unique()


def test_what_was_left_half_written_goes_and_what_another_process_is_writing_stays(tmp_path):
    for name in (".old.json.a-1-f.part.json", ".new.json.b-1-f.part.json"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".old.json.a-1-f.part.json", (0, 0))
    artifacts.tidy(tmp_path)
    assert os.listdir(tmp_path) == [".new.json.b-1-f.part.json"]
    Checkpoints(tmp_path).tidy()
    assert not os.listdir(tmp_path)


def test_best_weights_are_copied_where_a_file_system_has_no_hard_links(tmp_path, monkeypatch):
    def link(*given):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save(state(epoch), {"epoch": epoch} if epoch == 1 else None)
    assert torch.load(checkpoints.best(2))["epoch"] == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog, number):
    def flock(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.lock(tmp_path / "run"):
        assert locks.held(tmp_path / "run") is None  # nobody can tell, so nobody is taken for dead
    assert "run: its file system has no locks" in caplog.text
    made = []
    with locks.made(tmp_path / "store", made.append):
        assert made == [tmp_path / "store"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_is_another_users_or_read_only_is_one_sentence(tmp_path, monkeypatch, number):
    (tmp_path / "lock").touch()
    real = Path.open

    def refuse(path, mode="r", *given, **more):
        if mode != "r":
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *given, **more)

    with locks.lock(tmp_path), monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(SegsweepError, match=r"cannot be written \(.*\): it is read-only or another user's"):
            locks.lock(tmp_path).__enter__()
        session().door = SimpleNamespace(app=True)  # whose keys lie under a node of their own
        with pytest.raises(SegsweepError, match=r" segsweep\.paths\.runs=FOLDER"):
            locks.lock(tmp_path).__enter__()
        assert locks.held(tmp_path) is True  # to look is allowed
    assert locks.held(tmp_path) is False


def test_whether_somebody_works_on_a_folder_makes_no_lock_in_it(tmp_path):
    assert locks.held(tmp_path) is False
    assert not os.listdir(tmp_path)
