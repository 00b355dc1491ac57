"""From an accepted request to its answer: place it, open a backend, hold the 200 until there is content, fall over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace

from node.backend import Call, Chunk
from node.catalogue import Model
from node.dispatch.accounts import Ledger
from node.dispatch.attempts import MAX_ATTEMPTS, Attempt, Attempts, Tries
from node.dispatch.conversations import Conversations
from node.dispatch.hedging import Hedger, Hedging
from node.dispatch.journey import Journey, cancelled_by, check_output_length, ending_of, refusal
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending, Outcome
from node.dispatch.providers import Providers
from node.errors import EgressRefused, EngineDied, ModelNotFound, SpillwayError, Unaffordable, UpstreamTruncated
from node.routing.permit import EgressForbidden
from node.routing.policy import LOCAL
from node.routing.retry_budget import RetryBudget
from node.routing.values import Decision, EngineState, Features, Reason, Target

_LEDGER_RETRY_S = 1.0  # it tries again by itself that often


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A catalogue model and the lane to its engine.

    `retry_after_s` says in how many seconds the engine should be able to serve what nothing else may; None: not known.
    """

    model: Model
    lane: Lane
    retry_after_s: Callable[[], float | None] = lambda: None


class Answer:
    """An answer that has begun: iterate over its chunks, then `aclose()`, always.

    The first chunk is there already and carries content (or is the whole, possibly empty, answer).
    """

    def __init__(self, dispatcher: Dispatcher, journey: Journey, attempt: Attempt, head: Chunk) -> None:
        self.journey = journey
        self._dispatcher = dispatcher
        self._attempt = attempt
        self._head = head
        self._last = head
        self._error: SpillwayError | None = None
        self._cut: SpillwayError | None = None
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """All chunks, once. Raises `SpillwayError` if the backend fails on the way; never splices in another one."""
        # Before the client has it: its next request may be on its way before the rest of this answer is.
        calls = self._dispatcher.tool_calls_of(self.journey)
        if calls is not None:
            calls(self._head.data)
        yield self._head
        try:
            async for chunk in self._attempt.stream:
                self._last = chunk
                if calls is not None:
                    calls(chunk.data)
                yield chunk
            if self._last.usage is None:
                raise UpstreamTruncated("the answer ended before it was complete")
        except SpillwayError as error:
            self._error = error
            raise

    def cut(self, why: SpillwayError | None) -> None:
        """Say that the reader stops, for `why`, before the end. None: because its client has hung up."""
        self._cut = why

    async def aclose(self) -> None:
        """Stop the work if it still runs, give back what it held, report the outcome. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._attempt.stream.aclose()
        finally:
            self._dispatcher.finished(self.journey, self._attempt, self._last, self._error, cut=self._cut)


class Dispatcher:
    """Places requests and runs them. `on_outcome` is called exactly once for each one given to `answer()`.

    `random` gives numbers from 0 up to 1; `retries` is the one budget for all providers. Without `hedging` no request
    is ever in two places.
    """

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        providers: Providers,
        conversations: Conversations,
        retries: RetryBudget,
        ledger: Ledger,
        random: Callable[[], float],
        clock: Callable[[], float],
        on_outcome: Callable[[Outcome], None],
        hedging: Hedging | None = None,
    ) -> None:
        self.served = served
        self._attempts = Attempts(
            providers=providers,
            retries=retries,
            ledger=ledger,
            model=lambda name: self.model(name).model,
            random=random,
            clock=clock,
        )
        self.hedger = Hedger(hedging, self._attempts, providers, clock)
        self._providers = providers
        self._conversations = conversations
        self._clock = clock
        self._on_outcome = on_outcome

    def model(self, name: str) -> ServedModel:
        """The served model of that name. Raises `ModelNotFound`."""
        served = self.served.get(name)
        if served is None:
            raise ModelNotFound(f"The model `{name}` does not exist on this node.", param="model")
        return served

    def tool_calls_of(self, journey: Journey) -> Callable[[bytes], None] | None:
        """What takes note of the tool calls in the pieces of an answer, None where there can be none."""
        call, backend = journey.call, journey.backend
        if "tools" not in call.body or backend is None:
            return None
        return lambda data: self._conversations.remember(call.tenant, call.model, data, backend)

    async def answer(self, call: Call, features: Features) -> Answer:
        """Serve `call`: returns once the first content is there.

        Raises `Refused` when a rule or the deadline said no, and the backend's own error when every attempt failed.
        Cancelling it leaves the queue, or aborts the backend, at once.
        """
        served = self.model(call.model)
        journey = Journey(call, features, served.model)
        tries = Tries()
        ended: SpillwayError | None = None
        ending: Ending | None = Ending.FAILED
        try:
            check_output_length(call, features, served.model, self._providers.reachable(served.model, features))
            while True:
                decision = await self._place(journey, served, tries.failed)
                if decision.target is Target.REFUSE:
                    if isinstance(tries.last_error, EngineDied) and LOCAL in tries.failed:
                        # Nobody else can serve it: it waits for the next engine, if one is to come.
                        tries.failed -= {LOCAL}
                        continue
                    if tries.last_error is not None:
                        raise tries.last_error
                    raise self._refusal(decision, journey, served)
                try:
                    attempt = await self._attempts.next(journey, served.lane, decision, tries)
                except Unaffordable as error:
                    self._attempts.unaffordable(journey, tries, error)
                    continue
                if attempt is None:
                    continue  # the provider has gone away since it was decided for
                try:
                    attempt, head = await self.hedger.begin(journey, served.lane, attempt, tries)
                except SpillwayError as error:
                    if not error.may_try_elsewhere or journey.attempts == MAX_ATTEMPTS:
                        raise
                    self._attempts.failed(journey, attempt, tries, error)
                else:
                    ending = None  # not over: the Answer reports it
                    return Answer(self, journey, attempt, head)
        except SpillwayError as error:
            ended, ending = error, ending_of(error)
            raise
        except EgressForbidden as error:
            ended = EgressRefused(str(error))
            raise
        except asyncio.CancelledError as cancelled:
            ended = cancelled_by(cancelled)
            ending = _ending_of_cut(ended)
            raise
        finally:
            if ending is not None:
                self._report(journey, ending, ended)

    async def _place(self, journey: Journey, served: ServedModel, failed: frozenset[str]) -> Decision:
        features = journey.features
        if features.cost_budget_nano_usd is not None:  # a cap is for the request, however many attempts it takes
            left_nano_usd = features.cost_budget_nano_usd - journey.spent_nano_usd
            features = replace(features, cost_budget_nano_usd=max(0, left_nano_usd))
        asked_s = self._clock()
        decision: Decision | None = None
        try:
            decision = await served.lane.place(features, failed)
            return decision
        finally:
            now_s = self._clock()
            journey.queue_s += now_s - asked_s
            if journey.call.trace is not None:
                journey.call.trace.placed(asked_s, now_s, decision)

    def _refusal(self, decision: Decision, journey: Journey, served: ServedModel) -> SpillwayError:
        if decision.reason is Reason.NO_PROVIDER and self._providers.only_the_ledger_is_away(
            served.model, self._clock()
        ):
            decision = replace(decision, reason=Reason.LEDGER_UNAVAILABLE, retry_after_s=_LEDGER_RETRY_S)
        if decision.reason is Reason.NO_PROVIDER and decision.retry_after_s is None:
            decision = replace(decision, retry_after_s=self._providers.away_for_s(served.model, self._clock()))
        if decision.retry_after_s is None:
            decision = replace(decision, retry_after_s=served.retry_after_s())
        journey.decision = decision
        return refusal(decision, journey, engine=_engine_of(served, journey.features), busy=served.lane.in_flight > 0)

    def finished(
        self,
        journey: Journey,
        attempt: Attempt,
        last: Chunk,
        error: SpillwayError | None,
        *,
        cut: SpillwayError | None = None,
    ) -> None:
        """An answer that had begun is over: give back its slot, settle its price, report it.

        `error` is the backend's; `cut` is ours, for which the answer was not read to its end.
        """
        self._attempts.let_go(journey, self.served[journey.call.model].lane, attempt, error)
        journey.usage = attempt.usage(journey.features, last)
        if error is not None:
            ending = Ending.FAILED
        elif last.usage is not None:
            ending = Ending.DONE
        else:
            error, ending = cut, _ending_of_cut(cut)
        journey.answer_nano_usd = self._attempts.ended(
            journey, attempt, ending, journey.usage, error, answered=True, finish_reason=last.finish_reason
        )
        self._report(journey, ending, error)

    def _report(self, journey: Journey, ending: Ending, error: SpillwayError | None) -> None:
        outcome = journey.outcome(ending, error, self._clock())
        if journey.call.trace is not None:
            journey.call.trace.came_to(outcome)
        self._on_outcome(outcome)


def _ending_of_cut(why: SpillwayError | None) -> Ending:
    return Ending.CLIENT_CLOSED if why is None else Ending.FAILED


def _engine_of(served: ServedModel, features: Features) -> EngineState | None:
    """How the engine here is, None where there is none that can do what the request asks for."""
    local, lane = served.model.local, served.lane
    if lane.engine is None or local is None or not features.needs <= local.capabilities:
        return None
    return lane.engine.load(lane.in_flight).state
