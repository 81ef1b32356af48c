"""What a report over a large sweep costs: seconds to build it, and milliseconds until Chromium has opened its page.

    python -m benchmarks.report [--runs 500] [--repeats 3] [--out benchmarks/results/report.json]

The record is written as training writes it, with Dice that is simulated for 20 patients: 100 configurations of five
factors with five seeds, curves, overlays, and one run in 50 failed. Aims: built in under 20 s on two cores, opened in
under 2 s. Each build is a process of its own, as `python -m segsweep.report` is.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))
from browser import CHROMIUM, chromium  # noqa: E402
from records import Spec, difficulties, factors, simulate, write_sweep  # noqa: E402


def sweep(root: Path, runs: int) -> Path:
    """A sweep folder with the record of `runs` runs."""
    rng = np.random.default_rng(0)
    z = difficulties(rng)
    rates, lengths, sizes = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [5, 10, 20], [8, 16, 32]
    grid = itertools.product(sizes, lengths, rates, ["unet", "r2unet"], ["sgd", "adam"], range(5))
    specs = []
    for number, (size, epochs, rate, model, optim, seed) in enumerate(itertools.islice(grid, runs)):
        shift = 0.5 * (optim == "adam") + 0.2 * (model == "r2unet") - 0.3 * abs(np.log10(rate) + 3)
        settings = factors(model=model, optim=optim, optim_lr=rate, epochs=epochs, batch_size=size, seed=seed)
        dice = simulate(rng, shift + 0.1 * rng.standard_normal(), 0.2, z)
        specs.append(Spec(settings, dice, status="failed" if number % 50 == 49 else "finished", seconds=3.0 * epochs))
    return write_sweep(root, "benchmark", specs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "report.json")
    args = parser.parse_args()
    built, opened = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = sweep(Path(name), args.runs)
        for _ in range(args.repeats):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "segsweep.report", str(folder)], check=True, stdout=subprocess.DEVNULL
            )
            built.append(time.perf_counter() - began)
        page = folder / "report.html"
        size = page.stat().st_size
        if CHROMIUM:
            for repeat in range(args.repeats):  # a fresh browser each time: nothing is cached
                with chromium(Path(name) / f"profile{repeat}") as browser:
                    opened.append(browser.open(page))
    found = {"runs": args.runs, "repeats": args.repeats, "build_seconds": statistics.median(built)}
    found |= {"build_seconds_each": built, "page_bytes": size, "open_milliseconds_each": opened}
    found |= {"open_milliseconds": statistics.median(opened) if opened else None}
    found |= {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": sys.version.split()[0]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
