"""What the tests are worth: of the same small faults in COMMIT and in this tree, how many does each one's suite notice?

    python -m benchmarks.mutants COMMIT [--mutants 200] [--seed segsweep] [--python PYTHON] [--keep FOLDER]

A fault is one statement changed in a function. It may be drawn if a function of that name has that statement on both
sides, so that both suites judge the same faults, wherever the modules have moved. They are drawn evenly over AREAS.
Noticed is a fault with which a test fails, or takes for ever; first both trees have to pass with a line more that does
nothing. PYTHON: that runs COMMIT. FOLDER keeps the verdicts, and another call goes on; survivors are judged again where
their tests have changed.
"""

import argparse
import ast
import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.same import git

AREAS: dict[str, dict[str, tuple[str, str]]] = {
    "signature": {
        "before": ("signature run", "test_signature test_run test_restore"),
        "after": ("core/signature core/source runs/identity", "test_signature test_state test_run test_restore"),
    },
    "files and checkpoints": {
        "before": (
            "artifacts run trained train",
            "test_artifacts test_train_waits test_restore test_run test_micro_batches test_predict",
        ),
        "after": (
            "core/artifacts core/checkpoints core/locks runs/asked runs/record runs/run runs/loop "
            "segmentation/trained segmentation/train",
            "test_artifacts test_kept_files test_loop test_state test_durability test_train_waits test_restore "
            "test_run test_micro_batches test_predict",
        ),
    },
    "statistics": {
        "before": ("report/statistics", "report/test_report_statistics report/test_report_contrasts"),
        "after": ("report/statistics", "report/test_report_statistics report/test_report_contrasts"),
    },
    "contrasts": {
        "before": ("report/contrasts", "report/test_report_contrasts report/test_report_page"),
        "after": ("report/contrasts", "report/test_report_contrasts report/test_report_page"),
    },
    "study": {
        "before": ("study", "search/test_search"),
        "after": ("search/study", "search/test_search"),
    },
}
"""Area -> side -> its modules, and the files of tests that are nearest to them, the quickest first."""
SWAPS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,),
}  # fmt: skip
HEADS = {"test": "if", "iter": "for", "context_expr": "with", "value": "be"}
SIMPLE = (ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.Delete, ast.Assert)
LONGEST, MOST = 90, 40
"""Seconds of a test, where what is stopped in between does not count, and of all tests that a fault is shown to, as
they were measured without it."""
SERVER = """
import ctypes, gc, importlib, json, os, signal, sys, threading, time
for name in "torch numpy scipy.stats pandas matplotlib.pyplot hydra.main mlflow optuna pytest".split():
    importlib.import_module(name)
pytest, (read, write) = sys.modules["pytest"], os.pipe2(os.O_NONBLOCK)
OPTIONS = "-x", "-p", "no:cacheprovider", "-m", "not slow", "-W", "ignore::pytest.PytestAssertRewriteWarning"
HERE, STARTS = os.path.join(os.getcwd(), "segsweep", ""), {("subprocess.py", "Popen.__init__")}
STARTS.add(("process.py", "BaseProcess.start"))
gc.freeze()  # what is imported is not looked through again
ctypes.CDLL(None).prctl(36, 1)  # what a test has left becomes a child of this process


class Watch:
    def __init__(self, file):
        self.file, self.tests, self.seconds = file, {"": set()}, {}
        self.now = self.tests[""]
        if file:
            sys.settrace(self.called)
            threading.settrace(self.called)

    def called(self, frame, event, argument):
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname
        if file.startswith(HERE):
            self.now.add(f"{file[len(HERE):-3]} {name}")
        elif (file.rpartition("/")[2], name) in STARTS:
            self.now.add("*")

    def pytest_runtest_logstart(self, nodeid):
        os.write(write, b".")
        self.now = self.tests.setdefault(nodeid, set())

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before, self.now = self.now, self.now if fixturedef.scope == "function" else self.tests[""]
        try:
            return (yield)
        finally:
            self.now = before

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_sessionfinish(self, exitstatus):
        sys.settrace(None)
        if self.file and exitstatus in (0, 5):
            times = self.seconds
            found = {name: {"seconds": times.get(name, 0), "calls": sorted(of)} for name, of in self.tests.items()}
            with open(self.file + ".part", "w") as file:
                json.dump(found, file)
            os.replace(self.file + ".part", self.file)


def children():
    return [int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()]


for line in sys.stdin:
    file, *tests = json.loads(line)
    pid, ticks, code = os.fork(), 0, None
    if not pid:
        os.setsid()
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for of, number in ((nowhere, 0), (log, 1), (log, 2)):
            os.dup2(of, number)
        os._exit(pytest.main([*OPTIONS, *tests], plugins=[Watch(file)]))
    while code is None and ticks < 10 * float(sys.argv[2]):
        time.sleep(0.1)
        ended, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if ended else None
        try:
            ticks = 0 if os.read(read, 4096) else ticks
        except BlockingIOError:
            ticks += 1
    while left := children():
        for each in left:
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)
    print("slow" if code is None else code, flush=True)
"""
Fault = tuple[str, str, str]


def faults(source: str) -> dict[Fault, tuple[int, int, str]]:
    """(function, statement, statement with the fault) -> first byte, last byte and what stands there instead."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[Fault, tuple[int, int, str]] = {}
    for function, head, node in _parts(ast.parse(source), ""):
        begin, end = (starts[at - 1] + column for at, column in _place(node))
        for text in _changed(node, head):
            fault = function, f"{head} {ast.unparse(node)}".strip(), f"{head} {text}".strip()
            found.setdefault(fault, (begin, end, f"({text})" if head else text))
    return found


def _place(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _parts(node: ast.AST, function: str) -> Iterator[tuple[str, str, ast.AST]]:
    """Each statement that has none inside, and of others what they ask. Leading underscores do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _parts(child, f"{function}.{child.name.lstrip('_')}".lstrip("."))
        elif function and isinstance(child, SIMPLE):
            yield function, "", child
        elif function and isinstance(child, ast.stmt | ast.withitem | ast.ExceptHandler | ast.match_case):
            asked = {name: getattr(child, name, None) for name in HEADS} if not isinstance(child, ast.Raise) else {}
            yield from ((function, HEADS[name], each) for name, each in asked.items() if isinstance(each, ast.AST))
            yield from _parts(child, function)


def _changed(node: ast.AST, head: str) -> Iterator[str]:
    if isinstance(node, ast.Expr):
        if not isinstance(node.value, ast.Call):
            return
        yield "pass"
        if ast.unparse(node).startswith("log."):
            return
    if isinstance(node, ast.Return) and node.value and ast.unparse(node) != "return None":
        yield "return None"
    yield from ("True", "False") if head == "if" else ()
    for number, (parent, name, at) in enumerate(_inside(ast.Starred(node))):
        each = getattr(parent, name) if at is None else getattr(parent, name)[at]
        for new in _instead(each):
            whole = copy.deepcopy(ast.Starred(node))
            parent, name, at = list(_inside(whole))[number]
            if at is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[at] = new
            yield ast.unparse(ast.fix_missing_locations(whole.value))


def _inside(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where each node is held that is no part of a text: by itself it is not told from others, as all `+` are one."""
    for name, value in ast.iter_fields(node):
        for at, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(each, ast.AST) and not isinstance(each, ast.JoinedStr):
                yield node, name, at
                yield from _inside(each)


def _instead(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.cmpop | ast.boolop | ast.operator):
        yield from (other() for other in SWAPS.get(type(node), ()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and node.value and isinstance(node.value, str):
        yield ast.Constant("")


class Side:
    """A tree of its own, the process that runs its tests, and where in it a fault can be made."""

    def __init__(self, name: str, tree: Path, python: str):
        self.name, self.tree = name, tree
        self.faults: dict[str, dict[Fault, tuple[Path, tuple[int, int, str]]]] = {}
        for area, of in AREAS.items():
            self.faults[area] = {}
            for file in (tree / "segsweep" / f"{module}.py" for module in of[name][0].split()):
                for fault, change in faults(file.read_text(encoding="utf-8")).items():
                    self.faults[area].setdefault(fault, (file, change))
        self.temporary, path = tree.parent / f"t-{name}", [str(tree), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary), "MPLBACKEND": "agg"}
        subprocess.run([python, "-m", "compileall", "-q", str(tree / "segsweep")], check=True)
        self.command = [python, "-c", SERVER, str(tree.parent / f"{name}.log"), str(LONGEST)]
        self.server: subprocess.Popen[str] | None = None
        self.number, self.calls = 0, dict[str, dict[str, Any]]()

    def tests(self, area: str) -> list[str]:
        return [f"tests/{test}.py" for test in AREAS[area][self.name][1].split()]

    def digest(self, area: str) -> str:
        return hashlib.sha256(b"".join((self.tree / test).read_bytes() for test in self.tests(area))).hexdigest()[:16]

    def watch(self, folder: Path) -> None:
        """Which functions each test calls, with a line more in every module that does nothing."""
        modules = {module for of in AREAS.values() for module in of[self.name][0].split()}
        files = {self.tree / "segsweep" / f"{module}.py" for module in modules}
        for test in dict.fromkeys(test for area in AREAS for test in self.tests(area)):
            made = hashlib.sha256((self.tree / test).read_bytes()).hexdigest()[:16]
            kept = folder / f"{self.name}-{Path(test).stem}-{made}.json"
            if not kept.exists():
                began = time.perf_counter()
                with contextlib.ExitStack() as stack:
                    for file in files:
                        end = len(file.read_bytes())
                        stack.enter_context(self.changed(file, (end, end, "\n_NOTHING = 0\n")))
                    if (said := self.ask(str(kept), test)) != "0":
                        raise SystemExit(f"{self.name}: without a fault {test} does not pass ({said}); see {folder}")
                print(f"{self.name}: {test} passes, {time.perf_counter() - began:.0f} s", flush=True)
            self.calls[test] = json.loads(kept.read_text())

    def chosen(self, area: str, file: Path, function: str) -> list[tuple[str, list[str]]]:
        """The tests that call the function and, after them, those that start a process, by their file; the quick ones
        first, and as many as take MOST seconds."""
        wanted, ranks = _plain(str(file.relative_to(self.tree / "segsweep").with_suffix("")), function), []
        for test in self.tests(area):
            found = {
                name: {each if each == "*" else _plain(*each.split(" ")) for each in of["calls"]}
                for name, of in self.calls[test].items()
            }
            for name in found.keys() - {""}:
                if {wanted, "*"} & (found[name] | found[""]):
                    ranks.append((wanted not in found[name], self.calls[test][name]["seconds"], test, name))
        by_file: dict[str, list[str]] = {}
        total = 0.0
        for _, seconds, test, name in sorted(ranks):
            total += seconds
            if not by_file or total <= MOST:
                by_file.setdefault(test, []).append(name)
        return list(by_file.items())

    @contextlib.contextmanager
    def changed(self, file: Path, change: tuple[int, int, str]) -> Iterator[None]:
        source, stat, self.number = file.read_bytes(), file.stat(), self.number + 1
        try:
            file.write_bytes(source[: change[0]] + change[2].encode() + source[change[1] :])
            os.utime(file, (stat.st_atime, stat.st_mtime + self.number))  # so that no compiled file is taken for it
            yield
        finally:
            file.write_bytes(source)
            os.utime(file, (stat.st_atime, stat.st_mtime))

    def ask(self, kept: str, *tests: str) -> str:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = self.server or subprocess.Popen(self.command, cwd=self.tree, env=self.environment, **pipes)
        self.temporary.mkdir(exist_ok=True)
        print(json.dumps([kept, *tests]), file=self.server.stdin, flush=True)
        said = self.server.stdout.readline().strip()  # type: ignore[union-attr]
        shutil.rmtree(self.temporary, ignore_errors=True)
        return "0" if said == "5" else said  # all of its tests are slow ones

    def judge(self, area: str, function: str, file: Path, change: tuple[int, int, str]) -> str | None:
        """The test file that notices the change; None where all pass."""
        with self.changed(file, change):
            for test, names in self.chosen(area, file, function):
                if (said := self.ask("", *names)) != "0":
                    return f"{test} ({said})"
        return None


def _plain(module: str, name: str) -> str:
    return f"{module} {'.'.join(part.lstrip('_') for part in name.split('.') if part != '<locals>')}"


def drawn(sides: list[Side], count: int, seed: str) -> list[tuple[str, Fault]]:
    """In turn of every area, as long as it has some."""
    rng, found, left = random.Random(seed), [], {}
    for area in AREAS:
        left[area] = sorted(sides[0].faults[area].keys() & sides[1].faults[area].keys())
        print(f"{area}: {len(left[area])} faults that both sides can have")
        rng.shuffle(left[area])
    while len(found) < count and any(left.values()):
        found += [(area, of.pop()) for area, of in left.items() if of]
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="COMMIT")
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", default="segsweep")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args, (args.keep or Path(scratch)).resolve())
    common.write(args.out, "mutants", result)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    here = git("stash", "create") or "HEAD"  # the tree as it lies
    for name, commit in {"before": args.commit, "after": here}.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        git("archive", "--output", str(folder / f"{name}.tar"), commit)
        shutil.unpack_archive(folder / f"{name}.tar", folder / name, filter="data")
    sides = [Side("after", folder / "after", sys.executable), Side("before", folder / "before", args.python)]
    verdicts = folder / "verdicts.jsonl"
    known = [json.loads(line) for line in verdicts.read_text().splitlines()] if verdicts.exists() else []
    judged = {(v["side"], v["area"], *v["fault"]): v for v in known}
    chosen = drawn(sides, args.mutants, args.seed)
    for side in sides:
        side.watch(folder)
        for number, (area, fault) in enumerate(chosen, 1):
            found = judged.get((side.name, area, *fault))
            if not found or not found["by"] and found["tests"] != side.digest(area):
                by = side.judge(area, fault[0], *side.faults[area][fault])
                judged[(side.name, area, *fault)] = _note(verdicts, side, area, fault, by)
                print(
                    f"{side.name} {number}/{len(chosen)} {area}: {fault[0]}: {fault[2]}: {by or 'SURVIVES'}", flush=True
                )
    areas: dict[str, Any] = {}
    for area in AREAS:
        of = [fault for each, fault in chosen if each == area]
        lives = {s.name: [f for f in of if not judged[(s.name, area, *f)]["by"]] for s in sides}
        areas[area] = {"drawn": len(of), "survivors": lives}
        areas[area] |= {f"killed_{name}": len(of) - len(those) for name, those in lives.items()}
    about = {"machine": common.machine(torch.device("cpu")), "data": "phantom", "seed": args.seed}
    return about | {"before": git("rev-parse", args.commit), "areas": areas}


def _note(file: Path, side: Side, area: str, fault: Fault, by: str | None) -> dict[str, Any]:
    verdict = {"side": side.name, "area": area, "fault": fault, "by": by, "tests": side.digest(area)}
    with file.open("a") as lines:
        lines.write(json.dumps(verdict) + "\n")
    return verdict


if __name__ == "__main__":
    main()
