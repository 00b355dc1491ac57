"""What became of each request, as its client saw it, and the sums over them. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from _harness.load import Record

from _demo.day import Request
from node.money import usd_to_nano

LOAD_REASONS = frozenset({"predicted_late", "last_moment", "displaced", "queue_depth", "kv_cache_usage", "low_vram"})
"""Of `node.routing.values.Reason`: it left because the engine had too much to do. That is overflow."""
_QUIET_S, _FEWEST = 4.0, 3
_CUT_SHORT = "the stream ended without [DONE]"


class End(StrEnum):
    """How a request ended for its client."""

    WHOLE = "whole"
    REFUSED = "refused"
    BROKEN = "broken"  # after its first bytes, and told so by an error event
    SILENT = "silent"  # after its first bytes, without a word: there must be none
    LOST = "lost"  # no HTTP answer at all: there must be none
    CUT = "cut"  # by the demo, which was ended
    HUNG = "hung"  # still open long after the day


@dataclass(frozen=True)
class Told:
    """One request. `at_s` is when it was sent, in seconds of the day; `backend` is None where nobody answered."""

    chapter: str
    caller: str
    pinned: bool
    at_s: float
    budget_s: float
    end: End
    total_s: float
    ttft_s: float | None = None
    backend: str | None = None
    reason: str | None = None
    queue_s: float | None = None
    status: int | None = None
    code: str | None = None
    cost_nano_usd: int = 0
    request_id: str | None = None

    @property
    def whole(self) -> bool:
        return self.end is End.WHOLE

    @property
    def where(self) -> str:
        """`local`, `cloud`, `cache` or `nobody`."""
        if self.backend is None:
            return "nobody"
        return self.backend if self.backend in ("local", "cache") else "cloud"

    @property
    def in_budget(self) -> bool:
        return self.ttft_s is not None and self.ttft_s <= self.budget_s


def told(chapter: str, request: Request, record: Record) -> Told:
    """The record of one request, in the day's time."""
    headers = {name.lower(): value for name, value in record.headers.items()}
    queue_ms = headers.get("x-spillway-queue-ms")
    end, code = _end(record)
    backend = headers.get("x-spillway-backend")
    return Told(
        chapter=chapter,
        caller=request.caller,
        pinned=request.pinned,
        at_s=record.start_s,
        budget_s=request.budget_s,
        end=end,
        total_s=record.end_s,
        ttft_s=(record.end_s if record.ttft_s is None else record.ttft_s) if end is End.WHOLE else record.ttft_s,
        backend=None if end is End.REFUSED else backend,
        reason=headers.get("x-spillway-reason"),
        queue_s=None if queue_ms is None else float(queue_ms) / 1000,
        status=record.status,
        code=code,
        cost_nano_usd=_cost_nano_usd(record),
        request_id=headers.get("x-request-id"),
    )


def unanswered(chapter: str, request: Request, at_s: float, waited_s: float, end: End) -> Told:
    """A request that was still open when nobody waited for it any more."""
    return Told(chapter, request.caller, request.pinned, at_s, request.budget_s, end, waited_s)


def _end(record: Record) -> tuple[End, str | None]:
    if record.status is None:
        return End.LOST, None
    if record.status != 200:
        return End.REFUSED, _code(record.error)
    if record.error is None:
        return End.WHOLE, None
    if record.error == _CUT_SHORT or (code := _code(record.error)) is None:
        return End.SILENT, None
    return End.BROKEN, code


def _code(error: str | None) -> str | None:
    """The code of an error document, bare or as the whole of an answer."""
    try:
        document = json.loads(error or "")
    except ValueError:
        return None
    inner = document.get("error", document) if isinstance(document, dict) else {}
    return inner.get("code") if isinstance(inner, dict) else None


def _cost_nano_usd(record: Record) -> int:
    cost: Any = (record.usage or {}).get("cost_usd", 0)
    return usd_to_nano(Decimal(str(cost)))


@dataclass(frozen=True)
class Span:
    """From when to when, in seconds of the day; `count` of what."""

    from_s: float
    to_s: float
    count: int = 0


def overflow(all_of_them: Iterable[Told]) -> list[Span]:
    """When the overflow was open: at least three requests left for load, none of them long after the one before it."""
    left = sorted(each.at_s + (each.queue_s or 0.0) for each in all_of_them if _overflowed(each))
    spans: list[Span] = []
    for at_s in left:
        if spans and at_s - spans[-1].to_s <= _QUIET_S:
            spans[-1] = Span(spans[-1].from_s, at_s, spans[-1].count + 1)
        else:
            spans.append(Span(at_s, at_s, 1))
    return [span for span in spans if span.count >= _FEWEST]


def _overflowed(each: Told) -> bool:
    return each.where == "cloud" and each.reason in LOAD_REASONS


@dataclass(frozen=True)
class Change:
    """A part of the node came into a state, in seconds of the day."""

    at_s: float
    state: str
    why: str | None = None


def engine_away(changes: Sequence[Change], until_s: float) -> list[Span]:
    """When the engine was not there: from each `down` on until it is ready again, or until the end of the day."""
    spans: list[Span] = []
    down_s: float | None = None
    for change in changes:
        if change.state == "down" and down_s is None:
            down_s = change.at_s
        elif change.state == "ready" and down_s is not None:
            spans.append(Span(down_s, change.at_s))
            down_s = None
    if down_s is not None:
        spans.append(Span(down_s, until_s))
    return spans


def meanwhile(all_of_them: Iterable[Told], span: Span) -> list[Told]:
    """Those that were open for some of that time."""
    return [each for each in all_of_them if each.at_s < span.to_s and each.at_s + each.total_s > span.from_s]
