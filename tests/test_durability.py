"""A power cut loses at most the last epoch, a full disk nothing that was there; both are played through here."""

import json
from pathlib import Path

import medium
import pytest
import torch
import toy_task

from segsweep.core import artifacts
from segsweep.runs.loop import Loop


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
        "own": (folder / "own.txt").read_text(),
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


def test_an_epoch_is_flushed_in_three_calls_and_one_that_is_no_best_in_two(tmp_path, cfg, monkeypatch):
    """And of a job what ends it: five files, a file of the task's own, its table and its folder twice; new folders."""
    (tmp_path / "runs").mkdir()
    recorder = medium.Medium(tmp_path / "runs", monkeypatch)
    end = Loop._end
    monkeypatch.setattr(Loop, "_end", lambda *a: (recorder.events.append(("epoch", a[2]["epoch"])), end(*a)))
    assert toy_task.do(cfg, tmp_path / "runs").status == "finished"
    kinds = "".join({"fsync": "f", "epoch": "e"}.get(event[0], "") for event in recorder.events)
    before, one, two, rest = kinds.split("e")
    assert (before.count("f"), one.count("f"), two.count("f")) == (5, 3, 2)
    assert rest.count("f") == 3 + 9
