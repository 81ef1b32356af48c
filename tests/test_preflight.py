"""One message for all mistakes of a command line, with the nearest right name, before any data is read."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from segsweep.core.errors import ConfigError
from segsweep.sweeps.preflight import _beside, preflight


def message(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight(list(argv))
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("search.objective=[val/dicee]", ["search.objective=val/dicee", "did you mean val/dice?"]),
        ("search.epoch=99", ["search.epoch=99: a run has epochs="]),
        ("data.patient=(a|b)[0-9]+", ["has to be quoted", """'data.patient="(a|b)[0-9]+"'"""]),
        ("data.patient=(a|b", ["a bracket or a quote left open?"]),
        (r"data.patient=^p\d[^(]+_", ["left open? A text", "has to be quoted", r"""'data.patient="^p\d[^(]+_"'"""]),
        ("data.patient='a", ["'a: not in Hydra's grammar, which takes key=value, +key=value and ~key; is a bracket"]),
        ("data.root=a[/_]b", ["data.root=a[/_]b: not in", """'data.root="a[/_]b"'"""]),
        ("search.objective=[nonsense]", ["search.objective=nonsense: no such objective; allowed are"]),
        ("model=un\x1b[31met", ["model=un [31met: not in"]),
        ("model=unett", ["model=unett", "did you mean unet?", "r2unet"]),
        ("modle=unet", ["modle", "did you mean model"]),
        ("optim.lrr=0.1", ["optim.lrr", "did you mean optim.lr?"]),
        ("model.t=3", ["model.t", "no such key", "model.width"]),
        ("epochs=abc", ["epochs=abc", "Integer"]),
        ("epochs=0", ["epochs=0", "at least 1"]),
        ("batch_size=-4", ["batch_size=-4", "at least 1"]),
        ("precision=fp8", ["precision=fp8", "auto, fp32, bf16"]),
        ("device=gpu", ["device=gpu", "auto, cpu, cuda"]),
        ("clip_norm=0", ["clip_norm=0", "above 0"]),
        ("optim.lr=-1", ["optim.lr=-1", "above 0"]),
        ("optim.lr=0", ["optim.lr=0", "above 0"]),
        ("optim.lr=inf", ["optim.lr=inf", "above 0"]),
        ("optim.betas=[0.9]", ["optim.betas=[0.9]", "two numbers"]),
        ("optim.betas=[0.9,1]", ["optim.betas=[0.9, 1]", "below 1"]),
        ("optim.weight_decay=-1", ["optim.weight_decay=-1", "at least 0"]),
        ("scheduler.eta_min=-1", ["scheduler.eta_min=-1", "at least 0"]),
        ("tracking.uri=ftp://host", ["tracking.uri=ftp://host", "sqlite:"]),
        ("tracking.uri=mlruns", ["tracking.uri=mlruns", "plain files"]),
        ("paths.runs=/proc/version", ["paths.runs=/proc/version", "is a file"]),
        ("paths.runs=/proc/x/runs", ["paths.runs=/proc/x/runs: /proc cannot be written to"]),
        ("paths.cache=/proc/x/cache", ["paths.cache=/proc/x/cache: /proc cannot be written to"]),
        ("paths.runs=/dev/null/runs", ["paths.runs=/dev/null/runs", "is a file"]),
        ("optim.lr=fast", ["optim.lr=fast", "must be a number"]),
        ("model.width=0", ["model", "width", "0"]),
        ("+model.wings=2", ["model.wings", "takes no such argument", "width"]),
        ("data=lgg", ["data.root", "data.root=..."]),
        ("split.test=1.5", ["split.test", "1.5"]),
        ("model=unet,r2unet", ["model=unet,r2unet", "add -m"]),
        ("epochs=[", ["epochs=[", "left open?"]),
        ("hydra/launcher=plan", ["hydra/launcher=plan", "add -m"]),
        ("search.study=später", ["search.study=später", "key=value", """'search.study="später"'"""]),
        ("optim.lr=[/_]", ["optim.lr=['/_']: must be one number, above 0"]),
        ("+model._target_=os.system", ["os.system", "not allowed", "SEGSWEEP_ALLOW"]),
        ("model._target_=torch.nn.modules.module.warnings.warn", ["model"]),
        ("loss._target_=torch.hub.load", ["torch.hub.load", "not allowed"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(argument, parts):
    text = message(argument)
    assert all(part in text for part in parts), text
    assert "Traceback" not in text


def test_all_mistakes_are_told_at_once():
    text = message("epochs=-1", "optim.lrr=0.1", "model.wdith=4")
    assert [line.split("=")[0].split(":")[0] for line in text.splitlines()] == ["optim.lrr", "model.wdith", "epochs"]
    text = message("epochs=-1", "batch_size=0", "optim.lr=-1")
    assert len(text.splitlines()) == 3


def test_what_follows_from_a_mistake_is_not_told_beside_it():
    assert message("scheduler=cosine", "epochs=0") == "epochs=0: must be at least 1"
    assert message("epochs=0", "optim.lr=-1").splitlines() == [
        "epochs=0: must be at least 1",
        "optim.lr=-1: must be above 0",
    ]


def test_a_schedule_by_steps_is_told_once_and_only_for_the_epochs_that_it_does_not_fit(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "cycle.yaml").write_text(
        "_target_: torch.optim.lr_scheduler.OneCycleLR\n_partial_: true\nmax_lr: 0.1\ntotal_steps: 18\n"
    )
    argv = ["--config-dir", str(tmp_path), "scheduler=cycle"]
    (line,) = message("-m", *argv, "epochs=18,3", "seed=0,1").splitlines()
    assert line.startswith("scheduler: OneCycleLR plans 18 steps, and a schedule is stepped once an epoch, 3 times")
    assert message(*argv, "epochs=0") == "epochs=0: must be at least 1"


def test_every_value_of_a_sweep_is_checked():
    assert "epochs=0" in message("-m", "epochs=5,0")
    assert "optim=adm" in message("-m", "optim=sgd,adm")
    for two in (["paths.runs=a,b"], ["paths={runs:a},{runs:b}"], ["paths.runs=${seed}", "seed=1,2"]):
        assert ": where runs go is no part of a sweep; give one value" in message("-m", *two)
    assert "paths.runs: a, b: where runs go" in message("-m", "paths.runs=a,b")
    text = message("-m", "model=unet,r2unet", "model.t=2,3")
    assert "model.t" in text
    assert "model=unet" in text


@pytest.mark.parametrize(
    ("argv", "jobs"),
    [
        ([], 1),
        (["-m", "model=unet,r2unet", "optim=sgd,adam"], 4),
        (["-m", "optim.lr=1e-3,1e-4", "epochs=choice(1,2,3)"], 6),
        (["-m", "experiment=glob(*)", "data=phantom", "epochs=1"], 6),
        (["-m", "paths.runs=choice(a)", "seed=0,1"], 2),
        (["-m", "seed=0,'3'", "model='unet',r2unet"], 4),
    ],
)
def test_a_right_command_line_passes_and_its_jobs_are_counted(argv, jobs, tmp_path):
    assert preflight([*argv, f"paths.cache={tmp_path}"]).jobs == jobs


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("loss=glob(zzz*)", "fits no option"),
        ("model=null", "model=null: an option is needed"),
        ("experiment=null", "experiment=null: an option is needed; without one, leave experiment out; allowed are "),
        ("epochs=${nosuch}", "nosuch"),
        ("seed=99999999999999999999", "at most"),
        ("paths.runs=''", "paths.runs is empty"),
        ("+foo=1", "foo: no such key"),
        ("+loss.reduction=none", "one is needed"),
        ("+loss.reduction=sum", "grows with the batch"),
        ("scheduler.T_max=0", "scheduler.T_max=0: must be a whole number, at least 1"),
        ("model.width={_target_: logging.FileHandler, filename: x}", "model"),
    ],
)
def test_odd_input_is_a_message_too(argument, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in message(*(["-m"] if "glob" in argument else ["loss=bce"]), argument)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hydra: null", "no configuration"),
        (b"hydra: [a]", "no configuration"),
        (b"a: [1", "line"),
        (b"a: &a [*a]", "x.yaml"),
        (b"a: !!python/name:os.system", "could not determine a constructor"),
        (b"a: \xff", "can't decode byte 0xff"),
    ],
)
def test_a_file_of_options_that_is_none_is_told_in_a_line(content, says, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_bytes(b"# @package _global_\n" + content)
    told = message("--config-dir", str(tmp_path), "experiment=x")
    assert told.startswith("experiment=x")
    assert says in told
    assert "\n" not in told


def test_a_key_that_only_swept_options_have_is_left_to_the_jobs(lgg, tmp_path):
    argv = ["-m", "experiment=glob(*)", f"data.root={lgg}", "epochs=1", f"paths.cache={tmp_path}"]
    checked = preflight(argv)
    assert checked.jobs == 6
    assert checked.argv == [*argv[:2], f"data.root=choice({lgg})", *argv[3:]]


def test_a_data_set_that_is_not_there_is_told_before_any_job(tmp_path):
    text = message("data=lgg", f"data.root={tmp_path / 'none'}", f"paths.cache={tmp_path}")
    assert str(tmp_path / "none") in text


def test_a_component_of_ones_own_runs_once_the_environment_allows_it(tmp_path, monkeypatch, allow):
    (tmp_path / "mylosses_of_test.py").write_text("import torch\nclass Mine(torch.nn.BCEWithLogitsLoss):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = ["loss=bce", "loss._target_=mylosses_of_test.Mine", f"paths.cache={tmp_path}"]
    assert "not allowed" in message(*argv)
    allow("mylosses_of_test.*")
    assert preflight(argv).jobs == 1


def test_what_is_taken_out_is_not_there_for_the_check():
    preflight(["optim._target_=torch.optim.RMSprop", "~optim.betas", "~optim.fused"])
    said = message("optim._target_=torch.optim.RMSprop", "~optim.fused")
    assert "optim.betas: torch.optim.RMSprop takes no such argument" in said
    assert "optim.fused" not in said
    assert "optim.lrr" in message("~optim.lrr")


@pytest.mark.parametrize("line", ["optim.lr=1,2", "+optim.foreach=true,false", "model@other=unet", "~augment=flips"])
def test_what_the_command_line_gives_of_a_space_is_not_added_to_it_again(line):
    key, _, text = line.removeprefix("~").partition("=")
    base = OmegaConf.create({"hydra": {"sweeper": {"params": {key: text, "epochs": 1}}}})
    assert _beside(base, OverridesParser.create().parse_overrides([line])) == ["epochs=1"]


def test_what_a_wrong_option_might_have_brought_is_not_told_beside_it():
    said = message("model=unett", "optim=adm", "model.odd=1", "optim.lrr=1", "epoch=3", "batch_size=0").splitlines()
    assert [text.partition(":")[0] for text in said] == ["model=unett", "optim=adm", "epoch", "batch_size=0"]
    assert message("experiment=odd", "sed=0").count("\n") == message("task=odd", "sed=0").count("\n") == 0


BARE = ["loss._target_=torch.nn.BCEWithLogitsLoss", "~loss.dice_weight", "~loss.smooth", "~loss.weights"]


@pytest.mark.parametrize("argv", [BARE, BARE[::-1], ["-m", *BARE, "seed=0,1"]])
def test_a_key_that_is_deleted_is_no_argument_of_the_class_that_is_named(argv):
    assert "loss.smooth: torch.nn.BCEWithLogitsLoss takes no such argument" in message(BARE[0])
    assert preflight(argv).jobs == 1 + ("-m" in argv)


def test_a_key_that_is_deleted_and_needed_is_told():
    assert message("~scheduler.T_max") == "scheduler.T_max: a value is needed"


def test_a_sweep_deletes_a_key_whatever_its_value():
    from types import SimpleNamespace

    from segsweep.plugins.grid import GridSweeper

    sweeper, kept = GridSweeper(), []
    sweeper.config, sweeper.launcher = OmegaConf.create({"sweep": {"exclude": []}}), None
    sweeper.hydra_context = SimpleNamespace(config_loader=None)
    sweeper._record = kept.extend
    with pytest.raises(AssertionError):  # there is no launcher
        sweeper.sweep(["~model.t", "seed=0,1"])
    sweeper.launcher = SimpleNamespace(launch=lambda points, initial_job_idx: points)
    sweeper.sweep(["~model.t", "~model.width=4", "seed=0,1"])
    assert kept == [["~model.t", "~model.width=4", f"seed={seed}"] for seed in (0, 1)]


@pytest.mark.parametrize("place", range(4))
def test_a_folder_of_options_may_stand_anywhere(tmp_path, place, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nepochs: 2\n")
    words = ["model=unet", "experiment=mine", "seed=0,1"]
    words[place:place] = ["--config-dir", str(tmp_path)]
    assert preflight(["-m", *words]).jobs == 2
