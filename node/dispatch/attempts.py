"""One backend after another at work on a request: opened, waited for until there is content, and given back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace

from node.backend import Backend, Chunk
from node.catalogue import CloudEquivalent, Model
from node.dispatch.accounts import Entry, Ledger, Settlement, entry_for, worth
from node.dispatch.cutoff import cut_off
from node.dispatch.journey import Journey
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending
from node.dispatch.providers import Providers
from node.dispatch.standing import Visit
from node.errors import ContextLengthExceeded, SpillwayError, Unaffordable, UpstreamTimeout, UpstreamTruncated
from node.money import FREE, Price, Usage
from node.routing.permit import grant, worst_case_nano_usd
from node.routing.policy import LOCAL
from node.routing.retry_budget import RetryBudget, backoff_s
from node.routing.values import CloudOption, Decision, Features, Reason, Target, Zone
from node.tracing import AttemptTrace

MAX_ATTEMPTS = 2
"""One attempt and one more: what fails twice is reported."""

# One in a hundred first tokens comes later than the 99th percentile; what takes twice that does not come.
_HOPELESS = 2.0
_NO_LIMIT = nullcontext()
_WORST_FIRST = (
    Reason.LOCAL_FAILED,
    Reason.CLOUD_FAILED,
    Reason.BUDGET_SPENT,
    Reason.LEDGER_UNAVAILABLE,
    Reason.CLOUD_ONLY_LENGTH,
)


@dataclass(slots=True)
class Attempt:
    """One backend at work on a request. `option` and `visit` are None for the local engine.

    `admitted`: the ledger holds its worst case until it ends.
    """

    decision: Decision
    backend: Backend
    option: CloudOption | None
    visit: Visit | None
    price: Price
    stream: AsyncGenerator[Chunk, None]
    opened_s: float
    entry: Entry
    admitted: bool
    trace: AttemptTrace | None = None

    def usage(self, features: Features, last: Chunk | None) -> Usage:
        """What it used: as reported at its end, else as the backend counted, else as delivered."""
        if last is not None and last.usage is not None:
            return last.usage
        counted = self.backend.usage_so_far()
        if counted is not None:
            return counted
        return Usage(features.prompt_tokens_estimate, last.output_tokens if last else 0, estimated=True)


@dataclass(slots=True)
class Tries:
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
        """Why it is where it is now, once something has failed or was not to be had."""
        return next(reason for reason in _WORST_FIRST if reason in self.reasons)


class Attempts:
    """Opens attempts and lets them go. `random` gives numbers from 0 up to 1; `retries` is the one budget for all.

    `model` gives a served model as it is declared now: a request that is still to be placed goes by that, not by what
    it came with.
    """

    def __init__(
        self,
        *,
        providers: Providers,
        retries: RetryBudget,
        ledger: Ledger,
        model: Callable[[str], Model],
        random: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._providers = providers
        self._retries = retries
        self._ledger = ledger
        self._model = model
        self._random = random
        self._clock = clock

    async def next(self, journey: Journey, lane: Lane, decision: Decision, tries: Tries) -> Attempt | None:
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
            if tries.provider_s is None or tries.counted or self._retries.take(now_s):
                self.called(journey, tries, now_s)
            else:
                visit.left(now_s)
                assert tries.last_error is not None
                raise tries.last_error
        elsewhere = decision.target is Target.CLOUD or bool(tries.reasons - {Reason.LOCAL_FAILED})
        if (
            tries.last_error is not None and elsewhere
        ):  # else it is the next engine's turn, for the reason it always was
            decision = replace(decision, reason=tries.reason)
        attempt = await self.open(journey, lane, decision, visit, tries)
        adopt(journey, attempt)
        return attempt

    def called(self, journey: Journey, tries: Tries, now_s: float) -> None:
        """A call at a provider begins: the next one may be somebody else's turn."""
        self._providers.chosen(journey.model)
        if tries.provider_s is None:
            tries.provider_s = now_s
            self._retries.called(now_s)

    def _is_worth_it(self, journey: Journey, option: CloudOption, tries: Tries, wait_s: float) -> bool:
        """Whether one more call at a provider is within the budget, and could still answer in time."""
        now_s, features = self._clock(), journey.features
        assert tries.provider_s is not None
        state = self._providers.states[option.provider]
        # What was taken from a silent provider is late already: late is better than none.
        latest_s = math.inf if tries.counted else features.give_up_s
        if journey.call.stream:
            latest_s = min(latest_s, tries.provider_s + state.provider.first_content_s(option.model))
        answers_s = now_s + wait_s + state.standing.recent_ttft.value_s(now_s)
        return answers_s < latest_s and (tries.counted or self._retries.allows(now_s))

    def failed(self, journey: Journey, attempt: Attempt, tries: Tries, error: SpillwayError) -> None:
        """Note a failed attempt: its backend is not offered again, unless it is the only one there is."""
        tries.last_error = error
        if attempt.option is None:
            tries.failed |= {LOCAL}
            # It only counts the tokens that were estimated before: no failure.
            too_long = isinstance(error, ContextLengthExceeded)
            tries.reasons.add(Reason.CLOUD_ONLY_LENGTH if too_long else Reason.LOCAL_FAILED)
            return
        tries.reasons.add(Reason.CLOUD_FAILED)
        name = attempt.option.provider
        failed = tries.failed | {name}
        if error.may_try_again and not self._has_other(journey, failed):
            tries.again, tries.wait_s = name, backoff_s(1, self._random)
        else:
            tries.failed = failed

    def unaffordable(self, journey: Journey, tries: Tries, error: Unaffordable) -> None:
        """Note that the request may not cost anything: from here on only what is free is offered to it."""
        assert error.rule is not None
        tries.last_error = error
        tries.reasons.add(Reason(error.rule))
        features, now_s = journey.features, self._clock()
        tries.failed |= {
            option.provider
            for option in self._providers.options_for(self._model(journey.call.model), now_s, frozenset())
            if costs(option, worst_case_nano_usd(features, option) or 0)
        }

    def usable(self, journey: Journey, now_s: float, failed: frozenset[str] = frozenset()) -> CloudOption | None:
        """The first provider that could take the request now, by what is declared now."""
        return self._providers.usable(self._model(journey.call.model), journey.features, now_s, failed)

    def _has_other(self, journey: Journey, failed: frozenset[str]) -> bool:
        return self.usable(journey, self._clock(), failed) is not None

    async def open(
        self, journey: Journey, lane: Lane, decision: Decision, visit: Visit | None, tries: Tries
    ) -> Attempt:
        """An attempt at what `decision` names, by way of `visit` where that is a provider; nothing is sent yet.

        What it may cost is written down first. Raises `EgressForbidden` where no permit is granted, `BudgetSpent` and
        `LedgerUnavailable` where it may not cost that; then the visit is over.
        """
        now_s = self._clock()
        journey.opened += 1
        if visit is None:
            assert lane.engine is not None
            backend, price, option, admitted = lane.engine.backend(), FREE, None, False
            entry = entry_for(
                journey.call,
                journey.features,
                number=journey.opened,
                backend=backend.name,
                served_model=backend.served_model,
                rule=decision.reason,
            )
        else:
            with ExitStack() as undo:  # should we refuse ourselves a permit, the way in is given back all the same
                undo.callback(visit.left, now_s)
                permit = grant(journey.features, decision)
                # Decided by what was declared then: mostly what is now, but a reload may have come between.
                declared = (*self._model(journey.call.model).cloud, *journey.model.cloud)
                equivalent = _equivalent(declared, permit.provider, permit.model)
                assert equivalent.price is not None
                assert tries.provider_s is not None
                option = decision.cloud
                assert option is not None
                entry = entry_for(
                    journey.call,
                    journey.features,
                    number=journey.opened,
                    backend=permit.provider,
                    served_model=permit.model,
                    rule=decision.reason,
                    reserved_nano_usd=permit.reserved_nano_usd,
                )
                admitted = costs(option, permit.reserved_nano_usd)
                if admitted:
                    await self._ledger.admit(entry, journey.call.budget)
                    # The provider's clocks do not run while it is written down that it may be called.
                    tries.provider_s += self._clock() - now_s
                    now_s = self._clock()
                backend = self._providers.states[permit.provider].provider.bind(
                    equivalent,
                    permit,
                    prompt_tokens_estimate=journey.features.prompt_tokens_estimate,
                    spent_s=now_s - tries.provider_s,
                )
                undo.pop_all()
            self._providers.states[permit.provider].standing.calls += 1
            price = equivalent.price
        journey.attempts += 1
        call, trace = journey.call, None
        if call.trace is not None:
            trace = call.trace.attempt(backend.name, backend.served_model, decision, now_s)
            call = replace(call, traceparent=trace.traceparent)
        return Attempt(decision, backend, option, visit, price, backend.open(call), now_s, entry, admitted, trace)

    async def first_content(self, journey: Journey, lane: Lane, attempt: Attempt, tries: Tries) -> Chunk:
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
                try:
                    await attempt.stream.aclose()
                finally:
                    self.let_go(journey, lane, attempt, error, awaited=journey.call.stream)
                # What was cut off at the provider may be on its bill; a clean refusal is not.
                cut = error is None or isinstance(error, UpstreamTimeout | UpstreamTruncated)
                usage = attempt.usage(journey.features, None) if attempt.option is not None and cut else None
                ending = Ending.CLIENT_CLOSED if error is None else Ending.FAILED
                self.ended(journey, attempt, ending, usage, error)

    def _while_hopeful(self, journey: Journey, attempt: Attempt, tries: Tries) -> AbstractAsyncContextManager[None]:
        """Raises `UpstreamTimeout` in its body once a stream is hopelessly late while another provider could answer it.

        A first token that is late is better than none: where there is nobody else, only the provider's clocks cut it.
        """
        option, features = attempt.option, journey.features
        alone = len(self._model(journey.call.model).cloud) < 2
        if option is None or alone or not journey.call.stream or journey.attempts == MAX_ATTEMPTS:
            return _NO_LIMIT
        tried = tries.failed | {option.provider}
        # Not the option's own, which is as low a percentile as routing may dare to leave by.
        high_s = self._providers.states[option.provider].ttft.high_s(attempt.opened_s)
        promised_s = features.arrived_s + features.ttft_budget_s - attempt.opened_s

        def other_could() -> bool:
            # Counted now: many are late together, and none of them is to be cut for a retry that it then may not make.
            tries.counted = self._has_other(journey, tried) and self._retries.take(self._clock())
            return tries.counted

        late = UpstreamTimeout(f"{option.provider} did not send any content in time")
        return cut_off(max(promised_s, _HOPELESS * high_s), other_could, late)

    def ended(
        self,
        journey: Journey,
        attempt: Attempt,
        ending: Ending,
        usage: Usage | None,
        error: SpillwayError | None,
        *,
        answered: bool = False,
        finish_reason: str | None = None,
    ) -> int:
        """Write down what the attempt came to, and return its price in nano-dollars.

        `usage` is None where it cost nothing. `answered`: it is what the client was given, and not work for nothing.
        """
        charged_nano_usd = attempt.price.cost_nano_usd(usage) if usage is not None else 0
        journey.spent_nano_usd += charged_nano_usd
        if attempt.trace is not None:
            code = error.code if error is not None else None
            attempt.trace.ended(self._clock(), usage, finish_reason, code)
        at_list, in_cloud = worth(journey.model, usage) if answered and usage is not None else (None, None)
        features, first_s = journey.features, journey.first_content_s
        settlement = Settlement(
            charged_nano_usd=charged_nano_usd,
            ending=ending,
            error_code=error.code if error is not None else None,
            usage=usage,
            list_nano_usd=at_list,
            cloud_nano_usd=in_cloud,
            queue_s=journey.queue_s,
            ttft_s=first_s - features.arrived_s if answered and first_s is not None else None,
            total_s=self._clock() - features.arrived_s,
        )
        if not attempt.admitted:
            self._ledger.note(attempt.entry, settlement)
        elif usage is None:
            self._ledger.release(attempt.entry.id, settlement)
        else:
            self._ledger.settle(attempt.entry.id, settlement)
        return charged_nano_usd

    def _began(self, journey: Journey, attempt: Attempt, chunk: Chunk) -> None:
        now_s = self._clock()
        if attempt.trace is not None:
            attempt.trace.began(now_s, stream=journey.call.stream)
        stream = journey.call.stream  # else the whole answer came at once: its time says nothing about a first token
        if stream and chunk.has_content:
            journey.first_content_s = now_s
        if attempt.visit is not None and attempt.option is not None:
            ttft_s = now_s - attempt.opened_s
            attempt.visit.began(ttft_s if stream else None, now_s)
            if stream:
                self._providers.states[attempt.option.provider].ttft.add(ttft_s, now_s)

    def let_go(
        self,
        journey: Journey,
        lane: Lane,
        attempt: Attempt,
        error: SpillwayError | None,
        *,
        awaited: bool = False,
    ) -> None:
        """Give back what the attempt held. `awaited`: its first token was still waited for."""
        if attempt.visit is None:
            lane.release(journey.features)
            return
        now_s = self._clock()
        if error is not None:
            attempt.visit.failed(error, now_s)
        attempt.visit.left(now_s, awaited=awaited)


def costs(option: CloudOption, reserved_nano_usd: int) -> bool:
    """Whether a call has to be admitted by the ledger first: it leaves the premises, or has a price."""
    return option.zone is Zone.CLOUD or reserved_nano_usd > 0


def adopt(journey: Journey, attempt: Attempt) -> None:
    """From here on the request is this attempt's."""
    journey.decision, journey.decided_s = attempt.decision, attempt.opened_s
    journey.backend, journey.served_model = attempt.backend.name, attempt.backend.served_model


def _equivalent(declared: Iterable[CloudEquivalent], provider: str, name: str) -> CloudEquivalent:
    """The first of them at a known price: without one nothing is decided for it."""
    return next(
        each for each in declared if each.provider == provider and each.model == name and each.price is not None
    )


def _with_data(chunk: Chunk, data: bytes) -> Chunk:
    return Chunk(data, chunk.has_content, chunk.output_tokens, chunk.usage, chunk.finish_reason)
