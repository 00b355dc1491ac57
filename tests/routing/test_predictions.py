"""How long things would take: the local prediction, a provider's recent TTFT, bytes per token."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.routing.forecast import feed_tokens, local_work_s, predict_total_s, predict_ttft_s
from node.routing.profile import StepModel
from node.routing.tokens import TokenRatio
from node.routing.ttft import ProviderTtft
from node.routing.values import EngineLoad, Features, Limits, QueueLoad
from tests.routing.stories import ENGINE, REQUEST

NOBODY = QueueLoad()


def ttft_s(engine: EngineLoad = ENGINE, queue: QueueLoad = NOBODY, request: Features = REQUEST) -> float | None:
    forecast = predict_ttft_s(request, engine, queue)
    return None if forecast is None else forecast.ttft_s


def test_idle_engine_takes_its_prefill_and_one_step() -> None:
    assert ttft_s() == pytest.approx(100 / 1000 + 0.02)


def test_what_a_first_token_takes_beside_its_steps_comes_on_top() -> None:
    later = replace(ENGINE, first_token_s=0.01)
    assert ttft_s(later) == pytest.approx(100 / 1000 + 0.02 + 0.01)
    full = replace(ENGINE, in_flight=5, running=4)
    in_full = ttft_s(full)
    assert in_full is not None
    assert ttft_s(replace(full, first_token_s=0.01)) == pytest.approx(in_full + 0.01)


def test_prefill_already_handed_over_and_prompts_ahead_come_first() -> None:
    queued = replace(ENGINE, queued_prefill_tokens=500)
    assert ttft_s(queued) == pytest.approx(0.6 + 0.02)
    # What waits here is fed in steps of 512 prompt tokens, so that one takes about as long as `feed_s`; those behind
    # this one fill half of what it leaves of its own.
    assert ttft_s(queued, QueueLoad(depth=2, prompt_tokens_ahead=300)) == pytest.approx((0.9 + 1.024) / 2 + 2 * 0.02)


def test_full_engine_adds_the_wait_for_sequences_to_finish() -> None:
    # 5 in flight, 3 ahead, 1 of its own: 5 of them must finish before 4 slots hold it, at 2 a second.
    full = replace(ENGINE, in_flight=5, running=4)
    assert ttft_s(full, QueueLoad(depth=3, sequences_ahead=3)) == pytest.approx(5 / 2 + 0.12)


def test_a_step_is_fed_what_takes_a_fifth_of_the_budget_at_most() -> None:
    # With nothing else a step of 18 times its fixed part, and no longer than the share of the budget; at most one of
    # `_MOST_FEED_S`, so that one who has all day does not make those wait who have not.
    engine = replace(ENGINE, step=StepModel(base_s=0.02, per_decode_s=0.0, per_prefill_token_s=0.0001), running=0)
    roomy = replace(engine, max_batched_tokens=100_000)

    def fed(ttft_budget_s: float, feed_s: float | None = None, engine: EngineLoad = roomy) -> float:
        return feed_tokens(replace(REQUEST, ttft_budget_s=ttft_budget_s), engine, Limits(feed_s=feed_s))

    assert fed(1.0) == pytest.approx((0.2 - 0.02) / 0.0001)
    assert fed(1.5) == pytest.approx((0.3 - 0.02) / 0.0001)
    assert fed(3.0) == fed(600.0) == pytest.approx((18 * 0.02 - 0.02) / 0.0001)
    slow = replace(roomy, step=StepModel(base_s=0.05, per_decode_s=0.0, per_prefill_token_s=0.0001))
    assert fed(600.0, engine=slow) == pytest.approx((0.6 - 0.05) / 0.0001)
    assert fed(600.0, 0.1) == pytest.approx((0.1 - 0.02) / 0.0001)
    assert fed(1.0, engine=replace(roomy, max_batched_tokens=1000)) == 1000


def test_the_cache_grows_at_the_pace_at_which_sequences_finish() -> None:
    # While prompts are computed beside them, sequences finish slowly; and just as slowly do they grow.
    roomy = replace(ENGINE, max_sequences=64, running=4, in_flight=4)
    tight = replace(roomy, kv_tokens=10_000, kv_cache_usage=0.95, sequences_per_s=0.2)
    at_rest, beside_prompts = ttft_s(tight), ttft_s(replace(tight, tpot_s=0.5))
    assert at_rest is not None
    assert beside_prompts is not None
    assert beside_prompts < at_rest


def test_full_kv_cache_adds_the_wait_for_as_much_of_it_to_be_given_back() -> None:
    tight = replace(ENGINE, running=2, in_flight=2, kv_tokens=1000, kv_cache_usage=0.9)
    roomy = replace(tight, kv_tokens=100_000, kv_cache_usage=0.01)
    ahead = [QueueLoad(depth=1, kv_tokens_ahead=tokens) for tokens in (50, 400)]
    in_roomy, in_tight, behind_more = ttft_s(roomy, ahead[0]), ttft_s(tight, ahead[0]), ttft_s(tight, ahead[1])
    assert in_roomy == ttft_s(replace(tight, kv_tokens=None)) == ttft_s(replace(tight, kv_cache_usage=None))
    assert in_roomy is not None
    assert in_tight is not None
    assert behind_more is not None
    assert in_roomy + 0.01 < in_tight < behind_more
    assert ttft_s(replace(tight, sequences_per_s=None), ahead[0]) is None


def test_tokens_in_the_prefix_cache_take_no_time() -> None:
    cached = replace(REQUEST, cached_tokens_estimate=60)
    assert ttft_s(request=cached) == pytest.approx(40 / 1000 + 0.02)


def test_prompt_longer_than_a_step_takes_several() -> None:
    narrow = replace(ENGINE, max_batched_tokens=40)
    assert ttft_s(narrow) == pytest.approx(100 / 1000 + 3 * 0.02)


def test_step_under_way_has_to_end_first() -> None:
    busy = replace(ENGINE, running=1, in_flight=1)
    assert ttft_s(busy) == pytest.approx(0.02 + 0.12)
    assert ttft_s(replace(busy, stepping_s=0.015)) == pytest.approx(0.005 + 0.12)
    computing = replace(busy, queued_prefill_tokens=200, stepping_tokens=200, stepping_s=0.1)
    assert ttft_s(computing) == pytest.approx(0.12 + 0.12)


def test_step_that_is_put_together_already_has_to_pass_too() -> None:
    busy = replace(ENGINE, running=1, in_flight=1, steps_ahead=1)
    assert ttft_s(busy) == pytest.approx(0.02 + 0.02 + 0.12)
    assert ttft_s(replace(ENGINE, steps_ahead=1)) == ttft_s(ENGINE)


def test_prompts_of_those_who_cannot_leave_make_one_wait_longer_that_can() -> None:
    queue = QueueLoad(depth=2, sequences_ahead=2, prompt_tokens_ahead=300, pinned_tokens_per_s=250.0)
    alone = ttft_s(ENGINE, replace(queue, pinned_tokens_per_s=0.0))
    assert alone is not None
    assert ttft_s(ENGINE, queue) == pytest.approx(alone / 0.75)


@pytest.mark.parametrize(
    "cold",
    [
        replace(ENGINE, step=None),
        replace(ENGINE, in_flight=5, sequences_per_s=None),
        replace(ENGINE, in_flight=5, sequences_per_s=0.0),
        replace(ENGINE, in_flight=5, sequences_per_s=5e-324),
    ],
)
def test_what_was_never_measured_is_not_guessed(cold: EngineLoad) -> None:
    assert ttft_s(cold) is None


def test_finishing_rate_does_not_matter_while_a_slot_is_free() -> None:
    assert ttft_s(replace(ENGINE, in_flight=3, sequences_per_s=None)) == ttft_s()


def test_whole_answer_is_first_token_and_a_step_for_each_other() -> None:
    assert predict_total_s(REQUEST, ENGINE, 0.5) == pytest.approx(0.5 + 99 * 0.02)
    assert predict_total_s(REQUEST, replace(ENGINE, step=None), 0.5) is None


def test_answer_shorter_than_its_cap_is_expected_to_end_earlier() -> None:
    brief = replace(REQUEST, output_tokens_estimate=10.0)
    assert predict_total_s(brief, ENGINE, 0.5) == pytest.approx(0.5 + 9 * 0.02)


def test_local_work_is_the_own_share_of_full_steps() -> None:
    # Half of 4 sequences share a step; 8190 tokens of a step are left for prompts beside them.
    assert local_work_s(REQUEST, ENGINE) == pytest.approx(100 * (0.001 + 0.02 / 8190) + 100 * 0.02 / 2)
    assert local_work_s(REQUEST, replace(ENGINE, step=None)) is None


def test_assumption_stands_in_until_enough_was_measured() -> None:
    seen = ProviderTtft(1.0)
    assert seen.high_s(0.0) == 1.0
    for _ in range(31):
        seen.add(0.2, 0.0)
    assert seen.high_s(0.0) == 1.0
    seen.add(0.2, 0.0)
    assert seen.high_s(0.0) == pytest.approx(0.2, rel=0.05)


def test_one_bad_answer_is_believed_at_once() -> None:
    seen = ProviderTtft(1.0)
    seen.add(4.0, 0.0)
    assert seen.high_s(0.0) == pytest.approx(4.0, rel=0.05)


def test_bad_spell_is_forgotten_even_when_nothing_is_sent() -> None:
    seen = ProviderTtft(1.0)
    seen.add(9.0, 0.0)
    assert seen.high_s(200.0) >= 9.0
    assert seen.high_s(600.0) == 1.0


def test_bad_spell_is_outweighed_by_good_answers_after_it() -> None:
    seen = ProviderTtft(1.0)
    seen.add(9.0, 0.0)
    for _ in range(64):
        seen.add(0.2, 300.0)
    assert seen.high_s(300.0) == pytest.approx(0.2, rel=0.05)


def test_high_percentile_passes_over_one_outlier_in_many() -> None:
    seen = ProviderTtft(1.0)
    for ttft in [5.0] + [0.2] * 99:
        seen.add(ttft, 0.0)
    assert seen.high_s(0.0) == pytest.approx(0.2, rel=0.05)
    seen.add(5.0, 0.0)
    assert seen.high_s(0.0) == pytest.approx(5.0, rel=0.05)


def test_token_estimate_starts_at_four_bytes_and_is_never_zero() -> None:
    ratio = TokenRatio()
    assert ratio.estimate(400) == 100
    assert ratio.estimate(0) == 1


def test_token_estimate_learns_what_the_model_counts() -> None:
    ratio = TokenRatio()
    for _ in range(200):
        ratio.learn(1000, 500)
    assert ratio.estimate(1000) == pytest.approx(500, abs=1)


def test_token_estimate_learns_nothing_from_tiny_or_uncounted_prompts() -> None:
    ratio = TokenRatio()
    for _ in range(200):
        ratio.learn(15, 15)
        ratio.learn(1000, 0)
    assert ratio.estimate(400) == 100


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7))), st.integers(0, 10**7))
def test_token_estimate_is_a_count_whatever_was_learned(seen: list[tuple[int, int]], prompt_bytes: int) -> None:
    ratio = TokenRatio()
    for seen_bytes, seen_tokens in seen:
        ratio.learn(seen_bytes, seen_tokens)
    assert ratio.estimate(prompt_bytes) >= 1
