"""Minutes as columns of characters: one line, a stack of several, and a bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from rich.style import Style
from rich.text import Text

from node.dashboard.feed import HISTORY_S, Point
from node.top.glyphs import Glyphs

_DECADES: Final = 3.0

Column = Sequence[Point]
"""The points that share one column of characters; none where nothing is known."""


def columns(points: Iterable[Point], width: int, end_s: float, interval_s: float) -> Sequence[Column]:
    """The last `HISTORY_S` before `end_s` in `width` columns, oldest first.

    A column is a whole number of intervals and begins at a multiple of that: so a second stays in its column, and the
    picture moves by whole columns instead of trembling.
    """
    step_s = interval_s * max(1, math.ceil(HISTORY_S / interval_s / max(1, width)))
    last = math.floor(end_s / step_s)
    filled: list[list[Point]] = [[] for _ in range(width)]
    for point in points:
        at = width - 1 - (last - math.floor(point.at_s / step_s))
        if 0 <= at < width:
            filled[at].append(point)
    return filled


def means(filled: Sequence[Column], value: Callable[[Point], float | None]) -> list[float | None]:
    """The mean of `value` in each column over the points that have one."""
    found = ([one for point in column if (one := value(point)) is not None] for column in filled)
    return [sum(each) / len(each) if each else None for each in found]


def line(values: Sequence[float | None], most: float, glyphs: Glyphs, style: str) -> Text:
    """One character for each value, scaled to `most`. Blank is 0, or not known; the least that is more is not."""
    text = "".join(" " if not value else _level(value / most if most else 0.0, glyphs) for value in values)
    return Text(text, style=style)


def log_line(values: Sequence[float | None], most: float, glyphs: Glyphs, style: str) -> Text:
    """One character for each value; every level stands for the same multiple of the one below, and the full cell for
    `most`. Blank is not known: one value that is a hundred times the others does not press them flat."""
    text = "".join(" " if value is None else _level(_log_part(value, most), glyphs) for value in values)
    return Text(text, style=style)


def stack(series: Sequence[tuple[Sequence[float | None], str]], most: float, height: int, glyphs: Glyphs) -> list[Text]:
    """Series on top of each other in `height` lines, the first at the bottom; each has values and a colour."""
    levels = len(glyphs.levels)
    lines = [Text() for _ in range(height)]
    for at in range(len(series[0][0])):
        tops: list[tuple[int, str]] = []
        total = 0.0
        for values, colour in series:
            total += values[at] or 0.0
            tops.append((round(total / most * height * levels) if most else 0, colour))
        for row in range(height):
            lines[height - 1 - row].append_text(_cell(tops, row * levels, glyphs))
    return lines


def _cell(tops: Sequence[tuple[int, str]], floor: int, glyphs: Glyphs) -> Text:
    """One character of a stack: whose part fills its lower end, and behind it whose part goes on above."""
    levels = len(glyphs.levels)
    inside = [(top - floor, colour) for top, colour in tops if top > floor]
    if not inside:
        return Text(" ")
    high, colour = inside[0]
    if high >= levels:
        return Text(glyphs.full, style=colour)
    above = next((other for top, other in inside[1:] if top > high), None)
    if above is not None and not glyphs.stacks:
        return Text(glyphs.full, style=colour)
    return Text(glyphs.levels[high - 1], style=Style.parse(colour if above is None else f"{colour} on {above}"))


def bar(used: float | None, width: int, glyphs: Glyphs, style: str) -> Text:
    """A share of `width`; nothing of it where it is not known."""
    filled = 0 if used is None else max(0, min(width, round(used * width)))
    if used and filled == 0:
        filled = 1
    return Text(glyphs.full * filled, style=style) + Text(glyphs.empty * (width - filled), style="dim")


def nice_most(values: Iterable[float | None], least: float) -> float:
    """A round number that none of `values` exceeds, and no less than `least`: what the top of a chart stands for."""
    highest = max((value for value in values if value), default=0.0)
    if highest <= least:
        return least
    ten = 10.0 ** math.floor(math.log10(highest))
    return next(step * ten for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * ten >= highest * 0.999999)


def _log_part(value: float, most: float) -> float:
    return 1.0 + math.log10(value / most) / _DECADES if value > 0 and most > 0 else 0.0


def _level(part: float, glyphs: Glyphs) -> str:
    levels = len(glyphs.levels)
    return glyphs.levels[max(0, min(levels - 1, math.ceil(part * levels) - 1))]
