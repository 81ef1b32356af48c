"""Threads: each on a processor of its own while a step is shared out, and as many as a run began with.

Two tiny runs, two seconds; the suite itself trains on one thread."""

import contextlib
import ctypes
import json
import os

import pytest
import torch
from test_loop import loop
from test_run import do

from segsweep.core import environment
from segsweep.core.device import bound
from segsweep.core.session import Session, begin

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
CPU = torch.device("cpu")
needs_several = pytest.mark.skipif(len(PROCESSORS) < 2, reason="one processor, or a system that binds no thread")


@pytest.fixture
def threads():
    """A function that sets their number; a thread for each processor to begin with."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, len(PROCESSORS)))
    yield torch.set_num_threads
    torch.set_num_threads(before)


def places() -> list[set[int]]:
    """Of all threads of this process that torch's work is done on, as far as they are bound to one processor."""
    torch.ones(1 << 20).add_(1)  # which is shared out
    found = [os.sched_getaffinity(int(name)) for name in os.listdir("/proc/self/task")]
    return sorted((place for place in found if len(place) == 1), key=min)


@needs_several
def test_threads_that_share_a_step_have_a_processor_each_and_are_free_again_after_it(threads, monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    free, seen = {*PROCESSORS}, []

    def turns():
        for number in (1, 2):
            seen.append(places())
            yield number

    with contextlib.suppress(ArithmeticError):
        for turn in bound(CPU, turns()):
            assert places() == [{each} for each in PROCESSORS]
            if turn == 2:
                raise ArithmeticError
    assert turn == 2
    assert seen == [[], []]  # between two of them
    assert places() == []
    assert os.sched_getaffinity(0) == free


@needs_several
@pytest.mark.parametrize("reason", ["fewer threads", "a GPU", "the environment says how"])
def test_they_are_left_alone(reason, threads, monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    if reason == "fewer threads":  # which of the processors others use, the system knows
        threads(1)
    elif reason == "the environment says how":
        monkeypatch.setenv("OMP_PROC_BIND", "false")
    for _ in bound(torch.device("cuda") if reason == "a GPU" else CPU, [1]):
        assert places() == []


def test_what_has_no_library_of_that_kind_trains_as_it_did(threads, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert list(bound(CPU, [1, 2])) == [1, 2]


@needs_several
@pytest.mark.parametrize(("began", "now"), [(1, "all"), ("all", 1)])
def test_a_training_is_bound_by_the_threads_that_it_goes_on_with_and_is_free_between_epochs(
    began, now, threads, tmp_path, monkeypatch
):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    seen = []

    def sink(event):
        if event["kind"] in ("step", "epoch"):
            seen.append((event["kind"], os.sched_getaffinity(0)))

    every = max(2, len(PROCESSORS))
    for number, epochs in ((began, 1), (now, 2)):
        threads(every if number == "all" else number)
        begin(Session(sink=sink))
        assert do(tmp_path, "scheduler=constant", f"epochs={epochs}").status in ("finished", "continued")
    within = {PROCESSORS[0]} if began == "all" else {*PROCESSORS}
    assert {place == within for kind, place in seen if kind == "step"} == {True}
    assert [place for kind, place in seen if kind == "epoch"] == [{*PROCESSORS}] * 2
    assert os.sched_getaffinity(0) == {*PROCESSORS}


def test_a_run_goes_on_with_the_threads_of_its_first_epoch(threads, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "cores", lambda: 8)
    given, told = ["scheduler=constant", "batch_size=8"], []
    threads(2)
    assert do(tmp_path, *given, "epochs=1").status == "finished"
    threads(1)
    seen = []

    def sink(event):
        seen.extend([torch.get_num_threads()] if event["kind"] == "epoch" else [])
        told.extend([event["text"]] if event["kind"] == "text" else [])

    begin(Session(sink=sink))
    longer = do(tmp_path, *given, "epochs=3")
    assert (longer.status, seen, torch.get_num_threads()) == ("continued", [2, 2], 1)
    assert told == ["goes on with 2 threads, as it began"]
    assert json.loads((longer.folder / "run.json").read_text())["device"].endswith(", 2 threads")
    monkeypatch.setattr(environment, "cores", lambda: 1)  # another machine, whose numbers are others anyway
    assert do(tmp_path, *given, "epochs=4").status == "continued"
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("odd", [True, False, 0, -1, 2.0, 10**30, "2", None, torch.tensor(2)])
def test_what_is_no_number_of_threads_in_a_checkpoint_changes_none(odd, threads, tmp_path):
    threads(2)
    loop(tmp_path)._as_it_began(odd)
    assert torch.get_num_threads() == 2
