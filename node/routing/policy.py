"""The rules, in order. The live node and the trace simulator call the same object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.routing.permit import worst_case_nano_usd
from node.routing.predict import predict_total_s, predict_ttft_s
from node.routing.values import (
    CloudOption,
    Decision,
    EngineLoad,
    EngineState,
    Features,
    Limits,
    Reason,
    Residency,
    Snapshot,
    Target,
)


class Policy(Protocol):
    """Anything that can decide."""

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """Where `features` should go, given `snapshot`, at `now_s`. Changes nothing."""


@dataclass(frozen=True, slots=True)
class _Cloud:
    """What the cloud offers one request: the option to take, or the rule that refuses the one there would be.

    Both are None when the catalogue declares nothing that can do what the request asks for; `too_long` says that
    something could, were the prompt shorter.
    """

    option: CloudOption | None = None
    refused_by: Reason | None = None
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class OverflowPolicy:
    """Local while it keeps the promise, the cloud at the last safe moment, and never out of turn.

    First match wins:

     1. Pinned to the premises: local, waiting in the node's queue if it must; where no engine can do it, refused.
     2. A cached answer the caller may see: cache.
     3. Something only one side can do: that side. Neither can: refused.
     4. Engine ready, below the hard limits, a slot free, and the predicted TTFT (and total time, if budgeted)
        inside the budget: local. An engine too cold to predict is trusted while a slot is free.
     5. Otherwise wait in the node's own queue up to the last safe moment (deadline - the provider's
        high-percentile TTFT - margin), then cloud. A wait that cannot end in time is not begun.
     6. Cloud refused (pinned, no provider, unknown price, cost cap): a free slot is taken even if late; else
        wait up to `give_up_s`, then refuse, naming the rule.
    """

    limits: Limits

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class. `Target.WAIT` means: ask again when a slot opens, or at `leave_at_s`."""
        engine = snapshot.engine
        pinned = features.residency is Residency.PREMISES
        local_can = engine is not None and features.needs <= engine.capabilities

        # 1. residency
        if pinned and not local_can:
            return _refuse(Reason.PRIVATE_NOT_SERVABLE)

        # 2. cache
        if snapshot.cached:
            return Decision(target=Target.CACHE, reason=Reason.CACHE_HIT)

        # 3. what only one side can do
        cloud = _Cloud() if pinned else _choose_cloud(features, snapshot.cloud)
        if engine is None or not local_can:
            if cloud.option is None:
                return _refuse(cloud.refused_by or (Reason.CONTEXT_LENGTH if cloud.too_long else Reason.NOT_SERVABLE))
            reason = Reason.CLOUD_ONLY_MODEL if engine is None else Reason.CLOUD_ONLY_FEATURE
            return Decision(target=Target.CLOUD, reason=reason, cloud=cloud.option)
        if cloud.option is not None and features.prompt_tokens_estimate >= engine.context_tokens:
            return Decision(target=Target.CLOUD, reason=Reason.CLOUD_ONLY_FEATURE, cloud=cloud.option)

        # 4. local, if it keeps the promise
        ttft_s = predict_ttft_s(features, engine, snapshot.queue, feed_ahead=self.limits.feed_ahead)
        obstacle = self._obstacle(features, snapshot, engine)
        late = ttft_s is not None and self._is_late(features, engine, ttft_s, now_s)
        if obstacle is None and not late:
            return Decision(
                target=Target.LOCAL,
                reason=_local_reason(features, snapshot, cloud),
                predicted_ttft_s=ttft_s,
            )

        # 5. wait for a slot, but not past the last safe moment, nor in vain
        if cloud.option is not None:
            return self._leave_or_wait(features, cloud.option, obstacle, late, ttft_s, now_s)

        # 6. it cannot leave: late is better than never, up to the deadline
        rule = cloud.refused_by or (Reason.NO_PREMISES_CAPACITY if pinned else Reason.NO_CLOUD_EQUIVALENT)
        if obstacle is None:
            reason = cloud.refused_by or _local_reason(features, snapshot, cloud)
            return Decision(target=Target.LOCAL, reason=reason, predicted_ttft_s=ttft_s)
        hopeless = obstacle is Reason.QUEUE_DEPTH or engine.state is EngineState.DOWN
        if hopeless or now_s >= features.give_up_s:
            return _refuse(rule, retry_after_s=ttft_s)
        return Decision(target=Target.WAIT, reason=rule, predicted_ttft_s=ttft_s)

    def _obstacle(self, features: Features, snapshot: Snapshot, engine: EngineLoad) -> Reason | None:
        """What stands between the request and the engine right now, whatever the time: None, or the first of
        a state other than ready, a hard limit, no free slot."""
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
        room = engine.max_sequences + limits.feed_ahead - engine.in_flight - queue.sequences_ahead
        # An empty engine takes a request wider than itself; nothing else could ever make room for it.
        if features.choices <= room or (engine.in_flight == 0 and queue.sequences_ahead == 0):
            return None
        if limits.max_queue_depth is not None and queue.depth >= limits.max_queue_depth and not queue.waited:
            return Reason.QUEUE_DEPTH
        return Reason.NO_SLOT

    def _is_late(self, features: Features, engine: EngineLoad, ttft_s: float, now_s: float) -> bool:
        """Whether a request handed to the engine now would probably miss its budget."""
        spent_s = now_s - features.arrived_s
        cautious_ttft_s = ttft_s / self.limits.ttft_safety
        if spent_s + cautious_ttft_s > features.ttft_budget_s:
            return True
        if features.latency_budget_s is None:
            return False
        total_s = predict_total_s(features, engine, cautious_ttft_s)
        return total_s is not None and spent_s + total_s > features.latency_budget_s

    def _leave_or_wait(
        self,
        features: Features,
        option: CloudOption,
        obstacle: Reason | None,
        late: bool,
        ttft_s: float | None,
        now_s: float,
    ) -> Decision:
        """Rule 5 for a request with a cloud option that cannot start locally in time right now."""
        if features.prefer_local and obstacle is None:
            return Decision(target=Target.LOCAL, reason=Reason.PREFERS_LOCAL, predicted_ttft_s=ttft_s)
        leave_at_s = self._last_moment_s(features, option)
        leave_now: Reason | None = None
        if obstacle is Reason.QUEUE_DEPTH:
            leave_now = obstacle
        elif now_s >= leave_at_s:
            leave_now = Reason.LAST_MOMENT if obstacle is Reason.NO_SLOT or obstacle is None else obstacle
        elif features.prefer_local:
            pass
        elif obstacle is Reason.ENGINE_NOT_READY:
            leave_now = obstacle
        elif late:
            leave_now = Reason.PREDICTED_LATE
        if leave_now is not None:
            return Decision(target=Target.CLOUD, reason=leave_now, cloud=option, predicted_ttft_s=ttft_s)
        return Decision(
            target=Target.WAIT,
            reason=obstacle or Reason.NO_SLOT,
            leave_at_s=leave_at_s,
            predicted_ttft_s=ttft_s,
        )

    def _last_moment_s(self, features: Features, option: CloudOption) -> float:
        """The latest time at which leaving for `option` still meets the first-token deadline."""
        budget_s = features.ttft_budget_s
        if features.latency_budget_s is not None:
            budget_s = min(budget_s, features.latency_budget_s)
        return features.arrived_s + budget_s - option.ttft_high_s - self.limits.margin_s


def _choose_cloud(features: Features, options: tuple[CloudOption, ...]) -> _Cloud:
    """The first declared equivalent that can do it, is up, has a price and fits the request's cost cap."""
    refused_by: Reason | None = None
    too_long = False
    for option in options:
        if not features.needs <= option.capabilities:
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
            refused_by = refused_by or Reason.NO_PROVIDER
        else:
            return _Cloud(option=option)
    return _Cloud(refused_by=refused_by, too_long=too_long)


def _local_reason(features: Features, snapshot: Snapshot, cloud: _Cloud) -> Reason:
    """Why a request that starts locally does."""
    if features.residency is Residency.PREMISES:
        return Reason.PINNED
    if snapshot.queue.waited:
        return Reason.SLOT_OPENED
    if cloud.option is None and cloud.refused_by is None:
        return Reason.LOCAL_ONLY_FEATURE if snapshot.cloud else Reason.NO_CLOUD_EQUIVALENT
    return Reason.WITHIN_BUDGET


def _refuse(rule: Reason, *, retry_after_s: float | None = None) -> Decision:
    return Decision(target=Target.REFUSE, reason=rule, retry_after_s=retry_after_s)
