"""The six rules, told as stories: values in, a decision out."""

from dataclasses import replace

import pytest

from node.routing.permit import EgressForbidden, grant
from node.routing.policy import OverflowPolicy
from node.routing.values import Capability, EngineState, Limits, QueueLoad, Reason, Target
from tests.routing.stories import CLOUD, ENGINE, FULL, IDLE, PINNED, POLICY, REQUEST, SLOW, decide


def test_calm_engine_serves_for_free() -> None:
    assert decide() == (Target.LOCAL, Reason.WITHIN_BUDGET)


def test_pinned_request_waits_rather_than_leaves() -> None:
    assert decide(PINNED, FULL)[0] is Target.WAIT
    assert decide(PINNED, FULL, after_s=10)[0] is Target.WAIT


def test_pinned_request_is_refused_when_its_time_is_up() -> None:
    assert decide(PINNED, FULL, after_s=61) == (Target.REFUSE, Reason.NO_PREMISES_CAPACITY)


def test_pinned_request_that_no_engine_can_serve_is_refused() -> None:
    vision = replace(PINNED, needs=frozenset({Capability.VISION}))
    assert decide(vision) == (Target.REFUSE, Reason.PRIVATE_NOT_SERVABLE)
    assert decide(PINNED, replace(IDLE, engine=None)) == (Target.REFUSE, Reason.PRIVATE_NOT_SERVABLE)


def test_cached_answer_wins() -> None:
    assert decide(snapshot=replace(FULL, cached=True)) == (Target.CACHE, Reason.CACHE_HIT)


def test_what_only_the_cloud_can_do_goes_to_the_cloud() -> None:
    assert decide(replace(REQUEST, needs=frozenset({Capability.VISION})))[1] is Reason.CLOUD_ONLY_FEATURE
    assert decide(snapshot=replace(IDLE, engine=None))[1] is Reason.CLOUD_ONLY_MODEL


def test_what_nobody_can_do_is_refused() -> None:
    assert decide(replace(REQUEST, needs=frozenset({Capability.AUDIO}))) == (Target.REFUSE, Reason.NOT_SERVABLE)


def test_prompt_beyond_the_local_context_goes_to_a_larger_one_for_its_length() -> None:
    assert decide(replace(REQUEST, prompt_tokens_estimate=5000)) == (Target.CLOUD, Reason.CLOUD_ONLY_LENGTH)


def test_request_over_budget_goes_to_cloud() -> None:
    backlog = replace(IDLE, engine=replace(ENGINE, queued_prefill_tokens=3000))
    assert decide(snapshot=backlog) == (Target.CLOUD, Reason.PREDICTED_LATE)
    assert decide(snapshot=replace(IDLE, engine=SLOW)) == (Target.CLOUD, Reason.PREDICTED_LATE)


def test_request_that_prefers_local_takes_the_free_slot_though_late() -> None:
    assert decide(replace(REQUEST, prefer_local=True), replace(IDLE, engine=SLOW)) == (
        Target.LOCAL,
        Reason.PREFERS_LOCAL,
    )


def test_full_engine_makes_it_wait_until_the_last_safe_moment() -> None:
    cold = replace(FULL, engine=replace(FULL.engine or ENGINE, sequences_per_s=None))
    decision = POLICY.decide(REQUEST, cold, 1000.0)
    assert decision.target is Target.WAIT
    assert decision.leave_at_s == pytest.approx(1000 + 2.0 - 0.6 - 0.1)
    assert decide(snapshot=cold, after_s=1.31) == (Target.CLOUD, Reason.LAST_MOMENT)


def test_wait_that_cannot_end_in_time_is_not_begun() -> None:
    crowd = replace(FULL, queue=QueueLoad(depth=20, sequences_ahead=20))
    assert decide(snapshot=crowd) == (Target.CLOUD, Reason.PREDICTED_LATE)


def test_cold_engine_is_trusted_while_a_slot_is_free() -> None:
    cold = replace(IDLE, engine=replace(ENGINE, step=None, sequences_per_s=None))
    assert decide(snapshot=cold) == (Target.LOCAL, Reason.WITHIN_BUDGET)


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.SUSPECT, EngineState.DOWN, EngineState.ASLEEP])
def test_engine_that_is_not_ready_spills_at_once(state: EngineState) -> None:
    assert decide(snapshot=replace(IDLE, engine=replace(ENGINE, state=state)))[1] is Reason.ENGINE_NOT_READY


def test_full_queue_is_a_hard_limit() -> None:
    policy = OverflowPolicy(Limits(max_queue_depth=3))
    crowded = replace(FULL, queue=QueueLoad(depth=3))
    assert policy.decide(REQUEST, crowded, 1000.0).reason is Reason.QUEUE_DEPTH
    assert policy.decide(PINNED, crowded, 1000.0).target is Target.REFUSE


def test_cost_cap_keeps_it_waiting_and_then_names_the_rule() -> None:
    thrifty = replace(REQUEST, cost_budget_nano_usd=1)
    assert decide(thrifty, FULL) == (Target.WAIT, Reason.COST_BUDGET)
    assert decide(thrifty, FULL, after_s=61) == (Target.REFUSE, Reason.COST_BUDGET)


def test_unknown_price_is_never_spent() -> None:
    assert decide(snapshot=replace(FULL, cloud=(replace(CLOUD, price=None),)))[1] is Reason.UNKNOWN_PRICE


def test_paused_provider_is_passed_over_for_the_next() -> None:
    other = replace(CLOUD, provider="openai")
    snapshot = replace(IDLE, engine=None, cloud=(replace(CLOUD, available=False), other))
    decision = POLICY.decide(REQUEST, snapshot, 1000.0)
    assert decision.cloud == other


def test_slot_that_opens_in_time_is_taken() -> None:
    assert decide(snapshot=replace(IDLE, queue=QueueLoad(depth=1, waited=True)), after_s=1.0)[1] is Reason.SLOT_OPENED


def test_permit_is_for_decided_unpinned_requests_only() -> None:
    cloud_only = replace(IDLE, engine=None)
    decision = POLICY.decide(REQUEST, cloud_only, 1000.0)
    permit = grant(REQUEST, decision)
    assert (permit.provider, permit.model) == ("holysheep", "deepseek-v3.2")
    assert permit.reserved_nano_usd == 500 * 1000 + 100 * 2000
    with pytest.raises(EgressForbidden):
        grant(PINNED, decision)
    with pytest.raises(ValueError, match="seal"):
        replace(permit, model="another")  # type: ignore[call-arg]  # what the type checker says, the run says too
