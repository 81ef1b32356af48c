"""An existing Hydra application with one line changed: what it had stays, what the engine has is there, under its own
key."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segsweep.core import contents, masks
from segsweep.core.errors import ConfigError, DataError
from segsweep.runs import identity
from segsweep.search import objective, pruning
from segsweep.sweeps import spaces, why
from segsweep.task import Metric, Spec
from segsweep.tracking import recall

EXAMPLE = Path(__file__).parents[1] / "examples" / "hydra_app"
APP = """
import os
import segsweep
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
OmegaConf.register_resolver("my_folder", lambda: HydraConfig.get().runtime.output_dir, replace=True)
seen = []
@segsweep.main(config_path="conf", config_name="config", metric="loss", direction="min", ignored=["workers"])
def start(cfg):
    seen.append(cfg)
    return cfg.lr * 2
"""
CONFIG = """
defaults:
  - net: small
  - _self_
lr: 0.1
seed: 5
epochs: 70
workers: 3
task: classify
pruner: shears
search: {radius: 2}
optional: ???
out: ${hydra:runtime.output_dir}/x
today: ${now:%Y-%m-%d_%H-%M-%S-%f}
notes: ${out}/notes
mine: ${my_folder:}/mine
"""
BASIC = "  - override hydra/launcher: basic\n"
QUIET = ("segsweep/tracking=none", "segsweep.report=false")
HERE = ("hydra/launcher=basic", *QUIET)


@pytest.fixture
def conf(tmp_path) -> Path:
    """The application's own conf/, with keys that are called as the engine's are."""
    (tmp_path / "conf" / "net").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    (tmp_path / "conf" / "net" / "small.yaml").write_text("width: 4\ninit: ${seed}\n")
    (tmp_path / "conf" / "net" / "large.yaml").write_text("width: 8\ninit: ${seed}\n")
    return tmp_path / "conf"


@pytest.fixture
def app(conf) -> str:
    """An application over it; as it is a module here, Hydra would look for a relative conf/ in its package."""
    return APP.replace('"conf"', repr(str(conf)))


def runs(folder: Path) -> list[dict]:
    files = sorted(folder.glob("multirun/runs/*/result.json"))
    return [json.loads(f.read_text()) | json.loads((f.parent / "run.json").read_text()) for f in files]


def test_what_an_application_says_itself_stays_and_its_keys_collide_with_none(through, conf, app, tmp_path):
    code, said, module = through(app, "-m", "net=small,large", "seed=5,6", "search.radius=3", "epochs=71", *HERE)
    assert code == 0, said
    assert [(cfg.net.width, cfg.seed, cfg.search.radius, cfg.epochs) for cfg in module.seen] == [
        *((4, 5, 3, 71), (4, 6, 3, 71), (8, 5, 3, 71), (8, 6, 3, 71))
    ]
    assert all("segsweep" not in cfg and cfg.task == "classify" and cfg.pruner == "shears" for cfg in module.seen)
    found = runs(tmp_path)
    assert len(found) == 4
    keys = set(found[0]["factors"])
    assert {"net", "net.width", "lr", "seed", "epochs", "search.radius", "task", "segsweep.seed"} <= keys
    assert not keys & {"out", "today", "notes", "workers", "segsweep.epochs", "net.init"}  # the last follows the seed
    assert len({run["group"] for run in found}) == 2  # its own seed is a repeat
    assert found[0]["metrics"] == {"val/loss": 0.2}


def test_a_second_command_is_answered_whatever_the_time_and_the_folder_and_ignored_keys(through, conf, app, tmp_path):
    _, _, module = through(app, *QUIET)
    assert (len(module.seen), len(runs(tmp_path))) == (1, 1)
    for more, called in (((), 0), (("workers=4",), 0), (("lr=0.2",), 1)):
        sys.argv[1:] = [*QUIET, *more]
        module.seen.clear()
        module.start()
        assert len(module.seen) == called, more


@pytest.mark.parametrize(
    ("own", "arguments", "launcher", "sweeper"),
    [
        ("", [], "LocalLauncher", "GridSweeper"),
        (
            "  - override hydra/launcher: basic\n  - override hydra/sweeper: basic\n",
            [],
            "BasicLauncher",
            "BasicSweeper",
        ),
        ("  - override hydra/launcher: basic\n", ["hydra/launcher=plan"], "PlanLauncher", "GridSweeper"),
        ("  - override hydra/launcher: basic\n", ["+segsweep/search=tpe"], "BasicLauncher", "SearchSweeper"),
        ("", ["--config-name", "other"], "BasicLauncher", "GridSweeper"),
    ],
)
def test_its_own_launcher_and_sweeper_win_and_the_command_line_over_them(
    through, conf, app, own, arguments, launcher, sweeper
):
    (conf / "config.yaml").write_text(CONFIG.replace("  - _self_\n", f"  - _self_\n{own}"))
    (conf / "other.yaml").write_text(CONFIG.replace("- _self_\n", "- _self_\n  - override hydra/launcher: basic\n"))
    _, said, _ = through(app, "--cfg", "hydra", *arguments)
    hydra = OmegaConf.create(said).hydra
    assert hydra.launcher._target_.endswith(launcher)
    assert hydra.sweeper._target_.endswith(sweeper)


def test_a_search_by_either_name_where_the_application_has_none_of_its_own(through, conf, app, tmp_path):
    (conf / "config.yaml").write_text(CONFIG.replace("search: {radius: 2}\n", ""))
    line = ("-m", "+search=tpe", "lr=interval(0.1, 0.5)", "segsweep.search.trials=3", *HERE)
    code, said, module = through(app, *line)
    assert code == 0, said
    assert len(module.seen) == 3
    assert "best val/loss" in said
    best = OmegaConf.load(next(tmp_path.glob("multirun/2*/search/experiment/best.yaml")))
    assert best == {"lr": pytest.approx(min(cfg.lr for cfg in module.seen))}
    folder = next(tmp_path.glob("multirun/2*/search"))
    sys.argv[1:] = ["--config-dir", str(folder), "+experiment=best", *QUIET]
    module.seen.clear()
    module.start()  # answered
    assert module.seen == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lrr=1"], "lrr: no such key; did you mean lr?"),
        (["net=tiny"], "net=tiny: no such option; allowed are large, small"),
        (["segsweep.epoch=1"], "segsweep.epoch: no such key; did you mean segsweep.epochs?"),
        (["segsweep.seed=-1"], "segsweep.seed=-1: must be at least 0"),
        (["segsweep.epochs=4"], "segsweep.epochs=4: start(cfg) has no epochs; def start(cfg, run) has"),
        (["-m", "+search=tpe"], "has a `search` of its own; segsweep's is +segsweep/search=tpe"),
        (["-m", "lr=interval(0, 1)"], "such as +segsweep/search=tpe"),
        (["-m", "+segsweep/search=tpe", "lr=1,2", "segsweep.search.objective=[val/los]"], "did you mean val/loss?"),
        (["-m", "+segsweep/search=tpe", "seed=1,2"], "a search would choose the luckiest seed"),
        (["--config-name", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_called(through, conf, app, tmp_path, arguments, says):
    code, said, module = through(app, *arguments)
    assert code == 1
    assert says in said
    assert "Traceback" not in said
    assert not module.seen
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("start(cfg)", "start(cfg, other)", "start(cfg, other) takes other arguments than (cfg) or (cfg, run)"),
        ("start(cfg)", "start()", "start() takes other arguments"),
        ('direction="min", ', "", "metric= and direction= are needed"),
        ('metric="loss"', 'metric={"loss": "min"}', "direction= is for one metric"),
    ],
)
def test_a_wrong_decorator_is_one_sentence_and_exit_code_1(tmp_path, conf, old, new, says):
    (tmp_path / "app.py").write_text(APP.replace(old, new) + "start()")
    done = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_folders_are_numbered_whatever_it_calls_them_and_chdir_is_its_own(through, conf, app, tmp_path):
    (conf / "config.yaml").write_text(
        CONFIG + "hydra:\n  run: {dir: 'outputs/${now:%H-%M-%S}'}\n  job: {chdir: true}\n"
        "  sweep: {dir: sweeps, subdir: '${hydra.job.override_dirname}'}\n"
    )
    source = app.replace("    seen", "    open('here', 'w').close()\n    seen") + "    # end\n"
    code, said, module = through(source, "-m", "lr=1,2", *HERE)
    assert code == 0, said
    assert [(tmp_path / "sweeps" / str(n) / "here").exists() for n in range(2)] == [True, True]
    assert (tmp_path / "sweeps" / "sweep.json").exists()
    assert len(runs(tmp_path)) == 2
    sys.argv[1:] = ["lr=3", *QUIET]
    module.start()
    assert next(tmp_path.glob("outputs/*/0/here"))


def test_what_is_copied_while_a_job_works_in_its_folder_goes_where_the_command_says(through, conf, app, tmp_path):
    """In this process: MLflow's store is below the working folder of the command."""
    (conf / "config.yaml").write_text(CONFIG + "hydra: {job: {chdir: true}}\n")
    source = app.replace("    seen", "    until(lambda: any(Path(PLACE).rglob('mlflow.db')))\n    seen")
    source = f"from pathlib import Path\nfrom commands import until\nPLACE = {str(tmp_path)!r}\n{source}"
    code, said, _ = through(source, "-m", "lr=1,2", "hydra.sweep.dir=sweep", "hydra/launcher=basic", QUIET[1])
    assert code == 0, said
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("mlflow.db")] == [Path("mlruns/mlflow.db")]
    assert [file.parent.name for file in tmp_path.rglob("sweep.json") if "artifacts" not in file.parts] == ["sweep"]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["mlflow"]["run_id"]


def test_epochs_are_shared_and_kept_in_one_place_where_jobs_have_a_folder_of_their_own(through, conf, app, tmp_path):
    (conf / "config.yaml").write_text(CONFIG + "hydra: {job: {chdir: true}}\n")
    source = app.replace("start(cfg):", "start(cfg, run):").replace(
        "    return cfg.lr * 2",
        "    assert run.folder.is_absolute() and not hasattr(run, 'total')\n"
        "    for epoch in run.epochs():\n        seen.append(epoch.number)\n        epoch.report({'val/loss': 1.0})",
    )
    code, said, module = through(source, "-m", "segsweep.epochs=1,3", *HERE)
    assert code == 0, said
    assert [n for n in module.seen if isinstance(n, int)] == [1, 2, 3]
    assert [folder.parent for folder in tmp_path.rglob("runs")] == [tmp_path / "multirun"]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("${oc.select:segsweep.epochs,10}", 3),
        ("${oc.select:${where},10}", 10),  # what another key names nobody can read
        ("${oc.decode:'${segsweep.epochs}'}", 3),
        ("a/segsweep.epochs", "a/segsweep.epochs"),
    ],
)
def test_what_an_application_asks_of_the_engine_by_whatever_resolver_is_the_value(through, conf, app, text, given):
    (conf / "config.yaml").write_text(f'{CONFIG}\nasked: "{text}"\nwhere: nowhere\n')
    source = app.replace("start(cfg):", "start(cfg, run):").replace("seen.append(cfg)", "seen.append(cfg.asked)")
    code, said, module = through(source, "segsweep.epochs=3", *HERE)
    assert code == 0, said
    assert module.seen == [given]


def test_a_job_that_leaves_python_has_failed_and_the_others_are_run(through, conf, app, tmp_path):
    source = app.replace("return cfg.lr", "if cfg.lr == 1: raise SystemExit\n    return cfg.lr")
    code, said, module = through(source, "-m", "lr=1,2", *HERE)
    assert (code, len(module.seen)) == (1, 2), said
    assert re.search(r"job 0 failed: error: sys.exit\(None\) \(\S+:\d+, in start\)", said), said


def test_another_primary_configuration_is_in_every_command_that_is_printed(through, conf, app, tmp_path):
    own = "  - _self_\n  - experiment: null\n"
    (conf / "other.yaml").write_text(CONFIG.replace("search: {radius: 2}\n", "").replace("  - _self_\n", own))
    line = ("-cn", "other", "-m", "+search=tpe", "lr=interval(0.1, 0.5)", "segsweep.search.trials=2", *HERE)
    code, said, module = through(app, *line)
    assert code == 0, said
    assert [" --config-name other " in run["command"] for run in runs(tmp_path)] == [True, True]
    folder = next(tmp_path.glob("multirun/2*/search"))
    wanted = f" --config-name other --config-dir {folder.relative_to(tmp_path)} experiment=best"
    assert re.search(rf"the best: (?:python -m )?\w+{re.escape(wanted)}", said), said
    head = (folder / "experiment" / "best.yaml").read_text()
    assert wanted in head, head
    sys.argv[1:] = [*wanted.split(), *QUIET]
    module.seen.clear()
    module.start()  # answered
    assert module.seen == []


def test_a_name_in_ignored_that_is_no_key_is_told_and_one_text_is_one_name(through, conf, app):
    source = app.replace('ignored=["workers"]', 'ignored="workers"')
    code, said, _ = through(source, *QUIET)
    assert code == 0
    assert "no key" not in said
    code, said, _ = through(app.replace('"workers"', '"worker", "net.threads"'), *QUIET)
    assert code == 0
    assert "segsweep.main(ignored=...): worker is no key; did you mean workers?\n" in said
    assert "net.threads" not in said  # which may be of another option


def test_an_application_whose_mode_is_multirun_sweeps_without_m_as_plain_hydra_does(through, conf, app, tmp_path):
    (conf / "config.yaml").write_text(CONFIG + "hydra: {mode: MULTIRUN}\n")
    code, said, module = through(app, "lr=1,2", *HERE)
    assert code == 0, said
    assert [cfg.lr for cfg in module.seen] == [1, 2]
    assert len(json.loads(next(tmp_path.glob("multirun/2*/sweep.json")).read_text())["overrides"]) >= 1


def test_data_are_watched_by_a_function_of_the_configuration(through, conf, app, tmp_path):
    (tmp_path / "a.csv").write_text("1")
    source = app.replace("ignored=", "data=lambda cfg: [f'{cfg.task}.csv', 'a.csv'], ignored=")
    code, said, _ = through(source, *QUIET)
    assert (code, "data=classify.csv: No such file or directory" in said) == (1, True), said
    (tmp_path / "classify.csv").write_text("1")
    _, _, module = through(source, *QUIET)
    for text, called in (("1", 0), ("22", 1)):
        (tmp_path / "a.csv").write_text(text)
        module.seen.clear()
        module.start()
        assert len(module.seen) == called


def test_a_password_in_its_configuration_is_in_no_file_and_no_line(through, conf, app, tmp_path, monkeypatch):
    address = "http://me:hunter2xyzzy@127.0.0.1:9"
    (conf / "config.yaml").write_text(CONFIG + f"segsweep: {{tracking: {{uri: '{address}'}}}}\n")
    name = masks.reference(address).removeprefix("${oc.env:").rstrip("}")
    monkeypatch.setenv(name, os.environ.pop(name))  # what is kept goes with the test
    source = app.replace("    seen", f"    import logging\n    logging.warning('at %s', {address!r})\n    seen")
    (conf.parent / "out").mkdir()
    monkeypatch.chdir(conf.parent / "out")
    code, said, _ = through(source, "-m", "lr=1,2", "hydra/launcher=basic", "segsweep.report=false")
    assert code == 0, said
    assert "http://***@127.0.0.1:9" in said
    logs = [file.read_text() for file in Path().rglob("*.log")]
    assert any("at http://***@127.0.0.1:9" in text for text in logs)
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [file for file in files if b"hunter2" in file.read_bytes()] == []
    assert "hunter2" not in said


def test_what_others_say_reads_no_environment_and_what_it_says_itself_does(through, conf, app, tmp_path):
    (conf / "config.yaml").write_text(CONFIG + "home: ${oc.env:HOME}\n")
    for folder, name in ((conf, "home"), (tmp_path / "others", "theirs")):
        (folder / "part" / "inner").mkdir(parents=True)
        (folder / "part" / "inner" / f"{name}.yaml").write_text("place: ${oc.env:HOME}\n")
    given = ["--config-dir", str(tmp_path / "others"), *HERE]
    code, said, _ = through(app, *given, "+part/inner=theirs")
    assert (code, "part.inner.place: '${oc.env:HOME}' is from a file" in said) == (1, True), said
    code, said, module = through(app, *given, "+part/inner=home")
    assert (code, len(module.seen)) == (0, 1), said


@pytest.mark.parametrize(
    "whole", ["${segsweep}", "${ segsweep }", "${segsweep.search}", "${.segsweep}", "${..segsweep}"]
)
def test_what_others_say_names_no_node_that_has_an_address(through, conf, app, tmp_path, whole):
    (tmp_path / "others" / "part").mkdir(parents=True)
    (tmp_path / "others" / "part" / "x.yaml").write_text(f"y: {whole}\nz: ${{part.y.tracking.uri}}\n")
    code, said, _ = through(app, "--config-dir", str(tmp_path / "others"), *HERE, "+part=x")
    assert (code, f"part.y: {whole!r} is from a file" in said) == (1, True), said


@pytest.mark.parametrize("flag", ["--config-path", "-cp"])
def test_a_folder_that_takes_the_place_of_its_own_says_no_more_than_one_beside_it(through, conf, app, tmp_path, flag):
    others = tmp_path / "others"
    shutil.copytree(conf, others)
    given = [flag, str(others), *HERE]
    code, said, module = through(app, *given)
    assert (code, len(module.seen)) == (0, 1), said
    text = (others / "config.yaml").read_text()
    for more, says in (
        ("hydra: {job: {env_set: {A: b}}}", f"hydra.job.env_set.A: set by a file under {others} (--config-path)"),
        ("home: ${oc.env:HOME}", f"home: '${{oc.env:HOME}}' is from a file under {others} (--config-path)"),
    ):
        (others / "config.yaml").write_text(f"{text}{more}\n")
        for asks in ([], ["--help"]):
            code, said, _ = through(app, *given, *asks)
            assert (code, says in said) == (1, True), said
            assert f"SEGSWEEP_CONF={others}" in said


@pytest.mark.parametrize(
    "asks", [[], ["-m"], ["--help"], ["--cfg", "job"], ["--check"], ["+search=tpe"], ["--info", "all"]]
)
@pytest.mark.parametrize("flags", [["--config-path", "others"], ["--config-dir", "others", "--config-name", "theirs"]])
def test_a_first_configuration_of_others_names_no_place_that_would_be_imported(
    through, conf, app, tmp_path, asks, flags
):
    others = tmp_path / "others"
    others.mkdir()
    flags = [str(others) if flag == "others" else flag for flag in flags]
    mark = tmp_path / "mark"
    (others / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for name in ("config", "theirs"):
        (others / f"{name}.yaml").write_text("x: {searchpath: ['pkg://others']}\nhydra: ${x}\nlr: 1\n")
    assert "others" not in sys.modules
    first = [asks[0]] if asks == ["--check"] else []
    code, said, _ = through(app, *first, *flags, *(asks if not first else []), *HERE)
    assert (code, mark.exists()) == (1, False), said
    assert "hydra.searchpath: set by" in said, said
    assert f"SEGSWEEP_CONF={others}" in said


def test_what_its_record_says_is_text(through, app, tmp_path):
    assert through(app, *QUIET)[0] == 0
    (run,) = tmp_path.glob("multirun/runs/*")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "more: ${oc.env:HOME}\n")
    assert recall.configuration(run).more == "${oc.env:HOME}"


def test_what_an_application_tells_hydra_in_its_store_stays(through, app):
    source = app.replace(
        "seen = []",
        """from hydra.conf import HydraConf, SweepDir
from hydra.core.config_store import ConfigStore
told = HydraConf(sweep=SweepDir(dir="mine"))
told.defaults[1] = {"launcher": "plan"}  # basic is what Hydra says itself
ConfigStore.instance().store(group="hydra", name="config", node=told, replace=True)
seen = []""",
    )
    _, said, _ = through(source, "--cfg", "hydra")
    hydra = OmegaConf.create(said).hydra
    assert hydra.launcher._target_.endswith("PlanLauncher")
    assert hydra.sweeper._target_.endswith("GridSweeper")
    assert OmegaConf.to_container(hydra.sweep) == {"dir": "mine", "subdir": "${hydra.job.num}"}


def test_a_typed_configuration_of_the_store_and_a_whitelist_of_its_own(through, tmp_path):
    source = """
from dataclasses import dataclass
from typing import Any
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
import segsweep
@dataclass
class Config:
    lr: float = 0.5
    made: Any = None
ConfigStore.instance().store(name="typed", node=Config, replace=True)
@segsweep.main(config_path=None, config_name="typed", metric="loss", direction="min",
               execution_whitelist=["fractions.Fraction"])
def start(cfg):
    return float(instantiate(cfg.made)) + cfg.lr
"""
    code, said, _ = through(source, "made={_target_: fractions.Fraction, numerator: 1, denominator: 4}", *QUIET)
    assert code == 0, said
    assert [run["metrics"] for run in runs(tmp_path)] == [{"val/loss": 0.75}]
    code, said, _ = through(source, "lr=fast", *QUIET)
    assert (code, said.startswith("lr=fast: Value 'fast'"), "made=" in said) == (1, True, False), said
    code, said, _ = through(source, "made={_target_: os.getcwd}", *QUIET)
    assert code == 1
    assert "os.getcwd" in said


def sweep(folder: Path, *arguments: str, quiet: bool = True) -> subprocess.CompletedProcess:
    line = [sys.executable, *(["-W", "ignore"] if quiet else []), *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_example_is_swept_answered_again_and_reported_without_a_word_of_a_test(tmp_path):
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "app"))
    line = ("train.py", "-m", "model=net,forest", "seed=0,1,2", "segsweep/tracking=none")
    done = sweep(folder, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: fitting RandomForestClassifier" in done.stderr  # its own log, from a worker
    assert len(list(folder.glob("multirun/2*/[0-9]/error.txt"))) == 6  # as its own training writes
    page = next(folder.glob("multirun/2*/report.md")).read_text()
    assert "Compared over seeds alone" in page
    assert "not watched" in page
    assert not re.search(r"test error|dice|patient|slice|mask", page, re.IGNORECASE), page
    assert "`python train.py model=forest seed=0" in page
    again = sweep(folder, *line)
    assert again.stdout.count(" reused ") == 6, again.stdout
    assert "fitting" not in again.stderr
    assert "jobs 0, 1, 2, 3, 4, 5: answered from the record; the data are not watched" in again.stdout
    (folder / "model.py").write_text((folder / "model.py").read_text().replace("split(32)", "split(64)"))
    plan = sweep(folder, *line, "hydra/launcher=plan")
    assert "6 jobs: 3 new, 3 finished" in plan.stdout, plan.stdout  # the code of the network is no part of the forest


BROKEN = """
import os
import segsweep
@segsweep.main(config_path="conf", config_name="config", metric="loss", direction="min")
def main(cfg):
    print("seed", cfg.seed, end="")
    if cfg.seed == 1:
        return {}["nothing"]
    if cfg.seed == 2 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), 9)
    return cfg.seed
main()  # without the guard: in a worker it starts nothing
"""


@pytest.mark.slow
def test_a_failing_job_and_a_killed_worker_cost_themselves_alone(tmp_path, conf):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "train.py").write_text(BROKEN.replace('"conf"', '"../conf"'))
    done = sweep(tmp_path, "-m", "pkg.train", "-m", "seed=0,1,2,3", *QUIET)
    assert done.returncode == 1
    assert re.search(r"job 1 failed: error: KeyError: 'nothing' \(.*train\.py:8, in main\)", done.stdout), done.stdout
    assert "SIGKILL; trying again" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("seed 3") == 1  # printed by a worker, without a new line
    assert sorted(run["metrics"]["val/loss"] for run in runs(tmp_path)) == [0, 2, 3]
    logs = [log.read_text() for log in tmp_path.glob("multirun/2*/1/*.log")]
    assert any("in main" in log and "Traceback" in log for log in logs)


TYPED = """
from dataclasses import dataclass, field
import segsweep
from hydra.core.config_store import ConfigStore
from nets import Net
@dataclass
class Config:
    lr: float = 0.5
    net: Net = field(default_factory=Net)
ConfigStore.instance().store(name="config", node=Config)
@segsweep.main(config_path=None, config_name="config", metric="loss", direction="min")
def main(cfg):
    return cfg.lr * cfg.net.width
if __name__ == "__main__":
    main()
"""


def test_types_of_the_script_and_of_a_module_beside_it_reach_the_workers(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "train.py").write_text(TYPED)
    (tmp_path / "app" / "nets.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Net:\n    width: int = 2\n"
    )
    done = sweep(tmp_path, "app/train.py", "-m", "lr=1,2", *QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(run["metrics"]["val/loss"] for run in runs(tmp_path)) == [2, 4]


def test_a_failed_job_has_no_score_of_an_earlier_run_of_its(through, conf, app):
    source = app.replace("return cfg.lr * 2", "return 123.5 if len(seen) == 1 else [][1]")
    code, said, module = through(source, *QUIET)
    assert code == 0
    assert "123.5" in said.partition("parameters")[2]
    sys.argv[1:] = [*QUIET, "segsweep.reuse=false"]
    with pytest.raises(SystemExit):
        module.start()
    (table,) = [file.read_text() for file in conf.parent.glob("multirun/2*/table.txt") if "failed" in file.read_text()]
    assert "123.5" not in next(line for line in table.splitlines() if " failed " in line)


@pytest.mark.slow
def test_an_application_with_epochs_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    folders = [Path(shutil.copytree(EXAMPLE, tmp_path / name)) for name in ("killed", "whole")]
    grid = ("epochs.py", "-m", "model.lr=0.003,0.01", "segsweep.epochs=1,4", *QUIET)
    how = {"cwd": folders[0], "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    killed = subprocess.Popen([sys.executable, *grid], **how)
    while not any(folders[0].glob("multirun/trajectories/*/state_0002.pt")) and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = [sweep(folder, *grid) for folder in folders]
    assert [d.returncode for d in done] == [0, 0], done[0].stdout + done[0].stderr
    found = [
        {
            file.parent.name: [
                {k: v for k, v in json.loads(line).items() if "/" in k} for line in file.read_text().splitlines()
            ]
            for file in folder.glob("multirun/runs/*/history.jsonl")
        }
        for folder in folders
    ]
    assert len(found[0]) == 4
    assert found[0] == found[1]
    assert sum(run["trained_epochs"] for run in runs(folders[1])) == 8  # of 10: one epoch of each is shared


def called(through, source: str, first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How often an application is called for the second command once the first was done."""
    code, said, module = through(source, *first, *QUIET)
    assert code == 0, said
    module.seen.clear()
    sys.argv[1:] = [*second, *QUIET]
    module.start()
    return len(module.seen)


def test_a_value_of_one_job_in_a_list_takes_nothing_of_the_list_with_it(through, conf, app):
    hook = "hooks: [{kind: x, gain: 50, out: '${hydra:runtime.output_dir}/x'}, '${now:%f}', [3, '${now:%f}']]\n"
    (conf / "config.yaml").write_text(CONFIG + hook)
    assert called(through, app, (), ()) == 0
    for changed in ("{kind: x, gain: 90, out: 4}, 5, [3, 6]", "{kind: x, gain: 50}, 5, [4, 6]"):
        assert called(through, app, (), (f"hooks=[{changed.replace('4}', '${hydra:runtime.output_dir}}')}]",)) == 1


def test_a_list_that_follows_the_seed_is_one_group_and_told_by_the_seed_alone(through, conf, app, tmp_path):
    (conf / "config.yaml").write_text(CONFIG + "both: [1, '${seed}']\n")
    assert through(app, "-m", "seed=1,2", *HERE)[0] == 0
    assert len({run["group"] for run in runs(tmp_path)}) == 1
    assert not any("both" in run["factors"] for run in runs(tmp_path))


def test_the_option_of_a_group_decides_as_any_value_does(through, conf, app, tmp_path, capfd):
    (conf / "config.yaml").write_text(CONFIG + "name: '${hydra:runtime.choices.net}'\n")
    for option in ("small", "large"):
        (conf / "net" / f"{option}.yaml").write_text("width: 4\n")
    code, said, module = through(app, "-m", "net=small,large", *HERE)
    assert code == 0, said
    assert {run["factors"]["name"] for run in runs(tmp_path)} == {"small", "large"}
    sys.argv[1:] = ["-m", "net=small,large", *QUIET, "hydra/launcher=plan"]
    module.start()  # where there is no job to ask for it
    assert "2 jobs: 2 finished" in capfd.readouterr().out


def test_a_whole_number_and_a_float_are_two_values_of_an_application(through, conf, app, tmp_path):
    assert called(through, app, ("+most=1",), ("+most=1.0",)) == 1
    assert called(through, app, ("+most=2.0", "+all=[1]"), ("+most=2.0", "+all=[1]")) == 0


def test_data_are_where_they_are_in_which_entry_and_behind_links(tmp_path, monkeypatch):
    train, test, far = (tmp_path / name for name in ("train", "test", "far"))
    for folder in (train, test, far):
        folder.mkdir()
        (folder / folder.name).write_text("1")
    both = contents.digest([train, test], tmp_path)
    (train / "train").rename(test / "train")
    (train / "a").write_text("1")
    (test / "test").rename(train / "test")
    moved = contents.digest([train, test], tmp_path)
    (train / "test").rename(test / "test")
    assert len({both, moved, contents.digest([train, test], tmp_path)}) == 3  # `name content` of all is the same twice
    (train / "link").symlink_to(far)
    for back in ("up", "itself"):
        (far / back).symlink_to({"up": tmp_path, "itself": far}[back])
    linked = contents.digest(train, tmp_path)
    (tmp_path / "beside").write_text("what a sweep writes, say")
    assert contents.digest(train, tmp_path) == linked
    (far / "far").write_text("22")
    assert contents.digest(train, tmp_path) != linked
    monkeypatch.chdir(far)
    assert contents.digest("train", tmp_path) == contents.digest(train, far)  # beside the program
    assert contents.digest("v1", tmp_path) == "v1"


@pytest.mark.parametrize(
    ("given", "says"), [("", "paths are needed"), ([""], "paths are needed"), ([], "no path"), ("./", "without files")]
)
def test_data_of_which_nothing_can_be_watched_are_refused(given, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        contents.digest(given, tmp_path)


def test_runs_of_an_application_and_of_a_script_are_compared(through, conf, app, tmp_path, capfd):
    code, said, _ = through(app, "-m", "lr=1,2", "+list=[1,2]", *HERE)
    assert code == 0, said
    first, second = (str(folder) for folder in sorted(tmp_path.glob("multirun/runs/*")))
    assert why.main([first, second]) == why.main([first, first]) == 0
    said = capfd.readouterr().out
    assert re.search(r"value +lr +(1 -> 2|2 -> 1)\n", said), said
    assert "They are two runs: 1 value differs." in said
    assert "They are the same run" in said
    shutil.rmtree(tmp_path / "multirun")
    script = "import segsweep\ndef train(run, *, opts: dict = {'p': 1, 'q': {'r': 2}}):\n    return opts['p']\n"
    script += "def start():\n    segsweep.main(train, metric='loss', direction='min')\n"
    code, said, _ = through(script, "opts.p=3", "tracking=none", "report=false")
    assert code == 0, said
    (only,) = map(str, tmp_path.glob("multirun/runs/*"))
    assert why.main([only, only]) == 0
    assert "They are the same run" in capfd.readouterr().out


def test_an_application_says_why_by_the_configuration_that_its_command_named(through, conf, app, tmp_path, capfd):
    (conf / "other.yaml").write_text(CONFIG + BASIC.replace("  - ", "#"))
    code, said, module = through(app, "-m", "--config-name", "other", "net=large,small", *HERE)
    assert code == 0, said
    job = str(next(tmp_path.glob("multirun/2*/0")))
    for edit, says in (("", "The same run: its record answers."), ("lr: 0.3", "It would be trained again, as ")):
        (conf / "other.yaml").write_text(CONFIG.replace("lr: 0.1", edit or "lr: 0.1"))
        sys.argv[1:] = ["--why", job]
        module.start()
        said = capfd.readouterr().out
        assert says in said
    assert re.search(r"value +lr +0.1 -> 0.3\n", said)
    assert len(module.seen) == 2


def test_an_application_is_checked_where_it_asks_hydra_for_its_folder(through, conf, app, tmp_path):
    source = app.replace("seen.append(cfg)", "seen.append((cfg.out, cfg.net.width))")
    code, said, module = through(source, "--check", "net=large")
    assert (code, said.splitlines()[-1]) == (0, "All well."), said
    assert "noted  epochs: it trains at one go" in said
    assert {(Path(out).parent.parent, width) for out, width in module.seen} == {(Path(tempfile.gettempdir()), 8)}
    assert not (tmp_path / "multirun").exists()


def test_a_function_that_hydra_gets_by_its_path_is_watched(through, conf, app, tmp_path):
    helper = f"helper_{tmp_path.name}"
    (tmp_path / f"{helper}.py").write_text("def value():\n    return 1\n")
    asked = f"+fn={{_target_: hydra.utils.get_method, path: {helper}.value}}"
    assert through(app, asked, *QUIET)[0] == 0
    (run,) = runs(tmp_path)
    assert helper in run["files"]


def test_a_module_that_is_loaded_by_a_name_made_at_run_time_is_told_and_why_says_whether_it_changed(
    through, conf, app, tmp_path, capfd
):
    plug = f"plug_{tmp_path.name}"
    (tmp_path / f"{plug}.py").write_text("value = 1\n")
    source = app.replace("    seen.append", f"    __import__({plug!r} + '')\n    seen.append")
    _, told, module = through(source, *QUIET)
    assert told.count(f"{plug}: loaded and not watched") == 1
    module.start()
    assert "not watched, an edit" not in "".join(capfd.readouterr())
    (run,) = runs(tmp_path)
    assert run["unwatched"].keys() == {plug}
    (folder,) = tmp_path.glob("multirun/runs/*")
    why._unwatched(run)
    (tmp_path / f"{plug}.py").write_text("value = 2\n")
    why._unwatched(run)
    (tmp_path / f"{plug}.py").unlink()
    why._unwatched(run)
    said = [line for line in capfd.readouterr().out.splitlines() if "not watched" in line]
    assert [line.partition("; ")[2] for line in said] == [
        "unchanged since",
        "it has changed since",
        "it cannot be read now",
    ]


def test_a_pruner_is_the_engines_whatever_an_application_calls_so(through, conf, app, tmp_path):
    source = app.replace("start(cfg)", "start(cfg, run)")
    code, said, _ = through(source, "segsweep/pruner=median", *QUIET)
    assert code == 0, said
    code, said, _ = through(source, "segsweep/pruner=median", "segsweep.pruner.n_startup_trials=-1", *QUIET)
    assert code == 1
    assert "n_startup_trials=-1" in said
    assert said.startswith("segsweep.pruner: ")
    code, said, _ = through(source, "segsweep/pruner=median", "+segsweep.pruner.odd=1", *QUIET)
    assert "segsweep.pruner.odd: " in said


def test_what_is_wrong_is_named_as_an_application_types_it():
    cfg = OmegaConf.create({"lr": 0.1, "device": 0.5, "segsweep": {"seed": 0, "part": 0.5, "search": {}, "pruner": {}}})
    spec = Spec(metrics={"loss": Metric(title="Loss", direction="min")}, select="val/loss")
    said = pruning.problem(cfg, spec, validation=0)
    assert said.startswith("segsweep.pruner: runs are compared by their validation part")
    assert said.endswith("or use segsweep/pruner=none")
    with pytest.raises(ConfigError, match=r"^segsweep\.search\.objective=val/loss: these data have no validation part"):
        objective.check_part(0, ["val/loss"], spec, "segsweep.")
    assert spaces._searchable(cfg) == "'lr=tag(log, interval(1e-4, 1e-1))'"
    del cfg.lr
    assert spaces._searchable(cfg) == "'device=interval(0.1, 0.9)' or device=0.1,0.2"  # its own, whatever it is


def test_variables_that_hydra_sets_are_part_of_a_run_and_of_its_command(through, conf, app, tmp_path, capfd):
    first = "+hydra.job.env_set.FLAG=1"
    code, said, module = through(app, first, *QUIET)
    assert code == 0, said
    assert "hydra" not in module.seen[0]
    (run,) = runs(tmp_path)
    assert run["factors"]["hydra.job.env_set.FLAG"] == "1"
    assert first in run["command"].split()
    for line, trained in ((first, 1), ("+hydra.job.env_set.FLAG=2", 2), ("hydra.job.env_copy=[HOME]", 3)):
        sys.argv[1:] = [line, *QUIET]
        module.start()
        assert len(module.seen) == trained, line
    assert not any("HOME" in str(run["factors"]) for run in runs(tmp_path))
    sys.argv[1:] = ["-m", first, *QUIET, "hydra/launcher=plan"]
    module.start()
    assert "1 jobs: 1 finished" in capfd.readouterr().out
    script = "import segsweep\ndef train(run, *, lr: float = 1):\n    return lr\n"
    script += "def start():\n    segsweep.main(train, metric='loss', direction='min')\n"
    assert through(script, first, "tracking=none", "report=false")[0] == 0
    assert sum("hydra.job.env_set.FLAG" in run["factors"] for run in runs(tmp_path)) == 3
    assert {run["signature"] for run in runs(tmp_path)} == {
        identity.recorded(f)[2]["signature"] for f in tmp_path.glob("multirun/runs/*")
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("tracking=none", "tracking: no such key; did you mean segsweep/tracking=none?"),
        ("search=tpe", "search: no such key; did you mean +segsweep/search=tpe?"),
        ("reuse=false", "reuse: no such key; did you mean segsweep.reuse?"),
        ("paths.runs=x", "paths.runs: no such key; did you mean segsweep.paths.runs?"),
        ("lrr=1", "lrr: no such key; did you mean lr?"),
    ],
)
def test_a_key_of_the_engine_without_its_prefix_is_told_with_it(through, conf, app, given, meant):
    (conf / "config.yaml").write_text("lr: 0.1\n")
    code, said, _ = through(app, given, *HERE[1:])
    assert (code, said) == (1, f"{meant}\n")


@pytest.mark.parametrize(("file", "grid"), [("train.py", "model=net,forest"), ("epochs.py", "model.lr=0.01")])
def test_the_example_says_what_hydra_wants_to_know(tmp_path, file, grid):
    done = sweep(Path(shutil.copytree(EXAMPLE, tmp_path / "app")), file, "-m", grid, *QUIET, quiet=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr


def test_what_lies_in_the_working_folder_is_told_apart_by_its_name(through, conf, app):
    """Of what `hydra:` gives the rest is of one job alone."""
    two = "file=${hydra:runtime.cwd}/two.txt"
    (conf / "config.yaml").write_text(CONFIG + "file: ${hydra:runtime.cwd}/one.txt\n")
    _, _, module = through(app, *QUIET)
    for more, called in (((), 0), ((two,), 1), ((two,), 0)):
        sys.argv[1:] = [*QUIET, *more]
        module.seen.clear()
        module.start()
        assert len(module.seen) == called, more
