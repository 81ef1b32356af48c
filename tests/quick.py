"""`make quick`: in a minute, the tests nearest to what was changed. Run as a program it prints their files.

A test file is near if it was changed, names a changed file, or imports a changed module, directly or by way of other
modules, in functions and commands too. Where there is none, all of `segsweep.core` stands for what was changed."""

import re
import subprocess
import sys
from pathlib import Path

from test_imports import imports

ROOT = Path(__file__).resolve().parents[1]
MOST = 20  # files: to collect them all takes longer than to run most


def dotted(path: str) -> str:
    """segsweep/core/errors.py -> segsweep.core.errors, tests/search/toy_search.py -> toy_search, as it is imported."""
    stem = path.removesuffix(".py").removesuffix("/__init__")
    return stem.rpartition("/")[2] if stem.startswith("tests/") else stem.replace("/", ".")


def graph(files: dict[str, str]) -> dict[str, set[str]]:
    """Path -> the paths of what it imports or names, of `files`: path -> source."""
    paths, found = {dotted(path): path for path in files}, {}
    for path, source in files.items():
        names = imports(source) | {*re.findall(r"(?:segsweep|benchmarks)(?:\.\w+)+", source)}
        names |= {"segsweep.__main__"} if '"segsweep"' in source else set()  # the command
        ups = {name: len(name) - len(name.lstrip(".")) for name in names}
        whole = {".".join([*path.split("/")[:-up], name.lstrip(".")]) if up else name for name, up in ups.items()}
        parts = {name.rsplit(".", n)[0] for name in whole for n in range(name.count(".") + 1)}  # its packages, too
        found[path] = {paths[part] for part in parts | {f"{part}.__main__" for part in names} if part in paths}
    return found


def nearest(changed: set[str], files: dict[str, str]) -> list[str]:
    """Test files of `files` that what was `changed` can break, the nearest first; called like it before others."""
    changed = changed or {path for path in files if path.startswith("segsweep/core/")}
    others = [
        text for path in map(Path, changed - files.keys()) for text in (path.name, f"{path.parent.name}={path.stem}")
    ]
    near = (changed & files.keys()) | {p for p, source in files.items() if any(text in source for text in others)}
    alike, imported, found = {Path(path).stem for path in changed}, graph(files), []
    while near:
        found += sorted(near, key=lambda path: (Path(path).stem.removeprefix("test_") not in alike, path))
        near = {path for path in imported.keys() - set(found) if imported[path] & near}
    return [path for path in found if Path(path).name.startswith("test_")]


def files() -> dict[str, str]:
    folders = [ROOT / name for name in ("segsweep", "benchmarks", "tests")]
    return {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for at in folders for f in at.rglob("*.py")}


def changed() -> set[str]:
    """Since the branch left main; what is not committed, too."""

    def git(*arguments: str) -> list[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()

    base = [*git("merge-base", "HEAD", "origin/main"), *git("merge-base", "HEAD", "main"), "HEAD"][0]
    return {*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")}


if __name__ == "__main__":
    found = nearest(changed(), files()) or nearest(set(), files())
    print(f"the nearest {min(len(found), MOST)} of {len(found)} test files; `make test` runs all", file=sys.stderr)
    print(*found[:MOST])
