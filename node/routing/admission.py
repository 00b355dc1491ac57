"""One model's slots, and the node's own queue in front of them: who starts, who waits, who leaves, and when.

Values in, placements out: it has no clock and waits for nothing. `node.dispatch.lane` drives it in the live node, with
futures and timers; `node.simulate` in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from node.routing.fairness import FairShares
from node.routing.forecast import local_work_s, prompt_work_s
from node.routing.frozen import value
from node.routing.in_flight import InFlight
from node.routing.pinned import PinnedDemand
from node.routing.policy import LOCAL, Policy
from node.routing.queue import Waiter, WaitingQueue
from node.routing.values import (
    CloudOption,
    Decision,
    EngineLoad,
    Expectation,
    Features,
    Reason,
    Snapshot,
    Target,
)

LoadOf = Callable[[int], EngineLoad]
"""The engine's load, given how many sequences it was handed and has not given back."""
CloudOptions = Callable[[frozenset[str]], tuple[CloudOption, ...]]
"""The model's cloud equivalents as they stand now, given the backends that already failed this request."""

_SHORTEST_WAIT_S = 1e-3  # between two askings, so that rounding cannot make one follow the other without end
# One that stays past its last safe moment is asked again: often enough to leave while that helps, the more often the
# less time is left.
_SHORTEST_STAY_S, _STAY_SHARE = 0.05, 0.25


@value(frozen=True, slots=True)
class Placement:
    """A request that waited, and what was decided for it."""

    features: Features
    decision: Decision


@value(frozen=True, slots=True)
class _Stay:
    """What is remembered of a waiting request beside its place: where it may not go, where to, what was predicted."""

    failed: frozenset[str]
    leave_to: CloudOption | None
    expected: Expectation | None


class Admission:
    """Every request goes in through `arrive`; those that then wait come out of whichever call settles them.

    A `Target.LOCAL` decision comes with `features.choices` slots taken: give them back with `release`. `on_leaving` is
    called for each that goes to the cloud, at the moment that is decided.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        engine: LoadOf | None,
        cloud_options: CloudOptions,
        vram_free_bytes: Callable[[], int | None] = lambda: None,
        on_leaving: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._cloud_options = cloud_options
        self._vram_free_bytes = vram_free_bytes
        self._on_leaving = on_leaving
        self._queue = WaitingQueue()
        self._stays: dict[str, _Stay] = {}
        self._shares = FairShares()
        self._in_flight = InFlight()
        self._pinned = PinnedDemand()

    @property
    def depth(self) -> int:
        """Requests waiting."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Sequences handed to the engine and not given back."""
        return self._in_flight.sequences

    def arrive(
        self, features: Features, now_s: float, failed: frozenset[str] = frozenset()
    ) -> tuple[Decision, list[Placement]]:
        """Where the request goes, and who else was settled by its coming. `Target.WAIT`: it waits now.

        `failed` names the backends that have already failed this request and are not to be offered again.
        """
        due_s = self._shares.due_s(features, now_s)
        waiter = Waiter(features, 0.0, due_s=due_s)
        if not features.may_leave:
            self._pinned.came(features, now_s)
        snapshot = self._snapshot(waiter, failed, now_s)
        engine = snapshot.engine
        decision = self._policy.decide(features, snapshot, now_s)
        settled: list[Placement] = []
        if decision.displaces is not None:
            settled = self._send_away(decision.displaces)
        if decision.target is Target.LOCAL:
            self._in_flight.enter(features, now_s)
        elif decision.target is Target.CLOUD:
            self._on_leaving()
        elif decision.target is Target.WAIT:
            # What starts at once takes nobody's turn, and is not counted as its caller's.
            work_s = None if engine is None else local_work_s(features, engine)
            if work_s is not None:
                self._shares.charge(features, work_s, now_s)
            self._shares.waits(features, due_s)
            self._wait(waiter, decision, _Stay(failed, None, None), engine, now_s)
        return decision, settled

    def withdraw(self, request_id: str, now_s: float) -> list[Placement]:
        """Take out a request whose client has left; whoever stood behind it may fit where it did not."""
        self._forget(request_id)
        return self.let_in(now_s)

    def release(self, features: Features, now_s: float) -> list[Placement]:
        """Give the request's slots back, and let the next ones in."""
        self._in_flight.leave(features)
        return self.let_in(now_s)

    def entered(self, request_id: str) -> None:
        """The engine counts the request's prompt itself from now on."""
        self._in_flight.entered(request_id)

    def let_in(self, now_s: float) -> list[Placement]:
        """Give what room there is to the head of the queue, in order, until the head has to go on waiting."""
        settled: list[Placement] = []
        while (head := self._queue.head()) is not None:
            snapshot = self._snapshot(head, self._stays[head.features.request_id].failed, now_s)
            if not self._policy.is_worth_asking(head.features, snapshot):
                break
            if not self._ask(head, snapshot, now_s, settled):
                break
        return settled

    def wake(self, now_s: float) -> list[Placement]:
        """Ask those again whose time has come, then let in."""
        return self._ask_each(self._queue.due(now_s), now_s)

    def reconsider(self, now_s: float) -> list[Placement]:
        """Ask everybody who waits again, not the head alone: the engine has come, gone, or come under suspicion."""
        return self._ask_each(self._queue.due(math.inf), now_s)

    def next_wake_s(self) -> float | None:
        """When `wake` has something to do, if nothing else happens before."""
        return self._queue.next_ask_s()

    def _snapshot(self, waiter: Waiter, failed: frozenset[str], now_s: float) -> Snapshot:
        in_flight, pinned = self._in_flight, self._pinned
        engine = None if self._engine is None or LOCAL in failed else self._engine(in_flight.sequences)
        tpot_s = None if engine is None else engine.tpot_s
        queue = self._queue.load_for(
            waiter,
            in_flight.entering_tokens,
            pinned.per_s(now_s),
            pinned.reserve(in_flight, tpot_s, now_s),
            in_flight.growth_tokens(tpot_s, now_s),
        )
        return Snapshot(
            engine=engine, queue=queue, cloud=self._cloud_options(failed), vram_free_bytes=self._vram_free_bytes()
        )

    def _ask_each(self, waiters: list[Waiter], now_s: float) -> list[Placement]:
        settled: list[Placement] = []
        for waiter in waiters:
            request_id = waiter.features.request_id
            if self._queue.get(request_id) is waiter:
                self._ask(waiter, self._snapshot(waiter, self._stays[request_id].failed, now_s), now_s, settled)
        return settled + self.let_in(now_s)

    def _ask(self, waiter: Waiter, snapshot: Snapshot, now_s: float, settled: list[Placement]) -> bool:
        """Decide a waiter again. True if it left the queue."""
        features = waiter.features
        stay = self._stays[features.request_id]
        decision = self._policy.decide(features, snapshot, now_s)
        if decision.displaces is not None:
            settled += self._send_away(decision.displaces)
        if decision.target is Target.WAIT:
            self._wait(waiter, decision, stay, snapshot.engine, now_s)
            return False
        if decision.target is Target.LOCAL:
            self._in_flight.enter(features, now_s)
            decision = Decision(  # all that one for here says
                target=Target.LOCAL,
                reason=decision.reason,
                predicted_ttft_s=decision.predicted_ttft_s,
                expected=stay.expected,
            )
        elif decision.target is Target.CLOUD:
            self._on_leaving()
            decision = replace(decision, was_kept=waiter.kept)
        self._forget(features.request_id)
        settled.append(Placement(features, decision))
        return True

    def _wait(self, waiter: Waiter, decision: Decision, stay: _Stay, engine: EngineLoad | None, now_s: float) -> None:
        features = waiter.features
        deadline_s = features.arrived_s + features.ttft_budget_s
        ask_at_s, kept, late = decision.leave_at_s, decision.leave_at_s is None, False
        if ask_at_s is None:
            ask_at_s = features.give_up_s
            if features.may_leave and now_s < deadline_s:
                ask_at_s = min(ask_at_s, now_s + max(_SHORTEST_STAY_S, _STAY_SHARE * (deadline_s - now_s)))
                if decision.look_at_s is not None and decision.look_at_s > now_s:
                    ask_at_s = min(ask_at_s, decision.look_at_s)
        if decision.cloud is None:  # it cannot leave, ever or for now
            work_s = None if engine is None else prompt_work_s(features, engine)
            hopeless_s = deadline_s - (work_s or 0.0)
            late = now_s >= hopeless_s
            ask_at_s = ask_at_s if late else min(ask_at_s, hopeless_s)
        expected = stay.expected
        first_time = self._queue.get(features.request_id) is None
        if first_time or (kept and not waiter.kept):
            predicted_s = decision.predicted_ttft_s
            expected = None if predicted_s is None else Expectation(now_s, predicted_s)
        ask_at_s = max(ask_at_s, now_s + _SHORTEST_WAIT_S)
        again = Waiter(features, ask_at_s, kept, decision.worth, waiter.due_s, late)
        if again != self._queue.get(features.request_id):
            self._queue.add(again)
        self._stays[features.request_id] = _Stay(stay.failed, decision.cloud, expected)

    def _send_away(self, request_id: str) -> list[Placement]:
        """The waiting request that another one takes the place of goes to the cloud."""
        waiter = self._queue.get(request_id)
        option = self._stays[request_id].leave_to
        assert waiter is not None
        assert option is not None
        self._forget(request_id)
        self._on_leaving()
        return [Placement(waiter.features, Decision(target=Target.CLOUD, reason=Reason.DISPLACED, cloud=option))]

    def _forget(self, request_id: str) -> None:
        waiter = self._queue.get(request_id)
        if waiter is None:
            return
        self._queue.remove(request_id)
        self._shares.left(waiter.features)
        del self._stays[request_id]
