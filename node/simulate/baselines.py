"""What others do about a full engine, as policies to compare with.

Each hands a request on at once: to the engine, which serves first come, first served, or to the cloud. Pinned requests
always go to the engine.

| text | what it does |
|---|---|
| `overflow` | Spillway's own policy, with the node's queue |
| `local` | everything here |
| `cloud` | everything that may leave, leaves |
| `depth:N` | the cloud while more than N requests wait in the engine (`vllm:num_requests_waiting`) |
| `spillover:N` | llama-swap's selector with `spillover: N` |
| `vllm`, `vllm:REQUESTS` | vLLM's admission limits, and the cloud for what they refuse |
| `aimd` | control-layer's share of traffic, cut when answers come late |
| `predicted:F` | the cloud when the TTFT predicted on arrival is more than F times the budget |
| `article`, `article:USD` | local if an idle engine would be in time, else the cloud at up to USD a request |

They are given the benefit of the doubt: where they would have to be told something (prefill rate, TTFT budget), they
are told the truth, and their counts are never stale.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Protocol, runtime_checkable

from node.errors import SettingsError
from node.money import usd_to_nano
from node.routing.forecast import predict_ttft_s
from node.routing.policy import OverflowPolicy, Policy
from node.routing.targets import TargetsPolicy
from node.routing.values import CloudOption, Decision, EngineLoad, Features, Limits, QueueLoad, Reason, Snapshot, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Something that happened to a request which was sent to `target`, at `at_s`.

    It was just sent (both others None), its first token came after `ttft_s` since it was sent, or its answer of
    `output_tokens` is over. Of a cloud answer all is told with the first token: its length says when it will be over,
    and is not to be used before.
    """

    request_id: str
    target: Target
    at_s: float
    prompt_tokens: int
    ttft_s: float | None = None
    output_tokens: int | None = None


@runtime_checkable
class Observes(Protocol):
    """A policy that learns from what became of its decisions. The replay tells it in order."""

    def observe(self, seen: Seen, budget_s: float) -> None:
        """Take note. `budget_s` is the request's TTFT budget."""


def _here(features: Features, ttft_s: float | None = None) -> Decision:
    reason = Reason.WITHIN_BUDGET if features.may_leave else Reason.PINNED
    return Decision(target=Target.LOCAL, reason=reason, predicted_ttft_s=ttft_s)


def _option(features: Features, snapshot: Snapshot) -> CloudOption | None:
    """The first cloud there is for the request: up, with a price, its context long enough. None for a pinned one."""
    if not features.may_leave:
        return None
    tokens = features.prompt_tokens_estimate
    able = (o for o in snapshot.cloud if o.available and o.price is not None and tokens < o.context_tokens)
    return next(able, None)


def _away(option: CloudOption, reason: Reason, ttft_s: float | None = None) -> Decision:
    return Decision(target=Target.CLOUD, reason=reason, cloud=option, predicted_ttft_s=ttft_s)


@dataclass(frozen=True, slots=True)
class LocalOnly(Policy):
    """Everything here, however late."""

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """Local."""
        return _here(features)


@dataclass(frozen=True, slots=True)
class CloudOnly(Policy):
    """Everything that may leave, leaves."""

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """The cloud if there is one for it, else local."""
        option = _option(features, snapshot)
        return _here(features) if option is None else _away(option, Reason.CLOUD_ONLY_MODEL)


@dataclass(frozen=True, slots=True)
class FixedDepth(Policy):
    """The cloud while more than `depth` requests wait in the engine for their first step."""

    depth: int

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        option, engine = _option(features, snapshot), snapshot.engine
        if option is None or engine is None or engine.waiting <= self.depth:
            return _here(features)
        return _away(option, Reason.QUEUE_DEPTH)


CLOUD_TOKENS_PER_S = 60.0
"""How fast a cloud is taken to answer where a policy counts the calls open to it."""


@dataclass(slots=True)
class Spillover(Policy):
    """llama-swap's selector with the engine and the cloud as its two targets (`internal/server/selector.go`).

    The engine is loaded, so it is among the active targets; the cloud is while a call to it is open. While the least
    busy active target has fewer than `spillover` calls, it gets the next one, in turn where they are equally busy; past
    that, a target that is not active is opened, and past that the least busy again. So once a cloud call is open, a
    request goes wherever fewer are, though the engine has room. The original counts only calls through the selector;
    here pinned ones, which would name the engine, are counted too.
    """

    spillover: int
    local_open: int = 0
    _spilled: int = 0
    _turns: int = 0
    _ends_s: list[float] = field(default_factory=list)

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        option = _option(features, snapshot)
        if option is None:
            return _here(features)
        here = self.local_open
        # Answers that are over by now are not among those open.
        away = self._spilled - sum(end_s <= now_s for end_s in self._ends_s)
        if away == 0:
            return _here(features) if here < self.spillover else _away(option, Reason.QUEUE_DEPTH)
        if here < away or (here == away and self._turns % 2 == 0):
            return _here(features)
        return _away(option, Reason.QUEUE_DEPTH)

    def observe(self, seen: Seen, budget_s: float) -> None:
        """Counts what is open at either target."""
        while self._ends_s and self._ends_s[0] <= seen.at_s:
            heapq.heappop(self._ends_s)
            self._spilled -= 1
        if seen.target is Target.CLOUD:
            if seen.ttft_s is None:
                self._spilled += 1
                self._turns += 1
            else:
                heapq.heappush(self._ends_s, seen.at_s + (seen.output_tokens or 0) / CLOUD_TOKENS_PER_S)
        elif seen.output_tokens is not None:
            self.local_open -= 1
        elif seen.ttft_s is None:
            self.local_open += 1
            self._turns += 1


@dataclass(slots=True)
class AdmissionLimits(Policy):
    """vLLM's `max_num_queued_reqs` and `max_num_queued_tokens`; what they refuse goes to the cloud, at no loss of time.

    The first counts waiting and running requests: `requests`, by default as many as run at a time. The second is meant
    to be the TTFT budget times the prefill rate: here that of full steps beside what decodes in the engine just now. It
    is compared with the whole prompts of all requests without a first token, the new one's not among them; chunks
    computed and prefix hits are not credited (`vllm/v1/engine/async_llm.py`, `check_admission`). Pinned requests are
    counted, but not refused.
    """

    requests: int | None = None
    _queued_tokens: int = 0
    _prompts: dict[str, int] = field(default_factory=dict)

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        option, engine = _option(features, snapshot), snapshot.engine
        if option is None or engine is None:
            return _here(features)
        most = engine.max_sequences if self.requests is None else self.requests
        if engine.in_flight + features.choices > most:
            return _away(option, Reason.QUEUE_DEPTH)
        tokens_per_s = _prefill_tokens_per_s(engine)
        if tokens_per_s is not None and self._queued_tokens >= features.ttft_budget_s * tokens_per_s:
            return _away(option, Reason.QUEUE_DEPTH)
        return _here(features)

    def observe(self, seen: Seen, budget_s: float) -> None:
        """Counts the prompts that have no first token yet."""
        if seen.target is not Target.LOCAL:
            return
        if seen.ttft_s is not None:
            self._queued_tokens -= self._prompts.pop(seen.request_id, 0)
        elif seen.output_tokens is None:
            self._prompts[seen.request_id] = seen.prompt_tokens
            self._queued_tokens += seen.prompt_tokens


def _prefill_tokens_per_s(engine: EngineLoad) -> float | None:
    step = engine.step
    if step is None:
        return None
    room = max(1, engine.max_batched_tokens - engine.running)
    return room / step.step_s(engine.running, room)


@dataclass(frozen=True, slots=True)
class PredictedTtft(Policy):
    """The cloud when the TTFT predicted on arrival, behind all that is in the engine, is over `factor` of the budget.

    The prediction is the node's own, without a queue of the node. An engine too cold to predict is trusted while a
    sequence is free.
    """

    factor: float

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        option, engine = _option(features, snapshot), snapshot.engine
        if option is None or engine is None:
            return _here(features)
        forecast = predict_ttft_s(features, engine, QueueLoad())
        if forecast is None:
            return _here(features) if engine.in_flight < engine.max_sequences else _away(option, Reason.QUEUE_DEPTH)
        ttft_s = forecast.ttft_s
        if ttft_s > self.factor * features.ttft_budget_s:
            return _away(option, Reason.PREDICTED_LATE, ttft_s)
        return _here(features, ttft_s)


_WINDOW, _ENOUGH = 100, 20
_DWELL_S, _IDLE_S = 30.0, 300.0
_FLOOR, _STEP = 0.05, 0.05


@dataclass(slots=True)
class AimdShare(Policy):
    """control-layer's share of traffic for the engine, with its defaults (`onwards/src/aimd.rs`). Of the last 100 local
    answers, at least 20: more than a tenth late, and the share is cut to 0.8 of it and a new window begun; at most 3 %
    late for 30 s, and it is up by a twentieth. At most one change in 30 s, never below 5 %, and up by a twentieth for
    every 300 s in which there were too few answers to judge.

    Its budget of 10 s is the request's own TTFT budget here. One that is late counts when its deadline passes, not when
    it is answered at last; one sent under an older share does not count. Which request is in the share is drawn by its
    id, so that it does not hang on when it is asked. The original also moves a late call to the next provider; here it
    stays where it is.
    """

    seed: int = 0
    share: float = 1.0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _open: dict[str, tuple[float, int]] = field(default_factory=dict)  # deadline and generation, as sent
    _generation: int = 0
    _changed_s: float = 0.0
    _healthy_since_s: float | None = None

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        option = _option(features, snapshot)
        if option is None or random.Random(f"{self.seed}/{features.request_id}").random() < self.share:
            return _here(features)
        return _away(option, Reason.PREDICTED_LATE)

    def observe(self, seen: Seen, budget_s: float) -> None:
        """Counts answers in time and late ones; both change the share."""
        while self._open:
            request_id, (deadline_s, generation) = next(iter(self._open.items()))
            if deadline_s >= seen.at_s:
                break
            del self._open[request_id]
            self._answered(generation, deadline_s, late=True)
        sent = seen.ttft_s is None and seen.output_tokens is None
        if sent:
            self._recover_idle(seen.at_s)
        if seen.target is not Target.LOCAL:
            return
        if sent:
            self._open[seen.request_id] = (seen.at_s + budget_s, self._generation)
        elif seen.ttft_s is not None and (found := self._open.pop(seen.request_id, None)) is not None:
            self._answered(found[1], seen.at_s, late=False)

    def _recover_idle(self, now_s: float) -> None:
        steps = int((now_s - self._changed_s) / _IDLE_S)
        if steps > 0 and self.share < 1.0 and len(self._recent) < _ENOUGH:
            self.share = min(1.0, self.share + steps * _STEP)
            self._changed_s += steps * _IDLE_S
            self._healthy_since_s = None

    def _answered(self, generation: int, at_s: float, *, late: bool) -> None:
        if generation != self._generation:
            return
        self._recent.append(late)
        if len(self._recent) < _ENOUGH:
            return
        breached = sum(self._recent) / len(self._recent)
        settled = at_s - self._changed_s >= _DWELL_S
        if breached > 0.03:
            self._healthy_since_s = None
            if breached > 0.10 and settled and self.share > _FLOOR:
                self.share = max(_FLOOR, self.share * 0.8)
                self._changed_s = at_s
                self._generation += 1
                self._recent.clear()
            return
        if self._healthy_since_s is None:
            self._healthy_since_s = at_s
        if self.share < 1.0 and settled and at_s - self._healthy_since_s >= _DWELL_S:
            self.share = min(1.0, self.share + _STEP)
            self._changed_s = self._healthy_since_s = at_s


@dataclass(frozen=True, slots=True)
class CostAndLatency(Policy):
    """The rule as it is often told: local if the model's nominal latency fits the latency budget, else the cloud if its
    price fits the cost budget, else local all the same. How loaded the engine is does not enter.

    Nominal is what an idle engine takes for this prompt. `cost_nano_usd` is the budget of a request without one.
    """

    cost_nano_usd: int

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        option, engine = _option(features, snapshot), snapshot.engine
        if option is None or option.price is None or engine is None or engine.step is None:
            return _here(features)
        tokens = features.uncached_tokens_estimate
        steps = math.ceil(tokens / engine.max_batched_tokens)
        if steps * engine.step.base_s + tokens * engine.step.per_prefill_token_s <= features.ttft_budget_s:
            return _here(features)
        most = self.cost_nano_usd if features.cost_budget_nano_usd is None else features.cost_budget_nano_usd
        output = round(min(features.max_output_tokens, features.output_tokens_estimate))
        if option.price.cost_of_nano_usd(features.prompt_tokens_estimate, output) > most:
            return _here(features)
        return _away(option, Reason.PREDICTED_LATE)


DEFAULT_COST_USD = Decimal("0.001")


def _plain(policy: Callable[[], Policy]) -> Callable[[str, str], Policy]:
    def make(text: str, argument: str) -> Policy:
        if argument:
            raise SettingsError(f"policy {text!r}: {text.partition(':')[0]} takes no number")
        return policy()

    return make


def _count(text: str, argument: str, least: int) -> int:
    if not (argument.isascii() and argument.isdigit() and len(argument) <= 9 and int(argument) >= least):
        raise SettingsError(f"policy {text!r}: expected a whole number from {least} on after the colon")
    return int(argument)


def _vllm(text: str, argument: str) -> Policy:
    return AdmissionLimits(_count(text, argument, 1) if argument else None)


def _predicted(text: str, argument: str) -> Policy:
    try:
        factor = float(argument)
    except ValueError:
        factor = math.nan
    if not 0 < factor <= 100:
        raise SettingsError(f"policy {text!r}: expected a factor above 0, such as 0.5, after the colon")
    return PredictedTtft(factor)


def _article(text: str, argument: str) -> Policy:
    try:
        usd = Decimal(argument) if argument else DEFAULT_COST_USD
    except InvalidOperation:
        usd = Decimal(-1)
    if not (usd.is_finite() and 0 <= usd <= 1000):
        raise SettingsError(f"policy {text!r}: expected dollars per request, such as 0.001, after the colon")
    return CostAndLatency(usd_to_nano(usd))


_MAKERS: dict[str, tuple[str, Callable[[str, str], Policy]]] = {
    "overflow": ("overflow", _plain(lambda: TargetsPolicy(OverflowPolicy(Limits())))),
    "local": ("local", _plain(LocalOnly)),
    "cloud": ("cloud", _plain(CloudOnly)),
    "depth": ("depth:N", lambda text, argument: FixedDepth(_count(text, argument, 0))),
    "spillover": ("spillover:N", lambda text, argument: Spillover(_count(text, argument, 1))),
    "vllm": ("vllm[:REQUESTS]", _vllm),
    "aimd": ("aimd", _plain(AimdShare)),
    "predicted": ("predicted:F", _predicted),
    "article": ("article[:USD]", _article),
}
KNOWN_POLICIES = ", ".join(spelled for spelled, _ in _MAKERS.values())


def make_policy(text: str) -> Policy:
    """A new policy by its text, as in the table of this module. Stateful ones are good for one replay.

    Raises `SettingsError` naming the known ones, or what is wrong with the number.
    """
    name, _, argument = text.partition(":")
    if name not in _MAKERS:
        raise SettingsError(f"policy {text!r}: not known; there are {KNOWN_POLICIES}")
    return _MAKERS[name][1](text, argument)
