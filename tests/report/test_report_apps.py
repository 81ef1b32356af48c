"""The report of somebody's own Hydra application: groups of options, edited code, few seeds."""

import json
import shlex

import pytest
from houses import ALONE, House, write

from segsweep.core import locks
from segsweep.report.comparison import compare
from segsweep.report.contrasts import analyse
from segsweep.report.files import write as build
from segsweep.report.learning import learning_rates
from segsweep.report.records import read

NETS = {
    "mlp": {"net": "mlp", "net.name": "mlp", "net.module": "nets.Mlp", "net.module.hidden": 16},
    "fourier": {"net": "fourier", "net.name": "fourier", "net.module": "nets.Fourier", "net.module.n_freq": 8},
}


def one(net="mlp", seed=0, score=0.5, typed=(), lr=0.1, **factors):
    """A run of an application whose option says its class, its name, and the name of what it writes."""
    settings = NETS[net] | {"out": f"curve-{net}", "lr": lr, "seed": seed} | factors
    words = [f"net={net}", f"seed={seed}", *typed]
    more = {"command": shlex.join(["python", "train.py", *words]), "choices": {"net": net, "optim": None}}
    return House(settings, {str(seed): score}, ALONE, part="val", more=more, overrides=words)


def made(tmp_path, runs, name="sweep"):
    record = read([write(tmp_path, runs, name)])
    return compare(record)


def report(tmp_path, runs):
    build([write(tmp_path, runs)], tmp_path / "report")
    return (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_what_only_follows_a_chosen_option_is_no_second_difference(tmp_path):
    runs = [one(net, s, 0.5 - 0.2 * (net == "mlp")) for net in NETS for s in (0, 1, 2)]
    failed = one("fourier", typed=["net.name=mlp"], **{"net.name": "mlp"})  # takes part in no comparison
    failed.status = "failed"
    comparison = made(tmp_path, [*runs, failed])
    analysis = analyse(comparison)
    assert [(c.factor, c.a, c.b) for c in analysis.contrasts] == [("net", "fourier", "mlp")]
    assert analysis.confounded == []
    assert [row.label for row in comparison.rows] == ["net=mlp", "net=fourier"]
    assert comparison.record.runs[0].settings["net.module"] == "nets.Mlp"
    assert "net.name" in comparison.record.jobs[-1].run.factors


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (one("fourier", lr=0.2), {"net", "lr"}),  # a number that follows the option
        (one("fourier", typed=["act=tanh"], act="tanh"), {"net", "act"}),  # somebody typed it
        (one("fourier", note="tanh"), {"net", "note"}),  # a text of its own: the default may have been edited
        (one("fourier", typed=["net.name=x"], **{"net.name": "x"}), {"net", "net.name"}),
    ],
)
def test_what_may_make_the_difference_is_told_beside_the_option(tmp_path, second, told):
    first = one(act="relu", note="relu") if {"act", "note"} & told else one()
    second.factors.setdefault("act", "relu")
    if "act" in told:
        second.factors["note"] = "relu"
    elif "note" in told:
        second.factors["act"] = "relu"
    else:
        del second.factors["act"]
    analysis = analyse(made(tmp_path, [first, second]))
    assert analysis.contrasts == []
    assert {name for pair in analysis.confounded for name in pair.differs} == told


def test_a_command_sets_a_class_under_its_mapping(tmp_path):
    typed = ["net.module._target_=nets.Deep"]
    runs = [one(), one(typed=[*typed, "lr=0.2"], lr=0.2, **{"net.module": "nets.Deep"})]
    commands = [pair.command for pair in analyse(made(tmp_path, runs)).confounded]
    assert commands
    words = [word for command in commands for word in shlex.split(command)]
    assert not any(word.startswith("net.module=") for word in words)
    assert any(word.startswith("net.module._target_=nets.") for word in words)


def edited(version, **changes):
    house = one(**changes)
    house.more |= {"code": f"c{version}", "files": {"train": "t1", "nets": f"n{version}"}}
    house.more |= {"places": {"nets": "/home/nets.py"}, "created": f"2026-01-0{version}T00:00:00"}
    return house


def test_runs_of_two_versions_of_the_code_are_named_by_the_file_and_the_summary_says_so(tmp_path):
    runs = [edited(v, seed=s, score=1 / v + s / 100) for v in (1, 2) for s in (0, 1)]
    text = report(tmp_path, runs)
    summary = text.split("## In short")[1].split("\n## ")[0]
    assert "1. nets.py: version 2" in text
    assert "2. nets.py: version 1" in text
    assert "different versions of the code**: `nets.py` (version 1 in row 2; version 2 in row 1)" in summary
    assert runs[0].more["command"] in text


def test_one_version_of_the_code_is_not_spoken_of(tmp_path):
    text = report(tmp_path, [edited(1, seed=s, lr=lr) for s in (0, 1) for lr in (0.1, 0.2)])
    assert "version 1" not in text
    assert "different versions" not in text


def test_a_series_of_learning_rates_is_of_one_version_of_the_code_and_counts_rates(tmp_path):
    same = made(tmp_path / "same", [edited(v, score=v) for v in (1, 2)])
    assert learning_rates(same) == []
    four = made(tmp_path / "four", [edited(v, lr=lr, score=lr * v) for v in (1, 2) for lr in (0.1, 0.2)])
    assert {(s.label, *s.rates) for s in learning_rates(four)} == {
        ("nets.py: version 1", 0.1, 0.2),
        ("nets.py: version 2", 0.1, 0.2),
    }


def dated(sweep, statuses, started):
    for number, status in enumerate(statuses):
        file = sweep / str(number) / "job.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"status": status, "started": started}))
    return sweep


def stopped(tmp_path):
    """A sweep of two jobs that both say they are running, of runs without an end."""
    first = write(tmp_path, [edited(1, seed=s) for s in (0, 1)], "first")
    for run in (tmp_path / "runs").iterdir():
        (run / "result.json").unlink()
    return dated(first, ["running", "running"], "2026-01-01T00:00:00")


def test_a_job_whose_settings_have_finished_since_is_not_counted_as_unfinished(tmp_path):
    first = stopped(tmp_path)
    second = dated(write(tmp_path, [edited(2, seed=0)], "second"), ["finished"], "2026-01-02T00:00:00")
    record = read([first, second])
    assert [(job.name, job.since) for job in record.jobs if job.since] == [("first / 0", "second / 0")]
    assert [job.name for job in record.lost] == ["first / 1"]
    build([first, second], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "**1 job did not finish**" in text
    assert "with the same settings since: first / 0 (interrupted) in second / 0." in text
    before = dated(second, ["finished"], "2025-12-31T00:00:00")
    assert len(read([first, before]).lost) == 2  # what broke after it went well is told


def test_a_job_says_running_only_while_somebody_is_at_it(tmp_path):
    first = stopped(tmp_path)
    assert [job.status for job in read([first]).jobs] == ["interrupted"] * 2
    with locks.lock(first):
        assert [job.status for job in read([first]).jobs] == ["running"] * 2
    with locks.lock(read([first]).jobs[1].run.folder):
        assert [job.status for job in read([first]).jobs] == ["interrupted", "running"]


def test_a_figure_without_anything_to_draw_is_left_out_and_no_caption_speaks_of_its_intervals(tmp_path):
    """Three seeds give no interval, five do; six runs weigh no factors, ten do."""
    for seeds, said in ((3, False), (5, True)):
        runs = [one(seed=s, lr=lr, score=lr + 0.01 * s * s) for s in range(seeds) for lr in (0.1, 0.2)]
        root = tmp_path / str(seeds)
        report(root, runs)
        files = {file.stem for file in (root / "report" / "figures").iterdir()}
        assert {"rmse", "learning-rate"} <= files  # seeds are ticks, rates have means
        assert ("contrasts" in files, "importance" in files) == (said, said)
        page = (root / "report" / "report.html").read_text(encoding="utf-8")
        for words in ("with 95 % intervals", "with its 95 % interval", "and 95 % interval", "Intervals are of 95 %"):
            assert (words in page) == said, words


@pytest.mark.parametrize(("rates", "need"), [((0.1, 0.2), 6), ((0.1, 0.2, 0.3), 7)])
def test_too_few_seeds_are_one_sentence_with_the_command_that_adds_enough(tmp_path, rates, need):
    """The least two-sided p over n seeds is 2 / 2**n, times the contrasts: one of two rates, three of three."""

    def said(count, name):
        runs = [one(seed=s, lr=lr, score=lr + 0.001 * s) for s in range(count) for lr in rates]
        sweep = write(tmp_path / name, runs, command="python train.py -m 'lr=0.1,0.2' seed=0,1,2 net=mlp")
        build([sweep], tmp_path / name / "report")
        text = (tmp_path / name / "report" / "report.md").read_text(encoding="utf-8")
        return text.split("## In short")[1].split("\n## ")[0]

    few, enough = said(3, "few"), said(need, "enough")
    seeds = ",".join(map(str, range(need)))
    assert f"{need} seeds are the least that can. They come with `python train.py -m lr=0.1,0.2 net=mlp" in few
    assert f"seed={seeds}`" in few
    assert few.count("\n- ") == 3
    assert "cannot show" in said(need - 1, "nearly")
    assert "cannot show" not in enough
    assert "Validation RMSE lower by" in enough or "RMSE lower by" in enough
