"""A step model from the steps of a driven engine, and what was measured beside it."""

import random
from dataclasses import replace

import pytest

from node.errors import SettingsError
from node.local.stats import TimedStep
from node.routing.profile import StepModel
from node.simulate.calibration import Cache, fit, measure

TRUE = StepModel(base_s=0.002, per_decode_s=0.0001, per_prefill_token_s=0.00003)


def driven(count: int, *, noise: float = 0.0, stalls: float = 0.0) -> list[TimedStep]:
    dice = random.Random(7)
    steps = []
    for _ in range(count):
        decoding, prefill_tokens = dice.randint(0, 64), dice.choice([0, 0, dice.randint(1, 2048)])
        seconds = TRUE.step_s(decoding, prefill_tokens) * (1.0 + dice.uniform(-noise, noise))
        if dice.random() < stalls:
            seconds *= 10.0
        if decoding or prefill_tokens:
            steps.append(TimedStep(decoding, prefill_tokens, seconds))
    return steps


def assert_near(found: StepModel, share: float) -> None:
    assert found.base_s == pytest.approx(TRUE.base_s, rel=share)
    assert found.per_decode_s == pytest.approx(TRUE.per_decode_s, rel=share)
    assert found.per_prefill_token_s == pytest.approx(TRUE.per_prefill_token_s, rel=share)


def test_a_linear_engine_is_found_exactly() -> None:
    found = fit(driven(3000))
    assert_near(found.model, 1e-3)
    assert found.median_error < 1e-3
    assert found.steps == len(driven(3000))


def test_noise_does_not_make_the_engine_look_faster() -> None:
    found = fit(driven(6000, noise=0.5))
    assert_near(found.model, 0.05)
    assert found.median_error == pytest.approx(0.25, abs=0.05)


def test_steps_that_were_held_up_hardly_count() -> None:
    assert_near(fit(driven(6000, noise=0.2, stalls=0.03)).model, 0.06)


def test_no_coefficient_is_negative() -> None:
    steps = [TimedStep(n, 0, 0.01 - 0.0001 * n) for n in range(1, 50)] * 4 + [TimedStep(0, 100, 0.01)] * 50
    found = fit(steps).model
    assert found.base_s > 0
    assert min(found.per_decode_s, found.per_prefill_token_s) >= 0


@pytest.mark.parametrize("steps", [[], [TimedStep(1, 0, 0.01)] * 100])
def test_too_little_to_learn_from_is_said(steps: list[TimedStep]) -> None:
    with pytest.raises(SettingsError, match="give more --seconds"):
        fit(steps)


def test_what_was_measured_is_told_beside_the_model() -> None:
    steps = [TimedStep(1, 0, 0.002)] * 600 + [TimedStep(32, 0, 0.004)] * 300 + [TimedStep(8, 1000, 0.1)] * 5
    found = measure(steps, [1, 32, 64])
    assert found.step_s == {1: 0.002, 32: 0.004, 64: None}
    assert found.prefill_tokens_per_s == pytest.approx(10_000)
    assert found.peak_tokens_per_s is not None
    assert 6000 < found.peak_tokens_per_s <= 8000


def test_nothing_seen_is_nothing_told() -> None:
    found = measure([], [1])
    assert (found.step_s, found.prefill_tokens_per_s, found.peak_tokens_per_s) == ({1: None}, None, None)


def test_attention_is_told_apart_from_sequences_and_prompt_tokens() -> None:
    true = replace(TRUE, per_kv_token_s=2e-7, per_prefill_pair_s=1.3e-8)
    cache, dice, steps = Cache(200_000, 129), random.Random(5), []
    for _ in range(3000):
        decoding, held_each = dice.randint(0, 64), dice.choice([200, 1000, 2000])
        held = decoding * held_each
        prefill_tokens = dice.choice([0, 0, dice.randint(1, 2048)])
        pairs = prefill_tokens * dice.uniform(0, 1500)
        seconds = true.step_s(decoding, prefill_tokens, held, pairs)
        # Half of each sequence's last block, of 129 tokens, is empty, and counts as used.
        usage = (held + 64 * decoding) / cache.tokens
        if decoding or prefill_tokens:
            steps.append(TimedStep(decoding, prefill_tokens, seconds, 1, decoding, usage, pairs))
    found = fit(steps, cache)
    assert found.median_error < 1e-3
    assert_near(found.model, 0.01)
    assert found.model.per_kv_token_s == pytest.approx(2e-7, rel=0.01)
    assert found.model.per_prefill_pair_s == pytest.approx(1.3e-8, rel=0.01)


def test_a_batch_too_large_is_told_and_one_that_pays_is_not() -> None:
    slower = measure([TimedStep(32, 0, 0.005)] * 9 + [TimedStep(64, 0, 0.018)] * 9, [32, 64])
    assert slower.tokens_per_s == {32: pytest.approx(6400), 64: pytest.approx(64 / 0.018)}
    assert slower.fastest == 32
    assert measure([TimedStep(32, 0, 0.005)] * 9 + [TimedStep(64, 0, 0.009)] * 9, [32, 64]).fastest is None
    assert measure([], [32, 64]).fastest is None


def test_only_sequences_of_the_usual_length_say_how_long_a_batch_takes() -> None:
    cache = Cache(100_000)
    short = [TimedStep(32, 0, 0.003, 1, 32, 32 * 256 / cache.tokens)] * 20
    usual = [TimedStep(32, 0, 0.010, 1, 32, 32 * 1024 / cache.tokens)] * 5
    assert measure(short + usual, [32], cache, 1088).step_s == {32: 0.010}
