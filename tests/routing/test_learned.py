"""What is learned from answers: quantiles that fade, how long a caller's answers are, how late first tokens come."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.routing.lateness import Lateness
from node.routing.lengths import OutputLengths
from node.routing.observer import EngineObserver, doubted_s
from node.routing.quantiles import FadingQuantiles

_BUCKET = 2 ** (1 / 16)  # quantiles are given as the upper end of a bucket this wide


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_quantile_is_within_a_bucket_of_the_true_one_while_nothing_has_faded(values: list[float], share: float) -> None:
    seen = FadingQuantiles(1e12)
    for value in values:
        seen.add(value)
    rank = min(len(values), max(1, math.ceil(share * len(values) - 1e-6)))
    near = sorted(values)[max(0, rank - 2) : rank + 1]
    found = seen.quantile(share)
    assert found is not None
    assert min(near) / _BUCKET <= found <= max(near) * _BUCKET * 1.001


def test_nothing_seen_has_no_quantile() -> None:
    assert FadingQuantiles(10.0).quantile(0.5) is None
    assert FadingQuantiles(10.0).weight == 0.0


def test_half_of_what_was_seen_is_forgotten_after_a_half_life() -> None:
    seen = FadingQuantiles(60.0)
    for _ in range(10):
        seen.add(1.0, 0.0)
    assert seen.weight_at(60.0) == pytest.approx(5.0)
    for _ in range(6):
        seen.add(4.0, 60.0)
    assert seen.quantile(0.5) == pytest.approx(4.0, rel=0.05)


def test_age_can_be_counted_in_values() -> None:
    seen = FadingQuantiles(10.0)
    for value in [9.0] * 100 + [0.1] * 40:
        seen.add(value)
    assert seen.quantile(0.9) == pytest.approx(0.1, rel=0.05)


def test_very_old_memories_neither_overflow_nor_return() -> None:
    seen = FadingQuantiles(1.0)
    seen.add(9.0, 0.0)
    for second in range(1, 400):
        seen.add(0.5, float(second))
    seen.add(0.5, 5000.0)
    assert seen.quantile(1.0) == pytest.approx(0.5, rel=0.05)
    assert seen.weight == pytest.approx(1.0)


def test_values_outside_the_range_count_at_its_ends() -> None:
    seen = FadingQuantiles(100.0)
    seen.add(0.0)
    seen.add(1e9)
    low, high = seen.quantile(0.4), seen.quantile(1.0)
    assert low is not None
    assert high is not None
    assert low < 1e-3
    assert high > 1000


def test_answers_of_a_caller_are_expected_to_be_as_long_as_its_earlier_ones() -> None:
    lengths = OutputLengths()
    for _ in range(50):
        lengths.learn("brief", 10)
        lengths.learn("long", 1000)
    assert lengths.expected("brief") == pytest.approx(10)
    assert lengths.expected("long") == pytest.approx(1000)
    assert 10 < lengths.expected("unknown") < 1000


def test_few_answers_of_a_caller_count_in_part() -> None:
    lengths = OutputLengths()
    for _ in range(200):
        lengths.learn("others", 100)
    lengths.learn("new", 1000)
    assert 100 < lengths.expected("new") < 250


def test_before_the_first_answer_something_middling_is_expected() -> None:
    assert OutputLengths().expected("anybody") == 256.0


def test_change_of_a_callers_answers_is_followed() -> None:
    lengths = OutputLengths()
    for tokens in [100] * 300 + [500] * 300:
        lengths.learn("a", tokens)
    assert lengths.expected("a") == pytest.approx(500, rel=0.01)


@pytest.mark.parametrize("queued", [False, True])
def test_doubt_is_assumed_at_first_and_then_what_was_seen(queued: bool) -> None:
    observer = EngineObserver()

    def cautious_s(ttft_s: float) -> float:
        return doubted_s(ttft_s, observer.queue_doubt if queued else observer.ttft_doubt)

    assert cautious_s(1.0) > 1.2
    for _ in range(200):
        observer.began(predicted_s=1.0, took_s=1.1, queued=queued)
    assert cautious_s(1.0) == pytest.approx(1.1, rel=0.01)
    assert 0.25 < cautious_s(0.25) < 0.25 + 0.1


def test_first_answers_count_in_part_against_what_is_assumed() -> None:
    observer = EngineObserver()
    doubts = [observer.ttft_doubt]
    for _ in range(40):
        observer.began(predicted_s=1.0, took_s=1.0, queued=False)
        doubts.append(observer.ttft_doubt)
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[5] > 0.5 * doubts[0]


def test_first_tokens_that_come_early_need_no_doubt() -> None:
    observer = EngineObserver()
    for _ in range(200):
        observer.began(predicted_s=1.0, took_s=0.2, queued=False)
    assert 0.0 < observer.ttft_doubt < 0.1


def test_promises_kept_make_bolder_and_one_that_was_broken_here_far_more_careful() -> None:
    lateness = Lateness()
    for _ in range(200):
        lateness.promised(kept=True, here=True)
    bolder = lateness.here_share
    assert bolder < Lateness().here_share
    lateness.promised(kept=False, here=False)  # the cloud was late: no prediction was wrong
    assert lateness.here_share <= bolder
    careful = bolder
    for _ in range(2):
        lateness.promised(kept=False, here=True)
        assert lateness.here_share > careful
        careful = lateness.here_share
    assert careful > Lateness().here_share


def test_burst_that_leaves_is_given_ever_more_time_in_the_cloud() -> None:
    lateness = Lateness()
    for _ in range(2000):
        lateness.promised(kept=True, here=True)
    shares = []
    for _ in range(100):
        shares.append(lateness.cloud_share)
        lateness.leaves()
    assert shares == sorted(shares)
    assert shares[0] < 0.8
    assert shares[-1] > 0.95
    late = sum(1.0 - share for share in shares)
    assert late < 8.0


def test_finishing_rate_is_that_of_late_and_before_any_that_of_the_mean_answer() -> None:
    observer = EngineObserver()
    assert observer.sequences_per_s(4) is None
    for _ in range(64):
        observer.step(decoding=4, prefill_tokens=10, seconds=0.02, count=1)
    observer.answered(100)
    assert observer.sequences_per_s(4) == pytest.approx(4 / (100 * 0.02), rel=0.05)
    for _ in range(200):
        observer.passed(decoding=4, finished=1, seconds=0.02)
    assert observer.sequences_per_s(4) == pytest.approx(50, rel=0.05)
    assert observer.sequences_per_s(8) == pytest.approx(100, rel=0.05)
    assert observer.tpot_s == pytest.approx(0.02)
