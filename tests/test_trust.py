"""What a configuration from elsewhere says to Hydra itself: the attacks are made, and leave nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.initialize import initialize_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf

from segsweep.config import hold, trust
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.core.errors import ConfigError
from segsweep.core.session import session
from segsweep.report import winner
from segsweep.report.search import pages
from segsweep.sweeps.preflight import Checked, preflight

start()
from segsweep.config.compose import Composer  # noqa: E402 - the namespace has to know it first
from segsweep.plugins._cluster import SlurmLauncher  # noqa: E402
from segsweep.plugins._jobs import Job  # noqa: E402

TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "epochs=1"]
TINY += ["tracking=none", "report=false"]
GLOBAL = "# @package _global_\n"
SEARCH = GLOBAL + "defaults:\n  - space: step\n  - _self_\n  - override /hydra/sweeper: search\n"


def asks(*words: str) -> None:
    """A command line that only asks, before it is answered."""
    if args := trust.question(list(words)):
        hold.held(args)


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder from elsewhere, my_conf, beside which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(trust.TRUST, raising=False)
    (tmp_path / "my_conf").mkdir()
    trust.named.cache_clear()
    yield tmp_path / "my_conf"
    trust.named.cache_clear()


def conf(monkeypatch, folders: str) -> None:
    """SEGSWEEP_CONF for this process, which reads it once."""
    monkeypatch.setenv(trust.TRUST, folders)
    trust.named.cache_clear()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    given = os.environ | {"SEGSWEEP_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "segsweep", *arguments, *TINY],
        cwd=folder, capture_output=True, text=True, env=given, timeout=120,
    )  # fmt: skip


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


ATTACKS = {
    "the environment, a git of its own on the path": (
        {"experiment/x.yaml": GLOBAL + "hydra: {job: {env_set: {PATH: '{here}/bin'}}}\n"},
        ["--config-dir", "my_conf", "experiment=x"],
        "hydra.job.env_set.PATH: set by a file under my_conf (--config-dir), which",
    ),
    "a job's log, kept in another file": (
        {"experiment/x.yaml": GLOBAL + "hydra: {job_logging: {handlers: {file: {filename: mark, delay: false}}}}\n"},
        ["--config-dir", "my_conf", "experiment=x"],
        "hydra.job_logging.handlers.file.filename: set by a file under my_conf",
    ),
    "Hydra's own log, when help is asked for": (
        {
            "experiment/x.yaml": GLOBAL
            + "hydra: {hydra_logging: {handlers: {mine: {class: logging.FileHandler, filename: mark}}}}\n"
        },
        ["--help", "--config-dir", "my_conf", "experiment=x"],
        "hydra.hydra_logging.handlers.mine.class: set by a file under my_conf",
    ),
    "a callback": (
        {"experiment/x.yaml": "# @package hydra.callbacks\nmine: {_target_: logging.FileHandler, filename: mark}\n"},
        ["--config-dir", "my_conf", "experiment=x"],
        "hydra.callbacks.mine._target_: set by a file under my_conf",
    ),
    "a log of the second of a sweep's jobs": (
        {
            "experiment/a.yaml": GLOBAL,
            "experiment/x.yaml": "# @package hydra.job_logging.handlers\nfile: {filename: mark, delay: false}\n",
        },
        ["-m", "--config-dir", "my_conf", "experiment=a,x"],
        "hydra.job_logging.handlers.file.filename: set by a file under my_conf",
    ),
    "commands for the nodes of a cluster": (
        {"experiment/x.yaml": GLOBAL + "hydra: {launcher: {setup: ['touch {here}/mark']}}\n"},
        ["-m", "--config-dir", "my_conf", "experiment=x", "hydra/launcher=slurm", "seed=0,1"],
        "hydra.launcher.setup: set by a file under my_conf",
    ),
    "a folder on the search path that takes the place of what the program comes with": (
        {"schema.yaml": "hydra: {callbacks: {mine: {_target_: logging.FileHandler, filename: mark}}}\n"},
        ["hydra.searchpath=[my_conf]"],
        "hydra.callbacks.mine._target_: set by a file under my_conf (hydra.searchpath)",
    ),
    "overrides that every job takes for the command line's": (
        {
            "experiment/x.yaml": GLOBAL + "hydra: {overrides: {hydra: ['+hydra.job.env_set.PATH={here}/bin']}}\n",
        },
        ["-m", "--config-dir", "my_conf", "experiment=x", "hydra/launcher=basic"],
        "hydra.overrides.hydra: set by a file under my_conf",
    ),
    "a function of a package that is allowed for components": (
        {
            "search/x.yaml": SEARCH + "hydra: {sweeper: {custom_search_space: mine_of_test.mark}}\n",
        },
        ["-m", "--config-dir", "my_conf", "+search=x", "search.trials=1"],
        "hydra.sweeper.custom_search_space: set by a file under my_conf",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_nothing_and_is_told_by_its_key(mine, name):
    files, arguments, says = ATTACKS[name]
    here = mine.parent
    write(mine, {file: text.replace("{here}", str(here)) for file, text in files.items()})
    script(here / "bin" / "git", f": > {here}/mark")
    script(here / "tools" / "sbatch", 'bash "$1"; exit 1')
    script(here / "tools" / "srun", "exit 1")
    (here / "mine_of_test.py").write_text("def mark(config, trial):\n    open('mark', 'w').close()\n")
    before = sorted(here.iterdir())
    done = command(
        here, *arguments, PATH=f"{here}/tools:{os.environ['PATH']}", SEGSWEEP_ALLOW="mine_of_test.*",
        PYTHONPATH=f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )  # fmt: skip
    assert not (here / "mark").exists()
    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(here.iterdir()) == before


def message(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight([*argv, *TINY, "paths.cache=cache"])
    return str(caught.value)


def passes(*argv: str) -> Checked:
    return preflight([*argv, *TINY, "paths.cache=cache"])


SLURM = ["-m", "hydra/launcher=slurm", "seed=0,1"]


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        ("run: {dir: /tmp/x}", [], "hydra.run.dir: set by"),
        ("sweep: {subdir: ../x}", [], "hydra.sweep.subdir: set by"),
        ("output_subdir: ../x", [], "hydra.output_subdir: set by"),
        ("job: {chdir: true}", [], "hydra.job.chdir: set by"),
        ("job: {name: ../x}", [], "hydra.job.name: set by"),
        ("job: {env_copy: [HOME]}", [], "hydra.job.env_copy: set by"),
        ("job: {env_copy: [NO_SUCH]}", [], "hydra.job.env_copy: the environment has no NO_SUCH"),
        ("verbose: true", [], "hydra.verbose: set by"),
        ("help: {template: x}", [], "hydra.help.template: set by"),
        ("runtime: {choices: {mine: x}}", [], "hydra.runtime.choices.mine: set by"),
        ("overrides: {task: [seed=3]}", [], "hydra.overrides.hydra: set by"),
        ("launcher: {partition: 'a b'}", SLURM, "hydra.launcher.partition: 'a b' is from a file"),
        ('launcher: {name: "a\\nrm"}', SLURM, "hydra.launcher.name: 'a rm' is from a file"),
        ("launcher: {comment: '${oc.env:HOME}'}", SLURM, "'${oc.env:HOME}' is from a file"),
        ("launcher: {comment: '${tracking.experiment}'}", SLURM, "'${tracking.experiment}' is from a file"),
        ("launcher: {python: x}", SLURM, "hydra.launcher.python: set by"),
        ("launcher: {srun_args: [x]}", SLURM, "hydra.launcher.srun_args: set by"),
        ("launcher: {additional_parameters: {wrap: x}}", SLURM, "hydra.launcher.additional_parameters.wrap: set by"),
        ("launcher: {submitit_folder: x}", SLURM, "hydra.launcher.submitit_folder: set by"),
        ("launcher: {ray: {init: {address: x}}}", ["-m", "hydra/launcher=ray_gpu"], "hydra.launcher.ray.init.address"),
        (
            "launcher: {ray: {remote: {runtime_env: {pip: [x]}}}}",
            ["-m", "hydra/launcher=ray_gpu"],
            "hydra.launcher.ray.remote.runtime_env.pip: set by",
        ),
        ("sweeper: {params: {hydra.job.chdir: 'true,false'}}", ["-m"], "hydra.sweeper.params.hydra.job.chdir: 'true,f"),
        ("sweeper: {params: {+hydra.job.env_set.A: 'b,c'}}", ["-m"], "hydra.sweeper.params.+hydra.job.env_set.A: 'b,"),
        ("sweeper: {params: {model@hydra.job: 'unet'}}", ["-m"], "hydra.sweeper.params.model@hydra.job: 'unet'"),
        ("sweeper: {params: {hydra: {job: {chdir: true}}}}", ["-m"], "hydra.sweeper.params.hydra.job.chdir: set by"),
        ("sweeper: {params: {paths.runs: '${oc.env:HOME}'}}", ["-m"], "'${oc.env:HOME}' is from a file"),
        ("sweeper: {params: {paths.runs: 'a,b'}}", ["-m"], "hydra.sweeper.params.paths.runs: 'a,b' is from a file"),
        ("sweeper: {params: {++paths.cache: a}}", ["-m"], "hydra.sweeper.params.++paths.cache: 'a' is from a file"),
        ("sweeper: {params: {tracking.uri: 'http://evil'}}", ["-m"], "hydra.sweeper.params.tracking.uri: 'http://e"),
        ("sweeper: {params: {tracking: none}}", ["-m"], "hydra.sweeper.params.tracking: 'none' is from a file"),
        ("sweeper: {params: {search.storage: x}}", ["-m", "+search=tpe"], "hydra.sweeper.params.search.storage: 'x'"),
        ("sweeper: {_target_: os.system}", ["-m", "seed=0,1"], "hydra.sweeper._target_: set by"),
        ("sweeper: {sampler: {_target_: os.system}}", ["-m", "+search=tpe"], "hydra.sweeper.sampler._target_: set by"),
        (
            "sweeper: {sampler: {constraints_func: {_target_: os.system}}}",
            ["-m", "+search=tpe"],
            "hydra.sweeper.sampler.constraints_func._target_: set by",
        ),
        ("sweeper: {storage: x}", ["-m", "+search=tpe"], "hydra.sweeper.storage: set by"),
    ],
)
def test_what_only_ones_own_configuration_may_say_to_hydra_is_refused(mine, content, arguments, says):
    tracking = "tracking: {experiment: '${oc.env:HOME}'}\n"
    write(mine, {"experiment/x.yaml": f"{GLOBAL}{tracking}hydra:\n  {content}\n"})
    assert says in message("--config-dir", "my_conf", "experiment=x", *arguments)


@pytest.mark.parametrize(
    ("files", "arguments", "says"),
    [
        (
            {"hydra/launcher/mine.yaml": "_target_: os.system\ncommand: x\n"},
            ["-m", "hydra/launcher=mine", "seed=0,1"],
            ["hydra.launcher._target_: set by", "hydra.launcher.command: set by"],
        ),
        (
            {"hydra/launcher/joblib.yaml": "_target_: os.system\ncommand: x\n"},
            ["-m", "hydra/launcher=joblib", "seed=0,1"],
            ["hydra.launcher._target_: set by", "hydra.launcher.command: set by"],
        ),
        (
            {"experiment/x.yaml": f"{GLOBAL}defaults: [/bad@hydra.job.env_set: y]\n", "bad/y.yaml": "A: b\n"},
            ["experiment=x"],
            ["hydra.job.env_set.A: set by"],
        ),
        (
            {"search/x.yaml": f"{GLOBAL}defaults:\n  - override /hydra/job_logging: null\n"},
            ["+search=x"],
            ["hydra.job_logging: set by"],
        ),
        ({"experiment/x.yaml": f'{GLOBAL}paths: {{runs: "a\\nb"}}\n'}, ["experiment=x"], ["paths.runs='a\\nb'"]),
        (
            {"search/x.yaml": f"{SEARCH}search: {{when: ['optim=sgd: +hydra.job.env_set.A=choice(b,c)']}}\n"},
            ["-m", "+search=x"],
            ["+hydra.job.env_set.A=choice(b,c): what Hydra itself is told is no part of a search"],
        ),
        (
            {"search/x.yaml": f"{SEARCH}search: {{when: ['optim=sgd: paths.runs=choice(b,c)']}}\n"},
            ["-m", "+search=x"],
            ["paths.runs=choice(b,c): where a run goes is no part of a search"],
        ),
    ],
)
def test_there_is_no_way_round_by_groups_packages_and_conditions(mine, files, arguments, says):
    write(mine, files)
    found = message("--config-dir", "my_conf", *arguments)
    assert all(part in found for part in says), found


SECRETS = {
    "an experiment": ({"experiment/x.yaml": f"{GLOBAL}tracking: {{uri: '${{oc.env:TOKEN}}'}}\n"}, ["experiment=x"]),
    "an option of a group": (
        {"optim/mine.yaml": "_target_: torch.optim.SGD\n_partial_: true\nlr: ${oc.env:TOKEN}\n"}, ["optim=mine"],
    ),
    "a text of the program's own, for another key": (
        {"experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: '${{oc.env:SEGSWEEP_CACHE,${{oc.env:HOME,.}}/.cache/"
         "segsweep}'}\n"}, ["experiment=x"],
    ),
    "an address that may have a password": (
        {"experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: 'a/${{search.storage}}'}}\n"}, ["experiment=x"],
    ),
    "a node that an address is in, and what the command line has set": (
        {"experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: '${{hydra.job.env_set.A}}'}}\n"}, ["experiment=x"],
    ),
    "inside a list": ({"experiment/x.yaml": f"{GLOBAL}sweep: {{exclude: ['${{oc.env:TOKEN}}']}}\n"}, ["experiment=x"]),
    "decoded": ({"experiment/x.yaml": f"{GLOBAL}seed: ${{oc.decode:'3'}}\n"}, ["experiment=x"]),
    "the second of a sweep's options": (
        {"experiment/a.yaml": GLOBAL, "experiment/x.yaml": f"{GLOBAL}tracking: {{uri: '${{oc.env:TOKEN}}'}}\n"},
        ["-m", "experiment=a,x"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_the_environment_is_read_for_ones_own_configuration_alone(mine, monkeypatch, name):
    files, arguments = SECRETS[name]
    write(mine, files)
    monkeypatch.setenv("TOKEN", "sqlite:///secret.db")
    found = message("--config-dir", "my_conf", *arguments)
    assert "is from a file under my_conf (--config-dir)" in found
    assert "reads the environment" in found
    assert "secret" not in found


PLACES = {
    "tracking.uri": ("tracking: {uri: 'http://evil:1/'}", "tracking.uri=sqlite:///x.db"),
    "search.storage": ("search: {storage: 'postgresql://evil/x'}", "search.storage=sqlite:///x.db"),
    "paths.runs": ("paths: {runs: /elsewhere}", "paths.runs=mine"),
    "paths.cache": ("paths: {cache: elsewhere}", "paths.cache=cache"),
    "tracking.uri by a node": ("tracking: ${pruner}\npruner: {uri: 'http://evil:1/', experiment: x}", None),
    "tracking.uri in a file elsewhere": ("tracking: {uri: 'sqlite:////elsewhere/x.db'}", "tracking.uri=null"),
    "tracking.uri above": ("tracking: {uri: 'sqlite:///../x.db'}", "tracking=none"),
    "tracking.uri in a folder elsewhere": ("tracking: {uri: /elsewhere}", "tracking.uri=null"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_where_a_run_goes_and_is_kept_is_ones_own_to_say(mine, name, monkeypatch):
    text, given = PLACES[name]
    key = name.split()[0]
    write(mine, {"experiment/x.yaml": f"{GLOBAL}{text}\n", "experiment/a.yaml": GLOBAL})
    asked, says = ["--config-dir", "my_conf", "experiment=x"], f"{key}: set by a file under my_conf (--config-dir)"
    monkeypatch.setattr(sys.modules[__name__], "TINY", [line for line in TINY if "tracking" not in line])
    for line in (asked, ["-m", *asked[:2], "experiment=a,x"]):
        found = message(*line) if key != "paths.cache" else _refused(*line)
        assert says in found
        assert "SEGSWEEP_CONF=my_conf" in found
    with pytest.raises(ConfigError, match=re.escape(says)):
        asks("--help", *asked)
    if given and "=none" not in given:
        assert says not in _refused(*asked, given)
    with initialize_config_search_path([f"file://{conf_dir()}", f"file://{mine}"]):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        monkeypatch.setattr(session(), "foreign", True)
        with pytest.raises(HydraException, match=rf"{re.escape(key)}.*: the files of a job's options may not"):
            Composer(loader, master)(["experiment=x"])


def _refused(*arguments: str) -> str:
    try:
        preflight(list(arguments) + TINY)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_store_below_this_folder_may_be_named_by_anybody(mine):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}tracking: {{uri: 'sqlite:///a/x.db'}}\nsearch: {{storage: "
                 "'journal:///a/x.log'}\n"})  # fmt: skip
    assert passes("--config-dir", "my_conf", "experiment=x").foreign


def test_a_folder_of_ones_own_reads_it_beside_one_of_others(mine, monkeypatch):
    own = mine.parent / "own"
    write(mine, {"experiment/y.yaml": f"{GLOBAL}seed: 3\n"})
    write(own, {"experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: '${{oc.env:TOKEN}}'}}\n"})
    monkeypatch.setenv("TOKEN", "brain")
    conf(monkeypatch, "own")
    assert passes("--config-dir", "own", "hydra.searchpath=[my_conf]", "experiment=x").foreign


def test_a_combination_that_no_check_has_seen_reads_nothing_either(mine, monkeypatch):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: '${{oc.env:HOME}}'}}\n"})
    write(mine, {"experiment/a.yaml": f"{GLOBAL}tracking: {{experiment: '${{paths.runs}}'}}\n"})
    with initialize_config_search_path([f"file://{conf_dir()}", f"file://{mine}"]):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        monkeypatch.setattr(session(), "foreign", True)
        compose = Composer(loader, master)
        compose(["experiment=a", "tracking.uri=${oc.env:HOME}"])
        Composer(loader, loader.load_configuration("config", ["paths.cache=c"], RunMode.MULTIRUN))(["experiment=a"])
        with pytest.raises(HydraException, match=r"tracking\.experiment: the files of a job's options may not"):
            compose(["experiment=x"])


def test_what_the_command_line_reads_from_the_environment_goes(mine, monkeypatch):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}tracking: {{uri: '${{paths.runs}}'}}\n"})
    monkeypatch.setenv("TOKEN", "brain")
    given = ["--config-dir", "my_conf", "experiment=x", "tracking.uri=null", "tracking.experiment=${oc.env:TOKEN}"]
    assert passes(*given).foreign
    asks(*given, "--help")


def test_every_option_of_a_sweep_is_looked_at_however_many_there_are(mine, monkeypatch):
    for module in ("overrides", "preflight"):
        monkeypatch.setattr(f"segsweep.sweeps.{module}.COMBINATIONS", 4)
    write(mine, {f"experiment/e{n}.yaml": f"{GLOBAL}seed: {n}\n" for n in range(7)})
    write(mine, {"experiment/e5.yaml": f"{GLOBAL}hydra: {{job: {{env_set: {{A: b}}}}}}\n"})
    found = message("-m", "--config-dir", "my_conf", "experiment=glob(e*)", "model=unet,r2unet")
    assert found.splitlines() == [found]
    assert "hydra.job.env_set.A: set by" in found


def test_a_combination_that_no_check_has_seen_is_refused_where_its_job_is_composed(mine, monkeypatch):
    write(mine, {"experiment/x.yaml": GLOBAL + "hydra: {job: {env_set: {A: b}}}\n", "experiment/a.yaml": GLOBAL})
    with initialize_config_search_path([f"file://{conf_dir()}", f"file://{mine}"]):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["hydra.verbose=false"], RunMode.MULTIRUN)
        monkeypatch.setattr(session(), "foreign", True)
        compose = Composer(loader, master)
        assert compose(["optim=sgd", "experiment=a"]).hydra.runtime.choices.optim == "sgd"
        assert OmegaConf.select(compose(["optim=adam", "seed=3"]), "seed") == 3
        with pytest.raises(HydraException, match=r"hydra\.job\.env_set\.A: the files of a job's options may not"):
            compose(["optim=sgd", "experiment=x"])


def test_places_may_follow_what_the_command_line_says_and_nothing_else(mine, monkeypatch):
    own = mine.parent / "own"
    write(
        own, {"config.yaml": "defaults: [_self_, /x: null]\nname: a\npaths: {runs: 'runs/${name}/${seed}'}\nseed: 0\n"}
    )
    write(mine, {"x/name.yaml": f"{GLOBAL}name: ../b\n", "x/seed.yaml": f"{GLOBAL}lr: 0.1\n"})
    with initialize_config_search_path([f"file://{own}", f"file://{mine}"]):
        loader = GlobalHydra.instance().config_loader()
        compose = Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))
        monkeypatch.setattr(session(), "foreign", True)
        assert compose(["x=seed", "name=b"]).paths.runs == "runs/b/0"
        assert compose(["x=name", "name=b"]).paths.runs == "runs/b/0"
        with pytest.raises(HydraException, match=r"^paths\.runs: the files of a job's options may not"):
            compose(["x=name", "seed=1"])


def test_an_application_says_where_its_runs_go_beside_a_folder_of_others(mine):
    here = mine.parent
    write(here, {
        "conf/config.yaml": "name: one\nlr: 1\nsegsweep: {paths: {runs: 'runs_${name}'}, tracking: {uri: null}}\n",
        "my_conf/experiment/x.yaml": f"{GLOBAL}lr: 3\n",
        "app.py": "import segsweep\n@segsweep.main(config_path='conf', config_name='config', metric='error', "
        "direction='min')\ndef main(cfg): return float(cfg.lr)\nmain()\n",
    })  # fmt: skip
    words = ["-m", "lr=1,2", "name=three", "--config-dir", "my_conf", "+experiment=x", "segsweep.report=false"]
    done = subprocess.run([sys.executable, "app.py", *words], cwd=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len([*here.glob("runs_three/*/*/job.json")]) == 2


def test_an_option_of_an_applications_own_says_where_its_jobs_go_in_a_sweep_and_one_of_others_does_not(mine):
    here = mine.parent
    write(here, {
        "conf/config.yaml": "defaults: [net: small, _self_]\nlr: 1\nsegsweep: {tracking: {uri: null}, report: false}\n",
        "conf/net/small.yaml": "width: 1\n",
        "conf/net/big.yaml": f"{GLOBAL}net: {{width: 9}}\nsegsweep: {{paths: {{runs: runs_big}}}}\n",
        "my_conf/net/other.yaml": f"{GLOBAL}net: {{width: 3}}\nsegsweep: {{paths: {{runs: runs_other}}}}\n",
        "app.py": "import segsweep\n@segsweep.main(config_path='conf', config_name='config', metric='error', "
        "direction='min')\ndef main(cfg): return float(cfg.lr)\nmain()\n",
    })  # fmt: skip

    def done(*words: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "app.py", "-m", *words, "--config-dir", "my_conf"]
        return subprocess.run(line, cwd=here, capture_output=True, text=True, timeout=120)

    refused = done("net=small,other")
    assert refused.returncode == 1
    assert "segsweep.paths.runs: set by a file under my_conf (--config-dir)" in refused.stderr
    assert sorted(path.name for path in here.iterdir()) == ["app.py", "conf", "my_conf"]
    taken = done("net=small,big", "hydra/launcher=basic")
    assert "may not change this" not in taken.stderr
    assert len([*here.glob("runs_big/runs/*/result.json")]) == 1
    assert len([*here.glob("multirun/runs/*/result.json")]) == 1


def test_what_a_trusted_option_says_of_places_is_taken_in_a_job_that_no_check_has_seen_and_nothing_beside_it(
    mine, monkeypatch
):
    own = mine.parent / "own"
    write(own, {
        "experiment/big.yaml": f"{GLOBAL}paths: {{runs: runs_big}}\n",
        "experiment/named.yaml": f"{GLOBAL}paths: {{runs: 'runs_${{tracking.experiment}}'}}\n",
    })  # fmt: skip
    write(mine, {
        "experiment/x.yaml": f"{GLOBAL}paths: {{runs: runs_evil}}\n",
        "experiment/both.yaml": f"{GLOBAL}defaults: [big, _self_]\npaths: {{runs: runs_evil}}\n",
        "tracking/x.yaml": "experiment: ../evil\nuri: null\n",
    })  # fmt: skip
    conf(monkeypatch, "own")
    given = ["-m", "--config-dir", "own", "hydra.searchpath=[my_conf]"]
    hold = passes(*given).hold
    assert hold
    with initialize_config_search_path([f"file://{conf_dir()}", f"file://{own}", f"file://{mine}"]):
        loader = GlobalHydra.instance().config_loader()
        compose = Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))
        monkeypatch.setattr(session(), "foreign", True)
        monkeypatch.setattr(session(), "hold", hold)
        for lines, place in (
            (["experiment=big", "optim=sgd"], "runs_big"),
            (["experiment=named", "tracking.experiment=mine"], "runs_mine"),
        ):
            assert compose(lines).paths.runs == place
        for lines in (["experiment=x"], ["experiment=both"], ["experiment=named", "tracking=x"]):
            with pytest.raises(HydraException, match=r"paths\.runs.*: the files of a job's options may not"):
                compose(lines)


def test_jobs_that_a_node_composes_are_composed_here_first(mine, monkeypatch):
    pytest.importorskip("submitit")
    seen = []

    def compose(overrides: list[str]) -> None:
        seen.append(overrides)
        if overrides == ["experiment=x"]:
            raise HydraException("refused")

    monkeypatch.setattr(session(), "foreign", True)
    launcher = SlurmLauncher("local")
    launcher.compose = compose
    with pytest.raises(HydraException, match="refused"):
        launcher.start([Job(n, [f"experiment={name}"], mine) for n, name in enumerate("ax")])
    assert seen == [["experiment=a"], ["experiment=x"]]


def test_launchers_that_look_at_no_job_are_for_as_many_combinations_as_are_looked_at_before(mine, monkeypatch):
    for module in ("overrides", "preflight"):
        monkeypatch.setattr(f"segsweep.sweeps.{module}.COMBINATIONS", 4)
    swept = ["-m", "--config-dir", "my_conf", "model=unet,r2unet", "optim=sgd,adam,adamw"]
    assert "use hydra/launcher=local" in message(*swept, "hydra/launcher=basic")
    assert passes(*swept).jobs == 6


@pytest.mark.parametrize(
    "flag", ["--config-path=my_conf", "--config-name=mine", "--config-n=mine", "--experimental-rerun=my_conf"]
)
@pytest.mark.parametrize("words", [[], ["--cfg", "job"]])
def test_the_programs_own_configuration_is_the_one_that_runs(mine, flag, words):
    (mine / "config.yaml").write_text((conf_dir() / "config.yaml").read_text())
    with pytest.raises(ConfigError, match=r"^--[a-z-]*: not taken"):
        asks(flag, *words) if words else preflight([flag])


HARMLESS = {
    "values of an experiment": (
        {"experiment/x.yaml": f"{GLOBAL}defaults:\n  - override /optim: sgd\noptim: {{lr: 0.3}}\n"},
        ["experiment=x"],
        1,
    ),
    "a grid": (
        {"grid/x.yaml": f"{GLOBAL}hydra: {{sweeper: {{params: {{optim.lr: '0.1,0.2', model: 'unet,r2unet'}}}}}}\n"},
        ["-m", "+grid=x"],
        4,
    ),
    "a launcher's numbers": (
        {"experiment/x.yaml": f"{GLOBAL}hydra: {{launcher: {{devices: [cpu], budget_min: 3, retries: {{nan: 2}}}}}}\n"},
        ["-m", "experiment=x", "seed=0,1", "hydra.launcher.retries.oom=2", "+hydra.job.env_set.A=b"],
        2,
    ),
    "a cluster's resources": (
        {
            "experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: brain}}\nhydra: {{launcher: {{partition: gpu, "
            "mem_gb: 8, gres: 'gpu:a100:1', comment: '${tracking.experiment}'}}\n"
        },
        [*SLURM, "experiment=x"],
        2,
    ),
    "a search": (
        {
            "search/x.yaml": f"{SEARCH}  - override /hydra/sweeper/sampler: random\n"
            "hydra: {sweeper: {n_jobs: 2, sampler: {seed: 3}, params: {model: 'unet,r2unet'}}}\nsearch: {trials: 2}\n"
        },
        ["-m", "+search=x"],
        None,
    ),
    "a key that names another, which reads the environment by the program's own": (
        {"experiment/x.yaml": f"{GLOBAL}tracking: {{experiment: '${{paths.cache}}'}}\n"},
        ["experiment=x"],
        1,
    ),
    "a launcher that is installed": ({}, ["-m", "hydra/launcher=joblib", "seed=0,1"], 2),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_taken_from_anywhere(mine, name, monkeypatch):
    monkeypatch.setattr(hold.Hold, "_task", None)  # which composes once for every option: only where it has to
    files, arguments, jobs = HARMLESS[name]
    write(mine, files)
    found = passes("--config-dir", "my_conf", *arguments)
    assert (found.jobs, found.foreign) == (jobs, True)


def test_what_the_command_line_says_to_hydra_itself_goes(mine):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}hydra: {{run: {{dir: a}}}}\n"})
    assert "hydra.run.dir: set by" in message("--config-dir", "my_conf", "experiment=x")
    assert passes("--config-dir", "my_conf", "experiment=x", "hydra.run.dir=b", "~hydra.callbacks.sweep").jobs == 1


@pytest.mark.parametrize(
    "line", ["~hydra/job_logging", "~hydra/launcher", "~model.width", "model._target_=torch.nn.ReLU"]
)
def test_what_the_command_line_takes_out_or_names_is_no_files_doing(mine, line):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}seed: 3\n"})
    given = ["--config-dir", "my_conf", "experiment=x", line]
    if "_target_" in line:
        assert "torch.nn.ReLU takes no such argument" in message(*given)
    else:
        assert passes(*given).foreign


def test_a_mapping_of_the_command_line_reads_the_environment_and_what_a_file_has_beside_it_does_not(mine, monkeypatch):
    monkeypatch.setenv("TOKEN", "brain")
    write(mine, {"optim/mine.yaml": "_target_: torch.optim.SGD\n_partial_: true\nlr: ${oc.env:TOKEN}\n"})
    with initialize_config_search_path([f"file://{conf_dir()}", f"file://{mine}"]):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        monkeypatch.setattr(session(), "foreign", True)
        compose = Composer(loader, master)
        own = "++tracking={experiment: '${oc.env:TOKEN}', uri: null}"
        assert compose([own]).tracking.experiment == "brain"
        with pytest.raises(HydraException, match=r"^optim\.lr: the files of a job's options may not"):
            compose(["optim=mine", "++optim={momentum: '${oc.env:TOKEN}'}"])


def test_a_folder_that_the_environment_names_may_say_everything(mine, monkeypatch):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}hydra: {{job: {{env_set: {{A: b}}}}}}\n"})
    asked = ["--config-dir", "my_conf", "experiment=x"]
    for own in ("", os.pathsep, "elsewhere", "my_conf/experiment"):
        conf(monkeypatch, own)
        assert "or trust the folder: SEGSWEEP_CONF=my_conf" in message(*asked)
    monkeypatch.setattr("segsweep.sweeps.preflight.Hold", None)  # nothing is composed a second time
    for own in ("my_conf", f"elsewhere{os.pathsep}{mine}", f"{mine}/../my_conf/"):
        conf(monkeypatch, own)
        assert passes(*asked) == Checked(1, [*asked, *TINY, "paths.cache=cache"], here=True)


def test_the_folders_that_the_environment_names_are_read_once(mine, monkeypatch):
    write(mine, {"experiment/x.yaml": f"{GLOBAL}hydra: {{job: {{env_set: {{A: b}}}}}}\n"})
    asked = ["--config-dir", "my_conf", "experiment=x"]
    message(*asked)
    monkeypatch.setenv(trust.TRUST, "my_conf")  # as hydra.job.env_set would
    assert "hydra.job.env_set.A: set by" in message(*asked)


def test_without_a_folder_of_others_nothing_is_composed_a_second_time(mine, monkeypatch):
    monkeypatch.setattr("segsweep.sweeps.preflight.Hold", None)
    monkeypatch.setattr(trust, "loader_of", None)
    assert not passes("-m", "model=unet,r2unet").foreign
    asks("--help")
    asks("--cfg", "job", "--config-dir", "my_conf")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("${optim.lr}", True),
        ("${part_of:${epochs},0.5}", True),
        ("${oc.env:HOME}", False),
        ("${part_of:${oc.env:HOME},1}", False),
        ("${hydra:job.name}", False),
        ("$${epochs}{oc.env:HOME}", True),
        ("${a.${epochs}}", False),
        ("${.x}", False),
    ],
)
def test_references_are_to_keys_and_the_programs_own_functions(text, good):
    assert hold.plainly(text) is good


def test_the_best_of_a_study_of_anybodys_is_written_with_this_programs_keys_alone(mine):
    odd = {
        "hydra.job.env_set.PATH": "/tmp",
        "+model._target_": "os.system",
        "loss": "../../x",
        "loss.smooth": 2.0,
        "model": "r2unet",
        "model.t": 3,
        "model.t.x": 4,
        "data.root": "${oc.env:HOME}",
        "augment.flip\n  x: 1\nhydra": 1,
        "epochs": 3,
        "nonsense": 1,
        "search.trials": 5,
        "scheduler.eta_min": "1\nhydra:\n  job: {chdir: true}",
    }
    kinds = {key: optuna.distributions.CategoricalDistribution([value]) for key, value in odd.items()}
    url = f"sqlite:///{mine.parent}/optuna.db"
    study = optuna.create_study(study_name="s\nhydra: {job: {chdir: true}}", storage=url, direction="maximize")
    fixed = {"hydra.job.chdir": "True", "optim.lr": "[{_target_: os.system}]", "batch_size": "4", "seed": "{"}
    study.set_user_attr("segsweep", fixed | {"search.objective": "val/dice\nhydra: {verbose: true}"})
    attributes = {"signature": "../elsewhere"}
    (mine.parent / "runs").mkdir()
    write(mine.parent / "elsewhere", {"config.yaml": "epochs: 9\n", "run.json": "{}"})
    study.add_trial(optuna.trial.create_trial(params=odd, distributions=kinds, value=0.9, user_attrs=attributes))
    page = pages.write(pages.load(study.study_name, url, mine.parent), mine.parent)
    text = (mine.parent / "search" / "experiment" / "best.yaml").read_text()
    assert yaml.safe_load(text) == {
        "defaults": [{"override /model": "r2unet"}],
        "batch_size": 4,
        "epochs": 3,
        "model": {"t": 3},
    }
    for key in (
        "hydra.job.env_set.PATH",
        "model._target_",
        "loss=../../x",
        "data.root",
        "nonsense",
        "model.t.x",
        "seed",
    ):
        assert f"{key}" in page.read_text()
        assert key in next(line for line in text.splitlines() if line.startswith("# Left out"))


def test_a_runs_record_gives_no_more_to_a_file_than_a_study(mine):
    content = {"model": {"_target_": "x", "width": 8, "parts": [{"_target_": "os.system"}]}, "hydra": {"verbose": True}}
    content |= {"optim": {"lr": 0.5}, "loss": {"smooth": 2.0}, "seed": "${oc.env:HOME}"}
    write(mine, {"config.yaml": yaml.safe_dump(content), "run.json": '{"choices": {"loss": "mine", "optim": "sgd"}}'})
    found = winner.of_run(mine)
    assert found.choices == {"optim": "sgd"}
    assert found.values == {"model.width": 8, "optim.lr": 0.5}
    assert sorted(found.left) == ["hydra.verbose", "loss.smooth", "loss=mine", "model.parts", "seed"]
