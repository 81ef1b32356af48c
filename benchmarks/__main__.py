"""`python -m benchmarks`: writes the tables of README.md anew from the results."""

import json
import re
from collections.abc import Callable
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
    kinds, rates = result.get("precision", {"plain": "fp32", "ours": "bf16"}), result["matrix_gflops"]
    peak = f"\nMatrix product: {rates[kinds['plain']]:.0f} GFLOP/s in {kinds['plain']} (plain), "
    peak += f"{rates[kinds['ours']]:.0f} in {kinds['ours']} (ours). Workers of plain's DataLoader: "
    peak += f"{result.get('workers', 2)}."
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
    seconds, cpu, jobs, decoded, slots = (found.pop(name) for name in ("seconds", "cpu", "jobs", "decoded", "slots"))
    rows = [[name, f"{value:.2f}", f"{100 * value / seconds:.0f} %"] for name, value in found.items()]
    rows.append(["**all**", f"**{seconds:.1f}**", f"CPU time {cpu:.1f}"])
    count = "once" if decoded == 1 else f"{decoded:.0f} times"
    what = f"`{' '.join(result['overrides'])}`: {jobs:.0f} jobs, {slots:.0f} at once, decoded {count}"
    text = table(f"{what} | seconds | share", rows)
    names = {"cfg": "`--cfg job`", "run": "first training step of a run", "sweep": "first training step of a sweep"}
    first = [[names[name], f"{value:.2f}"] for name, value in result["first"].items()]
    text += "\n\n" + table("from the command to | seconds", first) if first else ""
    several = [[f"{row['slots']}", f"{row['seconds']:.1f}", times(row)] for row in result.get("slots", [])]
    text += (
        "\n\n" + table("jobs at once on a device | seconds | times as fast (rounds)", several) if several[1:] else ""
    )
    return text + taken(result)


def overheads(result: dict[str, Any]) -> str:
    names = {"local": "`local`, 1 slot", "local2": "`local`, 2 slots", "basic": "Hydra's `basic`"}
    names |= {"joblib": "`joblib`, 1 job", "joblib2": "`joblib`, 2 jobs"}
    rows = []
    for name, row in result["launchers"].items():
        cells = [f"{row[key]:.1f}" for key in ("seconds", "steps", "evaluation", "whole_jobs")]
        for key in ("over_steps_a_job", "launcher_a_job"):
            cells.append(f"{row[key]:.2f} ({100 * row[key] * result['jobs'] / row['steps']:.1f} %)")
        rows.append([names[name], *cells])
    heads = "whole, s | training steps | evaluation | jobs | over the steps, s a job | launcher alone, s a job"
    return table(f"{result['jobs']} jobs | {heads}", rows) + taken(result)


def accuracy(result: dict[str, Any]) -> str:
    rows = []
    for network, found in result["networks"].items():
        plain, ours = found["mean"]["plain"], found["mean"]["ours"]
        cells = [" ".join(f"{mean:.3f}" for mean in side) for side in (plain, ours)]
        inside = sum(min(plain) <= mean <= max(plain) for mean in ours)
        cells += [f"{found['difference']:+.3f}", "yes" if found["within"] else "no", f"{inside} of {len(ours)}"]
        rows.append([network, *cells])
    options = "".join(f", {option}" for option in result.get("options", []))
    what = f"width {result['width']}, {result['size']} px, {result['epochs']} epochs, {result['precision']}{options}"
    heads = f"{what} | plain, Dice by seed | segsweep, Dice by seed | difference of the means"
    return table(f"{heads} | segsweep's mean inside plain's range | segsweep's seeds inside it", rows) + taken(result)


def memory(result: dict[str, Any]) -> str:
    rows = [
        [f"{row['slots']}", f"{result['decoded_mib']:.0f}", f"{row['set_mib']:.0f}"]
        + [" and ".join(f"{own:.0f}" for own in row["own_mib"]), f"{result['one_batch_mib']:.0f}"]
        for row in result["sweeps"]
    ]
    what = f"{result['network']}, width {result['width']}, {result['size']} px, batch {result['batch']}"
    heads = f"{what}: slots | decoded set, MiB | held of it by all workers | own, by worker | one batch alone"
    other = "" if "look" in result else " One batch alone: growth of the peak resident set, files' pages included."
    return table(heads, rows) + taken(result) + other


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


def durability(result: dict[str, Any]) -> str:
    seconds, jobs = result["seconds"], result["jobs"]
    row = [f"{jobs} jobs, {result['job'][-1]}"]
    for key in ("an_epoch", "a_job_beside"):
        row += [f"{result['flushes'][key]:.3g}", f"{1000 * result['waits'][key]:.2g}"]
    row += [f"{seconds['without']:.1f}", f"{seconds['with']:.1f}", times(result)]
    head = "sweep | flushes an epoch | ms | a job beside | ms | without, s | with, s | times as long (rounds)"
    return table(head, [row]) + taken(result)


def answers(result: dict[str, Any]) -> str:
    what = {"answered": "all in the record: table, report, MLflow", "planned": "`hydra/launcher=plan`"}
    rows = [
        [
            what[kind],
            f"{of['jobs']}",
            f"{of['seconds']:.1f}",
            f"{1000 * of['seconds'] / of['jobs']:.1f}",
            f"{of['mib']:.0f}",
        ]
        for kind, of in ((kind, result[kind]) for kind in what)
    ]
    return table("a sweep that trains nothing | jobs | seconds | ms a job | MiB", rows) + taken(result)


def neighbour(result: dict[str, Any]) -> str:
    """`ratio` in the file is of rates, this one over unbound."""
    ways = {"bound": "each thread on a processor", "unbound": "as the system places them", "passive": "asleep at once"}
    others = {"none": "nothing else", "busy": "a busy process", "twin": "the same run"}
    rows = [
        [f"{ways.get(row['wait'], row['wait'])}, beside {others[row['beside']]}", f"**{row['images_per_second']:.0f}**"]
        + [f"{row['range'][0]:.0f}-{row['range'][1]:.0f}", f"{row['ratio']:.2f}"]
        for row in result["rows"]
    ]
    return table("threads | images/s | rounds | times the unbound rate", rows) + taken(result)


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


def mutants(result: dict[str, Any]) -> str:
    rows = [
        [area, *(f"{of[key]}" for key in ("drawn", "killed_before", "killed_after"))]
        for area, of in result["areas"].items()
    ]
    sums = [sum(of[key] for of in result["areas"].values()) for key in ("drawn", "killed_before", "killed_after")]
    rows.append(["**all**", *(f"**{value}**" for value in sums)])
    text = table(f"statements changed, seed `{result['seed']}` | drawn | noticed at {result['before'][:7]} | now", rows)
    return f"{text}{taken(result)}"


def least(values: list[float], bound: float, unit: str) -> tuple[bool, str] | None:
    """Whether all reach the aim, and the one that is furthest from it; None without any."""
    return (min(values) >= bound, f"{min(values):.3g}{unit}") if values else None


def under(values: list[float], bound: float, unit: str) -> tuple[bool, str] | None:
    return (max(values) < bound, f"{max(values):.3g}{unit}") if values else None


def shapes(
    result: dict[str, Any], *shapes: str, networks: tuple[str, ...] = ("unet", "r2unet")
) -> list[dict[str, Any]]:
    """The cases `network:width:size:batch` of `networks`, if all of them are there."""
    cases = {
        ":".join(str(case[key]) for key in ("network", "width", "size", "batch")): case for case in result["cases"]
    }
    asked = [f"{network}:{shape}" for network in networks for shape in shapes]
    return [cases[name] for name in asked] if set(asked) <= set(cases) else []


def four_runs(result: dict[str, Any]) -> tuple[bool, str] | None:
    return under([result["sweep"]["seconds"]] if result["sweep"]["jobs"] == 4 else [], 60, " s")


def own_memory(result: dict[str, Any]) -> tuple[bool, str] | None:
    if "look" not in result:  # one batch was measured otherwise: not to be compared
        return None
    own, batch = max(mib for row in result["sweeps"] for mib in row["own_mib"]), result["one_batch_mib"]
    return own <= batch, f"{own:.0f} of {batch:.0f} MiB"


def overhead(key: str) -> Callable[[dict[str, Any]], tuple[bool, str] | None]:
    """`key`: over what, by job. Of the launcher's two forms the one that costs more."""

    def judge(result: dict[str, Any]) -> tuple[bool, str] | None:
        found = [result["launchers"][name] for name in ("local", "local2") if name in result["launchers"]]
        if not found:
            return None
        shares = {row[key]: row[key] * result["jobs"] / row["steps"] for row in found}
        text = f"{max(shares):.2f} s a job, {100 * shares[max(shares)]:.0f} %"
        return all(seconds < 0.3 or share < 0.05 for seconds, share in shares.items()), text

    return judge


def never_behind(result: dict[str, Any]) -> tuple[bool, str] | None:
    rows = result["launchers"]
    others = [rows[name]["seconds"] for name in ("basic", "joblib") if name in rows]
    return under([rows["local"]["seconds"] / each for each in others] if "local" in rows else [], 1, " of its time")


def accurate(result: dict[str, Any]) -> tuple[bool, str] | None:
    within = [found["within"] for found in result["networks"].values()]
    return (all(within), f"{sum(within)} of {len(within)} networks") if within else None


def third(result: dict[str, Any]) -> tuple[bool, str] | None:
    found = result["searches"]["TPE, halving"]["best"]["median"]
    if found is None:
        return False, "more than half of the searches never came there"
    return found <= result["grid"]["epochs"] / 3, f"{found:.0f} of {result['grid']['epochs']} epochs"


AIMS: list[tuple[str, str, str, Callable[[dict[str, Any]], tuple[bool, str] | None]]] = [
    ("at least 2.0 times the plain loop, width 16, 64 and 128 px", "Training", "train-cpu",
     lambda r: least([case["ratio"] for case in shapes(r, "16:64:16", "16:128:16")], 2.0, " times")),
    ("at least 3.0 times the plain loop, width 64, 256 px", "Training", "train-cpu",
     lambda r: least([case["ratio"] for case in shapes(r, "64:256:16")], 3.0, " times")),
    ("a sweep of four runs under 60 s", "A sweep", "sweep", four_runs),
    ("`--cfg job` under 0.5 s", "A sweep", "sweep",
     lambda r: under([r["first"]["cfg"]] if r["first"] else [], 0.5, " s")),
    ("the first training step under 6 s, of a run and of a sweep", "A sweep", "sweep",
     lambda r: under([r["first"][key] for key in ("run", "sweep")] if r["first"] else [], 6, " s")),
    ("cold decode at least 1.7 times as fast as Pillow", "Data", "data",
     lambda r: least([row["ratio"] for row in r["decode"]], 1.7, " times")),
    ("own memory of a job at most one batch's", "Memory", "memory", own_memory),
    ("over the training steps under 5 % or 0.3 s a job", "Launchers", "overhead", overhead("over_steps_a_job")),
    ("the same of jobs of ten seconds", "Launchers", "overhead_long", overhead("over_steps_a_job")),
    ("the launcher alone under 5 % or 0.3 s a job", "Launchers", "overhead", overhead("launcher_a_job")),
    ("the launcher alone, jobs of ten seconds", "Launchers", "overhead_long", overhead("launcher_a_job")),
    ("one slot never behind Hydra's basic launcher or joblib", "Launchers", "overhead", never_behind),
    ("the same, with longer jobs", "Launchers", "overhead_long", never_behind),
    ("TPE with halving at the grid's best point after a third of its epochs, median", "Search", "search_worth", third),
    ("the same, of runs of five epochs", "Search", "search_worth_short", third),
    ("workers of a search idle for under 5 %", "Search", "search_idle",
     lambda r: under([100 * r["sweepers"]["search"]["idle"]], 5, " %")),
    ("a report of 500 runs under 20 s", "A report of 500 runs", "report",
     lambda r: under([r["build_seconds"]] if r["runs"] == 500 else [], 20, " s")),
    ("its page open under 2 s", "A report of 500 runs", "report",
     lambda r: under([r["open_milliseconds"] / 1000] if r["runs"] == 500 and r["open_milliseconds"] else [], 2, " s")),
    ("mean Dice within the plain loop's range over the seeds", "Accuracy", "accuracy", accurate),
    ("the same on a GPU", "Accuracy", "accuracy-cuda", accurate),
    ("on a GPU at least 5 times the plain loop, width 64, 256 px", "Training", "train-cuda",
     lambda r: least([case["ratio"] for case in shapes(r, "64:256:16", "64:256:32")], 5, " times")),
    ("there at least 40 % of the matrix product's rate, U-Net", "Training", "train-cuda",
     lambda r: least([100 * case["share"]["ours"] for case in shapes(r, "64:256:16", "64:256:32", networks=("unet",))],
                     40, " %")),
]  # fmt: skip


def aims() -> str:
    """What was aimed at, beside the number that is furthest from it."""
    rows = []
    for aim, section, name, judge in AIMS:
        result = read(name)
        found = judge(result) if result else None
        said = f"{'met' if found[0] else '**missed**'}: {found[1]}" if found else "not measured yet"
        rows.append([aim, said, f"[{section}](#{section.lower().replace(' ', '-')}), `{name}.json`"])
    return table("aim | measured | where", rows)


TABLES = {
    "memory": memory,
    "train-cpu": train,
    "train-cuda": train,
    "data": data,
    "sweep": sweep,
    "sweep-cuda": sweep,
    "overhead": overheads,
    "overhead_long": overheads,
    "accuracy": accuracy,
    "accuracy-cuda": accuracy,
    "search_worth": search_worth,
    "search_worth_short": search_worth,
    "search_idle": search_idle,
    "durability": durability,
    "answers": answers,
    "neighbour": neighbour,
    "mutants": mutants,
}


def read(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def made(name: str) -> str:
    if name == "aims":
        return aims()
    result = read(name)
    return TABLES[name](result) if result else "Not measured yet."


def filled(text: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- end -->` made from that result, `aims` from all."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{made(found[1])}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
