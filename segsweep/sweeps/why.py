"""`python -m segsweep.why RUN [RUN]`, or `python my_script.py --why RUN`: in which values, files and versions two runs
differ, or why one would be trained again today. `--accept RUN --reason TEXT` lets a record stand for today's code.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segsweep.config import hold, trust
from segsweep.config.recorded import arguments, composable
from segsweep.config.schema import engine
from segsweep.config.start import start
from segsweep.core import accepted, artifacts, checkpoints, locks
from segsweep.core.errors import SegsweepError, printable
from segsweep.core.masks import first_line
from segsweep.core.program import pasted, typed
from segsweep.core.session import session
from segsweep.core.signature import digest, leaves, short
from segsweep.core.source import hashes
from segsweep.runs.find import REFERENCE, find
from segsweep.runs.identity import Identity, identity, recorded
from segsweep.task import Data

INDEPENDENT = "differs, but does not decide which run it is"


@dataclass(frozen=True)
class Difference:
    """kind: value, file, data or split. old, new: as text; None where one side has no such thing."""

    kind: str
    name: str
    old: str | None
    new: str | None
    where: str = ""

    def row(self, second: str) -> tuple[str, str, str]:
        """As cells of a table. second: what the other side is called in it."""
        name = f"{self.name} ({self.where})" if self.where else self.name
        if self.old is None or self.new is None:
            side = second if self.old is None else "the first"
            value = "" if self.kind == "file" else f": {self.new if self.old is None else self.old}"
            return self.kind, name, f"only in {side}{value}"
        return self.kind, name, "changed" if self.kind == "file" else f"{self.old} -> {self.new}"


def differences(old: Identity, new: Identity) -> list[Difference]:
    """All in which two runs differ, values first; empty where they are one.

    A setting that rests at its neutral value is no part of a signature; it differs all the same where what is neutral
    was edited with it."""
    first, second = (dict(leaves(side.config)) for side in (old, new))
    found = []
    for name in dict.fromkeys([*first, *second, *(old.rest.keys() & new.rest.keys())]):
        a, b = (
            _text(mine[name]) if name in mine else f"{_text(side.rest[name])} (neutral)" if name in side.rest else None
            for mine, side in ((first, old), (second, new))
        )
        values = [mine[name] if name in mine else side.rest.get(name) for mine, side in ((first, old), (second, new))]
        if (name in first) != (name in second) or len({digest(value, new.exact) for value in values}) > 1:
            found.append(Difference("value", printable(name), a, b))
    found += _files(old, new)
    for kind, what in (("data", "content of the data"), ("split", "who is in which part")):
        if getattr(old, kind) != getattr(new, kind):
            a, b = (printable(getattr(side, kind))[:16] or "not watched" for side in (old, new))
            found.append(Difference(kind, what, a, b))
    return found


def _text(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, default=str))


def _files(old: Identity, new: Identity) -> Iterator[Difference]:
    """Modules whose code differs. In a signature the last part of a module's name counts: `src.net` is `net`."""
    first, second = (
        {name: (part, side.files[name]) for name, part in short(side.files).items()} for side in (old, new)
    )
    same = {name for name in first if old.files[name] == new.files.get(name)}
    gone = {name for name in first if first[name] not in second.values()} - same
    came = {name for name in second if second[name] not in first.values()} - same
    for name in sorted(gone | came):
        where = printable(new.places.get(name) or old.places.get(name) or "")
        a = first[name][1] if name in gone else None
        b = second[name][1] if name in came else None
        yield Difference("file", printable(name), a, b, where)


def today(then: Identity, cfg: DictConfig) -> tuple[Identity, str]:
    """Which run a configuration is with the code and the data of today; and what could not be looked at, "" if nothing.

    then: where the data cannot be looked at, they are taken to be what they were. Raises SegsweepError."""
    from segsweep.config import components
    from segsweep.runs.run import told

    try:
        task = components.task(cfg)
        try:
            data, lacks = task.data(), ""
        except Exception as error:  # somebody's own code; the rest is told all the same
            lacks = f"The data cannot be looked at now ({first_line(told(error))}): taken to be what they were."
            data = Data(digest=then.data, split=then.split, settings=then.settled)
        return identity(cfg, task.spec, data), lacks
    except SegsweepError:
        raise
    except Exception as error:  # as above
        raise SegsweepError(f"its task cannot be made today: {told(error)}") from error


def _words(info: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The program that trained a run, and its arguments; nothing where its command is not recorded as one types it."""
    try:
        words = shlex.split(str(info.get("command") or ""))
    except ValueError:
        words = []
    length = 0 if not words else 1 if words[0] != "python" else 3 if words[1:2] == ["-m"] else 2
    return words[:length], words[length:]


def _refuse_other(reference: str, cfg: DictConfig, info: Mapping[str, Any]) -> None:
    """Raise SegsweepError where another program composes a run than the one that is asked; it names that one."""
    program, _ = _words(info)
    here, asks = ["python", "-m", "segsweep"], f"{printable(pasted(program))} --why"
    if door := session().door:
        other, asks = engine(cfg).task._target_ != door.target, asks if program != here else typed("why")
    else:
        other = bool(program) and program != here
    if other:
        raise SegsweepError(
            f"{reference}: its own program alone can compose it, which trains nothing by {asks} {reference}"
        )


def composition(reference: str, info: Mapping[str, Any], config_dir: str | None) -> DictConfig:
    """What the command of a run composes today. The record may be anybody's, so that its words are no command line of
    the user's: see `composable`. Raises SegsweepError where that cannot be known."""
    from segsweep.sweeps.overrides import composed

    job, door = artifacts.read_json(Path(reference) / "job.json") or {}, session().door
    program, words = _words(info)
    if not program:
        raise SegsweepError("its command is not recorded")
    args = arguments(words)
    if lines := [str(line) for line in job.get("overrides") or ()]:
        args.overrides = lines + [o for o in args.overrides if o.lstrip("+~").startswith("hydra.job.env_set")]
    words = composable(args, config_dir)
    if door:
        door.register(words)
    args = arguments(words)
    trust.refuse(args)
    if trust.foreign(args):
        hold.held(args)
    found, choices = composed(words)
    values = {line for line in args.overrides if line.lstrip("+~").partition("=")[0].partition("@")[0] not in choices}
    plain, _ = composed([word for word in words if word not in values])
    if moved := [key for key, place in hold.places(found).items() if place != hold.places(plain).get(key)]:
        raise SegsweepError(f"{', '.join(moved)}: given by its record, which may not say where a run goes or is kept")
    return found


def compare(first: Path, second: Path) -> None:
    """Print in what two recorded runs differ."""
    (a, _, about), (b, _, other) = recorded(first), recorded(second)
    found = differences(a, b)
    print(f"{first.name} -> {second.name}")
    _show(found, "the second")
    _versions(about.get("versions") or {}, other.get("versions") or {})
    same = "They are the same run: nothing differs that decides a number."
    print(f"They are two runs: {_counted(found)}." if found else same)
    for folder in (first, second):
        _accepted(folder)


def explain(reference: str, folder: Path, config_dir: str | None) -> None:
    """Print why a recorded run would be trained again today, or that it would not."""
    from segsweep.core import environment

    then, cfg, info = recorded(folder)
    _refuse_other(reference, cfg, info)
    print(f"{folder.name} -> the same command today")
    known = True
    try:
        cfg = composition(reference, info, config_dir)
    except SegsweepError as error:
        known, reason = False, first_line(error)
        print(f"Its command cannot be composed now ({reason}): taken is its recorded configuration.")
    now, lacks = today(then, cfg)
    found = differences(then, now)
    _show(found, "today's")
    _unwatched(info)
    print(lacks, end="\n" * bool(lacks))
    _versions(info.get("versions") or {}, environment.program(now.roots, now.home)["versions"])
    _accepted(folder)
    entry = accepted.standing(folder.parent.parent, now.ids["signature"])
    there = folder.parent / now.ids["signature"]
    if then.ids["signature"] == now.ids["signature"]:
        pruned = (folder / "pruned.json").exists()
        end = "it was pruned; pruner=none takes it to its end" if pruned else "not finished, it goes on"
        end = "its record answers" if artifacts.result(folder) else end
        print(f"The same run: {end}.")
    elif entry and entry["ids"]["signature"] == folder.name:
        print("The record answers all the same, as it was accepted.")
    elif artifacts.result(there):
        print(f"Today's run is {there.name}, which is finished too: {_counted(found)}.")
    else:
        files = {difference.kind for difference in found} == {"file"}
        states = checkpoints.Checkpoints(folder.parent.parent / "trajectories" / now.ids["trajectory"])
        tested = files and info["trajectory"] == states.folder.name
        tested &= (artifacts.result(folder) or {}).get("epochs") in states.epochs()
        what = "tested again and not trained" if tested else "trained again"
        again = f"It would be {what}, as {there.name}: {_counted(found)}."
        edit = files and known and not lacks
        edit &= bool(artifacts.result(folder)) and not (there / "pruned.json").exists()
        options = f" --config-dir {pasted([config_dir])}" if config_dir else ""
        hint = f" If the edit changes no number: {_asks()} --accept {reference} --reason TEXT{options}"
        print(again + hint * edit)


def accept(reference: str, folder: Path, by: str, reason: str, config_dir: str | None) -> None:
    """Let the run in `folder` stand for today's code. Raises SegsweepError where it must not."""
    from segsweep.core import environment
    from segsweep.core.signature import fingerprint
    from segsweep.core.source import code

    then, cfg, info = recorded(folder)
    _refuse_other(reference, cfg, info)
    name, runs = folder.name, folder.parent.parent
    if folder.parent.name != "runs" or name != info["signature"]:
        raise SegsweepError(f"{folder}: not among the runs of this machine, so that no command would be led to it")
    if locks.held(folder):
        raise SegsweepError(f"{name}: a job works on it just now; accept it when that has ended")
    if not artifacts.result(folder):
        raise SegsweepError(f"{name}: not finished; only a finished record can stand for others")
    try:
        cfg = composition(reference, info, config_dir)
    except SegsweepError as error:
        raise SegsweepError(
            f"{name}: its command cannot be composed now ({first_line(error)}), and nobody else knows what it "
            "would be today; give the folder of its options with --config-dir, or start this where it was started"
        ) from error
    now, lacks = today(then, cfg)
    if lacks:
        raise SegsweepError(f"{name}: {lacks} A record is accepted for the same data alone")
    found = differences(then, now)
    if not found:
        raise SegsweepError(f"{name}: nothing differs today; its record answers as it is")
    if others := [" ".join(d.row("today's")) for d in found if d.kind != "file"]:
        raise SegsweepError(f"{name}: more than code differs, so it is another run: {'; '.join(others)}")
    there = runs / "runs" / now.ids["signature"]
    if ended := "result.json" if artifacts.result(there) else "pruned.json" * (there / "pruned.json").exists():
        raise SegsweepError(f"{name}: today's code has a run of its own, {there.name} ({ended}), which answers")
    if locks.held(there):
        raise SegsweepError(f"{name}: a job trains {there.name}, which is this run with today's code, just now")
    entry: dict[str, Any] = now.ids | {"by": by, "when": artifacts.now(), "reason": reason, "code": fingerprint(code())}
    entry |= {"files": {d.name: [d.old, d.new] for d in found}, "places": now.places}
    entry |= environment.program(now.roots, now.home)
    counts, epochs = accepted.accept(folder, entry)
    _show(found, "today's")
    word = "Accepted" if counts is entry else "Accepted already"
    print(f"{word}: {name} stands for today's code, {there.name}, {accepted.told(counts)}; {epochs}.")
    _mirror(folder)


def _mirror(folder: Path) -> None:
    """MLflow has a copy of the record: bring it up to date."""
    from segsweep.tracking.store import STATE, vouched

    state = artifacts.read_json(folder / STATE) or {}
    if not state.get("run_id"):
        return
    from segsweep.tracking.mirrors import push

    try:
        push(folder, vouched(state["uri"]), state["experiment"], None, final=True)
    except Exception as error:  # MLflow raises what its back end raises
        print(
            f"MLflow does not know yet ({first_line(error)}): {typed('sync')} {folder}",
            file=sys.stderr,
        )


def _show(found: list[Difference], second: str) -> None:
    rows = [difference.row(second) for difference in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for kind, name, change in rows:
        print(f"  {kind:<{widths[0]}}  {name:<{widths[1]}}  {change}")


def _unwatched(info: Mapping[str, Any]) -> None:
    """What a run had loaded that decides nothing here, and may have decided a number."""
    for name, about in (info.get("unwatched") or {}).items():
        try:
            same = hashes({name: Path(about["file"])})[name] == about["hash"]
            state = "unchanged since" if same else "it has changed since"
        except (OSError, SyntaxError, ValueError):
            state = "it cannot be read now"
        print(f"  not watched  {printable(name)} ({printable(about['file'])})  was loaded; {state}")


def _versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]:
        a, b = (printable(side.get(name) or "none") for side in (old, new))
        print(f"  version of {name}: {a} -> {b} ({INDEPENDENT})")


def _counted(found: list[Difference]) -> str:
    counts = {kind: sum(d.kind == kind for d in found) for kind in ("value", "file", "data", "split")}
    words = [
        f"{n} {kind}{'s' * (n > 1)}" if kind in ("value", "file") else f"the {kind}" for kind, n in counts.items() if n
    ]
    return f"{' and '.join(words)} differ{'s' * (len(found) == 1)}"


def _accepted(folder: Path) -> None:
    for entry in accepted.entries(folder):
        files = ", ".join(sorted(entry["files"]))
        print(f"{folder.name} was accepted for {entry['signature']} {accepted.told(entry)} ({files})")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 answered or accepted, 1 with a plain message where not."""
    start()
    parser = argparse.ArgumentParser(
        prog=_asks(),
        description="Why two runs are not the same: which values, files, data and versions differ. With one RUN: why "
        "the same command would train it again today, or that it would not. Trains nothing.",
        epilog="The code of one's own is looked at as in training: SEGSWEEP_ALLOW and the working directory as there.",
    )
    parser.add_argument("run", metavar="RUN", help=REFERENCE)
    parser.add_argument("other", metavar="RUN", nargs="?", help="another one; default: the same command today")
    parser.add_argument(
        "--accept", action="store_true", help="let the one RUN, which is finished, stand for today's code from now on; "
        "refused where anything but code differs. Nothing of the record is changed, accepted.json is added to it"
    )  # fmt: skip
    parser.add_argument(
        "--reason", metavar="TEXT", help="with --accept: why the edit changes no number; it is recorded"
    )
    parser.add_argument("--by", metavar="NAME", help="with --accept: who accepts (default: the user of this system)")
    parser.add_argument("--config-dir", metavar="DIR", help="where the run's options are, if not where they were")
    parser.add_argument("--runs", type=Path, default=Path("multirun"), help="folder of runs/ and the sweeps")
    options = parser.parse_args(arguments)
    if options.accept and (options.other or not (options.reason or "").strip()):
        parser.error("--accept takes one RUN and --reason TEXT, which says why the edit changes no number")
    if not options.accept and (options.reason or options.by):
        parser.error("--reason and --by belong to --accept")
    try:
        folders = [find(text, options.runs)[0] for text in (options.run, options.other) if text is not None]
        if options.accept:
            from segsweep.tracking.mirrors import user

            by = printable(options.by or user())
            accept(options.run, folders[0].resolve(), by, printable(options.reason), options.config_dir)
        elif options.other is None:
            explain(options.run, folders[0].resolve(), options.config_dir)
        else:
            compare(*folders)
    except (SegsweepError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _asks() -> str:
    """The command of this, less its arguments."""
    return f"{pasted(door.program)} --why" if (door := session().door) else typed("why")
