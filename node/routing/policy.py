"""The rules, in order. The live node and the trace simulator call the same object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.routing.forecast import (
    beyond_step,
    feed_tokens,
    kv_limit,
    local_work_s,
    pinned_share,
    predict_total_s,
    predict_ttft_s,
)
from node.routing.frozen import value
from node.routing.observer import doubted_s
from node.routing.permit import worst_case_nano_usd
from node.routing.values import (
    CONTENT,
    CloudOption,
    Decision,
    EngineLoad,
    EngineState,
    Features,
    Limits,
    QueueLoad,
    Reason,
    Snapshot,
    Target,
)

LOCAL = "local"
"""The local engine's name among backends."""


class Policy(Protocol):
    """Anything that can decide."""

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """Where `features` should go, given `snapshot`, at `now_s`. Changes nothing."""

    def is_worth_asking(self, features: Features, snapshot: Snapshot) -> bool:
        """Whether one that waits, whose time to be asked again has not come, might be told anything but to wait on.

        False saves a decision for every step of the engine.
        """
        return True


@value(frozen=True, slots=True)
class _Cloud:
    """What the cloud offers one request: the option to take, or the rule that refuses the one there would be.

    Both are None when the catalogue declares nothing that can do what the request asks for; `too_long` says that
    something could, were the prompt shorter. `away` is an option that lacks nothing but its provider.
    """

    option: CloudOption | None = None
    refused_by: Reason | None = None
    away: CloudOption | None = None
    too_long: bool = False


@value(frozen=True, slots=True)
class _Outlook:
    """How a request would fare here: what keeps it from being handed over now, and when its first token would come.

    `late` is None while the engine is too cold to tell.
    """

    obstacle: Reason | None
    ttft_s: float | None
    late: bool | None


_FEED_AHEAD = 8  # sequences the engine can run for each that it may hold beyond them
_LEAST_FEED = 0.25  # of a feed: a cut below that is no feed at all
_HOPE = 1.5  # a prediction this many times what is left of the budget is not worth waiting for
_WORTH_MORE = 1.1  # how much more another request must be worth to send a waiting one away in its place


@dataclass(frozen=True, slots=True)
class OverflowPolicy(Policy):
    """Local while it keeps the promise, the cloud at the last safe moment, and never out of turn.

    First match wins:

     1. Pinned to the premises: local, waiting in the node's queue if it must; where no engine can do it, refused.
     2. A cached answer the caller may see: cache.
     3. Something only one side can do, as long a prompt, or output that the client set, among it: that side. Neither
        can: refused. A conversation in the middle of a tool call: the side that began it, while that keeps the promise.
     4. Engine ready, below the hard limits, room in it, nobody ahead, and the predicted TTFT (and total time, if
        budgeted) inside the budget: local. An engine too cold to predict is trusted while it has room.
     5. Otherwise wait in the node's own queue. The last safe moment to leave is deadline - the provider's
        high-percentile TTFT - margin. At that moment those stay whose turn is predicted to come in time; the others go
        to the cloud. One that stayed is asked again now and then, and leaves if its turn no longer comes in time while
        the cloud still may answer so. Before the last safe moment, one that would be late takes the place of a waiting
        one ahead of it that is cheaper to send away, if that is enough; and if it would be late by far, it leaves at
        once.
     6. Cloud refused (pinned, no provider, unknown price, cost cap): room in the engine is taken even if late; else
        wait up to `give_up_s`, then refuse, naming the rule. Where only the provider was away, it is asked for once
        more at the last safe moment.
    """

    limits: Limits

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class. `Target.WAIT` means: ask again when the engine has moved on, or at `leave_at_s`."""
        engine = snapshot.engine
        pinned = not features.may_leave
        local_can = engine is not None and features.needs <= engine.capabilities

        # 1. residency
        if pinned and not local_can:
            return _refuse(Reason.PRIVATE_NOT_SERVABLE)

        # 2. cache
        if snapshot.cached:
            return Decision(target=Target.CACHE, reason=Reason.CACHE_HIT)

        # 3. what only one side can do, or has begun
        cloud = _Cloud() if pinned else _choose_cloud(features, snapshot.cloud)
        if engine is None or not local_can:
            if cloud.option is None:
                return _refuse(cloud.refused_by or (Reason.CONTEXT_LENGTH if cloud.too_long else Reason.NOT_SERVABLE))
            reason = Reason.CLOUD_ONLY_MODEL if engine is None else Reason.CLOUD_ONLY_FEATURE
            return Decision(target=Target.CLOUD, reason=reason, cloud=cloud.option)
        if cloud.option is not None:
            if features.prompt_tokens_estimate >= engine.context_tokens or not _fits(features, engine.context_tokens):
                return Decision(target=Target.CLOUD, reason=Reason.CLOUD_ONLY_LENGTH, cloud=cloud.option)
            if features.stay_with == cloud.option.provider and not features.prefer_local:
                return Decision(target=Target.CLOUD, reason=Reason.SAME_CONVERSATION, cloud=cloud.option)

        # 4. local, if it keeps the promise
        outlook = self._outlook(features, snapshot, engine, now_s)
        if outlook.obstacle is None and not outlook.late:
            reason = _local_reason(features, snapshot, cloud)
            return Decision(target=Target.LOCAL, reason=reason, predicted_ttft_s=outlook.ttft_s)

        # 5. wait for its turn, but not past the last safe moment, nor in vain
        if cloud.option is not None:
            return self._leave_or_wait(features, snapshot, engine, cloud.option, outlook, now_s)

        # 6. it cannot leave: late is better than never, up to the deadline
        rule = cloud.refused_by or (Reason.NO_PREMISES_CAPACITY if pinned else Reason.NO_CLOUD_EQUIVALENT)
        if outlook.obstacle is None:
            reason = cloud.refused_by or _local_reason(features, snapshot, cloud)
            return Decision(target=Target.LOCAL, reason=reason, predicted_ttft_s=outlook.ttft_s)
        hopeless = outlook.obstacle is Reason.QUEUE_DEPTH or engine.state is EngineState.DOWN
        if hopeless or now_s >= features.give_up_s:
            return _refuse(rule, retry_after_s=outlook.ttft_s)
        leave_at_s = None if cloud.away is None else self._last_moment_s(features, cloud.away.ttft_high_s)
        if leave_at_s is not None and now_s >= leave_at_s:
            leave_at_s = None
        return Decision(target=Target.WAIT, reason=rule, leave_at_s=leave_at_s, predicted_ttft_s=outlook.ttft_s)

    def is_worth_asking(self, features: Features, snapshot: Snapshot) -> bool:
        """Unless there is just no room for it."""
        engine = snapshot.engine
        return engine is None or self._obstacle(features, snapshot, engine) is not Reason.NO_SLOT

    def _outlook(self, features: Features, snapshot: Snapshot, engine: EngineLoad, now_s: float) -> _Outlook:
        obstacle = self._obstacle(features, snapshot, engine)
        forecast = predict_ttft_s(features, engine, snapshot.queue, self.limits)
        if forecast is None:
            return _Outlook(obstacle, None, None)
        spent_s = now_s - features.arrived_s
        doubt = engine.ttft_doubt if obstacle is None else engine.queue_doubt
        cautious_ttft_s = doubted_s(forecast.ttft_s, doubt) + forecast.wait_s * self.limits.wait_doubt
        late = spent_s + cautious_ttft_s > features.ttft_budget_s
        if not late and features.latency_budget_s is not None:
            total_s = predict_total_s(features, engine, cautious_ttft_s)
            late = total_s is not None and spent_s + total_s > features.latency_budget_s
        return _Outlook(obstacle, forecast.ttft_s, late)

    def _obstacle(self, features: Features, snapshot: Snapshot, engine: EngineLoad) -> Reason | None:
        """What stands between the request and the engine right now, whatever the time: None, or the first of
        a state other than ready, a hard limit, no room."""
        limits, queue = self.limits, snapshot.queue
        if engine.state is not EngineState.READY:
            return Reason.ENGINE_NOT_READY
        if limits.max_kv_cache_usage is not None and (engine.kv_cache_usage or 0.0) > limits.max_kv_cache_usage:
            return Reason.KV_CACHE_USAGE
        if (
            limits.min_free_vram_bytes is not None
            and snapshot.vram_free_bytes is not None
            and snapshot.vram_free_bytes < limits.min_free_vram_bytes
        ):
            return Reason.LOW_VRAM
        if self._has_room(features, engine, queue):
            return None
        if limits.max_queue_depth is not None and queue.depth >= limits.max_queue_depth and not queue.waited:
            return Reason.QUEUE_DEPTH
        return Reason.NO_SLOT

    def _has_room(self, features: Features, engine: EngineLoad, queue: QueueLoad) -> bool:
        """Whether the engine is to be given the request now: just enough for it to stay busy."""
        if queue.sequences_ahead:
            return False
        if engine.in_flight == 0:
            return True  # an empty engine takes one wider than itself; nothing else could ever make room for it
        pinned = not features.may_leave
        most = engine.max_sequences
        step = engine.step
        if self.limits.tpot_budget_s is not None and step is not None and step.per_decode_s > 0:
            most = max(1, int(min(most, (self.limits.tpot_budget_s - step.base_s) / step.per_decode_s)))
        reserved = 0.0 if pinned else queue.reserved_sequences
        if reserved > most / 2:
            reserved = most / 2
        ahead = max(1, most // _FEED_AHEAD) if self.limits.feed_ahead is None else self.limits.feed_ahead
        if features.choices > most + ahead - reserved - engine.in_flight:
            return False
        left = 1.0 if pinned else 1.0 - pinned_share(engine, queue)
        if left < _LEAST_FEED:
            return False
        # One that shared its step with another would be as late as both of them take.
        waiting_tokens = beyond_step(engine, queue)
        if waiting_tokens:
            # A feed for each step that is not put together yet when the one under way ends, or when the first begins.
            idle = engine.running == 0 and engine.stepping_tokens == 0
            feed = feed_tokens(features, engine, self.limits) * (1 + engine.steps_ahead + idle) * left
            if waiting_tokens + features.uncached_tokens_estimate > feed:
                return False
        limit = kv_limit(features, engine, queue, self.limits)
        if limit is None or engine.kv_tokens is None or engine.kv_cache_usage is None or engine.running == 0:
            return True
        held = engine.kv_cache_usage * engine.kv_tokens + engine.queued_prefill_tokens + queue.entering_tokens
        return held + features.prompt_tokens_estimate <= limit

    def _leave_or_wait(
        self,
        features: Features,
        snapshot: Snapshot,
        engine: EngineLoad,
        option: CloudOption,
        outlook: _Outlook,
        now_s: float,
    ) -> Decision:
        """Rule 5 for a request with a cloud option that cannot start locally in time right now."""
        obstacle, ttft_s, queue = outlook.obstacle, outlook.ttft_s, snapshot.queue
        stays_here = features.prefer_local or features.stay_with == LOCAL
        leave_at_s = self._last_moment_s(features, option.ttft_high_s)
        safe = now_s < leave_at_s
        if obstacle is None and (stays_here or (not safe and _is_sooner(engine, ttft_s, option))):
            reason = (
                Reason.PREFERS_LOCAL if stays_here else Reason.SLOT_OPENED if queue.waited else Reason.WITHIN_BUDGET
            )
            return Decision(target=Target.LOCAL, reason=reason, predicted_ttft_s=ttft_s)
        worth = _worth(features, engine, option)
        displaces: str | None = None
        leave: Reason | None = None
        if obstacle is Reason.QUEUE_DEPTH or (obstacle is Reason.ENGINE_NOT_READY and not (stays_here and safe)):
            leave = obstacle
        elif obstacle is not None and obstacle is not Reason.NO_SLOT:
            leave = None if safe else obstacle
        elif outlook.late is None or (stays_here and safe):
            leave = None if safe else Reason.LAST_MOMENT
        elif not outlook.late:
            pass  # its turn comes in time: past the last safe moment it stays for good
        elif queue.kept:
            leave = Reason.LAST_MOMENT if self._is_better_off(features, engine, option, ttft_s, now_s) else None
        elif not safe:
            leave = Reason.LAST_MOMENT
        else:
            assert ttft_s is not None
            left_s = features.arrived_s + features.ttft_budget_s - now_s
            displaces = self._to_displace(features, engine, queue, worth, ttft_s, left_s)
            if displaces is None and (obstacle is None or ttft_s > _HOPE * left_s):
                leave = Reason.PREDICTED_LATE
        if leave is None and not safe and now_s >= features.give_up_s:
            leave = Reason.LAST_MOMENT  # whatever it hoped for here
        if leave is not None:
            return Decision(target=Target.CLOUD, reason=leave, cloud=option, predicted_ttft_s=ttft_s)
        return Decision(
            target=Target.WAIT,
            reason=obstacle or Reason.NO_SLOT,
            cloud=option,
            leave_at_s=leave_at_s if safe else None,
            look_at_s=None if safe else self._last_moment_s(features, option.ttft_likely_s),
            worth=worth if safe else None,
            displaces=displaces,
            predicted_ttft_s=ttft_s,
        )

    def _is_better_off(
        self, features: Features, engine: EngineLoad, option: CloudOption, ttft_s: float | None, now_s: float
    ) -> bool:
        """Whether one that stayed past its last safe moment should leave after all.

        It was to come in time and does not. As long as the cloud is more likely than not to be in time, it leaves;
        later, it would be late there too, and goes where it is likely to be less so.
        """
        in_time_there = now_s <= self._last_moment_s(features, option.ttft_likely_s)
        return in_time_there or not _is_sooner(engine, ttft_s, option)

    def _to_displace(
        self,
        features: Features,
        engine: EngineLoad,
        queue: QueueLoad,
        worth: float | None,
        ttft_s: float,
        left_s: float,
    ) -> str | None:
        """A waiting request ahead of this one that is cheaper to send away, and whose leaving would be enough."""
        other, step = queue.cheapest, engine.step
        if other is None or worth is None or step is None or other.request_id == features.request_id:
            return None
        if not other.is_ahead or other.worth * _WORTH_MORE >= worth:
            return None
        room = max(1, engine.max_batched_tokens - engine.running)
        spared_s = other.prompt_tokens * (step.per_prefill_token_s + step.base_s / room)
        return other.request_id if doubted_s(max(0.0, ttft_s - spared_s), engine.queue_doubt) <= left_s else None

    def _last_moment_s(self, features: Features, cloud_ttft_s: float) -> float:
        """The latest time at which leaving for a first token in `cloud_ttft_s` still meets the deadline."""
        budget_s = features.ttft_budget_s
        if features.latency_budget_s is not None:
            budget_s = min(budget_s, features.latency_budget_s)
        return features.arrived_s + budget_s - cloud_ttft_s - self.limits.margin_s


def _is_sooner(engine: EngineLoad, ttft_s: float | None, option: CloudOption) -> bool:
    """Whether a request that will be late either way is likely to be answered sooner here."""
    return ttft_s is not None and doubted_s(ttft_s, engine.ttft_doubt) <= option.ttft_high_s


def _worth(features: Features, engine: EngineLoad, option: CloudOption) -> float | None:
    """What the request is expected to cost at `option`, in nano-dollars per second of the engine's time that it takes
    here: prompt and answer, since whoever runs beside it pays for both."""
    work_s = local_work_s(features, engine)
    if work_s is None or option.price is None:
        return None
    output = round(features.choices * min(features.max_output_tokens, features.output_tokens_estimate))
    return option.price.cost_of_nano_usd(features.prompt_tokens_estimate, output) / work_s


def _fits(features: Features, context_tokens: int, option: CloudOption | None = None) -> bool:
    """Whether as much output as the client set could be written; what only the prompt leaves no room for is clipped."""
    if not features.asks_output:
        return True
    most = option.max_output_tokens if option is not None and option.max_output_tokens is not None else context_tokens
    return features.max_output_tokens <= min(most, context_tokens)


def _choose_cloud(features: Features, options: tuple[CloudOption, ...]) -> _Cloud:
    """The first declared equivalent that can do it, is up, has a price and fits the request's cost cap."""
    refused_by: Reason | None = None
    away: CloudOption | None = None
    too_long = False
    for option in options:
        if not features.needs <= option.capabilities or not _fits(features, option.context_tokens, option):
            continue
        if features.prompt_tokens_estimate >= option.context_tokens:
            too_long = True
            continue
        worst_nano_usd = worst_case_nano_usd(features, option)
        if worst_nano_usd is None:
            refused_by = refused_by or Reason.UNKNOWN_PRICE
        elif features.cost_budget_nano_usd is not None and worst_nano_usd > features.cost_budget_nano_usd:
            refused_by = refused_by or Reason.COST_BUDGET
        elif not option.available:
            refused_by, away = refused_by or Reason.NO_PROVIDER, away or option
        else:
            return _Cloud(option=option)
    return _Cloud(refused_by=refused_by, away=away, too_long=too_long)


def _local_reason(features: Features, snapshot: Snapshot, cloud: _Cloud) -> Reason:
    """Why a request that starts locally does."""
    if not features.may_leave:
        return pinned_reason(features)
    if snapshot.queue.waited:
        return Reason.SLOT_OPENED
    if cloud.option is None and cloud.refused_by is None:
        return Reason.LOCAL_ONLY_FEATURE if snapshot.cloud else Reason.NO_CLOUD_EQUIVALENT
    return Reason.WITHIN_BUDGET


def pinned_reason(features: Features) -> Reason:
    """Why a request that cannot leave is served here."""
    by_content = features.pinned_by is not None and features.pinned_by.startswith(CONTENT)
    return Reason.CONTENT_RULE if by_content else Reason.PINNED


def _refuse(rule: Reason, *, retry_after_s: float | None = None) -> Decision:
    return Decision(target=Target.REFUSE, reason=rule, retry_after_s=retry_after_s)
