"""Who goes first while several callers want the engine: a caller that asks for more than its share ranks later.

Start-time fair queueing in seconds of engine time. A caller's requests count as served one after the other at its share
of the engine, and each is due (in the order of service; its deadline stays what it is) as much later as the earlier
ones are still being served. Whoever asks for less than its share is not put off; alone, a caller is put off against
nobody, since its own requests keep the order of their deadlines.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left

from node.routing.values import Features

Place = tuple[float, float, str, float]
"""A waiting request of a caller: its deadline, when it arrived, its id, and when it is due."""


class FairShares:
    """What each caller lately had to be given of the engine, and its waiting requests.

    A caller is charged for at most as long as its requests may wait, and forgotten when that is over.
    """

    def __init__(self) -> None:
        self._served_until_s: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []  # one of each caller above, never later than there
        self._waiting: dict[str, list[Place]] = {}

    def due_s(self, features: Features, now_s: float) -> float:
        """When the request is due in the order of service: at its deadline, or later."""
        deadline_s = features.arrived_s + features.ttft_budget_s
        ahead_s = self._served_until_s.get(features.tenant, now_s) - now_s
        due_s = deadline_s + max(0.0, min(ahead_s, _patience_s(features)))
        own = self._waiting.get(features.tenant)
        if own:
            at = bisect_left(own, (deadline_s, features.arrived_s, features.request_id))
            if at < len(own):
                due_s = min(due_s, own[at][3])
            if at > 0:
                due_s = max(due_s, own[at - 1][3])
        return max(deadline_s, due_s)

    def charge(self, features: Features, work_s: float, now_s: float) -> None:
        """Count the request's `work_s` seconds of the engine's time as its caller's."""
        self._forget(now_s)
        served, tenant = self._served_until_s, features.tenant
        until_s = served.get(tenant)
        if until_s is None:
            until_s = served[tenant] = now_s
            heapq.heappush(self._ends, (now_s, tenant))
        most_s = max(until_s, now_s + _patience_s(features))
        served[tenant] = min(most_s, until_s + work_s * len(served))

    def waits(self, features: Features, due_s: float) -> None:
        """The request waits now, and is due then."""
        deadline_s = features.arrived_s + features.ttft_budget_s
        own = self._waiting.setdefault(features.tenant, [])
        place = (deadline_s, features.arrived_s, features.request_id, due_s)
        own.insert(bisect_left(own, place), place)

    def left(self, features: Features) -> None:
        """The request waits no longer."""
        own = self._waiting[features.tenant]
        deadline_s = features.arrived_s + features.ttft_budget_s
        del own[bisect_left(own, (deadline_s, features.arrived_s, features.request_id))]
        if not own:
            del self._waiting[features.tenant]

    def _forget(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            tenant = self._ends[0][1]
            until_s = self._served_until_s[tenant]
            if until_s <= now_s:
                heapq.heappop(self._ends)
                del self._served_until_s[tenant]
            else:
                heapq.heapreplace(self._ends, (until_s, tenant))


def _patience_s(features: Features) -> float:
    """How long the request may wait: to its deadline, or where it cannot leave until the node gives it up."""
    return features.ttft_budget_s if features.may_leave else max(0.0, features.give_up_s - features.arrived_s)
