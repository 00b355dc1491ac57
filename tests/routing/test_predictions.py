"""How long things would take: the local prediction, a provider's recent TTFT, bytes per token."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.routing.predict import predict_total_s, predict_ttft_s
from node.routing.tokens import TokenRatio
from node.routing.ttft import TtftWindow
from node.routing.values import EngineLoad, QueueLoad
from tests.routing.stories import ENGINE, REQUEST

NOBODY = QueueLoad()


def ttft_s(engine: EngineLoad = ENGINE, queue: QueueLoad = NOBODY) -> float | None:
    return predict_ttft_s(REQUEST, engine, queue, feed_ahead=1)


def test_idle_engine_takes_its_prefill_and_one_step() -> None:
    assert ttft_s() == pytest.approx(100 / 1000 + 0.02)


def test_prefill_already_handed_over_and_prompts_ahead_come_first() -> None:
    queued = replace(ENGINE, queued_prefill_tokens=500)
    assert ttft_s(queued, QueueLoad(depth=2, prompt_tokens_ahead=300)) == pytest.approx(0.9 + 0.02)


def test_full_engine_adds_the_wait_for_sequences_to_finish() -> None:
    # 5 in flight, 3 ahead, 1 of its own: 4 of them must finish before 5 slots hold it, at 2 a second.
    full = replace(ENGINE, in_flight=5)
    assert ttft_s(full, QueueLoad(depth=3, sequences_ahead=3)) == pytest.approx(4 / 2 + 0.12)


@pytest.mark.parametrize(
    "cold",
    [
        replace(ENGINE, prefill_tokens_per_s=None),
        replace(ENGINE, step_s=None),
        replace(ENGINE, in_flight=5, sequences_per_s=None),
        replace(ENGINE, in_flight=5, sequences_per_s=0.0),
    ],
)
def test_what_was_never_measured_is_not_guessed(cold: EngineLoad) -> None:
    assert ttft_s(cold) is None


def test_finishing_rate_does_not_matter_while_a_slot_is_free() -> None:
    assert ttft_s(replace(ENGINE, in_flight=4, sequences_per_s=None)) == ttft_s()


def test_whole_answer_is_first_token_and_a_step_for_each_other() -> None:
    assert predict_total_s(REQUEST, ENGINE, 0.5) == pytest.approx(0.5 + 99 * 0.02)
    assert predict_total_s(REQUEST, replace(ENGINE, step_s=None), 0.5) is None


def test_assumption_stands_in_until_enough_was_measured() -> None:
    window = TtftWindow(1.0)
    assert window.high_s(0.0) == 1.0
    for _ in range(31):
        window.add(0.2, 0.0)
    assert window.high_s(0.0) == 1.0
    window.add(0.2, 0.0)
    assert window.high_s(0.0) == 0.2


def test_one_bad_answer_is_believed_at_once() -> None:
    window = TtftWindow(1.0)
    window.add(4.0, 0.0)
    assert window.high_s(0.0) == 4.0


def test_bad_spell_is_forgotten_after_ten_minutes() -> None:
    window = TtftWindow(1.0)
    window.add(9.0, 0.0)
    for _ in range(32):
        window.add(0.2, 300.0)
    assert window.high_s(600.0) == 9.0
    assert window.high_s(600.1) == 0.2
    assert window.high_s(900.1) == 1.0


def test_high_percentile_passes_over_one_outlier_in_many() -> None:
    window = TtftWindow(1.0)
    for ttft in [5.0] + [0.2] * 99:
        window.add(ttft, 0.0)
    assert window.high_s(0.0) == 0.2
    window.add(5.0, 0.0)
    assert window.high_s(0.0) == 5.0


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
