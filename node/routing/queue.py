"""The node's own queue in front of one engine: who waits, who is next, who has to leave.

Kept in buckets by rank, with running sums over the buckets, so that what stands before a request is a few look-ups
at any length of the queue; and in two heaps, by the time to ask again and by what leaving costs, whose outdated entries
are skipped, and cleared away once they are the most of it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right

from node.routing.frozen import value
from node.routing.pinned import NOTHING_RESERVED, Reserve
from node.routing.running_sums import RunningSums
from node.routing.values import Features, Leaver, QueueLoad

_BUCKET = 64
_LETS_PASS_S = 30.0
_PRIORITIES = 1000  # more than there are
_FEW = 64  # outdated entries that are not worth clearing away

Rank = tuple[int, float, float, float, str]


@value(frozen=True, slots=True)
class Waiter:
    """One waiting request.

    `ask_at_s` is when it must be decided again if no slot has opened. `kept` says that it stays for good: past its last
    safe moment, or because it may not leave at all. `worth` is what its leaving would cost, in nano-dollars per second
    of the engine's time, None when it is kept. `due_s` is its place in the order of service: its deadline, or later
    because its caller has asked for more than its share. `late` says of one that cannot leave, ever or for now, that it
    will not have its first token in time any more.
    """

    features: Features
    ask_at_s: float
    kept: bool = False
    worth: float | None = None
    due_s: float = 0.0
    late: bool = False

    @property
    def rank(self) -> Rank:
        """Those who cannot leave first, then those who stay; among equals a higher priority first, then as due, then by
        deadline, then by arrival.

        Of those who cannot leave (for now, where the cloud is away), the late ones let those pass who can still be in
        time, but nobody for longer than `_LETS_PASS_S`: in an overload as few as possible are late, and the late ones
        are not forgotten.
        """
        features = self.features
        deadline_s = features.arrived_s + features.ttft_budget_s
        order = 0 if not features.may_leave else 1 if self.kept and not self.late else 2
        due_s = self.due_s if self.due_s > deadline_s else deadline_s
        if self.late:
            due_s += _LETS_PASS_S
        return (order * _PRIORITIES - features.priority, due_s, deadline_s, features.arrived_s, features.request_id)


class _Bucket:
    """Up to `2 * _BUCKET` waiters in order of rank; what each asks for stands at the same place of the other lists."""

    __slots__ = ("kv_tokens", "prompt_tokens", "ranks", "sequences", "waiters")

    def __init__(self) -> None:
        self.ranks: list[Rank] = []
        self.waiters: list[Waiter] = []
        self.sequences: list[int] = []
        self.prompt_tokens: list[int] = []
        self.kv_tokens: list[int] = []

    def add(self, rank: Rank, waiter: Waiter) -> None:
        at, features = bisect_left(self.ranks, rank), waiter.features
        self.ranks.insert(at, rank)
        self.waiters.insert(at, waiter)
        self.sequences.insert(at, features.choices)
        self.prompt_tokens.insert(at, features.uncached_tokens_estimate)
        self.kv_tokens.insert(at, features.prompt_tokens_estimate)

    def remove(self, rank: Rank) -> None:
        at = bisect_left(self.ranks, rank)
        for each in (self.ranks, self.waiters, self.sequences, self.prompt_tokens, self.kv_tokens):
            del each[at]

    def split(self) -> _Bucket:
        """Cut the later half off and return it."""
        rest = _Bucket()
        for name in self.__slots__:
            whole = getattr(self, name)
            setattr(rest, name, whole[_BUCKET:])
            del whole[_BUCKET:]
        return rest


class WaitingQueue:
    """Waiters by rank, by the time they must be asked again, and by what their leaving costs."""

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._firsts: list[Rank] = []
        self._sums: RunningSums | None = None  # over the buckets; None when one has come or gone
        self._waiters: dict[str, tuple[Rank, Waiter]] = {}
        self._by_time: list[tuple[float, str]] = []
        self._by_worth: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def get(self, request_id: str) -> Waiter | None:
        """The waiter of that request, if it waits."""
        found = self._waiters.get(request_id)
        return found[1] if found else None

    def add(self, waiter: Waiter) -> None:
        """Put a request in, or give one that waits already new terms."""
        request_id = waiter.features.request_id
        if request_id in self._waiters:
            self.remove(request_id)
        rank = waiter.rank
        self._waiters[request_id] = (rank, waiter)
        if not self._buckets:
            self._buckets.append(_Bucket())
            self._firsts.append(rank)
            self._sums = None
        index = self._index(rank)
        bucket = self._buckets[index]
        bucket.add(rank, waiter)
        self._firsts[index] = bucket.ranks[0]
        self._count(index, waiter.features, 1)
        if len(bucket.ranks) > 2 * _BUCKET:
            rest = bucket.split()
            self._buckets.insert(index + 1, rest)
            self._firsts.insert(index + 1, rest.ranks[0])
            self._sums = None
        heapq.heappush(self._by_time, (waiter.ask_at_s, request_id))
        if waiter.worth is not None:
            heapq.heappush(self._by_worth, (waiter.worth, request_id))
        self._clear_away()

    def remove(self, request_id: str) -> None:
        """Take a request out; one that is not there is no error, since a slot and a deadline may race."""
        found = self._waiters.pop(request_id, None)
        if found is None:
            return
        rank, waiter = found
        index = self._index(rank)
        bucket = self._buckets[index]
        bucket.remove(rank)
        self._count(index, waiter.features, -1)
        if not bucket.ranks:
            del self._buckets[index], self._firsts[index]
            self._sums = None
        else:
            self._firsts[index] = bucket.ranks[0]

    def head(self) -> Waiter | None:
        """Who gets the next slot."""
        return self._buckets[0].waiters[0] if self._buckets else None

    def next_ask_s(self) -> float | None:
        """When somebody has to be decided again, if nobody opens a slot first."""
        heap = self._by_time
        while heap and self._outdated_time(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_s: float) -> list[Waiter]:
        """Those whose time has come, earliest first."""
        found: dict[str, Waiter] = {}
        while (at_s := self.next_ask_s()) is not None and at_s <= now_s:
            _, request_id = heapq.heappop(self._by_time)
            found[request_id] = self._waiters[request_id][1]
        for request_id, waiter in found.items():  # they wait until somebody takes them out
            heapq.heappush(self._by_time, (waiter.ask_at_s, request_id))
        return list(found.values())

    def load_for(
        self,
        waiter: Waiter,
        entering_tokens: int = 0,
        pinned_per_s: tuple[float, float] = (0.0, 0.0),
        reserve: Reserve = NOTHING_RESERVED,
        growth_tokens: float = 0.0,
    ) -> QueueLoad:
        """The queue as `waiter` sees it, whether it is in it or not: the whole depth, and what ranks before it.

        The rest is no matter of the queue, and is put beside it as it is.
        """
        known: tuple[Rank, Waiter] | None = None
        sequences = prompt_tokens = kv_tokens = 0
        cheapest: Leaver | None = None
        if self._waiters:
            known = self._waiters.get(waiter.features.request_id)
            if self._buckets[0].waiters[0] is not waiter:  # the head is asked with every step: nothing is before it
                rank = known[0] if known is not None and known[1] is waiter else waiter.rank
                index = self._index(rank)
                bucket = self._buckets[index]
                at = bisect_left(bucket.ranks, rank)
                if index:
                    sequences, prompt_tokens, kv_tokens = self._running_sums().before(index)
                if at:
                    sequences += sum(bucket.sequences[:at])
                    prompt_tokens += sum(bucket.prompt_tokens[:at])
                    kv_tokens += sum(bucket.kv_tokens[:at])
                cheapest = self._cheapest(rank)
        return QueueLoad(
            depth=len(self._waiters),
            waited=known is not None,
            kept=known is not None and known[1].kept,
            sequences_ahead=sequences,
            prompt_tokens_ahead=prompt_tokens,
            kv_tokens_ahead=kv_tokens,
            entering_tokens=entering_tokens,
            pinned_per_s=pinned_per_s[0],
            pinned_tokens_per_s=pinned_per_s[1],
            reserved_sequences=reserve.sequences,
            reserved_kv_tokens=reserve.kv_tokens,
            growth_tokens=growth_tokens,
            cheapest=cheapest,
        )

    def _running_sums(self) -> RunningSums:
        if self._sums is None:
            self._sums = RunningSums(
                [(sum(each.sequences), sum(each.prompt_tokens), sum(each.kv_tokens)) for each in self._buckets]
            )
        return self._sums

    def _count(self, index: int, features: Features, sign: int) -> None:
        if self._sums is not None:
            prompt_tokens = sign * features.uncached_tokens_estimate
            self._sums.add(index, (sign * features.choices, prompt_tokens, sign * features.prompt_tokens_estimate))

    def _cheapest(self, rank: Rank) -> Leaver | None:
        heap = self._by_worth
        while heap and self._outdated_worth(heap[0]):
            heapq.heappop(heap)
        if not heap:
            return None
        worth, request_id = heap[0]
        its_rank, waiter = self._waiters[request_id]
        return Leaver(
            request_id=request_id,
            worth=worth,
            prompt_tokens=waiter.features.uncached_tokens_estimate,
            is_ahead=its_rank < rank,
        )

    def _outdated_time(self, entry: tuple[float, str]) -> bool:
        found = self._waiters.get(entry[1])
        return found is None or found[1].ask_at_s != entry[0]

    def _outdated_worth(self, entry: tuple[float, str]) -> bool:
        found = self._waiters.get(entry[1])
        return found is None or found[1].worth != entry[0]

    def _clear_away(self) -> None:
        """Those on top are skipped when they are met; those below others would gather for as long as somebody waits."""
        most = 2 * len(self._waiters) + _FEW
        if len(self._by_time) > most:
            self._by_time = [(waiter.ask_at_s, name) for name, (_, waiter) in self._waiters.items()]
            heapq.heapify(self._by_time)
        if len(self._by_worth) > most:
            self._by_worth = [
                (waiter.worth, name) for name, (_, waiter) in self._waiters.items() if waiter.worth is not None
            ]
            heapq.heapify(self._by_worth)

    def _index(self, rank: Rank) -> int:
        """The bucket that holds `rank`, or would."""
        return (bisect_right(self._firsts, rank) or 1) - 1
