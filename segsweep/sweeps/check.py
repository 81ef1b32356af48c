"""`python -m segsweep.check task=...`, or `python my_script.py --check`: trains a task for two epochs in several ways
that must come to the same bits, and says in words what it forgot. Leaves nothing behind.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from segsweep.config import components
from segsweep.config.schema import Config, engine, resolved
from segsweep.config.start import start
from segsweep.core import artifacts
from segsweep.core.artifacts import Checkpoints
from segsweep.core.errors import SegsweepError, nearest
from segsweep.core.session import session
from segsweep.core.signature import leaves
from segsweep.task import PARTS, Data, Result, Spec

if TYPE_CHECKING:
    from segsweep.runs.run import Outcome

EPOCHS = 2
MOST = 3
"""Most things of a kind that a sentence names."""
STATES = "give it to run.epochs(NAME=...), or make it anew in each epoch from epoch.seed"


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at. state: ok, wrong or noted; text: what is wrong, and what to do."""

    name: str
    state: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5}  {self.name}{f': {self.text}' if self.text else ''}"


@dataclass
class Trained:
    """What a training came to. ended: by what the engine ended it before its last epoch. state: of each object that
    `run.epochs` was given, in the end; None where it was not called."""

    spec: Spec
    folder: Path
    ended: str = ""
    result: Any = None
    of_function: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] | None = None


def check(cfg: DictConfig, choices: Mapping[str, Any] | None = None) -> Iterator[Verdict]:
    """What there is to say of the task of a composed configuration, thing by thing, as it is found out.

    cfg: with its interpolations, as epochs are set here; its places, its pruner and its length are not used. What later
    things need, and is wrong, is the last that is told."""
    with tempfile.TemporaryDirectory(prefix="segsweep-check-") as place:
        try:
            yield from _Check(cfg, dict(choices or {}), Path(place)).verdicts()
        except _Stop as stop:
            yield stop.args[0]


class _Stop(Exception):
    """With the verdict after which nothing more can be looked at."""


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
            raise _Stop(Verdict("settings", "wrong", "; ".join(components.check(self.cfg))))
        cfg = self.configured(self.place, EPOCHS)
        if problems := components.check(cfg):
            raise _Stop(Verdict("settings", "wrong", "; ".join(problems)))
        spec = components.spec_of(cfg) or components.task_class(cfg).spec
        yield _described(spec)
        yield from _neutral(cfg, spec)
        yield self.same_identity(cfg)
        whole = self.train("whole", EPOCHS, "two epochs" if spec.epochs else "training")
        yield from _measured(whole)
        yield from self.again(whole)
        if whole.state is None:
            raise _Stop(Verdict("epochs", "noted", "it trains at one go, so it is neither resumed nor pruned"))
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
                raise _Stop(Verdict("data", "wrong", f"data() gave {type(data).__name__}; a task.Data is needed"))
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
                told = f"{name} is not the same in two constructions: {_short(a)}, then {_short(b)}"
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
            raise _Stop(Verdict(name, "wrong", told(error))) from error

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
            raise _Stop(Verdict("record", "wrong", outcome.error or outcome.status))
        history = artifacts.read_lines(outcome.folder / "history.jsonl")
        if told := _first_difference(artifacts.finite(whole.history), history) or _other_test(
            whole.result.metrics, outcome.metrics
        ):
            device = "; a GPU's sums are not the same each time: try device=cpu" * (_device(cfg) != "cpu")
            raise _Stop(
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
        other = [n for n in names if not _same_file(whole.folder / n, outcome.folder / n)]
        if other:
            yield Verdict("files", "noted", f"of what it writes to run.folder, {_listed(other)} differ from run to run")
        elif names:
            yield Verdict("files", "ok", f"{_listed(names)}: the same in both runs")

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
        told = _first_difference(whole.history, second.history)
        before, after = whole.state or {}, second.state or {}
        if not told and (states := [key for key in before if not _same(before[key], after.get(key))]):
            told = f"the values are the same, but not the state of {_listed(states)} in the end"
        told = told or _other_test(whole.result.metrics, second.result.metrics)
        told = told or _other_units(whole.result.units, second.result.units, whole.spec)
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
                if not _same(state, known[name]):
                    at = _where(state, known[name])
                    return f"Suspected: {name}, whose load_state_dict does not take up all of its state_dict{at}"
            names, suspected = _listed(look.states) or "none", _listed(look.others)
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
        if told := _first_difference(whole.history[:1], short.history):
            yield Verdict(
                "lengths", "wrong", f"one epoch of one is not the first of two: {told}. It looks at the number of "
                "epochs (epoch.last, an argument `epochs`, a schedule's length), which runs of other lengths take over "
                "as it was; let a setting say it, such as total: ${epochs}, and they share nothing"
            )  # fmt: skip
            return
        longer = self.train("short", EPOCHS, "lengths")
        told = _first_difference(whole.history, longer.history)
        told = told or _other_test(whole.result.metrics, longer.result.metrics)
        if told:
            yield Verdict("longer", "wrong", self.explained("two epochs after one", told, "short"))
        else:
            yield Verdict("longer", "ok", "two epochs after one are two epochs")
        shorter = self.train("whole", 1, "lengths")
        if told := _other_test(short.result.metrics, shorter.result.metrics):
            yield Verdict(
                "shorter", "wrong", f"one epoch after two, of which nothing is left to train: {told}. The test draws "
                "from what training left behind: weights that are not among the states, or random numbers; seed them "
                "before the test"
            )  # fmt: skip
        elif told := _other_units(short.result.units, shorter.result.units, whole.spec):
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


def _described(spec: Spec) -> Verdict:
    """What the task says it measures."""
    wrong: list[str] = []
    names = [f"val/{name}" for name, metric in spec.metrics.items() if metric.by_epoch]
    if spec.select not in names:
        wrong.append(f"select={spec.select}: allowed are {', '.join(names) or 'none'}{nearest(spec.select, names)}")
    else:
        try:
            Spec.from_json(spec.to_json())
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise _Stop(Verdict("spec", "wrong", "; ".join(wrong)))
    ways = ", ".join(f"{name} ({metric.direction})" for name, metric in spec.metrics.items())
    return Verdict("spec", "ok", ways)


def _neutral(cfg: DictConfig, spec: Spec) -> Iterator[Verdict]:
    """Keys of `Spec.neutral` that are none; those of a group's option may be another option's."""
    config = resolved(cfg)
    known = {*config, *(f"task.{name}" for name in components.arguments(cfg)), *(key for key, _ in leaves(config))}
    for key in spec.neutral:
        group = config.get(key.partition(".")[0]) if not key.startswith("task.") else None
        if key not in known and not (isinstance(group, Mapping) and "_target_" in group):
            text = f"Spec.neutral has {key}, which is no key of the configuration{nearest(key, known)}"
            yield Verdict("neutral", "wrong", f"{text}; it keeps no identity as it was")


def _measured(whole: Trained) -> Iterator[Verdict]:
    """What was reported, tested and scored, against what the task says it measures."""
    from segsweep.runs.loop import plain

    spec, result = whole.spec, whole.result
    yield Verdict("two epochs" if spec.epochs else "training", "ok", "trained and tested")
    parts = PARTS if whole.state is None or whole.of_function else ("test",)
    wrong = []
    for key, value in result.metrics.items():
        name = str(key).partition("/")[2] or str(key)
        if str(key).partition("/")[0] not in parts:
            wrong.append(f"Result.metrics has {key}; its keys are {', '.join(f'{part}/NAME' for part in parts)}")
        elif spec.metric(key) is None:
            wrong.append(
                f'{key} is not in Spec.metrics, so that nobody knows which way is better: add "{name}": '
                f'Metric(title=..., direction="max" or "min"){nearest(name, spec.metrics)}'
            )
        elif plain(value) is None:
            wrong.append(f"{key} is {type(value).__name__}; a number is needed")
    if wrong:
        yield Verdict("metrics", "wrong", "; ".join(wrong))
    else:
        seen = {key.partition("/")[2] for row in whole.history for key in row} | set(spec.scores)
        seen |= {key.partition("/")[2] for key in result.metrics}
        never = [name for name in spec.metrics if name not in seen]
        text = f"{_listed(never)} of Spec.metrics never had a value" if never else ""
        yield Verdict("metrics", "noted" if never else "ok", text)
    yield _scored(spec, result)


def _scored(spec: Spec, result: Result) -> Verdict:
    """Every unit has a score of every metric that is said to have one for each."""
    from segsweep.runs.loop import plain

    units, name = result.units, spec.unit
    if not spec.scores:
        return Verdict("units", "noted", "no metric has by_unit=True, so runs are compared over seeds alone")
    if not units:
        return Verdict(
            "units", "wrong", f"no {name} has a score, though {_listed(spec.scores)} should have one for each "
            f"(by_unit): give Result(metrics, units={{{name}: {{metric: value}}}}), or leave by_unit out"
        )  # fmt: skip
    for metric, about in spec.scores.items():
        lacking = [unit for unit, values in units.items() if metric not in values]
        if lacking:
            return Verdict(
                "units", "wrong", f"{len(lacking)} of {len(units)} have no {metric}: {_listed(lacking)}; give each "
                f"{name} one, NaN where it is undefined"
            )  # fmt: skip
        scores = {unit: plain(values[metric], truths=True) for unit, values in units.items()}
        if odd := [unit for unit, score in scores.items() if score is None]:
            kind = type(units[odd[0]][metric]).__name__
            return Verdict("units", "wrong", f"{metric} of {_listed(odd)} is {kind}; a number is needed")
        low, high = about.bounds
        if out := [unit for unit, score in scores.items() if not low <= score <= high and score == score]:
            told = f"{metric} of {_listed(out)} is {scores[out[0]]:g}"
            return Verdict("units", "wrong", f"{told}, outside of its bounds, {low:g} to {high:g}")
    first = set(next(iter(units.values())))
    if uneven := [unit for unit, values in units.items() if set(values) != first]:
        return Verdict("units", "wrong", f"{_listed(uneven)}: other columns than the first {name}; give all the same")
    undefined = [unit for unit, values in units.items() if any(values[m] != values[m] for m in spec.scores)]
    if undefined:
        return Verdict("units", "noted", f"{len(undefined)} of {len(units)} have a score that is undefined (NaN)")
    return Verdict("units", "ok", f"{len(units)}, each with {_listed(spec.scores)}")


def _first_difference(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> str:
    """The first epoch and metric in which two histories differ, "" where they do not."""
    for one, two in zip(a, b, strict=False):
        keys = [key for key in dict.fromkeys([*one, *two]) if key.partition("/")[0] in PARTS]
        differ = [key for key in keys if not _same(one.get(key), two.get(key))]
        if differ:
            others = f" (and {_listed(differ[1:])})" if differ[1:] else ""
            values = f"{_short(one.get(differ[0]))}, then {_short(two.get(differ[0]))}"
            return f"the values differ from epoch {one['epoch']} on, {differ[0]}: {values}{others}"
    return "" if len(a) == len(b) else f"there are {len(a)} epochs, then {len(b)}"


def _other_test(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    for key in a:
        if not _same(_plain(a[key]), _plain(b.get(key))):
            what = "test" if str(key).startswith("test/") else "result"
            return f"the {what} differs, {key}: {_short(a[key])}, then {_short(b.get(key))}"
    return ""


def _other_units(a: Mapping[str, Any], b: Mapping[str, Any], spec: Spec) -> str:
    if a.keys() != b.keys():
        other = sorted(map(str, a.keys() ^ b.keys()))
        return f"the test is of other {spec.unit}s: {_listed(other)} in one run alone"
    for unit, name in ((unit, name) for unit in a for name in spec.scores):
        if not _same(_plain(a[unit].get(name)), _plain(b[unit].get(name))):
            return (
                f"{name} of {spec.unit} {unit} differs: {_short(a[unit].get(name))}, then {_short(b[unit].get(name))}"
            )
    return ""


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


def _same(a: Any, b: Any) -> bool:
    """To the last bit; NaN is NaN."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        one, two = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return torch.equal(one, two)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b or (a != a and b != b))


def _where(a: Any, b: Any, path: str = "") -> str:
    """The first key at which two states differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            if key not in a or key not in b or not _same(a[key], b[key]):
                return _where(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    return f" ({path})" if path else ""


def _plain(value: Any) -> Any:
    """As a run has it, whatever is none as it is."""
    from segsweep.runs.loop import plain

    found = plain(value, truths=True)
    return value if found is None else found


def _same_file(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()


def _device(cfg: DictConfig) -> str:
    from segsweep.core.device import pick_device

    return pick_device(engine(cfg).device).type


def _short(value: Any) -> str:
    text = str(_plain(value))
    return text if len(text) <= 40 else f"{text[:40]}..."


def _listed(names: Any) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:MOST]) + (f" and {len(texts) - MOST} more" if len(texts) > MOST else "")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 all is well, 1 something is wrong, and is named."""
    start()
    parser = argparse.ArgumentParser(
        prog="python -m segsweep.check",
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
    from segsweep.sweeps.preflight import composed, preflight

    given, door = list(sys.argv[1:] if arguments is None else arguments), session().door
    if door and not {"-h", "--help"} & set(given):  # the flags of an application are its own matter
        argv, hint, keys = given, "", {""}
    else:
        options = parser.parse_args(given)
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
