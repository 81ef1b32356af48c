"""The console command `segsweep`: its commands, what it tells one to type, MLflow's pages, and the Tab key."""

import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path

import pytest
from commands import until

from segsweep.core import child, program
from segsweep.segmentation.task import Segmentation
from segsweep.sweeps import command, sweep
from segsweep.tracking import store, ui

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of another test of this process
@pytest.mark.parametrize("name", program.COMMANDS)
def test_each_command_has_a_help_of_its_own(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/segsweep", "--help"])
    assert program.run(name) == 0
    assert capsys.readouterr().out.startswith(f"usage: segsweep {name} ")


def test_a_command_is_its_module_and_an_override_is_none(tmp_path):
    def said(*words: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    missing = said("segsweep.report", "nowhere")
    assert missing[0] == 1
    assert missing == said("segsweep", "report", "nowhere")
    assert "usage: python -m segsweep.why" in said("segsweep", "why", "--help")[1]
    assert said("segsweep", "report=maybe")[2].startswith("report=maybe: ")
    assert "reprot: not in Hydra's grammar" in (told := said("segsweep", "reprot", "x")[2])
    assert "did you mean report?" in told


def test_a_command_line_is_pasted_into_a_shell_as_the_words_that_it_was_and_quotes_no_quote_where_it_need_not():
    assert program.pasted(["x=1", "data.images='im/*.png'", 'a=["b"]', "c=[d,e]"]) == (
        "x=1 \"data.images='im/*.png'\" 'a=[\"b\"]' 'c=[d,e]'"
    )
    assert program.pasted([r"data.patient='(?P<patient>\d+)_'"]) == r'''"data.patient='(?P<patient>\d+)_'"'''
    odd = ["'$HOME'", "'`id`'", "'!!'", "'a\"b'", "'\\\\", "'\\'\\", "'a\nb'", "", "'é (b) &;|<>~#*?{1,2}'", "it's"]
    line = program.pasted(odd)
    assert shlex.split(line) == odd
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True).stdout
    assert told.split("\0")[:-1] == odd


def test_hints_are_of_the_kind_that_was_typed(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name in ("segsweep", "python"):
        (tmp_path / "bin" / name).write_text("")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    for typed, hint in (("segsweep", "segsweep report"), ("x/__main__.py", "python -m segsweep.report")):
        monkeypatch.setattr(sys, "argv", [typed])
        assert program.typed("report") == hint
    monkeypatch.setenv("PATH", "/nowhere")  # as `make sweep` starts it
    assert program.typed() == "bin/python -m segsweep"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "segsweep")])
    assert (program.typed("search"), program.typed()) == ("bin/segsweep search", "bin/segsweep")


def test_no_hint_is_of_a_checkout_alone():
    hint = re.compile(r"\bmake (ui|sweep|test|install|check)\b|mlflow ui")
    files = [*(ROOT / "segsweep").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
    found = [file.name for file in files if hint.search(file.read_text())]
    assert len(files) > 150
    assert found == []
    assert hint.search("to look at it: make ui")


def test_one_looks_at_a_store_by_a_command_that_names_it_if_it_is_another(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segsweep"])
    assert command.look(store.PLACE) == "segsweep ui"
    assert command.look("sqlite:///other.db") == "segsweep ui --store sqlite:///other.db"
    assert "word" not in command.look("postgresql://me:word@host/runs")
    assert command.look("https://host/runs") == ""


def test_a_sweep_ends_with_what_one_would_type_next(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["segsweep"])
    lead = sweep.Sweep(2, "python -m segsweep -m optim=sgd,adam")
    lead.folder, lead.parent = tmp_path, True
    lead.note(overrides=["optim=sgd,adam"])
    assert lead._then(tmp_path) == ["segsweep -m optim=sgd,adam seed=0,1,2   whether other seeds say the same"]
    lead.spec = Segmentation.spec
    lead.note(overrides=["optim=sgd,adam", "seed=0,1"])
    (then,) = lead._then(tmp_path)
    assert then.startswith(f"segsweep predict best:{tmp_path} IMAGES --out masks")


@pytest.fixture
def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port


@pytest.fixture
def served(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = store.Columns("digits", ["task.lr"], [], ["test/accuracy"], "test/accuracy", False)
    return store.experiment_id(store.connect(uri), "mine", shown)


def test_where_there_is_no_store_no_port_or_a_server_it_says_so(tmp_path, monkeypatch, capsys, uri):
    monkeypatch.setattr(os, "execve", lambda *given: pytest.fail("it would be served"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, says in (
            (["--store", "sqlite:///none.db"], "none.db: no store of MLflow here. A sweep makes it"),
            (["--store", "https://host"], "https://host: a server, which has its pages at this address"),
            (["--store", "sqlite:///broken.db", "--port", "0"], "--port 0: must be from 1 to 65535"),
            (["--port", port], f"--port {port}: Address already in use; give another"),
            (["--store", "sqlite:///broken.db", "--port", "1"], ""),
        ):
            assert ui.main(words) == 1
            assert says in (told := capsys.readouterr().err)
            assert "Traceback" not in told


def test_it_names_the_views_and_serves_this_machine_alone(served, free, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(os, "execve", lambda *line: given.extend(line))
    ui.main(["--port", str(free)])
    first, second, end = capsys.readouterr().out.splitlines()
    place = f"http://127.0.0.1:{free}/#/experiments/{served}/runs?viewStateShareKey="
    assert first == f"mine, runs, best first:  {place}segsweep"
    assert second == f"mine, charts by setting:  {place}segsweep-factors&compareRunsMode=CHART"
    assert end == "Ctrl-C ends it."
    _, words, environment = given
    assert f"-m mlflow ui --host 127.0.0.1 --port {free}" in " ".join(words)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == store.PLACE
    assert store.PLACE not in " ".join(words)  # where everybody can list what has a password


@pytest.mark.slow
def test_mlflows_pages_are_there(served, free, tmp_path):
    line = [sys.executable, "-m", "segsweep", "ui", "--port", str(free)]
    with subprocess.Popen(line, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, text=True) as server:
        try:

            def page(path: str = "") -> str:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{free}/{path}", timeout=5) as answer:
                        return answer.read().decode()
                except OSError:
                    assert server.poll() is None
                    return ""

            assert "MLflow" in until(page)
            assert '"mine"' in page("ajax-api/2.0/mlflow/experiments/search?max_results=9")  # of this store
        finally:
            os.killpg(server.pid, 9)


TRY = """
eval "$(segsweep -sc install=bash)"
complete -p segsweep
while IFS= read -r COMP_LINE; do
    words=($COMP_LINE); COMP_POINT=${#COMP_LINE}; COMP_CWORD=$(( ${#words[@]} - 1 )); COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[*]}"
done
"""


def test_the_tab_key_completes_in_bash(tmp_path):
    command = tmp_path / "bin" / "segsweep"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom segsweep.__main__ import main\nsys.exit(main())\n")
    command.chmod(0o755)
    (tmp_path / "multirun").mkdir()
    lines = {
        "segsweep mod": "model. model=",
        "segsweep -m model=un": "model=unet model=unet_plus_plus",
        "segsweep -m model=unet,r2": "model=unet,r2unet",
        "segsweep optim=adamw optim.weight_d": "optim.weight_decay=",
        "segsweep re": "report= reuse= report",
        "segsweep --config-d": "--config-dir",
        "segsweep report mult": "multirun",  # a folder
        "segsweep model=( op": "",  # nor a message where it cannot be read
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", TRY], input="\n".join(lines) + "\n", cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stderr == ""
    first, *found = done.stdout.splitlines()
    assert first == "complete -o default -o nospace -F hydra_bash_completion segsweep"
    assert dict(zip(lines, found, strict=True)) == lines


def test_by_the_module_it_is_installed_for_the_command(tmp_path):
    line = [sys.executable, "-m", "segsweep", "-sc", "install=bash"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("complete -o nospace -o default -F hydra_bash_completion segsweep\n")


def test_the_working_folder_is_looked_at_last_by_the_command_too(tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('somebody else is called queue')\n")
    (tmp_path / "mine_of_test.py").write_text("print('found')\n")
    code = (
        "import sys; sys.path[0] = '/usr/bin'; from segsweep.core import child; child.settle_command(); import queue\n"
        "import mine_of_test"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("found\n", 0), done.stderr


def test_warnings_of_other_peoples_packages_go_to_the_log_and_ones_own_to_the_screen(caplog):
    shown = []
    with warnings.catch_warnings(), caplog.at_level("INFO"):
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, file, *_: shown.append(file)
        child.quiet()
        for file in ("/x/site-packages/torch/nn.py", "/x/site-packages/hydra/main.py", "/home/me/net.py"):
            warnings.warn_explicit(f"said by {file}", UserWarning, file, 1)
    assert shown == ["/x/site-packages/hydra/main.py", "/home/me/net.py"]
    assert "said by /x/site-packages/torch/nn.py" in caplog.text
