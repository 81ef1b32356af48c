"""The sections that weigh: is a difference real, what stays open, how far do seeds and patients spread, what does a
better Dice cost.
"""

from collections import Counter

import numpy as np

from segsweep.report import figures
from segsweep.report.content import Block, Cell, Code, Section, Table, joined, number, plural
from segsweep.report.findings import Findings, p_value, ranged, signed
from segsweep.report.statistics import FEWEST, FEWEST_REPEATS, mean_interval, nanmean, pareto

VERDICTS = {
    "none": "no difference shown",
    "trained": "these trained networks differ; repeats unknown",
    "chance": "no more than repeats differ",
    "shown": "shown, over patients and repeats",
}
MOST_CONTRASTS, MOST_PAIRS = 40, 60


def contrasts(found: Findings) -> Section | None:
    """Pairs of rows that differ in one factor, pooled by factor."""
    analysis = found.analysis
    if len(found.rows) < 2:
        return None
    if not analysis.contrasts:
        text = (
            "No two rows with patients in common differ in exactly one factor, so no difference can be put down to a"
            " setting."
        )
        if analysis.continuous:
            text = (
                f"No settings can be compared in pairs: {joined(analysis.continuous)} took too many values, and no two"
                " rows differ in just one other factor."
            )
        return Section("contrasts", "Is the difference real?", [text])
    shown = analysis.contrasts
    if len(shown) > MOST_CONTRASTS:
        shown = sorted(shown, key=lambda c: (c.p_holm, -abs(c.mean)))[:MOST_CONTRASTS]
    rows: list[list[Cell | str]] = [
        [
            c.factor,
            f"{c.b} − {c.a}",
            Cell(signed(c), c.mean),
            number(len(c.pairs), "d"),
            Cell(f"{c.range[0]:+.3f} to {c.range[1]:+.3f}" if len(c.pairs) > 1 else "–", c.range[0]),
            number(c.patients, "d"),
            number(c.seeds, "d"),
            Cell(p_value(c.p), c.p),
            Cell(p_value(c.p_holm), c.p_holm),
            Cell(p_value(c.signed_rank), c.signed_rank if c.signed_rank == c.signed_rank else ""),
            (
                Cell(f"[{c.over_repeats.low:+.3f}, {c.over_repeats.high:+.3f}] ({c.repeats})", c.over_repeats.mean)
                if c.over_repeats
                else Cell("–", "")
            ),
            Cell(p_value(c.p_repeats_holm), c.p_repeats_holm if c.over_repeats else ""),
            Cell(VERDICTS[c.verdict], c.verdict, "best" if c.verdict == "shown" else ""),
        ]
        for c in shown
    ]
    notes = {
        "difference in Dice": (
            "mean over patients of the paired difference, averaged over matched pairs and common seeds; 95 % interval"
            " over patients"
        ),
        "pair by pair": (
            "lowest and highest mean difference of the matched pairs; of both signs: what the factor does may depend on"
            " the other settings"
        ),
        "p": "sign-flip permutation test of that mean",
        "p Holm": f"corrected over the {plural(len(analysis.contrasts), 'contrast')} of this report",
        "p Wilcoxon": "signed-rank test of the same differences, not corrected",
        "over repeats": (
            "95 % interval when seeds (or else matched pairs) are as random as patients, from the pairs with the most"
            " seeds"
        ),
        "p repeats": "test that goes with it, Holm-corrected",
    }
    head = [
        "factor",
        "contrast",
        "difference in Dice",
        "pairs",
        "pair by pair",
        "patients",
        "seeds",
        "p",
        "p Holm",
        "p Wilcoxon",
        "over repeats",
        "p repeats",
        "verdict",
    ]
    limit = (
        f" The {MOST_CONTRASTS} with the smallest p of {len(analysis.contrasts)}."
        if len(shown) < len(analysis.contrasts)
        else ""
    )
    drawn = shown[:20]
    words = "; ".join(f"{c.factor}, {c.b} minus {c.a}: {signed(c)}, {VERDICTS[c.verdict]}" for c in drawn[:8])
    plot = figures.forest(
        "contrasts",
        f"Differences in Dice by contrast. {words}{'; and more, as in the table' if len(drawn) > 8 else ''}.",
        "Difference in mean Dice: blue over patients, thin orange over patients and repeats. An interval across zero"
        " shows no difference.",
        [f"{c.factor}: {c.b} − {c.a}" for c in drawn],
        [[c.interval, c.over_repeats] for c in drawn],
        zero=True,
        xlabel="difference in Dice",
    )
    text = (
        "Each contrast takes all pairs of rows that differ in that one factor, and compares them on the same patients"
        " at the same seeds."
    )
    blocks: list[Block] = [text, Table(f"Contrasts by factor.{limit}", head, rows, notes), [plot], _pairs(found)]
    if any(c.factor.split(".")[0] == "split" for c in shown):
        blocks.append(
            "A contrast of splits compares the same patients, but not the same slices of them, nor the same training"
            " patients."
        )
    if any(c.factor == "data.image_size" for c in shown):
        blocks.append(
            "A contrast of image sizes compares Dice at two sizes, each against truth resized to it: it holds the"
            " measure as well as the network."
        )
    if analysis.unpaired:
        blocks.append(
            f"{plural(analysis.unpaired, 'pair')} of rows differ in one factor but share no test patient at a common"
            " seed, and are not compared."
        )
    return Section("contrasts", "Is the difference real?", blocks)


def _pairs(found: Findings) -> Table:
    pairs = [(c, pair) for c in found.analysis.contrasts for pair in c.pairs]
    rows: list[list[Cell | str]] = []
    for c, pair in pairs[:MOST_PAIRS]:
        interval = mean_interval(pair.values, symmetric=True, bounds=(-1, 1))
        mean = float(nanmean(pair.values))
        patients = int((~np.isnan(pair.values)).sum())
        names = [found.title(pair.b), found.title(pair.a)]
        rows.append(
            [
                c.factor,
                *names,
                Cell(ranged(interval, mean, "+.3f"), mean),
                number(patients, "d"),
                number(pair.seeds, "d"),
            ]
        )
    limit = f" The first {MOST_PAIRS} of {len(pairs)}." if len(pairs) > MOST_PAIRS else ""
    return Table(
        f"Each matched pair.{limit}",
        ["factor", "row", "minus row", "difference in Dice", "patients", "seeds"],
        rows,
        folded=True,
    )


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
    """The spread of seeds beside the spread of patients."""
    if not found.rows:
        return None
    scores = found.comparison.scores["dice"]
    rows: list[list[Cell | str]] = []
    for i, row in enumerate(found.rows):
        by_seed = nanmean(scores[i], 1)
        by_seed = by_seed[~np.isnan(by_seed)]
        patients = found.comparison.by_patient(i)
        patients = patients[~np.isnan(patients)]
        rows.append(
            [
                Cell(found.title(i), i),
                number(len(row.seeds), "d"),
                ", ".join(f"{mean:.3f}" for mean in by_seed) or "–",
                number(float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None),
                number(len(patients), "d"),
                number(float(patients.std(ddof=1)) if len(patients) > 1 else None),
                number(float(patients.std(ddof=1) / np.sqrt(len(patients))) if len(patients) > 1 else None),
            ]
        )
    few = [row for row in found.rows if len(row.seeds) < FEWEST_REPEATS]
    text = (
        "Two kinds of chance: which patients were tested, and how training happened to go. An interval over patients"
        " says nothing of the second."
    )
    if few:
        text += (
            f" **{len(few)} of {len(found.rows)} rows have fewer than {FEWEST_REPEATS} seeds.** Left open there:"
            " whether training once more, with another initialisation and order of batches, would keep the ranking. A"
            " difference between two such rows is a difference between two trained networks."
        )
    head = [
        "row",
        "seeds",
        "mean Dice by seed",
        "SD of seeds",
        "patients",
        "SD of patients",
        "standard error of the mean",
    ]
    return Section(
        "repeats",
        "Seeds and patients",
        [text, Table("Spread of the mean Dice over seeds, and of the Dice over patients.", head, rows)],
    )


def tradeoffs(found: Findings) -> Section | None:
    """What a better Dice costs."""
    if len(found.rows) < 2:
        return None
    labels = [row.label for row in found.rows]
    panels, fronts = [], []
    arenas = np.array([row.arena for row in found.rows])
    candidates = [row.arena for row in found.rows if not row.leaks] or arenas.tolist()
    arena = Counter(candidates).most_common(1)[0][0]
    honest = np.where(arenas == arena, found.means, np.nan)
    for name, metric, what in (
        ("tradeoff-time", "training_seconds", "training seconds"),
        ("tradeoff-parameters", "parameters", "parameters"),
        ("tradeoff-gflops", "gflops", "GFLOPs an image"),
    ):
        cost = np.array([row.metric(metric) for row in found.rows])
        front = pareto(cost, honest)
        if front:
            panels.append(figures.tradeoff(name, what, cost, found.dice, found.means, front, labels))
            names = [found.title(i) for i in front[:6]] + ([f"{len(front) - 6} more"] if len(front) > 6 else [])
            fronts.append(f"By {what}, cheapest first: {joined(names)}.")
    if not panels:
        return None
    text = (
        "Rows on the Pareto front: no other row has a higher mean Dice at the same or a lower cost. The front is of"
        " means, and as uncertain as they are."
    )
    if found.arenas > 1:
        text += (
            f" On it are only rows that were tested as {found.title(arenas.tolist().index(arena))} was: the Dice of the"
            " others, of other data, another kind of split or one that leaks, is not comparable."
        )
    return Section("tradeoffs", "What does a better Dice cost?", [text, fronts, panels])


def method(found: Findings) -> Section:
    """How the figures were made, so that they can be doubted."""
    return Section(
        "method",
        "How the figures are made",
        [
            [
                (
                    "Dice, IoU and HD95 are of a patient's whole volume; a mean is over patients. Truth and prediction"
                    " both empty: undefined, left out and counted; exactly one empty: 0, with HD95 the volume's"
                    " diagonal. Accuracy is over all pixels."
                ),
                (
                    "Repeats are averaged within a patient first, and the folds of a cross-validation joined, so that"
                    " each patient counts once."
                ),
                (
                    "95 % intervals of means: studentised bootstrap over patients, equal-tailed for a mean, symmetric"
                    f" for a difference, 4000 seeded resamples; none below {FEWEST} patients, and none for medians. In"
                    " simulations with 20 patients of skewed Dice they cover the truth in 93 to 97 % of cases; where 5"
                    " to 10 % of the patients are missed outright, in about 90 %."
                ),
                (
                    "Paired test: sign-flip permutation of the mean difference (exact to 15 patients, else 20000 seeded"
                    " flips), Holm's correction over all contrasts. Wilcoxon's signed-rank test is shown beside it. The"
                    " best row is told from another only by the largest of all pairs' flips (Westfall and Young), for"
                    " it was picked by its score."
                ),
                (
                    "Over repeats: patients and seeds both random and crossed (Dorfman, Berbaum and Metz; Hillis),"
                    f" from {FEWEST_REPEATS} common seeds, or else matched pairs, on."
                ),
                (
                    "A difference is called shown only if its interval leaves out zero and both tests are below 5 %"
                    " after correction; without repeats it is said of the trained networks alone."
                ),
                (
                    "The folds of a cross-validation share training patients, so an interval over their pooled patients"
                    " is somewhat too narrow (Bengio and Grandvalet 2004); no estimator mends that."
                ),
            ]
        ],
    )
