"""From an accepted request to its answer: place it, open a backend, hold the 200 until there is content, fall over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from node.backend import Backend, Call, Chunk
from node.catalogue import CloudEquivalent, Model
from node.dispatch.conversations import Conversations
from node.dispatch.cutoff import cut_off
from node.dispatch.journey import Journey, check_output_length, ending_of, refusal
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending, Outcome
from node.dispatch.providers import Providers
from node.dispatch.standing import Visit
from node.errors import ModelNotFound, SpillwayError, UpstreamTimeout, UpstreamTruncated
from node.money import FREE, Price, Usage
from node.routing.permit import grant
from node.routing.policy import LOCAL
from node.routing.retry_budget import RetryBudget, backoff_s
from node.routing.values import CloudOption, Decision, Features, Reason, Target

# One attempt and one more: what fails twice is reported.
_MAX_ATTEMPTS = 2
# One in a hundred first tokens comes later than `ttft_high_s`; what takes twice that does not come.
_HOPELESS = 2.0


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
    """One backend at work on a request. `option` and `visit` are None for the local engine."""

    backend: Backend
    option: CloudOption | None
    visit: Visit | None
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


@dataclass(slots=True)
class _Tries:
    """What a request has tried: the backends that are not to be offered again, and where it may be tried once more.

    `provider_s` is when its first call at a provider began, None before it: from then on that clock runs over all of
    them. `again` is the provider that is to be asked again after `wait_s`, because nobody else is there. `counted` says
    that the retry is in the budget already.
    """

    failed: frozenset[str] = frozenset()
    last_error: SpillwayError | None = None
    reasons: set[Reason] = field(default_factory=set)
    provider_s: float | None = None
    again: str | None = None
    wait_s: float = 0.0
    counted: bool = False

    @property
    def reason(self) -> Reason:
        """Why it is where it is now, once something has failed."""
        return Reason.LOCAL_FAILED if Reason.LOCAL_FAILED in self.reasons else Reason.CLOUD_FAILED


class Dispatcher:
    """Places requests and runs them. `on_outcome` is called exactly once for each one given to `answer()`.

    `random` gives numbers from 0 up to 1; `retries` is the one budget for all providers.
    """

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        providers: Providers,
        conversations: Conversations,
        retries: RetryBudget,
        random: Callable[[], float],
        clock: Callable[[], float],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.served = served
        self._retries = retries
        self._random = random
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
        tries = _Tries()
        ended: SpillwayError | None = None
        ending: Ending | None = Ending.FAILED
        try:
            check_output_length(call, features, served.model, self._providers.reachable(served.model, features))
            while True:
                decision = await self._place(journey, served, tries.failed)
                if decision.target is Target.REFUSE:
                    if tries.last_error is not None:
                        raise tries.last_error
                    journey.decision = decision
                    raise self._refusal(decision, journey, served)
                attempt = await self._attempt(journey, served, decision, tries)
                if attempt is None:
                    continue  # the provider has gone away since it was decided for
                try:
                    head = await self._first_content(journey, served, attempt, tries)
                except SpillwayError as error:
                    if not error.may_try_elsewhere or journey.attempts == _MAX_ATTEMPTS:
                        raise
                    self._failed(journey, attempt, tries, error)
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

    def _refusal(self, decision: Decision, journey: Journey, served: ServedModel) -> SpillwayError:
        if decision.reason is Reason.NO_PROVIDER and decision.retry_after_s is None:
            decision = replace(decision, retry_after_s=self._providers.away_for_s(served.model, self._clock()))
        local_can = _local_can(served, journey.features)
        return refusal(decision, journey, local_can=local_can, busy=served.lane.in_flight > 0)

    async def _attempt(
        self, journey: Journey, served: ServedModel, decision: Decision, tries: _Tries
    ) -> _Attempt | None:
        """The next attempt, opened; None where the provider lets no call through any more.

        Raises the last attempt's error where another one at a provider would come too late, or is beyond the budget.
        """
        visit: Visit | None = None
        if decision.target is Target.CLOUD:
            assert decision.cloud is not None
            name = decision.cloud.provider
            if tries.provider_s is not None:
                assert tries.last_error is not None
                wait_s = tries.wait_s if name == tries.again else 0.0
                if not self._is_worth_it(journey, decision.cloud, tries, wait_s):
                    raise tries.last_error
                tries.wait_s = 0.0
                if wait_s > 0.0:
                    await asyncio.sleep(wait_s)
            now_s = self._clock()
            visit = self._providers.states[name].standing.enter(now_s)
            if visit is None:
                return None
            self._providers.chosen(served.model)
            if tries.provider_s is None:
                tries.provider_s = now_s
                self._retries.called(now_s)
            elif not (tries.counted or self._retries.take(now_s)):
                visit.left(now_s)
                assert tries.last_error is not None
                raise tries.last_error
        if tries.last_error is not None:
            decision = replace(decision, reason=tries.reason)
        journey.decision, journey.decided_s = decision, self._clock()
        journey.attempts += 1
        return self._open(journey, served, decision, visit, tries)

    def _is_worth_it(self, journey: Journey, option: CloudOption, tries: _Tries, wait_s: float) -> bool:
        """Whether one more call at a provider is within the budget, and could still answer in time."""
        now_s, features = self._clock(), journey.features
        assert tries.provider_s is not None
        state = self._providers.states[option.provider]
        latest_s = features.give_up_s
        if journey.call.stream:
            latest_s = min(latest_s, tries.provider_s + state.provider.first_content_s(option.model))
        answers_s = now_s + wait_s + state.standing.recent_ttft.value_s(now_s)
        return answers_s < latest_s and (tries.counted or self._retries.allows(now_s))

    def _failed(self, journey: Journey, attempt: _Attempt, tries: _Tries, error: SpillwayError) -> None:
        """Note a failed attempt: its backend is not offered again, unless it is the only one there is."""
        tries.last_error = error
        if attempt.option is None:
            tries.failed |= {LOCAL}
            tries.reasons.add(Reason.LOCAL_FAILED)
            return
        tries.reasons.add(Reason.CLOUD_FAILED)
        name = attempt.option.provider
        failed = tries.failed | {name}
        if error.may_try_again and not self._has_other(journey, failed):
            tries.again, tries.wait_s = name, backoff_s(1, self._random)
        else:
            tries.failed = failed

    def _has_other(self, journey: Journey, failed: frozenset[str]) -> bool:
        return self._providers.can_else(journey.model, journey.features, self._clock(), failed)

    def _open(
        self, journey: Journey, served: ServedModel, decision: Decision, visit: Visit | None, tries: _Tries
    ) -> _Attempt:
        now_s = self._clock()
        if visit is None:
            assert served.lane.engine is not None
            backend, price, option = served.lane.engine.backend(), FREE, None
        else:
            with ExitStack() as undo:  # should we refuse ourselves a permit, the way in is given back all the same
                undo.callback(visit.left, now_s)
                permit = grant(journey.features, decision)
                equivalent = _equivalent(served.model, permit.provider, permit.model)
                assert equivalent.price is not None
                assert tries.provider_s is not None
                backend = self._providers.states[permit.provider].provider.bind(
                    equivalent,
                    permit,
                    prompt_tokens_estimate=journey.features.prompt_tokens_estimate,
                    spent_s=now_s - tries.provider_s,
                )
                undo.pop_all()
            price, option = equivalent.price, decision.cloud
        journey.backend, journey.served_model = backend.name, backend.served_model
        return _Attempt(backend, option, visit, price, backend.open(journey.call), now_s)

    async def _first_content(self, journey: Journey, served: ServedModel, attempt: _Attempt, tries: _Tries) -> Chunk:
        """Read up to the first content and return all so far as one chunk. On any failure the attempt is let go."""
        data: list[bytes] = []
        error: SpillwayError | None = None
        began = False
        try:
            async with self._while_hopeful(journey, attempt, tries):
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
                self._let_go(journey, served, attempt, error, awaited=journey.call.stream)
                # What was cut off at the provider may be on its bill; a clean refusal is not.
                if attempt.option is not None and (
                    error is None or isinstance(error, UpstreamTimeout | UpstreamTruncated)
                ):
                    journey.spent_nano_usd += attempt.price.cost_nano_usd(attempt.usage(journey.features, None))

    @asynccontextmanager
    async def _while_hopeful(self, journey: Journey, attempt: _Attempt, tries: _Tries) -> AsyncIterator[None]:
        """Raise `UpstreamTimeout` once a stream is hopelessly late while another provider could still answer it.

        A first token that is late is better than none: where there is nobody else, only the provider's clocks cut it.
        """
        option, features = attempt.option, journey.features
        alone = len(journey.model.cloud) < 2
        if option is None or alone or not journey.call.stream or journey.attempts == _MAX_ATTEMPTS:
            yield
            return
        tried = tries.failed | {option.provider}
        promised_s = features.arrived_s + features.ttft_budget_s - attempt.opened_s

        def other_could() -> bool:
            # Counted now: many are late together, and none of them is to be cut for a retry that it then may not make.
            tries.counted = self._has_other(journey, tried) and self._retries.take(self._clock())
            return tries.counted

        try:
            async with cut_off(max(promised_s, _HOPELESS * option.ttft_high_s), other_could):
                yield
        except TimeoutError as error:
            raise UpstreamTimeout(f"{option.provider} did not send any content in time") from error

    def _began(self, journey: Journey, attempt: _Attempt, chunk: Chunk) -> None:
        now_s = self._clock()
        stream = journey.call.stream  # else the whole answer came at once: its time says nothing about a first token
        if stream and chunk.has_content:
            journey.first_content_s = now_s
        if attempt.visit is not None and attempt.option is not None:
            ttft_s = now_s - attempt.opened_s
            attempt.visit.began(ttft_s if stream else None, now_s)
            if stream:
                self._providers.states[attempt.option.provider].ttft.add(ttft_s, now_s)

    def _let_go(
        self,
        journey: Journey,
        served: ServedModel,
        attempt: _Attempt,
        error: SpillwayError | None,
        *,
        awaited: bool = False,
    ) -> None:
        if attempt.visit is None:
            served.lane.release(journey.features)
            return
        now_s = self._clock()
        if error is not None:
            attempt.visit.failed(error, now_s)
        attempt.visit.left(now_s, awaited=awaited)

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


def _equivalent(model: Model, provider: str, name: str) -> CloudEquivalent:
    return next(each for each in model.cloud if each.provider == provider and each.model == name)


def _with_data(chunk: Chunk, data: bytes) -> Chunk:
    return Chunk(data, chunk.has_content, chunk.output_tokens, chunk.usage, chunk.finish_reason)
