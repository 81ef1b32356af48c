"""`python -m segsweep.clean`: removes what can be made again, or is of no more use, and says how much that was.

Finished runs stay whole, and what a running job holds is left alone. Checkpoints of a finished run are of use only to
train it further, as `epochs=20` does after `epochs=10`."""

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from segsweep.config.start import start
from segsweep.core import artifacts
from segsweep.core.program import typed
from segsweep.runs import clean

Stored = Callable[[Path], Iterable[tuple[Path, Callable[[], AbstractContextManager[str]]]]]


def main(stored: Stored) -> int:
    """`stored`: of a cache's folder, the decoded data sets, and what keeps others from one for a block and gives "", or
    why not."""
    start()
    usual = artifacts.cache_folder()
    kinds = "; ".join(f"{kind}: {about}" for kind, about in clean.KINDS.items())
    parser = argparse.ArgumentParser(prog=typed("clean"), description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path, default=Path("multirun"), help="paths.runs; default: multirun")
    parser.add_argument("--cache", type=Path, default=usual, help=f"paths.cache; default: {usual}")
    parser.add_argument(
        "--what", nargs="+", choices=clean.KINDS, metavar="KIND", default=["checkpoints", "failed", "decoded"],
        help=f"{kinds}. Default: all but unfinished",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    args = parser.parse_args()
    if not args.runs.is_dir():
        print(f"{args.runs}: no such folder; give the one that paths.runs names", file=sys.stderr)
        return 1
    found = clean.items(args.runs)
    found += [clean.Item("decoded", place, [place], alone, lambda: "decoded") for place, alone in stored(args.cache)]
    found = [item for item in found if item.kind in args.what]
    stay = {} if args.dry_run else {item.place: why for item, why in clean.remove(found)}
    print(clean.table(found, stay))
    if found:
        gone = "Removed." if len(stay) < len(found) else "Nothing was removed."
        print("Nothing was removed (--dry-run)." if args.dry_run else gone)
    failed = {place: why for place, why in stay.items() if why not in clean.FINE}
    for place, why in failed.items():
        print(f"{place} was not removed: {why}", file=sys.stderr)
    return 1 if failed else 0
