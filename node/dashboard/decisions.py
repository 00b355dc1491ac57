"""The last requests and what became of them: kept whole in memory, shown a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Final

import msgspec

from node.dashboard.feed import DecisionRow
from node.dispatch.outcome import Outcome

NOBODY: Final = "none"
"""Stands for no backend in a search."""

_KEPT: Final = 5000


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A request that has ended, and its last prediction: seconds from then to its first token, as told and as it came.

    The garbage collector does not know of it, nor of the row: to walk thousands of outcomes that live for a while, and
    all that they hold, took 3 % of a small call's CPU.
    """

    row: DecisionRow
    predicted_s: float | None = None
    took_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for; None: anything. `text` is part of an id, a model, a tenant, a reason or an error's code, in
    capitals or not. `backend` is `NOBODY` for what nobody answered."""

    backend: str | None = None
    reason: str | None = None
    ending: str | None = None
    text: str | None = None

    def matches(self, row: DecisionRow) -> bool:
        """Whether `row` is such a request."""
        if self.backend is not None and (row.backend or NOBODY) != self.backend:
            return False
        if self.reason is not None and row.reason != self.reason:
            return False
        if self.ending is not None and row.ending != self.ending:
            return False
        if self.text is None:
            return True
        text = self.text.lower()
        return any(
            text in (field or "").lower()
            for field in (row.request_id, row.model, row.tenant, row.reason, row.error_code)
        )


class DecisionLog:
    """The last `kept` requests, without anything of a prompt. `unix_s` is the wall clock."""

    def __init__(self, unix_s: Callable[[], float], kept: int = _KEPT) -> None:
        self._unix_s = unix_s
        self._ended: deque[Ended] = deque(maxlen=kept)
        self.added = 0

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, outcome: Outcome) -> None:
        """Take in one request."""
        self._ended.append(as_ended(self._unix_s(), outcome))
        self.added += 1

    def newest(self, count: int) -> list[Ended]:
        """The last `count`, newest first, or as many as there are."""
        return list(islice(reversed(self._ended), count))

    def find(self, query: Query, most: int) -> tuple[DecisionRow, ...]:
        """The newest `most` that match, newest first."""
        found: Iterator[DecisionRow] = (each.row for each in reversed(self._ended) if query.matches(each.row))
        return tuple(islice(found, most))


def some_of_each(ended: Iterable[Ended], most: int) -> list[Ended]:
    """At most `most` of them in their order; of every kind (backend, reason, ending) some, so that no rare one is lost.

    Kinds are taken from in turn, so that a kind is cut only as far as it crowds out others.
    """
    everything = list(ended)
    kinds: dict[tuple[str | None, str | None, str], list[int]] = {}
    for position, each in enumerate(everything):
        kinds.setdefault((each.row.backend, each.row.reason, each.row.ending), []).append(position)
    in_turn = (position for nth in zip_longest(*kinds.values()) for position in nth if position is not None)
    return [everything[position] for position in sorted(islice(in_turn, most))]


def as_ended(at_s: float, outcome: Outcome) -> Ended:
    """An outcome as it is kept."""
    row = as_row(at_s, outcome)
    if not outcome.foreseen:
        return Ended(row)
    last = outcome.foreseen[-1]
    return Ended(row, last.predicted_s, last.took_s)


def as_row(at_s: float, outcome: Outcome) -> DecisionRow:
    """An outcome as it is shown."""
    usage = outcome.usage
    return DecisionRow(
        at_s=round(at_s, 3),
        request_id=outcome.request_id,
        model=outcome.model,
        tenant=outcome.tenant,
        ending=outcome.ending.value,
        backend=outcome.backend,
        served_model=outcome.served_model,
        reason=None if outcome.reason is None else outcome.reason.value,
        pinned_by=outcome.pinned_by,
        error_code=outcome.error_code,
        attempts=outcome.attempts,
        queue_s=round(outcome.queue_s, 4),
        predicted_ttft_s=rounded(outcome.predicted_ttft_s),
        ttft_s=rounded(outcome.ttft_s),
        ttft_budget_s=outcome.ttft_budget_s,
        total_s=round(outcome.total_s, 4),
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        cost_nano_usd=outcome.cost_nano_usd,
        reference_nano_usd=outcome.reference_nano_usd,
    )


def rounded(seconds: float | None, digits: int = 4) -> float | None:
    """`seconds` with as many digits as mean something."""
    return None if seconds is None else round(seconds, digits)
