"""A pinned request never leaves: over every state the node can be in, not only those somebody thought of."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.money import Price
from node.routing.permit import EgressForbidden, EgressPermit, grant, worst_case_nano_usd
from node.routing.policy import OverflowPolicy
from node.routing.profile import StepModel
from node.routing.values import (
    Capability,
    CloudOption,
    Decision,
    EngineLoad,
    EngineState,
    Features,
    Leaver,
    Limits,
    QueueLoad,
    Reason,
    Residency,
    Snapshot,
    Target,
)
from tests.routing.stories import CLOUD, PINNED, REQUEST

counts = st.integers(0, 50)
tokens = st.integers(1, 10_000)
seconds = st.floats(0, 100)
costs_s = st.floats(0, 1)
steps = st.builds(StepModel, base_s=st.floats(1e-6, 1), per_decode_s=costs_s, per_prefill_token_s=costs_s)
needs = st.frozensets(st.sampled_from([Capability.TOOLS, Capability.VISION, Capability.GUIDED]))
prices = st.builds(Price, st.decimals(0, 100, places=3), st.decimals(0, 100, places=3))

requests = st.builds(
    Features,
    request_id=st.just("r"),
    model=st.just("demo"),
    residency=st.sampled_from(Residency),
    prompt_bytes=tokens,
    prompt_tokens_estimate=tokens,
    prompt_tokens_bound=tokens,
    max_output_tokens=tokens,
    choices=st.integers(1, 8),
    needs=needs,
    prefer_local=st.booleans(),
    ttft_budget_s=st.floats(0.001, 100),
    latency_budget_s=st.none() | st.floats(0.001, 100),
    cost_budget_nano_usd=st.none() | st.integers(0, 10**9),
    arrived_s=st.just(1000.0),
    give_up_s=st.floats(1000, 1100),
    cached_tokens_estimate=st.just(0) | tokens,
    output_tokens_estimate=st.floats(1, 10_000),
    stay_with=st.none() | st.sampled_from(["local", "holysheep", "openai"]),
)
engines = st.builds(
    EngineLoad,
    state=st.sampled_from(EngineState),
    capabilities=needs,
    context_tokens=tokens,
    max_sequences=st.integers(1, 50),
    in_flight=counts,
    running=counts,
    waiting=counts,
    kv_cache_usage=st.none() | st.floats(0, 1),
    queued_prefill_tokens=counts,
    step=st.none() | steps,
    max_batched_tokens=tokens,
    kv_tokens=st.none() | tokens,
    sequences_per_s=st.none() | st.floats(0, 100),
    ttft_doubt=st.floats(0, 4),
)
leavers = st.builds(Leaver, request_id=st.just("other"), worth=st.floats(0, 1e9), prompt_tokens=tokens)
queues = st.builds(
    QueueLoad,
    depth=counts,
    waited=st.booleans(),
    kept=st.booleans(),
    sequences_ahead=counts,
    prompt_tokens_ahead=tokens,
    kv_tokens_ahead=tokens,
    cheapest=st.none() | leavers,
)
options = st.builds(
    CloudOption,
    provider=st.sampled_from(["holysheep", "openai"]),
    model=st.just("m"),
    capabilities=needs,
    context_tokens=tokens,
    max_output_tokens=st.none() | tokens,
    price=st.none() | prices,
    ttft_high_s=seconds,
    ttft_likely_s=seconds,
    available=st.booleans(),
)
snapshots = st.builds(
    Snapshot,
    engine=st.none() | engines,
    queue=queues,
    cloud=st.lists(options, max_size=3).map(tuple),
    vram_free_bytes=st.none() | st.integers(0, 10**12),
    cached=st.booleans(),
)
policies = st.builds(
    OverflowPolicy,
    st.builds(
        Limits,
        max_queue_depth=st.none() | st.integers(1, 50),
        max_kv_cache_usage=st.none() | st.floats(0.01, 1),
        min_free_vram_bytes=st.none() | st.integers(1, 10**12),
        feed_ahead=st.integers(0, 8),
        margin_s=st.floats(0, 1),
        feed_s=st.floats(0.001, 1),
        tpot_budget_s=st.none() | st.floats(0.001, 1),
    ),
)
moments = st.floats(1000, 1200)
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@untimed
@given(policies, requests, snapshots, moments)
def test_pinned_request_is_never_sent_to_the_cloud(
    policy: OverflowPolicy, request: Features, snapshot: Snapshot, now_s: float
) -> None:
    decision = policy.decide(replace(request, residency=Residency.PREMISES), snapshot, now_s)
    assert decision.target is not Target.CLOUD
    assert decision.cloud is None


@untimed
@given(requests, options)
def test_pinned_request_gets_no_permit_whatever_was_decided(request: Features, option: CloudOption) -> None:
    decision = Decision(target=Target.CLOUD, reason=Reason.PREDICTED_LATE, cloud=option)
    with pytest.raises(EgressForbidden, match="pinned"):
        grant(replace(request, residency=Residency.PREMISES), decision)


@untimed
@given(policies, requests, snapshots, moments)
def test_what_leaves_is_wanted_affordable_and_gets_its_permit(
    policy: OverflowPolicy, request: Features, snapshot: Snapshot, now_s: float
) -> None:
    decision = policy.decide(request, snapshot, now_s)
    if decision.target is not Target.CLOUD:
        assert decision.cloud is None
        return
    option = decision.cloud
    assert option in snapshot.cloud
    assert option is not None
    assert option.available
    assert request.needs <= option.capabilities
    assert request.prompt_tokens_estimate < option.context_tokens
    permit = grant(request, decision)
    assert (permit.provider, permit.rule) == (option.provider, decision.reason.value)
    assert request.cost_budget_nano_usd is None or permit.reserved_nano_usd <= request.cost_budget_nano_usd


@untimed
@given(policies, requests, snapshots, moments)
def test_nothing_starts_on_an_engine_that_is_not_ready_or_cannot_do_it(
    policy: OverflowPolicy, request: Features, snapshot: Snapshot, now_s: float
) -> None:
    if policy.decide(request, snapshot, now_s).target is Target.LOCAL:
        assert snapshot.engine is not None
        assert snapshot.engine.state is EngineState.READY
        assert request.needs <= snapshot.engine.capabilities


@untimed
@given(policies, requests, snapshots, moments)
def test_no_wait_is_without_an_end(policy: OverflowPolicy, request: Features, snapshot: Snapshot, now_s: float) -> None:
    decision = policy.decide(request, snapshot, now_s)
    if decision.target is Target.WAIT:
        assert now_s < (request.give_up_s if decision.leave_at_s is None else decision.leave_at_s)


def test_no_permit_without_a_decision_for_the_cloud() -> None:
    for decision in (
        Decision(target=Target.LOCAL, reason=Reason.WITHIN_BUDGET, cloud=CLOUD),
        Decision(target=Target.CLOUD, reason=Reason.PREDICTED_LATE),
    ):
        with pytest.raises(EgressForbidden, match="not decided"):
            grant(REQUEST, decision)


def test_no_permit_at_an_unknown_price() -> None:
    unpriced = replace(CLOUD, price=None)
    assert worst_case_nano_usd(REQUEST, unpriced) is None
    with pytest.raises(EgressForbidden, match="price"):
        grant(REQUEST, Decision(target=Target.CLOUD, reason=Reason.PREDICTED_LATE, cloud=unpriced))


def test_permit_cannot_be_made_by_hand() -> None:
    with pytest.raises(EgressForbidden):
        EgressPermit(request_id="r", provider="p", model="m", rule="pinned", reserved_nano_usd=0, seal=object())


def test_worst_case_is_prompt_bound_and_every_choice_to_its_end() -> None:
    option = replace(CLOUD, price=Price(Decimal("0.5"), Decimal(3)))
    request = replace(PINNED, prompt_tokens_bound=1000, max_output_tokens=200, choices=3)
    assert worst_case_nano_usd(request, option) == 1000 * 500 + 3 * 200 * 3000
