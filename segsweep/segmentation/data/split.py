"""Which slices train, validate and test: by patient, by slice, in folds, or as a file says.

Patients are put in order by a hash of seed and name: the same on every machine and in every version of a library, and
one who joins the data leaves the others in their order.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.core.errors import DataError, nearest
from segsweep.segmentation.data import source

PARTS = ("train", "val", "test")
Patients = Mapping[str, list[str]]
"""patient -> names of its slices, as in `source.Manifest.patients`: the order of the slices in `cache.Volumes`."""


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of a data set's slices; `val` may be empty.

    train, val, test: indices of slices, int64, ascending. names: part -> patient -> names of its slices in that part.
    leaks: whether a patient is in two parts, so that the test knows its patients from training. digest: hex SHA-256."""

    kind: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    names: dict[str, dict[str, list[str]]]
    leaks: bool
    digest: str

    @property
    def patients(self) -> dict[str, list[str]]:
        """Part -> its patients."""
        return {part: list(names) for part, names in self.names.items()}

    def to_json(self) -> dict[str, Any]:
        """{"kind", "train": {patient: [slices]}, "val", "test", "leaks"}; `FromFile` reads it again."""
        return {"kind": self.kind, **self.names, "leaks": self.leaks}


@dataclass(frozen=True, kw_only=True)
class ByPatient:
    """Patients shuffled by `seed`; shares `test` and `val` of them, rounded, are held out. 0 <= val, 0 < test."""

    val: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        _check_shares(self.val, self.test, self.seed)

    def __call__(self, patients: Patients) -> Split:
        parts = _shares(_shuffled(patients, self.seed), self.val, self.test, "patients")
        return _by_patient("patient", patients, parts)


@dataclass(frozen=True, kw_only=True)
class BySlice:
    """Slices shuffled by `seed`, whoever's they are: common, and leaking, for a test slice's neighbours train."""

    val: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        _check_shares(self.val, self.test, self.seed)

    def __call__(self, patients: Patients) -> Split:
        named = {f"{patient}/{name}": (patient, name) for patient, names in patients.items() for name in names}
        parts = _shares(_shuffled(named, self.seed), self.val, self.test, "slices")
        chosen = {part: {named[key] for key in keys} for part, keys in parts.items()}
        return _split("slice", patients, lambda part, patient, name: (patient, name) in chosen[part])


@dataclass(frozen=True, kw_only=True)
class KFold:
    """Patients shuffled by `seed` and dealt to `folds`; `fold`, from 0, tests; a share `val` of the rest validates."""

    folds: int
    fold: int
    val: float
    seed: int

    def __post_init__(self) -> None:
        source.check_range("split.folds", self.folds, 2, 10_000)
        source.check_range("split.fold", self.fold, 0, self.folds - 1)
        source.check_range("split.val", self.val, 0.0, 0.95)
        source.check_range("split.seed", self.seed, 0, 2**63)

    def __call__(self, patients: Patients) -> Split:
        if len(patients) < self.folds:
            raise DataError(
                f"split.folds={self.folds}: the data has {len(patients)} patients; expected at least one a fold: "
                f"2 to {len(patients)} folds"
            )
        order = _shuffled(patients, self.seed)
        rest = [patient for index, patient in enumerate(order) if index % self.folds != self.fold]
        parts = _shares(rest, self.val, 0.0, "patients") | {"test": order[self.fold :: self.folds]}
        return _by_patient("kfold", patients, parts)


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """JSON with lists of patients: {"train": [...], "val": [...], "test": [...]}; who is in none is left out.

    The `split.json` of a run by patient is such a file."""

    file: str

    def __call__(self, patients: Patients) -> Split:
        where = f"split.file={self.file}"
        try:
            content = json.loads(Path(str(self.file)).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        form = 'expected {"train": [patients], "val": [patients], "test": [patients]}'
        if not isinstance(content, dict):
            raise DataError(f"{where}: {form}")
        content = {key: value for key, value in content.items() if key not in ("kind", "leaks")}
        if wrong := sorted(set(content) - set(PARTS)):
            raise DataError(f"{where}: a part {wrong[0]!r}{nearest(wrong[0], PARTS)}; {form}")
        parts = {part: content.get(part, []) for part in PARTS}
        for part, names in parts.items():
            if not isinstance(names, list | dict) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{where}: {part} is not a list of names; {form}")
            for name in names:
                if name not in patients:
                    raise DataError(
                        f"{where}: patient {name} of {part} is not in the data{nearest(name, patients)}; "
                        f"the data has {len(patients)} patients, such as {source.listed(patients)}"
                    )
        return _by_patient("file", patients, {part: list(names) for part, names in parts.items()}, where)


def _check_shares(val: float, test: float, seed: int) -> None:
    source.check_range("split.val", val, 0.0, 0.95)
    source.check_range("split.test", test, 0.0, 0.95)
    source.check_range("split.seed", seed, 0, 2**63)
    if test == 0 or val + test >= 1:
        raise DataError(f"split.test={test}, split.val={val}: expected test above 0, and both together below 1")


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def _shares(names: list[str], val: float, test: float, what: str) -> dict[str, list[str]]:
    """The first for the test, the next for validation, the rest for training; a share above 0 gives at least one."""
    counts = {"test": int(test * len(names) + 0.5), "val": int(val * len(names) + 0.5)}
    for part, share in (("test", test), ("val", val)):
        if share and not counts[part]:
            raise DataError(
                f"split.{part}={share:g}: of {len(names)} {what} that is none; expected at least {0.5 / len(names):.3g}"
                + (", or 0 for no validation" if part == "val" else "")
            )
    held = counts["test"] + counts["val"]
    return {"train": names[held:], "val": names[counts["test"] : held], "test": names[: counts["test"]]}


def _by_patient(kind: str, patients: Patients, parts: Mapping[str, list[str]], where: str = "split") -> Split:
    of: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if name in of:
                raise DataError(f"{where}: patient {name} is in {of[name]} and again in {part}; expected once")
            of[name] = part
    return _split(kind, patients, lambda part, patient, name: of.get(patient) == part)


def _split(kind: str, patients: Patients, chosen: Callable[[str, str, str], bool]) -> Split:
    slices = [(patient, name) for patient, names in patients.items() for name in names]
    indices = {part: [i for i, of in enumerate(slices) if chosen(part, *of)] for part in PARTS}
    for part in ("train", "test"):
        if not indices[part]:
            raise DataError(
                f"split: the part {part} is empty ({len(patients)} patients, {len(slices)} slices in the data); "
                f"expected at least one {'slice' if kind == 'slice' else 'patient'} in train and in test"
            )
    names: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for part in PARTS:
        for i in indices[part]:
            names[part].setdefault(slices[i][0], []).append(slices[i][1])
    total = sum(len(names[part]) for part in PARTS)
    return Split(
        kind=kind,
        train=np.array(indices["train"], dtype=np.int64),
        val=np.array(indices["val"], dtype=np.int64),
        test=np.array(indices["test"], dtype=np.int64),
        names=names,
        leaks=total > len(set().union(*names.values())),
        digest=hashlib.sha256(json.dumps(names).encode()).hexdigest(),
    )
