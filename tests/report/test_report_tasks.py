"""The report of a task that is no segmentation: houses whose error in the hundreds is to be low."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from houses import ALONE, HOUSES, House, errors, in_memory, levels, write

from segsweep.api import load
from segsweep.report import statistics
from segsweep.report.comparison import compare
from segsweep.report.content import a, inside, plural, plus
from segsweep.report.contrasts import analyse
from segsweep.report.files import write as build
from segsweep.report.findings import Findings
from segsweep.report.learning import convergence, importance, learning_rates, overfitting
from segsweep.report.records import read
from segsweep.report.sections import make
from segsweep.report.table import table
from segsweep.task import Metric, Spec


def planted(seed=0):
    """Few features are worse by 40, more trees do nothing, a learning rate of 0.1 is best; one run failed."""
    rng = np.random.default_rng(seed)
    level = levels(rng)
    points = itertools.product(["all", "few"], [0.01, 0.1, 1.0], [100, 200], [0, 1, 2])
    runs = [
        House(
            {"features": features, "lr": lr, "trees": trees, "seed": s},
            errors(rng, 40 * (features == "few") + 15 * abs(math.log10(lr) + 1), level=level),
            ahead=0.1 * (features == "few"),
        )
        for features, lr, trees, s in points
    ]
    runs[5].status = "failed"
    return runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("multirun")
    build([write(root, planted())], root / "report")
    return root / "report"


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.md").read_text(encoding="utf-8")


def part(text, title):
    return text.split(f"## {title}")[1].split("\n## ")[0]


def cells(text, first):
    """The table's line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_lowest_error_leads(text):
    assert "has the lowest mean RMSE" in part(text, "In short")
    lines = [line for line in part(text, "How each row scored").splitlines() if re.match(r"\| \d+\.", line)]
    means = [float(re.search(r"[\d.]+", line.split("|")[2])[0]) for line in lines]
    assert len(means) == 12
    assert means == sorted(means)
    assert min(means) > 100


def test_the_worse_option_is_found_worse_with_its_sign_and_words(text):
    assert re.search(
        r"\*\*features=all against features=few\*\*: RMSE lower by 4\d\.\d \[3\d\.\d, 4\d\.\d\] on average \(6 matched"
        r" pairs, 24 houses, p < 0.001 after Holm\); the difference holds over seeds as well as houses, \[",
        part(text, "In short"),
    )
    contrast = cells(part(text, "Is the difference real?"), "features | all − few")
    assert re.fullmatch(r"-4\d\.\d \[-4\d\.\d, -3\d\.\d\]", contrast[2])
    assert contrast[-1] == "★ shown, over houses and repeats"


def test_what_does_nothing_is_called_that(text):
    assert re.search(r"\*\*No difference is shown\*\* for trees=200 against trees=100", part(text, "In short"))


def test_nothing_of_another_task_is_in_the_report(folder, text):
    """Nor is an end of an interval where the metric has no bound."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    page = re.sub(r"base64,[^\"]*|<path[^>]*>", "", page)
    jobs = read([folder.parent / "sweep"]).jobs
    words = r"dice|iou|hd95|patients?|tumou?rs?|slices?|pixels?|masks?|networks? .* image|overlays?|images/s|batchnorm"
    for written in (text, page, table(jobs), (folder / "runs.csv").read_text()):
        assert re.findall(rf"\b({words}|inf|nan)\b", written, re.IGNORECASE) == []
    assert {"rmse.png", "all-loss.png", "all-rmse.png"} <= {file.name for file in (folder / "figures").iterdir()}


def test_axes_show_what_the_values_are(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    (forest,) = re.findall(r'<svg[^>]*aria-label="Mean RMSE with.*?</svg>', page, re.DOTALL)
    ticks = [int(n) for n in re.findall(r">(\d+)</text>", forest)]
    assert max(ticks) > 250
    sparks = re.findall(r'class="spark"[^>]*aria-label="RMSE by epoch, row 1"><polyline points="([^"]*)"', page)
    heights = [float(point.split(",")[1]) for point in sparks[0].split()]
    assert heights == sorted(heights)  # downwards on the page, as the error falls
    assert heights[-1] - heights[0] == pytest.approx(14)


def test_the_closing_table_has_the_tasks_own_columns(folder):
    lines = table(read([folder.parent / "sweep"]).jobs, width=200).strip().splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["train", "test", "test", "test"],
        ["job", "trees", "lr", "features", "seed", "status", "loss", "loss", "R2", "RMSE", "seconds", "parameters"],
    ]
    (line,) = [" ".join(line.split()) for line in lines if line.split()[:1] == ["24"]]
    assert re.fullmatch(r"24 100 0.1 few 0 finished [\d,]+ [\d,]+ 0\.7\d\d 28\d\.\d 12\.5 1,000", line)


def test_a_title_in_brackets_is_no_markup(tmp_path):
    metric = Metric(title="RMSE [m]", direction="min", by_unit=True)
    spec = Spec(metrics={"rmse": metric}, select="val/rmse", unit="house", sample="house")
    jobs = read([write(tmp_path, [House({}, errors(np.random.default_rng(0)), spec)])]).jobs
    assert "RMSE [m]" in table(jobs)


def test_what_a_score_is_and_which_way_is_better_is_said_beside_it(text):
    assert "RMSE: in thousands of euros; mean over the test houses with its 95 % interval" in text
    assert "training seconds, RMSE " in text
    assert "missed" not in text


def test_what_nobody_recorded_has_no_empty_place(tmp_path):
    """No loss on the validation part, no number of houses, one series of learning rates."""
    rng = np.random.default_rng(0)
    made = [House({"lr": rate, "task": "prices"}, errors(rng)) for rate in (0.1, 1.0)]
    sweep = write(tmp_path, made)
    for folder in (tmp_path / "runs").iterdir():
        about = json.loads((folder / "run.json").read_text())
        about["data"], about["split"]["digest"] = {"name": "prices", "digest": "d" * 16}, "shuffled, 0"
        (folder / "run.json").write_text(json.dumps(about))
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if key != "val/loss"} for row in rows]
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build([sweep], tmp_path / "report").with_suffix(".md").read_text()
    assert "all-loss" not in report
    assert "all-rmse" in report
    assert "loss gap" not in report
    assert "data: prices, manifest dddddddddddd, split: shuffled, 0, rooms train/val/test 500/100/100" in report
    assert "- prices: RMSE " in report
    assert "; lower is better." in (tmp_path / "report" / "report.html").read_text()


def test_curves_are_read_the_right_way_round(text):
    learnt = part(text, "Overfitting and convergence")
    head = cells(learnt, "row")
    assert head[2:] == ["RMSE gap", "loss gap", "trend of the gap", "95 % of the gain in RMSE", "still falling"]
    for line in re.findall(r"^\| (\d+\. .*) \|$", learnt, re.MULTILINE):
        row = [cell.strip() for cell in line.split("|")]
        ahead = "few" in row[0]
        assert (float(row[2]) > 20, float(row[3].replace(",", "")) > 0) == (ahead, ahead)
        assert row[4] == ("widening" if ahead else "no trend shown")
        assert row[5:] == ["3 of 6", "no"]  # 1 - exp(-2.5) = 0.92 of the way, 1 - exp(-5) = 0.99
    assert "RMSE gap: evaluation minus train" in learnt
    rates = part(text, "How much does the learning rate matter?")
    assert rates.count("over 3 learning rates, lowest at 0.1; each of the others is higher on these houses") >= 4
    weights = [
        cells(part(text, "Which settings mattered over the whole sweep?"), name) for name in ("features", "seed")
    ]
    assert float(weights[0][1]) > 0.7 > 0.1 > float(weights[1][1])


def test_a_better_score_costs_what_the_cheapest_rows_say(tmp_path):
    rng = np.random.default_rng(3)
    level = levels(rng)
    runs = [
        House({"trees": t}, errors(rng, shift, level=level)) for t, shift in ((10, 90), (20, 40), (30, 60), (40, 0))
    ]
    sections = {s.anchor: s for s in make(Findings(compare(read([write(tmp_path, runs)]))))}
    assert "no other row has a lower mean RMSE" in sections["tradeoffs"].blocks[0]
    time = sections["tradeoffs"].blocks[1][0]
    assert re.findall(r"trees=(\d+)", time) == ["10", "20", "40"]


def mirrored(runs):
    """The same with more for better: every score is its own negative."""
    primary = HOUSES.metrics["rmse"]
    turned = replace(primary, direction="max", bounds=(-primary.bounds[1], -primary.bounds[0]))
    spec = replace(HOUSES, metrics=HOUSES.metrics | {"rmse": turned})
    return [replace(run, scores={u: -v for u, v in run.scores.items()}, spec=spec) for run in runs]


def told(runs):
    """All that is concluded, without the sign of a score."""
    comparison = compare(in_memory(runs))
    sign, analysis = comparison.metric.sign, analyse(comparison)
    return {
        "rows": [row.factors for row in comparison.rows],
        "means": [sign * comparison.mean(i) for i in range(len(comparison.rows))],
        "best": [(best.row, best.tied, best.rivals, best.repeats) for best in comparison.best["rmse"]],
        "contrasts": [(c.factor, c.a, c.b, c.verdict, c.units, c.seeds, c.repeats) for c in analysis.contrasts],
        "p": [(c.p, c.p_holm, c.signed_rank, c.p_repeats_holm) for c in analysis.contrasts],
        "differences": [(sign * c.mean, c.interval.high - c.interval.low) for c in analysis.contrasts],
        "confounded": [(c.a, c.b, c.differs) for c in analysis.confounded],
        "gaps": [(o.score, o.trend) if (o := overfitting(row, "rmse")) else None for row in comparison.rows],
        "converged": [convergence(row) for row in comparison.rows],
        "rates": [(series.label, series.rates, series.best(comparison)) for series in learning_rates(comparison)],
    }


@pytest.mark.parametrize("seed", range(12))
def test_less_for_better_is_more_for_better_in_a_mirror(seed):
    """The same order of rows, the same ties, the same p values, whatever way is up."""
    rng = np.random.default_rng(seed)
    level, runs = levels(rng, 12), []
    for features, lr, trees, s in itertools.product(["all", "few"], [0.01, 0.1], [100, 200], [0, 1, 2]):
        if rng.random() < 0.85:
            shift = 10 * rng.standard_normal() * (features == "few") + 6 * (lr == 0.1) + 3 * rng.standard_normal()
            scores = errors(rng, shift, level=level)
            scores["h03"] = math.nan if rng.random() < 0.2 else scores["h03"]
            ahead = float(rng.choice([-0.1, 0.0, 0.1]))
            runs.append(House({"features": features, "lr": lr, "trees": trees, "seed": s}, scores, ahead=ahead))
    low, high = told(runs), told(mirrored(runs))
    for name in ("means", "p", "differences"):
        np.testing.assert_allclose(high.pop(name), low.pop(name), err_msg=name, rtol=1e-9)
    for a_row, b_row in zip(low.pop("gaps"), high.pop("gaps"), strict=True):
        assert a_row == (pytest.approx(b_row[0]), b_row[1])
    assert low == high


def test_importance_knows_which_way_is_up():
    """Few features weigh on the worse half alone, and so can a learning rate on the better."""
    rng = np.random.default_rng(0)
    level = levels(rng)
    points = itertools.product(["all", "few"], [0.01, 0.1], range(6))
    runs = [
        House(
            {"features": f, "lr": lr, "seed": s},
            errors(rng, 100 * (f == "few") - 30 * (f == "all" and lr == 0.1), 1.0, level=level),
        )
        for f, lr, s in points
    ]
    found, turned = importance(compare(in_memory(runs))), importance(compare(in_memory(mirrored(runs))))
    assert found.factors == turned.factors
    for name, shares in found.shares.items():
        np.testing.assert_allclose(shares, turned.shares[name], atol=1e-9)
    wrong = importance(compare(in_memory([replace(r, spec=turned_up(r.spec)) for r in runs])))  # as if more were better
    assert wrong.shares["PED-ANOVA"] != pytest.approx(found.shares["PED-ANOVA"])


def turned_up(spec):
    return replace(spec, metrics=spec.metrics | {"rmse": replace(spec.metrics["rmse"], direction="max")})


def test_an_interval_has_ends_or_is_none(tmp_path):
    """All houses are equal but one: without a bound nothing can be said, and no end is infinite."""
    base = {f"h{i:02}": 200.0 for i in range(20)}
    runs = [House({}, base), House({"features": "few"}, base | {"h03": 900.0})]
    found = Findings(compare(read([write(tmp_path, runs)])))
    assert found.intervals[1] is None
    assert [c.verdict for c in found.analysis.contrasts] == ["none"]
    page = build([tmp_path / "sweep"], tmp_path / "out").with_suffix(".md").read_text()
    assert "no interval" in page
    assert not re.search(r"\binf\b", page)


def summary(folder, runs):
    found = Findings(compare(read([write(folder, runs)])))
    return {s.anchor: s for s in make(found)}, found


def alone(seeds, shift=30.0, spec=ALONE, **changes):
    rng = np.random.default_rng(1)
    points = itertools.product(["all", "few"], range(seeds))
    return [
        House(
            {"features": f, "seed": s}, {"all": 200 + shift * (f == "few") + 6 * rng.standard_normal()}, spec, **changes
        )
        for f, s in points
    ]


def test_a_task_that_gives_one_number_is_compared_over_its_seeds(tmp_path):
    sections, found = summary(tmp_path, alone(8))
    said = " ".join(sections["summary"].blocks[0])
    assert "Compared over seeds alone: no house was scored; what another test sample would give is open." in said
    assert "has the lowest mean RMSE, 201.2 [" in said
    assert "RMSE lower by 29.1 [" in said
    assert (
        "over seeds (1 matched pair, 8 seeds, p = 0.008 after Holm); what another test sample would give is open"
        in said
    )
    assert [c.verdict for c in found.analysis.contrasts] == ["seeds"]
    assert "test houses" not in said
    page = build([tmp_path / "sweep"], tmp_path / "out").with_suffix(".md").read_text()
    assert "houses.csv" not in page
    assert "same houses" not in page


def test_three_seeds_alone_show_nothing(tmp_path):
    sections, found = summary(tmp_path, alone(3))
    said = " ".join(sections["summary"].blocks[0])
    assert found.intervals == [None, None]
    assert "**3 shared seeds cannot show a difference**" in said
    assert "6 seeds are the least that can." in said
    assert "against features=few**" not in said


def test_what_was_chosen_by_is_never_called_a_test(tmp_path):
    sections, found = summary(tmp_path, alone(8, part="val"))
    assert found.comparison.part == "val"
    said = " ".join(sections["summary"].blocks[0])
    assert "**No run has a number of a test.**" in said
    assert "the best of many is too good" in said
    assert "has the lowest mean validation RMSE" in said
    page = build([tmp_path / "sweep"], tmp_path / "out").with_suffix(".md").read_text()
    assert "test RMSE" not in page
    assert "matters for validation RMSE" in page
    assert table(read([tmp_path / "sweep"]).jobs, width=200).split()[:3] == ["train", "val", "val"]
    assert found.means.tolist() == pytest.approx([201.2, 230.3], abs=0.1)


def test_scores_on_two_scales_are_not_held_against_each_other(tmp_path):
    """A task whose one metric is its loss: two losses have no order, two learning rates under each have."""
    loss = Metric(title="Loss", direction="min", format=".2f", by_unit=True, scale=("loss",))
    spec = Spec(metrics={"loss": loss}, select="val/loss", unit="house", sample="house")
    rng = np.random.default_rng(0)
    level = levels(rng)
    points = itertools.product(["square", "absolute"], [0.01, 0.1], range(5))
    runs = [
        House(
            {"loss": name, "lr": lr, "seed": s},
            {u: v * (1 if name == "absolute" else 100) for u, v in errors(rng, 20 * (lr == 0.1), level=level).items()},
            spec,
        )
        for name, lr, s in points
    ]
    sections, found = summary(tmp_path, runs)
    assert found.arenas == 2
    differences = {c.where: round(c.mean) for c in found.analysis.contrasts}
    assert differences == {"loss=absolute": pytest.approx(20, abs=3), "loss=square": pytest.approx(2000, abs=300)}
    assert {c.factor for c in found.analysis.contrasts} == {"lr"}
    assert [c.factor for c in found.analysis.confounded] == []
    assert "The scale of Loss depends on loss" in sections["contrasts"].blocks[0]
    said = " ".join(sections["summary"].blocks[0])
    assert "among the rows with loss=absolute" in said
    assert "**lr=0.01 against lr=0.1** (loss=square): Loss lower by" in said
    assert importance(found.comparison).runs == 10


def test_repeats_of_a_tasks_own_kind_are_joined_or_averaged():
    """Parts of a cross-validation have houses of their own; repeats of the same houses count as a mean."""
    first, second = {f"h{i}": 200.0 + i for i in range(6)}, {f"h{i}": 300.0 + i for i in range(6, 12)}
    runs = [House({"cv.part": 0}, first), House({"cv.part": 1}, second)]
    (row,) = compare(in_memory(runs)).rows
    assert row.repeats == {"cv.part": [0, 1]}
    comparison = compare(in_memory(runs))
    names = [unit for _, unit in comparison.units]
    assert dict(zip(names, comparison.by_unit(0), strict=True)) == first | second
    again = [House({"cv.part": 0}, first), House({"cv.part": 1}, {u: v + 10 for u, v in first.items()})]
    assert compare(in_memory(again)).mean(0) == pytest.approx(207.5)


def users(count):
    spec = Spec(
        metrics={"ndcg": Metric(title="NDCG", direction="max", bounds=(0.0, 1.0), by_unit=True)},
        select="val/ndcg",
        unit="user",
        sample="rating",
    )
    return [House({"trees": 7 + i}, {f"u{j}": 0.5 + 0.01 * j for j in range(9)}, spec) for i in range(count)]


def test_runs_of_two_tasks_are_never_held_against_each_other(tmp_path):
    rng = np.random.default_rng(0)
    houses = [House({"trees": t}, errors(rng)) for t in (10, 20, 30)]
    sections, found = summary(tmp_path, [*users(2), *houses])
    assert found.spec == HOUSES
    assert len(found.rows) == 3
    (missing,) = sections["missing"].blocks
    assert missing.startswith(
        "Runs of another task, which do not compare with these: 2 of one that is measured by NDCG of users."
    )
    assert len(found.record.jobs) == 5
    build([tmp_path / "sweep"], tmp_path / "out")
    assert (tmp_path / "out" / "runs.csv").read_text().count("\n") == 6
    assert "NDCG" not in table(found.record.jobs)
    assert read([write(tmp_path / "more", [*users(4), *houses])]).spec.unit == "user"


def rewrite(folder, **changes):
    file = folder / "run.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | changes))


@pytest.mark.parametrize("key", ["repeats", "ignored", "inputs", "neutral", "epochs", "sections"])
def test_a_description_with_a_value_of_another_kind_is_none(key):
    about = Spec(metrics={"rmse": Metric(title="RMSE", direction="min")}, select="val/rmse").to_json()
    for wrong in (3, "x", [3]):
        with pytest.raises(ValueError, match=f"^{key}="):
            Spec.from_json(about | {key: wrong})


def test_a_damaged_description_is_told_and_its_run_left_out(tmp_path):
    rng = np.random.default_rng(0)
    sweep = write(tmp_path, [House({"trees": t}, errors(rng)) for t in (10, 20, 30, 40)])
    folders = [job.run.folder for job in read([sweep]).jobs]
    rewrite(folders[0], task={"metrics": {"rmse": {"title": "RMSE", "direction": "up"}}, "select": "val/rmse"})
    rewrite(folders[1], task="prices")
    (folders[2] / "run.json").unlink()
    record = read([sweep])
    assert [run.folder for run in record.runs] == folders[2:]
    assert len(record.runs[0].units) == 24  # what it is of is not known: it is taken to be as the rest
    lost = [problem for problem in record.problems if "its task cannot be read, so the run is left out" in problem]
    assert len(lost) == 2
    assert "direction='up': allowed are max, min" in lost[0]
    page = build([sweep], tmp_path / "out").with_suffix(".md").read_text()
    assert "its task cannot be read" in page
    assert "dice" not in table(record.jobs).lower()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unit": "../../etc/house"}, "unit='../../etc/house': not a word"),
        ({"sample": 3}, "sample=3: not text"),
        (
            {"select": "val/mse", "metrics": {"loss": {"title": "L", "direction": "min"}}},
            "select=val/mse: no such metric",
        ),
        ({"metrics": {"rmse": {"title": "R", "direction": "min", "format": "999999999f"}}}, "format='999999999f'"),
        ({"metrics": {"rmse": {"title": "R", "direction": "min", "format": "d"}}}, "format='d'"),
        ({"metrics": {"rmse": {"title": "R", "direction": "min", "bounds": [1, 1]}}}, "the first below the second"),
        ({"metrics": {"rmse": {"title": 3, "direction": "min"}}}, "text is expected"),
        ({"metrics": {"rmse": {"title": "R\x1b[2J", "direction": "min"}}}, "text is expected"),
        ({"metrics": {"rmse": {"title": "R", "direction": "min", "bounds": [10**400, None]}}}, "OverflowError"),
    ],
)
def test_what_no_report_can_be_made_of_is_no_description(change, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        Spec.from_json(HOUSES.to_json() | change)


def test_a_metrics_name_is_no_path(tmp_path):
    metric = Metric(title="Up", direction="min", by_unit=True)
    spec = Spec(metrics={"../../up": metric}, select="val/../../up", unit="house", sample="house")
    rng = np.random.default_rng(0)
    build([write(tmp_path / "in", [House({"trees": t}, errors(rng), spec) for t in (1, 2)])], tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"in", "out"}
    assert (tmp_path / "out" / "figures" / "-up.png").exists()


MINE = """
from pathlib import Path
from segsweep.report.content import Cell, Section
from segsweep.report.own import Column

Path(__file__).with_name("imported").touch()
WORDS = {"parameters": "leaves"}
NOTES = {"mae": "the middle one"}
def sentences(found):
    return {"summary": [f"Seen {len(found.rows)} rows of {found.units}."]}
def columns(found):
    return [Column("garden", [Cell(str(i)) for i, _ in enumerate(found.rows)], "MAE", "square metres")]
def sections(found):
    return [Section("map", "Where are they?", ["Here."])]
def note(job):
    return "has a cellar" if job.number == 1 else ""
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    def write_mine(source, name):
        package = tmp_path / "path" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "extra.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "path")
        rng = np.random.default_rng(0)
        spec = replace(HOUSES, sections=(f"{name}.extra",))
        return write(tmp_path, [House({"trees": t}, errors(rng), spec) for t in (10, 20)]), package

    return write_mine


def test_a_task_adds_what_is_its_own(tmp_path, mine, allow):
    sweep, _ = mine(MINE, "prices_of_test")
    allow("prices_of_test.*")
    page = build([sweep], tmp_path / "out").with_suffix(".md").read_text()
    assert "- Seen 2 rows of houses." in part(page, "In short")
    assert page.index("## Where are they?") < page.index("## How did they learn?")
    assert cells(part(page, "How each row scored"), "row")[3:5] == ["garden", "MAE"]
    assert "- garden: square metres" in page
    assert "- MAE: the middle one" in page
    assert "RMSE against leaves for 2 rows" in page
    assert "job 1: has a cellar" in table(read([sweep]).jobs)


def test_what_a_record_names_is_imported_only_where_it_is_allowed(tmp_path, mine):
    sweep, package = mine(MINE, "stranger_of_test")
    page = build([sweep], tmp_path / "out").with_suffix(".md").read_text()
    table(read([sweep]).jobs)
    assert not (package / "imported").exists()
    said = part(page, "What is missing")
    assert "- stranger_of_test.extra: not imported; for your own package set SEGSWEEP_ALLOW=package.*" in said
    for name in ("segsweep.sweeps.sweep", "segsweep.sweeps.cli", "os"):
        folder = next(tmp_path.glob("runs/*"))
        rewrite(folder, task=replace(HOUSES, sections=(name,)).to_json(), created="2027-01-01T00:00:00")
        assert Findings(compare(read([sweep]))).own.problems[0].startswith(f"{name}: not imported")


def test_what_fails_of_it_is_told_and_the_report_is_made(tmp_path, mine, allow):
    sweep, _ = mine(MINE.replace('["Here."]', "[1 / 0]") + "\ndef columns(found): return [missing]\n", "broken_of_test")
    allow("broken_of_test.*")
    page = build([sweep], tmp_path / "out").with_suffix(".md").read_text()
    said = part(page, "What is missing")
    assert "- broken_of_test.extra.sections: left out: ZeroDivisionError: division by zero" in said
    assert "- broken_of_test.extra.columns: left out: NameError" in said
    assert "Seen 2 rows of houses" in page


def halves(spec, change):
    """Two settings on the same houses, whose trainings had other parts of the data: a digest of their own each."""
    rng = np.random.default_rng(3)
    level = levels(rng)
    runs = [House({"seed": s}, errors(rng, level=level), spec) for s in range(3)]
    return runs + [House({"seed": s} | change, errors(rng, 60, level=level), spec, split="t" * 16) for s in range(3)]


@pytest.mark.parametrize("factor", ["task.share", "share"])
def test_a_setting_that_decides_the_split_explains_that_it_differs(factor):
    """Of a task that names the setting as an input; one that does not cannot tell it from a file that was changed."""
    named = replace(HOUSES, inputs=("share",))
    found = Findings(compare(in_memory(halves(named, {factor: 0.5}))))
    assert [(c.factor, c.verdict) for c in found.analysis.contrasts] == [(factor, "shown")]
    assert not found.analysis.confounded
    for spec, change in ((replace(HOUSES, inputs=()), {factor: 0.5}), (named, {"lr": 0.5})):
        found = Findings(compare(in_memory(halves(spec, change))))
        assert not found.analysis.contrasts
        (pair,) = found.analysis.confounded
        assert "content of the split" in pair.differs


def test_what_a_task_only_resolves_with_its_data_explains_no_difference_of_them():
    spec = replace(HOUSES, inputs=("share", "precision"))
    record = in_memory(halves(spec, {"precision": "bf16"}))
    for run in record.runs:
        run.info["resolved"] = ["precision"]
    assert not Findings(compare(record)).analysis.contrasts


def test_the_run_that_would_settle_it_is_asked_for_with_the_folder_of_ones_own_options():
    changed = ({}, {"lr": 1.0, "trees": 200})
    record = in_memory([House({"seed": s} | more, {"h1": 1.0}) for s in range(2) for more in changed])
    for run in record.runs:
        typed = run.info["command"].removeprefix("python -m segsweep")
        run.info["command"] = f"python -m segsweep --config-dir /my/a=b {typed}"
    (pair, *_) = analyse(compare(record)).confounded
    assert pair.command.startswith("python -m segsweep -m --config-dir /my/a=b task=prices")
    assert {"seed=0,1", "lr=0.1" if "lr=1.0" not in pair.command else "lr=1.0"} <= set(pair.command.split())


def test_leaking_rows_are_no_contrast_of_a_setting():
    rng = np.random.default_rng(0)
    runs = [House({}, errors(rng)), House({"trees": 300}, errors(rng, -100), leaks=True)]
    analysis = analyse(compare(in_memory(runs)))
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["trees", "whether the split leaks"]


def test_a_gain_is_counted_from_the_worst_there_is_where_there_is_a_worst():
    """An error rate starts at 1, as an accuracy starts at 0."""
    rate = Metric(title="Error", direction="min", bounds=(0.0, 1.0), by_unit=True)
    spec = Spec(metrics={"error": rate}, select="val/error", unit="house", sample="house")
    values = [0.9, 0.5, 0.24, 0.22, 0.2]
    (run,) = in_memory([House({}, {"h1": 0.2}, spec)]).runs
    run.history["val/error"] = np.array(values)
    (row,) = compare(in_memory([House({}, {"h1": 0.2}, spec)])).rows
    row.runs = [run]
    assert convergence(row).epochs == [3]  # 1 - 0.24 = 0.76 = 0.95 * (1 - 0.2)
    assert convergence(row).rising  # 0.8 > 1.01 * 0.78
    run.history["val/error"] = np.array([0.9, 0.5, 0.24, 0.2, 0.2])
    assert not convergence(row).rising


def test_intervals_of_errors_without_a_bound_cover_the_truth():
    """As the section on the method says: normal errors, their sizes, their squares, and a log-normal."""
    rng = np.random.default_rng(0)
    draws = {
        "errors": (lambda: rng.standard_normal(20), 0.0, 0.93),
        "sizes": (lambda: abs(rng.standard_normal(20)), math.sqrt(2 / math.pi), 0.93),
        "squares": (lambda: rng.standard_normal(20) ** 2, 1.0, 0.91),
        "log-normal": (lambda: np.exp(rng.standard_normal(20)), math.exp(0.5), 0.88),
    }
    for name, (draw, truth, least) in draws.items():
        bounds = (-math.inf if name == "errors" else 0.0, math.inf)
        samples = [statistics.mean_interval(300 * draw(), bounds=bounds) for _ in range(1000)]
        assert least <= np.mean([s.low <= 300 * truth <= s.high for s in samples]) <= 0.97, name


def test_large_numbers_that_differ_by_rounding_alone_do_not_differ():
    x = np.full(12, 1e6 / 3) + 1e-10 * np.random.default_rng(0).standard_normal(12)
    interval = statistics.mean_interval(x)
    assert interval.low == interval.high
    assert statistics.crossed_interval(np.stack([x, x, x])).low == pytest.approx(1e6 / 3)


def test_words_of_any_unit():
    assert [plural(2, noun) for noun in ("house", "city", "day", "loss", "box", "patch")] == [
        *("2 houses", "2 cities", "2 days", "2 losses", "2 boxes", "2 patches")
    ]
    assert [a(noun) for noun in ("house", "image", "user", "hour", "utterance", "unit", "one-off")] == [
        *("a house", "an image", "a user", "an hour", "an utterance", "a unit", "a one-off")
    ]
    assert [inside(title) for title in ("Loss", "RMSE", "R2", "Top-5 error")] == ["loss", "RMSE", "R2", "top-5 error"]
    assert [plus(value, form) for value, form in ((1234.5, ",.0f"), (-0.1, ".1%"), (0.0, ".3f"))] == [
        *("+1,234", "-10.0%", "+0.000")
    ]


def test_only_the_folds_that_both_rows_have_are_compared():
    """A house is tested in each part; the later ones are harder for everybody, and one row has the first alone."""
    rng = np.random.default_rng(0)
    level = levels(rng)

    def run(trees: int, part: int) -> House:
        scores = {f"h{i:02}": v + 30 * (part > 0) + rng.normal() for i, v in enumerate(level)}
        return House({"trees": trees, "cv.part": part}, scores)

    found = Findings(compare(in_memory([run(100, 0), run(100, 1), run(100, 2), run(200, 0)])))
    (contrast,) = found.analysis.contrasts
    assert abs(contrast.mean) < 1
    assert contrast.verdict == "none"
    (best,) = found.comparison.best["rmse"]
    assert len(best.tied) == 1


def test_folds_of_one_seed_are_no_seeds():
    rng = np.random.default_rng(0)
    spec = replace(ALONE, repeats=("cv.part",))
    runs = [
        House({"features": f, "cv.part": part, "seed": seed}, {"all": 200 + 30 * (f == "few") + rng.normal()}, spec)
        for f, part, seed in itertools.product(["all", "few"], range(6), [0])
    ]
    found = Findings(compare(in_memory(runs)))
    assert [c.verdict for c in found.analysis.contrasts] == ["none"]
    assert [len(row.seeds) for row in found.rows] == [1, 1]
    assert found.intervals == [None, None]


def test_a_row_that_leads_and_lost_its_units_leaves_no_other_in_the_lead():
    rng = np.random.default_rng(0)
    level = levels(rng)
    runs = [House({"lr": lr}, errors(rng, shift, level=level)) for lr, shift in ((0.1, 60), (0.2, 90), (0.3, 0))]
    record = in_memory(runs)
    record.runs[2].units.clear()
    found = Findings(compare(record))
    assert found.rows[0].factors["lr"] == 0.3
    assert found.comparison.best["rmse"] == []
    assert "has the lowest mean" not in " ".join({s.anchor: s for s in make(found)}["summary"].blocks[0])


def test_a_gap_is_the_mean_over_the_runs_each_in_its_own_last_epoch():
    runs = [House({"seed": seed, "epochs": 6}, errors(np.random.default_rng(seed)), ahead=0.2) for seed in range(3)]
    record = in_memory(runs)
    lasts = []
    for run, length in zip(record.runs, (6, 3, 2), strict=True):
        run.history = {name: column[:length] for name, column in run.history.items()}
        lasts.append(run.history["val/rmse"][-1] - run.history["train/rmse"][-1])
    found = Findings(compare(record))
    (gap,) = found.overfitting
    assert gap.score == pytest.approx(np.mean(lasts))
    assert gap.trend == "too few epochs"  # two that all have


def test_settings_that_are_called_as_columns_of_the_table_keep_their_values(tmp_path):
    names = {"job": "night", "status": "new", "row": 3, "group": 1, "folder": "a", "objective": "squared"}
    run = House(names, errors(np.random.default_rng(0)))
    folder = write(tmp_path, [run])
    (line,) = load(folder).runs.to_dict("records")
    kept = {name: line["objective" if name == "objective" else f"setting.{name}"] for name in names}
    assert kept == names
    assert (line["job"], line["status"]) == (0, "finished")


def test_a_value_with_two_dollars_is_no_formula(tmp_path):
    rng = np.random.default_rng(0)
    grid = itertools.product(["^a$|^c_$", "^b$"], [0.1, 0.2])
    runs = [House({"features": f, "lr": lr}, errors(rng)) for f, lr in grid]
    assert build([write(tmp_path, runs)], tmp_path / "out").exists()
