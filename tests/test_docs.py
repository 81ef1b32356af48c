"""The site is built strictly, from README.md, docs/ and the comments of conf/; it can be read offline."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_cli import segsweep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import conf_keys  # noqa: E402


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    """As `make docs` does, to `out`."""
    command = re.search(r"-m sphinx (.*) docs/_build/html", (ROOT / "Makefile").read_text())
    options = command[1].replace("docs/_build/doctrees", str(out.with_name(f"{out.name}-trees"))).split()
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(out)], cwd=root, capture_output=True, text=True
    )


class Page(HTMLParser):
    """What a page has by name, leads to, and loads."""

    def __init__(self, file: Path):
        super().__init__()
        self.names, self.links, self.loaded = set(), [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names.add(attrs.get("id"))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "link" and attrs.get("rel") == "stylesheet":
            self.loaded.append(attrs["href"])
        if tag in ("script", "img", "source", "iframe") and attrs.get("src"):
            self.loaded.append(attrs["src"])


@pytest.mark.slow
def test_the_site_is_built_strictly_its_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(tmp_path):
    done = build(ROOT, tmp_path / "html")
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "html").rglob("*.html") if "_static" not in file.parts]
    pages = {file.resolve(): Page(file) for file in files}
    assert len(pages) > 20
    for file, page in pages.items():
        for link in page.links + page.loaded:
            if re.match(r"https?:|mailto:", link):
                assert link not in page.loaded, (file.name, link)
                continue
            name, _, anchor = link.partition("#")
            target = (file.parent / unquote(name.partition("?")[0])).resolve() if name else file
            assert target.is_file(), (file.name, link)
            assert not anchor or target.suffix != ".html" or unquote(anchor) in pages[target].names, (file.name, link)
    shown = (tmp_path / "html" / "docs" / "configuration.html").read_text()
    keys = [key.name for file in conf_keys.everything() for key in file.keys if not key.inner]
    assert [name for name in keys if f">{name}<" not in shown] == []
    for style in (tmp_path / "html" / "_static").rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_a_broken_link_a_page_that_nobody_finds_and_a_key_without_a_comment_fail_the_build(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("docs", "conf", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for file in ROOT.glob("*.md"):
        shutil.copy(file, root)
    (root / "segsweep").symlink_to(ROOT / "segsweep")
    (root / "docs" / "lost.md").write_text("# Lost\n\n[nowhere](nowhere.md)\n\n[no heading](runs.md#no-such-heading)\n")
    config = root / "conf" / "config.yaml"
    config.write_text(re.sub(r"(\nepochs: 6) .*", r"\1", config.read_text()))
    done = build(root, tmp_path / "html")
    assert done.returncode != 0
    wanted = ("nowhere.md", "no-such-heading", "isn't included in any toctree", "conf/config.yaml: epochs")
    assert [text for text in wanted if text not in done.stderr] == [], done.stderr


def test_comments_of_keys_are_found_behind_below_and_above_them(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "net.yaml").write_text(
        "# A net.\n#   python -m net\n_target_: net.Net\nwidth: 8  # channels,\n          # 1 or more\n"
        "# Anything #\n# at all\nname: '#1'\nkinds: [a, b] # some\nretries:  # how often\n  error: 0 # raised\n"
    )
    (file,) = conf_keys.everything(tmp_path)
    assert (file.head, file.target) == (["A net.", "  python -m net"], "net.Net")
    assert [tuple(key[:3]) for key in file.keys] == [
        ("model.width", "8", "channels, 1 or more"),
        ("model.name", "'#1'", "Anything # at all"),
        ("model.kinds", "[a, b]", "some"),
        ("model.retries", "", "how often"),
        ("model.retries.error", "0", "raised"),
    ]


def test_a_key_that_nothing_documents_is_named_and_one_of_another_group_may_be_documented_there(tmp_path):
    for name in ("model", "experiment"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "net.yaml").write_text("# A net.\nwidth: 8  # channels\n")
    experiment = tmp_path / "experiment" / "wide.yaml"
    experiment.write_text("# @package _global_\n# Wide.\nmodel:\n  width: 64\n")
    assert len(conf_keys.everything(tmp_path)) == 2
    experiment.write_text("# @package _global_\n# Wide.\nmodel:\n  depth: 64\n")
    with pytest.raises(ValueError, match=r"conf/experiment/wide\.yaml: model\.depth$"):
        conf_keys.everything(tmp_path)
    experiment.unlink()
    (tmp_path / "model" / "other.yaml").write_text("# Another.\nwidth: 8\n")
    with pytest.raises(ValueError, match=r"conf/model/other\.yaml: model\.width$"):
        conf_keys.everything(tmp_path)


def test_every_key_of_the_installed_conf_is_documented():
    files = conf_keys.everything()
    assert {file.group for file in files} >= {"", "task", "model", "optim", "hydra/launcher"}
    assert sum(len(file.keys) for file in files) > 200


def test_the_page_of_examples_shows_each_of_their_files():
    page = (ROOT / "docs" / "examples.md").read_text()
    files = [f.relative_to(ROOT).as_posix() for end in ("py", "yaml") for f in (ROOT / "examples").rglob(f"*.{end}")]
    assert [file for file in files if f"{{literalinclude}} ../{file}\n" not in page] == []


@pytest.mark.slow
def test_the_page_of_the_record_names_each_key_of_a_record(tmp_path):
    (tmp_path / "work").mkdir()
    made = segsweep(
        tmp_path / "work", "-m", "optim=sgd", "epochs=1", "model.width=2", "model.depth=2", "data.image_size=16",
        "data.patients=6", "data.slices=6", "hydra/launcher=basic", "report=false",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    text, files = (ROOT / "docs" / "record.md").read_text(), list((tmp_path / "work" / "multirun").rglob("*.json"))
    assert {file.name for file in files} >= {"run.json", "result.json", "sweep.json", "job.json", "mlflow.json"}
    keys = {key for file in files for key in json.loads(file.read_text())} - {"train", "val", "test"}
    lines = (tmp_path / "work" / "multirun").rglob("history.jsonl")
    keys |= {key for file in lines for key in json.loads(file.read_text().splitlines()[0]) if "/" not in key}
    assert sorted(key for key in keys if f"`{key}`" not in text) == []
