"""Replayed searches: what hand-made curves cost, and that a replay does what the live command does."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.search_worth import Grid, Player, compare, spread
from segsweep.search.study import counted

HALVING = ["+search=grid", "pruner=halving", "pruner.min_resource=1", "pruner.reduction_factor=2"]


def grid(folder: Path, curves: dict[str, list[float]], finished: bool = True) -> Grid:
    """A finished sweep of `batch_size`, one epoch a second; curves: value -> validation Dice of each epoch."""
    epochs = len(next(iter(curves.values())))
    overrides = [f"batch_size={','.join(curves)}", f"epochs={epochs}", "scheduler=constant"]
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"overrides": overrides}))
    for number, (value, dice) in enumerate(curves.items()):
        place = folder / str(number)
        place.mkdir()
        rows = [{"epoch": e, "val/dice": d, "seconds": 0.75, "eval_seconds": 0.25} for e, d in enumerate(dice, 1)]
        (place / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = {"overrides": [f"batch_size={value}", *overrides[1:]], "status": "finished", "run": "."}
        (place / "job.json").write_text(json.dumps(job))
    return Grid(folder)


def states(storage: Any) -> dict[int, tuple[str, dict[int, float]]]:
    """batch_size -> its trial's state, and what it reported."""
    trials = counted(storage.get_all_trials(0))
    return {t.params["batch_size"]: (t.state.name, t.intermediate_values) for t in trials}


def test_a_pruned_point_costs_its_epochs_and_going_on_only_the_rest(tmp_path):
    curves = {"4": [0.1, 0.2, 0.3], "8": [0.5, 0.6, 0.9], "16": [0.2, 0.3, 0.4], "32": [0.3, 0.4, 0.5]}
    made = grid(tmp_path / "grid", curves)
    known: dict[Any, Any] = {}
    seed = next(s for s in range(50) if first(made, s) == 8)  # then all others fall behind it at once
    replay, storage = Player(made, HALVING, slots=1).play(seed, known=known)
    assert {size: state for size, (state, _) in states(storage).items()} == {
        8: "COMPLETE", 4: "PRUNED", 16: "PRUNED", 32: "PRUNED"
    }  # fmt: skip
    assert states(storage)[8][1] == {1: 0.5, 2: 0.6, 3: 0.9}
    assert replay.told == [(3, 0.9)]
    assert replay.epochs == 3 + 3 * 1
    assert replay.now == 6.0

    again, storage = Player(made, HALVING, slots=1).play(seed + 1, known=known)
    assert again.epochs == 0, "finished or pruned by the same pruner: answered from the record"
    assert sorted(state for state, _ in states(storage).values()) == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"]

    rest, storage = Player(made, ["+search=grid"], slots=1).play(seed, known=known)
    assert rest.epochs == 3 * 2
    assert sorted(value for _, value in rest.told) == [0.3, 0.4, 0.5, 0.9]
    assert {state for state, _ in states(storage).values()} == {"COMPLETE"}


def first(made: Grid, seed: int) -> int:
    return next(iter(states(Player(made, ["+search=grid"], slots=1).play(seed, [0.0])[1])))


def test_a_search_whose_hopes_are_pruned_is_over_once_the_least_is_trained(tmp_path):
    made = grid(tmp_path / "grid", {"4": [0.1, 0.9], "8": [0.5, 0.6], "16": [0.4, 0.5], "32": [0.3, 0.4]})
    strict = [*HALVING[:-1], "pruner.reduction_factor=4"]
    seed = next(s for s in range(50) if first(made, s) == 8)
    whole = Player(made, strict, slots=1).play(seed)[0]
    assert (whole.epochs, whole.told) == (5, [(2, 0.6)]), "the best point is behind after its first epoch"
    order = [t.params["batch_size"] for t in counted(Player(made, strict, slots=1).play(seed)[1].get_all_trials(0))]
    cut = Player(made, strict, slots=1).play(seed, [0.9, 0.895])[0]
    assert cut.epochs == 2 + order.index(4)
    assert Player(made, strict, slots=1).play(seed, [0.9, 0.895], least=5)[0].epochs == 5
    row = compare(made, {"halving": strict}, seeds=seed + 1, slots=1)["halving"]
    assert row["best"]["never"] >= 1
    assert 0.0 < row["within_a_third"]["most"] <= 0.9


def test_slots_work_side_by_side_and_all_that_was_begun_counts(tmp_path):
    made = grid(tmp_path / "grid", {"4": [0.1, 0.2], "8": [0.5, 0.6], "16": [0.2, 0.3], "32": [0.4, 0.3]})
    replay, _ = Player(made, ["+search=grid"], slots=2).play(0)
    assert (replay.now, replay.epochs) == (4.0, 8)
    assert [epochs for epochs, _ in replay.told] == [4, 4, 8, 8]
    assert max(value for _, value in replay.told) == made.best == 0.6
    assert sorted(value for _, value in replay.told)[-2] == 0.4, "the best epoch, not the last"
    ended, _ = Player(made, ["+search=grid"], slots=2).play(0, [0.6])
    assert ended.told[-1] == next((epochs, value) for epochs, value in replay.told if value == 0.6)


def test_without_pruning_random_search_costs_what_the_position_of_the_best_says(tmp_path):
    made = grid(tmp_path / "grid", {str(2**k): [0.1 * k] for k in range(1, 7)})
    rows = compare(made, {"random": ["+search=random", "pruner=none"]}, seeds=20, slots=1)["random"]
    assert rows["best"]["never"] == 0
    assert 1 <= rows["best"]["least"] <= rows["best"]["median"] <= rows["best"]["most"] <= 6
    assert rows["near"] == rows["best"], "no other is within 0.005"
    player = Player(made, ["+search=random", "pruner=none"], slots=1)
    told = [player.play(seed, [made.best])[0].told for seed in range(5)]
    assert rows["best"]["first_five"] == [len(one) for one in told], "one epoch a point, and none for a repeated one"


def test_a_search_that_never_comes_there_is_counted_and_is_the_worst():
    assert spread([3.0, math.inf, 1.0, 2.0]) == {
        "least": 1.0, "lower": 2.0, "median": 3.0, "upper": None, "most": None, "first_five": [3.0, None, 1.0, 2.0],
        "never": 1,
    }  # fmt: skip


def test_a_grid_that_is_not_finished_is_refused(tmp_path):
    folder = tmp_path / "grid"
    grid(folder, {"4": [0.1], "8": [0.2]})
    (folder / "1" / "job.json").unlink()
    with pytest.raises(SystemExit, match="1 of 2 points are finished"):
        Grid(folder)


@pytest.mark.slow
def test_a_replay_does_what_the_command_does(tmp_path):
    """A search of all points live; then the same over its records."""
    swept = ["model=unet,r2unet", "optim=sgd,adam", "optim.lr=1e-1,1e-2,1e-3"]
    tiny = ["data.patients=8", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "epochs=3"]
    tiny += ["precision=fp32", "tracking=none", "scheduler=constant", "loss=dice", "batch_size=16"]
    own = ["+search=tpe", "search.trials=12", "pruner.min_resource=1", "hydra.sweeper.sampler.n_startup_trials=3"]
    places = ["report=false", "paths.cache=cache", "paths.runs=multirun", "search.storage=journal:///live.log"]
    done = subprocess.run(
        [sys.executable, "-m", "segsweep", "-m", *own, *swept, *tiny, *places, "search.when=[]"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    (folder,) = tmp_path.glob("multirun/2*")
    (folder / "sweep.json").write_text(json.dumps({"overrides": [*swept, *tiny]}))
    for file in folder.glob("*/job.json"):
        job = json.loads(file.read_text())
        history = file.parent / job["run"] / "history.jsonl"
        rows = [json.loads(line) for line in history.read_text().splitlines()]
        unseen = [rows[-1] | {"epoch": epoch, "val/dice": 9.0} for epoch in range(len(rows) + 1, 4)]
        history.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *unseen]))
        file.write_text(json.dumps(job | {"status": "finished"}))
    _, replayed = Player(Grid(folder), own, slots=1).play(seed=0)

    found = [
        [(t.number, t.state.name, t.params, t.intermediate_values, t.values) for t in storage.get_all_trials(0)]
        for storage in (JournalStorage(JournalFileBackend(str(tmp_path / "live.log"))), replayed)
    ]
    assert found[0] == found[1]
    assert {state for _, state, *_ in found[0]} == {"PRUNED", "COMPLETE", "FAIL"}, "a point again is FAIL, untrained"
