"""Traces in Spillway's own format: reading, writing, and fitting them to a context and a speed, a request at a time.

CSV with a header row, sorted by arrival, packed where the name ends in `.gz`:

| column | meaning |
|---|---|
| `arrival_s` | seconds from the start of the trace, never falling |
| `prompt_tokens`, `output_tokens` | 1 or more |
| `prefix_hit_tokens` | optional: tokens of the prompt that were in the prefix cache, at most all of them |
| `client` | optional: whoever sent it |

The order of the columns is free and others are ignored. Nothing here holds more than one request, so ten million of
them are a matter of time, not of memory.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from node.errors import SettingsError
from node.simulate.formats.source import (
    MAX_NUMBER,
    MAX_TOKENS,
    csv_rows,
    number_of,
    refusal,
    tokens_of,
)
from node.simulate.values import TraceRequest

REQUIRED_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL_COLUMNS = {"prefix_hit_tokens": "0", "client": ""}
COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of the trace at `path`, one at a time, checked.

    Raises `SettingsError` while it is iterated, naming file, line, column and reason: a file that cannot be read, is
    empty, holds no request or is not UTF-8; missing columns; what is not a number; times that are negative, not finite
    or fall; tokens that are zero or negative; more prefix hits than prompt.
    """
    last_s = 0.0
    line = 0
    for line, texts in csv_rows(path, REQUIRED_COLUMNS, OPTIONAL_COLUMNS):
        arrival, prompt, output, hit, client = texts
        # A row that is right pays for these comparisons only (NaN fails them too); what is wrong is found out after.
        try:
            arrival_s, hit_tokens = float(arrival), int(hit or 0)
            prompt_tokens, output_tokens = int(prompt), int(output)
        except ValueError:
            raise _wrong(path, line, texts, last_s) from None
        if not (
            last_s <= arrival_s <= MAX_NUMBER
            and 0 < prompt_tokens <= MAX_TOKENS
            and 0 < output_tokens <= MAX_TOKENS
            and 0 <= hit_tokens <= prompt_tokens
        ) or ("_" in arrival or "_" in prompt or "_" in output or "_" in hit):
            raise _wrong(path, line, texts, last_s)
        last_s = arrival_s
        yield TraceRequest(arrival_s, prompt_tokens, output_tokens, hit_tokens, client)
    if line == 0:
        raise refusal(path, "no requests after the header")


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> int:
    """Writes `requests` to `path` and returns how many there were; every value reads back the same.

    The file appears whole or not at all: it is written beside its place and renamed, and whatever `requests` raises
    leaves neither file nor remains. An existing file is replaced. Raises `SettingsError` where it cannot be written,
    where something other than a file is in its place, and where there is nothing to write.
    """
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        if path.exists() and not path.is_file():
            raise refusal(path, "cannot be written: not a file")
        with part.open("xb") as file:
            try:
                written = _write(file, requests, packed=path.suffix == ".gz")
                if written == 0:
                    raise refusal(path, "not written: there are no requests")
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(path, f"cannot be written: {error.strerror or error}") from error
    return written


@dataclass(frozen=True, slots=True)
class CapCount:
    """How many requests there were, and how many had their prompt, their output or either cut to fit a context."""

    requests: int = 0
    capped: int = 0
    prompts_capped: int = 0
    outputs_capped: int = 0


class Capped(Iterator[TraceRequest]):
    """Requests cut to fit `context_tokens`, and the `count` of those that had to be.

    An output is at most one token less than the context, a prompt at most what the output leaves, a prefix hit at most
    the prompt. `count` covers what has been taken so far.
    """

    def __init__(self, requests: Iterable[TraceRequest], context_tokens: int) -> None:
        if context_tokens < 2:
            raise SettingsError(f"context: {context_tokens} tokens hold no prompt and no answer; 2 are the least")
        self._requests = iter(requests)
        self._context_tokens = context_tokens
        self._seen = self._capped = self._prompts = self._outputs = 0

    def __next__(self) -> TraceRequest:
        request = next(self._requests)
        self._seen += 1
        if request.prompt_tokens + request.output_tokens <= self._context_tokens:
            return request
        output_tokens = min(request.output_tokens, self._context_tokens - 1)
        prompt_tokens = min(request.prompt_tokens, self._context_tokens - output_tokens)
        self._capped += 1
        self._outputs += output_tokens < request.output_tokens
        self._prompts += prompt_tokens < request.prompt_tokens
        return replace(
            request,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prefix_hit_tokens=min(request.prefix_hit_tokens, prompt_tokens),
        )

    @property
    def count(self) -> CapCount:
        """What was cut among the requests taken so far."""
        return CapCount(self._seen, self._capped, self._prompts, self._outputs)


def capped(requests: Iterable[TraceRequest], context_tokens: int) -> Capped:
    """`requests` cut to fit `context_tokens`, counted on the way. Raises `SettingsError` for a context below 2."""
    return Capped(requests, context_tokens)


def sped_up(requests: Iterable[TraceRequest], factor: float) -> Iterator[TraceRequest]:
    """`requests` with every arrival divided by `factor`: 2 doubles the load and keeps the shape of its bursts.

    Raises `SettingsError` at once for a factor that is not a finite number above 0.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise SettingsError(f"speed: {factor} is not a number above 0")
    return (replace(request, arrival_s=request.arrival_s / factor) for request in requests)


def _write(file: BinaryIO, requests: Iterable[TraceRequest], *, packed: bool) -> int:
    """Header and rows into `file`, which stays open; how many rows. Packing notes no time: same trace, same bytes."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0)) if packed else file
        text = io.TextIOWrapper(cast("BinaryIO", raw), encoding="utf-8", newline="")
        stack.callback(text.detach)
        writer = csv.writer(text, lineterminator="\n")
        # Before Python 3.13 a carriage return is written bare, and ends the row for whoever reads it.
        quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        written = 0
        for request in requests:
            written += 1
            (quoting if "\r" in request.client else writer).writerow(
                (
                    request.arrival_s,
                    request.prompt_tokens,
                    request.output_tokens,
                    request.prefix_hit_tokens,
                    request.client,
                )
            )
        return written


def _wrong(path: Path, line: int, texts: tuple[str, ...], last_s: float) -> SettingsError:
    """What is wrong with a row that `read_trace` refused; the first column that is."""
    arrival, prompt, output, hit, _ = texts
    try:
        arrival_s = number_of(path, line, "arrival_s", arrival)
        prompt_tokens = tokens_of(path, line, "prompt_tokens", prompt)
        output_tokens = tokens_of(path, line, "output_tokens", output)
        hit_tokens = tokens_of(path, line, "prefix_hit_tokens", hit or "0")
    except SettingsError as error:
        return error
    if arrival_s < last_s:
        return refusal(path, f"not sorted: {arrival_s} comes after {last_s}", line=line, column="arrival_s")
    if prompt_tokens == 0 or output_tokens == 0:
        column = "prompt_tokens" if prompt_tokens == 0 else "output_tokens"
        return refusal(path, "zero tokens; at least 1 is needed", line=line, column=column)
    assert hit_tokens > prompt_tokens, "a row was refused that has nothing wrong"
    return refusal(
        path, f"{hit_tokens} hits in a prompt of {prompt_tokens} tokens", line=line, column="prefix_hit_tokens"
    )
