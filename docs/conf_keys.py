"""The directive `{conf-keys}`: every key of conf/ with its default and its comment, and each file's head.

A key's comment stands behind its value, goes on in lines that are further in than the key, or stands above it. A key
without one is an error, unless another file documents the same key, as it does for experiments and spaces."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

CONF = Path(__file__).parents[1] / "conf"
FOREIGN = ("hydra/help", "hydra/hydra_logging", "hydra/job_logging")  # whose keys are Hydra's and Python's own
ORDER = ("", "task", "model", "loss", "optim", "scheduler", "augment", "data", "split", "pruner", "search", "tracking")


class Key(NamedTuple):
    name: str  # as on the command line
    default: str
    comment: str
    inner: bool  # whether keys stand below it


class File(NamedTuple):
    group: str  # "" for config.yaml
    option: str
    head: list[str]
    target: str  # the class that it names
    everywhere: bool  # whether its keys are those of other groups
    chosen: dict[str, str]  # group -> the option that it takes
    keys: list[Key]


def _comment(lines: list[str], number: int, indent: int, rest: str) -> str:
    """Of a key in line `number`, behind whose value `rest` stands."""
    above, found = number - 1, [rest.lstrip()[1:]] if rest.lstrip().startswith("#") else []
    while not found and above >= 0 and re.match(rf" {{{indent}}}# ", lines[above]):
        above -= 1
    if above >= 0:  # else it is the head of the file
        found = [line.strip()[1:] for line in lines[above + 1 : number]] + found
    for line in lines[number + 1 :]:
        if not (match := re.match(r"( *)#(.*)", line)) or len(match[1]) <= indent:
            break
        found.append(match[2])
    return " ".join(part.strip() for part in found)


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Key]:
    for key, value in node.value:
        if key.value == "defaults" or key.value.startswith("_"):
            continue
        inner = isinstance(value, yaml.MappingNode) and not value.flow_style
        start, end = value.start_mark, key.end_mark if inner else value.end_mark
        rest = lines[end.line][end.column :].lstrip(":") if end.line < len(lines) else ""
        default = "" if inner else "".join(lines[start.line][start.column : end.column])
        comment = _comment(lines, key.start_mark.line, key.start_mark.column, rest)
        yield Key(prefix + key.value, default, comment, inner)
        if inner:
            yield from _keys(value, lines, f"{prefix}{key.value}.")


def read(path: Path, conf: Path = CONF) -> File:
    text = path.read_text(encoding="utf-8")
    lines, node = text.splitlines(), yaml.compose(text)
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line[1:].removeprefix(" "))
    everywhere = head[:1] == ["@package _global_"]
    group = path.parent.relative_to(conf).as_posix().removeprefix(".")
    prefix = "" if everywhere or not group else group.replace("/", ".") + "."
    target = next((value.value for key, value in node.value if key.value == "_target_"), "")
    keys = [] if group in FOREIGN else list(_keys(node, lines, prefix))
    listed = next((value.value for key, value in node.value if key.value == "defaults"), [])
    pairs = [
        (key.value, value.value) for entry in listed if isinstance(entry.value, list) for key, value in entry.value
    ]
    chosen = {key.removeprefix("override ").lstrip("/"): option for key, option in pairs}
    return File(group, path.stem, head[everywhere:], target, everywhere, chosen, keys)


def everything(conf: Path = CONF) -> list[File]:
    """All files, group by group. Raises ValueError with every key that nothing documents."""
    files = [read(path, conf) for path in sorted(conf.rglob("*.yaml"))]
    known = {key.name for file in files for key in file.keys if key.comment}
    taken = {key.name for file in files for key in file.keys if key.comment and key.default == "{}"}  # any keys below
    bare = [
        f"conf/{file.group}/{file.option}.yaml: {key.name}".replace("//", "/")
        for file in files
        for key in file.keys
        if not (key.inner or key.comment or (file.everywhere and key.name in known))
        and not any(key.name.startswith(f"{name}.") for name in taken)
    ]
    bare += [f"conf/{f.group}/{f.option}.yaml: no head".replace("//", "/") for f in files if not f.head]
    if bare:
        raise ValueError(f"no comment says what these are: {', '.join(bare)}")
    return sorted(files, key=lambda f: (ORDER.index(f.group) if f.group in ORDER else len(ORDER), f.group, f.option))


def marked(text: str) -> list[nodes.Node]:
    """Text with what stands between backticks as code."""
    kinds = [nodes.Text, lambda part: nodes.literal("", part)]
    return [kinds[n % 2](part) for n, part in enumerate(text.split("`")) if part]


def paragraphs(lines: list[str]) -> Iterator[nodes.Node]:
    """Of a head: text, and commands, which are further in."""
    block: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        block.append(line)
        if line.startswith("  ") != after.startswith("  ") or after == "":
            if line.startswith("  "):
                yield nodes.literal_block("", "\n".join(x.strip() for x in block), language="bash")
            else:
                yield nodes.paragraph("", "", *marked(" ".join(block)))
            block = []


class ConfKeys(SphinxDirective):
    has_content = True  # for who reads the page unbuilt

    def run(self) -> list[nodes.Node]:
        for path in CONF.rglob("*.yaml"):
            self.env.note_dependency(str(path))
        try:
            files = everything()
        except ValueError as error:
            raise self.error(str(error)) from None
        groups: dict[str, list[File]] = {}
        self.chosen = {k: v for file in files if file.group in ("", "task") for k, v in file.chosen.items()}
        for file in files:
            groups.setdefault(file.group, []).append(file)
        return [self.group(name, members) for name, members in groups.items()]

    def section(self, title: list[nodes.Node], name: str) -> nodes.section:
        section = nodes.section("", nodes.title("", "", *title), ids=[nodes.make_id(name)], names=[name])
        return section

    def group(self, name: str, files: list[File]) -> nodes.section:
        if not name:
            section = self.section([nodes.Text("The engine")], "the-engine")
            section += [*paragraphs(files[0].head), *self.keys(files[0])]
            return section
        section = self.section([nodes.literal("", f"{name}=")], f"group-{name}")
        told: dict[Key, str] = {}  # what was said of another option of the group
        for file in sorted(files, key=lambda file: self.chosen.get(name) != file.option):
            title = f"{'+' if name in ('search', 'grid') else ''}{name}={file.option}"
            option = self.section([nodes.literal("", title)], f"{name}-{file.option}")
            if self.chosen.get(name) == file.option:
                option += nodes.paragraph("", "", nodes.emphasis("", "The default."))
            option += [*paragraphs(file.head), *self.keys(file, told)]
            section += option
            for key in file.keys:
                told.setdefault(key, title)
        return section

    def keys(self, file: File, told: Mapping[Key, str] = MappingProxyType({})) -> Iterator[nodes.Node]:
        if file.target not in ("", "null"):
            yield nodes.paragraph("", "", nodes.Text("Class: "), nodes.literal("", file.target))
        shown = [key for key in file.keys if key.comment and key not in told]
        others = [key for key in file.keys if not key.comment and not key.inner]
        if shown:
            items = nodes.definition_list(classes=["conf-keys"])
            for key in shown:
                term = nodes.term("", "", nodes.literal("", key.name), ids=[nodes.make_id(f"{file.option}-{key.name}")])
                if key.default:
                    term += [nodes.Text(" = "), nodes.literal("", key.default, classes=["default"])]
                about = nodes.definition("", nodes.paragraph("", "", *marked(key.comment)))
                items += nodes.definition_list_item("", term, about)
            yield items
        for title in dict.fromkeys(told[key] for key in file.keys if key in told):
            names = [nodes.literal("", key.name) for key in file.keys if told.get(key) == title]
            commas = [node for name in names for node in (nodes.Text(", "), name)][1:]
            link = nodes.reference("", "", nodes.literal("", title), refid=nodes.make_id(title.lstrip("+")))
            yield nodes.paragraph("", "", nodes.Text("As with "), link, nodes.Text(": "), *commas)
        if others:
            yield nodes.paragraph("", "Sets keys that are explained elsewhere on this page:")
            yield nodes.literal_block("", "\n".join(f"{key.name}: {key.default}" for key in others), language="yaml")


def setup(app):
    app.add_directive("conf-keys", ConfKeys)
    return {"parallel_read_safe": True}
