"""Rows of a published trace in the order of their arrival, with time counted from the first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from node.simulate.formats.source import refusal
from node.simulate.values import TraceRequest

REACH_ROWS = 10_000


class Row(NamedTuple):
    """One row as it stands in a file: its line, its time in seconds on whatever clock, its tokens (0: it failed)."""

    line: int
    at_s: float
    prompt_tokens: int
    output_tokens: int


def in_order(
    path: Path, column: str, rows: Iterator[Row], *, reach_rows: int = REACH_ROWS
) -> Iterator[TraceRequest | None]:
    """`rows` as requests, sorted by time (equal times keep their order), arrivals in milliseconds from the first.

    A row without prompt or output tokens becomes None. Sorting looks `reach_rows` ahead, so memory stays bounded;
    raises `SettingsError`, naming `column`, for a row that comes even later than that.
    """
    waiting: list[tuple[float, int, Row]] = []
    first_s: float | None = None
    last_s = 0.0

    def taken() -> TraceRequest:
        nonlocal first_s, last_s
        at_s, line, row = heapq.heappop(waiting)
        if first_s is None:
            first_s = at_s
        elif at_s < last_s:
            raise refusal(path, f"more than {reach_rows:,} rows later than it should be", line=line, column=column)
        last_s = at_s
        return TraceRequest(round(at_s - first_s, 3), row.prompt_tokens, row.output_tokens)

    for row in rows:
        if row.prompt_tokens == 0 or row.output_tokens == 0:
            yield None
            continue
        heapq.heappush(waiting, (row.at_s, row.line, row))
        if len(waiting) > reach_rows:
            yield taken()
    while waiting:
        yield taken()
