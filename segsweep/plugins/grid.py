"""`hydra/sweeper=grid`: every combination of the values given, less what `sweep.exclude` takes out.

Hydra's basic sweeper composes each job once to see that it can be, and the launcher composes it again; here mistakes
are found before the sweep starts, and a job is composed once.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from segsweep.config.compose import Composer
from segsweep.config.conditions import ABSENT, Term, condition, flat, values
from segsweep.config.schema import engine, under
from segsweep.core.errors import nearest
from segsweep.core.session import session


class GridSweeper(BasicSweeper):
    """`params`: values to combine, as for Hydra's basic sweeper; the command line goes before them."""

    def __init__(self, params: DictConfig | None = None):
        super().__init__(max_batch_size=None, params=params)  # type: ignore[arg-type]
        self._composer: Composer | None = None

    def sweep(self, arguments: list[str]) -> Any:
        from segsweep.plugins._jobs import launch  # not for every command, which all import this

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        # `~key` is told to jobs as `~key=null`, which deletes that value alone
        bare = {f"{o.get_key_element()}=null": o.get_key_element() for o in overrides if o.value_type is None}
        points = [[bare.get(line, line) for line in point] for point in self.split_arguments(overrides, None)[0]]
        texts = list(OmegaConf.select(engine(self.config), "sweep.exclude") or [])
        self.where = f"{under(self.config)}sweep.exclude"
        kept = self._without(points, {text: condition(text, self.where) for text in texts})
        session().emit("total", jobs=len(kept))
        self._record(kept)
        return [launch(self.launcher, kept, 0)]

    def _without(self, points: list[list[str]], conditions: dict[str, list[Term]]) -> list[list[str]]:
        if not conditions:
            return points
        hits = dict.fromkeys(conditions, 0)
        keys = {term.key for terms in conditions.values() for term in terms}
        known: set[str] = set()
        kept = []
        for point in points:
            found = values(point, keys, self._compose, self.where)
            known |= {key for key in keys if found[key] is not ABSENT}
            met = [text for text, terms in conditions.items() if all(t.holds(found[t.key]) for t in terms)]
            hits |= {text: hits[text] + 1 for text in met}
            if not met:
                kept.append(point)
        if keys - known:
            names = list(flat(self._compose(points[0])))
            raise CompactHydraException(
                "\n".join(f"{self.where}: {k}: no job has such a key{nearest(k, names)}" for k in sorted(keys - known))
            )
        if not kept:
            raise CompactHydraException(f"{self.where} takes out all {len(points)} jobs")
        for text, count in hits.items():
            session().emit("text", text=f"{self.where}: {text} takes out {count or 'none'} of {len(points)} jobs")
        return kept

    def _compose(self, point: Sequence[str]) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        if self._composer is None:
            self._composer = Composer(self.hydra_context.config_loader, self.config)
        return self._composer(point)

    def _record(self, points: list[list[str]]) -> None:
        """What the sweep's record could not know before: how many jobs, and every number of epochs among them."""
        if lead := session().sweep:
            assert self.config is not None
            key = f"{under(self.config)}epochs"
            said = {
                tuple(o for o in point if o.lstrip("+").partition("=")[0] in (key, "experiment")): point
                for point in points
            }
            epochs = {values(point, [key], self._compose, key)[key] for point in said.values()}
            lead.note(jobs=len(points), milestones=sorted(n for n in epochs if isinstance(n, int)))
