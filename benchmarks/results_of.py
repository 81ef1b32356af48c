"""What docs/results keeps of a sweep: NAME.json, its runs, and NAME.csv, the scores of every unit of their tests.

    python -m benchmarks.results_of SWEEP NAME [--out docs/results]

No image, no mask and no path of a machine is in them.
"""

import argparse
import json
from pathlib import Path

import segsweep
from segsweep.config.start import start
from segsweep.core import artifacts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    start()
    found = segsweep.load(str(args.sweep))
    runs = found.runs.drop(columns=["folder", "sweep", "command", "error", "error_class"]).dropna(
        axis="columns", how="all"
    )
    rows = json.loads(runs.to_json(orient="records"))
    record = artifacts.read_json(args.sweep / "sweep.json") or {}
    versions = (artifacts.read_json(Path(found.runs.folder.iloc[0]) / "run.json") or {})["versions"]
    about = {"command": record["command"], "date": record["started"][:10], "versions": versions}
    artifacts.write_json(args.out / f"{args.name}.json", about | {"runs": rows})
    artifacts.write_csv(args.out / f"{args.name}.csv", found.units.astype(object).to_dict("records"))


if __name__ == "__main__":
    main()
