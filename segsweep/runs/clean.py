"""What can go of the folder of all runs, for whom the disk is full: found, and removed unless somebody works on it.

Nothing goes that a finished run answers by or is used by: its folder stays whole, and its checkpoints stay where its
weights are not.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from segsweep.core import accepted, artifacts
from segsweep.core.artifacts import NEXT, WEIGHTS

KINDS = {
    "checkpoints": "of runs that have finished and have their weights",
    "failed": "runs that failed, with their checkpoints",
    "unfinished": "what runs that were interrupted or pruned would go on from, and the folders of the former",
    "decoded": "data sets, which the next run that needs one decodes again",
}
ENDS = {"failed": "failure.json", "pruned": "pruned.json"}


@dataclass
class Item:
    """Something that can go. place: what it is called by. files: of it, folders included. alone: gives whether nobody
    else works on it for the time of a block."""

    kind: str
    place: Path
    files: list[Path]
    alone: Callable[[], AbstractContextManager[bool]]
    content: Counter[tuple[int, int, int, int]] = field(init=False)
    """Of each content its device, inode, bytes and number of names -> how many of these names are here."""

    def __post_init__(self) -> None:
        self.content = _content(self.files)

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size, _ in self.content)

    def remove(self) -> bool:
        """False where somebody works on it, and it is left alone. Raises OSError."""
        with self.alone() as free:
            for path in self.files if free else []:
                artifacts.remove(path)
        return free


def _content(paths: Sequence[Path]) -> Counter[tuple[int, int, int, int]]:
    found: Counter[tuple[int, int, int, int]] = Counter()
    for path in paths:
        for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
            if file.is_file() and not file.is_symlink():
                stat = file.stat()
                found[stat.st_dev, stat.st_ino, stat.st_size, stat.st_nlink] += 1
    return found


def gain(found: Iterable[Item]) -> int:
    """Bytes that the disk has more of without them: what has names elsewhere, too, stays."""
    names = sum((item.content for item in found), Counter[tuple[int, int, int, int]]())
    return sum(content[2] for content, here in names.items() if here >= content[3])


def items(runs: Path) -> list[Item]:
    """Below `paths.runs`, by kind."""
    found: list[Item] = []
    ends: dict[str, list[str]] = {}  # trajectory -> how its runs ended
    folders: dict[str, list[Path]] = {}
    for folder in sorted(path for path in (runs / "runs").glob("*") if path.is_dir()):
        end, trajectory = _end(folder), (artifacts.read_json(folder / "run.json") or {}).get("trajectory", "")
        # where a record was accepted its states are those of another trajectory, too
        for name in {trajectory, *(entry["trajectory"] for entry in accepted.entries(folder))}:
            ends.setdefault(name, []).append(end)
            folders.setdefault(name, []).append(folder)
        if end in ("failed", "unfinished"):
            found.append(Item(end, folder, _all(folder), partial(_alone, folder)))
        elif (folder / NEXT).is_dir():
            found.append(Item("unfinished", folder / NEXT, [folder / NEXT], partial(_alone, folder)))
    for folder in sorted(path for path in (runs / "trajectories").glob("*") if path.is_dir()):
        ended = {*ends.get(folder.name, ["unfinished"])}
        kind = "unfinished" if ended & {"unfinished", "pruned"} else "failed" if "failed" in ended else "checkpoints"
        if "bare" not in ended:
            found.append(Item(kind, folder, _all(folder), partial(_alone, folder, *folders.get(folder.name, []))))
    order = list(KINDS)
    return sorted((item for item in found if item.files), key=lambda item: order.index(item.kind))


def _end(folder: Path) -> str:
    """`bare`: finished, and its weights are damaged or not there, so that it may be tested from its checkpoints."""
    if artifacts.result(folder):
        try:
            for name in WEIGHTS:
                if name == WEIGHTS[0] or (folder / name).exists():
                    artifacts.check(folder / name)
        except (OSError, ValueError):
            return "bare"
        return "finished"
    return next((end for end in ("failed", "pruned") if (folder / ENDS[end]).exists()), "unfinished")


def _all(folder: Path) -> list[Path]:
    """But for its lock: who waits for that is to find the same."""
    return sorted(path for path in folder.iterdir() if path.name not in ("lock", "mlflow.lock"))


@contextmanager
def _alone(*folders: Path) -> Iterator[bool]:
    with ExitStack() as stack:
        yield all(stack.enter_context(artifacts.free(folder)) for folder in folders)


def table(found: Sequence[Item], left: Sequence[Path] = ()) -> str:
    """One line each, and what each kind comes to. `left`: those on which somebody works."""
    rows = [(item.kind, str(item.place), shown(item.bytes), "in use: left" * (item.place in left)) for item in found]
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
            if not item.remove():
                yield item, "in use"
        except OSError as error:
            yield item, f"{error.strerror or error}: {os.fspath(error.filename or item.place)}"
