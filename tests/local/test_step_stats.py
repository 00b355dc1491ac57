from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.local.stats import FadingRate, Step, StepStats


def step(at_s: float, running: int = 1, waiting: int = 0, **more: float) -> Step:
    return Step(at_s=at_s, running=running, waiting=waiting, kv_cache_usage=0.5, **more)  # type: ignore[arg-type]


def test_cold_engine_knows_no_rate() -> None:
    stats = StepStats(4)
    assert (stats.step_s, stats.prefill_tokens_per_s, stats.sequences_per_s) == (None, None, None)
    assert stats.kv_cache_usage is None


def test_gauges_are_those_of_the_last_step() -> None:
    stats = StepStats(4)
    stats.add(step(0.0, running=3, waiting=2))
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (3, 2, 0.5)
    stats.add(step(9.0, running=0, computed=False))
    assert (stats.running, stats.waiting) == (0, 0)


def test_busy_steps_last_from_report_to_report() -> None:
    stats = StepStats(4)
    for count in range(100):
        stats.add(step(count * 0.02, elapsed_s=0.015))
    assert stats.step_s == pytest.approx(0.02, rel=0.02)


def test_first_step_after_idling_counts_the_engines_own_time() -> None:
    stats = StepStats(4)
    stats.add(step(0.0, running=0, elapsed_s=0.01))
    stats.add(step(500.0, running=0, elapsed_s=0.01))
    assert stats.step_s == pytest.approx(0.01)


def test_stalled_engine_does_not_spoil_the_rates() -> None:
    stats = StepStats(4)
    stats.add(step(0.0, elapsed_s=0.01))
    stats.add(step(20.0, elapsed_s=0.01, prefill_tokens=100))
    assert stats.step_s == pytest.approx(0.01)
    assert stats.prefill_tokens_per_s == pytest.approx(10_000)


def test_prefill_rate_comes_only_from_steps_that_prefilled() -> None:
    stats = StepStats(4)
    stats.add(step(0.0, elapsed_s=0.1, prefill_tokens=500))
    for count in range(50):
        stats.add(step(0.1 + count * 0.01))
    assert stats.prefill_tokens_per_s == pytest.approx(5000)


def test_finishing_rate_is_measured_only_while_the_engine_is_full() -> None:
    stats = StepStats(2)
    for count in range(20):
        stats.add(step(count * 0.1, running=1, finished=1))
    assert stats.sequences_per_s is None
    for count in range(20, 40):
        stats.add(step(count * 0.1, running=2, finished=1))
    assert stats.sequences_per_s == pytest.approx(10, rel=0.1)


def test_rates_follow_a_change_of_speed() -> None:
    stats = StepStats(4)
    at_s = 0.0
    for _ in range(100):
        at_s += 0.01
        stats.add(step(at_s))
    for _ in range(600):
        at_s += 0.05
        stats.add(step(at_s))
    assert stats.step_s == pytest.approx(0.05, rel=0.1)


def test_forgetting_rates_keeps_the_gauges() -> None:
    stats = StepStats(4)
    stats.add(step(0.0, running=3, elapsed_s=0.1))
    stats.forget_rates()
    assert stats.step_s is None
    assert stats.running == 3


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(1e-4, 5.0)), min_size=1, max_size=50))
def test_rate_stays_between_the_slowest_and_fastest_sample(samples: list[tuple[float, float]]) -> None:
    rate = FadingRate()
    for amount, seconds in samples:
        rate.add(amount, seconds)
    speeds = [amount / seconds for amount, seconds in samples]
    assert rate.per_s is not None
    assert min(speeds) * 0.999 <= rate.per_s <= max(speeds) * 1.001
