"""`python -m segsweep.check task=...`, or `python my_script.py --check`: trains a task for two epochs in several ways
that must come to the same bits, and says in words what it forgot. Leaves nothing behind.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from segsweep.config import components
from segsweep.config.schema import Config, engine
from segsweep.config.start import start
from segsweep.core import artifacts
from segsweep.core.checkpoints import Checkpoints
from segsweep.core.errors import SegsweepError
from segsweep.core.program import typed
from segsweep.core.session import session
from segsweep.sweeps.alike import first_difference, listed, other_test, other_units, same, same_file, short, where
from segsweep.sweeps.verdict import Stop, Trained, Verdict, described, measured, neutral
from segsweep.task import Data, Result

if TYPE_CHECKING:
    from segsweep.runs.run import Outcome

EPOCHS = 2
STATES = "give it to run.epochs(NAME=...), or make it anew in each epoch from epoch.seed"


def check(cfg: DictConfig, choices: Mapping[str, Any] | None = None) -> Iterator[Verdict]:
    """What there is to say of the task of a composed configuration, thing by thing, as it is found out.

    cfg: with its interpolations, as epochs are set here; its places, its pruner and its length are not used. What later
    things need, and is wrong, is the last that is told."""
    with tempfile.TemporaryDirectory(prefix="segsweep-check-") as place:
        try:
            yield from _Check(cfg, dict(choices or {}), Path(place)).verdicts()
        except Stop as stop:
            yield stop.args[0]


class _Check:
    def __init__(self, cfg: DictConfig, choices: dict[str, Any], place: Path):
        self.cfg, self.choices, self.place = cfg, choices, place
        self.told: dict[str, str] = {}

    def configured(self, folder: Path, epochs: int) -> DictConfig:
        cfg = self.cfg.copy()
        own = engine(cfg)
        with open_dict(cfg):
            if getattr(components.task_class(cfg), "takes_run", True):  # else it can have no other number
                own.epochs = epochs
            own.reuse, own.pruner = True, {"_target_": None}
            own.paths.runs, own.tracking.uri = str(folder), None
            own.checkpoint = {"every": 1, "keep": EPOCHS}
            own.search.trial = own.search.study = None
        return cfg

    def verdicts(self) -> Iterator[Verdict]:
        if components.spec_of(self.cfg) is None:
            raise Stop(Verdict("settings", "wrong", "; ".join(components.check(self.cfg))))
        cfg = self.configured(self.place, EPOCHS)
        if problems := components.check(cfg):
            raise Stop(Verdict("settings", "wrong", "; ".join(problems)))
        spec = components.spec_of(cfg) or components.task_class(cfg).spec
        yield described(spec)
        yield from neutral(cfg, spec)
        yield self.same_identity(cfg)
        whole = self.train("whole", EPOCHS, "two epochs" if spec.epochs else "training")
        yield from measured(whole)
        yield from self.again(whole)
        if whole.state is None:
            raise Stop(Verdict("epochs", "noted", "it trains at one go, so it is neither resumed nor pruned"))
        yield self.resumed(whole, "interrupt", "an interruption", stopping=lambda: True)
        yield self.resumed(whole, "prune", "a pruner's end", judge=_prune)
        yield from self.shortened(whole)

    def same_identity(self, cfg: DictConfig) -> Verdict:
        """Two constructions say the same of their data."""
        from segsweep.runs.identity import identity

        found: list[tuple[Data, dict[str, str]]] = []
        for _ in range(2):
            task = self.attempt("data", lambda: components.task(cfg))
            data = self.attempt("data", task.data)
            if not isinstance(data, Data):
                raise Stop(Verdict("data", "wrong", f"data() gave {type(data).__name__}; a task.Data is needed"))
            found.append((data, identity(cfg, task.spec, data).ids))
        (first, ids), (second, others) = found
        parts = f" ({', '.join(f'{part} {count}' for part, count in first.parts.items())})" if first.parts else ""
        for name, advice in (
            ("digest", "make it of the contents alone: not of a time, a place, an id() or an order that changes"),
            ("split", "it has to follow from the settings and a fixed seed"),
            ("parts", "the same settings have to divide the same data in the same way"),
            ("settings", "they have to follow from the settings and the machine"),
            ("leaks", "it has to follow from the split"),
        ):
            a, b = getattr(first, name), getattr(second, name)
            if a != b:
                told = f"{name} is not the same in two constructions: {short(a)}, then {short(b)}"
                return Verdict("data", "wrong", f"{told}; no run would ever be known again. {advice}")
        if ids != others:
            return Verdict("data", "wrong", "the identity is not the same in two constructions")
        if first.digest is None:
            door = session().door
            say = "`data=` of segsweep.main says" if door and (door.app or door.asked) else "Data(digest=...) says"
            blind = f"nobody watches whether they change{parts}; {say} what they are"
            return Verdict("data", "noted", f"digest=None, so {blind}")
        return Verdict("data", "ok", f"the same twice{parts}")

    def attempt(self, name: str, what: Callable[[], Any]) -> Any:
        from segsweep.runs.run import told

        try:
            return what()
        except (Exception, SystemExit) as error:  # a task's own code raises what it raises
            raise Stop(Verdict(name, "wrong", told(error))) from error

    def train(self, root: str, epochs: int, name: str, **ends: Any) -> Trained:
        """As the engine does, without its record; in the folder `root`, whose checkpoints are taken up."""
        return self.attempt(name, lambda: _train(self.configured(self.place / root, epochs), self.place / root, **ends))

    def again(self, whole: Trained) -> Iterator[Verdict]:
        """The engine's own run of it, with a record, must be the same: else nothing that follows can be told."""
        from segsweep.runs.run import run

        about: dict[str, Any] = {"choices": self.choices, "name": "check", "command": "python -m segsweep"}
        cfg = self.configured(self.place / "again", EPOCHS)
        outcome: Outcome = run(cfg, **about, sweep=None, milestones=set())
        if outcome.status != "finished" or outcome.folder is None:
            raise Stop(Verdict("record", "wrong", outcome.error or outcome.status))
        history = artifacts.read_lines(outcome.folder / "history.jsonl")
        if told := first_difference(artifacts.finite(whole.history), history) or other_test(
            whole.result.metrics, outcome.metrics
        ):
            device = "; a GPU's sums are not the same each time: try device=cpu" * (_device(cfg) != "cpu")
            raise Stop(
                Verdict(
                    "again",
                    "wrong",
                    f"two undisturbed runs differ: {told}. Something draws from a generator that the seed does not "
                    f"set (a default_rng() without a seed, one of the module){device}. What hangs on it was not looked "
                    "at",
                )
            )
        yield Verdict("again", "ok", "a second run comes to the same bits")
        names = sorted({file.relative_to(whole.folder) for file in whole.folder.rglob("*") if file.is_file()})
        other = [n for n in names if not same_file(whole.folder / n, outcome.folder / n)]
        if other:
            yield Verdict("files", "noted", f"of what it writes to run.folder, {listed(other)} differ from run to run")
        elif names:
            yield Verdict("files", "ok", f"{listed(names)}: the same in both runs")

    def resumed(self, whole: Trained, name: str, by: str, **ends: Any) -> Verdict:
        """Ended after the first epoch and gone on with, it must be the run that was never ended."""
        if name == "prune" and not any(key.startswith("val/") for key in whole.history[0]):
            return Verdict(name, "noted", "no value of a validation part, so no run of it can be pruned")
        first = self.train(name, EPOCHS, name, **ends)
        if not first.ended:
            return Verdict(
                name, "wrong", "train() went on after the engine had ended it: it caught what `for epoch in "
                "run.epochs(...)` raised; let exceptions pass, or raise them again"
            )  # fmt: skip
        second = self.train(name, EPOCHS, name)
        told = first_difference(whole.history, second.history)
        before, after = whole.state or {}, second.state or {}
        if not told and (states := [key for key in before if not same(before[key], after.get(key))]):
            told = f"the values are the same, but not the state of {listed(states)} in the end"
        told = told or other_test(whole.result.metrics, second.result.metrics)
        told = told or other_units(whole.result.units, second.result.units, whole.spec)
        if told:
            return Verdict(name, "wrong", self.explained(f"after {by}", told, name))
        return Verdict(name, "ok", f"gone on with after {by} it comes to the same bits")

    def explained(self, when: str, told: str, root: str) -> str:
        """What differs, and why; what was told before is not told twice."""
        why = self.suspects(root)
        if earlier := self.told.get(told + why):
            return f"{when} it is as {earlier}"
        self.told[told + why] = when
        return f"{when} {told}. {why}"

    def suspects(self, root: str) -> str:
        """Why a run that is taken up is another one: what it has just after its state was loaded."""
        folder = self.place / f"{root}-suspects"
        known = Checkpoints(self.place / root / "trajectory").load(until=1)
        usual = f"What is not among the states of run.epochs(...) is lost; {STATES}"
        if known is None:
            return usual
        best = {"epoch": 1, "model": known["model"]} if "model" in known else None  # a state without is not whole
        Checkpoints(folder / "trajectory").save(known, best)
        try:
            _train(self.configured(folder, EPOCHS), folder, looks=True)
        except _Looked as look:
            for name, state in look.states.items():
                if not same(state, known[name]):
                    at = where(state, known[name])
                    return f"Suspected: {name}, whose load_state_dict does not take up all of its state_dict{at}"
            names, suspected = listed(look.states) or "none", listed(look.others)
            return (
                f"All states of run.epochs(...) ({names}) are taken up whole, so it is something that is not among "
                "them, such as an optimizer, a schedule, an order of the data, a generator of its own"
                f"{f'; suspected: {suspected}' if suspected else ''}. {STATES[0].upper()}{STATES[1:]}"
            )
        except Exception:  # somebody's own code, which has just gone well
            return usual
        return usual

    def shortened(self, whole: Trained) -> Iterator[Verdict]:
        """Runs of one and of two epochs share their first, unless a setting looks at the number of epochs."""
        from segsweep.runs.identity import identity

        one, two = (self.configured(self.place, n) for n in (1, EPOCHS))
        if problems := components.check(one):
            yield Verdict("lengths", "noted", f"one epoch is refused: {'; '.join(problems)}")
            return

        def trajectory(cfg: DictConfig) -> str:
            task = components.task(cfg)
            return identity(cfg, task.spec, task.data()).ids["trajectory"]

        a, b = self.attempt("lengths", lambda: [trajectory(cfg) for cfg in (one, two)])
        if a != b:
            yield Verdict("lengths", "ok", "a setting depends on epochs, so runs of other lengths share none of theirs")
            return
        short = self.train("short", 1, "lengths")
        if told := first_difference(whole.history[:1], short.history):
            yield Verdict(
                "lengths", "wrong", f"one epoch of one is not the first of two: {told}. It looks at the number of "
                "epochs (epoch.last, an argument `epochs`, a schedule's length), which runs of other lengths take over "
                "as it was; let a setting say it, such as total: ${epochs}, and they share nothing"
            )  # fmt: skip
            return
        longer = self.train("short", EPOCHS, "lengths")
        told = first_difference(whole.history, longer.history)
        told = told or other_test(whole.result.metrics, longer.result.metrics)
        if told:
            yield Verdict("longer", "wrong", self.explained("two epochs after one", told, "short"))
        else:
            yield Verdict("longer", "ok", "two epochs after one are two epochs")
        shorter = self.train("whole", 1, "lengths")
        if told := other_test(short.result.metrics, shorter.result.metrics):
            yield Verdict(
                "shorter", "wrong", f"one epoch after two, of which nothing is left to train: {told}. The test draws "
                "from what training left behind: weights that are not among the states, or random numbers; seed them "
                "before the test"
            )  # fmt: skip
        elif told := other_units(short.result.units, shorter.result.units, whole.spec):
            yield Verdict("shorter", "wrong", f"one epoch after two: {told}")
        else:
            yield Verdict("shorter", "ok", "one epoch after two is one epoch")


class _Looked(BaseException):
    """Out of a task's `train`, past whatever it catches. states: by name, just after they were loaded. others: what has
    a state of its own there and is none of them, as text."""

    def __init__(self, states: dict[str, Any], others: list[str]):
        super().__init__()
        self.states, self.others = states, others


def _prune(history: list[dict[str, Any]]) -> Exception:
    from segsweep.core.session import Pruned

    return Pruned(len(history), {"reason": "by the check"})


def _train(cfg: DictConfig, root: Path, *, looks: bool = False, **ends: Any) -> Trained:
    """One training as `run.run` has it, on the checkpoints in `root`. ends: arguments of `Loop`; looks: raise _Looked
    once the state is loaded."""
    from segsweep.core.device import pick_device
    from segsweep.core.session import Interrupted, Pruned
    from segsweep.runs.loop import Loop, on_host, seed_all

    class Looking(Loop):
        def _take_up(self, state: dict[str, Any]) -> None:
            super()._take_up(state)
            raise _Looked({n: on_host(thing.state_dict()) for n, thing in state.items()}, _others(state))

    task = components.task(cfg)
    data = task.data()
    own = engine(cfg)
    epochs = own.epochs if task.spec.epochs else 1
    trained = Trained(task.spec, root / "files" / str(epochs), of_function=hasattr(task, "function"))
    trained.folder.mkdir(parents=True, exist_ok=True)
    loop = (Looking if looks else Loop)(
        task.spec,
        data.part,
        epochs=epochs,
        seed=own.seed,
        checkpoints=Checkpoints(root / "trajectory"),
        folder=trained.folder,
        device=str(pick_device(own.device)),
        keep=EPOCHS,
        interrupted=Interrupted,
        ends=getattr(task, "ends", lambda history: ""),
        **ends,
    )
    seed_all(own.seed)
    try:
        trained.result = task.train(loop)
        if len(loop.history) == epochs or not ends:
            loop.finish()
    except (Interrupted, Pruned) as end:
        trained.ended = str(end)
    trained.history = loop.history
    if loop.state is not None:
        trained.state = {name: on_host(thing.state_dict()) for name, thing in loop.state.items()}
    if not ends and not isinstance(trained.result, Result):
        made = own.task._target_
        raise SegsweepError(
            f"train() of {made} gave {type(trained.result).__name__}; a task.Result(metrics, units) is needed"
        )
    return trained


def _others(state: Mapping[str, Any]) -> list[str]:
    """What has a state in the frames of a task's own code, or in its object, and is none of `state`: NAME (CLASS)."""
    from segsweep.runs import loop

    frame: FrameType | None = sys._getframe()
    engine = {__file__, loop.__file__}
    known = {id(thing) for thing in state.values()}
    known |= {id(part) for thing in state.values() for part in getattr(thing, "modules", lambda: ())()}
    found: dict[int, str] = {}

    def look(name: str, thing: Any, anything: bool) -> None:
        if id(thing) not in known and _has_state(thing, anything):
            found.setdefault(id(thing), f"{name} ({type(thing).__name__})")

    while frame and frame.f_code is not _train.__code__:
        if frame.f_code.co_filename not in engine:
            for name, thing in list(frame.f_locals.items()):
                look(name, thing, True)
                if name == "self" or not _has_state(thing, True):
                    for key, part in list(getattr(thing, "__dict__", {}).items()):
                        look(f"{name}.{key}", part, name == "self")
            for name, thing in list(frame.f_globals.items()):
                look(name, thing, False)
        frame = frame.f_back
    return list(found.values())


def _has_state(thing: Any, anything: bool) -> bool:
    """A generator of random numbers; of `anything` what has a state_dict with something in it, too."""
    import random

    import numpy as np
    import torch

    if isinstance(thing, random.Random | np.random.Generator | np.random.RandomState | torch.Generator):
        return True
    if not anything or isinstance(thing, type) or not callable(getattr(thing, "load_state_dict", None)):
        return False
    try:
        return bool(thing.state_dict())
    except Exception:  # of what only looks as if it had one
        return False


def _device(cfg: DictConfig) -> str:
    from segsweep.core.device import pick_device

    return pick_device(engine(cfg).device).type


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all is well, 1 something is wrong, and is named."""
    start()
    parser = argparse.ArgumentParser(
        prog=typed("check"),
        description="Train a task for two epochs: whole, again, interrupted, pruned, longer and shorter, in a folder "
        "that goes away; one line for each thing that was looked at, and what to do where it is wrong.",
        epilog="example: SEGSWEEP_ALLOW='digits.*' python -m segsweep.check --config-dir conf task=digits task.lr=0.1. "
        "What goes through segsweep.main: python my_script.py --check lr=0.1. Small data and a small network will do: "
        "nothing that is found hangs on their size.",
    )
    parser.add_argument(
        "--config-dir", metavar="DIR", help="a folder of options of one's own, as of python -m segsweep"
    )
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as of python -m segsweep, one value each")
    from segsweep.sweeps.overrides import composed
    from segsweep.sweeps.preflight import preflight

    given, door = list(sys.argv[1:] if arguments is None else arguments), session().door
    if door and not {"-h", "--help"} & set(given):  # the flags of an application are its own matter
        argv, hint, keys = given, "", {""}
    else:
        options = parser.parse_intermixed_args(given)  # --config-dir may stand anywhere
        argv = [f"--config-dir={options.config_dir}"] * bool(options.config_dir) + options.overrides
        keys = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in argv}
        doors = [file for file in sorted(Path().glob("*.py")) if "segsweep.main" in _text(file)]
        doors = [] if {"task", "experiment"} & keys else doors
        hint = "\n".join(f"{file} goes through segsweep.main: python {file} --check looks at it" for file in doors)
    if hint and keys <= {f.name for f in fields(Config)}:  # as the script has them, too
        print(hint, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="segsweep-check-") as output:
        try:
            if door:
                door.register(argv)
            try:
                preflight(argv)
            except Exception as error:
                if isinstance(error, SegsweepError):
                    raise  # else of the task's own code, which the check itself tells
            cfg, choices = composed(argv, output=output)
        except SegsweepError as error:
            said = str(error).replace("are a sweep; add -m", "are a sweep; give one")
            print("\n".join(filter(None, [said, hint])), file=sys.stderr)
            return 1
        return _told(check(cfg, choices))


def _told(verdicts: Iterable[Verdict]) -> int:
    bad = 0
    for verdict in verdicts:
        print(verdict, flush=True)
        bad += verdict.state == "wrong"
    print(f"{bad} thing{'s' * (bad > 1)} to mend." if bad else "All well.")
    return 1 if bad else 0
