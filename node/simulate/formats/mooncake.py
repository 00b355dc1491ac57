"""The Mooncake traces: JSON lines with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`.

A hash id stands for a block of 512 prompt tokens and everything before it, so a block is in an infinite prefix cache
if its id was seen in an earlier request. Source: github.com/kvcache-ai/Mooncake, FAST25-release/README.md.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from node.simulate.formats.source import number_within, refusal, shown, text_lines, tokens_within
from node.simulate.values import TraceRequest

BLOCK_TOKENS = 512
SEED = 20260
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
MAX_MS = 1e18  # an int that is larger may not even fit a float

_TICK_S = 3.0
_LOOKED_AT_ROWS = 1000


def read_mooncake(path: Path, *, seed: int = SEED) -> Iterator[TraceRequest | None]:
    """The requests at `path`, sorted, time counted from the first; None for one with no prompt or no output.

    Some of the published files know time only in ticks of 3 s (the conversation trace: 1,180 times for 12,031 rows),
    which would fire ten requests at once. Where fewer than half of the first 1,000 times differ, each arrival is moved
    on by a uniform draw from 0 to 3 s from `random.Random(seed)`, a draw per row in the order of the file.
    `prefix_hit_tokens` are the leading blocks that an earlier arrival had, at most the prompt. The ids seen are kept:
    60 bytes for every 512 tokens of distinct text. Raises `SettingsError` naming file, line, field and reason; also
    for times that fall.
    """
    rows = _rows(path)
    head = list(itertools.islice(rows, _LOOKED_AT_ROWS))
    ticked = len({row.at_s for row in head}) * 2 < len(head)
    rng = random.Random(seed)
    waiting: list[tuple[float, int, _Row]] = []
    seen: set[int] = set()
    start_s: float | None = None
    for row in itertools.chain(head, rows):
        start_s = row.at_s if start_s is None else start_s
        tick_s = row.at_s - start_s
        while waiting and waiting[0][0] <= tick_s:
            yield _request(heapq.heappop(waiting), seen)
        moved_s = rng.random() * _TICK_S if ticked else 0.0
        if row.prompt_tokens == 0 or row.output_tokens == 0:
            yield None
        else:
            heapq.heappush(waiting, (tick_s + moved_s, row.line, row))
    while waiting:
        yield _request(heapq.heappop(waiting), seen)


class _Row(NamedTuple):
    line: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: list[int]


def _request(waiting: tuple[float, int, _Row], seen: set[int]) -> TraceRequest:
    """The request that arrives next; its blocks join `seen`."""
    arrival_s, _, row = waiting
    blocks = sum(1 for _ in itertools.takewhile(seen.__contains__, row.hash_ids))
    seen.update(row.hash_ids)
    hit_tokens = min(blocks * BLOCK_TOKENS, row.prompt_tokens)
    return TraceRequest(round(arrival_s, 3), row.prompt_tokens, row.output_tokens, hit_tokens)


def _rows(path: Path) -> Iterator[_Row]:
    last_s = 0.0
    for line, text in enumerate(text_lines(path), start=1):
        if not text.strip():
            continue
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise refusal(path, f"not JSON: {shown(text.strip())}", line=line) from error
        if not isinstance(document, dict):
            raise refusal(path, f"not a JSON object: {shown(text.strip())}", line=line)
        for field in FIELDS:
            if field not in document:
                raise refusal(path, "missing", line=line, column=field)
        at_ms = document["timestamp"]
        if isinstance(at_ms, bool) or not isinstance(at_ms, int | float):
            raise refusal(path, f"not a number: {shown(json.dumps(at_ms))}", line=line, column="timestamp")
        at_s = number_within(path, line, "timestamp", at_ms / 1000 if abs(at_ms) < MAX_MS else math.inf)
        if at_s < last_s:
            raise refusal(
                path, f"not sorted: {at_ms} ms comes after {last_s * 1000:g} ms", line=line, column="timestamp"
            )
        last_s = at_s
        yield _Row(
            line,
            at_s,
            _tokens(path, line, "input_length", document["input_length"]),
            _tokens(path, line, "output_length", document["output_length"]),
            _hash_ids(path, line, document["hash_ids"]),
        )


def _tokens(path: Path, line: int, field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise refusal(path, f"not a whole number: {shown(json.dumps(value))}", line=line, column=field)
    return tokens_within(path, line, field, value)


def _hash_ids(path: Path, line: int, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
        raise refusal(path, f"not a list of whole numbers: {shown(json.dumps(value))}", line=line, column="hash_ids")
    return value
