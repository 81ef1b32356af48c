"""What changes a training, the average of weights, plateau, crops, several outputs, and all of them at once, through
whatever disturbs a run: an interruption, more epochs, a pruner, want of memory. Each comes to the bits of a run that
nothing disturbed."""

import json

import pytest
import torch
from test_networks_of_others import named
from test_pruning import HALVING, do, history, pruned, same_weights

from segsweep.core.session import Session, begin, session
from segsweep.segmentation import train

LR = ("optim.lr=0.001", "scheduler=constant")
PLATEAU = ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.5", "scheduler.factor=0.5")
DEEP = (*named("Dictionary"), "deep_supervision=[1,0.5]")
CHANGES = tuple(f"augment.{name}=0.5" for name in ("noise", "blur", "gamma"))
PIECES = {
    "average, tested": ("ema=0.4",),
    "average, not tested": ("ema=0.7", "test_weights=last"),
    "plateau": PLATEAU,
    "crops": ("data.patch=8",),
    "several outputs": DEEP,
    "all": (
        "ema=0.7",
        *PLATEAU,
        "data.patch=8",
        *DEEP,
        "augment=affine",
        *CHANGES,
        "early_stopping=9",
        "metrics=[auc]",
    ),
}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _networks(allow):
    allow("networks_of_others.*")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """`whole(piece, *overrides)`: what an undisturbed run of four epochs is, made once."""
    known = {}

    def make(piece: str, *overrides: str):
        if (piece, overrides) not in known:
            outcome = do(tmp_path_factory.mktemp("whole") / "a", *LR, *PIECES[piece], *overrides)
            assert outcome.status == "finished", outcome.error
            known[piece, overrides] = outcome
        return known[piece, overrides]

    return make


def state(outcome) -> dict:
    """All that is kept after the last epoch, by its path in it: of a moving average, an optimizer, a schedule."""
    trajectory = json.loads((outcome.folder / "run.json").read_text())["trajectory"]
    file = outcome.folder.parent.parent / "trajectories" / trajectory / "state_0004.pt"
    found, todo = {}, [("", {key: kept for key, kept in torch.load(file).items() if key != "history"})]
    while todo:
        place, value = todo.pop()
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{place}/{key}", item) for key, item in items]
        else:
            found[place] = value.tolist() if isinstance(value, torch.Tensor) else value
    return found


def alike(outcome, expected) -> None:
    assert outcome.metrics == expected.metrics
    assert history(outcome) == history(expected)
    assert same_weights(outcome, expected)
    assert state(outcome) == state(expected)


@pytest.mark.parametrize("parts", [(), ("micro_batches=2",)], ids=["", "in parts"])
@pytest.mark.parametrize("piece", PIECES)
def test_interrupted_and_gone_on_with(piece, parts, whole, tmp_path):
    asked = (*LR, *PIECES[piece], *parts)
    session().stop()
    assert do(tmp_path, *asked).status == "interrupted"
    begin(Session())
    again = do(tmp_path, *asked)
    assert again.status == "continued"
    alike(again, whole(piece, *parts))


@pytest.mark.parametrize("piece", PIECES)
def test_epochs_of_a_shorter_run(piece, whole, tmp_path):
    do(tmp_path, *LR, *PIECES[piece], "epochs=2")
    longer = do(tmp_path, *LR, *PIECES[piece])
    assert longer.status == "continued"
    alike(longer, whole(piece))


@pytest.mark.parametrize("piece", PIECES)
def test_pruned_and_taken_to_its_end(piece, whole, tmp_path):
    asked = (*LR, *PIECES[piece])
    assert do(tmp_path, *asked, *HALVING, "optim.lr=0.02").status == "finished"
    ended = do(tmp_path, *asked, *HALVING)
    assert (ended.status, pruned(ended)["epoch"]) == ("pruned", 2)
    on = do(tmp_path, *asked)
    assert on.status == "continued"
    alike(on, whole(piece))


@pytest.mark.parametrize("piece", PIECES)
def test_out_of_memory_within_an_epoch_and_tried_again_in_smaller_parts(piece, whole, tmp_path, monkeypatch):
    epochs, begun, counted = [], train.no_counts, train.confusion

    def short(*given):  # after the step of a batch, before the end of its epoch
        if not session().retries and len(epochs) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return counted(*given)

    monkeypatch.setattr(train, "no_counts", lambda *given: epochs.append(1) or begun(*given))
    monkeypatch.setattr(train, "confusion", short)
    asked = (*LR, *PIECES[piece])
    found = []
    for at in (1, 2):
        epochs.clear()
        failed = do(tmp_path / str(at), *asked)
        assert (failed.status, failed.failure, len(epochs)) == ("failed", "oom", at)
        session().retries = 1
        found.append(do(tmp_path / str(at), *asked))
        session().retries = 0
    monkeypatch.undo()
    alike(found[0], whole(piece, "micro_batches=2"))
    session().stop()
    do(tmp_path / "stopped", *asked)
    begin(Session()).retries = 1
    again = do(tmp_path / "stopped", *asked)
    assert [row.get("micro_batches", 1) for row in history(again)] == [1, 2, 2, 2]
    alike(found[1], again)
