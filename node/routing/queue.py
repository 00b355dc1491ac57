"""The node's own queue in front of one engine: who waits, who is next, who has to leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.routing.values import Features, QueueLoad, Residency


@dataclass(frozen=True, slots=True)
class Waiter:
    """One waiting request. `leave_at_s` is when it must be decided again if no slot has opened."""

    features: Features
    leave_at_s: float

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Pinned first (they can go nowhere else), then by first-token deadline, then by arrival."""
        features = self.features
        return (
            features.residency is not Residency.PREMISES,
            features.arrived_s + features.ttft_budget_s,
            features.arrived_s,
        )


class WaitingQueue:
    """Waiters by rank. Small by design (the cloud drains it), so plain scans beat clever structures."""

    def __init__(self) -> None:
        self._waiters: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def add(self, waiter: Waiter) -> None:
        """Put a request in, or give one that waits already a new time to leave."""
        self._waiters[waiter.features.request_id] = waiter

    def remove(self, request_id: str) -> None:
        """Take a request out; one that is not there is no error, since a slot and a deadline may race."""
        self._waiters.pop(request_id, None)

    def head(self) -> Waiter | None:
        """Who gets the next slot."""
        return min(self._waiters.values(), key=lambda waiter: waiter.rank, default=None)

    def next_leave_s(self) -> float | None:
        """When somebody has to be decided again, if nobody opens a slot first."""
        return min((waiter.leave_at_s for waiter in self._waiters.values()), default=None)

    def due(self, now_s: float) -> list[Waiter]:
        """Those whose time has come, earliest first."""
        return sorted(
            (waiter for waiter in self._waiters.values() if waiter.leave_at_s <= now_s),
            key=lambda waiter: waiter.leave_at_s,
        )

    def load_for(self, features: Features) -> QueueLoad:
        """The queue as `features` sees it: the whole depth, and what ranks before it."""
        own = Waiter(features, 0.0).rank
        waiting = features.request_id in self._waiters
        ahead = [waiter.features for waiter in self._waiters.values() if waiter.rank < own]
        return QueueLoad(
            depth=len(self._waiters),
            waited=waiting,
            sequences_ahead=sum(other.choices for other in ahead),
            prompt_tokens_ahead=sum(other.prompt_tokens_estimate for other in ahead),
        )
