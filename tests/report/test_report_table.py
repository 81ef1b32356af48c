"""The closing table of a sweep."""

import csv
import json

import pytest
from records import Spec, factors, write_sweep

from segsweep.report.files import write as build
from segsweep.report.records import read
from segsweep.report.table import table


@pytest.fixture
def jobs(tmp_path):
    specs = [Spec(factors(model=m, optim=o)) for m in ("unet", "r2unet") for o in ("sgd", "adam")]
    specs[2].status = "failed"
    specs[2].error = "loss is nan at step 3\nand more lines"
    return read([write_sweep(tmp_path, "s", specs, expected=5)]).jobs


def test_only_what_varies_is_a_column(jobs):
    text = table(jobs, width=200)
    head = text.split("───")[0]
    assert "model" in head
    assert "optim" in head
    assert "batch" not in head
    assert "momentum" not in head  # comes with the optimizer: tells nothing more
    assert "All: model.width=16, loss=bce, optim.lr=0.001" in text


def test_settings_at_the_value_at_which_they_decide_nothing_are_no_words_of_what_all_share(tmp_path):
    specs = [Spec({**factors(optim=o), "augment.noise": 0.0, "clip_norm": None}) for o in ("sgd", "adam")]
    text = table(read([write_sweep(tmp_path, "s", specs)]).jobs, width=400)
    assert "clip_norm=none" in text  # decides, as far as its task says
    assert "augment.noise" not in text
    specs = [Spec(factors(optim="sgd") | {"augment.noise": noise}) for noise in (0, 0.5)]
    assert "noise" in table(read([write_sweep(tmp_path, "t", specs)]).jobs).split("───")[0]


def test_rows_have_metrics_and_failures_their_first_line(jobs):
    lines = table(jobs, width=200).splitlines()
    done = next(line for line in lines if line.split()[:1] == ["0"])
    assert done.split() == [
        "0",
        "unet",
        "sgd",
        "finished",
        "0.1500",
        "0.9900",
        "0.1500",
        "0.9900",
        "0.800",
        "30.0",
        "1,942,289",
    ]
    failed = next(line for line in lines if line.split()[:1] == ["2"])
    assert failed.split()[3:9] == ["failed", "–", "–", "–", "–", "–"]
    assert lines[-1] == "job 2 failed: oom: loss is nan at step 3"
    assert any(line.split()[:2] == ["4", "–"] and "never started" in line for line in lines)


def test_narrow_terminal_cuts_nothing(jobs):
    assert "…" not in table(jobs, width=40)
    assert "1,332,817" in table(jobs, width=40)


def test_colour_is_asked_for(jobs):
    assert "\x1b[" not in table(jobs)
    assert "\x1b[31m" in table(jobs, color=True)


def test_names_and_values_of_anybodys_are_neither_markup_nor_commands_to_the_terminal(tmp_path):
    kinds = ("[/_]", "\x1b[2Jx")
    specs = [Spec(factors(loss=kind) | {"[/a]\x07": number}) for number, kind in enumerate(kinds)]
    specs[0].status, specs[0].error = "failed", "\x1b]0;title\x07[/b]"
    folder = write_sweep(tmp_path, "s", specs)
    file = folder / "1" / "job.json"
    file.write_text(file.read_text().replace('"finished"', '"fin\\u001b[1mished"'))
    text = table(read([folder]).jobs, width=200)
    assert all(part in text for part in ("[/_]", " [2Jx", "[/a]", "]0;title [/b]", "fin [1mished")), text
    assert not {sign for sign in text if not sign.isprintable()} - {"\n"}


def test_what_was_tested_again_and_not_trained_is_told_below_the_table(tmp_path):
    folder = write_sweep(tmp_path, "s", [Spec(factors(optim=optim)) for optim in ("sgd", "adam", "adamw")])
    for number in range(3):
        file = folder / str(number) / "job.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "reused", "tested": number < 2}))
    last = table(read([folder]).jobs, width=200).splitlines()[-1]
    assert last == "jobs 0, 1: tested again with weights that were there, nothing trained"


def test_what_stopped_early_is_told_in_words_in_table_and_report(tmp_path):
    specs = [Spec(factors(optim=optim)) for optim in ("sgd", "adam")]
    folder = write_sweep(tmp_path, "s", specs)
    for number, status in ((0, "stopped early"), (1, "reused")):
        job = json.loads((folder / str(number) / "job.json").read_text())
        file = folder / str(number) / job["run"] / "result.json"
        why = {"epoch": 3, "of": 9, "reason": f"no gain {number}"}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"stopped": why}))
        (folder / str(number) / "job.json").write_text(json.dumps(job | {"status": status}))
    text = table(read([folder]).jobs, width=200)
    assert next(line for line in text.splitlines() if line.split()[:1] == ["0"]).split()[2:5] == [
        *("stopped", "early", "0.1500")
    ]
    assert text.splitlines()[-2:] == [f"job {n} stopped early after epoch 3 of 9: no gain {n}" for n in (0, 1)]
    build([folder], tmp_path / "report")
    assert "2 runs stopped early, and are tested like the others." in (tmp_path / "report" / "report.md").read_text()
    with (tmp_path / "report" / "runs.csv").open() as file:
        assert [row["stopped"].partition(":")[0] for row in csv.DictReader(file)] == [
            "stopped early after epoch 3 of 9"
        ] * 2
