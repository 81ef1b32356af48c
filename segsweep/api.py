"""From Python, a notebook say: `segsweep.sweep([...])` runs a sweep, `segsweep.load("multirun/SWEEP")` reads one.

What is counted and tested is what the report counts and tests, by the report's own code.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segsweep.config.start import start
from segsweep.core import source
from segsweep.core.errors import SegsweepError
from segsweep.core.masks import masked
from segsweep.core.session import Session, begin, session
from segsweep.report.comparison import compare
from segsweep.report.contrasts import Contrast
from segsweep.report.files import lines_of_runs
from segsweep.report.findings import Findings
from segsweep.report.records import read
from segsweep.report.settle import by
from segsweep.runs.find import find

NONE = (float("nan"),) * 4


class Results:
    """Runs as pandas DataFrames, and the best of them. Each attribute is worked out when it is first asked for.

    sources: folders, as they were given."""

    def __init__(self, sources: Sequence[Path], metric: str | None = None):
        self.sources = list(sources)
        self._record = read(self.sources)
        if metric:
            by(self._record, metric)
        self._found = Findings(compare(self._record))
        self._rows = {id(run): row.label for row in self._found.rows for run in row.runs}

    def __repr__(self) -> str:
        named = ", ".join(map(str, self.sources))
        return f"<segsweep {named}: {len(self._record.jobs)} jobs, {len(self._record.runs)} runs>"

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One line a job, as in the report's `runs.csv`: `sweep`, `job` (its number), `status`, `row` (what the report
        calls its configuration), `signature`, `group`, `folder`, its settings by their keys, its final metrics by part
        and name (`val/dice`, `test/dice`; own units), `total_seconds` and the like, and `error`. A setting that is
        called as one of these is `setting.NAME`, a number that is called as a setting `result.NAME`."""
        return pd.DataFrame(lines_of_runs(self._record, self._found.comparison))

    @cached_property
    def history(self) -> pd.DataFrame:
        """One line an epoch of a run: `signature`, `row`, `seed`, `epoch` (from 1), and what was measured in it, by
        part and name (`train/loss`, `val/dice`); NaN where a run has none."""
        return self._frame(
            pd.DataFrame(run.history).assign(**self._of(run)) for run in self._record.runs if run.history
        )

    @cached_property
    def units(self) -> pd.DataFrame:
        """One line a unit of a finished run's test: `signature`, `row`, `seed`, the unit under its kind (`patient`; one
        called `row` or `seed` is `unit.row` here), and its scores by name (`dice`); NaN where one is undefined."""
        return self._frame(
            pd.DataFrame(
                [{_apart(run.spec.unit, self._of(run)): unit, **scores} for unit, scores in run.units.items()]
            ).assign(**self._of(run))
            for run in self._record.runs
            if run.units
        )

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """One line for two settings of a factor that were compared on the same units, all else equal.

        `factor`, `a`, `b`; `difference`: b minus a, in the metric that runs are compared by; `low`, `high`: its 95 %
        interval over units; `p`: of the sign-flip test, `p_holm`: corrected for all contrasts, `p_signed_rank`: of
        Wilcoxon's test, uncorrected; `units`, `pairs` (of configurations), `seeds`: how many it rests on. Over units
        and repeats (`repeats`: seeds or pairs), where there are enough of them, else NaN: `repeats_difference`,
        `repeats_low`, `repeats_high`, `p_repeats`, `p_repeats_holm`. `verdict`: none (not shown), trained (these
        networks differ, other trainings unknown), chance (within what repeats differ), shown, or seeds (shown over
        seeds alone); `where`: the settings that the metric's scale depends on."""
        return pd.DataFrame([_line(c) for c in self._found.analysis.contrasts], columns=list(_COLUMNS))

    def best(self) -> pd.Series:
        """The line of `runs` of the finished run with the best validation score; never by a test. Raises SegsweepError
        where no run has one, and where several sweeps were loaded."""
        if len(self.sources) > 1:
            raise SegsweepError(f"{len(self.sources)} sweeps have no common best: load the one that it is to be of")
        folder, _ = find(f"best:{self.sources[0]}", Path("multirun"))
        return next(line for _, line in self.runs.iterrows() if _same(line["folder"], folder))

    def model(self, run: Any = None, weights: str | None = None) -> Any:
        """The trained network of a run, a torch.nn.Module in evaluation mode on the CPU: (B, C, H, W) float32,
        normalised as in training -> logits.

        run: a line of `runs`, a signature or a run folder; None: the `best()`. weights: last or best (epoch); None:
        those that the run's test describes. Raises SegsweepError, of a task without such networks too."""
        return self._trained(run, weights).model

    def predict(self, images: Any, run: Any = None, weights: str | None = None, device: str = "auto") -> Any:
        """Masks by the network of a run, prepared as in its training; run, weights: as for `model`.

        images: an array (N, H, W, C), or (N, H, W) of one channel, uint8 or uint16 as in files, the slices of one
        patient; gives masks (N, H, W), bool or uint8 of the classes' numbers. Or a file or folder, or a list of such,
        as of `segsweep predict`; gives a mapping of each patient to its masks, at the size of each file. Raises
        SegsweepError."""
        from segsweep.core.device import pick_device
        from segsweep.segmentation.predict import predict_array, predict_paths

        trained, place = self._trained(run, weights), pick_device(device)
        if isinstance(images, str | Path):
            images = [images]
        if not isinstance(images, np.ndarray) and all(isinstance(item, str | Path) for item in images):
            return predict_paths(trained, [Path(item) for item in images], place)
        return predict_array(trained, np.asarray(images), place)

    def _trained(self, run: Any, weights: str | None) -> Any:
        from segsweep.segmentation.trained import load as trained

        named = self.best() if run is None else run
        if not isinstance(named, pd.Series | str | Path):
            raise SegsweepError(
                f"run={run!r}: give a line of `runs`, such as runs.iloc[0], a signature or a run folder"
            )
        if isinstance(named, pd.Series) and not isinstance(named["folder"], str):
            raise SegsweepError(f"job {named['job']}: it has no run ({named['status']})")
        place = str(named["folder"] if isinstance(named, pd.Series) else named)
        known = [line.folder for line in self._record.runs if line.signature.startswith(place)]
        return trained(known[0] if len(known) == 1 else find(place, Path("multirun"))[0], weights)

    def _of(self, run: Any) -> dict[str, Any]:
        return {"signature": run.signature, "row": self._rows.get(id(run), ""), "seed": run.seed}

    def _frame(self, parts: Iterator[pd.DataFrame]) -> pd.DataFrame:
        """With what says whose it is in front."""
        first, found = ["signature", "row", "seed"], list(parts)
        whole = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=first)
        return whole[[*first, *(name for name in whole if name not in first)]]


_COLUMNS = (
    "factor", "a", "b", "difference", "low", "high", "p", "p_holm", "p_signed_rank", "units", "pairs", "seeds",
    "repeats", "repeats_difference", "repeats_low", "repeats_high", "p_repeats", "p_repeats_holm", "verdict", "where",
)  # fmt: skip


def _line(c: Contrast) -> dict[str, Any]:
    _, low, high, _ = c.interval or NONE
    mean, least, most, p = c.over_repeats or NONE
    values = (c.factor, c.a, c.b, c.mean, low, high, c.p, c.p_holm, c.signed_rank, c.units, len(c.pairs), c.seeds)
    values += (c.repeats, mean, least, most, p, c.p_repeats_holm, c.verdict, c.where)  # type: ignore[assignment]
    return dict(zip(_COLUMNS, values, strict=True))


def _apart(unit: str, taken: dict[str, Any]) -> str:
    return f"unit.{unit}" if unit in taken else unit


def _same(place: Any, folder: Path) -> bool:
    return isinstance(place, str) and Path(place).resolve() == folder.resolve()


def load(sources: str | Path | Sequence[str | Path], metric: str | None = None) -> Results:
    """What a sweep found: a sweep's folder (`multirun/SWEEP`), a run folder, an MLflow experiment's name or a run id,
    or several of these, pooled as in a report. metric: what runs are compared by, in place of what their task says.

    Raises SegsweepError where a source holds no runs."""
    start()
    given = [sources] if isinstance(sources, str | Path) else sources
    return Results([Path(source) for source in given], metric)


def sweep(overrides: str | Sequence[str] = ()) -> Results | None:
    """Run what `segsweep -m OVERRIDES` runs, with its lines of progress, and `load` it; what is in the record is not
    trained again. None after a plan (`hydra/launcher=plan`), which it prints.

    overrides: as on the command line, `["model=unet,r2unet", "optim.lr=1e-3,1e-4"]`, or one text of them. A job that
    failed is a line of `runs` with its error. Ctrl-C finishes the epoch and saves, twice stops now; it then raises
    KeyboardInterrupt, and the same call goes on. Raises SegsweepError for a mistake in the overrides, with all of them.
    Signals, streams and arguments are afterwards what they were."""
    from segsweep.sweeps import cli

    words = shlex.split(overrides) if isinstance(overrides, str) else [str(word) for word in overrides]
    asking = {word.split("=")[0] for word in words} & cli.ASKS
    if asking:
        raise SegsweepError(f"{min(asking)}: a question, for the command line: segsweep {min(asking)}")
    if not any("hydra/launcher=basic" in word for word in words):  # whose jobs run what is loaded here
        source.code.cache_clear()  # modules may have been edited since; workers load them anew
    with _alone(["-m", *words]):
        try:
            code = cli.main(raising=True)
        except SegsweepError as error:
            raise SegsweepError(masked(str(error))) from None
        lead = session().sweep
        folder = lead.folder if lead else None
    if code == 130:
        raise KeyboardInterrupt("stopped; what was trained is saved, and the same call goes on")
    if folder is None or not (folder / "sweep.json").exists():
        if code:
            raise SegsweepError("No job was started; why is printed above")
        return None
    return load(folder)


@contextmanager
def _alone(arguments: list[str]) -> Iterator[None]:
    """A session of its own that leaves nothing in the process: no worker, argument or log."""
    import logging

    before, argv, root = session(), sys.argv, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    here = begin(Session())
    sys.argv = [argv[0] if argv else "", *arguments]
    try:
        yield
    finally:
        for thing in (here.copier, here.pool):
            if thing:
                thing.close()
        sys.argv = argv
        begin(before)
        root.handlers[:] = handlers
        root.setLevel(level)
