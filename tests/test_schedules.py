"""Schedules by step and by a value of the validation part: what they do, resumed to the last bit, and shared epochs."""

import json

import pytest
import torch
from test_run import do, same, weights
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR

from segsweep.core.session import Session, begin, session
from segsweep.segmentation.schedules import Warmup

STEPS = 2
"""Of an epoch of the tiny set: 4 patients of 8 slices in batches of 16; the test below holds it to that."""
FALLS = ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=1e9", "scheduler.threshold_mode=abs")
"""Each epoch but the first is without a gain."""
EACH = {
    "onecycle": ("scheduler=onecycle",),
    "warmup": ("scheduler=warmup", "scheduler.warmup=0.5"),
    "poly by step": ("scheduler=poly", "scheduler.by=step"),
    "plateau": FALLS,
}


def rates(outcome) -> list[float]:
    """The learning rate of each epoch's last step."""
    assert outcome.status in ("finished", "continued"), outcome.error
    return [json.loads(line)["lr"] for line in (outcome.folder / "history.jsonl").read_text().splitlines()]


def expected(make, epochs: int) -> list[float]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.002)
    schedule, found = make(optimizer), []
    for _ in range(epochs * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found[STEPS - 1 :: STEPS]


def test_a_cycle_is_stepped_after_each_batch(tmp_path):
    found = rates(do(tmp_path, "scheduler=onecycle", "epochs=4"))
    assert found == expected(lambda o: OneCycleLR(o, 0.002, total_steps=4 * STEPS), 4)
    assert found[-1] == pytest.approx(0.002 / 25 / 1e4)


def test_a_schedule_of_torchs_by_step_is_the_one_by_epoch_in_finer_steps(tmp_path):
    found = rates(do(tmp_path, *EACH["poly by step"], "epochs=3"))
    assert found == expected(lambda o: PolynomialLR(o, 3 * STEPS, power=0.9), 3)


def test_a_warmup_rises_in_a_line_and_falls_along_a_cosine_or_stays():
    def factors(**given):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, found = Warmup(optimizer, start=0.2, floor=0.1, steps_per_epoch=4, **given), []
        for _ in range(16):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    assert factors(warmup=1, T_max=3)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors(warmup=1, T_max=3)[8] == pytest.approx(0.55)  # halfway down
    assert factors(warmup=1, T_max=3)[12:] == pytest.approx([0.1] * 4)
    assert factors(warmup=1, T_max=None)[4:] == [1.0] * 12


def test_a_plateau_falls_after_epochs_without_a_gain(tmp_path):
    assert rates(do(tmp_path, *FALLS, "epochs=4")) == pytest.approx([2e-3, 2e-3, 2e-4, 2e-5])
    higher = do(tmp_path, *FALLS, "scheduler.by=val/dice", "scheduler.mode=max", "scheduler.threshold=0", "epochs=4")
    scores = [json.loads(line)["val/dice"] for line in (higher.folder / "history.jsonl").read_text().splitlines()]
    gains = [score > max(scores[:n]) for n, score in enumerate(scores[:-1]) if n]
    falls = [b < a for a, b in zip(rates(higher)[1:], rates(higher)[2:], strict=False)]
    assert falls == [not gain for gain in gains]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("parts", [(), ("micro_batches=2",)])
def test_it_goes_on_to_the_same_bits(tmp_path, name, parts):
    asked = (*EACH[name], *parts, "epochs=3")
    undisturbed = do(tmp_path / "undisturbed", *asked)
    session().stop()
    assert do(tmp_path / "stopped", *asked).status == "interrupted"
    begin(Session())
    again = do(tmp_path / "stopped", *asked)
    assert (again.status, again.metrics) == ("continued", undisturbed.metrics)
    assert same(weights(again), weights(undisturbed))
    assert rates(again) == rates(undisturbed)


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("onecycle", False),
        ("warmup", False),
        ("poly by step", False),
        ("plateau", True),
        ("warmup, then as it is", True),
    ],
)
def test_runs_of_different_length_share_epochs_where_the_schedule_does_not_look_at_the_total(tmp_path, name, shared):
    asked = EACH.get(name, (*EACH["warmup"], "scheduler.T_max=null"))
    do(tmp_path, *asked, "epochs=1")
    longer = do(tmp_path, *asked, "epochs=2")
    assert longer.status == ("continued" if shared else "finished")
    assert same(weights(longer), weights(do(tmp_path / "alone", *asked, "epochs=2")))


def test_by_epoch_is_what_schedules_were_before_there_was_a_choice(tmp_path):
    same_run = do(tmp_path, "scheduler=poly")
    assert do(tmp_path, "scheduler=poly", "~scheduler.by").signature == same_run.signature
    other = do(tmp_path, "scheduler=poly", "scheduler.by=step")
    assert other.signature != same_run.signature


def test_a_number_of_steps_that_is_not_the_runs_is_refused_before_training(tmp_path):
    assert do(tmp_path, "scheduler=onecycle", f"+scheduler.steps_per_epoch={STEPS}", "epochs=1").status == "finished"
    wrong = do(tmp_path, "scheduler=onecycle", "+scheduler.steps_per_epoch=7", "epochs=1")
    assert wrong.error.startswith(
        "scheduler.steps_per_epoch=7: with scheduler.by=step this schedule is stepped 2 times"
    )


def test_a_plateau_without_a_validation_part_is_refused_whatever_split_makes_none(tmp_path):
    parts = {"train": ["P001", "P002"], "val": [], "test": ["P003"]}
    known = json.loads((do(tmp_path, "epochs=1").folder / "split.json").read_text())
    patients = sorted(name for part in ("train", "val", "test") for name in known[part])
    parts = {"train": patients[:4], "val": [], "test": patients[4:]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    outcome = do(tmp_path, *FALLS, "split=file", f"split.file={tmp_path}/split.json")
    assert outcome.status == "failed"
    assert outcome.error.startswith("scheduler.by=val: it goes by the validation part, and there is none")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("base_momentum=5", "scheduler.base_momentum=5: must be 0 to below 1"),
        ("max_lr=0", "scheduler.max_lr=0: must be above 0"),
        ("max_lr=null", "scheduler.max_lr=null: must be above 0"),
        ("div_factor=0", "scheduler.div_factor=0: must be above 0"),
    ],
)
def test_a_value_out_of_its_range_is_told_with_its_key(tmp_path, given, says):
    outcome = do(tmp_path, "scheduler=onecycle", f"scheduler.{given}", "epochs=1")
    assert outcome.status == "failed"
    assert says in outcome.error
