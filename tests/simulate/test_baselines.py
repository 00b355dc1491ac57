"""What others do about a full engine."""

from decimal import Decimal

import pytest

from node.errors import SettingsError
from node.money import Price
from node.routing.policy import OverflowPolicy, Policy
from node.routing.profile import EngineProfile, StepModel
from node.routing.targets import TargetsPolicy
from node.routing.values import CloudOption, EngineLoad, EngineState, Features, Limits, Residency, Snapshot, Target
from node.simulate.baselines import AimdShare, Seen, Spillover, make_policy
from node.simulate.providers import Provider
from node.simulate.replay import Outcome, Promise, replay, summary
from node.simulate.values import TraceRequest

STEP = StepModel(base_s=0.01, per_decode_s=0.0001, per_prefill_token_s=0.0001)
PRICE = Price(Decimal(1), Decimal(4))
PROFILE = EngineProfile(
    name="made up",
    source="by hand",
    step=STEP,
    max_sequences=8,
    max_batched_tokens=512,
    kv_tokens=20_000,
    context_tokens=4_000,
)
ALL = ("overflow", "local", "cloud", "depth:2", "spillover:4", "vllm", "vllm:6", "aimd", "predicted:0.5", "article")


def call(number: int = 0, *, pinned: bool = False, prompt: int = 100, ttft_budget_s: float = 1.0) -> Features:
    return Features(
        request_id=str(number),
        model="simulated",
        residency=Residency.PREMISES if pinned else Residency.ANY,
        prompt_bytes=4 * prompt,
        prompt_tokens_estimate=prompt,
        prompt_tokens_bound=prompt,
        max_output_tokens=1_000,
        choices=1,
        needs=frozenset(),
        prefer_local=False,
        ttft_budget_s=ttft_budget_s,
        latency_budget_s=None,
        cost_budget_nano_usd=None,
        arrived_s=0.0,
        give_up_s=60.0,
        output_tokens_estimate=100.0,
    )


def load(
    *,
    in_flight: int = 0,
    running: int = 0,
    waiting: int = 0,
    queued: int = 0,
    available: bool = True,
    cloud: bool = True,
) -> Snapshot:
    engine = EngineLoad(
        state=EngineState.READY,
        capabilities=frozenset(),
        context_tokens=4_000,
        max_sequences=8,
        in_flight=in_flight,
        running=running,
        waiting=waiting,
        queued_prefill_tokens=queued,
        step=STEP,
        max_batched_tokens=512,
        sequences_per_s=1.0,
    )
    option = CloudOption(
        provider="cloud",
        model="simulated",
        capabilities=frozenset(),
        context_tokens=10_000,
        max_output_tokens=None,
        price=PRICE,
        ttft_high_s=0.6,
        ttft_likely_s=0.35,
        available=available,
    )
    return Snapshot(engine=engine, cloud=(option,) if cloud else ())


def goes(policy: Policy, snapshot: Snapshot, request: Features | None = None, now_s: float = 0.0) -> Target:
    return policy.decide(call() if request is None else request, snapshot, now_s).target


def seen(number: int, target: Target, at_s: float, *, ttft_s: float | None = None, output: int | None = None) -> Seen:
    return Seen(
        request_id=str(number), target=target, at_s=at_s, prompt_tokens=100, ttft_s=ttft_s, output_tokens=output
    )


@pytest.mark.parametrize("text", [text for text in ALL if text != "overflow"])
def test_pinned_requests_go_to_the_engine_whatever_the_load(text: str) -> None:
    assert goes(make_policy(text), load(in_flight=500, running=8, waiting=492), call(pinned=True)) is Target.LOCAL


@pytest.mark.parametrize("text", [text for text in ALL if text != "overflow"])
def test_without_a_cloud_everything_stays(text: str) -> None:
    assert goes(make_policy(text), load(in_flight=500, running=8, waiting=492, cloud=False)) is Target.LOCAL
    assert goes(make_policy(text), load(in_flight=500, running=8, waiting=492, available=False)) is Target.LOCAL


def test_local_and_cloud_are_the_two_corners() -> None:
    assert goes(make_policy("local"), load(in_flight=500, running=8, waiting=492)) is Target.LOCAL
    assert goes(make_policy("cloud"), load()) is Target.CLOUD


def test_depth_counts_those_that_wait() -> None:
    policy = make_policy("depth:2")
    assert goes(policy, load(in_flight=10, running=8, waiting=2)) is Target.LOCAL
    assert goes(policy, load(in_flight=11, running=8, waiting=3)) is Target.CLOUD
    assert goes(make_policy("depth:0"), load(in_flight=9, running=8, waiting=1)) is Target.CLOUD


def test_spillover_with_a_cloud_call_open_sends_the_next_one_there_though_the_engine_has_room() -> None:
    policy = Spillover(4)
    for number in range(4):
        assert goes(policy, load()) is Target.LOCAL
        policy.observe(seen(number, Target.LOCAL, 0.0), 1.0)
    assert goes(policy, load()) is Target.CLOUD
    policy.observe(seen(4, Target.CLOUD, 0.0), 1.0)
    policy.observe(seen(0, Target.LOCAL, 0.5, output=10), 1.0)
    # three of four here, one there: the cloud is less busy
    assert goes(policy, load(), now_s=0.5) is Target.CLOUD
    policy.observe(seen(4, Target.CLOUD, 0.6, ttft_s=0.6, output=60), 1.0)
    assert goes(policy, load(), now_s=1.5) is Target.CLOUD
    # sixty tokens at sixty a second: the cloud's answer is over, its target no longer active
    assert goes(policy, load(), now_s=1.7) is Target.LOCAL


def test_admission_counts_those_that_run_too() -> None:
    assert goes(make_policy("vllm:6"), load(in_flight=5, running=5)) is Target.LOCAL
    assert goes(make_policy("vllm:6"), load(in_flight=6, running=6)) is Target.CLOUD
    assert goes(make_policy("vllm"), load(in_flight=7, running=7)) is Target.LOCAL
    assert goes(make_policy("vllm"), load(in_flight=8, running=8)) is Target.CLOUD


def test_predicted_leaves_at_its_share_of_the_budget() -> None:
    # 4,000 tokens before it: eight steps of 10 ms, and 0.1 ms a token: about half a second
    ahead = load(in_flight=4, running=4, queued=4_000)
    assert goes(make_policy("predicted:0.8"), ahead) is Target.LOCAL
    assert goes(make_policy("predicted:0.3"), ahead) is Target.CLOUD


def test_aimd_cuts_its_share_when_answers_are_late_and_wins_it_back() -> None:
    policy = AimdShare()
    at_s = 0.0
    for number in range(300):
        at_s += 1.0
        policy.observe(seen(number, Target.LOCAL, at_s), 1.0)
        policy.observe(seen(number, Target.LOCAL, at_s + 1.5, ttft_s=1.5), 1.0)
    cut = policy.share
    assert 0.05 <= cut < 0.6
    for number in range(300, 3_000):
        at_s += 1.0
        policy.observe(seen(number, Target.LOCAL, at_s), 1.0)
        policy.observe(seen(number, Target.LOCAL, at_s + 0.1, ttft_s=0.1), 1.0)
    assert policy.share == 1.0


def test_aimd_never_goes_below_its_floor_and_asking_it_changes_nothing() -> None:
    policy = AimdShare()
    for number in range(5_000):
        policy.observe(seen(number, Target.LOCAL, float(number)), 0.5)
    assert policy.share == 0.05
    once = [goes(policy, load(), call(number)) for number in range(200)]
    assert once == [goes(policy, load(), call(number)) for number in range(200)]
    assert 0 < once.count(Target.LOCAL) < 40


def test_the_article_looks_at_no_load() -> None:
    idle, full = load(), load(in_flight=500, running=8, waiting=492)
    policy = make_policy("article")
    for request in (call(), call(prompt=3_000, ttft_budget_s=0.1)):
        assert goes(policy, idle, request) is goes(policy, full, request)


def test_overflow_is_the_nodes_own() -> None:
    assert make_policy("overflow") == TargetsPolicy(OverflowPolicy(Limits()))


@pytest.mark.parametrize(
    "text", ["", "depths:3", "overflow:1", "depth", "depth:-1", "depth:1.5", "depth:\u0663", "spillover:0", "vllm:0"]
)
def test_what_is_no_policy_is_one_line(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_policy(text)
    assert repr(text) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["predicted", "predicted:0", "predicted:nan", "article:-1", "article:much"])
def test_what_is_no_number_is_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        make_policy(text)


def test_an_unknown_policy_is_told_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"overflow, local, cloud, depth:N, spillover:N, vllm"):
        make_policy("depths:3")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """A burst every ten seconds, larger than the engine can take in time."""
    trace = [TraceRequest(10.0 * burst + 0.01 * k, 400, 60) for burst in range(4) for k in range(60)]
    promise = Promise(ttft_budget_s=1.0, pinned=frozenset(range(0, len(trace), 6)))
    provider = Provider(price=PRICE)
    return {text: summary(trace, promise, replay(trace, PROFILE, provider, promise, make_policy(text))) for text in ALL}


def test_every_policy_serves_a_whole_trace(outcomes: dict[str, Outcome]) -> None:
    assert {sum(outcome.reasons.values()) for outcome in outcomes.values()} == {240}
    assert outcomes["local"].cloud_share == 0
    assert outcomes["cloud"].cloud_share == pytest.approx(5 / 6)
    assert all(outcome.spend_nano_usd > 0 for text, outcome in outcomes.items() if text not in ("local", "article"))


def test_a_threshold_spends_less_than_sending_all_and_keeps_more_than_sending_none(
    outcomes: dict[str, Outcome],
) -> None:
    for text in ("depth:2", "predicted:0.5", "vllm"):
        assert outcomes[text].spend_nano_usd < outcomes["cloud"].spend_nano_usd
        assert (outcomes[text].in_budget_share or 0) > (outcomes["local"].in_budget_share or 0)
