"""Sections as one self-contained HTML page, and as Markdown; nothing is fetched, so both work offline."""

import base64
import re
from html import escape
from pathlib import Path

from segsweep.report.content import Block, Cell, Code, Figure, Section, Table

HERE = Path(__file__).parent
MARKS = {"best": "★ ", "tied": "≈ "}


def html(title: str, made: str, sections: list[Section]) -> str:
    """The page: style and script inline, pictures as SVG or data."""
    contents = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{"".join(map(_html_block, s.blocks))}</section>'
        for s in sections
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style>"
    )
    top = (
        f'<header><h1>{escape(title)}</h1><p>{escape(made)}</p></header><nav aria-label="Sections"><ul>{contents}</ul>'
    )
    page = f"<head>{head}</head><body>{top}</nav><main>{body}</main><script>{script}</script></body>"
    return f'<!doctype html><html lang="en">{page}</html>\n'


def _html_block(block: Block) -> str:
    match block:
        case str():
            return f"<p>{_inline(block)}</p>"
        case Table():
            return _html_table(block)
        case Code():
            return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
    figures = [item for item in block if isinstance(item, Figure)]
    if figures:
        return f'<div class="figures">{"".join(map(_html_figure, figures))}</div>'
    return f"<ul>{''.join(f'<li>{_inline(str(item))}</li>' for item in block)}</ul>"


def _html_figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode() if not figure.svg else ""
    picture = figure.svg or f'<img src="data:image/png;base64,{data}" alt="{escape(figure.alt)}" loading="lazy">'
    kind = "" if figure.svg else ' class="photo"'
    return f"<figure{kind}>{picture}<figcaption>{escape(figure.caption)}</figcaption></figure>"


def _html_table(table: Table) -> str:
    heads = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in table.head)
    rows = "".join(
        f"<tr>{''.join(_html_cell(cell, first=i == 0) for i, cell in enumerate(row))}</tr>" for row in table.rows
    )
    notes = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in table.notes.items() if name in table.head
    )
    caption, label = _inline(table.caption), escape(re.sub(r"[`*]", "", table.caption)[:80])
    tall = " tall" if len(table.rows) > 25 else ""
    scroll = f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{label}">'
    inner = f"{scroll}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    inner += f"<dl>{notes}</dl>" if notes else ""
    return (
        f"<details><summary>{caption}</summary>{inner}</details>"
        if table.folded
        else f'<p class="caption">{caption}</p>{inner}'
    )


def _html_cell(cell: Cell | str, first: bool) -> str:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    tag = "th" if first else "td"
    classes = (
        [cell.mark] * bool(cell.mark) + ["n"] * isinstance(cell.sort, float | int) + ["long"] * (len(cell.text) > 48)
    )
    kind = ' scope="row"' if first else f' class="{" ".join(classes)}"' if classes else ""
    sort = f' data-sort="{escape(str(cell.sort))}"' if cell.sort is not None else ""
    return f"<{tag}{kind}{sort}>{MARKS.get(cell.mark, '')}{_inline(cell.text)}{cell.svg}</{tag}>"


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def markdown(title: str, made: str, sections: list[Section]) -> str:
    """The same for a terminal or a repository, its pictures in figures/."""
    parts = [f"# {title}", made]
    for section in sections:
        parts += [f"## {section.title}", *map(_markdown_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case str():
            return block
        case Table():
            lines = ["| " + " | ".join(map(_pipe, block.head)) + " |", "|" + " --- |" * len(block.head)]
            for row in block.rows:
                cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
                lines.append("| " + " | ".join(MARKS.get(c.mark, "") + _pipe(c.text) for c in cells) + " |")
            notes = [f"- {name}: {text}" for name, text in block.notes.items() if name in block.head]
            return "\n".join([block.caption, "", *lines, *([""] if notes else []), *notes])
        case Code():
            return f"```sh\n{block.text}\n```"
    return "\n\n".join(
        f"![{item.alt}](figures/{item.name}.png)" if isinstance(item, Figure) else f"- {item}" for item in block
    )


def _pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def pictures(sections: list[Section]) -> dict[str, bytes]:
    """PNG by file name, of every figure in the sections."""
    return {
        f"{item.name}.png": item.png
        for section in sections
        for block in section.blocks
        if isinstance(block, list)
        for item in block
        if isinstance(item, Figure)
    }
