"""Which run a configuration is, today, and which one a record is: what `signature` hashes, side by side."""

import contextlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from segsweep.config import whitelist
from segsweep.config.before import spec_of
from segsweep.config.components import of_length
from segsweep.config.schema import resolved, under
from segsweep.core import artifacts, source
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import first_line
from segsweep.core.signature import OWN, at_rest, deciding, endings, factors, left_out, signatures, without
from segsweep.core.source import code, places
from segsweep.task import Data, Spec
from segsweep.tracking.recall import configuration


@dataclass(frozen=True)
class Identity:
    """config: what decides numbers of a resolved configuration, nested. like: the same less what follows the seed and
    the other repeats. data, split: digests. files: module -> hash of its code. epochs: the key of their number. roots:
    modules of one's own that all of its code is reached from. settled: values of `config` that the data decided.
    places: module -> its file. rest: settings that are none of `config`, as each has its neutral value. endings: keys
    of `config` that decide none of the run's epochs. trained: those of `files` that are reached without these keys."""

    config: dict[str, Any]
    like: dict[str, Any]
    data: str
    split: str
    files: dict[str, str]
    epochs: str = "epochs"
    roots: tuple[str, ...] = ()
    settled: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)
    endings: tuple[str, ...] = ()
    trained: dict[str, str] | None = None

    @cached_property
    def ids(self) -> dict[str, str]:
        """signature, group and trajectory."""
        about = self.data, self.split, self.files, self.epochs, self.endings, self.trained
        return signatures(self.config, self.like, *about)

    def factors(self, choices: dict[str, Any], spec: Spec, at: str) -> dict[str, Any]:
        """As `signature.factors`, where what follows a repeat is told by that alone."""
        whole, like = factors(self.config, choices), factors(self.like, choices)
        alike = {key for key, value in whole.items() if key in like and str(like[key]) == str(value)}
        return {key: value for key, value in whole.items() if key in alike or key in repeats(spec, at)}

    @property
    def home(self) -> Path:
        """The folder whose repository is asked for the commit: of the task's own module, else of the first of one's own
        that is not this program's, else the working directory; this program's where the task is."""
        target = str((self.config.get(OWN) or self.config).get("task", {}).get("_target_") or "")
        first = target.rpartition(".")[0]
        if first.partition(".")[0] == source.PACKAGE.name:
            return source.PACKAGE
        own = [self.places[name] for name in (first, *self.roots) if name in self.places]
        foreign = [file for file in map(Path, own) if not file.resolve().is_relative_to(source.PACKAGE)]
        return foreign[0].parent if foreign else Path.cwd()

    @property
    def exact(self) -> bool:
        """Whether 1 and 1.0 are two values, see `signature.signatures`."""
        return self.epochs != "epochs"


def unwatched(found: Identity) -> dict[str, dict[str, str]]:
    """Module -> file and hash of one's own code that this process has loaded and `found` does not know: in the working
    directory, and where its own modules are imported from."""
    folders = {Path.cwd()}
    watched = {name: Path(file).resolve() for name, file in found.places.items()}
    for name, file in watched.items():
        inside = name.count(".") + (file.stem == "__init__")
        folders.add(file.parents[min(inside, len(file.parents) - 1)])
    files = source.unwatched(set(watched.values()), folders)
    kept = {}
    for name, place in files.items():
        with contextlib.suppress(OSError, SyntaxError, ValueError):  # gone by now, or no module of Python's
            kept[name] = {"file": str(place), "hash": source.hashes({name: place})[name]}
    return kept


def repeats(spec: Spec, at: str) -> tuple[str, ...]:
    """The keys in which repeats of one configuration differ; `at`: how the engine's keys begin."""
    return tuple(dict.fromkeys(("seed", f"{at}seed", *spec.repeats)))


def identity(
    cfg: DictConfig, spec: Spec, data: Data, folder: Path | None = None, values: dict[str, Any] | None = None
) -> Identity:
    """Of a composed configuration and what its task says of its data, with the code of today. folder: of the sweep, if
    any. values: of `cfg`, where they are resolved already; what is another application's is resolved here."""
    at = under(cfg)
    apart, settings = left_out(at, spec), dict(data.settings)
    place = str(folder.absolute()) if folder else ""
    given = of_length(cfg, resolved(cfg, (), place) if at or values is None else values)
    whole = without(given | settings, apart)
    config, rest = deciding(whole, spec), at_rest(whole, spec)
    like = deciding(without(resolved(cfg, repeats(spec, at), place) | settings, apart), spec) if at else config
    like = without(like, repeats(spec, at))
    roots = tuple(sorted(whitelist.modules(config) | set(spec.code)))
    digests = (data.digest or "", data.split)
    ends = endings(config, spec)
    files, fewer = code(*roots), tuple(sorted(whitelist.modules(without(config, ends)) | set(spec.code)))
    trained = files if fewer == roots else code(*fewer)
    key, where = f"{at}epochs", places(*roots)
    return Identity(config, like, *digests, files, key, roots, settings, where, rest, ends, trained)


def recorded(folder: Path) -> tuple[Identity, DictConfig, dict[str, Any]]:
    """Of a run folder, with its whole configuration and its run.json. Raises SegsweepError where the record is damaged,
    or made by a version of this program that named runs by other rules."""
    info = artifacts.read_json(folder / "run.json") or {}
    try:
        spec = spec_of(info)
        cfg = configuration(folder)
        at = under(cfg)
        whole: Any = OmegaConf.to_container(cfg, resolve=True)
        whole = without(whole, left_out(at, spec))
        config, rest = deciding(whole, spec), at_rest(whole, spec)
        plain = {key for key, value in config.items() if not isinstance(value, dict)} | set(info.get("resolved") or ())
        told = info["factors"]
        settled = {key: told[key] for key in sorted(plain & set(told)) if told[key] != config.get(key)}
        data, split = (info[part]["digest"] or "" for part in ("data", "split"))
        rested = {*(info.get("resolved") or ())} & spec.neutral.keys() - told.keys()  # by what the data decided
        config = without(config, tuple(rested)) | settled
        rested = {key: spec.neutral[key] for key in rested}
        rest = {key: value for key, value in rest.items() if key not in settled} | rested
        like = without(config, repeats(spec, at))
        found = Identity(config, like, data, split, dict(info["files"]), f"{at}epochs")
        same = found.ids["signature"] == info["signature"]
        ends = endings(config, spec)
        found = replace(found, settled=settled | rested, places=dict(info.get("places") or {}), rest=rest, endings=ends)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise SegsweepError(f"{folder / 'config.yaml'}: cannot be read: {first_line(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError):
        same = False
    if not info:
        raise SegsweepError(f"{folder / 'run.json'}: missing or damaged; expected the record of a run")
    if not same:
        made = artifacts.made_by(info).get("segsweep", "of unknown version")
        raise SegsweepError(
            f"{folder}: its signature does not follow from its record, which is damaged or was made by a segsweep "
            f"({made}) that named runs by other rules; what it is cannot be compared"
        )
    return found, cfg, info
