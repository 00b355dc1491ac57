"""The characters that bars and charts are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """`levels` rise from a little to a full cell; `stacks` says whether two of them may share a cell in two colours."""

    levels: str
    full: str
    empty: str
    rule: str
    more: str
    dot: str
    arrow: str
    stacks: bool


UNICODE: Final = Glyphs(levels="▁▂▃▄▅▆▇█", full="█", empty="░", rule="─", more="…", dot="·", arrow="→", stacks=True)
ASCII: Final = Glyphs(levels=".:-=+*%#", full="#", empty=".", rule="-", more="~", dot="|", arrow=">", stacks=False)
