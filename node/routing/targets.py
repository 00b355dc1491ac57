"""More than one place to send a request to: which of them it may go to, and which of those comes first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from node.routing.policy import Policy, pinned_reason
from node.routing.values import CloudOption, Decision, Features, Reason, Residency, Snapshot, Target, Zone


@dataclass(frozen=True, slots=True)
class TargetsPolicy(Policy):
    """`inner`, shown only what each request may use, best first. It decides by the first option that will do.

    1. A pinned request starts in the engine here while that keeps its promise. Else it is shown the providers on the
       premises, and is then one like any other: so it goes there when the engine would be late, or cannot do it. Where
       there is none of them, it is pinned to this engine.
    2. Who began a conversation whose tool call is open comes first.
    3. Those who can still answer in time come before those who cannot; of these, the quickest. Else the order stays as
       it is given: the balancer's.
    """

    inner: Policy

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """See the class."""
        if not features.may_leave:
            return self._decide_pinned(features, snapshot, now_s)
        return self.inner.decide(features, _in_order(features, snapshot, now_s), now_s)

    def is_worth_asking(self, features: Features, snapshot: Snapshot) -> bool:
        """As `inner` says."""
        return self.inner.is_worth_asking(features, snapshot)

    def _decide_pinned(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        here = self.inner.decide(features, snapshot, now_s)
        premises = tuple(option for option in snapshot.cloud if option.zone is Zone.PREMISES)
        if not premises or (here.target is Target.LOCAL and _is_in_time(features, here, now_s)):
            return here
        shown = _in_order(features, replace(snapshot, cloud=premises), now_s)
        decision = self.inner.decide(replace(features, residency=Residency.ANY), shown, now_s)
        if decision.target is Target.LOCAL:
            return replace(decision, reason=pinned_reason(features))
        if decision.target is Target.REFUSE:
            return replace(decision, reason=_REFUSED_PINNED.get(decision.reason, decision.reason))
        return here if decision.target is Target.WAIT and here.target is Target.LOCAL else decision


_REFUSED_PINNED = {
    Reason.NOT_SERVABLE: Reason.PRIVATE_NOT_SERVABLE,
    Reason.NO_CLOUD_EQUIVALENT: Reason.NO_PREMISES_CAPACITY,
    Reason.NO_PROVIDER: Reason.NO_PREMISES_CAPACITY,
}


def _is_in_time(features: Features, decision: Decision, now_s: float) -> bool:
    """Whether a start here is expected to keep the promise; an engine too cold to tell is trusted."""
    ttft_s = decision.predicted_ttft_s
    return ttft_s is None or now_s + ttft_s <= features.arrived_s + features.ttft_budget_s


def _in_order(features: Features, snapshot: Snapshot, now_s: float) -> Snapshot:
    """`snapshot` with its cloud options in the order of rules 2 and 3."""
    if len(snapshot.cloud) < 2:
        return snapshot
    budget_s = features.ttft_budget_s
    if features.latency_budget_s is not None:
        budget_s = min(budget_s, features.latency_budget_s)
    left_s = features.arrived_s + budget_s - now_s

    def rank(option: CloudOption) -> tuple[bool, float]:
        return option.provider != features.stay_with, max(0.0, option.ttft_high_s - left_s)

    ordered = tuple(sorted(snapshot.cloud, key=rank))
    return snapshot if ordered == snapshot.cloud else replace(snapshot, cloud=ordered)
