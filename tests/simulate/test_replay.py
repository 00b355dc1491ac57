"""A trace through the routing while the provider fails: who is decided again, who waits, who is refused."""

from dataclasses import replace
from decimal import Decimal

import pytest

from node.money import Price
from node.routing.policy import OverflowPolicy
from node.routing.profile import EngineProfile, StepModel
from node.routing.values import Limits, Reason, Target
from node.simulate.baselines import make_policy
from node.simulate.providers import Provider
from node.simulate.replay import Fate, Promise, Replay, replay, summary
from node.simulate.values import TraceRequest

PROFILE = EngineProfile(
    name="made up",
    source="by hand",
    step=StepModel(base_s=0.02, per_decode_s=0.001, per_prefill_token_s=0.0002),
    max_sequences=4,
    max_batched_tokens=512,
    kv_tokens=20_000,
    context_tokens=4_000,
)
UP = Provider(price=Price(Decimal(1), Decimal(4)), ttft_median_s=0.3, ttft_sigma=0.0)
PROMISE = Promise(ttft_budget_s=1.0)


def steady(per_s: float, seconds: float, output_tokens: int = 50) -> list[TraceRequest]:
    return [TraceRequest(number / per_s, 200, output_tokens) for number in range(int(per_s * seconds))]


def overflow(trace: list[TraceRequest], provider: Provider, promise: Promise = PROMISE) -> Replay:
    return replay(trace, PROFILE, provider, promise, OverflowPolicy(Limits()))


def fates(done: Replay) -> list[Fate]:
    assert None not in done.fates
    return [fate for fate in done.fates if fate is not None]


TOO_MUCH = steady(6.0, 60.0)  # the engine is good for about three a second


def test_call_in_an_outage_fails_after_a_moment_and_its_request_is_decided_again() -> None:
    trace, out = steady(1.0, 20.0), replace(UP, outages=((5.0, 10.0),), pause_s=0.0)
    done = replay(trace, PROFILE, out, PROMISE, make_policy("cloud"))
    assert done.failed_calls == 5
    for number, fate in enumerate(fates(done)):
        if 5 <= number < 10:
            assert (fate.target, fate.reason) == (Target.LOCAL, Reason.CLOUD_FAILED)
            assert fate.decided_s == pytest.approx(number + 0.05)
            assert fate.cost_nano_usd == 0
        else:
            assert fate.target is Target.CLOUD
            assert fate.ttft_s == pytest.approx(0.3)


def test_provider_that_failed_is_left_alone_for_its_pause() -> None:
    trace, out = steady(4.0, 20.0), replace(UP, outages=((5.0, 10.0),), pause_s=2.0)
    done = replay(trace, PROFILE, out, PROMISE, make_policy("cloud"))
    assert done.failed_calls == 3  # at 5.0 s, 7.25 s (the first after 7.05 s) and 9.5 s
    assert all(fate.target is Target.LOCAL for fate in fates(done)[20:46])
    assert fates(done)[47].target is Target.CLOUD


def test_calls_beyond_the_rate_limit_fail_at_once_until_a_minute_is_over() -> None:
    trace = steady(1.0, 130.0)
    limited = replace(UP, calls_per_minute=20, pause_s=0.0)
    done = replay(trace, PROFILE, limited, PROMISE, make_policy("cloud"))
    away = [number for number, fate in enumerate(fates(done)) if fate.target is Target.CLOUD]
    assert away == [*range(20), *range(60, 80), *range(120, 130)]
    assert fates(done)[30].decided_s == pytest.approx(30.0)


def test_when_the_provider_fails_everything_is_still_answered_or_refused_in_time() -> None:
    impatient = replace(PROMISE, patience_s=5.0)
    done = overflow(TOO_MUCH, replace(UP, outages=((0.0, 1e9),)), impatient)
    refused = [number for number, fate in enumerate(fates(done)) if fate.target is Target.REFUSE]
    assert 0 < len(refused) < len(TOO_MUCH) / 2 + 30
    assert not any(fate.target is Target.CLOUD for fate in fates(done))
    for number in refused:
        assert fates(done)[number].decided_s == pytest.approx(TOO_MUCH[number].arrival_s + 5.0, abs=0.1)
    assert summary(TOO_MUCH, impatient, done).spend_nano_usd == 0


def test_promises_are_kept_again_once_the_outage_is_over() -> None:
    done = overflow(TOO_MUCH, replace(UP, outages=((10.0, 20.0),)))
    late = [
        TOO_MUCH[number].arrival_s
        for number, fate in enumerate(fates(done))
        if fate.ttft_s is None or fate.ttft_s > PROMISE.ttft_budget_s
    ]
    assert len([at_s for at_s in late if 8.0 < at_s < 20.0]) > 10
    assert len([at_s for at_s in late if at_s < 8.0]) <= 2
    assert max(late) < 35.0


def test_pinned_requests_never_leave_however_the_provider_is() -> None:
    pinned = replace(PROMISE, pinned=frozenset(range(0, len(TOO_MUCH), 3)))
    done = overflow(TOO_MUCH, replace(UP, outages=((10.0, 20.0),), calls_per_minute=30), pinned)
    assert all(fates(done)[number].target is Target.LOCAL for number in pinned.pinned)


def test_without_trouble_nothing_fails() -> None:
    done = overflow(TOO_MUCH, UP)
    assert done.failed_calls == 0
    outcome = summary(TOO_MUCH, PROMISE, done)
    assert outcome.in_budget_share is not None
    assert outcome.in_budget_share > 0.97
