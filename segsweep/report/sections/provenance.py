"""Where the rows come from: versions, device, data, split and what leaks, and the command that makes each row again."""

from typing import Any

from segsweep.core import accepted
from segsweep.report.comparison import digest
from segsweep.report.content import Block, Cell, Section, Table, a, joined, many
from segsweep.report.findings import Findings
from segsweep.report.record import Run

MOST = 500


def provenance(found: Findings) -> Section | None:
    """One line a run; what all share in the caption."""
    runs = [(i, run) for i, row in enumerate(found.rows) for run in row.runs]
    if not runs:
        return None
    facts = [_facts(run) for _, run in runs]
    same = {name: facts[0][name] for name in facts[0] if len({fact[name] for fact in facts}) == 1}
    different = [name for name in facts[0] if name not in same]
    rows: list[list[Cell | str]] = []
    several = [len(row.seeds) > 1 for row in found.rows]
    for (i, run), fact in zip(runs[:MOST], facts, strict=False):
        title = (
            found.title(i)
            + (f", seed {run.seed}" if several[i] else "")
            + "".join(
                f", {k.split('.')[-1]} {run.factors[k]}" for k in run.spec.repeats if run.factors.get(k) is not None
            )
        )
        rows.append([Cell(title, i), *(fact[name] for name in different), f"`{run.command}`"])
    caption = "The command that makes each run again." + (
        " All runs share " + ", ".join(f"{k}: {v}" for k, v in same.items()) + "." if same else ""
    )
    caption += f" The first {MOST} of {len(runs)}; runs.csv has them all." if len(runs) > MOST else ""
    table = Table(caption, ["row", *different, "command"], rows, folded=len(rows) > 30)
    blocks: list[Block] = [_leaks(found), *_accepted(found), table]
    return Section("provenance", "Where it comes from", blocks)


def _facts(run: Run) -> dict[str, str]:
    info = run.info
    data, split = info.get("data") or {}, info.get("split") or {}
    versions: dict[str, Any] = info.get("versions") or {}
    spec = run.spec
    samples, kind = many(spec.sample), split.get("kind", "?") or ""
    counts = [f"{data[name]} {name}" for name in dict.fromkeys([many(spec.unit), samples]) if name in data]
    watched = "not watched" if run.unwatched else f"manifest {digest(run, 'data')[:12] or '?'}"
    parts = "/".join(str(split.get(part, "?")) for part in ("train", "val", "test"))
    told = " ".join(filter(None, [kind, digest(run, "split")[:12].rstrip(" ,") or "?"]))
    about = f"{told}, {samples} train/val/test {parts}"
    leaks = f"yes{f': by {spec.sample}' * (spec.sample != spec.unit)}" if run.leaks else "no"
    if not run.counted:
        counts, about, leaks = [], "not said", "not known"
    return {
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or "not recorded",
        "device": str(info.get("device") or "not recorded"),
        "precision": str(info.get("precision") or "not recorded"),
        "commit": str(info.get("commit") or "none"),
        "data": ", ".join([str(data.get("name") or "?"), watched, *counts]),
        "split": about,
        "leaks": leaks,
        "evaluated on": run.evaluated_on,
    }


def _accepted(found: Findings) -> list[str]:
    """What rests on somebody's word: one sentence an acceptance, with all runs that it is of."""
    rows: dict[str, dict[str, None]] = {}
    for i, run in ((i, run) for i, row in enumerate(found.rows) for run in row.runs):
        title = f"{i + 1}. {found.rows[i].label}"
        for entry in run.accepted:
            text = f"stands for edited code ({joined(sorted(entry['files']))}), accepted {accepted.told(entry)}"
            rows.setdefault(text, {})[title] = None
        if begun := run.info.get("accepted"):
            text = (
                f"began with epochs 1 to {begun['epochs']} of run `{begun['run']}`, which was accepted for edited code"
            )
            rows.setdefault(text, {})[title] = None
    return [f"**Accepted:** {joined(list(titles))}: {text}." for text, titles in rows.items()]


def _leaks(found: Findings) -> str:
    leaking = [found.title(i) for i, row in enumerate(found.rows) if row.leaks]
    unit, sample = found.spec.unit, found.spec.sample
    if not leaking and not all(run.counted for row in found.rows for run in row.runs):
        return "Whether a split leaks is not known: nobody said what is in which part."
    if not leaking:
        return f"No split leaks: no {unit} is in two parts."
    usual = f"In their splits {a(sample)} of {a(unit)} may be in training and another in test."
    means = found.word("leaking", usual if unit != sample else f"In their splits some {many(unit)} are in two parts.")
    text = f"**Leaks:** {joined(leaking[:12])}{f' and {len(leaking) - 12} more' if len(leaking) > 12 else ''}. {means}"
    effects = found.of_leaks
    for c in effects:
        same = f"on the same {c.units} {found.units}, all else equal."
        text += f" Measured: {c.b} minus {c.a}, {found.score} {found.signed(c)} {same}"
    return (
        text
        if effects
        else text
        + f" No run with the same settings and a split by {unit} is among these, so the effect is not measured here."
    )
