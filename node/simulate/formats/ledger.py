"""The node's own ledger as a trace: what came, when, from whom, how long it was, and whether it might have left.

A request is taken from the attempt that answered it. Left out are those that nobody answered, as their lengths are not
known, and those that the answer cache took: it would again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from node.simulate.values import TraceRequest
from node.store.schema import calls

_HOUR_US: Final = 3_600_000_000
# A request is written down when it is over: those of an hour are looked for in the next ones too.
_LONGEST_HOURS: Final = 2


@dataclass(frozen=True, slots=True)
class LedgerTrace:
    """The requests in the order in which they came, which of them were pinned, and the usual TTFT budget in seconds.

    `budgets` is how many different ones there were.
    """

    requests: list[TraceRequest]
    pinned: frozenset[int]
    ttft_budget_s: float | None
    budgets: int


def read_ledger(connection: Connection, since_us: int | None, until_us: int | None, most: int) -> LedgerTrace:
    """What arrived in that time (UTC microseconds, the end not included), at most `most` attempts of it."""
    query = select(*_COLUMNS).where(
        calls.c.backend != "cache", calls.c.prompt_tokens > 0, calls.c.completion_tokens > 0
    )
    if since_us is not None:
        query = query.where(calls.c.hour >= since_us // _HOUR_US)
    if until_us is not None:
        query = query.where(calls.c.hour <= until_us // _HOUR_US + _LONGEST_HOURS)
    answered: dict[str, tuple[int, TraceRequest, bool, int]] = {}
    for row in connection.execute(query.order_by(calls.c.hour, calls.c.at_us, calls.c.id).limit(most)):
        arrived_us = (
            row.ended_us - row.total_us
            if row.ended_us is not None and row.total_us is not None
            else row.at_us - (row.queue_us or 0)
        )
        if (since_us is not None and arrived_us < since_us) or (until_us is not None and arrived_us >= until_us):
            continue
        if row.request_id in answered and row.ending != "done":
            continue
        hit_tokens = min(row.cached_tokens or 0, row.prompt_tokens)
        request = TraceRequest(0.0, row.prompt_tokens, row.completion_tokens, hit_tokens, row.caller)
        answered[row.request_id] = (arrived_us, request, row.may_leave, row.ttft_budget_us)
    ordered = sorted(answered.values(), key=lambda each: each[0])
    budgets_us = sorted(budget_us for _, _, _, budget_us in ordered)
    return LedgerTrace(
        requests=[
            TraceRequest(
                (arrived_us - ordered[0][0]) / 1e6,
                each.prompt_tokens,
                each.output_tokens,
                each.prefix_hit_tokens,
                each.client,
            )
            for arrived_us, each, _, _ in ordered
        ],
        pinned=frozenset(index for index, (_, _, may_leave, _) in enumerate(ordered) if not may_leave),
        ttft_budget_s=budgets_us[len(budgets_us) // 2] / 1e6 if budgets_us else None,
        budgets=len(set(budgets_us)),
    )


_COLUMNS: Final = (
    calls.c.request_id,
    calls.c.caller,
    calls.c.ending,
    calls.c.at_us,
    calls.c.ended_us,
    calls.c.queue_us,
    calls.c.total_us,
    calls.c.prompt_tokens,
    calls.c.completion_tokens,
    calls.c.cached_tokens,
    calls.c.may_leave,
    calls.c.ttft_budget_us,
)
