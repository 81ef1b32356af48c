"""What a section is made of; `render.py` turns it into HTML and Markdown.

Text is plain, with `code` in backticks and **weight** in asterisks, the same in both forms.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """The text shown, what it sorts by (default: the text), a mark ("best", "tied", "bad"), a picture as inline SVG."""

    text: str
    sort: float | str | None = None
    mark: str = ""
    svg: str = ""


@dataclass(frozen=True)
class Table:
    """Cells are Cell or text; `notes` explain columns by their heading; `folded` starts closed in the page."""

    caption: str
    head: list[str]
    rows: list[list[Cell | str]]
    notes: dict[str, str] = field(default_factory=dict)
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture with the words that stand for it: `png` for files and Markdown, `svg`, if any, in the page."""

    name: str
    alt: str
    caption: str
    png: bytes
    svg: str = ""


@dataclass(frozen=True)
class Code:
    """Lines to paste into a terminal."""

    text: str


Block = str | list[str] | Table | list[Figure] | Code


@dataclass(frozen=True)
class Section:
    """One heading of the report; `anchor` is its id in the page."""

    anchor: str
    title: str
    blocks: list[Block]


def number(value: float | None, spec: str = ".3f") -> Cell:
    """A number that sorts as one; a dash where it is undefined or not recorded."""
    if value is None or value != value:
        return Cell("–", "", "n")
    return Cell(format(value, spec), float(value))


def joined(words: list[str], last: str = "and") -> str:
    """Words in a sentence: a, b and c."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else many(noun)}"


def many(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def a(noun: str) -> str:
    """With its article: a patch, an image, a user."""
    vowel = re.match(r"(?!eu|one|u[^aeiou][aeiou])[aeiou]|hour", noun, re.IGNORECASE)
    return f"{'an' if vowel else 'a'} {noun}"


def inside(title: str) -> str:
    """A column's title within a sentence: loss for Loss, but RMSE."""
    return title[0].lower() + title[1:] if title[1:].islower() else title


def plus(value: float, spec: str) -> str:
    """With its sign, whichever it is."""
    text = format(value, spec)
    return text if text.startswith("-") else f"+{text}"


def slug(text: str) -> str:
    """As part of a file's name and of an id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)
