import _truth
import pytest
from _harness import load

from node.routing.profile import EngineProfile, StepModel
from node.simulate.offered import offered_load
from node.simulate.values import TraceRequest

PROFILE = EngineProfile(
    name="made-up",
    source="by hand",
    step=StepModel(base_s=0.0015, per_decode_s=0.0001, per_prefill_token_s=0.00003),
    max_sequences=64,
    max_batched_tokens=2048,
    kv_tokens=262_144,
    context_tokens=4096,
)


def told(ttft_s: float, *, queue_s: float = 0.0, predicted_s: float | None = 0.1) -> _truth.Told:
    return _truth.Told(
        arrival_s=0.0,
        prompt_tokens=100,
        output_tokens=10,
        ttft_s=ttft_s,
        node_ttft_s=ttft_s,
        queue_s=queue_s,
        predicted_s=predicted_s,
    )


def cell(*each: _truth.Told, simulated_s: tuple[float, ...], failed: int = 0) -> _truth.Cell:
    return _truth.Cell(
        load=0.8,
        round=0,
        told=each,
        simulated_s=simulated_s,
        failed=failed,
        first_failure=None,
        generator_cpu_share=0.1,
    )


def record(index: int, *, tokens: int = 10, ttft_s: float | None = 0.2, request_id: str = "a") -> load.Record:
    return load.Record(
        index=index,
        start_s=0.0,
        end_s=1.0,
        ttft_s=ttft_s,
        itl_s=(),
        status=200,
        headers={"X-Request-Id": request_id},
        usage={"prompt_tokens": 101, "completion_tokens": tokens},
        error=None,
    )


@pytest.mark.parametrize("wanted", [0.7, 0.9])
def test_workload_offers_the_load_for_about_the_time_and_fits_the_context(wanted: float) -> None:
    trace = _truth.workload(PROFILE, wanted, seconds=60, seed=1)
    assert offered_load(trace, PROFILE) == pytest.approx(wanted)
    assert trace[0].arrival_s == 0.0
    assert trace[-1].arrival_s == pytest.approx(60, rel=0.1)
    assert max(each.prompt_tokens + each.output_tokens for each in trace) < PROFILE.context_tokens
    assert trace == _truth.workload(PROFILE, wanted, seconds=60, seed=1)


def test_prediction_is_held_against_the_client_from_the_hand_over_on() -> None:
    assert told(0.3, queue_s=0.2, predicted_s=0.1).error == pytest.approx(0.0)
    assert told(0.4, queue_s=0.2, predicted_s=0.1).error == pytest.approx(0.5)
    assert told(0.4, predicted_s=None).error is None


def test_bars_are_met_by_the_truth_and_missed_by_far_off_figures() -> None:
    good = cell(told(0.1), told(0.11), simulated_s=(0.1, 0.12))
    assert [bar.met for bar in _truth.bars([good])] == [True, True, True]
    slow = cell(told(0.2), told(0.2), simulated_s=(0.1, 0.1), failed=1)
    assert [bar.met for bar in _truth.bars([good, slow])] == [False, False, False]


def test_nothing_measured_meets_no_bar() -> None:
    assert not any(bar.met for bar in _truth.bars([cell(simulated_s=())])[:2])


def test_pairing_takes_what_was_counted_and_says_what_does_not_count() -> None:
    trace = [TraceRequest(1.0, 100, 10)] * 4
    records = [
        record(0),
        record(1, tokens=9),
        record(2, ttft_s=None),
        record(3, request_id="unheard of"),
    ]
    outcomes: dict[str, dict[str, float | None]] = {"a": {"ttft_s": 0.19, "queue_s": 0.05, "predicted_ttft_s": 0.1}}
    pairs, failures = _truth.pair(trace, records, outcomes)
    assert [(each.prompt_tokens, each.queue_s, each.predicted_s) for each in pairs] == [(101, 0.05, 0.1)]
    assert failures == ["9 tokens instead of 10", "no text", "the node knows nothing of it"]


def test_simulator_answers_every_request_of_the_trace() -> None:
    ttfts = _truth.simulate([told(0.1), told(0.1)], PROFILE)
    assert len(ttfts) == 2
    assert all(0 < each < 1 for each in ttfts)


def test_summary_puts_real_simulated_and_predicted_below_each_other() -> None:
    said = _truth.summary([cell(told(0.1), simulated_s=(0.12,))])
    assert "load 0.8, round 1: real" in said
    assert "100" in said
    assert "120" in said
