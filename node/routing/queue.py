"""The node's own queue in front of one engine: who waits, who is next, who has to leave.

Kept in buckets by rank with running sums, so that what stands before a request, at any length of the queue, is a few
look-ups; and in two heaps, by the last safe moment and by what leaving costs, whose outdated entries are skipped.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

from node.routing.values import Features, Leaver, QueueLoad

_BUCKET = 64

Rank = tuple[int, float, float, str]


@dataclass(frozen=True, slots=True)
class Waiter:
    """One waiting request.

    `ask_at_s` is when it must be decided again if no slot has opened. `kept` says that it stays for good: past its last
    safe moment, or because it may not leave at all. `worth` is what its leaving would cost, in nano-dollars per second of
    local work, None when it is kept. `fair_s` is added to its deadline where others have had less than their share.
    """

    features: Features
    ask_at_s: float
    kept: bool = False
    worth: float | None = None
    fair_s: float = 0.0

    @property
    def rank(self) -> Rank:
        """Those who cannot leave first, then those who stay; among equals by first-token deadline, then by arrival."""
        features = self.features
        deadline_s = features.arrived_s + features.ttft_budget_s + self.fair_s
        order = 0 if not features.may_leave else 1 if self.kept else 2
        return (order, deadline_s, features.arrived_s, features.request_id)


class _Bucket:
    """Up to `2 * _BUCKET` waiters in order of rank, and their sums."""

    __slots__ = ("kv_tokens", "prompt_tokens", "ranks", "sequences", "waiters")

    def __init__(self, waiters: list[tuple[Rank, Waiter]]) -> None:
        self.ranks = [rank for rank, _ in waiters]
        self.waiters = {rank: waiter for rank, waiter in waiters}
        self.sequences = self.prompt_tokens = self.kv_tokens = 0
        for _, waiter in waiters:
            self._count(waiter, 1)

    def _count(self, waiter: Waiter, sign: int) -> None:
        features = waiter.features
        self.sequences += sign * features.choices
        self.prompt_tokens += sign * features.uncached_tokens_estimate
        self.kv_tokens += sign * features.prompt_tokens_estimate

    def add(self, rank: Rank, waiter: Waiter) -> None:
        insort(self.ranks, rank)
        self.waiters[rank] = waiter
        self._count(waiter, 1)

    def remove(self, rank: Rank) -> None:
        del self.ranks[bisect_left(self.ranks, rank)]
        self._count(self.waiters.pop(rank), -1)


class WaitingQueue:
    """Waiters by rank, by the time they must be asked again, and by what their leaving costs."""

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._firsts: list[Rank] = []
        self._waiters: dict[str, tuple[Rank, Waiter]] = {}
        self._by_time: list[tuple[float, str]] = []
        self._by_worth: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for _, waiter in self._waiters.values())

    def get(self, request_id: str) -> Waiter | None:
        """The waiter of that request, if it waits."""
        found = self._waiters.get(request_id)
        return found[1] if found else None

    def add(self, waiter: Waiter) -> None:
        """Put a request in, or give one that waits already new terms."""
        request_id = waiter.features.request_id
        self.remove(request_id)
        rank = waiter.rank
        self._waiters[request_id] = (rank, waiter)
        index = self._index(rank)
        if not self._buckets:
            self._buckets.append(_Bucket([]))
            self._firsts.append(rank)
        bucket = self._buckets[index]
        bucket.add(rank, waiter)
        self._firsts[index] = bucket.ranks[0]
        if len(bucket.ranks) > 2 * _BUCKET:
            self._split(index)
        heapq.heappush(self._by_time, (waiter.ask_at_s, request_id))
        if waiter.worth is not None:
            heapq.heappush(self._by_worth, (waiter.worth, request_id))

    def remove(self, request_id: str) -> None:
        """Take a request out; one that is not there is no error, since a slot and a deadline may race."""
        found = self._waiters.pop(request_id, None)
        if found is None:
            return
        rank = found[0]
        index = self._index(rank)
        bucket = self._buckets[index]
        bucket.remove(rank)
        if not bucket.ranks:
            del self._buckets[index], self._firsts[index]
        else:
            self._firsts[index] = bucket.ranks[0]

    def head(self) -> Waiter | None:
        """Who gets the next slot."""
        return self._buckets[0].waiters[self._firsts[0]] if self._buckets else None

    def next_ask_s(self) -> float | None:
        """When somebody has to be decided again, if nobody opens a slot first."""
        heap = self._by_time
        while heap and self._outdated(heap[0][1], ask_at_s=heap[0][0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_s: float) -> list[Waiter]:
        """Those whose time has come, earliest first."""
        found = []
        while (at_s := self.next_ask_s()) is not None and at_s <= now_s:
            _, request_id = heapq.heappop(self._by_time)
            found.append(self._waiters[request_id][1])
        for waiter in found:  # they wait until somebody takes them out
            heapq.heappush(self._by_time, (waiter.ask_at_s, waiter.features.request_id))
        return found

    def load_for(
        self, waiter: Waiter, entering_tokens: int = 0, pinned_per_s: float = 0.0, pinned_tokens_per_s: float = 0.0
    ) -> QueueLoad:
        """The queue as `waiter` sees it, whether it is in it or not: the whole depth, and what ranks before it."""
        rank = waiter.rank
        sequences = prompt_tokens = kv_tokens = 0
        index = self._index(rank)
        for bucket in self._buckets[:index]:
            sequences += bucket.sequences
            prompt_tokens += bucket.prompt_tokens
            kv_tokens += bucket.kv_tokens
        if self._buckets:
            bucket = self._buckets[index]
            for each in bucket.ranks[: bisect_left(bucket.ranks, rank)]:
                features = bucket.waiters[each].features
                sequences += features.choices
                prompt_tokens += features.uncached_tokens_estimate
                kv_tokens += features.prompt_tokens_estimate
        known = self._waiters.get(waiter.features.request_id)
        return QueueLoad(
            depth=len(self._waiters),
            waited=known is not None,
            kept=known is not None and known[1].kept,
            sequences_ahead=sequences,
            prompt_tokens_ahead=prompt_tokens,
            kv_tokens_ahead=kv_tokens,
            entering_tokens=entering_tokens,
            pinned_per_s=pinned_per_s,
            pinned_tokens_per_s=pinned_tokens_per_s,
            cheapest=self._cheapest(),
        )

    def _cheapest(self) -> Leaver | None:
        heap = self._by_worth
        while heap and self._outdated(heap[0][1], worth=heap[0][0]):
            heapq.heappop(heap)
        if not heap:
            return None
        worth, request_id = heap[0]
        features = self._waiters[request_id][1].features
        return Leaver(request_id=request_id, worth=worth, prompt_tokens=features.uncached_tokens_estimate)

    def _outdated(self, request_id: str, *, ask_at_s: float | None = None, worth: float | None = None) -> bool:
        found = self._waiters.get(request_id)
        if found is None:
            return True
        waiter = found[1]
        return waiter.ask_at_s != ask_at_s if ask_at_s is not None else waiter.worth != worth

    def _index(self, rank: Rank) -> int:
        """The bucket that holds `rank`, or would."""
        return max(0, bisect_right(self._firsts, rank) - 1)

    def _split(self, index: int) -> None:
        bucket = self._buckets[index]
        pairs = [(rank, bucket.waiters[rank]) for rank in bucket.ranks]
        halves = [_Bucket(pairs[:_BUCKET]), _Bucket(pairs[_BUCKET:])]
        self._buckets[index : index + 1] = halves
        self._firsts[index : index + 1] = [half.ranks[0] for half in halves]
