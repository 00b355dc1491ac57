"""One model's slots, and the node's own queue in front of them: who starts, who waits, who leaves, and when.

Values in, placements out: it has no clock and waits for nothing. `node.dispatch.lane` drives it in the live node, with
futures and timers; `node.simulate` in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from node.routing.fairness import FairShares
from node.routing.forecast import local_work_s
from node.routing.policy import LOCAL, Policy
from node.routing.queue import Waiter, WaitingQueue
from node.routing.values import CloudOption, Decision, EngineLoad, Features, Reason, Snapshot, Target

LoadOf = Callable[[int], EngineLoad]
"""The engine's load, given how many sequences it was handed and has not given back."""
CloudOptions = Callable[[frozenset[str]], tuple[CloudOption, ...]]
"""The model's cloud equivalents as they stand now, given the backends that already failed this request."""

_PINNED_MEMORY_S = 2.0  # long against the gaps of a burst, short against its length
_SHORTEST_WAIT_S = 1e-3  # between two askings, so that rounding cannot make one follow the other without end


@dataclass(frozen=True, slots=True)
class Placement:
    """A request that waited, and what was decided for it."""

    features: Features
    decision: Decision


class Admission:
    """Every request goes in through `arrive`; those that then wait come out of whichever call settles them.

    A `Target.LOCAL` decision comes with `features.choices` slots taken: give them back with `release`.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        engine: LoadOf | None,
        cloud_options: CloudOptions,
        vram_free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._cloud_options = cloud_options
        self._vram_free_bytes = vram_free_bytes
        self._queue = WaitingQueue()
        self._failed: dict[str, frozenset[str]] = {}
        self._leave_to: dict[str, CloudOption | None] = {}
        self._expected_at_s: dict[str, float | None] = {}
        self._shares = FairShares()
        self._entering: dict[str, int] = {}
        self._entering_tokens = 0
        self._pinned_per_s = 0.0
        self._pinned_tokens_per_s = 0.0
        self._pinned_at_s = 0.0
        self.in_flight = 0

    @property
    def depth(self) -> int:
        """Requests waiting."""
        return len(self._queue)

    def arrive(
        self, features: Features, now_s: float, failed: frozenset[str] = frozenset()
    ) -> tuple[Decision, list[Placement]]:
        """Where the request goes, and who else was settled by its coming. `Target.WAIT`: it waits now.

        `failed` names the backends that have already failed this request and are not to be offered again.
        """
        due_s = self._shares.due_s(features, now_s)
        waiter = Waiter(features, 0.0, due_s=due_s)
        if not features.may_leave:
            self._count_pinned(features, now_s)
        engine = self._load_for(failed)
        decision = self._decide(waiter, engine, failed, now_s)
        settled: list[Placement] = []
        if decision.displaces is not None:
            settled = self._send_away(decision.displaces)
        if decision.target is Target.LOCAL:
            self._hand_over(features)
        elif decision.target is Target.WAIT:
            # What starts at once takes nobody's turn, and is not counted as its caller's.
            work_s = None if engine is None else local_work_s(features, engine)
            if work_s is not None:
                self._shares.charge(features, work_s, now_s)
            self._shares.waits(features, due_s)
            self._failed[features.request_id] = failed
            self._wait(waiter, decision, now_s)
        return decision, settled

    def withdraw(self, request_id: str, now_s: float) -> list[Placement]:
        """Take out a request whose client has left; whoever stood behind it may fit where it did not."""
        self._forget(request_id)
        return self.let_in(now_s)

    def release(self, features: Features, now_s: float) -> list[Placement]:
        """Give the request's slots back, and let the next ones in."""
        self.entered(features.request_id)
        self.in_flight -= features.choices
        return self.let_in(now_s)

    def entered(self, request_id: str) -> None:
        """The engine counts the request's prompt itself from now on."""
        self._entering_tokens -= self._entering.pop(request_id, 0)

    def let_in(self, now_s: float) -> list[Placement]:
        """Give what room there is to the head of the queue, in order, until the head has to go on waiting."""
        settled: list[Placement] = []
        while (head := self._queue.head()) is not None:
            if not self._ask(head, now_s, settled):
                break
        return settled

    def wake(self, now_s: float) -> list[Placement]:
        """Ask those again whose time has come, then let in."""
        settled: list[Placement] = []
        for waiter in self._queue.due(now_s):
            if self._queue.get(waiter.features.request_id) is waiter:
                self._ask(waiter, now_s, settled)
        return settled + self.let_in(now_s)

    def reconsider(self, now_s: float) -> list[Placement]:
        """Ask everybody who waits again, not the head alone: the engine has come, gone, or come under suspicion."""
        settled: list[Placement] = []
        for waiter in self._queue.due(math.inf):
            if self._queue.get(waiter.features.request_id) is waiter:
                self._ask(waiter, now_s, settled)
        return settled + self.let_in(now_s)

    def next_wake_s(self) -> float | None:
        """When `wake` has something to do, if nothing else happens before."""
        return self._queue.next_ask_s()

    def _load_for(self, failed: frozenset[str]) -> EngineLoad | None:
        return None if self._engine is None or LOCAL in failed else self._engine(self.in_flight)

    def _decide(self, waiter: Waiter, engine: EngineLoad | None, failed: frozenset[str], now_s: float) -> Decision:
        faded = self._faded(now_s)
        snapshot = Snapshot(
            engine=engine,
            queue=self._queue.load_for(
                waiter, self._entering_tokens, self._pinned_per_s * faded, self._pinned_tokens_per_s * faded
            ),
            cloud=self._cloud_options(failed),
            vram_free_bytes=self._vram_free_bytes(),
        )
        return self._policy.decide(waiter.features, snapshot, now_s)

    def _count_pinned(self, features: Features, now_s: float) -> None:
        faded = self._faded(now_s)
        self._pinned_per_s = self._pinned_per_s * faded + features.choices / _PINNED_MEMORY_S
        self._pinned_tokens_per_s *= faded
        self._pinned_tokens_per_s += features.uncached_tokens_estimate * features.choices / _PINNED_MEMORY_S
        self._pinned_at_s = now_s

    def _faded(self, now_s: float) -> float:
        return math.exp((self._pinned_at_s - now_s) / _PINNED_MEMORY_S)

    def _hand_over(self, features: Features) -> None:
        self.in_flight += features.choices
        tokens = features.uncached_tokens_estimate * features.choices
        self._entering[features.request_id] = tokens
        self._entering_tokens += tokens

    def _ask(self, waiter: Waiter, now_s: float, settled: list[Placement]) -> bool:
        """Decide a waiter again. True if it left the queue."""
        features = waiter.features
        failed = self._failed[features.request_id]
        decision = self._decide(waiter, self._load_for(failed), failed, now_s)
        if decision.displaces is not None:
            settled += self._send_away(decision.displaces)
        if decision.target is Target.WAIT:
            self._wait(waiter, decision, now_s)
            return False
        if decision.target is Target.LOCAL:
            self._hand_over(features)
            decision = Decision(
                target=Target.LOCAL,
                reason=decision.reason,
                predicted_ttft_s=decision.predicted_ttft_s,
                expected_at_s=self._expected_at_s.get(features.request_id),
            )
        self._forget(features.request_id)
        settled.append(Placement(features, decision))
        return True

    def _wait(self, waiter: Waiter, decision: Decision, now_s: float) -> None:
        features = waiter.features
        ask_at_s = decision.leave_at_s
        if ask_at_s is None:
            ask_at_s = features.give_up_s
            deadline_s = features.arrived_s + features.ttft_budget_s
            if features.may_leave and now_s < deadline_s:
                ask_at_s = min(deadline_s, ask_at_s)
        kept = decision.leave_at_s is None
        if features.request_id not in self._expected_at_s or (kept and not waiter.kept):
            predicted_s = decision.predicted_ttft_s
            self._expected_at_s[features.request_id] = None if predicted_s is None else now_s + predicted_s
        waiter_ = Waiter(features, max(ask_at_s, now_s + _SHORTEST_WAIT_S), kept, decision.worth, waiter.due_s)
        if waiter_ != self._queue.get(features.request_id):
            self._queue.add(waiter_)
        self._leave_to[features.request_id] = decision.cloud

    def _send_away(self, request_id: str) -> list[Placement]:
        """The waiting request that another one takes the place of goes to the cloud."""
        waiter = self._queue.get(request_id)
        option = self._leave_to.get(request_id)
        assert waiter is not None
        assert option is not None
        self._forget(request_id)
        return [Placement(waiter.features, Decision(target=Target.CLOUD, reason=Reason.DISPLACED, cloud=option))]

    def _forget(self, request_id: str) -> None:
        waiter = self._queue.get(request_id)
        if waiter is None:
            return
        self._queue.remove(request_id)
        self._shares.left(waiter.features)
        self._failed.pop(request_id, None)
        self._leave_to.pop(request_id, None)
        self._expected_at_s.pop(request_id, None)
