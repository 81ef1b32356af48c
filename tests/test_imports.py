"""Imports run one way; the modules are read, not run, and a planted violation shows that each rule can fail."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "segsweep"
# what any part may lean on
LEAVES = {"artifacts", "errors", "task", "plugins", "session", "display", "child", "masks", "__init__"}
ARITHMETIC = {"models": {"torch"}, "losses": {"torch"}, "data": {"numpy", "torch", "PIL"}}
ARITHMETIC["metrics"] = {"numpy", "torch", "scipy"}  # scipy: distances between surfaces
LAYERS = {  # part -> the parts of the package, beside itself and the LEAVES, that it may import
    "models": set(),
    "losses": set(),
    "metrics": set(),
    "data": set(),
    "config": set(),
    "trust": {"config"},
    "signature": set(),
    "environment": set(),
    "device": {"environment", "train"},
    "figures": set(),
    "evaluate": {"data", "metrics", "environment"},
    "train": {"data", "metrics", "evaluate"},
    "store": set(),
    "recall": {"store"},
    "tracking": {"store", "recall"},
    "registry": {"store", "tracking"},
    # the folders of an MLflow experiment, the trials of a study, the configuration that a winner is told by and what of
    # it may be written, which of one's own modules are allowed, what old records are of; nothing that trains
    "report": {"recall", "study", "config", "signature", "start", "trust", "components", "metrics"},
    "study": set(),
}
ONLY = {  # distribution -> who may import it at all
    "mlflow": {"store", "recall", "tracking", "registry"},
    "optuna": {"report", "study", "pruning", "plugins"},
    "hydra": {
        *("cli", "components", "conditions", "job", "plan", "plugins", "preflight", "report", "start"),
        *("sweep", "trust", "worker"),
    },
}
FIRST = ("torch", "mlflow", "optuna")  # seconds each: never at the top of what `--help` needs
HELP = ("__main__", "cli", "config", "job", "worker", "preflight", "start", "sweep", "session", "display", "errors")
HELP += ("trust",)


@cache
def imports(source: str, at_top: bool = False) -> set[str]:
    """Dotted names that a module imports, anywhere or `at_top`; those for type checkers alone do not count."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "").removesuffix(".")
            found |= {f"{start}{'.' if node.module else ''}{name.name}" for name in node.names}
    return found


def part(path: str) -> str:
    """models/unet.py -> models, train.py -> train."""
    return path.split("/")[0].removesuffix(".py")


def broken(files: dict[str, str]) -> list[str]:
    """What the `files` (path under segsweep/ -> source) import against the rules, as `path: name`."""
    wrong = []
    for path, source in files.items():
        own = part(path)
        for name in imports(source):
            top, _, rest = name.partition(".")
            inside = rest.split(".")[0] if top == "segsweep" else None
            if inside is None:
                bad = own not in ONLY.get(top, {own})
                bad |= own in ARITHMETIC and top not in sys.stdlib_module_names | ARITHMETIC[own]
            else:
                known = (PACKAGE / f"{inside}.py").exists() or (
                    PACKAGE / inside
                ).is_dir()  # else a name like __version__
                allowed = LAYERS.get(own, {inside}) | LEAVES | {own}
                bad = known and inside not in allowed
                bad |= inside == "cli" and own != "__main__"  # the command line is the top
            if bad:
                wrong.append(f"{path}: {name}")
        if own in HELP:
            wrong += [f"{path}: {name} at the top" for name in imports(source, True) if name.split(".")[0] in FIRST]
    return wrong


def dotted(path: str) -> str:
    """models/unet.py -> segsweep.models.unet, report/__init__.py -> segsweep.report."""
    parts = ["segsweep", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(files: dict[str, str]) -> list[tuple[str, ...]]:
    """Modules of `files` that import one another, at the top or in functions, directly or by way of others."""
    modules = {dotted(path) for path in files}
    imported: dict[str, set[str]] = {}
    for path, source in files.items():
        own = dotted(path)
        package = own if path.endswith("__init__.py") else own.rpartition(".")[0]
        imported[own] = set()
        for name in imports(source):
            if name.startswith("."):
                ups = len(name) - len(name.lstrip(".")) - 1
                name = ".".join([*package.split(".")[: len(package.split(".")) - ups], name.lstrip(".")])
            elif name.startswith("hydra_plugins.segsweep_local"):
                name = f"segsweep.plugins.{name}"
            while name and name not in modules:  # of a module, or of what it has
                name = name.rpartition(".")[0]
            imported[own] |= {name} - {"", own}

    def reached(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            new = imported[left.pop()] - found
            found |= new
            left += new
        return found

    reach = {module: reached(module) for module in modules}
    return sorted({tuple(sorted(n for n in reach[m] if m in reach[n])) for m in modules if m in reach[m]})


@pytest.fixture(scope="module")
def files():
    return {str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}


def test_no_name_of_a_package_is_a_module_of_its_too(files):
    """Importing the module would put it in the place of the function."""
    for path, source in files.items():
        if path.endswith("__init__.py"):
            modules = {file.stem for file in (PACKAGE / path).parent.iterdir()}
            assert not modules & {node.name for node in ast.parse(source).body if hasattr(node, "name")}, path


def test_imports_run_one_way(files):
    assert len(files) > 40
    assert set(LAYERS) <= {part(path) for path in files}
    assert broken(files) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("models/unet.py", "from segsweep.losses import Dice"),
        ("losses.py", "from segsweep import metrics"),
        ("metrics.py", "import pandas"),
        ("losses.py", "import scipy"),
        ("data/split.py", "def f():\n    from segsweep.models import blocks"),
        ("data/lgg.py", "import mlflow"),
        ("train.py", "from segsweep.tracking import Mirror"),
        ("train.py", "from omegaconf import x\nfrom segsweep import run"),
        ("evaluate.py", "import segsweep.train"),
        ("report/records.py", "from segsweep.run import run"),
        ("report/figures.py", "import mlflow.artifacts"),
        ("tracking.py", "from segsweep.report.records import read"),
        ("run.py", "from segsweep import cli"),
        ("run.py", "import optuna"),
        ("train.py", "import hydra"),
        ("cli.py", "import torch"),
        ("sweep.py", "import numpy, mlflow"),
    ],
)
def test_a_planted_violation_is_seen(files, path, line):
    planted = files[path] + "\n" + line + "\n"
    assert [found.split(":")[0] for found in broken(files | {path: planted})] != []


def test_what_is_allowed_is_not_taken_for_a_violation(files):
    lazily = "\ndef f():\n    import torch\n\nif TYPE_CHECKING:\n    from segsweep.run import run\n"
    for path in ("cli.py", "losses.py"):
        assert broken(files | {path: files[path] + lazily}) == []


def test_no_module_imports_one_that_imports_it(files):
    assert circles(files) == []


@pytest.mark.parametrize(
    ("path", "line", "circle"),
    [
        ("errors.py", "def f():\n    from segsweep import components", {"segsweep.errors", "segsweep.components"}),
        ("artifacts.py", "import segsweep.run", {"segsweep.artifacts", "segsweep.run", "segsweep.tracking"}),
        ("worker.py", "def f():\n    from segsweep.cli import main", {"segsweep.worker", "segsweep.cli"}),
        ("report/records.py", "from segsweep.report import files", {"segsweep.report.records"}),
        (
            "plugins/hydra_plugins/segsweep_local/_compose.py",
            "from . import _jobs",
            {f"segsweep.plugins.hydra_plugins.segsweep_local.{name}" for name in ("_compose", "_jobs")},
        ),
    ],
)
def test_a_planted_circle_is_seen(files, path, line, circle):
    (found,) = circles(files | {path: f"{files[path]}\n{line}\n"})
    assert circle <= set(found)


def test_what_is_imported_for_type_checkers_is_no_circle(files):
    line = "\nif TYPE_CHECKING:\n    from segsweep import components\n"
    assert circles(files | {"errors.py": files["errors.py"] + line}) == []
