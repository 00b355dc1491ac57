"""The step model learned from steps: right under noise, deaf to what was no step, never negative, never guessed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.routing.profile import StepModel
from node.routing.step_fit import StepFit

TRUE = StepModel(base_s=0.01, per_decode_s=0.0002, per_prefill_token_s=0.00005)


def steps(seed: int, count: int, *, noise: float = 0.0, outliers: float = 0.0) -> list[tuple[int, int, float]]:
    """Mixed steps of an engine that works as `TRUE` says."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        decoding = draw.randint(0, 64)
        prefill_tokens = draw.choice([0, 0, draw.randint(1, 2048)]) or (0 if decoding else 1)
        seconds = TRUE.step_s(decoding, prefill_tokens) * max(0.2, draw.gauss(1.0, noise))
        if draw.random() < outliers:
            seconds += draw.uniform(0.2, 5.0)
        found.append((decoding, prefill_tokens, seconds))
    return found


def fitted(seen: list[tuple[int, int, float]]) -> StepModel:
    fit = StepFit()
    for decoding, prefill_tokens, seconds in seen:
        fit.add(decoding, prefill_tokens, seconds)
    assert fit.model is not None
    return fit.model


def close(model: StepModel, rel: float) -> bool:
    typical = [(1, 0), (32, 0), (64, 0), (0, 1024), (32, 512)]
    return all(model.step_s(*each) == pytest.approx(TRUE.step_s(*each), rel=rel) for each in typical)


def test_exact_steps_give_the_exact_model() -> None:
    model = fitted(steps(1, 320))
    assert model.base_s == pytest.approx(TRUE.base_s)
    assert model.per_decode_s == pytest.approx(TRUE.per_decode_s)
    assert model.per_prefill_token_s == pytest.approx(TRUE.per_prefill_token_s)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_a_tenth_leaves_the_model_within_a_twentieth(seed: int) -> None:
    assert close(fitted(steps(seed, 1600, noise=0.1)), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_one_step_in_a_hundred_that_was_held_up_hardly_moves_it(seed: int) -> None:
    assert close(fitted(steps(seed, 3200, noise=0.05, outliers=0.01)), rel=0.1)


def test_change_of_speed_is_followed() -> None:
    slower = [(decoding, tokens, 2 * seconds) for decoding, tokens, seconds in steps(2, 12_000)]
    model = fitted(steps(1, 4000) + slower)
    assert model.step_s(32, 512) == pytest.approx(2 * TRUE.step_s(32, 512), rel=0.1)


def test_nothing_is_known_before_enough_steps_nor_before_the_first_prompt() -> None:
    decodes = [(4, 0, 0.02)] * 100
    for seen, known in ((decodes, False), ([*decodes, (4, 100, 0.03)], True), ([(1, 100, 0.02)], False)):
        fit = StepFit()
        for decoding, prefill_tokens, seconds in seen:
            fit.add(decoding, prefill_tokens, seconds)
        assert (fit.model is not None) == known


def test_reports_without_work_or_time_say_nothing() -> None:
    fit = StepFit()
    for _ in range(100):
        fit.add(0, 0, 0.5)
        fit.add(1, 10, 0.0)
    assert fit.model is None


seen_steps = st.tuples(st.integers(0, 256), st.integers(0, 8192), st.floats(1e-4, 5.0))


@given(st.lists(seen_steps, min_size=8, max_size=100))
def test_no_coefficient_is_ever_negative_whatever_was_seen(seen: list[tuple[int, int, float]]) -> None:
    fit = StepFit()
    for decoding, prefill_tokens, seconds in seen:
        fit.add(decoding, prefill_tokens, seconds)
        model = fit.model
        if model is not None:
            assert model.base_s > 0.0
            assert min(model.per_decode_s, model.per_prefill_token_s) >= 0.0
