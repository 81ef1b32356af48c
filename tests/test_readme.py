"""Every command of the README and of the pages it leads to runs, on less data and smaller networks; so do the links."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_classes import write
from test_cli import segsweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("runs", "search", "segmentation"))]
BLOCKS = [b for page in PAGES for b in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)]
COMMANDS = [
    list(c) for c in dict.fromkeys(tuple(shlex.split(x, comments=True)) for b in BLOCKS for x in b.splitlines()) if c
]
SMALL = ["model.width=2", "model.depth=2", "epochs=1", "precision=fp32", "tracking=none"]
OF_DATA = {"lgg": ["data.image_size=16"], "phantom": ["data.image_size=16", "data.patients=6", "data.slices=6"]}
OF_DATA["folder"] = ["data.image_size=16"]
HEARTS = ["data=folder", "data.root=HEARTS", "data.image_size=16"]


def of(program: str) -> list[list[str]]:
    return [c for c in COMMANDS if " ".join(c).startswith(program)]


def test_the_readme_has_commands_and_no_other_kinds():
    known = [*of("make "), *of("python -m segsweep"), *of("mlflow "), *of("optuna-dashboard ")]
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
        for n in range(6):
            write(cwd / "HEARTS", f"p{n}", n, values=(1 + n % 2, 3), void=2)
        made = segsweep(cwd, *HEARTS, "data.classes=[background,rv,myo,lv]", "data.ignore=[]", *SMALL)
        assert made.returncode == 0, made.stdout + made.stderr
        (sweep,) = cwd.glob("multirun/2*")
        sweep.rename(cwd / "multirun" / "HEARTS")
        yield cwd


@pytest.mark.slow
@pytest.mark.parametrize("command", of("python -m segsweep"), ids=" ".join)
def test_a_command_runs(command, work):
    module, *arguments = command[2:]
    if module != "segsweep":
        if module == "segsweep.sync":
            arguments += ["--uri", f"sqlite:///{work}/mlruns/mlflow.db"]
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=work, capture_output=True, text=True)
    elif {"--cfg", "--help"} & set(arguments):
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=work, capture_output=True, text=True)
    else:
        real = "data=lgg" in arguments or any(a.startswith("experiment=") for a in arguments)
        larger = ("epochs=", "model.width=", "data.image_size=", "search.trials=")
        kept = [a for a in arguments if not a.startswith(larger)]
        searching = any(a.startswith("+search=") for a in arguments)
        kept += ["search.trials=4"] if searching else ["report=false"]
        if "-m" in arguments and not any(a.startswith(("hydra/launcher", "hydra.launcher")) for a in arguments):
            kept += ["hydra/launcher=basic"]  # workers have tests of their own
        kind = "lgg" if real else "folder" if "data=folder" in arguments else "phantom"
        models = [name for a in kept if a.startswith("model=") for name in a.removeprefix("model=").split(",")]
        flat = any("\ndepth:" not in (ROOT / "conf" / "model" / f"{name}.yaml").read_text() for name in models)
        small = [a for a in SMALL if not (flat and a.startswith("model.depth="))]
        done = segsweep(work, *kept, *small, *OF_DATA[kind])
    assert done.returncode == 0, done.stderr
