"""Does this tree compute what COMMIT computed, to the last bit?

    python -m benchmarks.same COMMIT [--only 'search*'] [--keep FOLDER]

For changes that are to change no number. Small commands run in a checkout of COMMIT and in this tree, as it lies, on
the CPU, one thread and one job at a time. Of every job are compared: its status, the history of its epochs without
times, the table of its patients byte by byte, every value of its weights, and the metrics of its record. The command
line and the files that it leaves are all that is looked at, so the modules may move. A job that only one side has, a
key that only one side knows and a command that fails are differences. Exits with 0 where there is none, with 1 where
there is one, and with 2 where nothing could be compared.

`--keep` keeps what COMMIT computed and answers from it as long as machine, libraries, files and commands are the same.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("tracking=none", "report=false", "hydra.launcher.jobs_per_device=1")
SMALL = ("model.width=4", "model.depth=2", "optim.lr=0.02", "epochs=3")
PHANTOM = ("data.patients=8", "data.slices=8", "data.image_size=32")
LGG = ("data=lgg", "data.root=../../data/lgg", "data.image_size=32")
PRUNED = ("loss=tversky", "optim.lr=0.02,0.01,1e-9,0.03", "batch_size=8", "split.val=0.3", "epochs=4")
LONG = ("epochs=40", "augment=affine")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "losses": (
        ("-m", *PHANTOM, "model=unet,r2unet", "loss=bce,bce_dice,dice,focal,tversky", "eval_batch_size=5"),
    ),
    "networks": (
        ("-m", *PHANTOM, "model=unet,r2unet", "model.depth=1,3", "model.width=3,6", "data.image_size=36"),
        ("-m", *PHANTOM, "model=r2unet", "model.t=1,3", "seed=0,7"),
    ),
    "optimizers": (("-m", *PHANTOM, "optim=sgd,adam,adamw", "scheduler=constant,cosine,poly"),),
    "steps": (("-m", *PHANTOM, "augment=none,flips,affine", "clip_norm=null,0.5", "precision=fp32,auto"),),
    "splits": (
        ("-m", *PHANTOM, "split=patient,holdout,slice", "split.seed=0,3"),
        ("-m", *PHANTOM, "split=kfold", "split.folds=4", "split.fold=0,3"),
        ("-m", *LGG, "split=file", "split.file=../../data/split.json"),
    ),
    "phantom": (("-m", *PHANTOM, "data.normalise=zscore,percentile,unit", "data.seed=0,5"),),
    "folder": (
        ("-m", "data=folder", "data.root=../../data/colour,../../data/grey", "data.image_size=32",
         "data.normalise=zscore,percentile,unit"),
    ),
    "lgg": (("-m", *LGG, "data.normalise=zscore,percentile,unit", "data.image_size=32,null"),),
    "parts": (("-m", *PHANTOM, "model=unet,r2unet", "micro_batches=2,3", "loss=dice"),),
    "memory": (("-m", *PHANTOM, "model._target_=hungry.Hungry", "loss=dice", "hydra.launcher.retries.oom=2"),),
    "halving": (
        ("-m", *PHANTOM, *PRUNED, "pruner=halving", "pruner.min_resource=2"),
        ("-m", *PHANTOM, *PRUNED, "pruner=none"),
    ),
    "median": (
        ("-m", *PHANTOM, *PRUNED, "pruner=median", "pruner.n_startup_trials=1"),
        ("-m", *PHANTOM, *PRUNED, "pruner=none"),
    ),
    "epochs": tuple(
        ("-m", *PHANTOM, "scheduler=constant", f"epochs={epochs}") for epochs in ("1,3", "4", "2", "5,3")
    ),
    "resumed": (("^C", *PHANTOM, *LONG), (*PHANTOM, *LONG)),
    "resumed_sweep": (("^C", "-m", *PHANTOM, *LONG, "seed=0,1"), ("-m", *PHANTOM, *LONG, "seed=0,1")),
    "experiments": (
        ("-m", "experiment=glob(*)", "data.root=../../data/lgg", "data.image_size=32", "model.width=4", "epochs=2"),
    ),
    "search": (
        ("-m", *PHANTOM, "+search=tpe", "loss=bce,dice,bce_dice", "search.trials=10", "epochs=2",
         "search.storage=sqlite:///optuna.db", "hydra.sweeper.sampler.n_startup_trials=3"),
        ("-m", *PHANTOM, "hydra/sweeper=search", "search.trials=8", "search.storage=journal:///optuna.log", "epochs=1",
         "model=unet,r2unet", "loss=bce,dice", "optim.lr=0.01,0.02", "hydra.sweeper.sampler.n_startup_trials=2"),
    ),
}  # fmt: skip
"""Name -> its command lines, run one after another in one folder, after PLACES and SMALL. `^C` first: the command is
interrupted after an epoch, and only what comes of the next is compared."""
UNSET = {"search": ("optim.lr",), "experiments": ("optim.lr",)}
"""Keys of SMALL that a command does without: a search and an experiment have their own."""
WITNESSES = {
    "memory": (("history.jsonl", '"micro_batches": 4'),),
    "halving": (("job.json", '"status": "pruned"'), ("job.json", '"status": "continued"')),
    "median": (("job.json", '"status": "pruned"'), ("job.json", '"status": "continued"')),
    "epochs": (("job.json", '"status": "continued"'), ("job.json", '"status": "reused"')),
    "resumed": (("job.json", '"status": "continued"'),),
    "resumed_sweep": (("job.json", '"status": "continued"'), ("job.json", '"status": "finished"')),
    "search": (("job.json", '"status": "finished"'), ("job.json", '"status": "pruned"')),
}
"""What some job of COMMIT must have in a file, or the command shows nothing."""
HUNGRY = '''"""A network that is out of memory where more than four slices are to be remembered."""
import torch
from torch import nn


class Hungry(nn.Sequential):
    def __init__(self, in_channels: int = 3, out_channels: int = 1, width: int = 4, depth: int = 1) -> None:
        first = nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        super().__init__(*first, nn.Conv2d(width, out_channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().forward(x)
'''
ALONE = '''"""Imported when Python starts: a checkout that is installed stays out of the way, and its Hydra plugins."""
import os
import sys

own, installed = os.environ["SAME_TREE"], ("site-packages", "dist-packages")
others = [p for p in sys.path if os.path.isdir(os.path.join(p, "segsweep")) and os.path.basename(p) not in installed]
sys.path[:] = [p for p in sys.path if p == own or p not in others]
'''
PROBE = """
import json, os, sys
try:
    import segsweep
except ImportError:
    print(json.dumps(None))
else:
    found = [p for p in sys.path if os.path.isdir(os.path.join(p, "segsweep"))]
    print(json.dumps([*found, os.path.dirname(os.path.dirname(segsweep.__file__))]))
"""
THREADS = 1
SETTINGS = ("SEGSWEEP_", "HYDRA_", "OMP_", "MKL_", "KMP_", "ATEN_", "TORCH_", "DNNL_", "ONEDNN_", "OPENBLAS_")
"""Beginnings of environment variables that the commands are not to see."""
ASKERS = ("search.study", "search.storage")
"""Who asks for a job is no part of it."""
WHOLE = ("finished", "continued", "reused")
FILES = ("history.jsonl", "patients.csv", "last.pt", "best.pt")
LATER = ("objective", "epoch", "parameters", "class", "metrics")
"""Of job.json, compared when the files are equal."""
MADE = "made.json"


class Problem(Exception):
    """Nothing can be compared, and why, in one sentence."""


# Comparing


def differences(there: Path, here: Path) -> tuple[int, list[str]]:
    """How many jobs either side has of a command, and a sentence for each that is not the same on both."""
    sides = _jobs(there), _jobs(here)
    keys = list(dict.fromkeys([*sides[0], *sides[1]]))
    names = _names(keys)
    found = []
    for key in keys:
        place, other = (side.get(key) for side in sides)
        if place is None or other is None:
            found.append(f"{names[key]}: no such job {'there' if place is None else 'here'}")
        elif difference := next(_differences(place, other), None):
            found.append(f"{names[key]}: {difference}")
    return len(keys), found


def _jobs(folder: Path) -> dict[tuple[str, ...], Path]:
    """(step, overrides in order, which of several alike) -> folder of a job's files, in order of the jobs."""
    found: dict[tuple[str, ...], Path] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for place in sorted(folder.glob("*/*/"), key=lambda place: [int(part) for part in place.parts[-2:]]):
        overrides = json.loads((place / "job.json").read_text())["overrides"]
        key = (place.parent.name, *sorted(o for o in overrides if o.partition("=")[0] not in ASKERS))
        seen[key] += 1
        found[(*key, f"no. {seen[key]}") if seen[key] > 1 else key] = place
    return found


def _names(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What tells a job from the others of its step; the step, where there are several."""
    steps = {key[0] for key in keys}
    common = {step: set.intersection(*(set(key) for key in keys if key[0] == step)) for step in steps}
    return {
        key: " ".join(
            [f"command {key[0]}:"] * (len(steps) > 1) + ([o for o in key[1:] if o not in common[key[0]]] or ["the job"])
        )
        for key in keys
    }


def _differences(there: Path, here: Path) -> Iterator[str]:
    """What differs between the files of a job, the telling things first."""
    a, b = (json.loads((side / "job.json").read_text()) for side in (there, here))
    if a["status"] != b["status"]:
        errors = [f" ({job['error'].splitlines()[-1]})" if job.get("error") else "" for job in (a, b)]
        yield f"status {a['status']}{errors[0]} there, {b['status']}{errors[1]} here"
    needed = FILES[:3] if a["status"] in WHOLE else FILES[:1]
    compare = {".jsonl": _histories, ".csv": _tables, ".pt": _weights}
    for name in FILES:
        sides = there / name, here / name
        if missing := [side for side in sides if not side.exists()]:
            if len(missing) == 1:
                yield f"no {name} {'there' if missing == [sides[0]] else 'here'}"
            elif name in needed:
                yield f"no {name} on either side"
        else:
            yield from (f"{name}, {difference}" for difference in compare[sides[0].suffix](*sides))
    yield from (f"job.json, {d}" for key in LATER for d in _values(key, a.get(key, "none"), b.get(key, "none")))


def _histories(there: Path, here: Path) -> Iterator[str]:
    """By epoch. Keys that tell seconds, or images a second, are left out."""
    sides = [[json.loads(line) for line in side.read_text().splitlines()] for side in (there, here)]
    if not sides[0]:
        yield "no epoch there"
    for epoch, rows in enumerate(itertools.zip_longest(*sides), 1):
        if None in rows:
            yield f"epoch {epoch}: only {'here' if rows[0] is None else 'there'}"
            return
        a, b = ({key: value for key, value in row.items() if "second" not in key} for row in rows)
        yield from (f"epoch {epoch}, {difference}" for difference in _keys(a, b))


def _keys(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*a, *b]):
        yield from _values(f"{prefix}{key}", a.get(key, "none"), b.get(key, "none"))


def _values(name: str, a: Any, b: Any) -> Iterator[str]:
    """JSON has every digit of a float, and 1 is not 1.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        yield from _keys(a, b, f"{name}.")
    elif json.dumps(a) != json.dumps(b):
        yield f"{name}: {a} there, {b} here"


def _tables(there: Path, here: Path) -> Iterator[str]:
    sides = [side.read_bytes().split(b"\n") for side in (there, here)]
    head = sides[0][0].strip().split(b",")
    for line, (a, b) in enumerate(itertools.zip_longest(*sides, fillvalue=b""), 1):
        x, y = a.strip().split(b","), b.strip().split(b",")
        if len(x) == len(y) == len(head) and x != y:
            cells = [(c.decode(), v.decode(), w.decode()) for c, v, w in zip(head, x, y, strict=True) if v != w]
            yield from (f"line {line}, {c}: {v} there, {w} here" for c, v, w in cells)
        elif a != b:
            yield f"line {line}: {a!r} there, {b!r} here"


def _weights(there: Path, here: Path) -> Iterator[str]:
    a, b = (_flat(torch.load(side, map_location="cpu", weights_only=True)) for side in (there, here))
    for key in dict.fromkeys([*a, *b]):
        if key not in a or key not in b:
            yield f"{key}: only {'there' if key in a else 'here'}"
        elif isinstance(a[key], torch.Tensor) and isinstance(b[key], torch.Tensor):
            x, y = a[key], b[key]
            if (x.dtype, x.shape) != (y.dtype, y.shape):
                kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (x, y)]
                yield f"{key}: {kinds[0]} there, {kinds[1]} here"
            elif not torch.equal(_bits(x), _bits(y)):
                yield f"{key}: {int((_bits(x) != _bits(y)).any(1).sum())} of {x.numel()} values differ"
        else:
            yield from _values(key, *(repr(side[key]) for side in (a, b)))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> tensor or plain value of nested dicts and lists."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, item in items for k, v in _flat(item, f"{name}.{key}".lstrip(".")).items()}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """(values, bytes of each): in which NaN is itself, and -0 is not 0."""
    plain = tensor.new_empty(tensor.numel()).copy_(tensor.reshape(-1))  # strides of its own
    return plain.view(torch.uint8).reshape(tensor.numel(), tensor.element_size())


def unseen(name: str, folder: Path) -> str | None:
    """What the jobs of a command were to show and do not."""
    for file, text in WITNESSES.get(name, ()):
        if not any(text in place.read_text() for place in folder.glob(f"*/*/{file}")):
            return f"no job has {text} in its {file}, so the command shows nothing"
    return None


# Running


def command_lines(name: str) -> list[tuple[str, ...]]:
    """Each with `^C` and `-m` in front where it has them; a key that a command gives itself is not given twice."""
    lines = []
    for line in COMMANDS[name]:
        given = {each.partition("=")[0] for each in line}
        own = [e for e in SMALL if e.partition("=")[0] not in {*given, *UNSET.get(name, ())}]
        flags = [each for each in line if each in ("^C", "-m")]
        last = {each.partition("=")[0]: each for each in line[len(flags) :]}
        lines.append((*flags, *PLACES, *own, *last.values()))
    return lines


class Side:
    """A tree, and the folder where its commands run; `scratch/data` has the files that they read."""

    def __init__(self, tree: Path, scratch: Path, name: str):
        self.tree, self.folder = tree, scratch / name
        self.folder.mkdir()
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(SETTINGS)}
        self.environment |= {"PYTHONPATH": os.pathsep.join([str(tree), str(scratch / "modules")])}
        self.environment |= {"SAME_TREE": str(tree), "SEGSWEEP_CACHE": str(self.folder / "cache")}
        self.environment |= {"SEGSWEEP_ALLOW": "hungry.*", "OMP_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": ""}
        asked = [sys.executable, "-c", PROBE]
        done = subprocess.run(asked, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        found = json.loads(done.stdout or "null")
        if not found:
            raise Problem(f"{tree}: has no package segsweep that can be imported")
        if others := sorted({place for place in found if place != str(tree)}):
            raise Problem(f"segsweep is installed in {others[0]}, which would mix with {tree}: install it with -e")

    def make(self, name: str, results: Path) -> str | None:
        """Run the command lines of `name` and copy each one's jobs to results/STEP/JOB/; a sentence where one fails."""
        folder = self.folder / name
        folder.mkdir()
        known: set[Path] = set()
        for step, (first, *rest) in enumerate(command_lines(name), 1):
            interrupted = first == "^C"
            code, said = self._run(folder, rest if interrupted else [first, *rest], interrupted)
            jobs = sorted(set(folder.rglob("job.json")) - known, key=lambda file: int(file.parent.name))
            known.update(jobs)
            if not interrupted:
                for number, file in enumerate(jobs):
                    _copy(file, results / str(step) / str(number))
            if code != (130 if interrupted else 0):
                return f"command {step} ended with {code}: {said or 'no message'}"
        return None

    def _run(self, folder: Path, arguments: Sequence[str], interrupt: bool) -> tuple[int, str]:
        """The exit code and the last of what stood on stderr."""
        command = [sys.executable, "-m", "segsweep", *arguments]
        with tempfile.TemporaryFile("w+") as errors:
            where: dict[str, Any] = {"cwd": folder, "env": self.environment}
            process = subprocess.Popen(command, **where, stdout=subprocess.DEVNULL, stderr=errors)
            try:
                while interrupt and process.poll() is None:
                    if any(file.stat().st_size for file in folder.rglob("history.jsonl")):
                        process.send_signal(signal.SIGINT)
                        break
                    time.sleep(0.01)
                code = process.wait()
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        return code, " / ".join(line.strip() for line in lines[-3:])


def _copy(job: Path, place: Path) -> None:
    """A job's record, and its run's as it is now: a later command may go on with it."""
    place.mkdir(parents=True)
    shutil.copy(job, place)
    if run := json.loads(job.read_text()).get("run"):
        for name in FILES:
            if (file := job.parent / run / name).exists():
                shutil.copy(file, place)


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A worktree of `commit` in a temporary folder; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="same-") as place:
        tree = Path(place).resolve() / "tree"
        try:
            git("worktree", "add", "--detach", str(tree), commit)
            yield tree
        finally:
            try:
                git("worktree", "remove", "--force", str(tree))
            except Problem:
                shutil.rmtree(tree, ignore_errors=True)
                git("worktree", "prune")


# Data


def write_data(folder: Path) -> str:
    """Small trees: `lgg` in the archive's layout, `colour` and `grey` (16 bit), each of images of two sizes, and
    `split.json` of seven of LGG's eight patients. The digest of all files."""
    rng = np.random.default_rng(0)
    patients = [f"TCGA_{'CS' if n % 2 else 'DU'}_{n:04}_2000010{n}" for n in range(8)]
    for n, patient in enumerate(patients):
        for k in range(1, 5 + n):  # 4 to 11 slices, so that the order of numbers is not that of names
            image, mask = _slice(rng, (48, 48))
            _save(folder / "lgg" / "kaggle_3m" / patient / f"{patient}_{k}.tif", image)
            _save(folder / "lgg" / "kaggle_3m" / patient / f"{patient}_{k}_mask.tif", mask * np.uint8(255))
            image, mask = _slice(rng, (40, 40) if n % 2 else (56, 44))
            _save(folder / "colour" / "images" / f"p{n}_{k}.png", image)
            _save(folder / "colour" / "masks" / f"p{n}_{k}.png", mask * np.uint8(255))
            image, mask = _slice(rng, (36, 40) if n % 3 else (64, 64))
            _save(folder / "grey" / "images" / f"p{n}_{k}.png", image[..., 0].astype(np.uint16) * 257)
            _save(folder / "grey" / "masks" / f"p{n}_{k}.png", mask)
    split = {"train": patients[2:6], "val": patients[6:7], "test": patients[7:]}
    (folder / "split.json").write_text(json.dumps(split | {"train": [patients[0], *split["train"]]}))
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _slice(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse with noise, (H, W, 3) uint8; in three of four a bright disc, which the mask has, (H, W) of {0, 1}."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    head = (y[:, None] ** 2 + x**2 < 0.8).astype(float)
    centre, radius = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.15, 0.4) * (rng.random() < 0.75)
    disc = (y[:, None] - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    signal = head[..., None] * rng.uniform(60, 110, 3) + disc[..., None] * [20, 90, 50]
    return np.clip(signal + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8), disc.astype(np.uint8)


def _save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


# What is kept


def facts(commit: str, data: str) -> dict[str, Any]:
    """What the last bit hangs on."""
    packages = ("torch", "numpy", "scipy", "pillow", "optuna", "hydra-core", "omegaconf")
    return {
        "commit": commit,
        "data": data,
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def _cpu() -> dict[str, str]:
    """Of the first processor: a name alone may be that of several generations."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        found = dict(line.replace("\t", "").partition(":")[::2] for line in first.splitlines())
        return {key: found[key].strip() for key in wanted if key in found}
    return {"model name": platform.processor() or platform.machine()}


def stale(folder: Path, wanted: dict[str, Any]) -> str | None:
    """Why the results in `folder` are not those of `wanted`, or None where they are: MADE is written last."""
    try:
        made = json.loads((folder / MADE).read_text())
    except (OSError, ValueError):
        return "not whole"
    changed = [key for key in dict.fromkeys([*wanted, *made]) if made.get(key) != wanted.get(key)]
    return f"made with other {' and '.join(changed)}" if changed else None


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="COMMIT", help="the reference: anything that git takes for a commit")
    parser.add_argument("--only", metavar="PATTERN", default="*", help=f"names of commands, of {', '.join(COMMANDS)}")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="where the reference's results stay")
    args = parser.parse_args(arguments)
    names = [name for name in COMMANDS if fnmatchcase(name, args.only)]
    if not names:
        parser.error(f"--only {args.only}: matches none of {', '.join(COMMANDS)}")
    try:
        return compare(args.commit, names, args.keep)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 2


def compare(commit: str, names: Sequence[str], keep: Path | None) -> int:
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    except Problem as git_says:
        raise Problem(f"COMMIT {commit}: not a commit of {ROOT}; give a hash, a branch or a tag") from git_says
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="same-", ignore_cleanup_errors=True)))
        scratch = scratch.resolve()
        for name, text in {"hungry": HUNGRY, "sitecustomize": ALONE}.items():
            (scratch / "modules").mkdir(exist_ok=True)
            (scratch / "modules" / f"{name}.py").write_text(text)
        same = facts(commit, write_data(scratch / "data"))
        store = (keep.resolve() if keep else scratch / "kept") / commit[:12]
        there: Side | None = None
        here = Side(ROOT, scratch, "here")
        seconds, bad, total = Counter[str](), [], 0
        for name in names:
            wanted = same | {"commands": [list(line) for line in command_lines(name)]}
            problem, began = None, time.perf_counter()
            if reason := stale(store / name, wanted):
                if keep and (store / name).exists():
                    print(f"{name}: the reference's results are {reason}, so they are made again", flush=True)
                shutil.rmtree(store / name, ignore_errors=True)
                there = there or Side(stack.enter_context(checkout(commit)), scratch, "there")
                problem = there.make(name, store / name) or unseen(name, store / name)
                seconds["there"] += time.perf_counter() - began
            if problem:
                count, found = 0, [f"{commit[:12]} gives nothing to compare with: {problem}"]
            else:
                (store / name / MADE).write_text(json.dumps(wanted, indent=1) + "\n")
                began = time.perf_counter()
                failed = here.make(name, scratch / "results" / name)
                seconds["here"] += time.perf_counter() - began
                count, found = differences(store / name, scratch / "results" / name)
                found = [f"here {failed}", *found] if failed else found
            total += count
            bad += [name] if found else []
            print(f"{name:14}{count:3} jobs  {_verdict(found)}", flush=True)
        times = ", ".join(f"{side} {value:.0f} s" for side, value in seconds.items())
        what = f"NOT the same as {commit[:12]}: {', '.join(bad)}" if bad else f"the same as {commit[:12]}"
        print(f"{what} ({total} jobs of {len(names)} commands; {times})")
    return 1 if bad else 0


def _verdict(found: list[str]) -> str:
    if not found:
        return "equal"
    others = f"   ({len(found)} differences in all)" if len(found) > 1 else ""
    return f"DIFFERENT  {found[0]}{others}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the worktree is removed
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
