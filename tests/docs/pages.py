"""The pages of the documentation, and the code in them: blocks, and what stands in backquotes in the text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `kind` is the first word behind the fence (``sh``), `role` the others (``output``)."""

    page: str
    line: int
    kind: str
    role: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, comments left out; one may go over several lines."""
        found: list[str] = []
        begun = ""
        for line in self.text.replace("\\\n", " ").splitlines():
            begun = f"{begun}\n{line}".strip()
            if not begun.startswith("#") and not _is_whole(begun):
                continue
            if begun and not begun.startswith("#"):
                found.append(begun)
            begun = ""
        return found


def _is_whole(command: str) -> bool:
    """Whether every quotation has its end."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def pages() -> list[str]:
    """Every page, by its path in the repository."""
    return ["README.md", *(f"docs/{path.name}" for path in sorted((REPO / "docs").glob("*.md")))]


def blocks(page: str) -> list[Block]:
    """The page's fenced blocks, in order."""
    found = []
    for token in MarkdownIt().parse((REPO / page).read_text(encoding="utf-8")):
        if token.type == "fence":
            kind, _, role = token.info.strip().partition(" ")
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, kind, role, token.content))
    return found


def commands_in_text(page: str) -> Iterator[str]:
    """What stands in backquotes within the text and is a command of ours."""
    # Tables are not parsed as such, but what is in backquotes is found all the same.
    for token in MarkdownIt().parse((REPO / page).read_text(encoding="utf-8")):
        for child in token.children or ():
            if child.type == "code_inline" and re.match(r"(\.venv/bin/)?spillway [a-z]|scripts/", child.content):
                yield child.content.replace("\n", " ")
