"""A file system that loses power: what a program asks of it is recorded, and what is left after any of it found."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

Tree = dict[str, bytes | None]
"""Path -> what the file holds; None: a folder."""


class Medium:
    """Records flushes, renames, links, removals and new folders below `root`, with what a file held when it was
    flushed. `events` may have marks of the test's own, which change nothing."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.events = root, []
        self.before: Tree = {
            str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")
        }
        for name in ("fsync", "replace", "rename", "unlink", "link", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name, real):
        def call(*given, **more):
            if name == "fsync":
                paths = [os.readlink(f"/proc/self/fd/{given[0]}")]
            else:
                folder = more.get("dir_fd")
                base = Path(os.readlink(f"/proc/self/fd/{folder}")) if folder is not None else Path()
                paths = [str((base / os.fspath(given[at])).absolute()) for at in range(1 + (name in TWO))]
            done = real(*given, **more)
            inside = [os.path.relpath(path, self.root) for path in paths]
            if not inside[-1].startswith(".."):
                held = None
                if name == "fsync" and not os.path.isdir(paths[0]):
                    held = Path(paths[0]).read_bytes()
                self.events.append((name, *inside, held) if name == "fsync" else (name, *inside))
            return done

        return call

    def left(self, cut: int) -> Iterator[Tree]:
        """What may be on the medium when the power goes after `cut` events: of the names that were given since their
        folder was flushed none, all, all but one or one alone; what was never flushed of a file is gone."""
        live = {path: Inode(content) for path, content in self.before.items()}
        durable = dict(live)
        pending: list[tuple[str, dict[str, Inode | None]]] = []  # folder, name -> inode or None: gone
        for kind, *given in self.events[:cut]:
            if kind == "fsync":
                path, content = given
                if content is not None:
                    if path not in live:
                        live[path] = Inode(b"")
                        pending.append((os.path.dirname(path), {path: live[path]}))
                    live[path].content = content
                else:
                    folder = "" if path == "." else path
                    for place, change in pending:
                        if place == folder:
                            _apply(durable, change)
                    applied = [change for place, change in pending if place == folder]
                    # a folder that is gone takes along what was pending in it: its name may be another's by now
                    gone = {folder, *(path for each in applied if [*each.values()] == [None] for path in each)}
                    pending = [each for each in pending if each[0] not in gone]
            elif kind in TWO:
                source, target = given
                inode = live[source] = live.get(source) or Inode(b"")
                below = {path for path in live if path.startswith(f"{source}/")}
                change: dict[str, Inode | None] = {target: inode}
                change |= {target + path.removeprefix(source): live[path] for path in below}
                if kind != "link":
                    change |= dict.fromkeys((source, *below))
                _apply(live, change)
                pending.append((os.path.dirname(target), change))
            elif kind in ("unlink", "rmdir", "mkdir"):
                change = {given[0]: Inode(None) if kind == "mkdir" else None}
                _apply(live, change)
                pending.append((os.path.dirname(given[0]), change))
        count = len(pending)
        chosen = [
            set(),
            set(range(count)),
            *({n} for n in range(count)),
            *(set(range(count)) - {n} for n in range(count)),
        ]
        for some in {frozenset(each) for each in chosen}:
            names = dict(durable)
            for number in sorted(some):
                _apply(names, pending[number][1])
            yield {
                path: inode.content
                for path, inode in names.items()
                if all(str(up) in names for up in Path(path).parents if str(up) != ".")
            }


TWO = ("replace", "rename", "link")


class Inode:
    def __init__(self, content: bytes | None):
        self.content = content


def _apply(names: dict[str, Inode], change: dict[str, Inode | None]) -> None:
    for path, inode in change.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def write(tree: Tree, root: Path) -> None:
    root.mkdir(parents=True)
    for path in sorted(tree):
        with contextlib.suppress(FileExistsError):
            (root / path).mkdir() if tree[path] is None else (root / path).write_bytes(tree[path])
