"""From an accepted request to its answer: place it, open a backend, hold the 200 until there is content, fall over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from node.backend import Backend, Call, Chunk
from node.catalogue import CloudEquivalent, Model
from node.dispatch.conversations import Conversations
from node.dispatch.journey import Journey, check_output_length, ending_of, refusal
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending, Outcome
from node.dispatch.providers import Providers
from node.errors import ModelNotFound, SpillwayError, UpstreamTimeout, UpstreamTruncated
from node.money import FREE, Price, Usage
from node.routing.permit import grant
from node.routing.policy import LOCAL
from node.routing.values import Decision, Features, Reason, Target

# One attempt and one more: what fails twice is reported.
_MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A catalogue model and the lane to its engine."""

    model: Model
    lane: Lane


class Answer:
    """An answer that has begun: iterate over its chunks, then `aclose()`, always.

    The first chunk is there already and carries content (or is the whole, possibly empty, answer).
    """

    def __init__(self, dispatcher: Dispatcher, journey: Journey, attempt: _Attempt, head: Chunk) -> None:
        self.journey = journey
        self._dispatcher = dispatcher
        self._attempt = attempt
        self._head = head
        self._last = head
        self._error: SpillwayError | None = None
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

    async def aclose(self) -> None:
        """Stop the work if it still runs, give back what it held, report the outcome. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._attempt.stream.aclose()
        finally:
            self._dispatcher.finished(self.journey, self._attempt, self._last, self._error)


@dataclass(slots=True)
class _Attempt:
    """One backend at work on a request. `provider` is None for the local engine."""

    backend: Backend
    provider: str | None
    price: Price
    stream: AsyncGenerator[Chunk, None]
    opened_s: float

    def usage(self, features: Features, last: Chunk | None) -> Usage:
        """What it used: as reported at its end, else as the backend counted, else as delivered."""
        if last is not None and last.usage is not None:
            return last.usage
        counted = self.backend.usage_so_far()
        if counted is not None:
            return counted
        return Usage(features.prompt_tokens_estimate, last.output_tokens if last else 0, estimated=True)


class Dispatcher:
    """Places requests and runs them. `on_outcome` is called exactly once for each one given to `answer()`."""

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        providers: Providers,
        conversations: Conversations,
        clock: Callable[[], float],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.served = served
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
        failed: frozenset[str] = frozenset()
        last_error: SpillwayError | None = None
        ended: SpillwayError | None = None
        ending: Ending | None = Ending.FAILED
        try:
            check_output_length(call, features, served.model)
            while True:
                decision = await self._place(journey, served, failed)
                if decision.target is Target.REFUSE:
                    if last_error is not None:
                        raise last_error
                    journey.decision = decision
                    raise refusal(
                        decision, journey, local_can=_local_can(served, features), busy=served.lane.in_flight > 0
                    )
                if last_error is not None:
                    decision = replace(decision, reason=_failover_reason(failed))
                journey.decision, journey.decided_s = decision, self._clock()
                journey.attempts += 1
                try:
                    attempt = self._open(journey, served, decision)
                    head = await self._first_content(journey, served, attempt)
                except SpillwayError as error:
                    if not error.may_try_elsewhere or journey.attempts == _MAX_ATTEMPTS:
                        raise
                    failed |= {journey.backend or LOCAL}
                    last_error = error
                else:
                    ending = None  # not over: the Answer reports it
                    return Answer(self, journey, attempt, head)
        except SpillwayError as error:
            ended, ending = error, ending_of(error)
            raise
        except asyncio.CancelledError:
            ending = Ending.CLIENT_CLOSED
            raise
        finally:
            if ending is not None:
                self._on_outcome(journey.outcome(ending, ended, self._clock()))

    async def _place(self, journey: Journey, served: ServedModel, failed: frozenset[str]) -> Decision:
        features = journey.features
        if features.cost_budget_nano_usd is not None:  # a cap is for the request, however many attempts it takes
            left_nano_usd = features.cost_budget_nano_usd - journey.spent_nano_usd
            features = replace(features, cost_budget_nano_usd=max(0, left_nano_usd))
        asked_s = self._clock()
        try:
            return await served.lane.place(features, failed)
        finally:
            journey.queue_s += self._clock() - asked_s

    def _open(self, journey: Journey, served: ServedModel, decision: Decision) -> _Attempt:
        if decision.target is Target.LOCAL:
            assert served.lane.engine is not None
            backend, provider, price = served.lane.engine.backend(), None, FREE
        else:
            permit = grant(journey.features, decision)
            # One that was declared while the request waited is not in the model it came with.
            now = self.model(journey.call.model).model
            equivalent = _equivalent((*served.model.cloud, *now.cloud), permit.provider, permit.model)
            assert equivalent.price is not None
            backend = self._providers.states[permit.provider].provider.bind(
                equivalent, permit, prompt_tokens_estimate=journey.features.prompt_tokens_estimate
            )
            provider, price = permit.provider, equivalent.price
        journey.backend, journey.served_model = backend.name, backend.served_model
        return _Attempt(backend, provider, price, backend.open(journey.call), self._clock())

    async def _first_content(self, journey: Journey, served: ServedModel, attempt: _Attempt) -> Chunk:
        """Read up to the first content and return all so far as one chunk. On any failure the attempt is let go."""
        data: list[bytes] = []
        error: SpillwayError | None = None
        began = False
        try:
            async for chunk in attempt.stream:
                data.append(chunk.data)
                if chunk.has_content or chunk.usage is not None:
                    began = True
                    self._began(journey, attempt, chunk)
                    return chunk if len(data) == 1 else _with_data(chunk, b"".join(data))
            raise UpstreamTruncated("the answer ended before it began")
        except SpillwayError as failure:
            error = failure
            raise
        finally:
            if not began:
                await attempt.stream.aclose()
                self._let_go(journey, served, attempt, error)
                # What was cut off at the provider may be on its bill; a clean refusal is not.
                if attempt.provider is not None and (
                    error is None or isinstance(error, UpstreamTimeout | UpstreamTruncated)
                ):
                    journey.spent_nano_usd += attempt.price.cost_nano_usd(attempt.usage(journey.features, None))

    def _began(self, journey: Journey, attempt: _Attempt, chunk: Chunk) -> None:
        now_s = self._clock()
        if not journey.call.stream:
            return  # the whole answer came at once: its time says nothing about a first token
        if chunk.has_content:
            journey.first_content_s = now_s
        if attempt.provider is not None:
            self._providers.states[attempt.provider].ttft.add(now_s - attempt.opened_s, now_s)

    def _let_go(self, journey: Journey, served: ServedModel, attempt: _Attempt, error: SpillwayError | None) -> None:
        if attempt.provider is None:
            served.lane.release(journey.features)
        elif error is not None:
            self._providers.failed(attempt.provider, error, self._clock())

    def finished(self, journey: Journey, attempt: _Attempt, last: Chunk, error: SpillwayError | None) -> None:
        """An answer that had begun is over: give back its slot, settle its price, report it."""
        self._let_go(journey, self.served[journey.call.model], attempt, error)
        journey.usage = attempt.usage(journey.features, last)
        journey.answer_nano_usd = attempt.price.cost_nano_usd(journey.usage)
        journey.spent_nano_usd += journey.answer_nano_usd
        ending = Ending.DONE if last.usage is not None else Ending.CLIENT_CLOSED
        self._on_outcome(journey.outcome(ending if error is None else Ending.FAILED, error, self._clock()))


def _local_can(served: ServedModel, features: Features) -> bool:
    local = served.model.local
    return served.lane.engine is not None and local is not None and features.needs <= local.capabilities


def _failover_reason(failed: frozenset[str]) -> Reason:
    return Reason.LOCAL_FAILED if LOCAL in failed else Reason.CLOUD_FAILED


def _equivalent(declared: Iterable[CloudEquivalent], provider: str, name: str) -> CloudEquivalent:
    return next(each for each in declared if each.provider == provider and each.model == name)


def _with_data(chunk: Chunk, data: bytes) -> Chunk:
    return Chunk(data, chunk.has_content, chunk.output_tokens, chunk.usage, chunk.finish_reason)
