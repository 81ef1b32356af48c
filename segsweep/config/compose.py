"""The configurations of a sweep's jobs, most of which differ in a few values: Hydra composes the first of a kind (a
tenth of a second), and the others are that one with these values changed (some milliseconds)."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import CompactHydraException, HydraException
from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from segsweep.config.schema import OF_KEYS, OF_VALUES, chosen, resolved, under
from segsweep.core.session import session
from segsweep.core.signature import OWN

KINDS = 64
"""Kinds of job that are kept: the same groups, and the same keys with whatever values."""
_VALUE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)=")
"""How an override begins that may give a key a value: a group's option is told apart by the groups' names."""
_WORD = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_PLAIN = re.compile(
    rf"\$\{{(?:{_WORD.pattern}\}}|(?:oc\.env|{'|'.join(OF_VALUES)}):|(?:{'|'.join(OF_KEYS)}):{_WORD.pattern},)"
)
"""How an interpolation begins that depends on keys whose names are written in it, and on nothing else of a job."""
_Path = tuple[Any, ...]


class Own(NamedTuple):
    """A job's own configuration, and the option chosen in each group. cfg: for now, as the next of its kind is this one
    changed. values: what `schema.resolved` gives of it; None where it is to be asked."""

    cfg: DictConfig
    choices: dict[str, Any]
    values: dict[str, Any] | None = None


class _Kind:
    """Jobs of the same groups and the same keys, of which one was composed."""

    def __init__(self, lines: list[str], config: DictConfig):
        self.lines, self.packed = lines, pickle.dumps(config)
        self._live: _Live | None = None
        self._alone = OWN in config  # of what is another application's nobody knows what may refer to what

    def whole(self, lines: list[str]) -> DictConfig | None:
        """A job's configuration; None where Hydra has to say what becomes of a value."""
        config: DictConfig = pickle.loads(self.packed)
        changed = _changed(self.lines, lines)
        if changed is None or not all(_set(config, line) for line in changed):
            return None
        config.hydra.overrides.task = [line for line in lines if not _parsed(line).is_hydra_override()]
        return config

    def own(self, lines: list[str]) -> Own | None:
        """None where another way has to be gone."""
        if self._alone:
            return None
        live, self._live = self._live, None  # what ends here by whatever error may have changed it half
        try:
            live = live or _Live(self.lines, *bare(pickle.loads(self.packed)))
            found = live.become(lines)
        except OmegaConfBaseException:  # of a value that cannot be looked up, which whoever asks for it tells
            return None
        self._live = live if found else None
        return found


class _Live:
    """One configuration that becomes that of one job after another, and its resolved values: of these, what was given
    and what refers to it are looked up again."""

    def __init__(self, lines: list[str], cfg: DictConfig, choices: dict[str, Any]):
        self.lines, self.cfg, self.choices = lines, cfg, choices
        self.places = dict(_leaves(OmegaConf.to_container(cfg, resolve=False)))
        self.values = resolved(cfg)
        self._affected: dict[tuple[str, ...], list[_Path]] = {}

    def become(self, lines: list[str]) -> Own | None:
        changed = _changed(self.lines, lines)
        keys = tuple(line.partition("=")[0] for line in changed or ())
        if changed is None or not all(map(_is_plain, changed)) or not all(key in self.places for key in keys):
            return None
        if not all(_set(self.cfg, line) for line in changed):
            return None
        self.lines = lines
        if keys not in self._affected:
            self._affected[keys] = list(_affected(self.places, keys))
        for path in self._affected[keys]:
            node: Any = self.cfg
            place: Any = self.values
            for part in path[:-1]:
                node, place = node._get_node(part), place[part]
            item = node[path[-1]]
            place[path[-1]] = OmegaConf.to_container(item, resolve=True) if isinstance(item, Container) else item
        return Own(self.cfg, self.choices, _copied(self.values))


def _is_plain(line: str) -> bool:
    """Whether what an override gives is a value itself, and refers to no other; braces may be escaped."""
    try:
        text = str(_parsed(line).value())
    except HydraException:
        return False
    return "${" not in text and text != "???"


def _leaves(node: Any, path: _Path = ()) -> Iterator[tuple[str, tuple[_Path, frozenset[str] | None]]]:
    """Dotted key, and the place of all that is written, with the words in it that may be keys it refers to: None where
    it may refer to others, too."""
    if isinstance(node, dict | list) and node:
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(item, (*path, key))
    elif isinstance(node, str) and "${" in node:
        known = node.count("${") == len(_PLAIN.findall(node))
        yield ".".join(map(str, path)), (path, frozenset(_WORD.findall(node)) if known else None)
    else:
        yield ".".join(map(str, path)), (path, frozenset())


def _affected(places: dict[str, tuple[_Path, frozenset[str] | None]], keys: tuple[str, ...]) -> Iterator[_Path]:
    """What has another value when these keys have: they, and all that may refer to them, by whatever steps."""
    found = {*keys, *(key for key, (_, refers) in places.items() if refers is None)}
    before = 0
    while before < len(found):
        before = len(found)
        found |= {k for k, (_, refers) in places.items() if any(_meet(a, b) for a in refers or () for b in found)}
    return (places[key][0] for key in places if key in found)


def _meet(one: str, other: str) -> bool:
    """Whether one key is the other, or holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copied(item) for key, item in node.items()}
    return [_copied(item) for item in node] if isinstance(node, list) else node


def _changed(known: list[str], lines: list[str]) -> list[str] | None:
    """The overrides that differ from those of a job of the same kind; None where others may overrule them."""
    found = []
    for place, (before, line) in enumerate(zip(known, lines, strict=True)):
        if line != before:
            if _overruled(line, lines[place + 1 :]):
                return None
            found.append(line)
    return found


class Composer:
    """`composer(overrides)` is `load_sweep_config(master, overrides)`, which composes what is not a matter of values
    (groups, packages, additions, deletions, whole mappings or lists, Hydra's own settings) and whatever cannot be set.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig):
        self.loader, self.master = loader, master
        self.groups = set(master.hydra.runtime.choices)
        self.known: OrderedDict[tuple[str, ...], _Kind] = OrderedDict()
        self._made: tuple[list[str], DictConfig | None] = [], None  # for whoever asks for the same right after `own`

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        lines = list(overrides)
        made, self._made = self._made, ([], None)
        if made[0] == lines and made[1]:
            return made[1]
        if (known := self._known(lines)) and (config := known.whole(lines)):
            return config
        config = self.loader.load_sweep_config(self.master, lines)
        if session().foreign:
            from segsweep.config.hold import changed

            if keys := changed(self.master, config, lines, session().hold):
                raise CompactHydraException(
                    f"{', '.join(keys)}: the files of a job's options may not change this in a sweep"
                )
        self.known[self._kind(lines)] = _Kind(lines, config)
        if len(self.known) > KINDS:
            self.known.popitem(last=False)
        return config

    def own(self, overrides: Sequence[str]) -> Own:
        """The same without Hydra's part, and its values, in a fraction of the time: of a kind one configuration is
        changed from job to job."""
        lines = list(overrides)
        if (known := self._known(lines)) and (found := known.own(lines)):
            return found
        whole = self(lines)
        self._made = lines, whole
        return self.known[self._kind(lines)].own(lines) or Own(*bare(whole))

    def _known(self, lines: list[str]) -> _Kind | None:
        if found := self.known.get(kind := self._kind(lines)):
            self.known.move_to_end(kind)
        return found

    def _kind(self, lines: list[str]) -> tuple[str, ...]:
        return tuple(self._key(line) or line for line in lines)

    def _key(self, line: str) -> str | None:
        """The key to which an override gives a value; None where it may be anything else."""
        found = _VALUE.match(line)
        key = found[1] if found else None
        return None if key is None or key in self.groups or key.partition(".")[0] == "hydra" else key


def _overruled(line: str, later: list[str]) -> bool:
    """Whether a later override may be of the same key or of what is around it; a group's option never is, for Hydra
    sets all values after it."""
    key = line.partition("=")[0]
    others = (other.lstrip("+~").partition("=") for other in later)
    return any(f"{key}.".startswith(f"{name}.") and (name == key or value[:1] in "{$") for name, _, value in others)


def _set(config: DictConfig, line: str) -> bool:
    try:
        override = _parsed(line)
        key, value = override.key_or_group, override.value()
        plain = override.type == OverrideType.CHANGE and (value is None or isinstance(value, bool | int | float | str))
        if not plain or isinstance(OmegaConf.select(config, key), Container):
            return False
        OmegaConf.update(config, key, value, merge=True)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def choices_of(own: DictConfig, hydra: Any) -> dict[str, Any]:
    """The option chosen in each group that is the run's own: none of Hydra's, and of groups within groups those of an
    application."""
    found: Any = OmegaConf.to_container(hydra.runtime.choices)
    nested = bool(under(own))
    return {g: option for g, option in found.items() if "/" not in g or (nested and not g.startswith("hydra/"))}


def bare(config: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """A composed job's own configuration without Hydra's part, and the option chosen in each group."""
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    return with_environment(chosen(own, config.hydra.runtime.choices), config.hydra), choices_of(own, config.hydra)


def with_environment(own: DictConfig, hydra: Any) -> DictConfig:
    """`own`, changed: of what came by a door with the variables that Hydra sets for it, `hydra.job.env_set`, as any
    code may read those; not with those that are only copied, `hydra.job.env_copy`."""
    given: Any = OmegaConf.to_container(hydra.job.env_set, resolve=False)
    given = {name: text for name, text in given.items() if name not in hydra.job.env_copy}
    if session().door and given:
        with open_dict(own):
            own["hydra"] = {"job": {"env_set": given}}
    return own


@lru_cache(4096)
def _parsed(line: str) -> Override:
    return OverridesParser.create().parse_override(line)
