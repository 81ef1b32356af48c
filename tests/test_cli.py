"""The command as a person meets it: in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segsweep.sweeps import cli
from segsweep.sweeps.job import job_name

TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "epochs=2"]


def segsweep(cwd: Path, *arguments: str, module: str = "segsweep") -> subprocess.CompletedProcess:
    places = ["paths.runs=multirun", f"paths.cache={cwd.parent / 'cache'}"] if module == "segsweep" else []
    return subprocess.run(
        [sys.executable, "-m", module, *arguments, *places],
        cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def jobs(cwd: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(cwd.glob("multirun/2*/*/job.json"))]


@pytest.mark.parametrize("ask", [["--help"], ["--cfg", "job"]])
def test_questions_are_answered_without_the_heavy_imports(tmp_path, ask):
    code = (
        f"import sys; sys.argv = ['segsweep', *{ask!r}]\n"
        "from segsweep.sweeps.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'matplotlib', 'scipy', 'pandas', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, executable=sys.executable, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (
        ["model: attention_r2unet, attention_unet", "experiment=glob(*)", "micro_batches"]
        if ask == ["--help"]
        else ["epochs: 6", "width: 16"]
    )
    expected = ["width: ${data.model_width}" if e == "width: 16" else e for e in expected]
    assert all(text in done.stdout for text in expected), done.stdout
    assert len(done.stdout.splitlines()) < 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["--help"], ["-m", "seed=0,1", *TINY, "tracking=none"], ["why", "nothing"]])
def test_what_nobody_reads_to_its_end_is_done_all_the_same(tmp_path, command):
    """As behind `| head -1`. ~3 s: a sweep of two tiny jobs."""
    line, pipe = [sys.executable, "-m", "segsweep", *command], subprocess.PIPE
    with subprocess.Popen(line, executable=sys.executable, cwd=tmp_path, stdout=pipe, stderr=pipe) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == (1 if command[0] == "why" else 0), said
    assert "Broken" not in said
    assert "Traceback" not in said
    if command[0] == "-m":
        assert len(list(tmp_path.glob("multirun/2*/table.txt"))) == 1


def test_help_fits_one_screen(tmp_path):
    lines = segsweep(tmp_path, "--help").stdout.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("ask", [["--help"], ["--cfg", "job"], ["--info", "defaults"]], ids=" ".join)
def test_a_question_about_what_is_wrong_is_answered_in_words(tmp_path, ask):
    """~2 s for each question: four processes."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "cut.yaml").write_text("a: [1,\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe")
    for wrong, says in (
        ("+experiment=cut", "a file of it is no configuration: while parsing a flow node"),
        ("+experiment=binary", "a file of it is no configuration: 'utf-8' codec can't decode"),
        ("model=unett", "Could not find 'model/unett'"),
        *(
            [("optim.lrr=1", "Could not override 'optim.lrr'.")] if ask[0] != "--info" else []
        ),  # it lists, and sets none
    ):
        done = segsweep(tmp_path, *ask, "--config-dir", "conf", wrong)
        assert says in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert (done.returncode, done.stdout) == (1, "")


def test_a_sweep_from_the_command_to_the_table_and_again(tmp_path):
    cwd = tmp_path / "work"
    cwd.mkdir()
    command = ["-m", "model=unet,r2unet", "optim=sgd,adam", *TINY]
    done = segsweep(cwd, *command)
    assert done.returncode == 0, done.stderr
    assert [job["status"] for job in jobs(cwd)] == ["finished"] * 4
    for text in ("unet", "r2unet", "sgd", "adam", "Dice", "python -m segsweep.ui", "multirun/"):
        assert text in done.stdout
    (sweep,) = cwd.glob("multirun/2*")
    assert (sweep / "table.txt").read_text() in done.stdout
    again = segsweep(cwd, *command)
    assert again.returncode == 0, again.stderr
    assert [job["status"] for job in jobs(cwd)][4:] == ["reused"] * 4
    first, second = jobs(cwd)[:4], jobs(cwd)[4:]
    assert [job["objective"] for job in first] == [job["objective"] for job in second]
    assert "reused" in again.stdout


def test_what_is_in_the_record_is_answered_by_the_process_of_the_sweep(tmp_path):
    """~7 s: four sweeps of two tiny jobs."""
    cwd = tmp_path / "work"
    cwd.mkdir()
    command = ["-m", "seed=0,1", *TINY, "tracking=none", "hydra.launcher.jobs_per_device=1"]
    for _ in range(2):
        done = segsweep(cwd, *command)
        assert done.returncode == 0, done.stderr
    first, second, *again = jobs(cwd)
    assert [job["status"] for job in again] == ["reused"] * 2
    assert [job["objective"] for job in again] == [first["objective"], second["objective"]]
    assert first["pid"] == second["pid"]
    assert again[0]["pid"] == again[1]["pid"] != first["pid"]
    *_, sweep = sorted(cwd.glob("multirun/2*"))
    assert (sweep / "1" / ".hydra" / "overrides.yaml").read_text().splitlines()[0] == "- seed=1"
    (first_run, weights) = ((sweep / "0" / again[0]["run"]).resolve(), "last.pt")
    data = (first_run / weights).read_bytes()
    (first_run / weights).write_bytes(data[: len(data) // 2])
    done = segsweep(cwd, *command)  # a damaged record is a worker's matter
    assert [job["status"] for job in jobs(cwd)[4:]] == ["reused"] * 2, done.stdout
    mended, same = jobs(cwd)[4:]
    assert mended["pid"] != same["pid"]
    assert (first_run / weights).read_bytes() != data[: len(data) // 2]
    done = segsweep(cwd, *command, "reuse=false")
    assert [job["status"] for job in jobs(cwd)[6:]] == ["finished"] * 2, done.stdout


def test_a_sweep_of_one_job_has_a_short_name_for_it_and_says_why_there_is_no_report(tmp_path):
    cwd = tmp_path / "work"
    cwd.mkdir()
    done = segsweep(cwd, "-m", "optim=sgd", "tracking=none", *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("[1/1] optim=sgd data.patients=6 data.slices=4 data.image_size=16 and 3 more\n")
    said = "Report: none, as one job compares with nothing; give a key two values, such as seed=0,1\n"
    assert said in done.stdout
    assert said not in segsweep(cwd, "optim=sgd", "tracking=none", *TINY).stdout


def test_a_job_is_called_by_what_varies_and_else_by_the_first_of_its_settings():
    given = ["a=1", "b=0.123456789", "tracking=none", "c=2"]
    assert job_name(given, ["a=1", "b=0.1,0.123456789", "tracking=none", "c=2"]) == "b=0.1235"
    assert job_name(given, given) == "a=1 b=0.1235 c=2"
    assert job_name([f"{'k' * 99}=1", "b=1"], [f"{'k' * 99}=1", "b=1"]) == f"{'k' * 99}=1 and 1 more"
    assert job_name(["tracking=none"], ["tracking=none"]) == "default"


def test_a_job_that_fails_is_told_and_the_others_finish(tmp_path):
    cwd = tmp_path / "work"
    cwd.mkdir()
    done = segsweep(cwd, "-m", "optim=sgd", "optim.lr=1e30,1e-3", *TINY, "tracking=none")
    assert done.returncode == 1
    assert [(job["status"], job["class"]) for job in jobs(cwd)] == [("failed", "nan"), ("finished", None)]
    assert "at step" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (failure,) = cwd.glob("multirun/runs/*/failure.json")
    assert json.loads(failure.read_text())["class"] == "nan"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model=unett"], "did you mean unet?"),
        (["data=lgg", "data.root=nowhere"], "nowhere"),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_message_and_an_exit_code(tmp_path, arguments, says):
    done = segsweep(tmp_path, *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "multirun").exists()


LABELS = """
from segsweep.segmentation.data.phantom import Phantom


class Labels(Phantom):
    def decode(self, manifest, patient):
        images, masks = super().decode(manifest, patient)
        masks[0, 0, :2] = 2, 3
        return images, masks
"""


def test_masks_with_several_labels_are_told_in_a_sentence_and_train_nothing(tmp_path, monkeypatch):
    (tmp_path / "labels_of_test.py").write_text(LABELS)
    monkeypatch.setenv("SEGSWEEP_ALLOW", "labels_of_test.*")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = segsweep(tmp_path, *TINY, "data._target_=labels_of_test.Labels", "tracking=none")
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if "labels" in line)
    assert line.startswith("job 0 failed: error: patient phantom_0000: Labels.decode gave masks with the labels 0, 1")
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("multirun/runs/*/history.jsonl"))


SWALLOWS = """
import signal, sys
from segsweep import __main__; from segsweep.sweeps import preflight

def meets_a_ctrl_c(argv):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        raise AttributeError("half-way") from None

signal.signal(signal.SIGINT, signal.default_int_handler)
preflight.preflight = meets_a_ctrl_c
sys.exit(__main__.main())
"""


def test_a_ctrl_c_before_the_first_job_is_not_turned_into_an_error_by_a_library_that_it_meets():
    done = subprocess.run([sys.executable, "-c", SWALLOWS, "seed=0"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("error", [AttributeError("half-way"), SystemExit(1), KeyboardInterrupt()])
def test_a_second_ctrl_c_stops_whatever_exception_it_becomes(monkeypatch, capsys, error):
    def meets_two(*_):
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(sys, "argv", ["segsweep", "seed=0"])
    monkeypatch.setattr(cli, "_hydra", meets_two)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    streams = sys.stdout, sys.stderr
    try:
        assert cli.main() == 130
        assert before == {number: signal.getsignal(number) for number in before}  # of a notebook, say
        assert streams == (sys.stdout, sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "Traceback" not in capsys.readouterr().err


def test_a_ctrl_c_before_the_first_job_is_an_exception_for_who_calls_it(monkeypatch):
    def meets_one(argv):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["segsweep"])
    monkeypatch.setattr("segsweep.sweeps.preflight.preflight", meets_one)
    monkeypatch.setattr("os._exit", lambda code: pytest.fail("the kernel of a notebook would be gone"))
    # the tests may have been started by a script with &, and hear none
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main() == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_argument_that_is_not_utf_8_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["segsweep", "data.root=f\udce9e"])
    assert cli.main() == 1
    assert capsys.readouterr().err == "data.root=f\\udce9e: not UTF-8, in which records are\n"


def test_an_error_without_a_ctrl_c_is_no_interruption(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segsweep"])
    monkeypatch.setattr("segsweep.sweeps.preflight.preflight", lambda argv: {}["a defect"])
    with pytest.raises(KeyError, match="a defect"):
        cli.main()
