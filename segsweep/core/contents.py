"""What files and folders hold, as a digest: of the data that somebody's own training code names."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segsweep.core.errors import DataError


def digest(found: Any, beside: Path) -> str | None:
    """Of files and folders, by what is in them and not by where they lie; of a text, which is a digest itself unless a
    file is called so, here or in the folder `beside`, the program's."""
    if found is None:
        return None
    if isinstance(found, str) and found and not re.search(r"[./\\]", found):
        there = next((path for path in (Path(found), beside / found) if path.exists()), None)
        if there is None:
            return found
        found = there
    if isinstance(found, str | os.PathLike):
        found = [found]
    if not isinstance(found, list | tuple) or not all(
        isinstance(each, str | os.PathLike) and str(each) for each in found
    ):
        raise DataError(f"data={found!r}: paths are needed, or a digest as text")
    if not found:
        raise DataError("data=[]: no path; of data that are not to be watched say data=None")
    whole = []
    for each in map(Path, found):
        try:
            files = list(_files(each)) if each.is_dir() else [each]
            if other := [file for file in files if file.exists() and not file.is_file()]:
                raise DataError(f"data={other[0]}: no regular file, of which nothing can be watched")
            contents = [_content(str(f.absolute()), (about := f.stat()).st_size, about.st_mtime_ns) for f in files]
        except OSError as error:
            raise DataError(f"data={error.filename or each}: {error.strerror}") from None
        if not files:
            raise DataError(f"data={each}: a folder without files, of which nothing can be watched")
        names = [str(file.relative_to(each)) if file != each else "" for file in files]
        whole.append(list(zip(names, contents, strict=True)))
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]


def _files(folder: Path, inside: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All below a folder, behind links too; not behind one that leads back to where it lies in.

    inside: the folders around it, the outermost first."""
    real = folder.resolve()
    if inside and (real in inside or inside[0].is_relative_to(real)):
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry, (*inside, real))
        elif entry.is_file():
            yield entry


@functools.cache
def _content(file: str, size: int, changed: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
