"""Records that stand for today's code: an edit that changes no number need not train anew.

`accepted.json` in a run's folder says who accepted it when, why, and which files had changed; it is what counts. A file
`accepted/SIGNATURE.json` beside `runs/` only leads from the signature that the code of that day makes to the run.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segsweep.core import artifacts, locks
from segsweep.core.checkpoints import Checkpoints
from segsweep.core.errors import SegsweepError, printable

log = logging.getLogger(__name__)

FILE = artifacts.ACCEPTED
LIST = "accepted"


def entries(folder: Path) -> list[dict[str, Any]]:
    """How often a run was accepted, the latest last: signature, group, trajectory and code (what they are since), by,
    when, reason, files (module -> old and new hash, None where it was or is not there), places, versions, commit."""
    found = (artifacts.read_json(folder / FILE) or {}).get(LIST)
    return [entry for entry in found if _whole(entry)] if isinstance(found, list) else []


def _whole(entry: Any) -> bool:
    """Of a record that may be damaged."""
    files = entry.get("files") if isinstance(entry, dict) else None
    named = isinstance(files, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in files.values())
    return named and all(isinstance(entry.get(key), str) for key in ("signature", "group", "trajectory", "code"))


def told(entry: Mapping[str, Any]) -> str:
    """By whom, when and why, in a line."""
    return printable(f"by {entry.get('by')} on {str(entry.get('when'))[:10]}: {entry.get('reason')}")


def standing(runs: Path, signature: str) -> dict[str, Any] | None:
    """The entry by which a finished record answers for `signature`, with that record's `ids`; None where there is none,
    or where a run of this signature has a result of its own. `runs`: `paths.runs`."""
    pointer = artifacts.read_json(_pointer(runs, signature))
    if not pointer or artifacts.result(runs / "runs" / signature):
        return None
    folder = runs / "runs" / Path(str(pointer.get("run"))).name
    entry = next((e for e in entries(folder) if e["signature"] == signature), None)
    if not entry or not artifacts.result(folder) or not (ids := _ids(folder)):
        return None
    return entry | {"ids": ids}


def _ids(folder: Path) -> dict[str, str]:
    """What a run is known by; nothing where its run.json is lost or damaged, and then it answers for no other."""
    info = artifacts.read_json(folder / "run.json") or {}
    found = {key: info.get(key) for key in ("signature", "group", "trajectory")}
    return {key: value for key, value in found.items() if isinstance(value, str)} if all(found.values()) else {}


def lapsed(checkpoints: Checkpoints) -> int | None:
    """The first epoch of a trajectory that was lent by an acceptance which does not stand any more; None: none was."""
    lent = [int(epoch) for epoch in artifacts.read_json(checkpoints.folder / FILE) or {} if epoch.isdecimal()]
    runs, until = checkpoints.folder.parent.parent, 0
    for pointer in (runs / LIST).glob("*.json") if lent else ():
        folder = runs / "runs" / Path(str((artifacts.read_json(pointer) or {}).get("run"))).name
        alike = (pointer.stem, checkpoints.folder.name)
        if any((entry["signature"], entry["trajectory"]) == alike for entry in entries(folder)):
            until = max(until, int((artifacts.result(folder) or {}).get("epochs") or 0))
    return min((epoch for epoch in lent if epoch > until), default=None)


def take_back(checkpoints: Checkpoints) -> None:
    """Remove the states that were lent by an acceptance which does not stand any more, with those that were trained on
    from them. For the holder of the folder's lock."""
    if (first := lapsed(checkpoints)) is None:
        return
    file = checkpoints.folder / FILE
    log.warning("%s: an acceptance was taken back, and with it epochs %d and on", checkpoints.folder, first)
    checkpoints.clear(first)
    known = (artifacts.read_json(file) or {}).items()
    kept = {epoch: run for epoch, run in known if epoch.isdecimal() and int(epoch) < first}
    artifacts.write_json(file, kept, durable=True)
    artifacts.flush(checkpoints.folder)


def begun(checkpoints: Checkpoints, done: int) -> dict[str, Any] | None:
    """What a run that took up `done` epochs has from an accepted one: run, its signature, and epochs, how many.

    For the holder of the folder's lock. Of states that could not be taken up the mark goes: what comes in their place
    is the run's own."""
    file = checkpoints.folder / FILE
    known = {epoch: run for epoch, run in (artifacts.read_json(file) or {}).items() if epoch.isdecimal()}
    taken = {epoch: run for epoch, run in known.items() if int(epoch) <= done}
    if taken != known and not any(epoch > done for epoch in checkpoints.epochs()):
        artifacts.write_json(file, taken, durable=True)
        artifacts.flush(checkpoints.folder)
    last = max(map(int, taken), default=None)
    return None if last is None else {"run": taken[str(last)], "epochs": last}


def accept(folder: Path, entry: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Let the finished run in `folder` stand for what `entry` says; the entry that counts, which is an earlier one if
    there is one for the same code, and a sentence on the epochs. Raises SegsweepError.

    Nothing of the record is changed: a file is added to it, last. Its checkpoints are linked into the trajectory of
    today, unless that has some of its own, so that a longer run goes on from them."""
    runs, signature = folder.parent.parent, entry["signature"]
    with locks.lock(folder):
        if not (result := artifacts.result(folder)):
            raise SegsweepError(f"{folder.name}: not finished; a record that stands for others has a result")
        if not (ids := _ids(folder)):
            raise SegsweepError(f"{folder / 'run.json'} is missing or damaged; a record that stands for others has one")
        known = entries(folder)
        artifacts.write_json(_pointer(runs, signature), {"run": folder.name, "created": artifacts.now()}, durable=True)
        if earlier := next((e for e in known if e["signature"] == signature), None):
            entry = earlier
        else:
            artifacts.write_json(folder / FILE, {LIST: [*known, entry]}, durable=True)
        for place in (folder, runs / LIST, runs):
            artifacts.flush(place)
    old, new = (runs / "trajectories" / about["trajectory"] for about in (ids, entry))
    return entry, _link(Checkpoints(old), Checkpoints(new), folder.name, int(result["epochs"]))


def _pointer(runs: Path, signature: str) -> Path:
    return runs / LIST / f"{signature}.json"


def _link(old: Checkpoints, new: Checkpoints, run: str, epochs: int) -> str:
    """Make the states until `epochs` those of another trajectory, too: they are never changed in place."""
    there = [epoch for epoch in old.epochs() if epoch <= epochs]
    if not there:
        return "its checkpoints are not here, so a longer run begins anew"
    if locks.held(new.folder):
        return "a job trains with today's code just now, so a longer run goes on from its epochs"
    with locks.lock(new.folder):
        known = artifacts.read_json(new.folder / FILE) or {}
        if set(map(str, new.epochs())) - known.keys():
            return "a longer run goes on from the epochs that today's code has already"
        # the mark first: a state without it would pass for today's own
        artifacts.write_json(new.folder / FILE, {str(epoch): run for epoch in there} | known, durable=True)
        artifacts.flush(new.folder)
        for file in (file for epoch in there for file in (old.best(epoch), old.state(epoch))):
            if file.exists() and not (new.folder / file.name).exists():
                artifacts.link(file, new.folder / file.name)
        new.end(max(there))
    return f"a longer run goes on from epoch {max(there)}"
