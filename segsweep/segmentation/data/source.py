"""What data sets of image files share: checking values, matching image and mask, and the manifest of the files.

Nothing here imports torch: decoding processes import it, and torch alone would take them longer than their work.
"""

import hashlib
import itertools
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from segsweep.core.errors import DataError, nearest

Size = int | Sequence[int] | None
"""`data.image_size`: a number, to which both sides are brought; a height and a width, into which an image is fitted
without stretching; None: as it is."""
NORMALISE = ("zscore", "percentile", "unit")
Pairs = dict[str, list[tuple[str, ...]]]
"""patient -> (slice, image file, mask file) of each slice, in order, and the file of its region of interest where the
data set has those; patients sorted."""


@dataclass(frozen=True)
class Stack:
    """Slices of a patient that lie on one another. spacing: millimetres between slices, rows and columns, at the
    network's size; None: not known."""

    slices: int
    spacing: tuple[float, float, float] | None


@dataclass(frozen=True)
class Manifest:
    """Which slices there are, in which files, and a digest of all of it.

    digest: hex SHA-256 over the names, sizes and contents of the files; where they lie does not enter.
    patients: patient -> names of its slices in anatomical order; patients sorted.
    files: patient -> (image file, mask file) of each slice, and its region's, in the same order; empty where the data
    set has no files. room: height and width to which images are padded; None: they are of one size. shapes: the heights
    and widths that there are. stacks: patient -> its volumes, in the order of its slices; empty: one each.
    """

    digest: str
    patients: dict[str, list[str]]
    files: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    room: tuple[int, int] | None = None
    shapes: tuple[tuple[int, int], ...] = ()
    stacks: dict[str, list[Stack]] = field(default_factory=dict)


def check_range(key: str, value: Any, low: float, high: float, unit: str = "") -> None:
    """Raise DataError unless `value` is a number with low <= value <= high, and a whole one where `low` is an int."""
    whole = isinstance(low, int)
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not good:
        kind = "a whole number" if whole else "a number"
        raise DataError(f"{key}={value}: expected {kind}{unit and f' of {unit}'} from {low:g} to {high:g}")


def check_common(image_size: Size, normalise: str, model_width: int, patch: Size = None) -> None:
    """Raise DataError if a value that every data set has is not allowed; the key is named."""
    check_size("data.image_size", image_size)
    check_size("data.patch", patch)
    if image_size is not None:
        patch_of(patch, sides(image_size))
    if normalise not in NORMALISE:
        raise DataError(
            f"data.normalise={normalise}: allowed are {', '.join(NORMALISE)}{nearest(normalise, NORMALISE)}"
        )
    check_range("data.model_width", model_width, 1, 1024, "channels")


def check_size(key: str, size: Size) -> None:
    """Raise DataError unless a size is None, a number of pixels, or a height and a width."""
    if isinstance(size, list | tuple) and len(size) != 2:
        raise DataError(f"{key}={list(size)}: expected a number of pixels, or a height and a width, such as [584,565]")
    for side in size if isinstance(size, list | tuple) else [size] * (size is not None):
        check_range(key, side, 8, 4096, "pixels")


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width; a number is both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patch_of(patch: Size, largest: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the crops that a network sees, of images that have the `largest` height and width, or are
    padded to them; None: whole images. Raises DataError where no image is that large."""
    if patch is None:
        return None
    (height, width), most = sides(patch), (largest[0], largest[1])
    if height > most[0] or width > most[1]:
        raise DataError(
            f"data.patch={patch}: larger than any image: they are {most[0]} x {most[1]}, or padded to it, and padding "
            f"allows no more; give {min(most)} or less, or a height and a width, or null for whole images"
        )
    return height, width


def room(size: Size, shapes: Iterable[tuple[int, int]] = ()) -> tuple[int, int] | None:
    """What images of `shapes` are padded to; None where they are all of one size, or are made so."""
    if isinstance(size, list | tuple):
        return size[0], size[1]
    several = set(shapes) if size is None else set()
    return (max(h for h, _ in several), max(w for _, w in several)) if len(several) > 1 else None


def is_pattern(given: Any) -> bool:
    """Whether it names paths below a folder."""
    inside = isinstance(given, str) and not Path(given).is_absolute() and ".." not in Path(given).parts
    return inside and bool(given)


def check_root(root: Any) -> None:
    """Raise DataError if no folder is given at all."""
    if root in (None, ""):
        raise DataError(f"data.root={root}: expected the folder of the data set")


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which slice_10 comes after slice_2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def folder(root: str) -> Path:
    """`data.root` as an existing folder; DataError says what of the path is there."""
    path = Path(str(root)).expanduser()
    if path.is_dir():
        return path.absolute() if path == Path() else path  # paths below `.` do not begin with it
    if path.exists():
        raise DataError(f"data.root={root}: this is a file; expected a folder. Unpack it, and give the folder")
    there, missing = lacking(path)
    hint = nearest(missing, (p.name for p in there.iterdir() if p.is_dir()))
    raise DataError(f"data.root={root}: no such folder: {there} has no {missing}{hint}")


def lacking(path: Path) -> tuple[Path, str]:
    """Of a folder that is not there: the nearest one above it that is, and the first name that this lacks."""
    there = next(p for p in path.absolute().parents if p.is_dir())
    return there, path.absolute().relative_to(there).parts[0]


def unmatched(root: Path, pattern: str) -> str:
    """What of a pattern's folders is there, where nothing below an existing `root` matches it."""
    parts = list(itertools.takewhile(lambda part: not set(part) & {*"*?["}, Path(pattern).parts[:-1]))
    if (folder := root.joinpath(*parts)).is_dir():
        return f"no such files under {folder}"
    there, missing = lacking(folder)
    folders = sorted(p.name for p in there.iterdir() if p.is_dir())
    inside = f"; its folders: {listed(folders, 6)}" if folders else ", and no folder at all"
    return f"no such files: {there} has no folder {missing}{nearest(missing, folders) or inside}"


def named(found: re.Match[str]) -> tuple[str, str, str]:
    """Patient, volume and slice that a path is of, by the groups of `data.patient`: a slice's name has its volume's in
    it, and is the patient's where there is no other."""
    groups = found.groupdict()
    volume = groups.get("volume") or ""
    several = [name for name in (volume, groups.get("slice")) if name]
    return found["patient"], volume, "_".join(several) or found["patient"]


Files = Mapping[tuple[str, str], str]


def pair(images: Files, masks: Files, regions: Files | None = None) -> Pairs:
    """Match files under their keys (patient, slice).

    Raises DataError naming an image without its mask or region, either without its image, or a name that no record
    takes."""
    several = {"mask": masks} | ({} if regions is None else {"roi": regions})
    for file in (path for files in (images, *several.values()) for path in files.values()):
        if file.encode(errors="replace") != os.fsencode(file):
            shown = file.encode("ascii", "backslashreplace").decode()
            raise DataError(f"{shown}: a name that is not UTF-8, in which records are; rename the file")
    both = [(images, files, "image", kind) for kind, files in several.items()]
    both += [(files, images, kind, "image") for kind, files in several.items()]
    for one, other, kind, partner in both:
        if alone := sorted(one.keys() - other.keys(), key=_anatomical):
            raise DataError(
                f"patient {alone[0][0]}: {kind} without its {partner}: {listed(one[key] for key in alone)}. "
                f"Every slice needs both: restore the {partner}, or take the {kind} away"
            )
    pairs: Pairs = {}
    for patient, name in sorted(images, key=_anatomical):
        pairs.setdefault(patient, []).append((name, *(files[patient, name] for files in (images, *several.values()))))
    return pairs


def _anatomical(key: tuple[str, str]) -> tuple[str, list[tuple[int, str]]]:
    return key[0], natural(key[1])


def manifest(
    root: Path,
    pairs: Pairs,
    cache: Path,
    look: Callable[[bytes], tuple[bool, tuple[int, int] | None]],
    read: Callable[[str, bool], Any],
    values: Callable[[str], list[int]] | None = None,
    check: Callable[[list[tuple[str, list[int]]]], None] = lambda masks: None,
) -> Manifest:
    """The manifest of matched files, all under `root`.

    A file's digest is remembered in `cache` with its size and times, so that an unchanged tree is not read again.
    `look` tells of a file's content whether it is doubtful, and the height and width. Raises DataError naming a file
    that is empty or cannot be read, and what `read(file, whether it is a mask)` raises of one that is doubtful: once,
    before any job, and not in each. So it is with `check(masks of a patient, each with what `values(file)` gives)`;
    values are remembered like digests."""
    memory = cache / "digests" / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]}.json"
    known = _recall(memory)
    start = len(os.path.join(root, ""))
    found: dict[str, list[Any]] = {}
    unread = []
    for _, *files in (slice_ for slices in pairs.values() for slice_ in slices):
        for file in files:
            try:
                stat = os.stat(file)
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {error.strerror}") from error
            if stat.st_size == 0:
                raise DataError(f"{file}: the file is empty (0 bytes); copy it again from the original")
            entry = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, "", [0, 0]]
            old = known.get(file[start:])
            if isinstance(old, list) and len(old) in (5, 6) and old[:3] == entry[:3]:
                entry = old
            else:
                unread.append(file)
            found[file[start:]] = entry
    if unread:
        count = min(8, os.cpu_count() or 1)
        shares = [unread[k::count] for k in range(count)]
        doubts = set()
        with (
            warnings.catch_warnings(action="ignore"),
            ThreadPoolExecutor(count) as pool,
        ):  # reading and hashing release the GIL
            for share, digests in zip(shares, pool.map(partial(_digests, look), shares), strict=True):
                for file, (digest, doubt, shape) in zip(share, digests, strict=True):
                    found[file[start:]][3:] = digest, shape
                    doubts |= {file} if doubt else set()
        for _, *files in (slice_ for slices in pairs.values() for slice_ in slices) if doubts else ():
            for place, file in enumerate(files):
                if file in doubts:
                    read(file, place > 0)
        _remember(memory, found)
    if values:
        masks = [file for slices in pairs.values() for _, _, file, *_ in slices]
        unseen = [file for file in masks if not _whole_numbers(found[file[start:]][5:])]
        with (
            warnings.catch_warnings(action="ignore"),  # around those of each thread, which would not go together
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        ):
            for file, several in zip(unseen, pool.map(values, unseen), strict=True):
                found[file[start:]][5:] = [several]
        if unseen:
            _remember(memory, found)
        for slices in pairs.values():
            check([(file, found[file[start:]][5]) for _, _, file, *_ in slices])
    total = hashlib.sha256()
    for patient, slices in pairs.items():
        for name, *files in slices:
            contents = [(found[file[start:]][0], found[file[start:]][3]) for file in files]
            total.update(repr((patient, name, contents)).encode())
    return Manifest(
        digest=total.hexdigest(),
        patients={patient: [name for name, *_ in slices] for patient, slices in pairs.items()},
        files={patient: [tuple(files) for _, *files in slices] for patient, slices in pairs.items()},
        shapes=tuple(sorted({tuple(found[image[start:]][4]) for slices in pairs.values() for _, image, *_ in slices})),
    )


def _digests(
    look: Callable[[bytes], tuple[bool, tuple[int, int] | None]], files: list[str]
) -> list[tuple[str, bool, tuple[int, int]]]:
    """SHA-256 of each file, whether its content is doubtful, and the height and width of the image."""
    found = []
    for file in files:
        try:
            data = Path(file).read_bytes()
            doubtful, shape = look(data)
            found.append((hashlib.sha256(data).hexdigest(), doubtful, shape or (0, 0)))
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return found


def _whole_numbers(kept: list[Any]) -> bool:
    """Whether what is kept of a mask beside its digest are its values."""
    return len(kept) == 1 and isinstance(kept[0], list) and all(type(value) is int for value in kept[0])


def _recall(memory: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, found: dict[str, list[Any]]) -> None:
    """Written beside and renamed. A folder that refuses is no error here: the files are then read again."""
    try:
        memory.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        memory.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, suffix=".part", delete=False) as stream:
            json.dump(found, stream)
        os.replace(stream.name, memory)
    except OSError:
        pass
