"""Threads: each on a processor of its own while a step is shared out, and as many as a run began with.

Two tiny runs, two seconds; the suite itself trains on one thread."""

import contextlib
import json
import os

import pytest
import torch
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
    with contextlib.suppress(ArithmeticError), bound(CPU):
        assert places() == [{each} for each in PROCESSORS]
        raise ArithmeticError
    assert places() == []
    assert os.sched_getaffinity(0) == {*PROCESSORS}


@needs_several
@pytest.mark.parametrize("reason", ["fewer threads", "a GPU", "the environment says how"])
def test_they_are_left_alone(reason, threads, monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    if reason == "fewer threads":  # which of the processors others use, the system knows
        threads(1)
    elif reason == "the environment says how":
        monkeypatch.setenv("OMP_PROC_BIND", "false")
    with bound(torch.device("cuda") if reason == "a GPU" else CPU):
        assert places() == []


@needs_several
def test_a_training_is_bound_and_nothing_after_it(threads, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    seen = []
    begin(Session(sink=lambda event: seen.append(os.sched_getaffinity(0)) if event["kind"] == "epoch" else None))
    assert do(tmp_path).status == "finished"
    assert seen == [{PROCESSORS[0]}] * 2
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
