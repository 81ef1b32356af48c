"""Holds the report's claims against controlled runs: docs/results/revisited.json, and its numbers in the document.

    python docs/revisited.py multirun/SWEEP...   # from the record of finished sweeps
    python docs/revisited.py                     # the document again, from the JSON

Every number and every verdict of docs/report_revisited.md stands between markers and is written here, from the tests'
results; the words around them claim nothing. One run's accuracy and Dice and the contrasts are drawn in docs/images/.
"""

import argparse
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from segsweep.report import figures, statistics
from segsweep.report.comparison import Configuration, compare, digest
from segsweep.report.content import joined, plural
from segsweep.report.contrasts import Contrast, correct, over_pairs
from segsweep.report.findings import Findings, p_value
from segsweep.report.records import read

DOCS = Path(__file__).parent
JSON, DOCUMENT, IMAGES = DOCS / "results" / "revisited.json", DOCS / "report_revisited.md", DOCS / "images"
SETTINGS = ("model", "loss", "optim", "optim.lr", "epochs")
CLAIMS = {  # claim -> (factor, the level that the report prefers, the report's own settings of the rest)
    "optimizer": ("optim", "adam", {"model": "unet", "loss": "bce", "optim.lr": 1e-3, "epochs": 5}),
    "optimizer-r2unet": ("optim", "adam", {"model": "r2unet", "loss": "bce", "optim.lr": 1e-4, "epochs": 5}),
    "epochs": ("epochs", "10", {"model": "unet", "loss": "bce", "optim": "adam", "optim.lr": 1e-3}),
    "rate": ("optim.lr", "0.001", {"model": "unet", "loss": "bce", "optim": "adam", "epochs": 5}),
    "dice-loss": ("loss", "dice", {"model": "unet", "optim": "adam", "optim.lr": 1e-3, "epochs": 5}),
    "r2unet": ("model", "r2unet", {"loss": "bce", "optim": "adam", "optim.lr": 1e-4, "epochs": 5}),
}
TITLES = {
    "optimizer": "Adam is better than SGD (U-Net, 1e-3)",
    "optimizer-r2unet": "Adam is better than SGD (R2U-Net, 1e-4)",
    "epochs": "ten epochs are better than five (U-Net)",
    "rate": "a learning rate of 1e-3 is better than 1e-4 (U-Net)",
    "dice-loss": "Dice loss is better than cross-entropy (U-Net)",
    "r2unet": "R2U-Net is better than U-Net (1e-4)",
}


def measure(sweeps: list[str]) -> dict[str, Any]:
    """All numbers that the document quotes, from the record of `sweeps`."""
    record = read(sweeps)
    found = Findings(compare(record))
    rows, contrasts = found.rows, [c for c in found.analysis.contrasts if c.factor in (*SETTINGS, "split")]
    own = {}
    for claim, (factor, _, rest) in CLAIMS.items():
        for contrast in contrasts:
            pairs = [p for p in contrast.pairs if contrast.factor == factor and _has(rows[p.a], rest)]
            if pairs:
                own[claim] = over_pairs(factor, pairs, found.comparison)
    correct(list(own.values()))
    runs = [run for row in rows for run in row.runs]
    patients = {p: values for run in runs for p, values in run.units.items()}
    pixels = sum(values[k] for values in patients.values() for k in ("tp", "fp", "fn", "tn"))
    facts = {
        "runs": len(runs),
        "asked": len({job.run.signature if job.run else (job.sweep, job.number) for job in record.jobs}),
        "configurations": len(rows),
        "seeds": found.comparison.seeds,
        "patients": len(patients),
        "data": sorted({f"{run.info['data']['name']} {digest(run, 'data')[:12]}" for run in runs}),
        "split": sorted({f"{run.info['split']['kind']} {digest(run, 'split')[:12]}" for run in runs}),
        "of": sorted({run.info["data"]["patients"] for run in runs}),
        "shared": {k: v for k, v in found.varied[1].items() if k not in SETTINGS},
        "devices": found.devices,
        "versions": runs[0].info.get("versions"),
        "accuracy_of_nothing": 1 - sum(v["truth_pixels"] for v in patients.values()) / pixels,
    }
    return {
        "record": facts,
        "rows": [_row(found, i) for i in range(len(rows))],
        "runs": [_run(run) for run in runs],
        "contrasts": [_contrast(found, c) for c in contrasts],
        "claims": {claim: _contrast(found, c) for claim, c in own.items()},
    }


def _has(row: Configuration, settings: dict[str, Any]) -> bool:
    return all(row.factors.get(name) == value for name, value in settings.items())


def _row(found: Findings, i: int) -> dict[str, Any]:
    row, dice, gap = found.rows[i], found.intervals[i], found.overfitting[i]
    by_seed = statistics.nanmean(found.comparison.scores["dice"][i], 1)
    by_seed = by_seed[~np.isnan(by_seed)]
    reached = found.convergence[i]
    return {name: row.factors.get(name) for name in SETTINGS} | {
        "split": row.factors.get("split"),
        "seeds": len(row.seeds),
        "dice": float(found.means[i]),
        "interval": [dice.low, dice.high] if dice else None,
        "sd_of_seeds": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "hd95": found.comparison.mean(i, "hd95"),
        "missed": row.metric("test/missed"),
        "train_dice": row.metric("train/dice"),
        "trend": gap.trend if gap else None,
        "to_95_percent": reached.epochs if reached else None,
        "still_rising": reached.rising if reached else None,
        **{name: row.metric(name) for name in ("test/accuracy", "train/loss", "test/loss", "parameters", "gflops")},
        "images_per_second": row.metric("images_per_second"),
    }


def _run(run: Any) -> dict[str, Any]:
    part, history = run.evaluated_on, run.history
    gap, loss = history["train/dice"] - history[f"{part}/dice"], history[f"{part}/loss"]
    five = float(gap[-1] - gap[4]) if len(gap) > 5 else None
    return {name: run.factors.get(name) for name in (*SETTINGS, "seed", "split")} | {
        "accuracy": run.metrics["test/accuracy"],
        "dice": run.metrics["test/dice"],
        "train_loss": run.metrics["train/loss"],
        "test_loss": run.metrics["test/loss"],
        "gap": float(gap[-1]),
        "gap_since_epoch_5": five,
        "loss_above_its_lowest": float(loss[-1] / loss.min() - 1),
        "loss_still_falling": bool(len(loss) > 1 and loss[-1] < loss[-2]),
        "part": part,
    }


def _contrast(found: Findings, c: Contrast) -> dict[str, Any]:
    scores, pairs = found.comparison.scores, []
    for pair in c.pairs:
        a, b = found.rows[pair.a], found.rows[pair.b]
        interval = statistics.mean_interval(pair.values, symmetric=True, bounds=(-1, 1))
        both = scores["dice"][pair.b] - scores["dice"][pair.a]
        over = statistics.crossed_interval(both[~np.isnan(both).all(1)])
        hd95 = statistics.nanmean(scores["hd95"][pair.b] - scores["hd95"][pair.a], 0)
        outline = statistics.mean_interval(hd95, symmetric=True)
        pairs.append(
            {"settings": {name: a.factors.get(name) for name in SETTINGS if name != c.factor}, "seeds": pair.seeds}
            | {"a": float(found.means[pair.a]), "b": float(found.means[pair.b])}
            | {"difference": float(statistics.nanmean(pair.values)), "interval": _ends(interval)}
            | {"over_repeats": _ends(over)}
            | {"accuracy": b.metric("test/accuracy") - a.metric("test/accuracy")}
            | {"hd95": float(statistics.nanmean(hd95)), "hd95_interval": _ends(outline)}
        )
    facts = {"factor": c.factor, "a": c.a, "b": c.b, "difference": c.mean, "interval": _ends(c.interval)}
    facts |= {"patients": c.units, "seeds": c.seeds, "p_holm": c.p_holm, "verdict": c.verdict, "repeats": c.repeats}
    return facts | {"over_repeats": _ends(c.over_repeats), "p_repeats_holm": _number(c.p_repeats_holm), "pairs": pairs}


def _ends(interval: statistics.Interval | None) -> list[float] | None:
    return [float(interval.low), float(interval.high)] if interval else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


# From the numbers to words: `m` is what `measure` returned, read back from the JSON.


def blocks(m: dict[str, Any]) -> dict[str, str]:
    """Marker -> Markdown."""
    texts = {claim: claimed(m, claim) for claim in CLAIMS}
    return texts | {
        "record": ran(m),
        "verdicts": verdicts(m),
        "epochs-curves": converged(m),
        "rate-curves": stuck(m),
        "overfitting": overfitted(m),
        "r2unet-cost": cost(m),
        "accuracy": accuracy(m),
        "split": split(m),
        "rows": table_of_rows(m),
    }


def ran(m: dict[str, Any]) -> str:
    r = m["record"]
    lost = f" **{r['asked'] - r['runs']} more were asked for and have not finished.**" if r["asked"] > r["runs"] else ""
    names = ("data.image_size", "model.width", "scheduler", "batch_size", "data.normalise", "augment", "precision")
    shared = ", ".join(f"`{name}={r['shared'][name]}`" for name in names if name in r["shared"])
    return (
        f"{r['runs']} finished runs in {r['configurations']} configurations, seeds"
        f" {joined(list(map(str, r['seeds'])))}, each tested on the same {r['patients']} of"
        f" {joined(list(map(str, r['of'])), 'or')} patients, none of whom was trained on (data manifest"
        f" {joined([d.split()[-1] for d in r['data']])}, split {joined([s.split()[-1] for s in r['split']])}).{lost}"
        f" All share {shared}. Device: {joined(r['devices'])}; torch {r['versions'].get('torch')}, segsweep"
        f" {r['versions'].get('segsweep')}."
    )


def verdict(c: dict[str, Any], preferred: str) -> str:
    """What the test says of the claim that `preferred` is better, in two or three words."""
    better = c["b"] if c["difference"] > 0 else c["a"]
    held = "Borne out" if better == preferred else "The opposite is shown"
    return {
        "shown": held,
        "trained": f"{held}, of these trained networks alone",
        "chance": "Not shown: no more than seeds differ",
        "none": "Not shown",
    }[c["verdict"]]


def size(c: dict[str, Any], preferred: str) -> str:
    """The difference, the preferred level less the other, with its intervals."""
    sign = 1 if c["b"] == preferred else -1
    text = f"{preferred} − {c['a'] if sign > 0 else c['b']}: {_signed(c['difference'], c['interval'], sign)}"
    return text + (f", over seeds too {_span(c['over_repeats'], sign)}" if c["over_repeats"] else "")


def verdicts(m: dict[str, Any]) -> str:
    lines = ["| the report's claim, at its own settings | controlled runs | difference in Dice | n | p, Holm |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for claim, (_, preferred, _) in CLAIMS.items():
        c = m["claims"].get(claim)
        if c is None:
            lines.append(f"| {TITLES[claim]} | **not measured** | – | – | – |")
            continue
        p = f"{p_value(c['p_holm'])}; over seeds {_p(c['p_repeats_holm'])}"
        n = f"{c['patients']} patients, {plural(c['seeds'], 'seed')}"
        lines.append(f"| {TITLES[claim]} | **{verdict(c, preferred)}** | {size(c, preferred)} | {n} | {p} |")
    return "\n".join(lines)


def claimed(m: dict[str, Any], claim: str) -> str:
    """The claim at the report's own settings, then over all settings of the grid, then each matched pair."""
    factor, preferred, rest = CLAIMS[claim]
    c = m["claims"].get(claim)
    if c is None:
        return f"Not measured: no finished pair of runs differs in `{factor}` alone at {_settings(rest)}."
    text = f"**{verdict(c, preferred)}** at the report's settings ({_settings(rest)}): {_full(c, preferred)}."
    every = next((k for k in m["contrasts"] if k["factor"] == factor and preferred in (k["a"], k["b"])), None)
    if every is None or len(every["pairs"]) < 2 or claim == "optimizer-r2unet":
        return text
    text += f"\n\nOver all {len(every['pairs'])} matched pairs: {verdict(every, preferred).lower()};"
    text += f" {_full(every, preferred)}."
    sign = 1 if every["b"] == preferred else -1
    ends = sorted(sign * pair["difference"] for pair in every["pairs"])
    if ends[0] < 0 < ends[-1]:
        text += " The pairs have both signs: what it does may depend on the other settings, and the mean hides that."
    return f"{text}\n\n{_pairs(every, preferred)}"


def _full(c: dict[str, Any], preferred: str) -> str:
    tests = f"{c['patients']} patients, {plural(c['seeds'], 'seed')}, p {_p(c['p_holm'])} after Holm"
    if c["p_repeats_holm"] is not None:
        tests += f", over patients and {c['repeats']} {_p(c['p_repeats_holm'])}"
    text = f"{size(c, preferred)} ({tests})"
    if c["verdict"] == "none" and c["interval"]:
        text += "; no proof of equality, for anything inside the interval remains possible"
    return text


def _pairs(c: dict[str, Any], preferred: str) -> str:
    sign = 1 if c["b"] == preferred else -1
    other = c["a"] if sign > 0 else c["b"]
    head = ["all else", f"Dice, {other}", f"Dice, {preferred}", "difference", "over seeds too", "in accuracy", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for pair in sorted(c["pairs"], key=lambda pair: -sign * pair["difference"]):
        low, high = (pair["a"], pair["b"]) if sign > 0 else (pair["b"], pair["a"])
        cells = [_settings(pair["settings"]), f"{low:.3f}", f"{high:.3f}"]
        cells += [_signed(pair["difference"], pair["interval"], sign), _span(pair["over_repeats"], sign)]
        cells += [f"{sign * pair['accuracy']:+.4f}", str(pair["seeds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def converged(m: dict[str, Any]) -> str:
    rows = [row for row in m["rows"] if row["epochs"] == max(r["epochs"] for r in m["rows"]) and row["to_95_percent"]]
    rising = [row for row in rows if row["still_rising"]]
    some = [r for r in rows if r["optim"] == "adam" and r["optim.lr"] == 1e-3]
    told = [
        f"{r['model']} {'–'.join(map(str, sorted({min(r['to_95_percent']), max(r['to_95_percent'])})))}" for r in some
    ]
    text = (
        f"{len(rising)} of {len(rows)} configurations of {rows[0]['epochs']} epochs had a run whose Dice was highest in"
        " the last epoch and gained over 1 % there: stopped, not converged."
        if rows
        else ""
    )
    return text + (
        f" With Adam at 1e-3, 95 % of the final Dice was first reached after epoch {joined(told)} (lowest and highest"
        " of the seeds)."
        if told
        else ""
    )


def stuck(m: dict[str, Any]) -> str:
    runs = [r for r in m["runs"] if (r["optim"], r["optim.lr"], r["epochs"], r["loss"]) == ("adam", 1e-4, 5, "bce")]
    if not runs:
        return "Not measured: no finished run with Adam at 1e-4."
    falling = sum(r["loss_still_falling"] for r in runs)
    text = f"{falling} of {len(runs)} runs with Adam at 1e-4 had a {runs[0]['part']} loss that still fell in epoch 5."
    longer = [
        pair
        for c in m["contrasts"]
        if c["factor"] == "epochs"
        for pair in c["pairs"]
        if (pair["settings"]["optim"], pair["settings"]["optim.lr"]) == ("adam", 1e-4)
    ]
    told = [
        f"{p['settings']['model']} by {_signed(p['difference'], p['interval'])}, over seeds too"
        f" {_span(p['over_repeats'])} (n = {p['seeds']} seeds)"
        for p in longer
    ]
    return text + (f" Five more epochs at the same rate change Dice: {joined(told)}." if told else "")


def overfitted(m: dict[str, Any]) -> str:
    runs = [r for r in m["runs"] if r["split"] != "slice"]
    below = [r for r in runs if r["test_loss"] < r["train_loss"]]
    part = runs[0]["part"]
    text = f"The test loss is below the training loss in {len(below)} of {len(runs)} runs"
    if below:
        dice = [r["dice"] for r in below]
        dead = sum(d < 0.5 for d in dice)
        text += f", whose Dice lies between {min(dice):.3f} and {max(dice):.3f} and in {dead} of them below 0.5"
    text += "."
    grown = [r["gap_since_epoch_5"] for r in runs if r["gap_since_epoch_5"] is not None and r["optim"] == "adam"]
    if grown:
        text += (
            f" From epoch 5 to the last, training Dice less {part} Dice grew in {sum(g > 0 for g in grown)} of"
            f" {len(grown)} longer runs with Adam, by {np.mean(grown):+.3f} on average ({min(grown):+.3f} to"
            f" {max(grown):+.3f})."
        )
    worse = [r for r in runs if r["loss_above_its_lowest"] > 0.05]
    text += f" {len(worse)} of {len(runs)} runs ended with a {part} loss more than 5 % above their lowest."
    wide = [row for row in m["rows"] if row["trend"] == "widening" and row["split"] != "slice"]
    tested = [row for row in m["rows"] if row["trend"] not in (None, "too few epochs") and row["split"] != "slice"]
    return text + (
        f" The gap in Dice widens with the epochs in {len(wide)} of {len(tested)} configurations (Kendall, 5 %, each"
        " uncorrected)."
    )


def cost(m: dict[str, Any]) -> str:
    by_model: dict[str, dict[str, set[float]]] = {}
    for row in m["rows"]:
        for name in ("parameters", "gflops"):
            by_model.setdefault(row["model"], {}).setdefault(name, set()).add(row[name])
    if set(by_model) != {"unet", "r2unet"}:
        return "Not measured: one of the two networks has no finished run."
    (p, q), (g, h) = ([min(by_model[net][name]) for net in ("unet", "r2unet")] for name in ("parameters", "gflops"))
    text = (
        f"Here R2U-Net has {q:,.0f} parameters against {p:,.0f} ({100 * (q / p - 1):+.0f} %) and needs {h:.3f} GFLOP"
        f" for a slice's forward pass against {g:.3f} ({100 * (h / g - 1):+.0f} %)."
    )
    pairs = [pair for c in m["contrasts"] if c["factor"] == "model" for pair in c["pairs"]]
    known = {tuple(row[name] for name in SETTINGS): row["images_per_second"] for row in m["rows"]}
    ratios = []
    for pair in pairs:
        of = {
            net: known.get(tuple((pair["settings"] | {"model": net})[name] for name in SETTINGS))
            for net in ("unet", "r2unet")
        }
        if of["unet"] and of["r2unet"]:
            ratios.append(of["r2unet"] / of["unet"])
    if ratios:
        text += (
            f" It trained {np.median(ratios):.2f} times as many images a second as the U-Net (median of {len(ratios)}"
            f" matched pairs, {min(ratios):.2f} to {max(ratios):.2f}; two jobs at once on a CPU that did other work"
            " too, so this says little of an idle machine and nothing of a GPU)."
        )
    sharp = [pair for pair in pairs if pair["settings"]["optim"] == "adam" and pair["hd95_interval"]]
    sign = next((1 if c["b"] == "r2unet" else -1 for c in m["contrasts"] if c["factor"] == "model"), 1)
    told = [
        f"{_settings(pair['settings'])}: {sign * pair['hd95']:+.1f} {_span(pair['hd95_interval'], sign, '+.1f')}"
        for pair in sharp
    ]
    return text + (
        "\n\nOutlines: HD95 in pixels, R2U-Net less U-Net (negative: nearer), with a 95 % interval over patients, not"
        " corrected for their number. " + "; ".join(told) + "."
        if told
        else ""
    )


def accuracy(m: dict[str, Any]) -> str:
    runs, nothing = m["runs"], m["record"]["accuracy_of_nothing"]
    low, high = (f([r["accuracy"] for r in runs]) for f in (min, max))
    worst, best = (f([r["dice"] for r in runs]) for f in (min, max))
    dead = [r for r in runs if r["dice"] < 0.01]
    text = (
        f"Predicting no tumour anywhere scores {nothing:.4f} on these patients. The {len(runs)} runs lie between"
        f" {low:.4f} and {high:.4f} in accuracy and between {worst:.3f} and {best:.3f} in Dice."
    )
    if dead:
        best = max(r["accuracy"] for r in dead)
        text += f" {len(dead)} of them have a Dice below 0.01 and an accuracy of up to {best:.4f}."
    return text


def split(m: dict[str, Any]) -> str:
    c = next((c for c in m["contrasts"] if c["factor"] == "split"), None)
    if c is None:
        return "Not measured in these runs. `split=holdout,slice` beside any of the settings would measure it."
    return f"Measured on the same patients: {_full(c, 'slice')}."


def table_of_rows(m: dict[str, Any]) -> str:
    head = ["network", "loss", "optimizer", "rate", "epochs", "Dice", "SD of seeds", "HD95", "missed"]
    head += ["train loss", "test loss", "test accuracy", "train Dice", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in m["rows"]:
        spread = "–" if row["sd_of_seeds"] is None else f"{row['sd_of_seeds']:.3f}"
        cells = [row["model"], row["loss"], row["optim"], f"{row['optim.lr']:g}", str(row["epochs"])]
        cells += [f"{row['dice']:.3f} {_span(row['interval'], spec='.3f')}", spread]
        cells += [f"{row['hd95']:.1f}", f"{row['missed']:.1f}", f"{row['train/loss']:.4f}", f"{row['test/loss']:.4f}"]
        cells += [f"{row['test/accuracy']:.4f}", f"{row['train_dice']:.3f}", str(row["seeds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
    shown = {"optim.lr": lambda v: f"lr {v:g}", "epochs": lambda v: f"{v} epochs"}
    return ", ".join(shown.get(name, str)(value) for name, value in settings.items())


def _span(interval: list[float] | None, sign: int = 1, spec: str = "+.3f") -> str:
    low, high = sorted(sign * end for end in interval) if interval else (0, 0)
    return f"[{low:{spec}}, {high:{spec}}]" if interval else "–"


def _signed(mean: float, interval: list[float] | None, sign: int = 1) -> str:
    return f"{sign * mean:+.3f} {_span(interval, sign) if interval else ''}".strip()


def _p(p: float | None) -> str:
    return "–" if p is None else p_value(p) if p < 0.001 else f"= {p_value(p)}"


def document(text: str, m: dict[str, Any]) -> str:
    """`text` with everything between its markers written anew; raises KeyError on a marker that has no block."""
    made = blocks(m)

    def put(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{made[match[1]]}\n<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", put, text, flags=re.DOTALL)


def draw(m: dict[str, Any]) -> dict[str, bytes]:
    """File name -> PNG."""
    drawn = [
        (TITLES[claim], m["claims"][claim], pref) for claim, (_, pref, _) in CLAIMS.items() if claim in m["claims"]
    ]
    lines = []
    for _, c, preferred in drawn:
        sign = 1 if c["b"] == preferred else -1
        both = [sorted(sign * end for end in ends) if ends else None for ends in (c["interval"], c["over_repeats"])]
        lines.append([statistics.Interval(sign * c["difference"], *ends) if ends else None for ends in both])
    forest = figures.forest(
        "claims", "", "", [title for title, *_ in drawn], lines, zero=True, xlabel="difference in Dice"
    )
    return {"revisited_claims.png": forest.png, "revisited_accuracy.png": _scatter(m)}


def _scatter(m: dict[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5, 3.4), layout="constrained")
    axes = canvas.add_subplot()
    for net, optim, marker, colour in (
        ("unet", "sgd", "o", 0),
        ("r2unet", "sgd", "^", 0),
        ("unet", "adam", "o", 1),
        ("r2unet", "adam", "^", 1),
    ):
        runs = [r for r in m["runs"] if (r["model"], r["optim"]) == (net, optim)]
        x, y = [r["accuracy"] for r in runs], [r["dice"] for r in runs]
        axes.plot(x, y, marker, color=figures.COLOURS[colour], markersize=5, alpha=0.75, label=f"{net}, {optim}")
    axes.axvline(m["record"]["accuracy_of_nothing"], color="black", linestyle=":", label="no tumour predicted")
    axes.set(xlabel="test accuracy", ylabel="mean Dice of the test patients")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="*", help="sweep folders; without any the document is written from the JSON")
    sweeps = parser.parse_args().sweep
    if sweeps:
        JSON.write_text(json.dumps(measure(sweeps), indent=1) + "\n", encoding="utf-8")
    m = json.loads(JSON.read_text(encoding="utf-8"))
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8"), m), encoding="utf-8")
    for name, png in draw(m).items():
        (IMAGES / name).write_bytes(png)
    print(f"{DOCUMENT}: {m['record']['runs']} of {m['record']['asked']} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
