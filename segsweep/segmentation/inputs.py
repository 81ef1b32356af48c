"""Images to predict: which files, whose slices, and their pixels as training would have them.

Training refuses a data set with one bad file; here a bad file costs that file alone, and is named.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core.errors import DataError
from segsweep.segmentation.data import images, volume
from segsweep.segmentation.data.labels import ONE, Labels
from segsweep.segmentation.data.lgg import PLACES
from segsweep.segmentation.data.source import Size, is_pattern, listed, named, natural

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".gif", ".bmp")
MASK = "_mask"
ABOVE = 3
"""Folders: a patient's, one of a kind of files in it, and one of a visit between them."""
PREDICTED = "The image is predicted, its patient has no metrics"


@dataclass(frozen=True)
class Slice:
    """file: the image. name: of the slice in its patient. truth: its mask's file, where there is one. region: that of
    its region of interest, of a run that has those. stack: what is the same for slices that lie on one another."""

    file: Path
    patient: str
    name: str
    truth: Path | None
    region: Path | None = None
    stack: str = ""


@dataclass
class Patient:
    """The readable slices of a patient: images (D, H, W, C) uint8 or uint16 at the network's size, or padded to one,
    truth (D, H, W) uint8 of {0, 1}, or of classes and VOID, or None, and the (height, width) of each file. empty: in
    the place of a truth, with what is OUTSIDE or PADDED."""

    name: str
    slices: list[Slice]
    images: np.ndarray
    truth: np.ndarray | None
    sizes: list[tuple[int, int]]
    empty: np.ndarray


def absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def find(given: Sequence[Path], data: Mapping[str, Any]) -> tuple[dict[str, list[Slice]], list[str]]:
    """Patients by name with their slices in anatomical order, and what is wrong with the rest of `given`.

    A file, a patient's folder, a folder of patients' folders or a Kaggle archive. A patient is the files of one folder,
    or what the regular expression `data.patient` of a run's own data set finds; x_mask.tif beside x.tif is its truth,
    as is what the data set's pattern `data.masks` finds, and its region of interest what `data.roi` does."""
    for key in ("images", "masks", "roi"):
        pattern = data.get(key)
        if pattern and not is_pattern(pattern):
            raise DataError(
                f"data.{key}={pattern}, in the run's config.yaml: expected a pattern of paths under a folder"
            )
    if data.get("axis") not in (None, 0, 1, 2):
        raise DataError(f"data.axis={data['axis']}, in the run's config.yaml: allowed are 0, 1, 2")
    found: dict[str, list[Slice]] = {}
    roots: dict[str, Path] = {}
    problems: list[str] = []
    taken: set[Path] = set()
    masks: list[Path] = []
    truths: set[Path] = set()
    axis = data.get("axis") if str(data.get("_target_")).endswith(".Nifti") else None
    suffixes = SUFFIXES if axis is None else volume.SUFFIXES
    none = f"no image in it; expected files {', '.join(suffixes)} that are not masks"
    for path in given:
        if path.is_dir():
            root = next((path / place for place in PLACES[1:] if (path / place).is_dir()), path)
            names = (p for p in sorted(root.rglob("*")) if p.is_file())
            files = [p for p in names if (p.name if axis is not None else p.name.lower()).endswith(suffixes)]
        elif path.exists():
            root, files = path.parent, [path]
        else:
            problems.append(f"{path}: no such file or folder")
            continue
        slices = _slices(root := _root(root, files, data), files, data)
        if not slices and files == [path]:
            masks.append(path)
        elif not slices:
            problems.append(f"{path}: {none}")
        truths |= {item.truth.resolve() for item in slices if item.truth}
        if axis is not None:
            slices = [part for item in slices for part in _cut(item, axis, problems)]
        for item in slices:
            resolved = item.file.resolve()
            if resolved in taken:
                continue
            taken.add(resolved)
            if roots.setdefault(item.patient, root.resolve()) != root.resolve():
                problems.append(
                    f"{item.file}: another patient is called {item.patient} too ({roots[item.patient]}); "
                    "predict them apart, each with its own --out"
                )
                continue
            found.setdefault(item.patient, []).append(item)
    for path in masks:  # `PATIENT/*.png` of a shell gives those of its images, too
        if path.resolve() not in truths:
            problems.append(f"{path}: {none}")
    ordered = {name: sorted(found[name], key=partial(_place, axis is not None)) for name in sorted(found)}
    for name, patient in ordered.items():
        stems = Counter(volume.stem(item.file) for item in patient)
        for item in [item for item in patient if stems[volume.stem(item.file)] > 1]:
            problems.append(f"{item.file}: another image of patient {name} has the same name; rename one of them")
            patient.remove(item)
    return {name: patient for name, patient in ordered.items() if patient}, problems


def _place(cut: bool, item: Slice) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Among the slices of a patient: as training has them, volume by volume where volumes were cut."""
    return natural(item.name.rpartition("_")[0] if cut else ""), natural(item.name)


def _expression(data: Mapping[str, Any]) -> re.Pattern[str] | None:
    """`data.patient`, where it tells patients as those of this program's data sets do."""
    given = data.get("patient")
    try:
        found = re.compile(given) if isinstance(given, str) else None
    except re.error:
        return None
    return found if found and "patient" in found.groupindex else None


def _root(root: Path, files: Sequence[Path], data: Mapping[str, Any]) -> Path:
    """Where the run's patterns and its expression begin for `files`: the folder `root`, which may be a patient's, or
    the nearest of the ABOVE above it below which they find an image: a run may be anybody's, and looks no further."""
    if not (expression := _expression(data)) or not (data.get("images") and data.get("masks")):
        return root
    here = absolute(root)
    for above in (here, *here.parents[:ABOVE]):
        for file in files:
            inside = absolute(file).relative_to(above)
            if _matches(inside.parts, Path(data["images"]).parts) and expression.search(inside.as_posix()):
                return root if above == here else above
    return root


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the pattern of a glob finds a path, both in parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[n:], pattern[1:]) for n in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _slices(root: Path, files: list[Path], data: Mapping[str, Any]) -> list[Slice]:
    """Of `files`, all or one of what lies below `root`, those that are no masks."""
    expression = _expression(data)
    suffixes = SUFFIXES + volume.SUFFIXES

    def all_of(path: Path) -> tuple[str, str, str]:
        inside = absolute(path).relative_to(absolute(root))
        if expression and (match := expression.search(inside.as_posix())) and match["patient"]:
            return named(match)
        folder = inside.parent.as_posix()
        return root.resolve().name if folder == "." else folder, "", volume.stem(path).removesuffix(MASK)

    def key(path: Path) -> tuple[str, str]:
        patient, _, name = all_of(path)
        return patient, name

    def found(pattern: str) -> dict[Path, Path]:
        return {absolute(path): path for path in root.glob(data[pattern])}

    def masked(path: Path) -> bool:
        image = volume.stem(path).removesuffix(MASK)
        return image != volume.stem(path) and any(path.with_name(image + suffix).exists() for suffix in suffixes)

    regions = found("roi") if data.get("roi") else {}
    files = [p for p in files if absolute(p) not in regions]
    masks = {absolute(p): p for p in files if masked(p)}
    truths = {key(p): p for p in masks.values()}
    if data.get("masks") and data.get("images"):
        theirs = found("masks")
        truths |= {key(p): p for p in theirs.values()}
        wanted = {path: p for path, p in found("images").items() if path not in theirs}
        if len(files) > 1:
            masks |= theirs
            files = [p for p in files if absolute(p) in wanted] or files
        elif files and absolute(files[0]) in theirs and key(files[0]) in map(key, wanted.values()):
            masks |= theirs
    for image in files:  # a single image's mask was not given, and lies beside it
        stem = volume.stem(image)
        beside = image.with_name(f"{stem}{MASK}{image.name.removeprefix(stem)}")
        if beside.exists():
            truths.setdefault(key(image), beside)
    areas = {key(p): p for p in regions.values()}
    return [
        Slice(p, *key(p), truth if (truth := truths.get(key(p))) != p else None, areas.get(key(p)), all_of(p)[1])
        for p in files
        if absolute(p) not in masks
    ]


def _cut(item: Slice, axis: int, problems: list[str]) -> list[Slice]:
    """The slices of a volume, named as training names them."""
    truth = item.truth
    try:
        head = volume.header(str(item.file), axis)
    except DataError as error:
        problems.append(str(error))
        return []
    try:
        if truth:
            volume.check_mask(str(truth), str(item.file), head, axis)
    except DataError as error:
        problems.append(f"{error}. {PREDICTED}")
        truth = None
    before = f"{item.name}_" * (item.name != item.patient)
    files = (item.file, *([truth] if truth else []))
    return [
        Slice(one, item.patient, f"{before}{k + 1:03}", more[0] if more else None, stack=str(item.file))
        for k in range(head.shape[0])
        for one, *more in [[Path(volume.address(file, axis, k)) for file in files]]
    ]


def read(
    patients: Mapping[str, list[Slice]],
    size: Size,
    channels: int,
    problems: list[str],
    labels: Labels = ONE,
    room: tuple[int, int] | None = None,
) -> Iterator[Patient]:
    """The patients one by one, decoded as in training; what cannot be read is added to `problems`. room: to
    which images are padded at least, those of a patient to one size."""
    for name, slices in patients.items():
        good: list[tuple[Slice, np.ndarray, np.ndarray | None, tuple[int, int], np.ndarray]] = []
        for item in slices:
            try:
                pixels = images.read(str(item.file))
                if pixels.shape[2] != channels:
                    hint = " (is it a mask?)" if len(np.unique(pixels)) <= 2 else ""
                    raise DataError(
                        f"{item.file}: found {pixels.shape[2]} channel{'s' * (pixels.shape[2] > 1)}; the run was "
                        f"trained on images of {channels}{hint}"
                    )
                region = images.region_of(_region(item, labels), str(item.file), pixels) if labels.roi else None
                blank = np.zeros(pixels.shape[:2] if region is None else region.sum(), np.uint8)
                image, empty = images.sized(pixels, blank, size, labels, region, str(item.region or item.file))
            except DataError as error:
                _add(problems, str(error))
                continue
            truth = None
            if item.truth:
                try:
                    files = (str(item.file), str(item.truth)) + ((str(item.region),) if labels.roi else ())
                    truth = images.decode(name, [files], size, channels, labels)[1][0]
                except DataError as error:
                    _add(problems, f"{error}. {PREDICTED}")
            good.append((item, image, truth, pixels.shape[:2], empty))
        if not good:
            problems.append(f"patient {name}: none of its {len(slices)} slices can be used")
            continue
        if room is not None:
            largest = tuple(max(sides) for sides in zip(room, *(part[1].shape[:2] for part in good), strict=True))
            for n, (item, image, truth, shape, empty) in enumerate(good):
                whole, blanks = images.padded([image], [empty], largest)
                truths = None if truth is None else images.padded([image], [truth], largest)[1][0]
                good[n] = (item, whole[0], truths, shape, blanks[0])
        usual = Counter((image.shape, image.dtype) for _, image, *_ in good).most_common(1)[0][0]
        for item, image, *_ in good:
            if (image.shape, image.dtype) != usual:
                found, expected = (f"{' x '.join(map(str, s))} {t}" for s, t in ((image.shape, image.dtype), usual))
                problems.append(f"{item.file}: found {found}; expected {expected} as most slices of patient {name}")
        good = [part for part in good if (part[1].shape, part[1].dtype) == usual]
        complete = [truth for _, _, truth, *_ in good if truth is not None]
        lacking = [part[0].file.name for part in good if part[0].truth is None]
        if complete and lacking:
            problems.append(f"patient {name}: no metrics, since there is no mask of {listed(lacking)}")
        yield Patient(
            name=name,
            slices=[part[0] for part in good],
            images=np.stack([part[1] for part in good]),
            truth=np.stack(complete) if len(complete) == len(good) else None,
            sizes=[part[3] for part in good],
            empty=np.stack([part[4] for part in good]),
        )


def _add(problems: list[str], text: str) -> None:
    """Once: every slice of a volume would say the same."""
    if text not in problems:
        problems.append(text)


def _region(item: Slice, labels: Labels) -> str:
    if item.region is None:
        raise DataError(
            f"{item.file}: no file of its region of interest, outside which the run counts nothing; give the folder "
            f"under which data.roi={labels.roi} finds it"
        )
    return str(item.region)
