"""Lines of styled text, and how they are laid out: everything `top` shows is made of these, on a screen or on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from node.top.glyphs import Glyphs

_GAP: Final = 2


def said(*parts: str | tuple[str, str] | Text) -> Text:
    """One line of `parts`: plain, with a style, or lines themselves."""
    return Text.assemble(*parts)


def title(name: str, note: str, width: int, glyphs: Glyphs) -> Text:
    """A rule across with `name` in it, and `note` at its end, cut if need be."""
    line = said((f"{glyphs.rule} ", "dim"), (name, "bold"), " ")
    end = said((f" {note} ", "dim")) if note else Text()
    if line.cell_len + end.cell_len > width:
        end = fitted(end, max(0, width - line.cell_len), glyphs)
    rest = width - line.cell_len - end.cell_len
    return said(line, (glyphs.rule * max(0, rest), "dim"), end)


def fitted(line: Text, width: int, glyphs: Glyphs, *, right: bool = False) -> Text:
    """`line` in exactly `width` cells: cut with a sign of it, or filled up (at its left, if `right`)."""
    if line.cell_len > width:
        line = line.copy()
        line.truncate(max(0, width - cell_len(glyphs.more)))
        line.append(glyphs.more[: max(0, width)])
    missing = Text(" " * (width - line.cell_len))
    return missing + line if right else line + missing


def beside(left: Sequence[Text], right: Sequence[Text], width: int, glyphs: Glyphs) -> list[Text]:
    """Two blocks side by side in `width`."""
    left_width = (width - _GAP) // 2
    return [
        fitted(one, left_width, glyphs) + Text(" " * _GAP) + other
        for one, other in zip_longest(left, right, fillvalue=Text())
    ]


def halves(width: int) -> tuple[int, int]:
    """The widths of two blocks that go `beside` each other."""
    left = (width - _GAP) // 2
    return left, width - _GAP - left


def flow(parts: Sequence[Text], width: int, between: str = "  ", indent: int = 0) -> list[Text]:
    """`parts` one after the other, each whole, in as many lines as it takes; all lines but the first are indented."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(between) + part.cell_len <= width:
            lines[-1] = said(lines[-1], between, part)
        else:
            lines.append(said(" " * indent, part) if lines else part)
    return lines


def wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """A sentence in as many lines as it takes, cut between words."""
    return flow([Text(word, style=style) for word in text.split()], width, between=" ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table. `from_width`: the narrowest table that has room for it. One without a width takes what
    the others leave."""

    head: str
    width: int | None = None
    right: bool = False
    from_width: int = 0


def columns_in(columns: Sequence[Column], width: int) -> list[tuple[int, Column, int]]:
    """The columns that a table of `width` has room for: their places in `columns`, and how wide they are."""
    there = [(at, column) for at, column in enumerate(columns) if column.from_width <= width]
    taken = sum(column.width or 0 for _, column in there) + len(there) - 1
    return [(at, column, column.width or max(0, width - taken)) for at, column in there]


def row(cells: Sequence[Text], columns: Sequence[tuple[int, Column, int]], glyphs: Glyphs) -> Text:
    """One line of a table; `cells` has one for every column, shown or not."""
    return Text(" ").join(fitted(cells[at], width, glyphs, right=column.right) for at, column, width in columns)


def head(columns: Sequence[tuple[int, Column, int]], glyphs: Glyphs) -> Text:
    """The line above a table."""
    parts = [fitted(Text(column.head), width, glyphs, right=column.right) for _, column, width in columns]
    line = Text(" ").join(parts)
    line.stylize("dim")
    return line


def shown(line: Text) -> Text:
    """`line` as it may reach a terminal: what is not printable (an escape sequence in a name) is a question mark.

    The last thing that is done to a line, wherever it goes.
    """
    if line.plain.isprintable():
        return line
    line = line.copy()
    line.plain = "".join(each if each.isprintable() else "?" for each in line.plain)
    return line
