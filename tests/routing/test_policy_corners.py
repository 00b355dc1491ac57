"""What the rules do at their edges: who may leave, at what price, and what a hard limit overrules."""

from dataclasses import replace

import pytest

from node.routing.policy import OverflowPolicy
from node.routing.profile import StepModel
from node.routing.values import (
    Capability,
    Decision,
    EngineState,
    Features,
    Limits,
    QueueLoad,
    Reason,
    Snapshot,
    Target,
)
from tests.routing.stories import CLOUD, ENGINE, FULL, IDLE, PINNED, POLICY, REQUEST, SLOW, decide

LATE = replace(IDLE, engine=SLOW)
"""A slot is free, but its prefill takes 3 s: too late for a budget of 2 s."""
NO_CLOUD = replace(FULL, cloud=())
PRICE_OF_REQUEST_NANO_USD = 500 * 1000 + 100 * 2000
PREFERS_LOCAL = replace(REQUEST, prefer_local=True)


def ask(
    limits: Limits, request: Features = REQUEST, snapshot: Snapshot = IDLE, after_s: float = 0.0
) -> tuple[Target, Reason]:
    decision = OverflowPolicy(limits).decide(request, snapshot, request.arrived_s + after_s)
    return decision.target, decision.reason


STORIES: list[tuple[str, Features, Snapshot, float, tuple[Target, Reason]]] = [
    ("1 pinned, engine free", PINNED, IDLE, 0, (Target.LOCAL, Reason.PINNED)),
    ("1 pinned, late, slot free", PINNED, LATE, 0, (Target.LOCAL, Reason.PINNED)),
    ("1 pinned, engine full", PINNED, FULL, 59, (Target.WAIT, Reason.NO_PREMISES_CAPACITY)),
    (
        "1 pinned, engine starting",
        PINNED,
        replace(IDLE, engine=replace(ENGINE, state=EngineState.STARTING)),
        0,
        (Target.WAIT, Reason.NO_PREMISES_CAPACITY),
    ),
    (
        "1 pinned, engine dead",
        PINNED,
        replace(IDLE, engine=replace(ENGINE, state=EngineState.DOWN)),
        0,
        (Target.REFUSE, Reason.NO_PREMISES_CAPACITY),
    ),
    (
        "1 pinned, prompt too long for here",
        replace(PINNED, prompt_tokens_estimate=5000),
        replace(IDLE, engine=replace(ENGINE, step=None)),
        0,
        (Target.LOCAL, Reason.PINNED),
    ),
    ("2 pinned, cached", PINNED, replace(FULL, cached=True), 0, (Target.CACHE, Reason.CACHE_HIT)),
    (
        "3 only local can do it",
        replace(REQUEST, needs=frozenset({Capability.TOOLS})),
        replace(FULL, cloud=(replace(CLOUD, capabilities=frozenset()),)),
        0,
        (Target.WAIT, Reason.NO_CLOUD_EQUIVALENT),
    ),
    (
        "3 only local can do it, slot free",
        replace(REQUEST, needs=frozenset({Capability.TOOLS})),
        replace(IDLE, cloud=(replace(CLOUD, capabilities=frozenset()),)),
        0,
        (Target.LOCAL, Reason.LOCAL_ONLY_FEATURE),
    ),
    (
        "3 only the cloud can do it, at too high a price",
        replace(REQUEST, needs=frozenset({Capability.VISION}), cost_budget_nano_usd=1),
        IDLE,
        0,
        (Target.REFUSE, Reason.COST_BUDGET),
    ),
    (
        "3 cloud-only model, provider gone",
        REQUEST,
        replace(IDLE, engine=None, cloud=(replace(CLOUD, available=False),)),
        0,
        (Target.REFUSE, Reason.NO_PROVIDER),
    ),
    ("3 model that nobody has", REQUEST, Snapshot(engine=None), 0, (Target.REFUSE, Reason.NOT_SERVABLE)),
    (
        "3 prompt too long for the cloud too",
        replace(REQUEST, prompt_tokens_estimate=100_000),
        replace(IDLE, engine=None),
        0,
        (Target.REFUSE, Reason.CONTEXT_LENGTH),
    ),
    (
        "4 no cloud declared, engine free",
        REQUEST,
        replace(IDLE, cloud=()),
        0,
        (Target.LOCAL, Reason.NO_CLOUD_EQUIVALENT),
    ),
    (
        "4 cold engine without a free slot is not trusted",
        REQUEST,
        replace(FULL, engine=replace(ENGINE, in_flight=5, step=None)),
        0,
        (Target.WAIT, Reason.NO_SLOT),
    ),
    ("5 prefers local, engine full, in time", PREFERS_LOCAL, FULL, 0, (Target.WAIT, Reason.NO_SLOT)),
    ("5 prefers local, engine full, last moment", PREFERS_LOCAL, FULL, 1.4, (Target.CLOUD, Reason.LAST_MOMENT)),
    (
        "5 prefers local, engine starting",
        PREFERS_LOCAL,
        replace(IDLE, engine=replace(ENGINE, state=EngineState.STARTING)),
        0,
        (Target.WAIT, Reason.ENGINE_NOT_READY),
    ),
    (
        "5 prefers local, engine still starting at the last moment",
        PREFERS_LOCAL,
        replace(IDLE, engine=replace(ENGINE, state=EngineState.STARTING)),
        1.4,
        (Target.CLOUD, Reason.ENGINE_NOT_READY),
    ),
    ("6 no cloud declared, engine full", REQUEST, NO_CLOUD, 0, (Target.WAIT, Reason.NO_CLOUD_EQUIVALENT)),
    ("6 no cloud declared, time is up", REQUEST, NO_CLOUD, 60, (Target.REFUSE, Reason.NO_CLOUD_EQUIVALENT)),
    (
        "6 no cloud declared, late, slot free",
        REQUEST,
        replace(LATE, cloud=()),
        0,
        (Target.LOCAL, Reason.NO_CLOUD_EQUIVALENT),
    ),
    (
        "6 too dear, late, slot free",
        replace(REQUEST, cost_budget_nano_usd=1),
        LATE,
        0,
        (Target.LOCAL, Reason.COST_BUDGET),
    ),
    (
        "6 price unknown, time is up",
        REQUEST,
        replace(FULL, cloud=(replace(CLOUD, price=None),)),
        60,
        (Target.REFUSE, Reason.UNKNOWN_PRICE),
    ),
    (
        "6 provider gone, engine full",
        REQUEST,
        replace(FULL, cloud=(replace(CLOUD, available=False),)),
        0,
        (Target.WAIT, Reason.NO_PROVIDER),
    ),
    (
        "6 explicit budget, pinned, budget over",
        replace(PINNED, give_up_s=1002.0),
        FULL,
        2.0,
        (Target.REFUSE, Reason.NO_PREMISES_CAPACITY),
    ),
]


@pytest.mark.parametrize(
    ("request_", "snapshot", "after_s", "expected"),
    [story[1:] for story in STORIES],
    ids=[story[0] for story in STORIES],
)
def test_story(request_: Features, snapshot: Snapshot, after_s: float, expected: tuple[Target, Reason]) -> None:
    assert decide(request_, snapshot, after_s) == expected


@pytest.mark.parametrize(("usage", "goes"), [(0.97, Target.LOCAL), (0.98, Target.LOCAL), (0.99, Target.WAIT)])
def test_request_does_not_start_in_a_full_kv_cache(usage: float, goes: Target) -> None:
    snapshot = replace(IDLE, engine=replace(ENGINE, kv_cache_usage=usage))
    assert ask(Limits(max_kv_cache_usage=0.98), snapshot=snapshot)[0] is goes
    assert ask(Limits(max_kv_cache_usage=None), snapshot=snapshot)[0] is Target.LOCAL


def test_request_leaves_a_full_kv_cache_at_its_last_moment_and_says_why() -> None:
    snapshot = replace(IDLE, engine=replace(ENGINE, kv_cache_usage=0.99))
    assert ask(Limits(), snapshot=snapshot, after_s=1.4) == (Target.CLOUD, Reason.KV_CACHE_USAGE)


def test_row_63_low_vram_holds_requests_back_and_unknown_vram_does_not() -> None:
    limits = Limits(min_free_vram_bytes=1000)
    assert ask(limits, snapshot=replace(IDLE, vram_free_bytes=999)) == (Target.WAIT, Reason.LOW_VRAM)
    assert ask(limits, snapshot=replace(IDLE, vram_free_bytes=1000))[0] is Target.LOCAL
    assert ask(limits, snapshot=IDLE)[0] is Target.LOCAL
    assert ask(Limits(), snapshot=replace(IDLE, vram_free_bytes=0))[0] is Target.LOCAL


def test_queue_depth_limit_spares_those_who_wait_already() -> None:
    limits = Limits(max_queue_depth=3)
    assert ask(limits, PINNED, replace(FULL, queue=QueueLoad(depth=3, waited=True)))[0] is Target.WAIT
    assert ask(limits, PINNED, replace(FULL, queue=QueueLoad(depth=2)))[0] is Target.WAIT


def test_preferring_local_does_not_overrule_the_queue_depth_limit() -> None:
    crowded = replace(FULL, queue=QueueLoad(depth=3))
    assert ask(Limits(max_queue_depth=3), PREFERS_LOCAL, crowded) == (Target.CLOUD, Reason.QUEUE_DEPTH)


def test_engine_is_fed_a_little_ahead() -> None:
    busy = replace(IDLE, engine=replace(ENGINE, in_flight=4))
    assert ask(Limits(feed_ahead=1), snapshot=busy)[0] is Target.LOCAL
    assert ask(Limits(feed_ahead=0), snapshot=busy)[0] is not Target.LOCAL


def test_request_for_many_choices_waits_for_as_many_slots_but_never_for_ever() -> None:
    three, ten = replace(PINNED, choices=3), replace(PINNED, choices=10)
    busy = replace(IDLE, engine=replace(ENGINE, in_flight=3))
    assert decide(three, busy)[0] is Target.WAIT
    assert decide(three, replace(busy, engine=replace(ENGINE, in_flight=2)))[0] is Target.LOCAL
    assert decide(ten, IDLE)[0] is Target.LOCAL


def test_newcomer_does_not_take_the_slot_of_those_ahead_of_it() -> None:
    one_slot = replace(IDLE, engine=replace(ENGINE, in_flight=4), queue=QueueLoad(depth=1, sequences_ahead=1))
    assert decide(PINNED, one_slot)[0] is Target.WAIT


@pytest.mark.parametrize(
    ("cap_nano_usd", "goes"),
    [(PRICE_OF_REQUEST_NANO_USD, Target.CLOUD), (PRICE_OF_REQUEST_NANO_USD - 1, Target.REFUSE)],
)
def test_cost_cap_is_held_to_the_worst_case(cap_nano_usd: int, goes: Target) -> None:
    thrifty = replace(REQUEST, cost_budget_nano_usd=cap_nano_usd)
    assert decide(thrifty, replace(IDLE, engine=None))[0] is goes


def test_worst_case_counts_every_choice() -> None:
    two = replace(REQUEST, choices=2, cost_budget_nano_usd=PRICE_OF_REQUEST_NANO_USD)
    assert decide(two, replace(IDLE, engine=None)) == (Target.REFUSE, Reason.COST_BUDGET)


def test_dearer_first_choice_is_passed_over_for_one_within_the_cap() -> None:
    unpriced, other = replace(CLOUD, price=None), replace(CLOUD, provider="other")
    decision = POLICY.decide(REQUEST, replace(IDLE, engine=None, cloud=(unpriced, other)), 1000.0)
    assert decision.cloud == other


def test_equivalent_with_too_small_a_context_is_passed_over() -> None:
    small, other = replace(CLOUD, context_tokens=100), replace(CLOUD, provider="other")
    decision = POLICY.decide(REQUEST, replace(IDLE, engine=None, cloud=(small, other)), 1000.0)
    assert decision.cloud == other


LONG = replace(REQUEST, max_output_tokens=5000, asks_output=True)
"""More output than the engine's context holds, asked for by the client."""
WRITES_8000 = replace(CLOUD, max_output_tokens=8000)


@pytest.mark.parametrize("snapshot", [IDLE, FULL], ids=["idle", "full"])
def test_output_that_only_the_cloud_can_write_goes_there_whatever_the_load(snapshot: Snapshot) -> None:
    asked = replace(snapshot, cloud=(replace(CLOUD, max_output_tokens=4096), WRITES_8000))
    decision = POLICY.decide(LONG, asked, 1000.0)
    assert (decision.target, decision.reason) == (Target.CLOUD, Reason.CLOUD_ONLY_LENGTH)
    assert decision.cloud == WRITES_8000
    assert decide(replace(LONG, asks_output=False), snapshot)[1] is not Reason.CLOUD_ONLY_LENGTH


def test_output_that_nobody_can_write_stays_whatever_the_load() -> None:
    nobody = (replace(CLOUD, max_output_tokens=4999), replace(CLOUD, context_tokens=4999))
    assert decide(LONG, replace(IDLE, cloud=nobody))[0] is Target.LOCAL
    assert decide(LONG, replace(FULL, cloud=nobody))[0] is Target.WAIT
    assert decide(replace(LONG, residency=PINNED.residency), replace(IDLE, cloud=(WRITES_8000,)))[0] is Target.LOCAL


def test_output_that_only_the_engine_can_write_does_not_leave() -> None:
    asked = replace(REQUEST, max_output_tokens=4000, asks_output=True)
    short = (replace(CLOUD, max_output_tokens=2048),)
    assert decide(asked, replace(IDLE, cloud=short)) == (Target.LOCAL, Reason.LOCAL_ONLY_FEATURE)
    assert decide(asked, replace(FULL, cloud=short), after_s=1.9)[0] is Target.WAIT


def test_output_clipped_for_the_prompt_s_sake_is_the_engine_s_to_write() -> None:
    asked = replace(REQUEST, prompt_tokens_estimate=1000, max_output_tokens=4096, asks_output=True)
    quick = replace(ENGINE, step=StepModel(base_s=0.02, per_decode_s=0.0, per_prefill_token_s=0.0001))
    assert decide(asked, replace(IDLE, engine=quick)) == (Target.LOCAL, Reason.WITHIN_BUDGET)


def test_tight_latency_budget_leaves_though_the_first_token_would_be_in_time() -> None:
    # 100 tokens at 20 ms a step are 2 s of decoding.
    assert decide(replace(REQUEST, latency_budget_s=2.0)) == (Target.CLOUD, Reason.PREDICTED_LATE)
    assert decide(replace(REQUEST, latency_budget_s=5.0))[0] is Target.LOCAL


def test_latency_budget_shorter_than_the_ttft_budget_moves_the_last_moment() -> None:
    cold = replace(FULL, engine=replace(ENGINE, in_flight=5, sequences_per_s=None))
    decision: Decision = POLICY.decide(replace(REQUEST, latency_budget_s=1.0), cold, 1000.0)
    assert decision.leave_at_s == pytest.approx(1000 + 1.0 - 0.6 - 0.1)


def test_caution_sends_away_what_would_be_just_in_time() -> None:
    close = replace(ENGINE, step=StepModel(base_s=0.02, per_decode_s=0.0, per_prefill_token_s=0.0158))
    sure, unsure = replace(close, ttft_doubt=0.05), replace(close, ttft_doubt=0.6)
    assert decide(snapshot=replace(IDLE, engine=sure))[0] is Target.LOCAL
    assert decide(snapshot=replace(IDLE, engine=unsure)) == (Target.CLOUD, Reason.PREDICTED_LATE)


def test_time_already_spent_counts_against_the_budget() -> None:
    half = replace(IDLE, engine=replace(ENGINE, queued_prefill_tokens=500))
    assert decide(snapshot=half)[0] is Target.LOCAL
    assert decide(snapshot=half, after_s=1.2) == (Target.CLOUD, Reason.PREDICTED_LATE)


def test_slow_provider_is_left_for_earlier() -> None:
    cold = replace(FULL, engine=replace(ENGINE, in_flight=5, sequences_per_s=None))
    slow = replace(cold, cloud=(replace(CLOUD, ttft_high_s=1.5),))
    assert decide(snapshot=cold, after_s=0.5)[0] is Target.WAIT
    assert decide(snapshot=slow, after_s=0.5) == (Target.CLOUD, Reason.LAST_MOMENT)


def test_refusal_for_want_of_room_says_when_to_come_back() -> None:
    decision = POLICY.decide(PINNED, FULL, 1061.0)
    assert decision.retry_after_s == pytest.approx(1.0 + 0.1 + 0.02)


def test_request_whose_provider_is_away_asks_for_it_once_more_at_its_last_safe_moment() -> None:
    away = replace(FULL, cloud=(replace(CLOUD, available=False),))
    waits: Decision = POLICY.decide(REQUEST, away, 1000.0)
    assert (waits.target, waits.reason, waits.worth) == (Target.WAIT, Reason.NO_PROVIDER, None)
    assert waits.leave_at_s == pytest.approx(1000 + 2.0 - 0.6 - 0.1)
    assert POLICY.decide(REQUEST, away, 1001.5).leave_at_s is None
