"""One model's way to the local engine, in real time: futures and one timer around `node.routing.admission`.

The admission owns the slots and the queue; the policy only advises it. Every slot taken is given back through
`release()`, on every way out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from node.backend import Backend
from node.routing.admission import Admission, CloudOptions, Placement
from node.routing.policy import Policy
from node.routing.values import Decision, EngineLoad, Features, Target

# How often a queue is looked at while nothing happens: hard limits (KV cache, VRAM) and the engine's state can
# clear without a slot being released.
_LOOK_AGAIN_S = 0.1


class Engine(Protocol):
    """What a lane needs of the local engine."""

    def load(self, in_flight: int) -> EngineLoad:
        """The engine's load as of its last step, with `in_flight` sequences handed to it. Asked for every decision."""

    def leaves(self) -> None:
        """Told of each request of the model that goes to the cloud, at the moment that is decided."""

    def backend(self) -> Backend:
        """The seam through which calls are served."""


class Lane:
    """Slots and queue for one model. `engine` is None for a model that only the cloud serves here.

    However little happens, the head of the queue is asked again every `look_again_s` seconds.
    """

    def __init__(
        self,
        *,
        engine: Engine | None,
        policy: Policy,
        cloud_options: CloudOptions,
        vram_free_bytes: Callable[[], int | None],
        clock: Callable[[], float],
        look_again_s: float = _LOOK_AGAIN_S,
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._look_again_s = look_again_s
        self._admission = Admission(
            policy=policy,
            engine=engine.load if engine is not None else None,
            cloud_options=cloud_options,
            vram_free_bytes=vram_free_bytes,
            on_leaving=engine.leaves if engine is not None else lambda: None,
        )
        self._placed: dict[str, asyncio.Future[Decision]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._wake_s = 0.0
        self._will_look = False

    @property
    def depth(self) -> int:
        """Requests waiting in the node's own queue."""
        return self._admission.depth

    @property
    def in_flight(self) -> int:
        """Sequences handed to the engine and not given back."""
        return self._admission.in_flight

    async def place(self, features: Features, failed: frozenset[str] = frozenset()) -> Decision:
        """Where the request goes: decides, and waits for as long as the policy says to.

        `failed` names the backends that have already failed this request and are not to be offered again.

        A `Target.LOCAL` answer comes with `features.choices` slots taken: give them back with `release()`.
        Cancelling the wait leaves the queue at once.
        """
        decision, settled = self._admission.arrive(features, self._clock(), failed)
        if decision.target is not Target.WAIT:
            self._tell(settled)
            return decision
        placed: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._placed[features.request_id] = placed
        self._tell(settled)
        try:
            return await placed
        except asyncio.CancelledError:
            self._placed.pop(features.request_id, None)
            if placed.cancelled():
                self._tell(self._admission.withdraw(features.request_id, self._clock()))
            elif placed.done() and placed.result().target is Target.LOCAL:
                self.release(features)  # a slot was given in the very tick in which the client left
            raise

    def release(self, features: Features) -> None:
        """Give the request's slots back and let the next ones in."""
        self._tell(self._admission.release(features, self._clock()))

    def entered(self, request_id: str) -> None:
        """The engine counts the request's prompt itself from now on."""
        self._admission.entered(request_id)

    def moved_on(self) -> None:
        """The engine has made a step: whoever waits may fit now.

        To be called on the event loop; however often it is called, it looks once per turn.
        """
        if self._will_look or not self._admission.depth:
            return
        self._will_look = True
        # Not now: those whose answers have just ended give their slots back in this turn.
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._will_look = False
        self._tell(self._admission.let_in(self._clock()))

    def _tell(self, placements: Iterable[Placement]) -> None:
        """Hand decisions to those who wait for them. A slot whose taker has left goes to the next."""
        untold = deque(placements)
        while untold:
            placement = untold.popleft()
            features, decision = placement.features, placement.decision
            placed = self._placed.pop(features.request_id)
            if not placed.done():
                placed.set_result(decision)
            elif decision.target is Target.LOCAL:  # cancelled in this very tick: nobody is there to give it back
                untold += self._admission.release(features, self._clock())
        self._arm()

    def _arm(self) -> None:
        """Wake when the admission asks to, or soon, for what can change without anybody telling us."""
        next_s = self._admission.next_wake_s()
        if next_s is None:
            return
        now_s = self._clock()
        self._wake_s = min(max(next_s, now_s), now_s + self._look_again_s)
        if self._timer is not None:
            if self._timer_s <= self._wake_s:
                return  # it will find that it is too early, which costs less than a new one each time
            self._timer.cancel()
        self._set_timer(now_s)

    def _set_timer(self, now_s: float) -> None:
        self._timer_s = self._wake_s
        self._timer = asyncio.get_running_loop().call_later(self._wake_s - now_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now_s = self._clock()
        if now_s < self._wake_s and self._admission.depth:
            self._set_timer(now_s)
            return
        self._tell(self._admission.wake(now_s))
