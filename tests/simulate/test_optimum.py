"""The clairvoyant optimum: below everything that can be done, and not far below."""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import combinations, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import SettingsError
from node.money import Price, Usage
from node.routing.profile import EngineProfile, StepModel
from node.simulate.optimum import closed_form, lower_bound
from node.simulate.values import TraceRequest

PRICE = Price(Decimal(1), Decimal(4))
ENGINE = EngineProfile(
    name="made up",
    source="by hand",
    step=StepModel(base_s=0.01, per_decode_s=0.001, per_prefill_token_s=0.0001),
    max_sequences=8,
    max_batched_tokens=1_000,
    kv_tokens=10_000,
    context_tokens=4_000,
)


def cost(*requests: TraceRequest) -> int:
    return sum(PRICE.cost_nano_usd(Usage(each.prompt_tokens, each.output_tokens)) for each in requests)


def burst(count: int, *, seed: int = 1, seconds: float = 2.0) -> list[TraceRequest]:
    dice = random.Random(seed)
    arrivals = sorted(dice.uniform(0, seconds) for _ in range(count))
    return [TraceRequest(at, dice.randint(50, 1500), dice.randint(1, 60)) for at in arrivals]


def faster(profile: EngineProfile, factor: float) -> EngineProfile:
    step = profile.step
    return replace(
        profile,
        step=StepModel(
            base_s=step.base_s / factor,
            per_decode_s=step.per_decode_s / factor,
            per_prefill_token_s=step.per_prefill_token_s / factor,
        ),
    )


def test_an_empty_trace_costs_nothing() -> None:
    bound = lower_bound([], ENGINE, PRICE, ttft_budget_s=1.0)
    assert (bound.spend_nano_usd, bound.all_cloud_nano_usd, bound.local_share) == (0, 0, ())


def test_what_fits_stays_and_is_free() -> None:
    bound = lower_bound([TraceRequest(0.0, 500, 20), TraceRequest(5.0, 900, 1)], ENGINE, PRICE, ttft_budget_s=1.0)
    assert (bound.spend_nano_usd, bound.upper_nano_usd) == (0, 0)
    assert bound.local_share == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    "hopeless",
    [
        TraceRequest(0.0, 3_990, 11),  # context
        TraceRequest(0.0, 3_000, 10),  # 3 steps of prompt take 330 ms
    ],
)
def test_a_request_that_can_never_fit_is_paid_for(hopeless: TraceRequest) -> None:
    small = TraceRequest(0.0, 10, 2)
    bound = lower_bound([hopeless, small], ENGINE, PRICE, ttft_budget_s=0.32)
    assert (bound.spend_nano_usd, bound.local_share[0]) == (cost(hopeless), 0.0)
    assert lower_bound([hopeless], ENGINE, PRICE, ttft_budget_s=0.32).spend_nano_usd == cost(hopeless)


def test_a_sequence_larger_than_the_cache_is_paid_for() -> None:
    request = TraceRequest(0.0, 500, 20)
    assert lower_bound([request], replace(ENGINE, kv_tokens=518), PRICE, ttft_budget_s=1.0).spend_nano_usd > 0
    assert lower_bound([request], replace(ENGINE, kv_tokens=519), PRICE, ttft_budget_s=1.0).spend_nano_usd == 0


def test_two_prompts_for_the_time_of_one_and_a_half() -> None:
    # A full step of 1,000 prompt tokens takes 110 ms; 165 ms hold one and a half of these prompts.
    requests = [TraceRequest(0.0, 1_000, 1), TraceRequest(0.0, 1_000, 1)]
    bound = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.165, slot_s=0.165)
    assert bound.spend_nano_usd == pytest.approx(cost(requests[0]) / 2, rel=1e-4)
    assert sum(bound.local_share) == pytest.approx(1.5, rel=1e-4)
    assert bound.upper_nano_usd >= cost(requests[0])


def test_the_dearer_of_two_alike_stays() -> None:
    cheap, dear = TraceRequest(0.0, 900, 1, 0), TraceRequest(0.0, 1_400, 1, 500)
    bound = lower_bound([cheap, dear], ENGINE, PRICE, ttft_budget_s=0.1, slot_s=0.1)
    assert bound.local_share[1] == pytest.approx(1.0)
    assert bound.local_share[0] < 0.2


def test_decode_alone_can_be_too_much() -> None:
    # 8 sequences make 8 tokens in 18 ms. 40 a second of 100 tokens each are nine times that.
    requests = [TraceRequest(i / 40, 1, 101) for i in range(1_200)]
    bound = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.5)
    assert 0.80 < bound.spend_nano_usd / bound.all_cloud_nano_usd < 0.90


def test_the_cache_limits_how_many_share_a_step() -> None:
    requests = [TraceRequest(i / 4, 400, 100) for i in range(120)]
    roomy = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.5)
    tight = lower_bound(requests, replace(ENGINE, kv_tokens=500), PRICE, ttft_budget_s=0.5)
    # One at a time: 0.05 s of prompt and 99 steps of 11 ms, so 26 in 30 s, and what may be left at the end.
    assert roomy.spend_nano_usd < 0.05 * roomy.all_cloud_nano_usd
    assert 0.74 < tight.spend_nano_usd / tight.all_cloud_nano_usd < 0.79


def test_pinned_requests_take_what_there_is_and_cost_nothing() -> None:
    requests = [TraceRequest(0.0, 1_000, 1), TraceRequest(0.0, 1_000, 30)]
    free = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.12, slot_s=0.12)
    pinned = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.12, slot_s=0.12, pinned=frozenset({0}))
    assert free.local_share[1] == pytest.approx(1.0)
    assert pinned.local_share[0] == pytest.approx(1.0)
    assert pinned.all_cloud_nano_usd == cost(requests[1])
    assert pinned.spend_nano_usd > free.spend_nano_usd
    assert pinned.pinned_late_nano_usd == 0


def test_more_pinned_work_than_the_engine_can_do_is_late_and_still_bounded() -> None:
    requests = [TraceRequest(0.0, 1_000, 1) for _ in range(4)]
    bound = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.11, slot_s=0.11, pinned=frozenset({0, 1, 2}))
    assert bound.spend_nano_usd == pytest.approx(cost(requests[3]), rel=1e-4)
    assert bound.pinned_late_nano_usd == pytest.approx(2 * cost(requests[3]), rel=1e-4)
    late = bound.pinned_late_nano_usd
    assert bound.allowing(late_nano_usd=0, pinned_late_nano_usd=late) == bound.spend_nano_usd
    assert bound.allowing(late_nano_usd=1_000) == bound.spend_nano_usd - 1_000
    assert bound.allowing(late_nano_usd=0, pinned_late_nano_usd=late + 1_000) == bound.spend_nano_usd - 10_000


def test_pinned_requests_that_never_fit_leave_the_others_alone() -> None:
    requests = [TraceRequest(0.0, 5_000, 1), TraceRequest(0.0, 100, 5)]
    bound = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.5, pinned=frozenset({0}))
    assert (bound.spend_nano_usd, bound.all_cloud_nano_usd) == (0, cost(requests[1]))


def test_a_larger_budget_a_faster_engine_and_more_cache_never_cost_more() -> None:
    requests = burst(80)
    slack = 1.001  # borders of slots and cells fall elsewhere

    def spend(profile: EngineProfile, budget_s: float) -> int:
        return lower_bound(requests, profile, PRICE, ttft_budget_s=budget_s, slot_s=0.02).spend_nano_usd

    by_budget = [spend(ENGINE, budget_s) for budget_s in (0.1, 0.2, 0.4, 0.8, 1.6)]
    by_speed = [spend(faster(ENGINE, factor), 0.4) for factor in (0.5, 1.0, 2.0, 4.0, 20.0)]
    by_cache = [spend(replace(ENGINE, kv_tokens=tokens), 0.4) for tokens in (1_600, 3_000, 10_000)]
    for spends in (by_budget, by_speed, by_cache):
        assert all(after <= before * slack for before, after in pairwise(spends)), spends
        assert spends[0] > spends[-1]


def test_a_price_twice_as_high_is_a_bill_twice_as_high() -> None:
    requests = burst(60)
    once = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.4)
    twice = lower_bound(requests, ENGINE, Price(Decimal(2), Decimal(8)), ttft_budget_s=0.4)
    assert twice.spend_nano_usd == pytest.approx(2 * once.spend_nano_usd, rel=1e-4)


def test_shifting_the_trace_changes_nothing() -> None:
    requests = burst(60)
    later = [replace(each, arrival_s=each.arrival_s + 1e4) for each in requests]
    assert lower_bound(later, ENGINE, PRICE, ttft_budget_s=0.4).spend_nano_usd == pytest.approx(
        lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.4).spend_nano_usd, rel=0.01
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_lies_between_the_closed_form_and_all_cloud(seed: int) -> None:
    requests = burst(200, seed=seed, seconds=1.0 + 2 * seed)
    bound = lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.5)
    closed = closed_form(requests, ENGINE, PRICE, ttft_budget_s=0.5, rounding_s=bound.cell_s)
    assert 0 < closed <= bound.spend_nano_usd <= bound.upper_nano_usd <= bound.all_cloud_nano_usd


def test_finer_slots_only_tighten_it_and_only_a_little() -> None:
    requests = burst(150, seed=7)
    coarse, default, fine = (
        lower_bound(requests, ENGINE, PRICE, ttft_budget_s=0.4, slot_s=slot_s) for slot_s in (0.04, 0.02, 0.01)
    )
    assert coarse.spend_nano_usd <= default.spend_nano_usd * 1.002
    assert default.spend_nano_usd <= fine.spend_nano_usd * 1.002
    assert fine.spend_nano_usd <= 1.05 * default.spend_nano_usd


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SettingsError, match=r"pip install scipy"):
        lower_bound([], ENGINE, PRICE, ttft_budget_s=1.0)


def late(requests: Sequence[TraceRequest], starts: Sequence[float], profile: EngineProfile, budget_s: float) -> bool:
    """Whether an engine that is handed `requests` at `starts` gives one of them its first token too late.

    First come, first served; a sequence gets in when its whole cache and a seat are free; every step serves all that
    decode and fills up with prompt tokens. Written apart from the program, and exact.
    """
    waiting = sorted(range(len(requests)), key=lambda i: (starts[i], i))
    running: dict[int, list[int]] = {}  # prompt tokens and output tokens still to come
    now, held = 0.0, 0
    while waiting or running:
        if not running and waiting:
            now = max(now, starts[waiting[0]])
        while waiting and starts[waiting[0]] <= now and len(running) < profile.max_sequences:
            one = requests[waiting[0]]
            if held + one.prompt_tokens + one.output_tokens - 1 > profile.kv_tokens:
                break
            held += one.prompt_tokens + one.output_tokens - 1
            running[waiting.pop(0)] = [one.prompt_tokens, one.output_tokens]
        decoding = [i for i, (prompt, _) in running.items() if prompt == 0]
        room = profile.max_batched_tokens - len(decoding)
        chunks: dict[int, int] = {}
        for i, (prompt, _) in running.items():
            if prompt and room:
                chunks[i] = min(prompt, room)
                room -= chunks[i]
        now += profile.step.step_s(len(decoding), sum(chunks.values()))
        for i in decoding:
            running[i][1] -= 1
        for i, chunk in chunks.items():
            running[i][0] -= chunk
            if running[i][0] == 0:
                running[i][1] -= 1
                if now > requests[i].arrival_s + budget_s + 1e-9:
                    return True
        for i in [i for i, (prompt, output) in running.items() if not prompt and not output]:
            del running[i]
            held -= requests[i].prompt_tokens + requests[i].output_tokens - 1
    return False


engines = st.builds(
    EngineProfile,
    name=st.just("drawn"),
    source=st.just("drawn"),
    step=st.builds(
        StepModel, base_s=st.integers(1, 5), per_decode_s=st.integers(0, 3), per_prefill_token_s=st.integers(0, 3)
    ),
    max_sequences=st.integers(1, 4),
    max_batched_tokens=st.integers(4, 12),
    kv_tokens=st.integers(8, 60),
    context_tokens=st.just(100),
)
traces = st.lists(
    st.builds(
        TraceRequest,
        arrival_s=st.integers(0, 40).map(float),
        prompt_tokens=st.integers(1, 12),
        output_tokens=st.integers(1, 25),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(traces, engines, st.integers(3, 40), st.lists(st.integers(0, 20), min_size=6, max_size=6), st.booleans())
def test_no_choice_of_requests_on_a_real_engine_costs_less(
    requests: list[TraceRequest], profile: EngineProfile, budget: int, holds: list[int], finest: bool
) -> None:
    bound = lower_bound(requests, profile, PRICE, ttft_budget_s=budget, slot_s=1.0 if finest else None)
    cheapest = cost(*requests)
    for size in range(len(requests), -1, -1):
        for chosen in combinations(range(len(requests)), size):
            spend = cost(*requests) - cost(*(requests[i] for i in chosen))
            if spend >= cheapest:
                continue
            here = [requests[i] for i in chosen]
            for starts in (
                [each.arrival_s for each in here],
                [each.arrival_s + hold for each, hold in zip(here, holds, strict=False)],
            ):
                fits = all(each.prompt_tokens + each.output_tokens - 1 <= profile.kv_tokens for each in here)
                if fits and not late(here, starts, profile, budget):
                    cheapest = spend
    assert bound.spend_nano_usd <= cheapest
