"""A trace through the routing with more than one provider: who goes where, by zone, weight, price and failures."""

from dataclasses import replace
from decimal import Decimal

from node.money import FREE, Price
from node.routing.policy import OverflowPolicy
from node.routing.profile import EngineProfile, StepModel
from node.routing.targets import TargetsPolicy
from node.routing.values import Limits, Reason, Target, Zone
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
CLOUD = Provider(name="cloud", price=Price(Decimal(1), Decimal(4)), ttft_median_s=0.3, ttft_sigma=0.1)
NEAR = Provider(name="gpu-2", price=FREE, zone=Zone.PREMISES, ttft_median_s=0.3, ttft_sigma=0.1, seed=1)
TOO_MUCH = [TraceRequest(number / 6.0, 200, 50) for number in range(360)]  # the engine is good for half of it
PROMISE = Promise(ttft_budget_s=1.0, pinned=frozenset(range(0, 360, 3)))


def live(*providers: Provider, promise: Promise = PROMISE) -> Replay:
    first, *others = providers
    return replay(TOO_MUCH, PROFILE, first, promise, make_policy("overflow"), others)


def fates(done: Replay) -> list[Fate]:
    assert None not in done.fates
    return [fate for fate in done.fates if fate is not None]


def test_one_provider_in_the_cloud_is_decided_as_by_the_policy_alone() -> None:
    alone = replay(TOO_MUCH, PROFILE, CLOUD, PROMISE, OverflowPolicy(Limits()))
    assert fates(live(CLOUD)) == fates(alone)
    assert isinstance(make_policy("overflow"), TargetsPolicy)


def test_pinned_requests_may_go_to_a_provider_on_the_premises_and_to_no_other() -> None:
    done = fates(live(CLOUD, NEAR))
    pinned = [done[number] for number in PROMISE.pinned]
    assert {fate.provider for fate in pinned} == {None, "gpu-2"}
    assert {fate.provider for number, fate in enumerate(done) if number not in PROMISE.pinned} >= {"cloud", "gpu-2"}
    outcome = summary(TOO_MUCH, PROMISE, live(CLOUD, NEAR))
    assert outcome.pinned_in_budget_share is not None
    assert outcome.pinned_in_budget_share > 0.97
    assert outcome.sent == {name: sum(fate.provider == name for fate in done) for name in ("cloud", "gpu-2")}


def test_each_call_is_priced_at_its_provider() -> None:
    for fate in fates(live(CLOUD, NEAR)):
        assert (fate.cost_nano_usd > 0) is (fate.provider == "cloud")


def test_more_weight_gets_more_of_the_calls() -> None:
    free = Promise(ttft_budget_s=1.0)
    other = replace(CLOUD, name="other", weight=4.0, seed=2)
    sent = summary(TOO_MUCH, free, live(CLOUD, other, promise=free)).sent
    assert sent["other"] > 2 * sent["cloud"]


def test_what_fails_at_one_is_sent_to_the_other_and_what_fails_twice_is_reported() -> None:
    free, out = Promise(ttft_budget_s=1.0), ((0.0, 1e9),)
    other = replace(CLOUD, name="other", seed=2)
    one_out = live(replace(CLOUD, outages=out, pause_s=0.0), other, promise=free)
    assert one_out.failed_calls > 0
    saved = [fate for fate in fates(one_out) if fate.reason is Reason.CLOUD_FAILED]
    assert saved
    assert {fate.provider for fate in saved if fate.target is Target.CLOUD} == {"other"}
    assert not any(fate.target is Target.REFUSE for fate in saved)
    both_out = [replace(each, outages=out, pause_s=0.0) for each in (CLOUD, other)]
    refused = [fate for fate in fates(live(*both_out, promise=free)) if fate.target is Target.REFUSE]
    assert refused
    assert all(fate.ttft_s is None and fate.cost_nano_usd == 0 for fate in refused)
