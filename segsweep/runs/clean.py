"""What can go of the folder of all runs, for whom the disk is full: found, and removed unless somebody works on it.

Nothing goes that a finished run answers by or is used by: its folder stays whole, and its checkpoints stay where its
weights are not.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from segsweep.core import accepted, artifacts, checkpoints, locks
from segsweep.core.artifacts import ANEW, NEXT, WEIGHTS
from segsweep.core.errors import printable

KINDS = {
    "checkpoints": "of runs that have finished and have their weights",
    "failed": "runs that failed, with their checkpoints",
    "unfinished": "what runs that were interrupted or pruned would go on from, and the folders of the former",
    "decoded": "data sets, which the next run that needs one decodes again",
}
MADE = re.compile("[0-9a-f]{16}")
"""A folder's name that is a digest (`signature.digest`)."""
ENDS = {"failed": "failure.json", "pruned": "pruned.json"}


CHANGED = "changed meanwhile"
FINE = (locks.IN_USE, CHANGED)
"""Why something stays that is no failure."""


@dataclass
class Item:
    """Something that can go. place: what it is called by. files: of it, folders included. alone: for the time of a
    block nobody else works on it; gives "", or why not. still: its kind as it is now, None where it may not go."""

    kind: str
    place: Path
    files: list[Path]
    alone: Callable[[], AbstractContextManager[str]]
    still: Callable[[], str | None]
    content: Counter[tuple[int, int, int, int]] = field(init=False)
    """Of each content its device, inode, bytes and number of names -> how many of these names are here."""

    def __post_init__(self) -> None:
        self.content = _content(self.files)

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size, _ in self.content)

    def remove(self) -> str:
        """Why it is left alone, "" where it is gone. Raises OSError.

        What it was when it was found may have been trained further since: its kind is asked once nobody works on it."""
        with self.alone() as taken:
            if taken or self.still() != self.kind:
                return taken or CHANGED
            for path in self.files:
                artifacts.remove(path)
        return ""


def _content(paths: Sequence[Path]) -> Counter[tuple[int, int, int, int]]:
    found: Counter[tuple[int, int, int, int]] = Counter()
    for path in paths:
        walked = () if path.is_symlink() else os.walk(path)
        inner = (Path(folder, name) for folder, _, names in walked for name in names)
        for file in chain([path], inner):
            with suppress(FileNotFoundError):  # a running sweep's, which has another name by now
                about = file.lstat()
                if stat.S_ISREG(about.st_mode):
                    found[about.st_dev, about.st_ino, about.st_size, about.st_nlink] += 1
    return found


def gain(found: Iterable[Item]) -> int:
    """Bytes that the disk has more of without them: what has names elsewhere, too, stays."""
    names = sum((item.content for item in found), Counter[tuple[int, int, int, int]]())
    return sum(content[2] for content, here in names.items() if here >= content[3])


def items(runs: Path) -> list[Item]:
    """Below `paths.runs`, by kind."""
    found: list[Item] = []
    known = _Runs(runs)
    # states before the runs that they are judged by
    for folder in _folders(runs / "trajectories", "*.pt", "*.damaged", "end_*", ANEW, accepted.FILE):
        if kind := known.states(folder):
            alone = partial(_alone, folder, *known.of(folder.name))
            found.append(Item(kind, folder, _all(folder), alone, partial(known.states, folder)))
    for folder in known.folders():
        for kind, place, inner in ((_kind(folder), folder, None), (_next(folder), folder / NEXT, [folder / NEXT])):
            if kind:
                still = partial(_next if inner else _kind, folder)
                found.append(Item(kind, place, inner or _all(folder), partial(_alone, folder), still))
    order = list(KINDS)
    return sorted((item for item in found if item.files), key=lambda item: order.index(item.kind))


def _folders(place: Path, *marks: str) -> list[Path]:
    """Those that were made here, for a folder `runs` is many a program's: no links, named by a digest, and with a file
    that matches one of `marks`."""
    found = (path for path in place.glob("*") if MADE.fullmatch(path.name) and path.is_dir() and not path.is_symlink())
    return sorted(path for path in found if any(next(path.glob(mark), None) for mark in marks))


class _Runs:
    """Which runs there are and which states are theirs, as it is whenever it is asked; what has not changed is not read
    again."""

    def __init__(self, runs: Path):
        self.runs = runs
        self._read: dict[Path, tuple[Any, set[str]]] = {}

    def folders(self) -> list[Path]:
        return _folders(self.runs / "runs", *artifacts.ENGINES)

    def of(self, trajectory: str) -> list[Path]:
        return [folder for folder in self.folders() if trajectory in self._trajectories(folder)]

    def _trajectories(self, folder: Path) -> set[str]:
        """Where a record was accepted its states are those of another trajectory, too."""
        about = [artifacts.state_of(folder / name) for name in ("run.json", accepted.FILE)]
        if self._read.get(folder, (None,))[0] != about:
            names = {(artifacts.read_json(folder / "run.json") or {}).get("trajectory", "")}
            self._read[folder] = about, names | {entry["trajectory"] for entry in accepted.entries(folder)}
        return self._read[folder][1]

    def states(self, folder: Path) -> str | None:
        """The kind of a trajectory's."""
        ended = {_end(run) for run in self.of(folder.name)} or {"unfinished"}
        if "bare" in ended:
            return None
        return "unfinished" if ended & {"unfinished", "pruned"} else "failed" if "failed" in ended else "checkpoints"


def _kind(folder: Path) -> str | None:
    """Of a run's folder; it stays where a whole run waits in it to take its place (`record.take_place`)."""
    end = _end(folder)
    return end if end in ("failed", "unfinished") and not artifacts.result(folder / NEXT) else None


def _next(folder: Path) -> str | None:
    """Of what a run in `folder` is trained anew in, where the folder itself stays. Once it is whole its files are on
    their way there."""
    going = (folder / NEXT).is_dir() and not _kind(folder) and not artifacts.result(folder / NEXT)
    return "unfinished" if going else None


def _end(folder: Path) -> str:
    """`bare`: finished, and its weights are damaged or not there, so that it may be tested from its checkpoints."""
    if artifacts.result(folder):
        try:
            for name in WEIGHTS:
                if name == WEIGHTS[0] or (folder / name).exists():
                    checkpoints.check(folder / name)
        except (OSError, ValueError):
            return "bare"
        return "finished"
    return next((end for end in ("failed", "pruned") if (folder / ENDS[end]).exists()), "unfinished")


def _all(folder: Path) -> list[Path]:
    """But for its lock: who waits for that is to find the same."""
    return sorted(path for path in folder.glob("*") if path.name not in ("lock", "mlflow.lock"))


@contextmanager
def _alone(*folders: Path) -> Iterator[str]:
    with ExitStack() as stack:
        taken = (stack.enter_context(locks.free(folder / "lock")) for folder in folders)
        yield next(filter(None, taken), "")


def table(found: Sequence[Item], left: Mapping[Path, str] = MappingProxyType({})) -> str:
    """One line each, and what each kind comes to. `left`: what stays -> why."""
    told = {place: f"{why if why in FINE else 'not removed'}: left" for place, why in left.items()}
    rows = [(item.kind, printable(item.place), shown(item.bytes), told.get(item.place, "")) for item in found]
    if not rows:
        return "Nothing can go."
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    going = {kind: [item for item in found if item.kind == kind and item.place not in left] for kind in KINDS}
    totals = [f"{kind}: {len(items)}, {shown(gain(items))}" for kind, items in going.items() if items]
    return "\n".join([*lines, "", *totals, f"in all: {shown(gain(chain(*going.values())))}"])


def shown(number: int) -> str:
    """12 B, 3.4 MB."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def remove(found: Sequence[Item]) -> Iterator[tuple[Item, str]]:
    """Of each that stays, why."""
    for item in found:
        try:
            if why := item.remove():
                yield item, why
        except FileNotFoundError:
            yield item, CHANGED
        except OSError as error:
            yield item, f"{error.strerror or error}: {os.fspath(error.filename or item.place)}"
