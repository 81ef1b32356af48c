"""Files of weights and states: what a run is continued from, and what is predicted with."""

import logging
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from segsweep.core import artifacts

log = logging.getLogger(__name__)

HEADER, BLOCK = 30, 2**20
"""Bytes before the name of a part of a zip file, and at a time of what it holds."""


def save(value: Any, path: Path, durable: artifacts.Together | bool = True) -> None:
    """torch.save, durable. Raises OSError as any other write does, where torch's own writing says RuntimeError."""
    import torch

    with artifacts.atomic(path, durable) as partial, partial.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            below = error.__context__
            while below and not isinstance(below, OSError):
                below = below.__context__
            raise below or error from None


def check(weights: Path) -> None:
    """Raise ValueError where a file of torch.save is cut off, or a part of it fails its checksum, which torch.load does
    not look at; OSError where it cannot be read."""
    try:
        with ZipFile(weights) as file:
            bad = _damaged(file)
    except (BadZipFile, RuntimeError) as error:
        raise ValueError(str(error)) from error
    if bad:
        raise ValueError(f"{bad} fails its checksum")


def _damaged(file: ZipFile) -> str | None:
    """The first bad part, as `testzip` has it, in a fifth of its time: torch.save writes a part for each tensor, and
    compresses none."""
    assert file.fp
    for part in file.infolist():
        file.fp.seek(part.header_offset)
        header = file.fp.read(HEADER)
        plain = part.compress_type == ZIP_STORED and part.compress_size == part.file_size
        if not plain or len(header) < HEADER or header[:4] != b"PK\3\4":
            return part.filename
        flags, named, more = struct.unpack("<6xH18xHH", header)
        if flags != part.flag_bits or file.fp.read(named) != part.orig_filename.encode():
            return part.filename
        file.fp.seek(more, os.SEEK_CUR)
        found, left = 0, part.file_size
        while left and (some := file.fp.read(min(left, BLOCK))):
            found, left = zlib.crc32(some, found), left - len(some)
        if left or found != part.CRC:
            return part.filename
    return None


class Checkpoints:
    """The checkpoints of one trajectory: `state_0003.pt` after epoch 3 and the best weights until then beside it.

    A trajectory is what runs that differ only in `epochs` have in common, so a run of 5 epochs and one of 10 share it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def state(self, epoch: int) -> Path:
        return self.folder / f"state_{epoch:04d}.pt"

    def best(self, epoch: int) -> Path:
        return self.folder / f"best_{epoch:04d}.pt"

    def epochs(self) -> list[int]:
        return sorted(int(path.stem.split("_")[1]) for path in self.folder.glob("state_*.pt"))

    def save(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """`best`: weights to write if this epoch is the best so far, else None to go on with the previous ones.

        Both are on the medium when this returns, so that what came before may go."""
        epoch = state["epoch"]
        with artifacts.Together() as files:  # a state has its name after its best weights
            if best is not None:
                save(best, self.best(epoch), files)
            elif (previous := self._best_before(epoch)) is not None:
                self.best(epoch).unlink(missing_ok=True)
                artifacts.link(previous, self.best(epoch))
            save(state, self.state(epoch), files)
        artifacts.flush(self.folder)

    def _best_before(self, epoch: int) -> Path | None:
        earlier = [path for path in sorted(self.folder.glob("best_*.pt")) if path < self.best(epoch)]
        return earlier[-1] if earlier else None

    def load(self, until: int, scored: Callable[[dict[str, Any]], bool] = lambda state: False) -> dict[str, Any] | None:
        """The latest readable state at or before epoch `until`; a damaged one is reported and the one before used.

        `scored`: whether a state has best weights beside it; one that has lost them is not whole either."""
        import torch

        for epoch in reversed([e for e in self.epochs() if e <= until]):
            try:
                check(self.state(epoch))
                state = torch.load(self.state(epoch), map_location="cpu", weights_only=True)
                if self.best(epoch).exists() or not scored(state):
                    return state
                log.warning("%s is lost, so %s is not whole: using the one before", self.best(epoch), self.state(epoch))
            except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
                reason = (str(error) or type(error).__name__).split(". ")[0]
                log.warning("checkpoint %s is damaged (%s): using the one before", self.state(epoch), reason)
                self.state(epoch).rename(self.state(epoch).with_suffix(".damaged"))
        return None

    def end(self, epoch: int) -> None:
        """Mark an epoch at which a run ended, finished or pruned: its state and best weights stay."""
        self._mark(epoch).touch()

    def _mark(self, epoch: int) -> Path:
        return self.folder / f"end_{epoch:04d}"

    def prune(self, now: int, keep: int, milestones: set[int]) -> None:
        """Of the epochs until `now`, keep the `keep` latest, the milestones and those at which a run ended, finished or
        pruned. Later epochs are a longer run's."""
        for epoch in [e for e in self.epochs() if e <= now][:-keep]:
            if epoch not in milestones and not self._mark(epoch).exists():
                self.state(epoch).unlink(missing_ok=True)
                self.best(epoch).unlink(missing_ok=True)

    def clear(self, first: int = 0) -> None:
        """Forget all that was trained; from an epoch on, if one is given."""
        for pattern in ("*.pt", "*.damaged", "end_*", *([] if first else [artifacts.ACCEPTED])):
            for file in self.folder.glob(pattern):
                number = file.stem.rpartition("_")[2]
                if not (first and number.isdecimal() and int(number) < first):
                    file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what processes that were killed left half-written; for the holder of the folder's lock."""
        artifacts.tidy(self.folder, 0.0)
