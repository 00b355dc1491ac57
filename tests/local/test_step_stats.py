"""How long steps really took, told from reports that come late, together, or after a stall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.local.stats import Step, StepStats, TimedStep
from node.routing.profile import StepModel

TRUE = StepModel(base_s=0.01, per_decode_s=0.001, per_prefill_token_s=0.0001)


def step(at_s: float, running: int = 1, waiting: int = 0, **more: float) -> Step:
    return Step(at_s=at_s, running=running, waiting=waiting, kv_cache_usage=0.5, **more)  # type: ignore[arg-type]


def work(count: int) -> list[tuple[int, int]]:
    """Decoding sequences and prompt tokens of so many steps, as varied as a model needs."""
    return [(1 + number % 7, (number % 5) * 40) for number in range(count)]


def reported(delays_s: list[float], model: StepModel = TRUE, stats: StepStats | None = None) -> StepStats:
    """Steps that took what `model` says, each report so much later than its step ended, in order."""
    stats = stats or StepStats()
    at_s = arrived_s = 0.0
    for (decoding, prefill), delay_s in zip(work(len(delays_s)), delays_s, strict=True):
        at_s += model.step_s(decoding, prefill)
        arrived_s = max(arrived_s, at_s + delay_s)
        took_s = 0.8 * model.step_s(decoding, prefill)  # the engine's own figure covers only part of a step
        stats.add(step(arrived_s, running=decoding, decoding=decoding, prefill_tokens=prefill, elapsed_s=took_s))
    return stats


def is_close(stats: StepStats, rel: float, model: StepModel = TRUE) -> bool:
    learned = stats.rates.step
    assert learned is not None
    return all(
        learned.step_s(decoding, prefill) == pytest.approx(model.step_s(decoding, prefill), rel=rel)
        for decoding, prefill in ((1, 0), (7, 0), (1, 160), (7, 160))
    )


def test_cold_engine_knows_no_rate() -> None:
    stats = StepStats()
    assert (stats.rates.step, stats.rates.sequences_per_s) == (None, None)
    assert stats.kv_cache_usage is None


def test_gauges_are_those_of_the_last_step() -> None:
    stats = StepStats()
    stats.add(step(0.0, running=3, waiting=2))
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (3, 2, 0.5)
    stats.add(step(9.0, running=0, computed=False))
    assert (stats.running, stats.waiting) == (0, 0)


def test_busy_steps_last_from_report_to_report() -> None:
    assert is_close(reported([0.0] * 200), rel=0.02)


def test_reports_held_up_by_a_busy_event_loop_do_not_distort_what_is_learned() -> None:
    # Every tenth report comes 60 ms late, and those behind it right after it.
    assert is_close(reported([0.06 if number % 10 == 0 else 0.0 for number in range(600)]), rel=0.1)


def test_answer_whose_reports_all_come_at_its_end_is_learned_step_by_step() -> None:
    # What a starved process does: thirty steps are told at once, half a second late.
    stats = reported([0.0] * 100)
    at_s = 100.0
    for story in range(20):
        at_s += 0.5
        for number, (decoding, prefill) in enumerate(work(30)):
            took_s = 0.8 * TRUE.step_s(decoding, prefill)
            left = 0 if number == 29 else 1
            arrived_s = at_s + number * 2e-5
            stats.add(step(arrived_s, running=left, decoding=decoding, prefill_tokens=prefill, elapsed_s=took_s))
        assert is_close(stats, rel=0.1), story


def test_steps_after_idling_last_as_long_as_the_engine_says() -> None:
    stats = StepStats()
    for number, (decoding, prefill) in enumerate(work(200)):
        took_s = TRUE.step_s(decoding, prefill)
        stats.add(step(number * 500.0, running=0, decoding=decoding, prefill_tokens=prefill, elapsed_s=took_s))
    assert is_close(stats, rel=0.01)


def test_stalled_engine_does_not_spoil_what_was_learned() -> None:
    assert is_close(reported([0.0 if number < 150 else 20.0 for number in range(300)]), rel=0.02)


def test_report_without_work_teaches_nothing() -> None:
    stats = reported([0.0] * 200)
    for number in range(100):
        stats.add(step(100.0 + number, computed=False))
    assert is_close(stats, rel=0.02)


def test_engine_that_has_become_much_faster_is_believed() -> None:
    fast = StepModel(base_s=0.001, per_decode_s=0.0001, per_prefill_token_s=0.00001)
    slow = reported([0.0] * 100)
    slow.add(step(1000.0, running=0))
    assert is_close(reported([0.0] * 40_000, fast, slow), rel=0.1, model=fast)


def test_finishing_rate_is_a_share_of_what_runs() -> None:
    stats = StepStats()
    for count in range(80):
        stats.add(step(count * 0.1, running=2, decoding=2, finished=1))
    assert stats.rates.sequences_per_s == pytest.approx(10, rel=0.1)
    stats.add(step(8.0, running=4, decoding=2))
    assert stats.rates.sequences_per_s == pytest.approx(20, rel=0.1)
    assert stats.rates.tpot_s is None or stats.rates.tpot_s == pytest.approx(0.1, rel=0.1)


def test_rates_follow_first_tokens_and_answers_without_waiting_for_a_step() -> None:
    stats = reported([0.0] * 200)
    before = stats.rates
    stats.answered(10)
    assert (before.sequences_per_s is None, stats.rates.sequences_per_s is None) == (True, False)
    for _ in range(100):
        stats.began(predicted_s=1.0, took_s=1.7, queued=False)
    assert stats.rates.ttft_doubt == pytest.approx(0.7, rel=0.1)
    assert stats.rates.queue_doubt != pytest.approx(0.7, rel=0.1)


def test_forgetting_keeps_the_gauges() -> None:
    stats = reported([0.0] * 200)
    running = stats.running
    stats.forget()
    assert stats.rates.step is None
    assert (stats.running, stats.kv_cache_usage) == (running, 0.5)


@given(st.lists(st.floats(0.0, 0.5), min_size=40, max_size=80), st.integers(0, 79))
def test_no_delay_of_reports_makes_a_step_seem_longer_than_the_longest_or_shorter_than_nothing(
    delays_s: list[float], stalled: int
) -> None:
    delays_s[stalled % len(delays_s)] += 30.0
    learned = reported(delays_s).rates.step
    if learned is not None:
        assert min(learned.base_s, learned.per_decode_s, learned.per_prefill_token_s) >= 0.0
        assert learned.step_s(4, 80) < 1.0


def test_what_a_first_token_takes_beside_its_steps_settles_in_the_middle_of_what_was_seen() -> None:
    stats = reported([0.0] * 200)
    for _ in range(2000):
        for takes_s in (0.004, 0.012, 0.011, 0.009, 0.5):
            stats.began(predicted_s=stats.rates.first_token_s, took_s=takes_s, queued=False)
            stats.began(predicted_s=0.0, took_s=1.0, queued=True)
    assert stats.rates.first_token_s == pytest.approx(0.011, abs=0.001)
    for _ in range(100):
        stats.began(predicted_s=0.5, took_s=0.0, queued=False)
    assert stats.rates.first_token_s == 0.0


def test_timed_steps_tell_what_they_began_with() -> None:
    timed: list[TimedStep] = []
    stats = StepStats(timed.append)
    for number in range(4):
        report = Step(
            at_s=0.01 * number,
            running=number + 1,
            waiting=0,
            kv_cache_usage=0.1 * number,
            decoding=number,
            prefill_tokens=10,
            prefill_pairs=50.0,
            elapsed_s=0.01,
        )
        stats.add(report)
    assert [(each.running, each.kv_cache_usage, each.prefill_pairs) for each in timed[1:3]] == [
        (1, 0.0, 50.0),
        (2, 0.1, 50.0),
    ]
