"""Imports run one way; the modules are read, not run, and a planted violation shows that each rule can fail."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "segsweep"
ROOMS = {  # room -> the rooms, beside itself and the FLOOR, that it may import
    "core": "",
    "config": "core",
    "tracking": "core",
    "search": "core config",
    "runs": "core config tracking search",
    "report": "core config tracking search",
    "sweeps": "core config tracking search runs report",
    "plugins": "core config tracking search runs sweeps",
    "segmentation": "core config tracking runs report",
}
FLOOR = {"task", "__init__"}  # what is published to a task; it may import nothing of the package
ARITHMETIC = {"models": "torch", "losses": "torch", "data": "numpy torch PIL nibabel", "metrics": "numpy torch scipy"}
ONLY = {  # distribution -> the rooms that may import it at all
    "mlflow": "tracking",
    "optuna": "search report plugins",
    "hydra": "config search report sweeps plugins",
    "torch": "core config runs sweeps plugins segmentation",
}
FIRST = ("torch", "mlflow", "optuna")  # seconds each: never at the top of what `--help` needs
HELP = ("__main__.py", "config/", "sweeps/", "core/session.py", "core/errors.py")
HELP += tuple(f"plugins/{name}.py" for name in ("_jobs", "_local", "_cluster", "_plan", "grid", "search"))


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
    """The room of a module, `task` of what lies beside the rooms."""
    return path.split("/")[0].removesuffix(".py")


def broken(files: dict[str, str]) -> list[str]:
    """What the `files` (path under segsweep/ -> source) import against the rules, as `path: name`."""
    doors = {part(path) for path in files} - ROOMS.keys() - FLOOR
    wrong = []
    for path, source in files.items():
        own = part(path)
        allowed = {own} | FLOOR | set(ROOMS.get(own, "").split()) if own not in doors else ROOMS.keys() | FLOOR
        sums = own == "segmentation" and ARITHMETIC.get(part(path.partition("/")[2]))
        for name in imports(source):
            top, _, rest = name.partition(".")
            if path == "__init__.py":  # what a script imports: the doors, where somebody goes through one
                bad = top not in sys.stdlib_module_names
                bad &= not name.startswith(("segsweep.sweeps.doors.", "segsweep.core.child.", "segsweep.api"))
            elif top == "segsweep":
                bad = rest.split(".")[0] in (ROOMS.keys() | doors | FLOOR) - (allowed if own not in FLOOR else FLOOR)
            else:
                bad = own not in doors and own not in ONLY.get(top, own).split()
                bad |= bool(sums) and top not in sys.stdlib_module_names | set(sums.split())
            wrong += [f"{path}: {name}"] if bad else []
        if path.startswith(HELP):
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
    assert len(files) > 60
    assert ROOMS.keys() | FLOOR <= {part(path) for path in files}
    assert broken(files) == []


ARROWS = [(room, other) for room in ROOMS for other in ROOMS if other not in {room, *ROOMS[room].split()}]


@pytest.mark.parametrize(("room", "other"), ARROWS)
def test_an_arrow_against_the_order_is_seen(files, room, other):
    path = f"{room}/__init__.py"
    line = f"def f():\n    from segsweep.{other} import anything"
    assert broken({path: files[path]}) == []
    assert broken({path: f"{files[path]}\n{line}\n", "predict.py": ""}) == [f"{path}: segsweep.{other}.anything"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("task.py", "from segsweep.core import errors"),
        ("sweeps/cli.py", "from segsweep.predict import main"),
        ("core/errors.py", "import segsweep.sync"),
        ("segmentation/models/unet.py", "import numpy"),
        ("segmentation/losses.py", "import scipy"),
        ("segmentation/metrics.py", "import pandas"),
        ("segmentation/data/lgg.py", "import mlflow"),
        ("segmentation/train.py", "import hydra"),
        ("report/figures.py", "import mlflow.artifacts"),
        ("runs/run.py", "import optuna"),
        ("sweeps/cli.py", "import torch"),
        ("sweeps/sweep.py", "import numpy, mlflow"),
        ("plugins/_local.py", "import optuna"),
    ],
)
def test_a_planted_violation_is_seen(files, path, line):
    assert [found.split(":")[0] for found in broken(files | {path: f"{files[path]}\n{line}\n"})] != []


def test_what_is_allowed_is_not_taken_for_a_violation(files):
    lazily = "\ndef f():\n    import torch\n\nif TYPE_CHECKING:\n    from segsweep.sweeps.sweep import Sweep\n"
    for path in ("config/components.py", "segmentation/losses.py"):
        assert broken(files | {path: files[path] + lazily}) == []


def test_a_room_says_what_it_is_and_nothing_else(files):
    for room in ROOMS:
        (docstring,) = ast.parse(files[f"{room}/__init__.py"]).body
        assert ast.get_docstring(ast.Module([docstring], [])), room


def test_no_module_imports_one_that_imports_it(files):
    assert circles(files) == []


@pytest.mark.parametrize(
    ("path", "line", "circle"),
    [
        (
            "core/errors.py",
            "def f():\n    from segsweep.config import components",
            {"core.errors", "config.components"},
        ),
        ("core/artifacts.py", "import segsweep.runs.run", {"core.artifacts", "runs.run", "tracking.mirrors"}),
        ("sweeps/worker.py", "def f():\n    from segsweep.sweeps.cli import main", {"sweeps.worker", "sweeps.cli"}),
        ("report/records.py", "from segsweep.report import files", {"report.records", "report.files"}),
        ("plugins/_jobs.py", "from . import _local", {"plugins._jobs", "plugins._local"}),
    ],
)
def test_a_planted_circle_is_seen(files, path, line, circle):
    (found,) = circles(files | {path: f"{files[path]}\n{line}\n"})
    assert {f"segsweep.{name}" for name in circle} <= set(found)


def test_what_is_imported_for_type_checkers_is_no_circle(files):
    line = "\nif TYPE_CHECKING:\n    from segsweep.config import components\n"
    assert circles(files | {"core/errors.py": files["core/errors.py"] + line}) == []


PRIVATE = {  # module, private module of another package -> why there is no public way
    (
        "config/trust.py",
        "hydra._internal.config_loader_impl",
    ): "what trusted folders alone compose, with no job started",
    ("config/trust.py", "hydra._internal.utils"): "the search path and the arguments as Hydra's own main reads them",
    ("config/trust.py", "omegaconf._utils"): "where a dotted key is split, brackets and quotes included",
    ("config/recorded.py", "hydra._internal.utils"): "the arguments as Hydra's own main reads them",
    ("config/recorded.py", "omegaconf._utils"): "where a dotted key is split, brackets and quotes included",
    (
        "sweeps/doors.py",
        "hydra._internal.utils",
    ): "where the configuration of a program lies, as Hydra's own main finds it",
    ("sweeps/cli.py", "hydra._internal.utils"): "the flags that it completes as Hydra's own main reads them",
    ("sweeps/overrides.py", "hydra._internal.utils"): "the arguments as Hydra's own main reads them",
    ("sweeps/preflight.py", "hydra._internal.utils"): "the arguments as Hydra's own main reads them",
    ("core/device.py", "torch._dynamo.callback"): "when torch's compiler begins and ends",
    (
        "plugins/_cluster.py",
        "hydra_plugins.hydra_ray_launcher._launcher_util",
    ): "the launcher itself starts a job and no more",
    ("plugins/grid.py", "hydra._internal.core_plugins.basic_sweeper"): "the sweeper that this one extends",
    (
        "plugins/_jobs.py",
        "hydra._internal.core_plugins.basic_launcher",
    ): "the launcher that starts no process",
    (
        "plugins/_published.py",
        "hydra_plugins.hydra_optuna_sweeper._impl",
    ): "the published sweeper that this one extends",
    (
        "search/space.py",
        "hydra_plugins.hydra_optuna_sweeper._impl",
    ): "an interval as the sweeper that is installed reads it",
    ("segmentation/train.py", "torch.nn.modules.batchnorm"): "the base class of all batch normalisations",
}


def private(files: dict[str, str]) -> set[tuple[str, str]]:
    return {
        (path, name.rpartition(".")[0])
        for path, source in files.items()
        for name in imports(source)
        if not name.startswith((".", "segsweep"))
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }


def test_another_packages_private_modules_are_used_for_a_reason_alone(files):
    assert private(files) == PRIVATE.keys()
    planted = files["core/errors.py"] + "\nfrom optuna._imports import try_import\n"
    assert private({"core/errors.py": planted}) == {("core/errors.py", "optuna._imports")}


WORDS = r"dice|ious?|hd95|tumou?rs?|(?:r2)?unets?|lgg|phantoms?|patients?"
NAMED_SO = "pruner=none|median|halving|hyperband|patient"  # Optuna's PatientPruner


def segmentations(files: dict[str, str]) -> list[str]:
    """Lines of the engine with a name or a word of the task of segmentation."""
    return [
        f"{path}: {line.strip()}"
        for path, source in files.items()
        if part(path) in ROOMS.keys() - {"segmentation"} | FLOOR
        for line in source.replace(NAMED_SO, "").splitlines()
        if re.search(rf"(?<![a-z])({WORDS})(?![a-z])", line, re.IGNORECASE)
    ]


def test_the_engine_knows_no_task():
    """Names, sentences and styles: what is of one task is in that task's own room."""
    kinds = (".py", ".js", ".css", ".html")
    files = {
        str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8")
        for file in PACKAGE.rglob("*.*")
        if file.suffix in kinds
    }
    assert len(files) > 100
    assert segmentations(files) == []
    for path, line in (("runs/run.py", 'best = metrics["val/dice"]'), ("report/render.js", "// a patient")):
        assert segmentations({path: line}) == [f"{path}: {line}"]
    assert segmentations({"segmentation/losses.py": "class Dice:"}) == []


def test_the_map_of_the_house_is_the_one_that_is_held():
    rows = re.findall(
        r"^\| (\w+) \| [^|]+ \| ?([\w ]*)\|$", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    assert {room: may.strip() for room, may in rows if room != "room"} == ROOMS
