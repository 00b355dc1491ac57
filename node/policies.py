"""The routing policy of each model as the settings have it, and how a reload exchanges it."""

from __future__ import annotations

from node.dispatch.hedging import Hedging
from node.routing.policy import OverflowPolicy, Policy
from node.routing.retry_budget import RetryBudget, RetryLimits
from node.routing.targets import TargetsPolicy
from node.routing.values import Decision, Features, Limits, Snapshot
from node.settings import Settings


class ChangeablePolicy:
    """A policy whose limits can be exchanged under the lane that uses it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """What the policy of the moment says."""
        return self.policy.decide(features, snapshot, now_s)

    def is_worth_asking(self, features: Features, snapshot: Snapshot) -> bool:
        """What the policy of the moment says."""
        return self.policy.is_worth_asking(features, snapshot)


def policy_for(settings: Settings) -> TargetsPolicy:
    """The policy with the settings' limits."""
    routing = settings.routing
    limits = Limits(
        max_queue_depth=routing.max_queue_depth,
        max_kv_cache_usage=routing.max_kv_cache_usage,
        min_free_vram_bytes=routing.min_free_vram_bytes,
        feed_ahead=routing.feed_ahead,
        margin_s=routing.margin_ms / 1000,
        feed_s=None if routing.feed_ms is None else routing.feed_ms / 1000,
        tpot_budget_s=None if routing.tpot_budget_ms is None else routing.tpot_budget_ms / 1000,
    )
    return TargetsPolicy(OverflowPolicy(limits))


def hedging_for(settings: Settings) -> Hedging | None:
    """How copies may be sent, None for never."""
    routing = settings.routing
    if routing.hedge_share == 0.0:
        return None
    budget = RetryBudget(RetryLimits(share=routing.hedge_share, at_least=1.0))
    return Hedging(budget, routing.margin_ms / 1000)
