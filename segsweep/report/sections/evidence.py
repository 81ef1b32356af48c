"""The sections that weigh: is a difference real, what stays open, how far do seeds and units spread, what does a better
score cost.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from segsweep.report import figures
from segsweep.report.content import Block, Cell, Code, Section, Table, a, joined, number, plural, plus
from segsweep.report.contrasts import Contrast
from segsweep.report.findings import Findings, p_value, ranged
from segsweep.report.statistics import FEWEST, FEWEST_REPEATS, mean_interval, nanmean, pareto

MOST_CONTRASTS, MOST_PAIRS = 40, 60
BOUNDED = (
    "In simulations with 20 {units} of skewed {score} they cover the truth in 93 to 97 % of cases; where 5 to 10 % of"
    " the {units} have the worst there is, in about 90 %."
)
UNBOUNDED = (
    "In simulations with 20 {units} whose values have no bound they cover the truth in 93 to 95 % of cases for normal"
    " errors, their sizes and their squares, and in about 90 % for a log-normal with a standard deviation of 1."
)


def contrasts(found: Findings) -> Section | None:
    """Pairs of rows that differ in one factor, pooled by factor."""
    analysis = found.analysis
    if len(found.rows) < 2:
        return None
    scaled = f" The scale of {found.score} depends on {joined(analysis.scales)}: rows that differ there do not compare."
    if not analysis.contrasts:
        text = (
            f"No two rows with {found.units} in common differ in exactly one factor, so no difference can be put down"
            " to a setting."
        )
        if analysis.continuous:
            text = (
                f"No settings can be compared in pairs: {joined(analysis.continuous)} took too many values, and no two"
                " rows differ in just one other factor."
            )
        return Section("contrasts", "Is the difference real?", [text + scaled * bool(analysis.scales)])
    shown = analysis.contrasts
    if len(shown) > MOST_CONTRASTS:
        shown = sorted(shown, key=lambda c: (c.p_holm, -abs(c.mean)))[:MOST_CONTRASTS]
    head, notes = _columns(found)
    rows: list[list[Cell | str]] = [[head[name](c) for name in head] for c in shown]
    limit = (
        f" The {MOST_CONTRASTS} with the smallest p of {len(analysis.contrasts)}."
        if len(shown) < len(analysis.contrasts)
        else ""
    )
    drawn = [c for c in shown[:20] if c.interval or c.over_repeats]
    words = "; ".join(f"{named(c)}, {c.b} minus {c.a}: {found.signed(c)}, {verdict(found, c)}" for c in drawn[:8])
    over = f", thin orange over {found.units} and repeats" if any(c.over_repeats for c in drawn) else ""
    plot = drawn and figures.forest(
        "contrasts",
        f"Differences in {found.score} by contrast. {words}{'; and more, as in the table' if len(drawn) > 8 else ''}.",
        f"Difference in mean {found.score}: blue over {found.units}{over}. An interval across zero shows no"
        " difference.",
        [f"{named(c)}: {c.b} − {c.a}" for c in drawn],
        [[c.interval, c.over_repeats] for c in drawn],
        zero=True,
        xlabel=f"difference in {found.score}",
    )
    text = (
        f"Each contrast takes all pairs of rows that differ in that one factor, and compares them on the same"
        f" {found.units}{'' if found.comparison.alone else ' at the same seeds'}."
    )
    blocks: list[Block] = [text + scaled * bool(analysis.scales)]
    blocks += [
        Table(f"Contrasts by factor.{limit}", list(head), rows, notes),
        *([[plot]] if plot else []),
        _pairs(found),
    ]
    if any(c.factor.split(".")[0] == "split" for c in shown) and not found.comparison.alone:
        apart = f", but not the same {found.samples} of them, nor" * (found.spec.sample != found.unit) or ", but not"
        blocks.append(f"A contrast of splits compares the same {found.units}{apart} the same training {found.units}.")
    blocks += found.own.sentences.get("contrasts", [])
    if analysis.unpaired:
        common = "" if found.comparison.alone else " at a common seed"
        blocks.append(
            f"{plural(analysis.unpaired, 'pair')} of rows differ in one factor but share no test {found.unit}{common},"
            " and are not compared."
        )
    return Section("contrasts", "Is the difference real?", blocks)


def _columns(found: Findings) -> tuple[dict[str, Callable[[Contrast], Cell | str]], dict[str, str]]:
    """Heading -> what stands below it for a contrast; heading -> note. What only seeds beside units have is left out
    where seeds stand in the place of units."""
    units = found.units
    difference = f"difference in {found.score}"
    head: dict[str, Callable[[Contrast], Cell | str]] = {
        "factor": named,
        "contrast": lambda c: f"{c.b} − {c.a}",
        difference: lambda c: Cell(found.signed(c), c.mean),
        "pairs": lambda c: number(len(c.pairs), "d"),
        "pair by pair": lambda c: Cell(
            f"{plus(c.range[0], found.form)} to {plus(c.range[1], found.form)}" if len(c.pairs) > 1 else "–", c.range[0]
        ),
        units: lambda c: number(c.units, "d"),
    }
    if not found.comparison.alone:
        head["seeds"] = lambda c: number(c.seeds, "d")
    head |= {
        "p": lambda c: Cell(p_value(c.p), c.p),
        "p Holm": lambda c: Cell(p_value(c.p_holm), c.p_holm),
        "p Wilcoxon": lambda c: Cell(p_value(c.signed_rank), c.signed_rank if c.signed_rank == c.signed_rank else ""),
    }
    if not found.comparison.alone:
        head |= {
            "over repeats": lambda c: (
                Cell(f"{found.span(c.over_repeats.low, c.over_repeats.high)} ({c.repeats})", c.over_repeats.mean)
                if c.over_repeats
                else Cell("–", "")
            ),
            "p repeats": lambda c: Cell(p_value(c.p_repeats_holm), c.p_repeats_holm if c.over_repeats else ""),
        }
    head["verdict"] = lambda c: Cell(verdict(found, c), c.verdict, "best" if c.verdict in ("shown", "seeds") else "")
    common = "" if found.comparison.alone else " and common seeds"
    notes = {
        difference: (
            f"mean over {units} of the paired difference, averaged over matched pairs{common}; 95 % interval over"
            f" {units}"
        ),
        "pair by pair": (
            "lowest and highest mean difference of the matched pairs; of both signs: what the factor does may depend on"
            " the other settings"
        ),
        "p": "sign-flip permutation test of that mean",
        "p Holm": f"corrected over the {plural(len(found.analysis.contrasts), 'contrast')} of this report",
        "p Wilcoxon": "signed-rank test of the same differences, not corrected",
        "over repeats": (
            f"95 % interval when seeds (or else matched pairs) are as random as {units}, from the pairs with the most"
            " seeds"
        ),
        "p repeats": "test that goes with it, Holm-corrected",
    }
    return head, notes


def named(c: Contrast) -> str:
    return f"{c.factor} at {c.where}" if c.where else c.factor


def verdict(found: Findings, c: Contrast) -> str:
    return {
        "none": "no difference shown",
        "trained": "these trained networks differ; repeats unknown",
        "chance": "no more than repeats differ",
        "shown": f"shown, over {found.units} and repeats",
        "seeds": f"shown over seeds; other {found.spec.unit}s unknown",
    }[c.verdict]


def _pairs(found: Findings) -> Table:
    pairs = [(c, pair) for c in found.analysis.contrasts for pair in c.pairs]
    alone, rows = found.comparison.alone, []
    for c, pair in pairs[:MOST_PAIRS]:
        interval = mean_interval(pair.values, symmetric=True, bounds=found.comparison.span)
        mean = float(nanmean(pair.values))
        count = int((~np.isnan(pair.values)).sum())
        cells: list[Cell | str] = [named(c), found.title(pair.b), found.title(pair.a)]
        cells += [Cell(ranged(interval, mean, found.form, plus), mean), number(count, "d")]
        rows.append([*cells, *([] if alone else [number(pair.seeds, "d")])])
    limit = f" The first {MOST_PAIRS} of {len(pairs)}." if len(pairs) > MOST_PAIRS else ""
    head = ["factor", "row", "minus row", f"difference in {found.score}", found.units, *([] if alone else ["seeds"])]
    return Table(f"Each matched pair.{limit}", head, rows, folded=True)


def confounded(found: Findings) -> Section | None:
    """Comparisons that a reader may make and that say nothing, with the runs that would settle them."""
    analysis = found.analysis
    if not analysis.confounded and not analysis.continuous:
        return None
    blocks: list[Block] = []
    for pair in analysis.confounded:
        blocks.append(
            f"{found.title(pair.a)} against {found.title(pair.b)}: **differs in {joined(pair.differs)}: not"
            " attributable.**"
        )
        if pair.command:
            blocks += [f"Against {found.title(pair.a)}, this run would settle {pair.factor}:", Code(pair.command)]
        else:
            blocks.append("No single setting tells them apart, so no one run settles it.")
    if analysis.unsettled > len(analysis.confounded):
        blocks.append(f"{analysis.unsettled - len(analysis.confounded)} more such comparisons are not listed.")
    if analysis.continuous:
        blocks.append(
            f"{joined(analysis.continuous)} took too many values to compare in pairs; see the importance of the"
            " factors."
        )
    return Section("confounded", "What these runs cannot settle", blocks)


def repeats(found: Findings) -> Section | None:
    """The spread of seeds beside the spread of units."""
    if not found.rows:
        return None
    alone, units, form = found.comparison.alone, found.units, found.form
    rows: list[list[Cell | str]] = []
    for i, row in enumerate(found.rows):
        by_unit = found.comparison.by_unit(i)
        by_unit = by_unit[~np.isnan(by_unit)]
        by_seed = by_unit if alone else nanmean(found.comparison.primary[i], 1)
        by_seed = by_seed[~np.isnan(by_seed)]
        deviation = float(by_unit.std(ddof=1)) if len(by_unit) > 1 else None
        cells: list[Cell | str] = [
            Cell(found.title(i), i),
            number(len(row.seeds), "d"),
            ", ".join(format(mean, form) for mean in by_seed) or "–",
            number(float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None, form),
        ]
        cells += [] if alone else [number(len(by_unit), "d"), number(deviation, form)]
        rows.append([*cells, number(float(deviation / np.sqrt(len(by_unit))) if deviation is not None else None, form)])
    few = [row for row in found.rows if len(row.seeds) < FEWEST_REPEATS]
    text = (
        f"Two kinds of chance: which {units} were tested, and how training happened to go. An interval over {units}"
        " says nothing of the second."
    )
    if alone:
        text = f"How training happened to go is the one kind of chance that is measured here. {found.open}"
    if few:
        text += (
            f" **{len(few)} of {len(found.rows)} rows have fewer than {FEWEST_REPEATS} seeds.** Left open there:"
            " whether training once more, with another initialisation and order of batches, would keep the ranking. A"
            " difference between two such rows is a difference between two trained networks."
        )
    head = ["row", "seeds", f"mean {found.score} by seed", "SD of seeds", *([] if alone else [units, f"SD of {units}"])]
    head = [name.removeprefix("mean ") for name in head] if alone else head
    caption = f"Spread of the mean {found.score} over seeds, and of the {found.score} over {units}."
    return Section(
        "repeats",
        "Seeds" if alone else f"Seeds and {units}",
        [text, Table("Spread over seeds." if alone else caption, [*head, "standard error of the mean"], rows)],
    )


def tradeoffs(found: Findings) -> Section | None:
    """What a better score costs."""
    if len(found.rows) < 2:
        return None
    labels = [row.label for row in found.rows]
    panels, fronts = [], []
    arenas = np.array([row.arena for row in found.rows])
    candidates = [row.arena for row in found.rows if not row.leaks] or arenas.tolist()
    arena = Counter(candidates).most_common(1)[0][0]
    honest = np.where(arenas == arena, found.means, np.nan)
    title = f"mean {found.score} of the {found.units}"
    for name, metric, usual in (
        ("tradeoff-time", "training_seconds", "training seconds"),
        ("tradeoff-parameters", "parameters", "parameters"),
        ("tradeoff-gflops", "gflops", f"GFLOPs {a(found.spec.sample)}"),
    ):
        cost, what = np.array([row.metric(metric) for row in found.rows]), found.word(metric, usual)
        front = pareto(cost, found.metric.sign * honest)
        if front:
            words = (found.score, title, found.form)
            panels.append(figures.tradeoff(name, what, cost, found.intervals, found.means, front, labels, *words))
            names = [found.title(i) for i in front[:6]] + ([f"{len(front) - 6} more"] if len(front) > 6 else [])
            fronts.append(f"By {what}, cheapest first: {joined(names)}.")
    if not panels:
        return None
    text = (
        f"Rows on the Pareto front: no other row has a {found.better} mean {found.score} at the same or a lower cost."
        " The front is of means, and as uncertain as they are."
    )
    if found.arenas > 1:
        scaled = f", on another scale ({joined(list(found.metric.scale), 'or')})" * bool(found.analysis.scales)
        text += (
            f" On it are only rows that were tested as {found.title(arenas.tolist().index(arena))} was: the"
            f" {found.score} of the others, of other data, another kind of split{scaled} or one that leaks, is not"
            " comparable."
        )
    return Section("tradeoffs", f"What does a better {found.score} cost?", [text, fronts, panels])


def method(found: Findings) -> Section:
    """How the figures were made, so that they can be doubted."""
    unit, units, alone = found.unit, found.units, found.comparison.alone
    sentences = list(found.own.sentences.get("method", []))
    if alone:
        sentences.append(found.open)
    else:
        sentences.append(
            f"Repeats are averaged within {a(unit)} first, and the folds of a cross-validation joined, so that each"
            f" {unit} counts once."
        )
    coverage = BOUNDED if np.isfinite(found.metric.bounds).all() else UNBOUNDED
    coverage = coverage.format(units=units, score=found.score)
    sentences += [
        (
            f"95 % intervals of means: studentised bootstrap over {units}, equal-tailed for a mean, symmetric for a"
            f" difference, 4000 seeded resamples; none below {FEWEST} {units}, and none for medians. {coverage}"
        ),
        (
            "Paired test: sign-flip permutation of the mean difference (exact to 15"
            f" {units}, else 20000 seeded flips), Holm's correction over all contrasts. Wilcoxon's signed-rank test is"
            " shown beside it. The best row is told from another only by the largest of all pairs' flips (Westfall and"
            " Young), for it was picked by its score."
        ),
    ]
    if alone:
        return Section("method", "How the figures are made", [sentences])
    sentences += [
        (
            f"Over repeats: {units} and seeds both random and crossed (Dorfman, Berbaum and Metz; Hillis), from"
            f" {FEWEST_REPEATS} common seeds, or else matched pairs, on."
        ),
        (
            "A difference is called shown only if its interval leaves out zero and both tests are below 5 % after"
            " correction; without repeats it is said of the trained networks alone."
        ),
        (
            f"The folds of a cross-validation share training {units}, so an interval over their pooled {units} is"
            " somewhat too narrow (Bengio and Grandvalet 2004); no estimator mends that."
        ),
    ]
    return Section("method", "How the figures are made", [sentences])
