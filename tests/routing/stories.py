"""One request, one engine, one cloud: the values the routing stories vary."""

from dataclasses import replace
from decimal import Decimal

from node.money import Price
from node.routing.policy import OverflowPolicy
from node.routing.profile import StepModel
from node.routing.values import (
    Capability,
    CloudOption,
    EngineLoad,
    EngineState,
    Features,
    Limits,
    Reason,
    Residency,
    Snapshot,
    Target,
)

POLICY = OverflowPolicy(Limits())
REQUEST = Features(
    request_id="r",
    model="demo",
    residency=Residency.ANY,
    prompt_bytes=400,
    prompt_tokens_estimate=100,
    prompt_tokens_bound=500,
    max_output_tokens=100,
    choices=1,
    needs=frozenset(),
    prefer_local=False,
    ttft_budget_s=2.0,
    latency_budget_s=None,
    cost_budget_nano_usd=None,
    arrived_s=1000.0,
    give_up_s=1060.0,
)
ENGINE = EngineLoad(
    state=EngineState.READY,
    capabilities=frozenset({Capability.TOOLS}),
    context_tokens=4096,
    max_sequences=4,
    step=StepModel(base_s=0.02, per_decode_s=0.0, per_prefill_token_s=0.001),
    sequences_per_s=2.0,
)
CLOUD = CloudOption(
    provider="holysheep",
    model="deepseek-v3.2",
    capabilities=frozenset({Capability.TOOLS, Capability.VISION}),
    context_tokens=100_000,
    max_output_tokens=None,
    price=Price(Decimal(1), Decimal(2)),
    ttft_high_s=0.6,
    ttft_likely_s=0.35,
)
IDLE = Snapshot(engine=ENGINE, cloud=(CLOUD,))
FULL = replace(IDLE, engine=replace(ENGINE, in_flight=5, running=4))
SLOW = replace(ENGINE, step=StepModel(base_s=0.02, per_decode_s=0.0, per_prefill_token_s=0.03))
"""Its prefill of REQUEST takes three seconds, and REQUEST has two."""
PINNED = replace(REQUEST, residency=Residency.PREMISES)


def decide(request: Features = REQUEST, snapshot: Snapshot = IDLE, after_s: float = 0.0) -> tuple[Target, Reason]:
    """What the default policy says `after_s` seconds after the request came."""
    decision = POLICY.decide(request, snapshot, request.arrived_s + after_s)
    return decision.target, decision.reason
