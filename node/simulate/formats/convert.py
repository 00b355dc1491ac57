"""Any published trace as requests: looks at the file to see whose it is, then reads it with that module."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from node.errors import SettingsError
from node.simulate import trace
from node.simulate.formats import azure, burstgpt, mooncake, servegen
from node.simulate.formats.source import refusal, shown, text_lines
from node.simulate.values import TraceRequest


class TraceFormat(StrEnum):
    """The formats that can be read."""

    SPILLWAY = "spillway"
    AZURE = "azure"
    MOONCAKE = "mooncake"
    BURSTGPT = "burstgpt"
    SERVEGEN = "servegen"


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a trace to take: `seconds` from `start_s` on. Arrivals are counted from `start_s`."""

    start_s: float = 0.0
    seconds: float = math.inf

    def __post_init__(self) -> None:
        if not (0 <= self.start_s < math.inf and self.seconds > 0):
            raise SettingsError(f"window: {self.seconds} s from {self.start_s} s on is no part of a trace")


EVERYTHING = Window()


class Converted(Iterator[TraceRequest]):
    """The requests of a published trace: which `format` it is, and how many rows were `skipped` so far.

    What is skipped is a row without prompt or output (a call that failed), or without any lengths to draw from.
    """

    def __init__(self, trace_format: TraceFormat, rows: Iterator[TraceRequest | None]) -> None:
        self.format = trace_format
        self.skipped = 0
        self._rows = rows

    def __next__(self) -> TraceRequest:
        for row in self._rows:
            if row is not None:
                return row
            self.skipped += 1
        raise StopIteration


def detect(path: Path) -> TraceFormat:
    """Whose format `path` is in, by its header or first line, or for a folder by its files.

    Raises `SettingsError` for what cannot be read, and for an unknown format, naming the known ones.
    """
    if path.is_dir():
        if servegen.is_servegen(path):
            return TraceFormat.SERVEGEN
        raise refusal(path, f"a folder without chunk-*-trace.csv; {_KNOWN}")
    line = next((text for text in text_lines(path) if text.strip()), "")
    if not line:
        raise refusal(path, f"empty; {_KNOWN}")
    if line.lstrip().startswith("{"):
        if all(f'"{name}"' in line for name in mooncake.FIELDS):
            return TraceFormat.MOONCAKE
    else:
        try:
            header = {name.strip() for name in next(csv.reader([line]))}
        except csv.Error:
            header = set()
        for trace_format, columns in _COLUMNS.items():
            if header.issuperset(columns):
                return trace_format
    raise refusal(path, f"unknown format, it begins {shown(line.strip())}; {_KNOWN}")


def convert(path: Path, *, window: Window = EVERYTHING, seed: int | None = None) -> Converted:
    """The requests of `path`, whichever known format it is in, in order, one at a time.

    `seed` is for the formats that need chance (Mooncake's 3 s ticks, ServeGen's draws); None is each one's own. Raises
    `SettingsError` at once as `detect` does, and while it is iterated for what is wrong further on.
    """
    trace_format = detect(path)
    if trace_format is TraceFormat.SERVEGEN:
        own = servegen.SEED if seed is None else seed
        drawn = servegen.read_servegen(path, seed=own, start_s=window.start_s, seconds=window.seconds)
        return Converted(trace_format, drawn)
    return Converted(trace_format, _within(_read(trace_format, path, seed), window))


def _read(trace_format: TraceFormat, path: Path, seed: int | None) -> Iterator[TraceRequest | None]:
    if trace_format is TraceFormat.AZURE:
        return azure.read_azure(path)
    if trace_format is TraceFormat.BURSTGPT:
        return burstgpt.read_burstgpt(path)
    if trace_format is TraceFormat.MOONCAKE:
        return mooncake.read_mooncake(path, seed=mooncake.SEED if seed is None else seed)
    return trace.read_trace(path)


def _within(rows: Iterator[TraceRequest | None], window: Window) -> Iterator[TraceRequest | None]:
    if window == EVERYTHING:
        yield from rows
        return
    for row in rows:
        if row is None:
            yield None
            continue
        arrival_s = round(row.arrival_s - window.start_s, 3)
        if arrival_s >= window.seconds:
            return
        if arrival_s >= 0:
            yield replace(row, arrival_s=arrival_s)


_COLUMNS = {
    TraceFormat.SPILLWAY: trace.REQUIRED_COLUMNS,
    TraceFormat.AZURE: azure.COLUMNS,
    TraceFormat.BURSTGPT: burstgpt.COLUMNS,
}
_KNOWN = (
    f"known are {trace.REQUIRED_COLUMNS[0]},... (Spillway), TIMESTAMP,ContextTokens,... (Azure), "
    "Timestamp,Model,Request tokens,... (BurstGPT), JSON lines with hash_ids (Mooncake) "
    "and a folder of chunk-*-trace.csv (ServeGen)"
)
