"""A trace through the node's own routing in virtual time: the same `Admission`, policies and learned models as live.

What stands in for the rest of the node: `SimulatedEngine` for vLLM, providers whose time to first token is drawn from
a log-normal distribution (the same draw for the same request under every policy), and a router that is told of a
request what the node knows of one: its prompt length, its caller, and how long that caller's earlier answers were. How
long this answer will be it learns when it is over.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.routing.admission import Admission, Placement
from node.routing.lengths import OutputLengths
from node.routing.policy import Policy
from node.routing.profile import EngineProfile
from node.routing.values import (
    CloudOption,
    Decision,
    EngineLoad,
    Expectation,
    Features,
    Reason,
    Residency,
    Target,
)
from node.simulate.baselines import Observes, Seen
from node.simulate.engine import Sequence as EngineSequence
from node.simulate.engine import StepReport
from node.simulate.observed import ObservedEngine
from node.simulate.providers import Provider, SimulatedProviders
from node.simulate.values import TraceRequest

_MAX_OUTPUT_TOKENS = 1_000_000
_MOST_CALLS = 2  # as in the dispatcher: what fails twice is reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What every request is promised, and which are pinned (indices into the trace).

    `patience_s` is how long one that cannot leave may wait before it is refused.
    """

    ttft_budget_s: float
    pinned: frozenset[int] = frozenset()
    patience_s: float = 3600.0


@dataclass(slots=True)
class Fate:
    """What became of one request. Times in seconds of the trace."""

    decided_s: float
    reason: Reason
    target: Target
    ttft_s: float | None = None
    predicted_ttft_s: float | None = None
    expected: Expectation | None = None
    was_kept: bool = False
    cost_nano_usd: int = 0
    provider: str | None = None


@dataclass(slots=True)
class Replay:
    """All fates, by index into the trace, what the engine did, and how many calls the provider did not take.

    `prompt_steps` are the engine's steps that computed any of the prompts, `prompt_tokens` what they computed.
    """

    fates: list[Fate | None]
    busy_s: float = 0.0
    ended_s: float = 0.0
    preemptions: int = 0
    failed_calls: int = 0
    prompt_steps: int = 0
    prompt_tokens: int = 0


class _World:
    """The trace being replayed."""

    def __init__(
        self,
        trace: Sequence[TraceRequest],
        profile: EngineProfile,
        providers: Sequence[Provider],
        promise: Promise,
        policy: Policy,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.trace = trace
        self.arrived = arrived
        self.profile = profile
        self.providers = SimulatedProviders(providers)
        self.promise = promise
        self.observed = ObservedEngine(profile)
        self.engine = self.observed.simulated
        self.observer = self.observed.observer
        self.lengths = OutputLengths()
        self.now_s = 0.0
        self.replay = Replay([None] * len(trace))
        self.features: dict[int, Features] = {}
        self.first_tokens: list[tuple[float, int]] = []  # cloud answers under way
        self.failures: list[tuple[float, int]] = []  # cloud calls that are about to fail
        self.failed: dict[int, frozenset[str]] = {}  # where calls of a request have failed
        self._observer = policy if isinstance(policy, Observes) else None
        self.admission = Admission(
            policy=policy, engine=self._load, cloud_options=self._options, on_leaving=self._leaving
        )

    def run(self) -> Replay:
        trace, engine, admission = self.trace, self.engine, self.admission
        index = 0
        while True:
            times = [
                engine.ends_s,
                trace[index].arrival_s if index < len(trace) else None,
                admission.next_wake_s(),
                self.first_tokens[0][0] if self.first_tokens else None,
                self.failures[0][0] if self.failures else None,
            ]
            known = [at for at in times if at is not None]
            if not known:
                break
            self.now_s = now = max(self.now_s, min(known))
            if times[0] is not None and times[0] <= now:
                self._stepped(self.observed.step(now))
            elif times[3] is not None and times[3] <= now:
                _, answered = heapq.heappop(self.first_tokens)
                provider = self._provider_of(answered)
                self.providers.began(provider.name, answered, now)
                self._promised(answered, now - trace[answered].arrival_s)
                self._tell(answered, ttft_s=provider.ttft_s(answered), output_tokens=trace[answered].output_tokens)
            elif times[4] is not None and times[4] <= now:
                self._failed(heapq.heappop(self.failures)[1])
            elif times[1] is not None and times[1] <= now:
                self._arrive(index)
                index += 1
            else:
                self._place(admission.wake(now))
        self.replay.busy_s = engine.busy_s
        self.replay.ended_s = self.now_s
        self.replay.preemptions = engine.preemptions
        return self.replay

    def _arrive(self, index: int) -> None:
        request = self.trace[index]
        self.arrived(index)
        features = self._features(index, request)
        self.features[index] = features
        self._admit(features, frozenset())

    def _failed(self, index: int) -> None:
        """A call has failed: the request is decided again without the provider, as the dispatcher does."""
        name = self._provider_of(index).name
        self.replay.failed_calls += 1
        self.providers.failed(name, self.now_s)
        self._tell(index, ttft_s=0.0, output_tokens=0)
        failed = self.failed[index] = self.failed.get(index, frozenset()) | {name}
        if len(failed) == _MOST_CALLS:
            self.replay.fates[index] = Fate(self.now_s, Reason.CLOUD_FAILED, Target.REFUSE)
            return
        self.replay.fates[index] = None
        self._admit(self.features[index], failed)

    def _admit(self, features: Features, failed: frozenset[str]) -> None:
        decision, settled = self.admission.arrive(features, self.now_s, failed)
        if decision.target is not Target.WAIT:
            self._go(features, decision)
        self._place(settled)

    def _features(self, index: int, request: TraceRequest) -> Features:
        budget_s = self.promise.ttft_budget_s
        pinned = index in self.promise.pinned
        return Features(
            request_id=str(index),
            model="simulated",
            residency=Residency.PREMISES if pinned else Residency.ANY,
            prompt_bytes=4 * request.prompt_tokens,
            prompt_tokens_estimate=request.prompt_tokens,
            prompt_tokens_bound=request.prompt_tokens,
            max_output_tokens=_MAX_OUTPUT_TOKENS,
            choices=1,
            needs=frozenset(),
            prefer_local=False,
            ttft_budget_s=budget_s,
            latency_budget_s=None,
            cost_budget_nano_usd=None,
            arrived_s=request.arrival_s,
            give_up_s=request.arrival_s + self.promise.patience_s,
            tenant=request.client,
            cached_tokens_estimate=request.prefix_hit_tokens,
            output_tokens_estimate=self.lengths.expected(request.client),
        )

    def _place(self, placements: list[Placement]) -> None:
        for placement in placements:
            self._go(placement.features, placement.decision)

    def _go(self, features: Features, decision: Decision) -> None:
        index = int(features.request_id)
        request = self.trace[index]
        again = index in self.failed and decision.target is not Target.REFUSE
        fate = Fate(
            self.now_s,
            Reason.CLOUD_FAILED if again else decision.reason,
            decision.target,
            predicted_ttft_s=decision.predicted_ttft_s,
            expected=decision.expected,
            was_kept=decision.was_kept,
        )
        self.replay.fates[index] = fate
        self._tell(index)
        if decision.target is Target.LOCAL:
            uncached = max(1, request.prompt_tokens - request.prefix_hit_tokens)
            sequence = EngineSequence(index, request.prompt_tokens, uncached, request.output_tokens)
            self.observed.submit(sequence, self.now_s)
            self.admission.entered(features.request_id)
        elif decision.target is Target.CLOUD:
            assert decision.cloud is not None
            fate.provider = decision.cloud.provider
            fails_after_s = self.providers.call(fate.provider, index, request, self.now_s)
            if fails_after_s is not None:
                heapq.heappush(self.failures, (self.now_s + fails_after_s, index))
                return
            provider = self.providers[fate.provider]
            ttft_s = provider.ttft_s(index)
            fate.ttft_s = self.now_s + ttft_s - request.arrival_s
            fate.cost_nano_usd = provider.price.cost_of_nano_usd(request.prompt_tokens, request.output_tokens)
            heapq.heappush(self.first_tokens, (self.now_s + ttft_s, index))

    def _stepped(self, report: StepReport) -> None:
        if report.prefill_tokens:
            self.replay.prompt_steps += report.count
            self.replay.prompt_tokens += report.count * report.prefill_tokens
        for index in report.began:
            fate = self.replay.fates[index]
            assert fate is not None
            fate.ttft_s = self.now_s - self.trace[index].arrival_s
            self._promised(index, fate.ttft_s)
            self._tell(index, ttft_s=self.now_s - fate.decided_s)
            if fate.predicted_ttft_s is not None:
                took_s = self.now_s - fate.decided_s
                self.observer.began(predicted_s=fate.predicted_ttft_s, took_s=took_s, queued=False)
            if fate.expected is not None:
                took_s = self.now_s - fate.expected.made_at_s
                self.observer.began(predicted_s=fate.expected.ttft_s, took_s=took_s, queued=True)
        for index in report.finished:
            request = self.trace[index]
            self.lengths.learn(request.client, request.output_tokens)
            self.observer.answered(request.output_tokens)
            self._tell(index, output_tokens=request.output_tokens)
            self._place(self.admission.release(self.features.pop(index), self.now_s))
        self._place(self.admission.let_in(self.now_s))

    def _promised(self, index: int, ttft_s: float) -> None:
        fate = self.replay.fates[index]
        if index not in self.promise.pinned and fate is not None:
            here = fate.target is Target.LOCAL or fate.was_kept
            self.observer.lateness.promised(kept=ttft_s <= self.promise.ttft_budget_s, here=here)

    def _tell(self, index: int, *, ttft_s: float | None = None, output_tokens: int | None = None) -> None:
        """A policy that learns from what becomes of its decisions is told."""
        fate = self.replay.fates[index]
        if self._observer is not None and fate is not None:
            seen = Seen(
                request_id=str(index),
                target=fate.target,
                at_s=self.now_s,
                prompt_tokens=self.trace[index].prompt_tokens,
                ttft_s=ttft_s,
                output_tokens=output_tokens,
            )
            self._observer.observe(seen, self.promise.ttft_budget_s)

    def _load(self, in_flight: int) -> EngineLoad:
        return self.observed.load(in_flight, self.now_s)

    def _leaving(self) -> None:
        self.observer.lateness.leaves()
        self.providers.changed()

    def _options(self, failed: frozenset[str]) -> tuple[CloudOption, ...]:
        return self.providers.options(self.now_s, self.observer.lateness.cloud_share, failed)

    def _provider_of(self, index: int) -> Provider:
        """Whose call the request's last one was."""
        fate = self.replay.fates[index]
        assert fate is not None
        assert fate.provider is not None
        return self.providers[fate.provider]


def replay(
    trace: Sequence[TraceRequest],
    profile: EngineProfile,
    provider: Provider,
    promise: Promise,
    policy: Policy,
    others: Sequence[Provider] = (),
    *,
    arrived: Callable[[int], None] = lambda _: None,
) -> Replay:
    """Every request of `trace`, sorted by arrival, through `policy`; returns when the last answer is over.

    `others` are providers beside `provider`, with names of their own. `arrived` is told each request's number when it
    comes.
    """
    return _World(trace, profile, (provider, *others), promise, policy, arrived).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A replay in figures. Shares are fractions; None where there was nothing to count.

    `sent`: requests by the provider that they were last sent to.
    """

    requests: int
    spillable: int
    in_budget_share: float | None
    pinned_in_budget_share: float | None
    cloud_share: float
    spend_nano_usd: int
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    utilisation: float
    preemptions: int
    reasons: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)


def summary(trace: Sequence[TraceRequest], promise: Promise, done: Replay) -> Outcome:
    """What a replay comes to."""
    reasons: dict[str, int] = {}
    ttfts: list[float] = []

    def kept(index: int) -> bool:
        fate = done.fates[index]
        return fate is not None and fate.ttft_s is not None and fate.ttft_s <= promise.ttft_budget_s

    spillable = [index for index in range(len(trace)) if index not in promise.pinned]
    for fate in done.fates:
        if fate is None:
            continue
        reasons[fate.reason] = reasons.get(fate.reason, 0) + 1
        if fate.ttft_s is not None:
            ttfts.append(fate.ttft_s)
    ttfts.sort()
    return Outcome(
        requests=len(trace),
        spillable=len(spillable),
        in_budget_share=sum(map(kept, spillable)) / len(spillable) if spillable else None,
        pinned_in_budget_share=sum(map(kept, promise.pinned)) / len(promise.pinned) if promise.pinned else None,
        cloud_share=sum(fate is not None and fate.target is Target.CLOUD for fate in done.fates) / max(1, len(trace)),
        spend_nano_usd=sum(fate.cost_nano_usd for fate in done.fates if fate is not None),
        ttft_p50_s=_at(ttfts, 0.5),
        ttft_p95_s=_at(ttfts, 0.95),
        ttft_p99_s=_at(ttfts, 0.99),
        utilisation=done.busy_s / done.ended_s if done.ended_s else 0.0,
        preemptions=done.preemptions,
        reasons=dict(sorted(reasons.items())),
        sent=dict(sorted(Counter(fate.provider for fate in done.fates if fate and fate.provider).items())),
    )


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
