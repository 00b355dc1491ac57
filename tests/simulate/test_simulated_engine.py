"""The engine in virtual time: how long its steps are, and which step a request makes."""

from dataclasses import replace

import pytest

from node.routing.profile import EngineProfile, StepModel
from node.simulate.engine import Sequence, SimulatedEngine, StepReport

PROFILE = EngineProfile(
    name="made up",
    source="by hand",
    step=StepModel(base_s=0.01, per_decode_s=0.0, per_prefill_token_s=0.0001),
    max_sequences=2,
    max_batched_tokens=1000,
    kv_tokens=100_000,
    context_tokens=4_000,
)
AHEAD = replace(PROFILE, steps_ahead=1)


def sequence(owner: int, prompt_tokens: int = 100, output_tokens: int = 50) -> Sequence:
    return Sequence(owner, prompt_tokens, prompt_tokens, output_tokens)


def until_began(engine: SimulatedEngine, owner: int) -> StepReport:
    while True:
        report = engine.step()
        if owner in report.began:
            return report


@pytest.mark.parametrize(("profile", "whole_steps"), [(PROFILE, 0), (AHEAD, 1)])
def test_what_comes_during_a_step_is_in_the_next_or_with_one_planned_ahead_in_the_one_after(
    profile: EngineProfile, whole_steps: int
) -> None:
    engine = SimulatedEngine(profile)
    engine.submit(sequence(1), 0.0)
    assert until_began(engine, 1).at_s == pytest.approx(0.02)
    engine.submit(sequence(2), 0.035)  # in the second step that decodes, which ends at 0.04
    assert until_began(engine, 2).at_s == pytest.approx(0.04 + whole_steps * 0.01 + 0.02)


@pytest.mark.parametrize("profile", [PROFILE, AHEAD])
def test_an_idle_engine_begins_at_once(profile: EngineProfile) -> None:
    engine = SimulatedEngine(profile)
    engine.submit(sequence(1, output_tokens=1), 1.0)
    assert until_began(engine, 1).at_s == pytest.approx(1.02)
    engine.submit(sequence(2), 2.0)
    assert until_began(engine, 2).at_s == pytest.approx(2.02)


@pytest.mark.parametrize(("profile", "whole_steps"), [(PROFILE, 0), (AHEAD, 1)])
def test_a_place_is_free_when_the_step_that_frees_it_is_known(profile: EngineProfile, whole_steps: int) -> None:
    engine = SimulatedEngine(profile)
    engine.submit(sequence(1, output_tokens=4), 0.0)
    engine.submit(sequence(2), 0.0)
    engine.submit(sequence(3), 0.0)
    while 1 not in (report := engine.step()).finished:
        pass
    assert until_began(engine, 3).at_s == pytest.approx(report.at_s + whole_steps * 0.01 + 0.02)


def test_steps_get_longer_as_the_cache_fills_and_prompts_cost_more_at_their_end() -> None:
    step = replace(PROFILE.step, per_kv_token_s=1e-5, per_prefill_pair_s=1e-6)
    engine = SimulatedEngine(replace(PROFILE, step=step))
    engine.submit(sequence(1, prompt_tokens=1500, output_tokens=101), 0.0)
    first = engine.step()
    assert first.seconds == pytest.approx(0.01 + 0.1 + 1000 * 500 * 1e-6)
    second = engine.step()
    assert second.seconds == pytest.approx(0.01 + 0.05 + 1000 * 1e-5 + 500 * 1250 * 1e-6)
    seconds = 0.0
    while 1 not in (report := engine.step()).finished:
        seconds += report.count * report.seconds
    seconds += report.count * report.seconds
    assert seconds == pytest.approx(100 * (0.01 + (1501 + 99 / 2) * 1e-5))
