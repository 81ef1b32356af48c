"""The site: `make docs`. Its source is the repository itself: README.md and docs/ are pages as they lie, with the links
that they have where the repository is browsed; nothing is loaded from elsewhere."""

import json
import sys
from pathlib import Path

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx import addnodes

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import segsweep  # noqa: E402

project, version, release = "segsweep", segsweep.__version__, segsweep.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "conf_keys"]
root_doc = "README"
PAGES = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"]
include_patterns = [*PAGES, "docs/*.md", "docs/notebook.ipynb", "docs/results/README.md", "benchmarks/*.md"]
exclude_patterns = sorted(  # which are not even walked through
    path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("docs", "benchmarks")
) + ["docs/_build"]

CONTENTS = {  # a page that is in none of these fails the build
    "Begin": ["docs/start"],
    "Guides": [
        "docs/own_data",
        "docs/own_network",
        "docs/own_metric",
        "docs/own_task",
        "docs/notebook",
        "docs/segmentation",
        "docs/search",
        "docs/scale",
        "docs/runs",
    ],
    "Understand": ["docs/how_it_works", "SECURITY"],
    "Reference": ["docs/configuration", "docs/api", "docs/record", "docs/examples"],
    "Results": ["docs/report_revisited", "docs/results/README", "benchmarks/README", "benchmarks/LOG", "docs/peers"],
    "Project": ["CONTRIBUTING", "CHANGELOG"],
}

myst_heading_anchors = 4
highlight_language = "none"  # of what a terminal shows
myst_enable_extensions = ["deflist", "colon_fence"]
default_role = "code"
autodoc_member_order, napoleon_use_ivar = "bysource", True
autodoc_typehints, autodoc_typehints_description_target = "description", "documented"
autodoc_typehints_format = "short"
smartquotes = False  # values are copied
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!segsweep).*")
]  # what others document is linked to nowhere: it would not be offline

html_theme, html_title = "furo", "segsweep"
html_static_path, templates_path = ["site"], ["site"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "moved.html"}
html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = False


def contents(app, name, source):
    """The README is the first page; it is read without the table of contents, too."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            listed = "\n".join(f"/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


class Notebook(MystParser):
    """A page as it is before it is run: its outputs are kept nowhere."""

    supported = ("ipynb",)

    def parse(self, text, document):
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        super().parse("\n\n".join(f"```python\n{t}\n```" if kind == "code" else t for kind, t in cells), document)


def folders(app, doctree):
    """A link to a folder leads to the page about it; without such a page it stays broken."""
    for node in list(doctree.findall(addnodes.pending_xref)):
        path = (Path(app.env.doc2path(app.env.docname)).parent / node["reftarget"]).resolve()
        if node["reftype"] == "myst" and path.is_dir() and path.is_relative_to(ROOT / "examples"):
            anchor = "" if path == ROOT / "examples" else "#" + path.name.replace("_", "-")
            page = app.builder.get_relative_uri(app.env.docname, "docs/examples")
            node.replace_self(nodes.reference("", "", *node.children, internal=True, refuri=page + anchor))


def dashes(app, doctree):
    """Between a parameter and what is said of it, as nothing else makes them."""
    for node in list(doctree.findall(nodes.Text)):
        if node == " -- ":
            node.parent.replace(node, nodes.Text(" – "))


def setup(app):
    app.add_config_value("CONTENTS", {}, "env")  # all is read again where it changes
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(Notebook)
    app.connect("source-read", contents)
    app.connect("doctree-read", folders)
    app.connect("doctree-read", dashes)
