"""What a configuration from elsewhere may say to Hydra itself: numbers, plain names and what is searched.

It may not read the environment either, where passwords are, into what a run records or sends.

Hydra's own part of a configuration sets the environment, opens files, and names what launchers run. So what all
folders of a command line make of it is held against what the trusted ones alone make of it: a key that differs is in
FREE, or is refused. Comparing the outcome needs no list of the ways in which a file can get at a key.
"""

import contextlib
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.schema import conf_dir, under
from segsweep.config.trust import foreign, hint, is_searchpath, loader_of, own_root, parsed, root, trusted
from segsweep.core.errors import ConfigError, printable
from segsweep.core.masks import KEYS, near
from segsweep.core.signature import OWN

OURS = "segsweep.plugins."
KEPT_IN = ("paths.runs", "paths.cache")
"""Of a configuration: folders."""

NUMBER = "numbers"
WORD = "numbers and plain words (letters, digits and _-.,:=+/@)"
SPACE = "values of keys of a run, such as optim.lr, and none of where it goes,"
_SWEEPER = ("n_trials", "n_jobs", "max_batch_size", "max_failure_rate", "sampler.*")
_LAUNCHER = (
    *("devices", "jobs_per_device", "timeout_min", "budget_min", "retries.*", "n_jobs", "name", "partition", "qos"),
    *(
        "account",
        "constraint",
        "exclude",
        "gres",
        "comment",
        "nodes",
        "tasks_per_node",
        "cpus_per_task",
        "cpus_per_gpu",
    ),
    *("gpus_per_node", "gpus_per_task", "mem_gb", "mem_per_gpu", "mem_per_cpu", "array_parallelism"),
    *("max_num_timeout", "signal_delay_s", "ray.remote.num_cpus", "ray.remote.num_gpus", "ray.remote.memory"),
    *("ray.remote.max_calls", "ray.remote.max_retries"),  # not runtime_env, which names an interpreter
)
FREE = {f"sweeper.{key}": NUMBER for key in _SWEEPER} | {f"launcher.{key}": WORD for key in _LAUNCHER}
FREE |= {"sweeper.direction": WORD, "sweeper.params.*": SPACE}
"""Keys under `hydra` that any configuration may set, and to what."""
FILLED = {("runtime", "config_sources"), ("overrides", "hydra"), ("overrides", "task")}
"""What Hydra fills in itself: the first anew; the others are held against the overrides that were given."""

CHOICES = ("runtime", "choices")
"""Of every group, among them those that another task has not; what an option of Hydra's brings is looked at itself."""

_WORD = re.compile(r"[\w.,:=+/@-]*", re.ASCII)
_KEY = re.compile(r"\+{0,2}(?!hydra\b)\w+([./]\w+)*", re.ASCII)
_REFERENCE = re.compile(
    r"\$\{\s*(?:(?P<key>\w+(?:\.\w+)*)|(?:part_of|several|given|sweep_name|select_of)\s*:[^${}]*)\s*\}"
)
_ADDRESS = re.compile(r"\$\{\s*((segsweep\.)?(tracking(\.uri)?|search(\.storage)?)|segsweep|hydra(\.[\w.]+)?)\s*\}")
"""A reference to an address, or to a node that one is in; to Hydra's, which has the command line and the environment
that it sets."""
_UNKNOWN = re.compile(r"\$\{(?!(now|oc\.env):)")
"""What may name a key otherwise than `_REFERENCE` shows."""
_GONE = object()
_Path = tuple[Any, ...]


def held(args: Namespace) -> None:
    """Raise ConfigError for what folders that are not trusted make of a single command line."""
    own = root(args)
    loader = loader_of(*own.places, *([f"file://{Path(args.config_dir).absolute()}"] if args.config_dir else []))
    try:
        cfg = loader.load_configuration(own.name, args.overrides, RunMode.RUN, skip_missing_defaults=True)
    except (HydraException, OmegaConfBaseException, KeyError) as error:
        raise ConfigError(str(error).strip()) from None
    if problems := Hold(args, loader).problems(cfg, args.overrides):
        raise ConfigError("\n".join(problems))


class Hold:
    """Holds compositions of one command line against what its trusted folders alone would make of Hydra's part.

    `loader`: the one that composes from all of its folders."""

    def __init__(self, args: Namespace, loader: ConfigLoader):
        mine, whole = own_root(args), root(args)
        self.name = mine.name
        self.folders, own = foreign(args), trusted()
        self.where = " or ".join(f"{text} ({place})" for text, place in self.folders)
        given = parsed(args.overrides)
        self.paths = [str(o.input_line) for o in given if is_searchpath(o)]
        beside = [] if args.config_dir is None else [Path(args.config_dir)]
        self.own = loader_of(*mine.places, *(f"file://{f.absolute()}" for f in beside if f.resolve() in own))
        self._offers = cache(self.own.get_group_options)
        self._is_known = cache(lambda group: bool(loader.get_group_options(group, None, whole.name, self.paths)))
        told = [o for o in given if o.is_hydra_override() and not is_searchpath(o)]
        self.given = _given(args.overrides)
        self.values = [_force(o) for o in told if not _is_group(o) or o.is_delete()]
        self._base = cache(lambda: OmegaConf.to_container(self._compose([]), resolve=False))
        self.known: dict[tuple[tuple[str, str], ...], dict[_Path, Any]] = {}

    def problems(self, cfg: DictConfig, lines: Sequence[str]) -> list[str]:
        """One sentence for each key of a composition's `hydra` that only a file of these folders can have set so.

        lines: the overrides that it was composed with."""
        raw: Any = OmegaConf.to_container(cfg, resolve=False)
        found, own = dict(_leaves(raw["hydra"])), self._own(raw["hydra"])
        wrong = {path: found[path] for path in found if path not in own or not _same(found[path], own[path])}
        wrong = {path: value for path, value in wrong.items() if not self._filled(path)}
        if not _given_only(found, lines):
            wrong["overrides", "hydra"] = None
        told = {path: self._problem(cfg, raw, path, value) for path, value in wrong.items()}
        parts = {path[:1] for path, problem in told.items() if problem}  # what is missing there follows from that
        gone = [path for path in own if path not in found and path[:1] not in parts and path[:2] != CHOICES]
        problems = [*told.values(), *(self._problem(cfg, raw, path, _GONE) for path in gone), *self._reads(raw, lines)]
        problems += self._sends(cfg, raw)
        key = f"{under(cfg)}paths.runs"
        if not str(runs := _select(cfg, key)).isprintable():  # it is written into scripts
            problems.append(f"{key}={runs!r}: from a file under {self.where}; a folder's name has no such signs")
        return [problem for problem in problems if problem]

    def _reads(self, raw: Any, lines: Sequence[str]) -> Iterator[str]:
        """One sentence for each key of a run that a file of these folders gives a value of the environment."""
        given = _given(lines)
        texts = {path: next(unplain(value), None) for path, value in _leaves(raw) if path[:1] != ("hydra",)}
        odd = {path: text for path, text in texts.items() if text and ".".join(map(str, path)) not in given}
        for own in (self._base, lambda: self._task(raw)):  # the second takes a composition for each option
            known = dict(_leaves(own())) if odd else {}
            odd = {path: text for path, text in odd.items() if not _same(_at(raw, path), known.get(path, _GONE))}
        for path, text in odd.items():
            key, hint = ".".join(map(printable, path)), f"give it on the command line{self._hint()}"
            yield (
                f"{key}: {printable(text)!r} is from a file under {self.where}, which may name other keys, ${{key}}, "
                f"and nothing that reads the environment; {hint}"
            )

    def _sends(self, cfg: DictConfig, raw: Any) -> Iterator[str]:
        """One sentence for each place that a file of these folders gives: the user's passwords go to servers, and
        folders are made."""
        odd = {key: value for key, value in places(cfg).items() if key not in self.given}
        for own in (self._base, lambda: self._task(raw)):
            there = own() if odd else {}
            known = places(OmegaConf.create(there)) if odd else {}  # type: ignore[arg-type]
            odd = {k: v for k, v in odd.items() if v != known.get(k) and not _follows(k, raw, there, self.given)}
        for key in odd:
            yield (
                f"{key}: set by a file under {self.where}, which may not say where to a run goes but for a file below "
                f"this folder, nor where it is kept; give it on the command line{self._hint()}"
            )

    def _task(self, raw: Any) -> Any:
        """What the trusted folders alone make of the options that a composition has."""
        found, lines = self._base(), list[str]()
        for group, option in raw["hydra"]["runtime"]["choices"].items():
            if not str(group).startswith("hydra/") and option in self._offers(str(group).partition("@")[0]):
                for line in (f"{group}={option}", f"+{group}={option}"):
                    with contextlib.suppress(HydraException, OmegaConfBaseException):
                        found = OmegaConf.to_container(self._compose([*lines, line]), resolve=False)
                        lines.append(line)
                        break
        return found

    def says(self, key: str, value: Any, raw: Any, given: set[str]) -> bool:
        """Whether the trusted folders alone, by the options that a job's composition has, give a place its value, or
        its text, which names what the job's overrides have `given`."""
        there = self._task(raw)
        own = places(OmegaConf.create(there)).get(key)
        return own == value or _follows(key, raw, there, given)

    def too_many(self, cfg: DictConfig, count: int, most: int) -> list[str]:
        """Of `count` combinations `most` were composed: other launchers than this program's look at no more."""
        if count <= most or str(_select(cfg, "hydra.launcher._target_")).startswith(OURS):
            return []
        return [
            f"hydra/launcher={_select(cfg, 'hydra.runtime.choices')['hydra/launcher']}: this sweep has {count} "
            f"combinations of options, of which {most} can be looked at for what {self.where} says to Hydra; use "
            f"hydra/launcher=local, which looks at each job{self._hint()}"
        ]

    def _own(self, hydra: Any) -> dict[_Path, Any]:
        """Hydra's part from the trusted folders alone, with the options that the whole has where they have them too."""
        chosen = hydra["runtime"]["choices"] if isinstance(hydra, dict) else {}
        groups = sorted((str(g), o) for g, o in chosen.items() if str(g).startswith("hydra/") and isinstance(o, str))
        there = tuple((g, o) for g, o in groups if o in self._offers(g.partition("@")[0]))
        if there not in self.known:
            lines: list[str] = []
            wanted = [*(f"{group}={option}" for group, option in there), *self.values]
            try:
                cfg = self._compose(wanted)
            except (HydraException, OmegaConfBaseException):  # of a group or a key that only the whole has
                cfg = self._compose(lines)
                for line in wanted:
                    try:
                        cfg = self._compose([*lines, line])
                        lines.append(line)
                    except (HydraException, OmegaConfBaseException):
                        continue
            self.known[there] = dict(_leaves(OmegaConf.to_container(cfg, resolve=False)["hydra"]))  # type: ignore
        return self.known[there]

    def _compose(self, lines: list[str]) -> DictConfig:
        return self.own.load_configuration(self.name, lines, RunMode.RUN, from_shell=False)

    def _filled(self, path: _Path) -> bool:
        """Whether Hydra, or the command line, has set a key whatever the files say."""
        if path[:2] == CHOICES:
            return len(path) == 3 and self._is_known(str(path[-1]).partition("@")[0])
        return path in FILLED or (path == ("searchpath",) and bool(self.paths))

    def _problem(self, cfg: DictConfig, raw: Any, path: _Path, value: Any) -> str | None:
        kind = _kind(path)
        if kind and (value is _GONE or _fits(kind, cfg, raw, path, value)):
            return None
        key = ".".join(printable(part) for part in ("hydra", *path))
        if kind:
            return (
                f"{key}: {printable(value)!r} is from a file under {self.where}, where only {kind} may stand, and "
                f"${{key}} for those of another key; give it on the command line{self._hint()}"
            )
        return (
            f"{key}: {'taken out' if value is _GONE else 'set'} by a file under {self.where}, which may give "
            f"Hydra the numbers and names of a launcher and a sweeper alone; give it on the command line{self._hint()}"
        )

    def _hint(self) -> str:
        return hint(self.folders)


def changed(master: DictConfig, job: DictConfig, lines: Sequence[str], hold: Hold | None = None) -> list[str]:
    """The keys of `hydra` that a job's composition has otherwise than its sweep's: none, as Hydra has applied the
    sweep's; and those that read the environment there alone, or say where the job goes, unless by `hold` an option of
    the user's own says that. lines: the job's overrides."""
    there: Any = OmegaConf.to_container(job, resolve=False)
    before: Any = OmegaConf.to_container(master, resolve=False)
    raw, base = dict(there), dict(before)
    whole, own = dict(_leaves(there.pop("hydra"))), dict(_leaves(before.pop("hydra")))
    given, known = _given(lines), dict(_leaves(before))
    known = {path: (value, _shipped().get(path[path[:1] == (OWN,) :])) for path, value in known.items()}
    texts = [(path, value) for path, value in _leaves(there) if any(unplain(value))]
    odd = [path for path, value in texts if not any(_same(value, one) for one in known.get(path, ()))]
    reading = [key for path in odd if (key := ".".join(map(printable, path))) not in given]
    mine, shipped = places(master), places(OmegaConf.load(conf_dir() / "config.yaml"))  # type: ignore[arg-type]
    for key, value in places(job).items():
        before_it = value in (mine.get(key), shipped.get(key.removeprefix(f"{OWN}.")))
        if key in given or before_it or _follows(key, raw, base, given):
            continue
        if hold is None or not hold.says(key, value, raw, given):
            reading.append(key)
    paths = [path for path in {**own, **whole} if path[:2] != CHOICES and path not in FILLED]
    keys = [path for path in paths if not _same(whole.get(path, _GONE), own.get(path, _GONE))]
    if not _given_only(whole, [*own[("overrides", "hydra")], *lines]):
        keys.append(("overrides", "hydra"))
    return [".".join(map(printable, ("hydra", *path))) for path in keys] + reading


def is_place(key: str, at: str) -> bool:
    """Whether an override of this key may say where a run goes or is kept. at: before the engine's keys."""
    path = key.lstrip("+~").replace("/", ".").split(".")
    theirs = (f"{at}{place}".split(".") for place in (*KEYS, *KEPT_IN))
    return any(path[: len(place)] == place[: len(path)] for place in theirs)


def places(cfg: DictConfig) -> dict[str, Any]:
    """Where a run goes and is kept, by key; without stores that are files below the working folder, and what is not
    there or cannot be known, as other checks tell."""
    keys = [f"{under(cfg)}{key}" for key in (*KEYS, *KEPT_IN)]
    found = {key: _select(cfg, key) for key in keys}
    stores = tuple(f"{under(cfg)}{key}" for key in KEYS)
    return {key: v for key, v in found.items() if v is not None and not (key in stores and near(str(v)))}


@cache
def _shipped() -> dict[_Path, Any]:
    """What the program's own config.yaml says: a job that has fewer overrides than its sweep has it again."""
    return dict(_leaves(OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml"), resolve=False)))


def plainly(text: str, raw: Any = None, depth: int = 0) -> bool:
    """Whether every `${...}` in a text is another key, or this program's own: nothing that reads
    the environment. raw: a composition, unresolved, whose keys must be so themselves."""
    while found := _REFERENCE.search(text):
        if found["key"] and raw is not None:
            there = _walk(raw, found["key"])
            if "${" in str(there) and not (isinstance(there, str) and depth < 9 and plainly(there, raw, depth + 1)):
                return False
        text = f"{text[: found.start()]}\0{text[found.end() :]}"
    return "${" not in text


def unplain(value: Any) -> Iterator[str]:
    """Texts, alone or in a list, that name more than other keys, each of which is looked at itself, or one that may
    have a password from the command line."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, list | dict):
            yield from unplain(list(part.values()) if isinstance(part, dict) else part)
        elif isinstance(part, str) and (not plainly(part) or _ADDRESS.search(part)):
            yield part


def _kind(path: _Path) -> str | None:
    if not all(isinstance(part, str) for part in path) or (path and path[-1].startswith("_")):
        return None
    for pattern, kind in FREE.items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(part in ("*", own) for part, own in zip(parts, path, strict=True)):
            return kind
    return None


def _fits(kind: str, cfg: DictConfig, raw: Any, path: _Path, value: Any) -> bool:
    if isinstance(value, str) and "${" in value:
        if not plainly(value, raw):
            return False
        node: Any = cfg.hydra
        try:
            for part in path:
                node = node[part]
        except OmegaConfBaseException:
            return False
        value = node
    if isinstance(value, list):
        return kind != NUMBER and all(not isinstance(v, list) and _fits_plainly(kind, v) for v in value)
    searched = kind != SPACE or (bool(_KEY.fullmatch(path[-1])) and not is_place(path[-1], under(cfg)))
    return searched and _fits_plainly(kind, value)


def _fits_plainly(kind: str, value: Any) -> bool:
    if value is None or isinstance(value, bool | int | float):
        return True
    if not isinstance(value, str) or kind == NUMBER:
        return False
    return "${" not in value and value.isprintable() if kind == SPACE else bool(_WORD.fullmatch(value))


def _given_only(found: Mapping[_Path, Any], lines: Sequence[str]) -> bool:
    """Whether a composition's record of overrides is that of the overrides it was given: a sweep takes them from there,
    and a file can add to it."""
    recorded = [found.get(("overrides", name)) for name in ("hydra", "task")]
    return all(isinstance(some, list) for some in recorded) and sorted(map(str, sum(recorded, []))) == sorted(lines)  # type: ignore


def _leaves(node: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Values and lists by their path; of an empty mapping nothing."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from _leaves(value, (*path, key))


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def _follows(key: str, raw: Any, own: Any, given: set[str]) -> bool:
    """Whether a key is one's own text, which names values of the command line at most, or keys that are as they were:
    `paths.runs=runs/${name}`. `${now:...}` is another each time."""
    here = _walk(raw, key)
    if key.removeprefix("hydra.runtime.choices.") in given:
        return not isinstance(here, dict | list)
    if not _same(here, _walk(own, key)) or isinstance(here, dict | list):
        return False
    named = [found["key"] for found in _REFERENCE.finditer(str(here)) if found["key"]]
    rest = _REFERENCE.sub(lambda found: "" if found["key"] else found[0], str(here))
    return not _UNKNOWN.search(rest) and all(_follows(name, raw, own, given) for name in named)


def _at(raw: Any, path: _Path) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def _walk(raw: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(raw, str):  # itself a reference, perhaps
            return raw
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _given(lines: Sequence[str]) -> set[str]:
    """Keys that overrides give a value, those in a mapping too; nothing that an option of a group brings."""
    found = {line.lstrip("+").partition("=")[0] for line in lines}
    for override in parsed(line for line in lines if "{" in line):
        if isinstance(value := override.value(), dict):
            found |= {".".join(map(str, (override.key_or_group, *path))) for path, _ in _leaves(value)}
    return found


def _is_group(override: Override) -> bool:
    return "/" in override.key_or_group


def _force(override: Override) -> str:
    """A value of the command line as one that needs no such key to be there."""
    line = str(override.input_line)
    return f"++{line.lstrip('+')}" if override.type in (OverrideType.CHANGE, OverrideType.ADD) else line
