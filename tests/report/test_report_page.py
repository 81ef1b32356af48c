"""The report as files: every part is there, says what the numbers say, and needs nothing but itself."""

import csv
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from records import PATIENTS, Spec, difficulties, factors, simulate, write_sweep

from segsweep.core import artifacts
from segsweep.report import files
from segsweep.report.__main__ import main
from segsweep.report.comparison import compare
from segsweep.report.files import write as build
from segsweep.report.findings import Findings
from segsweep.report.records import read
from segsweep.report.sections import make


def big_sweep(root):
    """Two networks, two optimizers, two rates, three seeds; one failed, one pruned; one confounded row, one leaking."""
    rng = np.random.default_rng(0)
    z = difficulties(rng)
    specs = [
        Spec(
            factors(model=m, optim=o, optim_lr=lr, seed=s),
            simulate(rng, 0.05 * rng.standard_normal() + 0.9 * (o == "adam"), 0.2, z),
            overfits=0.1 * (o == "adam"),
            seconds=30 + 5 * (m == "r2unet"),
        )
        for m, o, lr, s in itertools.product(["unet", "r2unet"], ["sgd", "adam"], [1e-4, 1e-3], [0, 1, 2])
    ]
    specs[3].status, specs[7].status = "failed", "pruned"
    specs.append(Spec(factors(optim="adam", loss="dice", epochs=10), simulate(rng, 0.4, 0.2, z)))
    specs.append(Spec(factors(optim="adam", split="slice"), simulate(rng, 2.5, 0.2, z)))
    return write_sweep(root, "first", specs, expected=27)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("multirun")
    sweep = big_sweep(root)
    assert build([sweep], root / "report") == root / "report" / "report.html"
    return root / "report"


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.md").read_text(encoding="utf-8")


def test_rows_that_went_in_parts_for_want_of_memory_are_named(tmp_path):
    specs = [Spec(factors(optim=o, micro_batches=n)) for o, n in (("sgd", 1), ("adam", 1), ("adam", 4))]
    sweep = write_sweep(tmp_path, "first", specs)
    for spec, file in zip(specs, (run.folder / "result.json" for run in read([sweep]).runs), strict=True):
        parts = 4 if spec.factors["optim"] == "adam" else 1  # the last was asked to
        file.write_text(json.dumps(json.loads(file.read_text()) | {"micro_batches": parts}))
    build([sweep], tmp_path / "report")
    (remark,) = [
        line for line in (tmp_path / "report" / "report.md").read_text().splitlines() if "want of memory" in line
    ]
    assert "went through the network in parts: 1. adam, micro_batches=1 in 4. The loss" in remark


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def test_every_section_is_there_in_the_order_of_the_questions(text):
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles == [
        "In short",
        "What is missing",
        "What was compared",
        "How each row scored",
        "Is the difference real?",
        "What these runs cannot settle",
        "Seeds and patients",
        "What does a better Dice cost?",
        "What does it look like?",
        "How did they learn?",
        "Overfitting and convergence",
        "How much does the learning rate matter?",
        "Which settings mattered over the whole sweep?",
        "Where it comes from",
        "How the figures are made",
    ]


def test_summary_says_what_was_planted_and_no_more(text):
    summary = text.split("## What is missing")[0]
    assert (
        "24 finished runs in 10 configurations, each tested on 20 test patients of phantom. **3 jobs did not finish**"
        in summary
    )
    assert re.search(
        r"\*\*adam against sgd\*\*: Dice higher by 0\.\d+ .*4 matched pairs, 20 patients, p < 0.001 after Holm.*holds"
        r" over seeds as well",
        summary,
    )
    assert re.search(r"\*\*No difference is shown\*\* for .*r2unet", summary)
    assert "differs in loss and epochs, not attributable" in summary
    assert "**1 row was split by slice and leaks**" in summary
    assert "predicting no tumour anywhere would have an accuracy of 0.98" in summary


def test_page_stands_alone(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)
    assert all(image["src"].startswith("data:image/png;base64,") for image in elements.all("img"))
    assert not [link for link in elements.all("link") if not link["href"].startswith("data:")]
    assert not [script for script in elements.all("script") if "src" in script]
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in elements.all("a")} <= set(ids)


def test_every_picture_has_words_and_a_file(folder, text):
    elements = Elements((folder / "report.html").read_text(encoding="utf-8"))
    assert len(elements.all("figure")) > 30
    assert all(len(image["alt"]) > 40 for image in elements.all("img"))
    assert all(len(svg["aria-label"]) > 10 and svg["role"] == "img" for svg in elements.all("svg"))
    named = re.findall(r"^!\[(.+)\]\(figures/(.+\.png)\)$", text, re.MULTILINE)
    assert {name for _, name in named} == {path.name for path in (folder / "figures").iterdir()}
    assert all(len(words) > 40 for words, _ in named)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "figures").iterdir())


def test_page_is_well_formed(folder):
    void = {"meta", "link", "img", "br"}
    open_tags = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in void:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Nesting().feed((folder / "report.html").read_text(encoding="utf-8"))
    assert open_tags == []


def test_training_statistics_have_all_columns_and_mark_only_what_is_shown(text):
    table = text.split("## How each row scored")[1].split("## ")[0]
    head = next(line for line in table.splitlines() if line.startswith("| row"))
    for column in [
        "Dice",
        "SD of seeds",
        "IoU",
        "HD95 (px)",
        "missed",
        "train loss",
        "train accuracy",
        "test loss",
        "test accuracy",
        "training time (s)",
    ]:
        assert f" {column} " in head
    for column in ("parameters", "GFLOPs", "images/s", "peak memory (MiB)"):
        assert f" {column} " in head
    rows = [line for line in table.splitlines() if re.match(r"\| \d+\.", line)]
    assert len(rows) == 10
    assert "(leaks)" in rows[-1]
    assert "★" not in rows[-1]
    assert "≈" not in rows[-1]


def test_what_is_missing_is_listed_with_its_error(text):
    part = text.split("## What is missing")[1].split("## ")[0]
    assert "1 failed, 1 pruned and 1 never started" in part
    assert "oom: CUDA out of memory: asked for 2.0 GiB" in part


def test_leak_is_named_and_measured(text):
    part = text.split("## Where it comes from")[1].split("## ")[0]
    assert re.search(
        r"\*\*Leaks:\*\* 10\. .*Measured: slice minus patient, Dice \+0\.\d+ \[.*on the same 20 patients", part
    )
    assert part.count("`python -m segsweep") == 24


def test_runs_csv_has_a_line_a_job(folder):
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 27
    assert [row["status"] for row in rows].count("finished") == 24
    assert rows[3]["error"] == "CUDA out of memory: asked for 2.0 GiB"
    assert float(rows[0]["test/dice"]) > 0.5
    assert rows[0]["optim.lr"] == "0.0001"
    assert rows[0]["command"].startswith("python -m segsweep")


def test_a_cell_of_runs_csv_is_no_formula():
    assert [artifacts.cell(value) for value in ("=1+1", "+1", "-a", "@x", "a=b", -1.5, None, "")] == [
        *("'=1+1", "'+1", "'-a", "'@x", "a=b"), -1.5, None, "",
    ]  # fmt: skip


def test_no_name_in_the_head_of_runs_csv_is_a_formula(tmp_path):
    record = read([write_sweep(tmp_path / "multirun", "s", [Spec(factors() | {"=1+1": 2})])])
    head = files.table_of_runs(record, compare(record)).splitlines()[0].split(",")
    assert "'=1+1" in head
    assert "=1+1" not in head


def test_same_patients_are_shown_for_every_row(text):
    part = text.split("## What does it look like?")[1].split("## ")[0]
    for role in ("best", "median", "worst"):
        assert len(re.findall(rf"figures/overlay-{role}-row\d+\.png", part)) == 10
        assert f"**{role.capitalize()} patient**" in part


def test_overfitting_and_convergence_follow_the_curves(text):
    part = text.split("## Overfitting and convergence")[1].split("## ")[0]
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in part.splitlines()
        if re.match(r"\| \d+\.", line)
    }
    for title, cells in rows.items():
        if "adam" in title and "dice" not in title and "leaks" not in title:
            assert cells[3] == "widening"
            assert float(cells[1]) > 0
        if "sgd" in title:
            assert (cells[1], cells[3]) == ("+0.000", "no trend shown")
        if "epochs=10" in title:
            assert cells[4:] == ["5 of 10", "no"]  # 1 - exp(-5 / 1.5) = 0.964 of the end, 1 - exp(-4 / 1.5) = 0.930
        else:
            assert cells[4:] == ["4 of 5", "yes"]


def sections(specs, tmp_path, expected=None):
    found = Findings(compare(read([write_sweep(tmp_path / "multirun", "s", specs, expected)])))
    return {section.anchor: section for section in make(found)}


def summary_of(specs, tmp_path):
    return " ".join(sections(specs, tmp_path)["summary"].blocks[0])


def test_nothing_finished_is_still_a_report(tmp_path):
    sweep = write_sweep(
        tmp_path / "multirun", "s", [Spec(factors(seed=s), status="failed") for s in (0, 1)], expected=3
    )
    page = build([sweep], tmp_path / "out").read_text(encoding="utf-8")
    assert "No run has finished" in page
    assert "2 failed and 1 never started" in page


def test_one_run_alone_is_compared_with_nothing(tmp_path):
    summary = summary_of([Spec(factors(), simulate(np.random.default_rng(0)))], tmp_path)
    assert "One row alone compares with nothing" in summary
    assert summary.startswith("1 finished run in 1 configuration, tested on 20 test patients of phantom.")
    assert re.search(r"Pixel accuracy is 0\.9\d+ while mean Dice is 0\.\d+; predicting", summary)
    assert "higher" not in summary.replace("highest", "")


def test_few_patients_get_no_interval_and_no_claim(tmp_path):
    few = PATIENTS[:3]
    specs = [
        Spec(factors(optim=o), {p: d + 0.01 * i for i, p in enumerate(few)}) for o, d in (("sgd", 0.2), ("adam", 0.9))
    ]
    summary = summary_of(specs, tmp_path)
    assert "no interval and no test can be given" in summary
    assert "cannot be told from the other row" in summary
    assert "**3 shared patients cannot show a difference**: over 1 contrast the test gives no p below 0.25" in summary
    assert "against sgd**" not in summary


def test_one_seed_never_speaks_of_more_than_the_trained_networks(tmp_path):
    rng = np.random.default_rng(0)
    z = difficulties(rng)
    specs = [Spec(factors(optim=o), simulate(rng, shift, 0.2, z)) for o, shift in (("sgd", 0), ("adam", 1.5))]
    summary = summary_of(specs, tmp_path)
    assert re.search(r"\*\*adam against sgd\*\*: Dice higher by 0.\d+ \[.*\] for the networks as trained", summary)
    assert "with 1 seed it stays open whether training again would agree" in summary
    assert "holds over" not in summary
    assert "Every row rests on 1 seed:" in summary


def test_difference_within_the_luck_of_training_is_called_that(tmp_path):
    """Two optimizers whose seeds scatter by far more than the optimizers differ."""
    rng = np.random.default_rng(1)
    z = difficulties(rng)
    luck = {("sgd", 0): 1.5, ("sgd", 1): -1.0, ("sgd", 2): -0.8, ("adam", 0): 0.0, ("adam", 1): 1.6, ("adam", 2): 0.9}
    specs = [Spec(factors(optim=o, seed=s), simulate(rng, shift, 0.1, z)) for (o, s), shift in luck.items()]
    summary = summary_of(specs, tmp_path)
    assert "**no more than seeds differ among themselves**: not shown for newly trained networks" in summary
    assert "holds over" not in summary


def test_no_difference_is_said_with_the_wider_interval_and_so_is_a_leak_without_effect(tmp_path):
    """Seeds that scatter: the interval over patients alone would leave out what another training may bring."""
    rng = np.random.default_rng(5)
    z = difficulties(rng)
    specs = [
        Spec(factors(split=split, seed=s), simulate(rng, luck, 0.05, z))
        for split, lucks in (("patient", (0.1, -0.1, 0.0)), ("slice", (0.0, 0.1, -0.1)))
        for s, luck in enumerate(lucks)
    ]
    specs += [
        Spec(factors(optim="adam", seed=s), simulate(rng, luck, 0.05, z)) for s, luck in enumerate((0.1, 0.0, -0.1))
    ]
    summary = summary_of(specs, tmp_path)
    said = re.search(
        r"\*\*No difference is shown\*\* for (adam|sgd) against .*over patients and seeds \[-0\.\d+", summary
    )
    assert said
    assert "the corrected test is not below 5 %. That is no proof of equality." in summary
    assert re.search(r"Measured on the same 20 patients: .* less .*, Dice .*, not shown to differ\.", summary)


def test_rows_of_other_data_share_no_front_and_no_accuracy_of_nothing(tmp_path):
    """Two rows on one data set, a third on an easier one: it is cheaper and scores higher, and says nothing of them."""
    rng = np.random.default_rng(8)
    specs = [Spec(factors(epochs=e), simulate(rng), seconds=30.0 + e) for e in (5, 6)]
    specs.append(Spec(factors(data="lgg"), dict.fromkeys(PATIENTS, 0.99), data="e" * 16, seconds=1.0))
    page = build([write_sweep(tmp_path, "s", specs)], tmp_path / "out").with_suffix(".md").read_text(encoding="utf-8")
    front = page.split("## What does a better Dice cost?")[1].split("\n## ")[0]
    assert "On it are only rows that were tested as" in front
    (time,) = [line for line in front.splitlines() if line.startswith("- By training seconds")]
    assert "lgg" not in time
    assert "predicting no tumour anywhere" not in page


def test_rows_of_two_image_sizes_are_said_to_be_scored_each_at_its_own(tmp_path):
    rng = np.random.default_rng(9)
    specs = [Spec(factors(data_image_size=size), simulate(rng)) for size in (64, 128)]
    page = build([write_sweep(tmp_path, "s", specs)], tmp_path / "out").with_suffix(".md").read_text(encoding="utf-8")
    assert "Rows of 64 px and 128 px are **scored at their own size**" in page
    assert "A contrast of image sizes compares Dice at two sizes" in page
    assert "own size" not in summary_of([Spec(), Spec(factors(optim="adam"))], tmp_path)


def test_pairs_of_opposite_sign_are_said(tmp_path):
    rng = np.random.default_rng(2)
    z = difficulties(rng)
    shifts = {("unet", "sgd"): 0, ("unet", "adam"): 2.5, ("r2unet", "sgd"): 0.4, ("r2unet", "adam"): 0}
    specs = [Spec(factors(model=m, optim=o), simulate(rng, shift, 0.1, z)) for (m, o), shift in shifts.items()]
    assert re.search(
        r"adam against sgd\*\*.*pair by pair from -0\.\d+ to \+0\.\d+, of both signs: it may depend",
        summary_of(specs, tmp_path),
    )


def test_importance_says_what_it_rests_on(tmp_path):
    rng = np.random.default_rng(3)
    specs = [
        Spec(factors(optim=o, epochs=e, seed=s), simulate(rng, 1.5 * (o == "adam"), 0.1), overlays=False)
        for o, e, s in itertools.product(["sgd", "adam"], [5, 6], [0, 1, 2])
    ]
    part = sections(specs, tmp_path)["importance"]
    assert "Over 12 finished runs" in part.blocks[0]
    assert "The runs fill the grid" in part.blocks[0]
    assert "That is few for 3 factors" in part.blocks[0]
    table = part.blocks[1]
    assert table.rows[0][0] == "optim"
    for column in (1, 2):
        assert sum(row[column].sort for row in table.rows) == pytest.approx(1)


def test_too_few_runs_have_no_importance(tmp_path):
    rng = np.random.default_rng(3)
    specs = [Spec(factors(optim=o, seed=s), simulate(rng)) for o in ("sgd", "adam") for s in range(4)]
    assert "importance" not in sections(specs, tmp_path)


def test_learning_rates_are_compared_with_all_else_equal(tmp_path):
    rng = np.random.default_rng(4)
    z = difficulties(rng)
    specs = [
        Spec(factors(optim_lr=lr, optim=o), simulate(rng, np.log10(lr), 0.1, z))
        for lr in (1e-4, 1e-3, 1e-2)
        for o in ("sgd", "adam")
    ]
    sentences = sections(specs, tmp_path)["learning-rate"].blocks[0]
    assert len(sentences) == 2
    assert all(
        "over 3 learning rates, highest at 0.01; each of the others is lower" in sentence for sentence in sentences
    )
    assert all("The best is at the upper end of what was tried" in sentence for sentence in sentences)


def test_differences_between_learning_rates_are_corrected_over_all_series(tmp_path):
    """Nine of ten patients agree, which is enough for one series and not for fifteen."""
    plus = {patient: 0.5 + (0.02 + 0.001 * i if i < 9 else -0.01) for i, patient in enumerate(PATIENTS[:10])}
    base = dict.fromkeys(plus, 0.5)

    def sentences(several):
        specs = [Spec(factors(optim_lr=lr, epochs=e), d) for e in several for lr, d in ((1e-3, base), (1e-2, plus))]
        return sections(specs, tmp_path / str(len(several)))["learning-rate"].blocks[0]

    assert all("each of the others is lower" in sentence for sentence in sentences([5]))
    assert all("cannot be told from 1 of the others" in sentence for sentence in sentences(range(5, 20)))


def test_experiments_give_their_names_to_the_rows(tmp_path):
    specs = [
        Spec(factors(epochs=5), experiment="base_unet"),
        Spec(factors(epochs=10, optim="adam"), experiment="unet_config_1"),
    ]
    found = compare(read([write_sweep(tmp_path, "s", specs)]))
    assert sorted(row.label for row in found.rows) == ["base_unet", "unet_config_1"]
    more = [*specs, Spec(factors(epochs=5, optim_lr=0.1), experiment="base_unet")]
    found = compare(read([write_sweep(tmp_path, "t", more)]))
    assert sorted(row.label for row in found.rows) == ["base_unet, lr=0.001", "base_unet, lr=0.1", "unet_config_1"]


def test_text_from_a_record_cannot_become_markup(tmp_path):
    evil = "<script>alert(1)</script> | `x`"
    specs = [Spec(factors(loss=evil)), Spec(factors(), status="failed", error=evil)]
    page = build([write_sweep(tmp_path, "s", specs)], tmp_path / "out").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("<script>") == 1


def test_command_line_builds_into_the_sweep_and_names_mistakes(tmp_path, capsys, monkeypatch):
    sweep = write_sweep(tmp_path, "s", [Spec(overlays=False)])
    assert main([str(sweep)]) == 0
    assert (sweep / "report.html").exists()
    assert str(sweep / "report.html") in capsys.readouterr().out
    assert main([str(sweep), "--out", str(sweep / "report.md" / "below")]) == 1
    assert "report.md" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["multirun/nowhere"]) == 1
    assert "multirun/nowhere: no such folder, and no experiment or run" in capsys.readouterr().err
    assert not Path("mlruns").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty)]) == 1
    assert "no run in it" in capsys.readouterr().err


def test_a_sweep_that_had_the_report_imported_while_it_trained_gets_one(tmp_path):
    from segsweep.sweeps import sweep

    sweep._prepare()
    folder = write_sweep(tmp_path, "s", [Spec(overlays=False)])
    assert sweep.Sweep()._report(folder) == str(folder / "report.html")
    assert (folder / "report.html").exists()


def test_reading_records_needs_neither_torch_nor_mlflow(tmp_path):
    """In a process of its own; optuna comes in only for the importance."""
    sweep = write_sweep(
        tmp_path, "s", [Spec(factors(seed=s), simulate(np.random.default_rng(s)), overlays=False) for s in (0, 1)]
    )
    script = f"""
import sys
from pathlib import Path
from segsweep.report.records import read
assert not {{"scipy", "matplotlib"}} & set(sys.modules)
from segsweep.report.files import write
write([{str(sweep)!r}], Path({str(tmp_path / "out")!r}))
assert not {{"torch", "mlflow", "optuna", "hydra"}} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)
