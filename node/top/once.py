"""One look at the node, on paper: the same panels as on the screen, without colours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from rich.text import Text

from node.dashboard.feed import Hello
from node.top import panels
from node.top.board import heading, notices
from node.top.decisions import as_line, columns
from node.top.glyphs import Glyphs
from node.top.lines import head, shown, title
from node.top.seen import Seen

_ROWS: Final = 20
_CHANGES: Final = 3


def on_paper(hello: Hello, url: str, width: int, glyphs: Glyphs) -> str:
    """The text of one look, in lines of at most `width` characters."""
    seen = Seen(url=url)
    seen.begin(hello)
    return "".join(f"{shown(each).plain.rstrip()}\n" for each in _lines(seen, hello, width, glyphs))


def in_ascii(document: str) -> str:
    """A JSON document as a line of ASCII, which any output takes and no terminal obeys."""
    return "".join(each if each.isascii() else json.dumps(each)[1:-1] for each in document) + "\n"


def _lines(seen: Seen, hello: Hello, width: int, glyphs: Glyphs) -> Iterator[Text]:
    now = hello.now
    yield heading(seen, width, glyphs, held=None, waits_s=None)
    yield from notices(seen, width, held=None)
    yield Text()
    yield from panels.tiles(seen, now, width, glyphs, notes=True)
    yield from panels.traffic(seen, width, glyphs)
    yield from panels.first_tokens(seen, width, glyphs)
    yield from panels.models(seen, now, width, glyphs, changes=_CHANGES)
    yield from panels.gpus(now, width, glyphs)
    yield from panels.providers(seen, now, width, glyphs, changes=_CHANGES)
    yield from panels.money(now, width, glyphs)
    yield from panels.reasons(seen, width, glyphs)
    yield title("Decisions", "newest first", width, glyphs)
    if not seen.rows:
        yield Text("No request has ended yet.")
        return
    there = columns(width)
    yield head(there, glyphs)
    for each in seen.rows[:_ROWS]:
        yield as_line(each, there, glyphs)
