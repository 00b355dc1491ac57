"""The BurstGPT traces: CSV with `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`.

Later releases add `Session ID` and `Elapsed time`, which say nothing a request needs. Times are seconds from midnight
of the first day. Rows with zero response tokens are calls that failed. Source: github.com/HPMLL/BurstGPT, README.md
("Schema").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from node.simulate.formats.ordered import Row, in_order
from node.simulate.formats.source import csv_rows, number_of, tokens_of
from node.simulate.values import TraceRequest

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_burstgpt(path: Path) -> Iterator[TraceRequest | None]:
    """The requests at `path`, sorted, time counted from the earliest; None for a call that failed.

    Raises `SettingsError` naming file, line, column and reason.
    """
    return in_order(path, "Timestamp", _rows(path))


def _rows(path: Path) -> Iterator[Row]:
    for line, (timestamp, prompt, output) in csv_rows(path, COLUMNS):
        yield Row(
            line,
            number_of(path, line, "Timestamp", timestamp),
            tokens_of(path, line, "Request tokens", prompt),
            tokens_of(path, line, "Response tokens", output),
        )
