"""No password is written: to no file, terminal or server's row; and the servers are reached all the same."""

import ast
import base64
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cloudpickle
import optuna
import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import HydraContext
from omegaconf import OmegaConf
from test_imports import PACKAGE

from segsweep.core import artifacts, masks
from segsweep.core.errors import ConfigError
from segsweep.plugins._jobs import Job
from segsweep.search.study import open_storage
from segsweep.tracking import store

sys.path.append(str(Path(__file__).parent / "search"))
import postgres

TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "epochs=1"]
SECRET = "hunter2%2Fxyzzy%40plugh"
PARTS = ("hunter2", "xyzzy", "plugh")


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    """What a test has put into the environment goes with it."""
    for name in [name for name in os.environ if name.startswith(masks.KEPT)]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:5/db", "postgresql://***@host:5/db"),
        ("a=postgresql+psycopg2://me:a/b@c:d@host/db rest", "a=postgresql+psycopg2://***@host/db rest"),
        ("https://TOKEN@host/x and https://a:b@c", "https://***@host/x and https://***@c"),
        ("https://host/x?password=y&a=b#c", "https://host/x?password=***&a=b#c"),
        ("mysql://h/d?ssl_key_password=a;b=c", "mysql://h/d?ssl_key_password=***;b=c"),
        ("[https://me:s3cr3t@h, sqlite:///x]", "[https://***@h, sqlite:///x]"),
        ("'a,b=sqlite:///x,https://me:pw@h'", "'a,b=sqlite:///x,https://***@h'"),
        ("http://host:5000/#/experiments/1", "http://host:5000/#/experiments/1"),
        ("https://host/@someone?page=1", "https://host/@someone?page=1"),
        ("me@host, no address", "me@host, no address"),
        ("https://u%3Apw%40host/x", "https://***@host/x"),
        ("https://u:pw%40host/x?a=b", "https://***@host/x?a=b"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Dpw", "mssql+pyodbc:///?odbc_connect=***"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER=x;PWD=pw", "mssql+pyodbc:///?odbc_connect=DRIVER=x;PWD=***"),
        ("https://h/x?to=https%3A%2F%2Fme%3Apw%40other", "https://h/x?to=***"),
        ("https://h/x?sv=1&sig=a%2Bb%3D&sp=r", "https://h/x?sv=1&sig=***&sp=r"),
        ("https://h/x?pat=a&sas=b&path=c&design=d", "https://h/x?pat=***&sas=***&path=c&design=d"),
        ("https://h/x#access_token=a&state=b", "https://h/x#access_token=***&state=b"),
        ("https://h/x?%70assword=a", "https://h/x?%70assword=***"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(text, shown):
    assert masks.masked(text) == shown
    assert masks.masked(shown) == shown


@pytest.mark.parametrize("password", ["p/a@ss:word", "it's", 'qu"ote', "<b>&", "per%25cent"])
def test_a_password_that_is_known_is_found_in_any_writing_and_in_pieces(tmp_path, password):
    address = f"postgresql://me:{password}@host/db"
    masks.learn(address)
    artifacts.write_json(tmp_path / "a.json", {"uri": address, "deep": [{"error": f"no host {password}@host"}]})
    artifacts.write_text(tmp_path / "a.yaml", "uri: '" + address.replace("'", "''") + "'\n")
    artifacts.write_csv(tmp_path / "a.csv", [{"uri": address}])
    artifacts.write_lines(tmp_path / "a.jsonl", [{"uri": address}])
    for file in tmp_path.iterdir():
        for part in ("ss:word", "it's", "ote", "<b>", "per%25", "it''s"):
            assert part not in file.read_text(), file
    if len(password) >= masks.LEAST:
        assert password not in masks.told(f"could not translate {password!r} to {password}")


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("https://me%3Ahunter2xyz%40host/x", "hunter2xyz"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhunter2%2Bxyz", "hunter2+xyz"),
        ("https://host/x?sig=hunter2%2Fxyz", "hunter2/xyz"),
        ("https://host/x#access_token=hunter2xyz", "hunter2xyz"),
    ],
)
def test_a_quoted_password_is_found_as_others_say_it(address, word):
    masks.learn(address)
    assert masks.told(f"no login with {word} there") == "no login with *** there"
    assert masks.reach(masks.masked(address)) == address


def test_a_log_and_a_stream_are_told(capsys):
    masks.learn("https://me:hunter2@host")
    record = logging.LogRecord("n", logging.INFO, "p", 1, "bad %s", ("hunter2",), None)
    assert masks.Formatter("%(message)s").format(record) == "bad ***"
    stream = masks.Stream(sys.stdout)
    print("at https://me:hunter2@host", file=stream)
    assert stream.isatty() is False
    assert capsys.readouterr().out == "at https://***@host\n"


def test_a_command_line_has_the_name_of_an_address_and_what_is_started_has_the_address():
    argv = ["-m", "seed=0,1", "tracking.uri='https://me:pw@host'", "+a=http://host", "b=x,https://u:v@h", "~c"]
    away = masks.put_away(argv)
    (name,) = [name for name in os.environ if name.startswith(masks.KEPT)]
    assert away == [*argv[:2], f"tracking.uri=${{oc.env:{name}}}", *argv[3:]]
    assert os.environ[name] == "https://me:pw@host"
    assert masks.put_away(argv) == away
    assert masks.masked(away[2]) == "tracking.uri=https://***@host"
    assert masks.masked(rf"tracking.uri=$\{{oc.env\:{name}\}}") == "tracking.uri=https://***@host"


def test_the_name_of_an_address_is_of_its_server_and_no_address_takes_the_place_of_another(monkeypatch):
    first, second, other = "https://me:pw@host", "https://me:pw2@host", "https://me:pw@other"
    names = [masks.reference(address) for address in (first, second, other)]
    assert len({*names}) == 3
    assert [masks.reference(address) for address in (other, second, first)] == names[::-1]
    for name in [name for name in os.environ if name.startswith(masks.KEPT)]:
        monkeypatch.delenv(name)
    assert masks.reference(other) == names[2]  # in an environment that knows no other
    assert masks.masked(names[0]) == names[0]
    assert names[0] != masks.reference("https://me:pw@third")
    assert masks.reference(second) == names[0]  # which leads to the same server


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(""), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (ValueError("\n a\x1b[2J\nb"), "a [2J"),
        ("", ""),
        (OSError("no answer of https://me:pw@host/x"), "no answer of https://***@host/x"),
    ],
)
def test_an_error_in_one_line_has_words_and_no_password(error, line):
    assert masks.first_line(error) == line


def test_the_registry_is_named_without_its_password(monkeypatch):
    from segsweep.core.errors import SegsweepError
    from segsweep.tracking import registry

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@host")

    class Client:
        def get_model_version(self, *given: str) -> None:
            raise ValueError("hunter2 is wrong")

        def search_model_versions(self, *given: str) -> list:
            return []

    monkeypatch.setattr(registry, "connect", lambda uri: Client())
    for reference, says in [("m/1", ": *** is wrong"), ("m/latest", " has no registered model m")]:
        with pytest.raises(SegsweepError) as told:
            registry.origin(f"models:/{reference}")
        assert str(told.value) == f"models:/{reference}: MLflow at https://***@host{says}"


def test_no_first_line_is_taken_of_what_may_have_none(files):
    assert [path for path, source in files.items() if "splitlines()[0]" in source] == []


def test_an_address_of_a_record_is_reached_from_the_environment_and_else_asked_for(monkeypatch):
    with pytest.raises(ConfigError, match=r"its password is in no record; give the whole address"):
        store.connect("https://***@host")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pw@host")
    assert masks.reach("https://***@host") == "https://me:pw@host"
    assert masks.reach("https://host") == "https://host"


# Who writes

WRITERS = {  # module.function -> why it does not go by artifacts.write_text
    "segsweep.core.artifacts.write_text": "this is it",
    "segsweep.core.artifacts.flush": "opened to be flushed, and not written to",
    "segsweep.core.artifacts.link": "weights, a second time",
    "segsweep.segmentation.data.cache.__init__": "opened to be locked, and not written to",
    "segsweep.core.checkpoints.save": "weights and states of optimizers",
    "segsweep.core.checkpoints.end": "a mark, which stays empty",
    "segsweep.runs.record.finished": "weights",
    "segsweep.runs.loop._check_keepable": "weights, in memory",
    "segsweep.tracking.store._make": "MLflow's own empty database",
    "segsweep.segmentation.data.source._remember": "sizes and digests of files",
    "segsweep.segmentation.data.cache._open": "a mark, which stays empty",
    "segsweep.segmentation.data.cache._build": "a mark, which stays empty",
    "segsweep.segmentation.data.cache._decode": "pixels and their statistics, and the task of helpers, unlinked",
    "segsweep.segmentation.data.cache._work": "a mark, which stays empty",
    "segsweep.segmentation.data.cache._help": "statistics, to the process that asked",
    "segsweep.segmentation.data.cache._store": "pixels",
    "segsweep.core.locks._opened": "a lock, which stays empty",
    "segsweep.core.environment.reset_peak_memory": "one digit, for the kernel",
    "segsweep.segmentation.export.to_onnx": "a network",
    "segsweep.segmentation.export.export": "a network",
    "segsweep.segmentation.figures.draw": "pictures and pixels",
    "segsweep.segmentation.predictions.write": "masks",
    "segsweep.segmentation.predictions.predict_files": "probabilities",
    "segsweep.report.files.write": "pictures",
    "segsweep.report.search.pages.write": "pictures",
    "segsweep.report.figures._plot": "pictures, in memory",
    "segsweep.segmentation.sections.overlay": "pictures, in memory",
    "segsweep.segmentation.data.volume.write": "volumes, compressed",
    "segsweep.runs.loop._write": "weights and states, by Checkpoints.save",
    "segsweep.sweeps.check.suspects": "weights, by Checkpoints.save, of a run of a check",
    "segsweep.sweeps.sweep._begin": "noise, to keep room",
    "segsweep.sweeps.sweep._lead": "no file: a record is begun",
    "segsweep.sweeps.worker.__init__": "what a worker prints, unlinked; read by `death`",
}
CALLS = {"write_text", "write_bytes", "touch", "savefig", "save", "savez", "savez_compressed", "dump", "copyfile"}
CALLS |= {"copy", "copy2", "copytree", "tofile", "savetxt", "to_csv", "NamedTemporaryFile", "TemporaryFile", "mkstemp"}
CALLS |= {"FileHandler", "write_array_header_1_0", "extractall"}


def writers(path: str, source: str) -> Iterator[str]:
    """module.function of each call that writes a file, or opens one for writing."""
    module = "segsweep." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def walk(node: ast.AST, function: str) -> Iterator[str]:
        for inner in ast.iter_child_nodes(node):
            name = inner.name if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(inner, ast.Call) and _writes(inner):
                yield f"{module}.{name}"
            yield from walk(inner, name)

    yield from walk(ast.parse(source), "")


def _writes(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name in ("open", "fdopen"):
        given = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        modes = [text for text in given if isinstance(text, str) and set(text) <= set("rwaxbt+")]
        worked_out = call.args[isinstance(call.func, ast.Name) :] or call.keywords  # such a mode may be any
        known = bool(modes) or not worked_out
        return owner == "os" or any(set(mode) & set("wax+") for mode in modes) or not known and owner != "Image"
    ours = owner == "artifacts" or (isinstance(call.func, ast.Name) and name == "write_text")
    return name in CALLS and not ours and not (name == "copy" and not call.args)


def found(files: dict[str, str]) -> set[str]:
    return {name for path, source in files.items() for name in writers(path, source)}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return {str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}


def test_text_is_written_by_one_function_alone(files):
    assert sorted(found(files) - WRITERS.keys()) == []
    assert sorted(WRITERS.keys() - found(files)) == []


@pytest.mark.parametrize(
    "line",
    [
        "open('x', 'w')", "open(f, mode='a')", "p.open('x')", "Path(p).write_text('')", "json.dump(a, f)",
        "np.save(p, a)", "torch.save(a, p)", "OmegaConf.save(a, p)", "os.open(p, os.O_WRONLY)", "p.touch()",
        "open(p, m)", "p.open(m)", "logging.FileHandler(p)", "shutil.copy(a, b)", "with p.open('r+') as f: pass",
    ],
)  # fmt: skip
def test_a_planted_writer_is_seen(files, line):
    planted = f"{files['sweeps/plan.py']}\ndef new(p, a, f, m, b):\n    {line}\n"
    assert "segsweep.sweeps.plan.new" in found(files | {"sweeps/plan.py": planted})


# Sweeps and searches


@contextlib.contextmanager
def server() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """MLflow's, which has nothing and takes nothing: its port, and of each request who asked and what was said."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.headers.get("Authorization") or "", f"{self.path} {body.decode(errors='replace')}"))
            text = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no {self.headers.get('Host')}"})
            self.send_response(404)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *given: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_address[1], asked
        made.shutdown()


def command(folder: Path, *arguments: str, module: str = "segsweep", **environment: str) -> str:
    """What it says, on both streams."""
    given = os.environ | {"SEGSWEEP_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, env=given, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    return done.stdout


def leaks(folder: Path, said: str) -> list[str]:
    """Files, and lines of the terminal, with a part of the password."""
    files = {str(file): file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file()}
    texts = files | {f"line {line!r}": line for line in said.splitlines()}
    return [name for name, text in texts.items() if any(part in text for part in PARTS)]


def statuses(folder: Path) -> list[str]:
    """Of the jobs of the one sweep there."""
    return [json.loads(file.read_text())["status"] for file in folder.glob("multirun/2*/*/job.json")]


USER = "me:" + SECRET
SLASHED = "me:hunter2/xyzzy@plugh:x"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=slurm", "hydra.launcher.executor=local"]])
def test_a_sweep_leaves_no_password_and_its_server_is_asked_with_it(tmp_path, launcher):
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with server() as (port, asked):
        uri = f"http://{USER}@127.0.0.1:{port}"
        said = command(tmp_path, "-m", "seed=0,1", "report=false", f"tracking.uri={uri}", *TINY, *launcher)
        assert statuses(tmp_path) == ["finished"] * 2, said
        assert leaks(tmp_path, said) == []
        whole = "Basic " + base64.b64encode(b"me:hunter2/xyzzy@plugh").decode()
        assert {who for who, _ in asked} == {whole}
        assert not any(part in what for _, what in asked for part in PARTS)
        asked.clear()
        (sweep,) = tmp_path.glob("multirun/2*")
        away = command(tmp_path, str(sweep), module="segsweep.sync")
        assert "is not used; if it is yours, give it in MLFLOW_TRACKING_URI, or to segsweep.sync as --uri" in away
        assert asked == []
        said = command(tmp_path, str(sweep), module="segsweep.sync", MLFLOW_TRACKING_URI=uri)
        assert {who for who, _ in asked} == {whole}
        assert leaks(tmp_path, said + away) == []


@pytest.mark.parametrize("at", ["", "segsweep."])
def test_what_slurm_pickles_has_the_names_of_addresses_in_an_application_too(tmp_path, monkeypatch, at):
    submitit = pytest.importorskip("submitit")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from segsweep.plugins._cluster import SlurmLauncher

    pickled = []
    keep = lambda self, *given: pickled.append(cloudpickle.dumps(given)) or []  # noqa: E731 - nothing is started
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", keep)
    config = OmegaConf.create({"hydra": {"runtime": {"config_sources": []}, "sweep": {"dir": str(tmp_path)}}})
    for key in masks.KEYS:
        OmegaConf.update(config, f"{at}{key}", f"https://{USER}@host", force_add=True)
    launcher = SlurmLauncher("local", submitit_folder=str(tmp_path), max_num_timeout=0, python=None)
    launcher.config, launcher.task = config, len
    launcher.context = HydraContext(ConfigLoaderImpl(create_config_search_path(None)), Callbacks(), [])
    launcher.start([Job(0, [], tmp_path)])
    assert masks.KEPT.encode() in pickled[0]
    assert not any(part.encode() in pickled[0] for part in PARTS)
    assert OmegaConf.select(config, f"{at}tracking.uri") == f"https://{USER}@host"  # as it is reached from here


APP = """
import segsweep
@segsweep.main(config_path="../conf", config_name="config", metric="error", direction="min")
def main(cfg):
    print("to", cfg.deep[0].db)
    raise RuntimeError(f"{cfg.deep[0].db[16:28]} is wrong")
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=slurm", "hydra.launcher.executor=local"]])
def test_addresses_of_ones_own_keys_are_in_no_record_log_or_pickle_either(tmp_path, launcher):
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    address = "postgresql://me:hunter2xyzzy@host/x"
    content = {"deep": [{"db": address}], "segsweep": {"tracking": {"uri": None}}, "a": 1}
    content["hydra"] = {"job": {"env_set": {"DSN": "https://plugh@host/3"}}}
    for name, text in {"conf/config.yaml": json.dumps(content), "work/app.py": APP}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    words = [sys.executable, "app.py", "-m", "a=1,2", *launcher]
    done = subprocess.run(words, cwd=tmp_path / "work", capture_output=True, text=True, timeout=240)
    assert "RuntimeError: *** is wrong" in done.stdout + done.stderr
    assert statuses(tmp_path / "work") == ["failed"] * 2
    assert leaks(tmp_path / "work", done.stdout + done.stderr) == []


def test_every_address_of_a_configuration_is_hidden_and_nothing_else():
    plain = {"a": [{"b": "https://me:pw@host"}, "x", None, 3], "c": "${a}", "d": "???", "e": "https://host"}
    config = OmegaConf.create(plain)
    OmegaConf.set_readonly(config, True)
    masks.hide(config, masks.masked)
    plain["a"][0]["b"] = "https://***@host"
    assert OmegaConf.to_container(config) == plain


@pytest.mark.slow
@pytest.mark.parametrize("where", ["command line", "configuration", "configuration, with pickles of submitit"])
def test_servers_that_are_not_there_are_told_of_without_the_password(tmp_path, where):
    uri, storage = f"http://{SLASHED}@127.0.0.1:9/a", f"postgresql://{SLASHED}@127.0.0.1:9/db?sslpassword=xyzzy"
    conf = tmp_path.parent / f"{tmp_path.name}_conf" / "experiment"
    conf.mkdir(parents=True)
    content = {"tracking": {"uri": uri}, "search": {"storage": storage}}
    (conf / "x.yaml").write_text("# @package _global_\n" + json.dumps(content))
    given, trusted = [f"tracking.uri='{uri}'"], {}
    if where != "command line":
        given, trusted = ["--config-dir", str(conf.parent), "experiment=x"], {"SEGSWEEP_CONF": str(conf.parent)}
    pickles = []
    if "submitit" in where:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
        pickles = ["hydra/launcher=slurm", "hydra.launcher.executor=local"]
    said = command(tmp_path, "-m", "seed=0,1", "report=false", *given, *TINY, *pickles, **trusted)
    assert statuses(tmp_path) == ["finished"] * 2, said
    given += [f"search.storage='{storage}'"] if where == "command line" else []
    told = command(tmp_path, "-m", "+search=tpe", "search.trials=1", *given, *TINY, **trusted)
    assert "search.storage=postgresql://***@127.0.0.1:9/db?sslpassword=***: cannot be opened" in told
    assert leaks(tmp_path, said + told) == []


@pytest.mark.slow
@pytest.mark.skipif(not postgres.PG_CTL, reason="no PostgreSQL here")
def test_a_search_leaves_none_in_its_storage_either(tmp_path):
    with postgres.server() as made:
        storage = made.url.replace("postgres@", f"postgres:{SECRET}@")
        given = ["-m", "+search=random", "search.trials=2", "search.study=s", f"search.storage={storage}"]
        said = command(tmp_path, *given, *TINY)
        assert "Study s: 2 of 2 trials (2 complete)" in said, said
        assert leaks(tmp_path, said) == []
        study = optuna.load_study(study_name="s", storage=open_storage(made.url))
        assert not any(part in str((study.trials, study.user_attrs)) for part in PARTS)
