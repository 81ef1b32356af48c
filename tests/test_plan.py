"""A plan: what it says of each job, and that it leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from mlflow import MlflowClient

from segsweep.config.schema import conf_dir
from segsweep.core.errors import ConfigError, DataError
from segsweep.plugins.grid import condition
from segsweep.segmentation.metrics import SPEC
from segsweep.sweeps.plan import Measured, Planner, Point, clock, share, table
from segsweep.sweeps.preflight import preflight

TINY = ["data.patients=4", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2"]


def segsweep(cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    places = ["paths.runs=multirun", f"paths.cache={cwd}/cache"]
    return subprocess.run(
        [sys.executable, "-m", "segsweep", "-m", *arguments, *places],
        cwd=cwd, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def point(
    signature: str, trajectory: str, state: str = "new", epoch: int = 0, epochs: int = 10, **others: Any
) -> Point:
    facts = {"folder": Path(signature), "alike": ("unet",), "train": 100, "held_out": 20, "spec": SPEC}
    return Point(signature, trajectory, state=state, epoch=epoch, epochs=epochs, **facts | others)


def planner(folder: Path) -> Planner:
    made = Planner(folder)
    one, other = {"parameters": 1942, "gflops": 0.5}, {"parameters": 9999, "gflops": 1.0}
    made._known = {("unet",): one, ("r2",): one, ("large",): other, ("plain",): {}}
    return made


def test_jobs_that_differ_in_epochs_alone_cost_the_longest():
    points = [point("a", "t", epochs=10), point("b", "t", epochs=5), point("c", "t", epochs=20), point("d", "u")]
    assert share(points) == [5, 5, 10, 10]
    assert [p.note for p in points] == ["epochs 1-5 with job 2", "", "epochs 1-10 with job 1", ""]


def test_what_may_end_early_costs_so_much_at_most(tmp_path):
    (tmp_path / "runs").mkdir()
    lines = {early: table(["a"], [point("a", "t", early=early)], planner(tmp_path)) for early in (True, False)}
    assert "at most 10 epochs" in lines[True]
    assert "at most" not in lines[False]


def test_what_is_on_disk_is_not_trained_again():
    points = [
        point("a", "t", "finished", epoch=5, epochs=5),
        point("b", "t", "continue", epoch=7, epochs=10),
        point("b", "t", "continue", epoch=7, epochs=10),
        None,
    ]
    assert share(points) == [0, 3, 0, 0]
    assert (points[1].note, points[2].state, points[2].note) == ("from epoch 7", "duplicate", "of job 2")


def test_names_of_others_do_not_command_the_terminal(tmp_path):
    text = table(["model=\x1b[2Ja"], [DataError("\x1b]0;title\x07")], planner(tmp_path))
    assert "model= [2Ja" in text
    assert " ]0;title" in text
    assert "\x1b" not in text


def test_the_table_has_every_job_and_the_totals(tmp_path):
    plan = planner(tmp_path)
    plan._measured = {("unet",): Measured(train=0.01, held_out=0.005, beside=2.0, memory=3 * 2**20)}
    points = [
        point("a", "t"),
        point("a", "t"),
        DataError("data.root=x: no such folder"),
        point("b", "u", alike=("r2",)),
    ]
    text = table(["seed=0", "seed=0", "data=lgg", "model=r2unet"], points, plan).splitlines()
    # an epoch: 0.5 GFLOP x (3 x 100 trained + 20 evaluated) = 160; ten: 10 x (100 x 0.01 + 20 x 0.005) + 2 = 13 s
    assert [" ".join(line.split()) for line in text[1:5]] == [
        "1 seed=0 new 10 1,942 160 13 s 3 MiB",
        "2 seed=0 duplicate of job 1 0 1,942 160 3 MiB",
        "3 data=lgg data.root=x: no such folder",
        "4 model=r2unet new 10 1,942 160 not measured not measured",
    ]
    assert text[6] == "4 jobs: 2 new, 1 duplicate, 1 not possible"
    assert text[7] == (
        "20 epochs, 3.2 TFLOP, about 13 s one after another; 1 of the jobs are like none that was measured"
    )


def test_the_longest_is_known_by_its_slices_where_nothing_alike_was_measured(tmp_path, monkeypatch):
    plan = planner(tmp_path)
    monkeypatch.setattr(plan, "size", None)  # to count its operations would hold up the first job
    jobs = ({}, {"epoch": 8}, {"train": 200}, {"alike": ("r2",)})
    costs = [plan.cost(point("a", "t", **job)) for job in jobs]
    assert costs[1:3] == pytest.approx([costs[0] / 5, 2 * costs[0]])
    plan._measured = {("r2",): Measured(train=0.02, held_out=0.01, beside=3.0, memory=1)}
    costs = [plan.cost(point("a", "t", **job)) for job in jobs]
    assert costs[0] == pytest.approx(10 * 100 * 0.02)
    assert costs[3] == pytest.approx(10 * (100 * 0.02 + 20 * 0.01) + 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not measured"), (0.04, "0.04 s"), (9.96, "10 s"), (61.2, "1:02 min"), (3725.0, "1:02:05 h")],
)
def test_times_are_read_at_a_glance(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("text", "found", "holds"),
    [
        ("optim=sgd & optim.lr>0.01", {"optim": "sgd", "optim.lr": 0.1}, True),
        ("optim=sgd & optim.lr>0.01", {"optim": "sgd", "optim.lr": 0.01}, False),
        ("optim=sgd & optim.lr>0.01", {"optim": "adam", "optim.lr": 0.1}, False),
        ("optim.lr>=1e-2", {"optim.lr": 0.01}, True),
        ("seed != 3", {"seed": 3}, False),
        ("clip_norm<2", {"clip_norm": None}, False),
        ("clip_norm=null", {"clip_norm": None}, True),
    ],
)
def test_a_condition_compares_values_as_the_command_line_reads_them(text, found, holds):
    assert all(term.holds(found[term.key]) for term in condition(text, "sweep.exclude")) is holds


@pytest.mark.parametrize("text", ["optim", "optim=", "a=1 & ", "a=1 | b=2 &", ""])
def test_what_is_no_condition_is_said(text):
    with pytest.raises(HydraException, match="no condition"):
        condition(text, "sweep.exclude")


@pytest.mark.slow
def test_a_plan_leaves_nothing_behind_and_tells_the_state_of_each_job(tmp_path):
    constant = [*TINY, "scheduler=constant"]  # a schedule that looks at the total shares nothing
    ran = segsweep(tmp_path, "seed=0,1", "epochs=2", *constant, "tracking=none", "report=false", "hydra/launcher=basic")
    assert ran.returncode == 0, ran.stderr
    before = sorted(map(str, tmp_path.rglob("*")))
    plan = segsweep(tmp_path, "seed=0,1,2", "epochs=2,3", *constant, "hydra/launcher=plan")
    assert plan.returncode == 0, plan.stderr
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    rows = [line.split()[:6] for line in plan.stdout.splitlines()[1:7]]
    assert [" ".join(row[3:5]) for row in rows] == [
        "finished 0", "to continue", "finished 0", "to continue", "new 2", "new epochs",
    ]  # fmt: skip
    assert "6 jobs: 2 finished, 2 continue, 2 new" in plan.stdout
    assert "5 epochs" in plan.stdout
    assert "not measured" not in plan.stdout


def test_the_leading_process_does_without_the_imports_that_training_needs(tmp_path):
    """A second or more each: torch's compiler, which an optimizer would import as soon as it is made, and MLflow."""
    code = "import sys; from segsweep.sweeps import cli; sys.argv[1:] = {}; cli.main(); print(*sys.modules)"
    arguments = ["-m", "optim=sgd,adam", "epochs=1", *TINY, "tracking=none", f"paths.cache={tmp_path}/cache"]
    done = subprocess.run([sys.executable, "-c", code.format(arguments)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"torch", "hydra"} <= set(done.stdout.split())
    assert not {"torch._dynamo", "mlflow", "sympy"} & set(done.stdout.split())


@pytest.mark.slow
def test_exclude_takes_points_out_of_a_grid(tmp_path):
    grid = ["optim=sgd,adam", "optim.lr=0.001,0.1", "seed=0,1", *TINY, "hydra/launcher=plan"]
    plan = segsweep(tmp_path, *grid, "sweep.exclude=['optim=sgd & lr>0.01','seed=1']")
    assert plan.returncode == 0, plan.stderr
    assert "3 jobs: 3 new" in plan.stdout
    assert "optim=sgd & lr>0.01 takes out 2 of 8 jobs" in plan.stderr
    wrong = segsweep(tmp_path, *grid, "sweep.exclude=['optim=sgd & optim.lrr>0.01']")
    assert wrong.returncode == 1
    assert "optim.lrr: no job has such a key; did you mean optim.lr?" in wrong.stderr


@pytest.mark.slow
def test_a_named_grid_has_the_jobs_that_its_header_says(tmp_path):
    plan = segsweep(tmp_path, "+grid=report_factors", *TINY, "hydra/launcher=plan")
    assert plan.returncode == 0, plan.stderr
    assert "48 jobs: 48 new\n240 epochs" in plan.stdout
    assert "# 48 jobs:" in (conf_dir() / "grid" / "report_factors.yaml").read_text()


@pytest.mark.slow
def test_reuse_false_trains_anew_and_shares_epochs_among_its_own_jobs(tmp_path):
    grid = ["epochs=2,1", *TINY, "scheduler=constant", "tracking=none", "report=false"]

    def written() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in tmp_path.glob("multirun/runs/*/result.json")}

    for _ in range(2):
        before = written()
        done = segsweep(tmp_path, *grid, "reuse=false")
        assert done.returncode == 0, done.stderr
        assert not {*before.items()} & {*written().items()}
        assert sum(json.loads(Path(file).read_text())["trained_epochs"] for file in written()) == 2
    before = written()
    assert segsweep(tmp_path, *grid).stdout.count("reused") >= 2
    assert written() == before


BOOM = """
from segsweep.segmentation.models.unet import UNet


class Net(UNet):
    def forward(self, x):
        if self.head.in_channels == 6:
            raise RuntimeError("this one does not work")
        return super().forward(x)
"""


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_fails_alone_and_is_named_in_plan_table_and_mlflow(
    tmp_path, monkeypatch, allow
):
    (tmp_path / "boom_of_test.py").write_text(BOOM)
    allow("boom_of_test.*")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    few = [o for o in TINY if not o.startswith("model.width")]
    grid = ["model._target_=boom_of_test.Net", "model.width=4,6,8", "epochs=1", *few]
    plan = segsweep(tmp_path, *grid, "hydra/launcher=plan")
    assert plan.returncode == 0, plan.stderr
    assert "RuntimeError: this one does not work" in plan.stdout
    assert "3 jobs: 2 new, 1 not possible" in plan.stdout
    done = segsweep(tmp_path, *grid, "hydra.launcher.jobs_per_device=2", "report=false")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    rows = [line.split()[1:3] for line in done.stdout.splitlines() if line.split()[:1] in (["0"], ["1"], ["2"])]
    assert sorted(rows) == [["4", "finished"], ["6", "failed"], ["8", "finished"]], done.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("segsweep").experiment_id], "tags.signature LIKE '%'")
    assert {(run.data.params["model.width"], run.info.status) for run in found} == {
        ("4", "FINISHED"), ("6", "FAILED"), ("8", "FINISHED"),
    }  # fmt: skip


@pytest.mark.slow
def test_a_grid_records_how_many_jobs_and_which_lengths(tmp_path):
    done = segsweep(tmp_path, "++epochs=2,1", *TINY, "scheduler=constant", "tracking=none")
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(f.read_text()) for f in tmp_path.glob("multirun/2*/sweep.json"))
    assert (record["jobs"], record["milestones"]) == (2, [1, 2])
    results = [json.loads(file.read_text()) for file in tmp_path.glob("multirun/runs/*/result.json")]
    assert sum(result["trained_epochs"] for result in results) == 2


@pytest.mark.slow
def test_lengths_that_experiments_ask_for_share_their_epochs(tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    for name, epochs in (("long", 3), ("short", 1)):
        text = f"# @package _global_\nepochs: {epochs}\n"
        (tmp_path / "own" / "experiment" / f"{name}.yaml").write_text(text)
    asked = "--config-dir", "own", "experiment=long,short", "checkpoint.keep=1"
    done = segsweep(tmp_path, *asked, *TINY, "scheduler=constant", "tracking=none")
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(f.read_text()) for f in tmp_path.glob("multirun/2*/sweep.json"))
    assert record["milestones"] == [1, 3]
    results = [json.loads(file.read_text()) for file in tmp_path.glob("multirun/runs/*/result.json")]
    assert sorted((result["epochs"], result["trained_epochs"]) for result in results) == [(1, 0), (3, 3)]


def test_the_values_of_a_named_grid_are_checked_with_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "+grid=report_factors", *TINY, f"paths.cache={tmp_path}/cache"]
    assert preflight(sweep).jobs == 48
    assert preflight([*sweep, "epochs=5", "seed=0,1,2"]).jobs == 72
    with pytest.raises(ConfigError, match=r"model=unett?: no such option"):
        preflight([*sweep, "hydra.sweeper.params.model='unett,r2unet'"])
    with pytest.raises(ConfigError, match="optim=sgd,adam: several values are a sweep; add -m"):
        preflight(sweep[1:])
