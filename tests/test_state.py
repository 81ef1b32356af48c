"""What a process remembers is in objects that somebody makes: no module has a state of its own.

The modules are read, not run, and a planted violation shows that each rule can fail."""

import ast
from collections.abc import Iterator
from functools import cache

import pytest
from test_imports import PACKAGE, dotted

CACHES = {  # what may be kept for a process, as to forget it would change no result
    "segsweep.core.session._session": "the one holder of all that a process's parts share",
    "segsweep.core.session._importing": "a lock between threads",
    "segsweep.core.session._forking": "whether the fork that a thread is about to make has waited for an import",
    "segsweep.config.components._right": "groups that were found without a mistake, by their text",
    "segsweep.segmentation.data.batches._on_gpu": "the decoded set that a GPU holds, by the set's key",
    "segsweep.segmentation.data.images._layouts": "how files of one length are laid out",
    "segsweep.core.device._compiler": "seconds that torch's compiler, which is one a process, has taken",
    "segsweep.segmentation.predict._count": "numbers that no two sets of pixels share",
    "segsweep.segmentation.task._gflops": "operations of networks, by their configuration",
    "segsweep.tracking.store._clients": "open database files, by their inode",
}
CHANGING = {  # methods that change what they are called on
    *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "move_to_end", "pop"),
    *("popitem", "popleft", "put", "remove", "reverse", "rotate", "set", "setdefault", "sort", "subtract", "update"),
    *("start", "enter_context", "push", "callback", "send", "__setitem__", "__delitem__"),
}
STATES = {  # what has no other use than to be changed
    *("Barrier", "Condition", "ContextVar", "Event", "ExitStack", "Lock", "LifoQueue", "Popen", "PriorityQueue"),
    *("ProcessPoolExecutor", "Queue", "RLock", "Semaphore", "SimpleQueue", "Thread", "ThreadPoolExecutor", "Timer"),
    *("count", "cycle", "iter", "local", "open", "socket"),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def targets(node: ast.AST) -> list[ast.expr]:
    """What a statement gives a value to, or takes one from."""
    if isinstance(node, ast.Assign | ast.Delete):
        found = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.NamedExpr):
        found = [node.target]
    else:
        found = [item.optional_vars for item in node.items if item.optional_vars] if isinstance(node, ast.With) else []
    return [part for each in found for part in (each.elts if isinstance(each, ast.Tuple | ast.List) else [each])]


def constants(tree: ast.Module) -> dict[str, ast.expr | None]:
    """Names that a module itself gives a value, those in its `if` and `try` too; None for classes and functions."""
    found: dict[str, ast.expr | None] = {}
    left: list[ast.stmt] = list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = None
            continue
        if value := getattr(node, "value", None):
            found |= {target.id: value for target in targets(node) if isinstance(target, ast.Name)}
        left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def known(imports: list[ast.Import | ast.ImportFrom], own: str, modules: set[str]) -> dict[str, str]:
    """Local names of the package's modules and of what is imported from them -> dotted names."""
    found = {}
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                start = ".".join([*own.split(".")[: -node.level], *([node.module] if node.module else [])])
            found |= {n.asname or n.name: f"{start}.{n.name}" for n in node.names if start.startswith("segsweep")}
        else:
            found |= {n.asname: n.name for n in node.names if n.asname and n.name in modules}
    return found


def changes(function: ast.AST, outer: frozenset[str] = frozenset()) -> Iterator[tuple[ast.expr, str]]:
    """What the code of a function changes, its own variables apart, and how: a `part` of it, the `whole`, by `call`."""
    arguments = function.args
    own = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    own |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a}
    inside: list[ast.AST] = []
    left = list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        inside.append(node)
        if not isinstance(node, FUNCTIONS):
            left += ast.iter_child_nodes(node)
    shared = {name for node in inside if isinstance(node, ast.Global) for name in node.names}
    own |= {node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)} - shared
    own |= {n.asname or n.name for node in inside if isinstance(node, ast.Import) for n in node.names if not n.asname}
    hidden = outer | own

    def root(node: ast.expr) -> str | None:
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return node.id if isinstance(node, ast.Name) else None

    for node in inside:
        if isinstance(node, FUNCTIONS):
            yield from changes(node, frozenset(hidden))
            continue
        found = [(t.value, "part") for t in targets(node) if isinstance(t, ast.Subscript | ast.Attribute)]
        found += [(t, "whole") for t in targets(node) if isinstance(t, ast.Attribute | ast.Name)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            found.append((node.func.value, "call"))
        yield from (each for each in found if root(each[0]) not in hidden)


class Module:
    """What a module says of itself."""

    def __init__(self, source: str):
        tree = ast.parse(source)
        nodes = list(ast.walk(tree))
        self.values = constants(tree)
        self.imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
        inner = {id(n) for each in functions for n in ast.walk(each) if n is not each and isinstance(n, FUNCTIONS)}
        self.changes = [found for each in functions if id(each) not in inner for found in changes(each)]
        self.given = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}


read = cache(Module)


def full(node: ast.expr, names: dict[str, str]) -> str | None:
    """The dotted name of `name`, `module.name` or `segsweep.module.name`; of an item that of what it is in."""
    if isinstance(node, ast.Subscript):
        return full(node.value, names)
    if isinstance(node, ast.Attribute):
        before = full(node.value, names)
        return f"{before}.{node.attr}" if before else None
    return names.get(node.id) if isinstance(node, ast.Name) else None


def states(files: dict[str, str]) -> list[str]:
    """Names of modules (path under segsweep/ -> source) that hold what changes while the program runs."""
    modules = {dotted(path): read(source) for path, source in files.items()}
    values = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.values.items()}
    found = {f"{name}.{key}" for name, module in modules.items() for key in module.given}
    for name, value in values.items():
        called = value.func if isinstance(value, ast.Call) else None
        if isinstance(called, ast.Subscript):  # Queue[int]()
            called = called.value
        if getattr(called, "attr", getattr(called, "id", None)) in STATES:
            found.add(name)
    for own, module in modules.items():
        names = known(module.imports, own, set(modules)) | {key: f"{own}.{key}" for key in module.values}
        for node, how in module.changes:
            name = owner = full(node, names | {"segsweep": "segsweep"})
            if how == "whole" and name and name.rpartition(".")[0] in modules and name not in modules:
                found.add(name)
            while owner and owner not in values:
                owner = owner.rpartition(".")[0]
            if owner and not (how == "call" and owner == name and values[owner] is None):  # a method of a class
                found.add(owner)
    return sorted(found)


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return {str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}


def test_no_module_has_a_state_but_for_caches(files):
    assert states(files) == sorted(CACHES)


@pytest.mark.parametrize(
    ("path", "lines", "name"),
    [
        ("sweeps/sweep.py", "current = None\ndef f():\n    global current\n    current = 1", "sweeps.sweep.current"),
        ("sweeps/plan.py", "def f():\n    global seen\n    seen = 1", "sweeps.plan.seen"),
        ("sweeps/plan.py", "seen = []\ndef f(x):\n    seen.append(x)", "sweeps.plan.seen"),
        (
            "sweeps/plan.py",
            "seen: dict[str, int] = {}\nclass A:\n    def f(self, x):\n        seen[x] = 1",
            "sweeps.plan.seen",
        ),
        (
            "sweeps/plan.py",
            "seen = {1: 2}\ndef f():\n    def g():\n        del seen[1]\n    return g",
            "sweeps.plan.seen",
        ),
        ("sweeps/plan.py", "seen = set()\nf = lambda x: seen.add(x)", "sweeps.plan.seen"),
        ("sweeps/plan.py", "seen = {}\ndef f():\n    for seen['a'] in range(3):\n        pass", "sweeps.plan.seen"),
        ("sweeps/plan.py", "seen = object()\ndef f():\n    seen.count = 1", "sweeps.plan.seen"),
        ("sweeps/plan.py", "seen = object()\ndef f():\n    seen.all.append(1)", "sweeps.plan.seen"),
        ("sweeps/plan.py", "class A:\n    seen = []\ndef f():\n    A.seen.append(1)", "sweeps.plan.A"),
        ("sweeps/plan.py", "def f():\n    f.seen = 1", "sweeps.plan.f"),
        ("sweeps/plan.py", "seen = {'a': {}}\ndef f():\n    seen['a']['b'] = 1", "sweeps.plan.seen"),
        ("sweeps/plan.py", "if True:\n    seen = deque()\ndef f(x):\n    seen.appendleft(x)", "sweeps.plan.seen"),
        ("sweeps/worker.py", "import threading\nhalt = threading.Event()", "sweeps.worker.halt"),
        ("sweeps/worker.py", "from queue import Queue\nwaiting = Queue[int]()", "sweeps.worker.waiting"),
        (
            "tracking/mirrors.py",
            "from contextlib import ExitStack\nheld: ExitStack = ExitStack()",
            "tracking.mirrors.held",
        ),
        ("segmentation/task.py", "def f():\n    figures.shown = 1", "segmentation.figures.shown"),
        ("runs/run.py", "def f():\n    artifacts.DONE = ()", "core.artifacts.DONE"),
        (
            "runs/run.py",
            "def f():\n    from segsweep.core import signature as s\n    s.IGNORED += ('a',)",
            "core.signature.IGNORED",
        ),
        ("runs/run.py", "from segsweep.winner import KEPT\ndef f():\n    KEPT.clear()", "winner.KEPT"),
        (
            "plugins/_local.py",
            "def f():\n    from . import _jobs\n    _jobs.LATEST = 1",
            "plugins._jobs.LATEST",
        ),
    ],
)
def test_a_planted_state_is_seen(files, path, lines, name):
    more = {"winner.py": "KEPT = {}\n"} if "winner" in lines else {}
    found = states(files | more | {path: f"{files[path]}\n{lines}\n"})
    assert set(found) - set(CACHES) == {f"segsweep.{name}"}


@pytest.mark.parametrize(
    "lines",
    [
        "ALL = [1, 2]\ndef f():\n    return [*ALL, 3]",
        "ALL = {}\ndef f(ALL):\n    ALL['a'] = 1",
        "ALL = []\ndef f():\n    ALL = []\n    ALL.append(1)",
        "ALL = []\ndef f():\n    def g():\n        ALL.append(1)\n    ALL = []",
        "ALL = {}\nALL['a'] = 1",
        "class A:\n    def f(self):\n        self.all = []\n        self.all.append(1)",
        "from functools import cache\n@cache\ndef f():\n    return []",
        "import torch\ndef f():\n    torch.backends.cudnn.benchmark = True",
    ],
)
def test_what_changes_nothing_of_a_module_is_none(files, lines):
    assert states(files | {"sweeps/plan.py": f"{files['sweeps/plan.py']}\n{lines}\n"}) == sorted(CACHES)
