"""`python -m benchmarks`: writes the tables of README.md anew from the results."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

README = Path(__file__).parent / "README.md"


def table(head: str, rows: list[list[str]]) -> str:
    names = head.split(" | ")
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times(row: dict[str, Any]) -> str:
    return f"**{row['ratio']:.2f}** ({min(row['ratios']):.2f}-{max(row['ratios']):.2f})"


def taken(result: dict[str, Any]) -> str:
    """Under each table: where, when and on what."""
    machine = result["machine"]
    where = f"{machine['device']}, {machine['cpus']} cores, torch {machine['versions']['torch']}, {machine['date']}"
    return f"\n\n{where}; data: {result['data']}; load before: {machine['load']}."


def train(result: dict[str, Any]) -> str:
    rows = []
    for case in result["cases"]:
        speed, share, memory = case["images_per_second"], case["share"], case.get("memory_mib") or {}
        rows.append(
            [f"{case['network']}, width {case['width']}, {case['size']} px, batch {case['batch']}"]
            + [f"{speed['plain']:.3g}", f"{speed['ours']:.3g}"]
            + [times(case), f"{100 * share['plain']:.0f} %", f"{100 * share['ours']:.0f} %"]
            + [f"{memory[side]}" if memory else "" for side in ("plain", "ours")]
        )
    rates = result["matrix_gflops"]
    peak = f"\nMatrix product: {rates['fp32']:.0f} GFLOP/s in fp32 (plain), {rates['bf16']:.0f} in bf16 (ours)."
    heads = "training | plain, images/s | segsweep, images/s | times as fast (rounds) | plain's share of the peak"
    return table(f"{heads} | segsweep's | plain, MiB | segsweep, MiB", rows) + taken(result) + peak


def data(result: dict[str, Any]) -> str:
    decode = [
        [f"{row['patients']} patients, {row['slices']} slices, {row['size']} px"]
        + [f"{row['seconds'][name]:.2f}" for name in ("pillow", "cold")]
        + [times(row), f"{row['seconds']['warm']:.2f}"]
        for row in result["decode"]
    ]
    workers = result["workers"]
    batches = [
        [f"{row['size']} px, batch {row['batch']}"]
        + [f"{row['images_per_second'][name]:.0f}" for name in ("loader0", f"loader{workers}", "ours")]
        for row in result["batches"]
    ]
    return (
        table("decoding | Pillow in a loop, s | segsweep, cold, s | times as fast (rounds) | warm, s", decode)
        + "\n\n"
        + table(f"batches | DataLoader, images/s | of {workers} workers | segsweep", batches)
        + taken(result)
    )


def sweep(result: dict[str, Any]) -> str:
    found = dict(result["sweep"])
    seconds, cpu, jobs, decoded = (found.pop(name) for name in ("seconds", "cpu", "jobs", "decoded"))
    rows = [[name, f"{value:.2f}", f"{100 * value / seconds:.0f} %"] for name, value in found.items()]
    rows.append(["**all**", f"**{seconds:.1f}**", f"CPU time {cpu:.1f}"])
    what = f"`{' '.join(result['overrides'])}`: {jobs:.0f} jobs, decoded {decoded:.0f} times"
    text = table(f"{what} | seconds | share", rows)
    names = {"cfg": "`--cfg job`", "run": "first training step of a run", "sweep": "first training step of a sweep"}
    first = [[names[name], f"{value:.2f}"] for name, value in result["first"].items()]
    return text + ("\n\n" + table("from the command to | seconds", first) if first else "") + taken(result)


def accuracy(result: dict[str, Any]) -> str:
    rows = []
    for network, found in result["networks"].items():
        cells = [" ".join(f"{mean:.3f}" for mean in found["mean"][side]) for side in ("plain", "ours")]
        rows.append([network, *cells, f"{found['difference']:+.3f}", "yes" if found["within"] else "no"])
    what = f"width {result['width']}, {result['size']} px, {result['epochs']} epochs, {result['precision']}"
    heads = f"{what} | plain, Dice by seed | segsweep, Dice by seed | difference of the means | inside plain's range"
    return table(heads, rows) + taken(result)


def memory(result: dict[str, Any]) -> str:
    rows = [
        [f"{row['slots']}", f"{result['decoded_mib']:.0f}", f"{row['set_mib']:.0f}"]
        + [" and ".join(f"{own:.0f}" for own in row["own_mib"]), f"{result['one_batch_mib']:.0f}"]
        for row in result["sweeps"]
    ]
    what = f"{result['network']}, width {result['width']}, {result['size']} px, batch {result['batch']}"
    heads = f"{what}: slots | decoded set, MiB | held of it by all workers | own, by worker | one batch alone"
    return table(heads, rows) + taken(result)


def search_worth(result: dict[str, Any]) -> str:
    grid, goals = result["grid"], {"best": "the best point", "near": f"within {result['near']} of its Dice"}

    def row(search: str, of: dict[str, Any], form: str, last: list[str]) -> list[str]:
        least, lower, median, upper, most, *five = (
            "never" if value is None else format(value, form)
            for value in [*(of[key] for key in ("least", "lower", "median", "upper", "most")), *of["first_five"]]
        )
        return [search, f"**{median}**", f"{lower}-{upper}", f"{least}-{most}", *last, " ".join(five)]

    def share(of: dict[str, Any]) -> str:
        return "" if of["median"] is None else f"{100 * of['median'] / grid['epochs']:.0f} %"

    heads = "median | quartiles | range"
    text = []
    for goal, title in goals.items():
        found = [(name, of[goal]) for name, of in result["searches"].items()]
        rows = [row(name, of, ".0f", [share(of), str(of["never"])]) for name, of in found]
        last = f"median of the grid's | never, of {result['seeds']} | seeds 0 to 4"
        text.append(table(f"epochs to {title} | {heads} | {last}", rows))
    found = [(name, of["within_a_third"]) for name, of in result["searches"].items()]
    rows = [row(name, of, ".3f", [str(of["reached"])]) for name, of in found]
    last = f"the best point, of {result['seeds']} | seeds 0 to 4"
    text.append(table(f"validation Dice within {grid['epochs'] // 3} epochs | {heads} | {last}", rows))
    best, space = " ".join(grid["best"]["point"]), " ".join(grid["space"])
    what = f"Grid: `{space}`, {grid['points']} points, {grid['epochs']} epochs; the best: `{best}`, validation Dice "
    what += f"{grid['best']['val/dice']:.3f}, points within {result['near']} of it: {grid['near']}, itself included. "
    return "\n\n".join([*text, f"{what}{result['slots']} slots."]) + taken(result)


def search_idle(result: dict[str, Any]) -> str:
    names = {"search": "`hydra/sweeper=search`", "optuna": "`hydra/sweeper=optuna`"}
    rows = [
        [names[sweeper], f"**{100 * of['idle']:.1f} %**", f"{100 * of['idle_whole']:.1f} %"]
        + [f"{of[key]:.2f}" for key in ("median_gap", "longest_gap", "all_busy")]
        + [f"{of['seconds']:.0f}", f"{of['trials']}"]
        + [f"{of['shortest_trial']:.1f}-{of['longest_trial']:.1f}"]
        for sweeper, of in result["sweepers"].items()
    ]
    heads = f"{result['slots']} slots | idle | until the last ends | median gap, s | longest, s | all workers after, s"
    text = table(f"{heads} | whole, s | trials | shortest-longest, s", rows)
    return f"{text}\n\n`{' '.join(result['job'])}`.{taken(result)}"


TABLES = {
    "memory": memory,
    "train-cpu": train,
    "train-cuda": train,
    "data": data,
    "sweep": sweep,
    "accuracy": accuracy,
    "search_worth": search_worth,
    "search_idle": search_idle,
}


def filled(text: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- end -->` made from that result."""

    def fill(found: re.Match[str]) -> str:
        file = RESULTS / f"{found[1]}.json"
        made = TABLES[found[1]](json.loads(file.read_text())) if file.exists() else "Not measured yet."
        return f"<!-- {found[1]} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
