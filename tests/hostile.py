"""Draws configurations, run folders and studies that somebody else could have made, and watches what reading them does.

`hostile.py FOLDER SEED CASES [HOLES]`: prints what it saw, a JSON line a finding, and in the end how many cases of each
kind there were and how many of them were refused. HOLES: names of `hole`, each of which weakens it for a while.
"""

import ast
import contextlib
import copy
import functools
import json
import os
import pickle
import random
import shutil
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import TrialState, create_trial

import segsweep
from segsweep.config import components, hold, whitelist
from segsweep.config.schema import conf_dir
from segsweep.config.start import start
from segsweep.core.errors import SegsweepError
from segsweep.report import records
from segsweep.report.search import pages, trials
from segsweep.runs import identity
from segsweep.runs.run import run
from segsweep.search import pruning
from segsweep.segmentation import trained
from segsweep.sweeps.preflight import preflight
from segsweep.tracking import recall

start()
from segsweep.search import sampler  # noqa: E402 - the namespace has to know it first

PACKAGE = Path(segsweep.__file__).parent
TINY = ["data.patients=6", "data.slices=4", "data.image_size=16", "model.width=4", "model.depth=2", "epochs=1"]
TINY += ["tracking=none", "report=false", "precision=fp32"]
SENDS = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.", "os.kill", "os.putenv")
SENDS += ("os.unsetenv", "ctypes.dlopen", "socket.connect", "socket.bind", "urllib.Request", "os.startfile", "ftplib.")
WRITES = {  # event -> which of its arguments are places that are changed
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown"), (0,)),
    **dict.fromkeys(("shutil.rmtree", "os.utime", "os.setxattr", "sqlite3.connect"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"), (0, 1)),
}
WRITERS = ("/typing.py", "/dataclasses.py", "/collections/__init__.py", "/sqlalchemy/util/langhelpers.py")
"""What makes code of the annotations and fields of classes that are there."""


class Seen(BaseException):
    """The hook has stopped something: whatever was to happen has not."""


class Watch:
    """An audit hook, which cannot be taken out again; `armed`: whether it looks. It stops what it finds."""

    def __init__(self, folder: Path):
        self.folder, self.armed, self.found = str(folder.resolve()), False, []
        self.code = tuple(
            str(Path(place).resolve())
            for place in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), PACKAGE)
        )
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        if wrong := self.wrong(event, arguments):
            self.armed = False
            try:
                self.found.append(f"{event}: {wrong}")
            finally:
                self.armed = True
            raise Seen(event)

    def wrong(self, event: str, arguments: tuple) -> str | None:
        if event == "import":
            return str(arguments[0]) if str(arguments[0]).partition(".")[0] != "__main__" else None
        if event in ("exec", "compile"):
            made = str(getattr(arguments[0], "co_filename", None) if event == "exec" else arguments[1])
            by = sys._getframe(2).f_code.co_filename
            return None if made.startswith(self.code) or by.endswith(WRITERS) else f"code of {made}, by {by}"
        if event == "open":
            path, mode, flags = arguments
            writing = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            return self.outside(path) if writing and isinstance(path, str | bytes) else None
        if event == "pickle.find_class":
            return None if tuple(arguments) in sampler.NUMBERS | sampler.OPTIMIZERS else ".".join(arguments)
        if event in WRITES:
            places = [arguments[index] for index in WRITES[event] if index < len(arguments)]
            if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] >= 0:  # of an open folder
                places = [f"/proc/self/fd/{arguments[-1]}/{places[0]}"]
            return next((text for place in places if (text := self.outside(place))), None)
        if event == "ctypes.dlopen" and arguments == (None,):  # the libraries that are loaded
            return None
        return str(arguments)[:200] if event.startswith(SENDS) else None

    def outside(self, place: Any) -> str | None:
        if not isinstance(place, str | bytes | os.PathLike):
            return None
        path = os.path.realpath(os.fsdecode(place).removeprefix("file:").partition("?")[0])
        return None if path.startswith((self.folder, "/dev/null")) else path

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self.armed = True
        try:
            yield
        finally:
            self.armed = False


class Targets:
    """Names of what there is in any module of any installed package, and of Python: read, not imported."""

    def __init__(self, draw: random.Random):
        self.draw, self.files = draw, []
        for place in dict.fromkeys(map(sysconfig.get_path, ("purelib", "stdlib"))):
            for folder, inner, names in os.walk(place):
                inner[:] = [name for name in inner if name.isidentifier() and name != "site-packages"]
                self.files += [(place, os.path.join(folder, name)) for name in names if name.endswith(".py")]
        self.files.sort()
        self.own = [(str(PACKAGE.parent), str(file)) for file in sorted(PACKAGE.rglob("*.py"))]

    def __call__(self) -> str:
        while True:
            place, file = self.draw.choice(self.own if self.draw.random() < 0.3 else self.files)
            parts = list(Path(file).relative_to(place).with_suffix("").parts)
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            try:
                names = list(self.names(ast.parse(Path(file).read_bytes())))
            except (SyntaxError, ValueError, RecursionError):
                continue
            target = f"{module}.{self.draw.choice(names)}" if names else module
            if module and not any(kind.lists(target) for kind in whitelist.every().values()):
                return target

    def names(self, tree: ast.Module) -> Iterator[str]:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in node.names:
                    yield from (name.asname or name.name, f"{name.asname or name.name}.{self.draw.choice(CALLED)}")


REFUSED = (SegsweepError, OmegaConfBaseException)
"""What wrong input comes to. Another error is a mistake of the program's, or of this one's, and told."""
CALLED = ("system", "run", "rmtree", "load", "loads", "exec", "remove", "Popen", "open", "import_module", "eval")
PLACES = ("../../x", "/etc/x", "/tmp/x/y", "..", "~/x", "a\nb", "\x1b[2J", "x" * 300, "")
ENVIRONMENT = ("${oc.env:HOME}", "${oc.decode:'${oc.env:HOME}'}", "${hydra:runtime.cwd}", "${oc.create:{a: 1}}")


class Attack:
    """Pickled, it makes a folder where it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/should_not_be_there_of_test",)


class Fuzz:
    """`folder`: of everything that is written. Each kind of case gives what was refused: True, or None where a mutation
    may be harmless."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw = folder, random.Random(seed)
        self.target = Targets(self.draw)
        places = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]
        with initialize_config_dir(str(conf_dir())):
            cfg = compose("config", overrides=[*TINY, *places], return_hydra_config=True)
        self.choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if "/" not in k}
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        self.cfg, self.spec = cfg, components.spec_of(cfg)
        self.url = f"sqlite:///{folder}/studies.db"
        self.storage = optuna.storages.RDBStorage(self.url)
        self.mine, self.number, self.best = folder / "mine", 0, 0  # the last: files best.yaml that were written
        self.mine.mkdir()

    def warm(self) -> None:
        """A run that nobody has mutated, what reads it, and one mistake of each kind, whose words want modules too."""
        outcome = run(self.cfg, choices=self.choices, name="n", command="c", sweep=None, milestones=set())
        assert outcome.status == "finished", outcome.error
        self.made = outcome.folder
        assert not self.read(self.made)
        for group, kind in whitelist.every().items():
            cfg = self.with_group(group, self.plain(group))
            assert self.mistakes(cfg) == [], group
            made = self.build(cfg, group)
            assert kind.is_base_of(getattr(made, "func", type(made))), group
        for kind, attempts in ((self.component, 12), (self.record, 12), (self.study, 1), (self.folder_of_others, 1)):
            for attempt in range(attempts):
                kind(f"no_such_module_of_test{attempt}.Thing")
        torch.save({"epoch": 1, "model": {}}, self.folder / "x.pt")

    def kinds(self) -> list[Callable[[str], bool | None]]:
        return [*[self.component] * 33, *[self.record] * 15, self.study, self.folder_of_others]

    def node(self, target: str) -> dict[str, Any]:
        """What may be built of a target, in some disguise."""
        node: dict[str, Any] = {"_target_": target}
        extra = [{}, {"_partial_": True}, {"_args_": ["x"]}, {"_convert_": "object"}, {"_recursive_": True}]
        return node | self.draw.choice(extra)

    def hide(self, node: dict[str, Any], target: str) -> dict[str, Any]:
        """A component's settings with a target in some place."""
        found, hidden = copy.deepcopy(node), self.node(target)
        text = f"${{oc.create:{{_target_: {target}}}}}"
        wrapped = self.draw.choice([hidden, [hidden], {"a": hidden}, [[{"b": hidden}]], text])
        keys = [key for key in found if key != "_target_"] or ["more"]
        if self.draw.random() < 0.5:
            return found | hidden
        return found | {self.draw.choice([*keys, "more"]): wrapped}

    def plain(self, group: str) -> dict[str, Any]:
        """A group's settings that nobody has mutated."""
        if group == "pruner":
            return {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": None, "patience": 1}
        if group == "metrics":
            return {"_target_": "segsweep.segmentation.scores.AUC"}
        return OmegaConf.to_container(self.cfg[group], resolve=True)

    def with_group(self, group: str, node: dict[str, Any]) -> DictConfig:
        cfg = copy.deepcopy(self.cfg)
        cfg[group] = node if whitelist.every()[group].grouped else [node]
        return cfg

    def mistakes(self, cfg: DictConfig) -> list[str]:
        """As the checks before the first job find them."""
        return components.check(cfg) + pruning.problems(cfg, self.spec)

    def build(self, cfg: DictConfig, group: str) -> Any:
        """As a run does, which has looked at nothing itself."""
        if group == "task":
            return components.task(cfg)
        if group == "pruner":
            return pruning.make(cfg.pruner)
        given = {"in_channels": 3} if group == "model" else {}
        node = cfg[group] if whitelist.every()[group].grouped else cfg[group][0]
        return components.build(whitelist.every(), group, node, **given)

    def component(self, target: str) -> bool:
        """A group's settings with a target that nobody has listed: the check, and whoever builds it unchecked."""
        group = self.draw.choice([*whitelist.every()])
        cfg = self.with_group(group, self.hide(self.plain(group), target))
        refused = bool(self.mistakes(cfg))
        with contextlib.suppress(*REFUSED):
            self.build(cfg, group)
            return False
        return refused

    def record(self, target: str, what: int | None = None) -> bool | None:
        """A run folder with targets, places and pickles of others; `what`: which of them, drawn where it is None."""
        place = self.folder / "runs" / "runs" / "mutated"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.made, place)
        config = yaml.safe_load((place / "config.yaml").read_text())
        what = self.draw.randrange(5) if what is None else what
        if what == 0:
            config["model"] = self.hide(config["model"], target)
        elif what == 1:
            config["model"]["width"] = self.draw.choice([*ENVIRONMENT, "${oc.decode:'4'}"])
        elif what == 2:
            for name in ("run.json", "result.json", "split.json"):
                self.garble(place / name, target)
        elif what == 3:
            (place / "last.pt").write_bytes(pickle.dumps(Attack()))
        else:
            torch.save({"epoch": 1, "model": Attack()}, place / "last.pt")
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        return self.read(place) or (None if what == 2 else False)

    def garble(self, file: Path, target: str) -> None:
        """Some values of a JSON file replaced."""
        value = json.loads(file.read_text())
        nodes = [value]
        for node in nodes:
            nodes += [item for item in (node.values() if isinstance(node, dict) else node) if isinstance(item, dict)]
        for node in self.draw.sample(nodes, min(3, len(nodes))):
            if node:
                key = self.draw.choice([*node])
                node[key] = self.draw.choice([target, {"_target_": target}, *PLACES, None, 3, [], -1, 1e300])
        file.write_text(json.dumps(value))

    def read(self, place: Path) -> bool:
        """Whether a run folder is refused by what reads a network from it."""
        for reader in (recall.configuration, trained.load, identity.recorded, lambda folder: records.read([folder])):
            try:
                reader(place)
                refused = False
            except REFUSED:
                refused = True
            if reader is trained.load:
                by_load = refused
        return by_load

    def study(self, target: str) -> bool | None:
        """A study with keys, values, records and a state of CMA-ES of others."""
        self.number += 1
        name = f"s{self.number}"
        study = optuna.create_study(study_name=name, storage=self.storage, direction="maximize")
        key = self.draw.choice(["hydra.job.env_set.PATH", "+model._target_", "model.width", "loss", f"a.{target}"])
        value = self.draw.choice([target, *PLACES[:6], *ENVIRONMENT, f"{{_target_: {target}}}"])
        kinds = {key: optuna.distributions.CategoricalDistribution([value, 1])}
        study.set_user_attr("segsweep", {key: value, "optim": f"{{_target_: {target}}}", "seed": "{"})
        attributes = {"signature": self.draw.choice([*PLACES, target])}
        state = {"cma:optimizer:0": self.draw.choice([pickle.dumps(Attack()), target.encode()]).hex()}
        study.add_trial(
            create_trial(params={key: value}, distributions=kinds, value=0.9, user_attrs=attributes, system_attrs=state)
        )
        study.add_trial(create_trial(state=TrialState.WAITING, params={key: value}, distributions=kinds))
        file = self.folder / "search" / "experiment" / "best.yaml"
        file.unlink(missing_ok=True)
        with contextlib.suppress(SegsweepError):
            found = trials.load(name, self.url, self.folder / "runs")
            pages.winners(found, self.folder / "search")
        if file.exists():
            self.best += 1
            written = yaml.safe_load(file.read_text()) or {}
            if {"hydra", "_target_"} & {*keys(written)} or "${" in str(written):
                return False
        try:
            sampler.guarded(optuna.samplers.CmaEsSampler())._restore_optimizer(study.trials[:1])
        except SegsweepError:
            return True
        return False

    def folder_of_others(self, target: str) -> bool:
        """A folder for --config-dir that says something to Hydra, or names a target."""
        hydra = self.draw.choice([
            {"job": {"env_set": {"PATH": "/tmp"}}}, {"launcher": {"_target_": target}}, {"run": {"dir": "/tmp/x"}},
            {"callbacks": {"mine": {"_target_": target}}}, {"sweeper": {"_target_": target}},
            {"job_logging": {"handlers": {"file": {"class": target, "filename": "/tmp/x"}}}},
        ])  # fmt: skip
        content = {"hydra": hydra} if self.draw.random() < 0.6 else {"model": {"_target_": target}}
        if self.draw.random() < 0.2:
            content = {"tracking": {"experiment": self.draw.choice(ENVIRONMENT[:3])}}
        (self.mine / "experiment").mkdir(exist_ok=True)
        (self.mine / "experiment" / "x.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
        try:
            preflight(["--config-dir", str(self.mine), "experiment=x", *TINY, f"paths.cache={self.folder}/cache"])
        except SegsweepError:
            return True
        return False


def keys(node: Any) -> Iterator[Any]:
    """Of all mappings in it."""
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from keys(item)
    yield from node if isinstance(node, dict) else ()


def _everything(*given: Any) -> bool:
    return True


HOLES = {  # name -> what reaches it, how often that is tried, and with what given; each is seen in one of five or more
    "list": [("record", 30, {"what": 0}), ("component", 60, {})],
    "pickles": [("study", 30, {})],
    "weights": [("record", 4, {"what": 4})],
    "hydra": [("folder_of_others", 30, {})],
    "environment": [("record", 60, {"what": 1})],
}


@contextlib.contextmanager
def hole(name: str) -> Iterator[None]:
    """The program without one of its checks, and the hook that has to see it."""
    load = torch.load
    there = {
        "list": [(whitelist.Kind, "lists", _everything), (whitelist.Kind, "fits", _everything)],
        "pickles": [(sampler, "_Restored", pickle.Unpickler)],
        "weights": [(torch, "load", lambda *a, **k: load(*a, **k | {"weights_only": False}))],
        "hydra": [(hold.Hold, "problems", lambda *given: [])],
        "environment": [(recall, "configuration", lambda folder: OmegaConf.load(folder / "config.yaml"))],
    }[name]
    before = [getattr(place, key) for place, key, _ in there]
    try:
        for place, key, new in there:
            setattr(place, key, new)
        yield
    finally:
        for (place, key, _), old in zip(there, before, strict=True):
            setattr(place, key, old)


def report(watch: Watch, kind: functools.partial[bool | None], target: str, **more: str) -> str:
    """Make one case; what became of it, after a line for each finding."""
    watch.found.clear()
    try:
        with watch.on():
            refused = str(kind(target))
    except Seen:
        refused = "stopped"
    except Exception as error:  # no sentence: told, as it may hide anything
        refused, watch.found = "raised", [*watch.found, f"{type(error).__name__}: {error}"]
    for found in watch.found or (["not refused"] if refused == "False" else []):
        print(json.dumps({"kind": kind.func.__name__, "target": target, "found": found} | more), flush=True)
    return refused


def main(folder: Path, seed: int, cases: int, planted: str = "") -> None:
    sys.dont_write_bytecode = True
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    watch, fuzz, counts = Watch(folder), Fuzz(folder, seed), Counter()
    fuzz.warm()
    for name in planted.split():
        for of, often, given in HOLES[name]:
            targets = [t for t in (fuzz.target() for _ in range(2 * often)) if t.partition(".")[0] not in sys.modules]
            with hole(name):  # of modules that are not imported: nothing is called, as the hook stops the import
                for target in targets[:often]:
                    report(watch, functools.partial(getattr(fuzz, of), **given), target, hole=name)
    fuzz.best = 0
    for _ in range(cases):
        kind = fuzz.draw.choice(fuzz.kinds())
        counts[f"{kind.__name__} {report(watch, functools.partial(kind), fuzz.target())}"] += 1
    print(json.dumps(counts | {"best.yaml": fuzz.best}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
