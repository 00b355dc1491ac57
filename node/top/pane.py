"""Lines on the screen, drawn as they are: no boxes, no styles of their own, and only those anew that have changed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from node.top.lines import shown


class Pane(Widget):
    """As many of its lines as fit, from `first` on; `cursor` is the line that is marked."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.lines: list[Text] = []
        self.first = 0
        self.cursor: int | None = None

    def show(self, lines: Sequence[Text], *, first: int = 0, cursor: int | None = None) -> None:
        """Put `lines` there."""
        before = [self._line_at(y) for y in range(self.size.height)]
        self.lines, self.first, self.cursor = list(lines), first, cursor
        changed = [Region(0, y, self.size.width, 1) for y, old in enumerate(before) if old != self._line_at(y)]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """One line, as Textual asks for it."""
        line = self._line_at(y)
        strip = Strip([] if line is None else line[0].render(self.app.console, end=""))
        strip = strip.adjust_cell_length(self.size.width)
        return strip if line is None or not line[1] else strip.apply_style(self.app.console.get_style("reverse"))

    def _line_at(self, y: int) -> tuple[Text, bool, str] | None:
        """The text on line `y` of the screen, whether it is marked, and its style, which texts do not compare."""
        at = self.first + y
        if at >= len(self.lines):
            return None
        line = shown(self.lines[at])
        return line, at == self.cursor, str(line.style)
