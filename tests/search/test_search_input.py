"""What is wrong with a search is said in one message before any job."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from segsweep.config.schema import conf_dir
from segsweep.core.errors import ConfigError, SegsweepError
from segsweep.core.masks import masked
from segsweep.search.objective import direction, problems, values
from segsweep.segmentation.metrics import SPEC
from segsweep.sweeps.preflight import preflight
from segsweep.task import Metric, Spec

FEW = ["loss=bce", "data.patients=6", "data.image_size=16"]
WHEN = "search.when=['optim=sgd: optim.momentun=interval(0,0.9)']"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hydra/sweeper=search"], "nothing to search"),
        (["hydra/sweeper=search", "model=unet", "optim.lr=0.1"], "nothing to search"),
        (["hydra/sweeper=optuna"], "nothing to search"),
        (["+search=tpe", "optim.lr=interval(0.1,0.1)"], "the interval is empty"),
        (["+search=tpe", "optim.lr=interval(0.1,0.01)"], "the lower end comes first"),
        (["+search=tpe", "optim.lr=tag(log,interval(0,0.1))"], "a logarithm begins above 0"),
        (["+search=tpe", "optim.lr=tag(logg,interval(1e-3,0.1))"], "tag logg means nothing; did you mean log?"),
        (["+search=tpe", "optim.lr=interval(-1,0.1)"], "optim"),
        (["optim.lr=interval(0.01,0.1)"], "an interval is for a search, such as +search=tpe"),
        (["+search=tpee"], "search=tpee: no such option; did you mean tpe?"),
        (["+search=tpe", "hydra/sweeper/sampler=annealing"], "hydra/sweeper/sampler=annealing: no such option"),
        (["+search=tpe", "search.objective=[val/dicee]"], "did you mean val/dice?"),
        (["+search=tpe", "search.objective=[test/dice]"], "nothing is chosen on the test part; did you mean val/dice?"),
        (["+search=tpe", "search.objective=[gflops]"], "a score such as val/dice comes first"),
        (["+search=tpe", "search.objective=[]"], "a score such as val/dice comes first"),
        (["+search=tpe", "search.epoch=9"], "search.epoch=9: a run has epochs=4"),
        (["+search=tpe", "search.epoch=3", "epochs=2,4"], "search.epoch=3: a run has epochs=2"),
        (["+search=tpe", "search.objective=val/dice"], "search.objective=val/dice"),
        (["+search=tpe", "search.objective=null"], "search.objective=None"),
        (["+search=tpe", "search.max_gflops=much"], "search.max_gflops=much"),
        (["+search=tpe", "search.trials=1e3"], "search.trials=1000.0"),
        (["+search=tpe", "seed=0,1"], "seed=0,1: a search would choose the luckiest seed"),
        (["+search=tpe", "pruner=median,halving"], "a search would choose who was not pruned"),
        (["+search=tpe", "search.trials=10,20"], "a search does not search its own settings"),
        (["+search=tpe", "search.epoch=middle"], "search.epoch=middle: allowed are best, last"),
        (["+search=tpe", "search.trials=0"], "search.trials=0: must be at least 1"),
        (["+search=tpe", "search.max_seconds=0"], "search.max_seconds=0"),
        (["+search=tpe", "split=holdout"], "give them one, as with split=patient split.val=0.15"),
        (["+search=tpe", "optim.lrr=interval(0.01,0.1)"], "did you mean optim.lr?"),
        (["+search=tpe", "search.when=['optim=sgd optim.momentum=0.9']"], "search.when"),
        (["+search=tpe", "search.when=['optim: optim.momentum=0.5,0.9']"], "is no condition"),
        (["+search=tpe", WHEN], "did you mean optim.momentum?"),
        (["+search=tpe", "search.when=['optim=adam: optim.momentum=0.5,0.9']"], "optim.momentum: no such key"),
        (["+search=tpe", "search.when=['optm=sgd: optim.lr=0.5,0.9']"], "optm: no such key; did you mean optim?"),
        (["+search=tpe", "search.when=['optim=sgd: optim.momentum=interval(0.9,0.5)']"], "the lower end comes first"),
    ],
)
def test_a_mistake_in_a_search_is_named(arguments, says, tmp_path):
    one = [] if "model=unet" in arguments else ["model=unet"]  # of those that a preset searches: fewer to compose
    with pytest.raises(ConfigError) as caught:
        preflight(["-m", *arguments, *FEW, *one, f"paths.cache={tmp_path}"])
    assert says in str(caught.value)


def test_a_search_without_m_is_told_to_be_a_sweep(tmp_path):
    with pytest.raises(ConfigError, match="several values are a sweep; add -m"):
        preflight(["+search=tpe", f"paths.cache={tmp_path}"])


@pytest.mark.slow
def test_every_preset_is_right_and_needs_no_optuna_to_be_checked(tmp_path):
    presets = sorted(path.stem for path in (conf_dir() / "search").glob("*.yaml"))
    assert presets == ["cmaes", "gp", "grid", "nsga2", "random", "tpe"]
    code = (
        "import sys\nfrom segsweep.sweeps.preflight import preflight\n"
        "from segsweep.config.start import start\nstart()\n"
        f"for preset in {presets}:\n"
        f"    argv = ['-m', f'+search={{preset}}', 'pruner=none', 'model=unet', 'paths.cache={tmp_path}']\n"
        "    assert preflight(argv).jobs is None\n"
        "assert 'optuna' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def record(folder: Path, rows: list[dict], **result: float) -> Path:
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps({"status": "finished"} | result))
    return folder


def test_objectives_are_of_one_epoch_of_the_record(tmp_path):
    rows = [
        {"epoch": 1, "val/dice": None, "val/loss": 0.1},
        {"epoch": 2, "val/dice": 0.7, "val/loss": 0.5},
        {"epoch": 3, "val/dice": 0.6, "val/loss": 0.4},
    ]
    run = record(tmp_path, rows, training_seconds=12.5, parameters=77)
    assert values(run, ["val/dice", "val/loss"], "best", SPEC) == [0.7, 0.5]
    assert values(run, ["val/loss", "val/dice"], 3, SPEC) == [0.4, 0.6]
    assert values(run, ["val/loss"], "best", SPEC) == [0.1]
    assert values(run, ["val/dice", "training_seconds", "parameters"], "last", SPEC) == [0.6, 12.5, 77.0]
    for names, epoch in ((["val/dice"], 1), (["val/dice"], 4), (["val/dice", "gflops"], "best")):
        with pytest.raises(SegsweepError, match="is not a number"):
            values(run, names, epoch, SPEC)
    with pytest.raises(SegsweepError, match=r"in epoch 4 \(search.epoch\), as the run ended after 3"):
        values(run, ["val/dice"], 4, SPEC)


def test_directions_are_the_metrics_own():
    found = [direction(name, SPEC) for name in ("val/dice", "val/loss", "training_seconds")]
    assert found == ["maximize", "minimize", "minimize"]


def test_another_task_is_searched_by_its_own_metrics(tmp_path):
    metrics = {
        "rmse": Metric(title="RMSE", direction="min"),
        "tail": Metric(title="T", direction="max", by_epoch=False),
    }
    spec = Spec(metrics=metrics, select="val/rmse")
    assert direction("val/rmse", spec) == "minimize"
    run = record(
        tmp_path, [{"epoch": 1, "val/rmse": 310.0}, {"epoch": 2, "val/rmse": 290.0}, {"epoch": 3, "val/rmse": 300.0}]
    )
    assert values(run, ["val/rmse"], "best", spec) == [290.0]
    search = SimpleNamespace(objective=["val/tail", "val/dice"], epoch="best")
    tail, dice = problems(search, 3, spec)
    assert tail.startswith("search.objective=val/tail: no such objective")
    assert dice.endswith("allowed are val/rmse, training_seconds, gflops, parameters")


def test_a_password_stays_out_of_records():
    text = "python -m segsweep search.storage=postgresql://me:pa:ss@host:5432/db tracking.uri=http://host:5000"
    assert masked(text) == text.replace("me:pa:ss", "***")
