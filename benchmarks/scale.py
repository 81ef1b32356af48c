"""What thousands of runs cost: to record one more, to be answered from the record, to read all of them; and bytes.

    python benchmarks/scale.py [--runs 100 1000 10000] [--epochs 20] [--uri sqlite:///... or http://HOST:PORT]

Trains one run, and copies its record under other signatures, so that folders and rows are those of real runs; without
weights, whose bytes are 4 for each parameter. The times are medians of the last 20 runs of each size.
"""

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

JOB = ["data.patients=12", "data.slices=16", "data.image_size=64", "model.width=8", "epochs=2", "tracking=none"]
SAMPLE = 20


def template(place: Path, epochs: int) -> Path:
    """The record of a real run, its history as long as asked."""
    command = [sys.executable, "-m", "segsweep", *JOB, "paths.runs=once"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (folder,) = (place / "once" / "runs").iterdir()
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    rows = [rows[epoch % 2] | {"epoch": epoch + 1} for epoch in range(epochs)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("last.pt", "best.pt", "lock"):
        (folder / name).unlink()
    return folder


def another(folder: Path, runs: Path, number: int) -> Path:
    copy = runs / f"{number:016x}"
    shutil.copytree(folder, copy)
    record = json.loads((copy / "run.json").read_text()) | {"signature": copy.name, "group": f"g{number // 5}"}
    record["factors"] |= {"seed": number}
    (copy / "run.json").write_text(json.dumps(record))
    return copy


def median(work: Callable[[Path], object], folders: Iterable[Path]) -> float:
    times = []
    for folder in folders:
        began = time.perf_counter()
        work(folder)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--uri", help="MLflow's store; default: a new SQLite file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    args = parser.parse_args()
    from segsweep.config.start import start
    from segsweep.report import records
    from segsweep.sweeps.plan import _read
    from segsweep.tracking import mirrors, recall, store

    start()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place, experiment = Path(name), f"scale {time.time():.0f}"
        uri = args.uri or f"sqlite:///{place}/mlruns/mlflow.db"
        file = store.database(uri)
        folder = template(place, args.epochs)
        store.connect(uri)

        def record(run: Path) -> str:
            return mirrors.push(run, uri, experiment, None, final=True)

        def answer(run: Path) -> None:
            elsewhere = place / "elsewhere" / run.name
            elsewhere.mkdir(parents=True)
            assert recall.restorer().restore(elsewhere, uri, experiment)

        def size() -> int:
            if file is None:
                return 0
            with contextlib.closing(sqlite3.connect(file)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log of writes is no part of the record
            return file.stat().st_size

        empty, made = size(), 0
        for count in sorted(args.runs):
            new = [another(folder, place / "runs", number) for number in range(made, count)]
            for run in new[:-SAMPLE]:
                record(run)
            row = {"runs": count, "record": median(record, new[-SAMPLE:]), "answer": median(answer, new[-SAMPLE:])}
            row["nothing_there"] = median(lambda run: recall.finished(uri, experiment, ["f" * 16]), new[-SAMPLE:])
            row["read_all"] = median(lambda run: records.read([place / "runs"]), new[:1])
            row["times_for_a_plan"] = median(lambda run: _read(place), new[:1])
            row["database_bytes_a_run"] = (size() - empty) / count if file else None
            row["folder_bytes_a_run"] = sum(f.stat().st_size for f in new[-1].iterdir())
            rows.append(row)
            print("  ".join(f"{k} {v:.4g}" if v else f"{k} -" for k, v in row.items()), flush=True)
            made = count
    result = {"epochs": args.epochs, "cpus": os.cpu_count(), "load": os.getloadavg(), "uri": uri.split(":")[0]}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result | {"sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
