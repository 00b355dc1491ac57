"""How much work a trace offers an engine."""

from dataclasses import replace

import pytest

from node.routing.profile import EngineProfile, StepModel
from node.simulate.offered import offered_load, speed_for, sustained_batch
from node.simulate.values import TraceRequest

PROFILE = EngineProfile(
    name="made up",
    source="by hand",
    step=StepModel(base_s=0.01, per_decode_s=0.001, per_prefill_token_s=0.0001),
    max_sequences=10,
    max_batched_tokens=110,
    kv_tokens=1_000,
    context_tokens=500,
)


def test_the_work_of_a_request_by_hand() -> None:
    requests = [TraceRequest(0.0, 60, 40), TraceRequest(2.0, 60, 40)]
    # 60 + 40/2 tokens held: 12 would fit, 10 run. 60 · 0.1 ms + 40 · (1 + 10/10) ms + 10 ms · 60/(110 - 10)
    assert sustained_batch(requests, PROFILE) == 10
    assert offered_load(requests, PROFILE) == pytest.approx(2 * (0.006 + 0.080 + 0.006) / 2.0)


def test_long_sequences_share_a_step_with_fewer() -> None:
    assert sustained_batch([TraceRequest(0.0, 150, 100)], PROFILE) == 5
    assert sustained_batch([TraceRequest(0.0, 5_000, 100)], PROFILE) == 1


def test_cached_prompt_tokens_are_no_work_but_the_last_one_is() -> None:
    cold = offered_load([TraceRequest(0.0, 60, 1), TraceRequest(1.0, 60, 1)], PROFILE)
    warm = offered_load([TraceRequest(0.0, 60, 1, 60), TraceRequest(1.0, 60, 1, 60)], PROFILE)
    assert cold - warm == pytest.approx(2 * 59 * 0.0002)


def test_what_no_engine_takes_is_left_out() -> None:
    requests = [TraceRequest(0.0, 60, 40), TraceRequest(2.0, 60, 40)]
    assert offered_load([*requests, TraceRequest(1.0, 490, 11)], PROFILE) == offered_load(requests, PROFILE)


@pytest.mark.parametrize("load", [0.7, 3.0])
def test_speed_makes_the_load_asked_for(load: float) -> None:
    requests = [TraceRequest(float(second), 50 + second, 20) for second in range(30)]
    speed = speed_for(requests, PROFILE, load)
    faster = [TraceRequest(each.arrival_s / speed, each.prompt_tokens, each.output_tokens) for each in requests]
    assert offered_load(faster, PROFILE) == pytest.approx(load)


@pytest.mark.parametrize("requests", [[], [TraceRequest(3.0, 10, 10)]], ids=["empty", "all at once"])
def test_no_speed_for_a_trace_without_load_or_duration(requests: list[TraceRequest]) -> None:
    with pytest.raises(ValueError, match="no speed gives load 1"):
        speed_for(requests, PROFILE, 1.0)


def test_attention_is_work_too() -> None:
    step = replace(PROFILE.step, per_kv_token_s=1e-5, per_prefill_pair_s=1e-6)
    requests = [TraceRequest(0.0, 60, 40, 20), TraceRequest(2.0, 60, 40, 20)]
    more = offered_load(requests, replace(PROFILE, step=step)) - offered_load(requests, PROFILE)
    # 40 tokens out, each reading 60 + 40/2; 40 tokens in, after 20 in the cache and half of one another
    assert more == pytest.approx(2 * (40 * 80 * 1e-5 + 40 * 40 * 1e-6) / 2.0)
