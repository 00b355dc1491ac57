"""A second copy of what is late in the engine, sent to the cloud at the last safe moment: who answers first wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from node.backend import Chunk
from node.dispatch.attempts import MAX_ATTEMPTS, Attempt, Attempts, Tries, adopt
from node.dispatch.journey import Journey
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending
from node.dispatch.providers import Providers
from node.errors import SpillwayError
from node.routing.hedging import hedge_at_s, may_hedge
from node.routing.retry_budget import RetryBudget
from node.routing.values import Decision, Reason, Target

_log = logging.getLogger("spillway.hedging")

Begun = tuple[Attempt, Chunk]
"""An attempt that has begun to answer, and its first content."""


@dataclass(frozen=True, slots=True)
class Hedging:
    """Sending a second copy of what is late in the engine: how many, and `margin_s` for the node's own work."""

    budget: RetryBudget
    margin_s: float


class Hedger:
    """Begins attempts, with a copy where `hedging` allows one; without it no request is ever in two places.

    `hedging` may be exchanged at any time.
    """

    def __init__(
        self, hedging: Hedging | None, attempts: Attempts, providers: Providers, clock: Callable[[], float]
    ) -> None:
        self.hedging = hedging
        self._attempts = attempts
        self._providers = providers
        self._clock = clock

    async def begin(self, journey: Journey, lane: Lane, attempt: Attempt, tries: Tries) -> Begun:
        """The attempt whose first content is there, and that content: `attempt`, or a copy of it that was quicker."""
        after_s = self._hedge_after_s(journey, attempt)
        if after_s is None:
            return attempt, await self._attempts.first_content(journey, lane, attempt, tries)
        loop = asyncio.get_running_loop()
        copy: asyncio.Task[Begun | None] | None = None
        try:
            async with asyncio.timeout(None) as limit:

                def won(done: asyncio.Task[Begun | None]) -> None:
                    if not done.cancelled() and done.exception() is None and done.result() is not None:
                        limit.reschedule(loop.time())

                def send() -> None:
                    nonlocal copy
                    copy = loop.create_task(self._copy(journey, lane, tries))
                    copy.add_done_callback(won)

                timer = loop.call_later(after_s, send)
                try:
                    # Here and not in a task of its own: the engine's answer goes on in the context it began in.
                    head = await self._attempts.first_content(journey, lane, attempt, tries)
                finally:
                    timer.cancel()
                    if copy is not None:
                        copy.remove_done_callback(won)
        except TimeoutError:
            assert copy is not None
            quicker = copy.result()
            assert quicker is not None
            adopt(journey, quicker[0])
            return quicker
        except SpillwayError as error:
            if copy is None or not error.may_try_elsewhere:
                await self._discard(journey, lane, copy)
                raise
            try:
                await asyncio.wait([copy])
            except asyncio.CancelledError:
                await self._discard(journey, lane, copy)
                raise
            instead = copy.result()
            if instead is None:
                raise
            adopt(journey, instead[0])
            return instead
        except asyncio.CancelledError:
            await self._discard(journey, lane, copy)
            raise
        await self._discard(journey, lane, copy)
        return attempt, head

    def _hedge_after_s(self, journey: Journey, attempt: Attempt) -> float | None:
        """In how many seconds a copy of what begins in the engine is to be sent; None: never."""
        hedging, features = self.hedging, journey.features
        if hedging is None or not journey.call.stream or journey.attempts == MAX_ATTEMPTS:
            return None
        if not may_hedge(features, attempt.decision):
            return None
        hedging.budget.called(attempt.opened_s)
        option = self._attempts.usable(journey, attempt.opened_s)
        if option is None:
            return None
        at_s = hedge_at_s(features, attempt.decision, attempt.opened_s, option, hedging.margin_s)
        return max(0.0, at_s - attempt.opened_s)

    async def _copy(self, journey: Journey, lane: Lane, tries: Tries) -> Begun | None:
        """A copy in the cloud, begun; None where it may not be sent now, or has failed."""
        hedging, now_s = self.hedging, self._clock()
        option = self._attempts.usable(journey, now_s)
        if hedging is None or option is None or not hedging.budget.allows(now_s):
            return None
        visit = self._providers.states[option.provider].standing.enter(now_s)
        if visit is None:
            return None
        hedging.budget.take(now_s)
        self._attempts.called(journey, tries, now_s)
        decision = Decision(target=Target.CLOUD, reason=Reason.HEDGED, cloud=option)
        try:
            attempt = await self._attempts.open(journey, lane, decision, visit, tries)
            return attempt, await self._attempts.first_content(journey, lane, attempt, tries)
        except SpillwayError:
            return None  # the engine may still answer; what the provider did is noted where it stands

    async def _discard(self, journey: Journey, lane: Lane, copy: asyncio.Task[Begun | None] | None) -> None:
        """Stop a copy that is not needed, and account for what it cost."""
        if copy is None:
            return
        copy.cancel()
        await asyncio.wait([copy])
        if copy.cancelled():
            return
        if (bug := copy.exception()) is not None:
            _log.error("%s: its copy failed in an unexpected way", journey.call.request_id, exc_info=bug)
        elif (begun := copy.result()) is not None:
            attempt, head = begun
            try:
                await attempt.stream.aclose()
            finally:
                self._attempts.let_go(journey, lane, attempt, None)
            usage = attempt.usage(journey.features, head)
            self._attempts.ended(journey, attempt, Ending.CLIENT_CLOSED, usage, None)
