"""One model's way to the local engine: its slots, and the node's own queue in front of them.

The lane owns the count of what it has handed to the engine; the policy only advises from a snapshot of it. Every
slot taken is given back through `release()`, on every way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from node.backend import Backend
from node.routing.policy import Policy
from node.routing.queue import Waiter, WaitingQueue
from node.routing.values import (
    CloudOption,
    Decision,
    EngineLoad,
    Features,
    QueueLoad,
    Snapshot,
    Target,
)

# How often a queue is looked at while nothing happens: hard limits (KV cache, VRAM) and the engine's state can
# clear without a slot being released.
_LOOK_AGAIN_S = 0.1


class Engine(Protocol):
    """What a lane needs of the local engine."""

    def load(self) -> EngineLoad:
        """The engine's load as of its last step; `in_flight` is the lane's to fill in."""

    def backend(self) -> Backend:
        """The seam through which calls are served."""


CloudOptions = Callable[[frozenset[str]], tuple[CloudOption, ...]]
"""The model's cloud equivalents as they stand now, given the backends that already failed this request."""

LOCAL = "local"
"""The local engine's name among backends."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request in the queue: who it is, what failed it before, and where its answer goes."""

    features: Features
    failed: frozenset[str]
    placed: asyncio.Future[Decision]


class Lane:
    """Slots and queue for one model. `engine` is None for a model that only the cloud serves here."""

    def __init__(
        self,
        *,
        engine: Engine | None,
        policy: Policy,
        cloud_options: CloudOptions,
        vram_free_bytes: Callable[[], int | None],
        clock: Callable[[], float],
    ) -> None:
        self.engine = engine
        self._policy = policy
        self._cloud_options = cloud_options
        self._vram_free_bytes = vram_free_bytes
        self._clock = clock
        self._queue = WaitingQueue()
        self._waiting: dict[str, _Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wake_s = 0.0
        self.in_flight = 0

    @property
    def depth(self) -> int:
        """Requests waiting in the node's own queue."""
        return len(self._queue)

    async def place(self, features: Features, failed: frozenset[str] = frozenset()) -> Decision:
        """Where the request goes: decides, and waits for as long as the policy says to.

        `failed` names the backends that have already failed this request and are not to be offered again.

        A `Target.LOCAL` answer comes with `features.choices` slots taken: give them back with `release()`.
        Cancelling the wait leaves the queue at once.
        """
        decision = self._decide(features, failed)
        if decision.target is Target.LOCAL:
            self.in_flight += features.choices
        if decision.target is not Target.WAIT:
            return decision
        placed: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting[features.request_id] = _Waiting(features, failed, placed)
        self._queue.add(Waiter(features, self._ask_again_s(features, decision)))
        self._arm()
        try:
            return await placed
        except asyncio.CancelledError:
            # A slot may have been given in the very tick in which the client left.
            if placed.done() and not placed.cancelled() and placed.result().target is Target.LOCAL:
                self.release(features)
            else:
                self._queue.remove(features.request_id)
                self._let_in()  # whoever stood behind a wide request may fit where it did not
            raise
        finally:
            self._queue.remove(features.request_id)
            self._waiting.pop(features.request_id, None)

    def release(self, features: Features) -> None:
        """Give the request's slots back and let the next one in."""
        self.in_flight -= features.choices
        self._let_in()

    def _decide(self, features: Features, failed: frozenset[str]) -> Decision:
        engine = None
        if self.engine is not None and LOCAL not in failed:
            engine = replace(self.engine.load(), in_flight=self.in_flight)
        snapshot = Snapshot(
            engine=engine,
            queue=self._queue.load_for(features) if len(self._queue) else _EMPTY,
            cloud=self._cloud_options(failed),
            vram_free_bytes=self._vram_free_bytes(),
        )
        return self._policy.decide(features, snapshot, self._clock())

    def _let_in(self) -> None:
        """Give free slots to the head of the queue, in rank order, until the head has to go on waiting."""
        while (head := self._queue.head()) is not None:
            if not self._settle(head):
                break

    def _settle(self, waiter: Waiter) -> bool:
        """Decide a waiter again. True if it left the queue."""
        features = waiter.features
        waiting = self._waiting[features.request_id]
        decision = self._decide(features, waiting.failed)
        if decision.target is Target.WAIT:
            self._queue.add(Waiter(features, self._ask_again_s(features, decision)))
            return False
        if decision.target is Target.LOCAL:
            self.in_flight += features.choices
        self._queue.remove(features.request_id)
        del self._waiting[features.request_id]
        if not waiting.placed.done():
            waiting.placed.set_result(decision)
        elif decision.target is Target.LOCAL:  # cancelled in this very tick: nobody is there to give it back
            self.in_flight -= features.choices
        return True

    def _ask_again_s(self, features: Features, decision: Decision) -> float:
        return decision.leave_at_s if decision.leave_at_s is not None else features.give_up_s

    def _arm(self) -> None:
        """Wake at the next last moment, or soon, for what can change without anybody telling us."""
        next_s = self._queue.next_leave_s()
        if next_s is None:
            return
        now_s = self._clock()
        wake_s = min(max(next_s, now_s), now_s + _LOOK_AGAIN_S)
        if self._timer is not None:
            if self._wake_s <= wake_s:
                return
            self._timer.cancel()
        self._wake_s = wake_s
        self._timer = asyncio.get_running_loop().call_later(wake_s - now_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        for waiter in self._queue.due(self._clock()):
            self._settle(waiter)
        self._let_in()
        self._arm()


_EMPTY = QueueLoad()
