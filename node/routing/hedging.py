"""When a second copy of a request is worth sending (Dean & Barroso, *The Tail at Scale*, 2013)."""

from __future__ import annotations

from node.routing.policy import LOCAL
from node.routing.values import CloudOption, Decision, Features, Target


def may_hedge(features: Features, decision: Decision) -> bool:
    """Whether a request that starts in the local engine may have a copy elsewhere: never a pinned one."""
    stays_here = features.prefer_local or features.stay_with == LOCAL
    return decision.target is Target.LOCAL and features.may_leave and not stays_here


def hedge_at_s(features: Features, decision: Decision, decided_s: float, option: CloudOption, margin_s: float) -> float:
    """When to send a copy to `option`, if there is no first token by then: at the last moment at which it would be safe
    to leave, but not before the engine was to begin."""
    last_moment_s = features.arrived_s + features.ttft_budget_s - option.ttft_high_s - margin_s
    return max(last_moment_s, decided_s + (decision.predicted_ttft_s or 0.0))
