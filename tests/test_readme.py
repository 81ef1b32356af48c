"""Every command of the README and of the pages it leads to runs, on less data and smaller networks; so do the links."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_classes import write
from test_cli import segsweep

ROOT = Path(__file__).parents[1]
GUIDES = ("start", "own_data", "own_network", "own_metric", "segmentation", "search", "runs")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]
BLOCKS = [
    b for page in PAGES for b in re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
]
COMMANDS = [
    list(c) for c in dict.fromkeys(tuple(shlex.split(x, comments=True)) for b in BLOCKS for x in b.splitlines()) if c
]
OWN = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / "own_task.md").read_text(), re.MULTILINE | re.DOTALL)
SMALL = ["model.width=2", "model.depth=2", "epochs=1", "precision=fp32", "tracking=none"]
OF_DATA = {"lgg": ["data.image_size=16"], "phantom": ["data.image_size=16", "data.patients=6", "data.slices=6"]}
OF_DATA |= dict.fromkeys(("folder", "nifti"), ["data.image_size=16"])
HEARTS = ["data=folder", "data.root=HEARTS", "data.image_size=16"]


def retina(root: Path) -> None:
    """CHASE_DB1 and DRIVE as they lie in their archives, made up and small."""
    rng = np.random.default_rng(0)
    names = [f"CHASE_DB1/Image_{child:02}{eye}" for child in range(1, 8) for eye in "LR"]
    files = [(f"{name}.jpg", f"{name}_1stHO.png") for name in names]
    for n, part in [*((n, "test") for n in range(1, 5)), *((n, "training") for n in range(21, 25))]:
        place = f"DRIVE/{part}"
        files += [(f"{place}/images/{n:02}_{part}.tif", f"{place}/1st_manual/{n:02}_manual1.gif")]
        files[-1] += (f"{place}/mask/{n:02}_{part}_mask.gif",)
    for image, *masks in files:
        pixels = rng.integers(0, 255, (24, 25, 3), np.uint8)
        for file, array in zip((image, *masks), (pixels, pixels[..., 0] > 200, pixels[..., 0] > 20), strict=False):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / file)


def eyes(root: Path, smaller: int = 1) -> dict[str, tuple[int, int]]:
    """Photographs and label images of two structures and void; the size of each, a slice of a child the `smaller`."""
    rng = np.random.default_rng(0)
    sizes = {f"child{child:02}_{k}": (30 + child, 44 - smaller * k) for child in range(8) for k in range(2)}
    for name, shape in sizes.items():
        labels = np.zeros(shape, np.uint8)
        labels[6:24, 8:26], labels[10:18, 12:20], labels[:3] = 1, 2, 255
        photo = labels[..., None] % 255 * 70 + rng.integers(20, 60, (*shape, 3))
        for folder, end, array in (("photos", "jpg", photo.astype(np.uint8)), ("labels", "png", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{name}.{end}")
    return sizes


def volume(name: Path) -> None:
    """A volume and its labels, of which each class has a row."""
    if importlib.util.find_spec("nibabel") is None:
        return
    import nibabel

    labels = np.zeros((18, 16, 4), np.uint8)
    labels[2:11] = np.repeat([1, 2, 3], 3)[:, None, None]
    name.parent.mkdir(exist_ok=True)
    for end, array in (("", labels.astype(np.int16) * 50 + 20), ("_gt", labels)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), f"{name}{end}.nii.gz")


def of(program: str) -> list[list[str]]:
    return [c for c in COMMANDS if " ".join(c).startswith(program)]


def test_the_readme_has_commands_and_no_other_kinds():
    known = [*of("make "), *of("python -m segsweep"), *of("mlflow "), *of("optuna-dashboard ")]
    known += of("SEGSWEEP_ALLOW=")  # which tests/test_day.py runs
    assert len(of("python -m segsweep")) >= 6
    assert [c for c in COMMANDS if c not in known] == []


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")], ids=lambda page: page.name
)
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page):
    text = page.read_text()
    for file, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", text):
        target = (page.parent / file) if file else page
        assert target.exists(), file
        if heading:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, heading


@pytest.mark.parametrize("command", of("make "), ids=" ".join)
def test_a_make_target_is_there(command):
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory, lgg):
    """A folder with the real data under the name that the README uses, and one sweep to ask about."""
    cwd = tmp_path_factory.mktemp("readme") / "work"
    cwd.mkdir()
    (cwd / "LGG").symlink_to(lgg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_CACHE", str(cwd.parent / "cache"))  # which is cleaned
        made = segsweep(cwd, "-m", "optim=sgd,adam", *SMALL, *OF_DATA["phantom"])
        assert made.returncode == 0, made.stderr
        (sweep,) = cwd.glob("multirun/2*")
        sweep.rename(cwd / "multirun" / "SWEEP")
        retina(cwd)
        for n in range(1, 7):
            for frame in ("frame01", "frame12"):
                volume(cwd / "ACDC" / f"patient{n:03}_{frame}")
        for n in range(6):
            write(cwd / "HEARTS", f"p{n}", n, values=(1 + n % 2, 3), void=2)
        made = segsweep(cwd, *HEARTS, "data.classes=[background,rv,myo,lv]", "data.ignore=[]", *SMALL)
        assert made.returncode == 0, made.stdout + made.stderr
        (sweep,) = cwd.glob("multirun/2*")
        sweep.rename(cwd / "multirun" / "HEARTS")
        eyes(cwd / "EYES", smaller=0)
        files = ["data.images=photos/*", "data.masks=labels/*", "data.classes=3", "data.ignore=[255]"]
        made = segsweep(cwd, "data=folder", "data.root=EYES", "data.image_size=16", *files, *SMALL)
        assert made.returncode == 0, made.stdout + made.stderr
        (sweep,) = cwd.glob("multirun/2*")
        sweep.rename(cwd / "multirun" / "EYES")
        yield cwd


@pytest.mark.slow
@pytest.mark.parametrize("command", of("python -m segsweep"), ids=" ".join)
def test_a_command_runs(command, work):
    module, *arguments = command[2:]
    if "data=nifti" in arguments:
        pytest.importorskip("nibabel")
    if module != "segsweep":
        if module == "segsweep.sync":
            arguments += ["--uri", f"sqlite:///{work}/mlruns/mlflow.db"]
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=work, capture_output=True, text=True)
    elif {"--cfg", "--help"} & set(arguments):
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=work, capture_output=True, text=True)
    else:
        real = "data=lgg" in arguments or any(a.startswith("experiment=") for a in arguments)
        larger = ("epochs=", "model.width=", "data.image_size=", "data.patch=", "search.trials=")
        kept = [a for a in arguments if not a.startswith(larger)]
        searching = any(a.startswith("+search=") for a in arguments)
        kept += ["search.trials=4"] if searching else ["report=false"]
        if "-m" in arguments and not any(a.startswith(("hydra/launcher", "hydra.launcher")) for a in arguments):
            kept += ["hydra/launcher=basic"]  # workers have tests of their own
        kind = next((kind for kind in ("folder", "nifti") if f"data={kind}" in arguments), "lgg" if real else "phantom")
        crops = ["data.patch=8"] * any(a.startswith("data.patch=") for a in arguments)
        models = [name for a in kept if a.startswith("model=") for name in a.removeprefix("model=").split(",")]
        flat = any("\ndepth:" not in (ROOT / "conf" / "model" / f"{name}.yaml").read_text() for name in models)
        small = [a for a in SMALL if not (flat and a.startswith("model.depth="))]
        done = segsweep(work, *kept, *small, *OF_DATA[kind], *crops)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_about_ones_own_training_code_run_in_the_examples_that_they_name(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    lines = [line for block in OWN for line in block.splitlines()]
    assert len([line for line in lines if "python" in line]) >= 9
    place = tmp_path
    for line in lines:
        if line.startswith("cd "):
            place = tmp_path / line.removeprefix("cd ")
            continue
        line = re.sub(r"trials=\d+", "trials=2", line.partition(" #")[0])
        line = re.sub(r"\b(lr|seed)=([\d.]+),[\d.,]+", r"\1=\2", line)  # one job in the place of three or nine
        if " -m " in line.partition("python")[2] and "hydra/launcher" not in line and "segsweep.check" not in line:
            line += " hydra/launcher=basic"  # workers have tests of their own
        command = line.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
        done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True)
        why = [json.loads(file.read_text())["traceback"] for file in place.glob("multirun/runs/*/failure.json")]
        assert done.returncode == 0, "\n".join([line, done.stdout, done.stderr, *why])
