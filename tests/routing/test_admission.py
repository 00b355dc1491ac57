"""Slots and queue in virtual time: who is sent away for whom, who stays, who is put off, and that all get an answer."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.routing.admission import Admission, Placement
from node.routing.policy import OverflowPolicy
from node.routing.profile import StepModel
from node.routing.values import (
    CloudOption,
    Decision,
    EngineLoad,
    EngineState,
    Features,
    Limits,
    Reason,
    Residency,
    Target,
)
from tests.routing.stories import CLOUD, ENGINE, REQUEST


def request(name: str, *, tenant: str = "a", pinned: bool = False, **more: object) -> Features:
    residency = Residency.PREMISES if pinned else Residency.ANY
    return replace(REQUEST, request_id=name, tenant=tenant, residency=residency, **more)  # type: ignore[arg-type]


@dataclass
class Desk:
    """An admission over an engine that can be told how it is; what has been decided, by request."""

    engine: EngineLoad = ENGINE
    cloud: tuple[CloudOption, ...] = (CLOUD,)
    limits: Limits = field(default_factory=Limits)
    counts_at_once: bool = True
    decided: dict[str, Decision] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    held: dict[str, Features] = field(default_factory=dict)
    waiting: dict[str, Features] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admission = Admission(
            policy=OverflowPolicy(self.limits),
            engine=self.load,
            cloud_options=lambda failed: tuple(each for each in self.cloud if each.provider not in failed),
        )

    def load(self, in_flight: int) -> EngineLoad:
        return replace(self.engine, in_flight=in_flight, running=min(in_flight, self.engine.max_sequences))

    def arrive(self, features: Features, now_s: float) -> Decision:
        decision, settled = self.admission.arrive(features, now_s)
        if decision.target is Target.WAIT:
            self.waiting[features.request_id] = features
        else:
            self._settle(features, decision)
        self.take(settled)
        return decision

    def take(self, settled: list[Placement]) -> None:
        for placement in settled:
            del self.waiting[placement.features.request_id]
            self._settle(placement.features, placement.decision)

    def _settle(self, features: Features, decision: Decision) -> None:
        assert decision.target is not Target.WAIT
        name = features.request_id
        assert name not in self.decided
        self.decided[name] = decision
        if decision.target is Target.LOCAL:
            self.held[name] = features
            self.order.append(name)
            if self.counts_at_once:
                self.admission.entered(name)

    def release(self, name: str, now_s: float) -> None:
        self.take(self.admission.release(self.held.pop(name), now_s))

    def release_all(self, now_s: float) -> None:
        while self.held:
            self.release(next(iter(self.held)), now_s)


def full(**more: object) -> Desk:
    """A desk whose four slots, and the one that is fed ahead, are taken."""
    desk = Desk(engine=replace(ENGINE, **more))  # type: ignore[arg-type]
    for number in range(5):
        assert desk.arrive(request(f"first-{number}"), 1000.0).target is Target.LOCAL
    return desk


# What it costs to send away, per second of local work that is spared: little, where the prompt is long, and much, where
# the answer is, since the engine answers many at once.
CHEAP = request("cheap", prompt_tokens_estimate=1000, max_output_tokens=10)
DEAR = request("dear", prompt_tokens_estimate=100, max_output_tokens=1000, output_tokens_estimate=1000)


def backlogged() -> Desk:
    """A desk whose engine has slots, and two seconds of prompts to compute."""
    desk = Desk(engine=replace(ENGINE, max_sequences=64, queue_doubt=0.1))
    desk.arrive(request("running"), 999.0)
    desk.engine = replace(desk.engine, queued_prefill_tokens=2000)
    return desk


def test_waiter_that_is_cheap_to_send_away_leaves_for_one_that_is_dear() -> None:
    desk = backlogged()
    desk.arrive(replace(CHEAP, ttft_budget_s=3.7), 1000.0)
    assert set(desk.waiting) == {"cheap"}
    decision = desk.arrive(replace(DEAR, ttft_budget_s=2.8, arrived_s=1001.0), 1001.0)
    assert (decision.target, decision.displaces) == (Target.WAIT, "cheap")
    displaced = desk.decided["cheap"]
    assert (displaced.target, displaced.reason, displaced.cloud) == (Target.CLOUD, Reason.DISPLACED, CLOUD)
    assert set(desk.waiting) == {"dear"}


def test_waiter_that_is_dear_is_not_sent_away_for_one_that_is_cheap() -> None:
    desk = backlogged()
    desk.arrive(replace(DEAR, prompt_tokens_estimate=900, ttft_budget_s=4.0), 1000.0)
    assert set(desk.waiting) == {"dear"}
    decision = desk.arrive(replace(CHEAP, prompt_tokens_estimate=300, ttft_budget_s=3.1, arrived_s=1001.0), 1001.0)
    assert decision.displaces is None
    assert "dear" in desk.waiting


def test_pinned_waiter_is_never_sent_away_for_another() -> None:
    desk = backlogged()
    desk.arrive(replace(CHEAP, residency=Residency.PREMISES), 1000.0)
    decision = desk.arrive(replace(DEAR, ttft_budget_s=3.1, arrived_s=1001.0), 1001.0)
    assert decision.displaces is None
    assert "cheap" in desk.waiting


def test_waiter_whose_turn_comes_in_time_stays_past_its_last_safe_moment() -> None:
    desk = full(sequences_per_s=40.0, queue_doubt=0.05)
    desk.arrive(request("waits"), 1000.0)
    leave_at_s = desk.admission.next_wake_s()
    assert leave_at_s == pytest.approx(1000 + 2.0 - CLOUD.ttft_high_s - desk.limits.margin_s)
    assert leave_at_s is not None
    desk.take(desk.admission.wake(leave_at_s))
    assert set(desk.waiting) == {"waits"}
    ask_again_s = desk.admission.next_wake_s()
    assert ask_again_s is not None
    assert leave_at_s < ask_again_s < 1002.0
    desk.release("first-0", leave_at_s + 0.2)
    assert desk.decided["waits"].reason is Reason.SLOT_OPENED


def test_waiter_whose_turn_would_come_late_leaves_at_its_last_safe_moment() -> None:
    desk = full(sequences_per_s=2.0, queue_doubt=0.1)
    desk.arrive(request("waits"), 1000.0)
    assert set(desk.waiting) == {"waits"}
    leave_at_s = desk.admission.next_wake_s()
    assert leave_at_s is not None
    desk.take(desk.admission.wake(leave_at_s))
    assert (desk.decided["waits"].target, desk.decided["waits"].reason) == (Target.CLOUD, Reason.LAST_MOMENT)


def test_one_that_stays_for_good_goes_before_those_who_may_still_leave() -> None:
    desk = full(sequences_per_s=40.0, queue_doubt=0.05)
    desk.arrive(request("early"), 1000.0)
    at_s = desk.admission.next_wake_s()
    assert at_s is not None
    desk.take(desk.admission.wake(at_s))
    desk.arrive(request("sooner due", arrived_s=at_s, ttft_budget_s=0.72), at_s)
    desk.arrive(request("later due", arrived_s=at_s, ttft_budget_s=5.0), at_s)
    desk.release("first-0", at_s)
    assert desk.order[5:] == ["early"]


def served_in_order(desk: Desk, now_s: float) -> list[str]:
    """Who is served when, as slots open one at a time."""
    before = len(desk.order)
    while desk.held:
        desk.release(next(iter(desk.held)), now_s)
    return desk.order[before:]


def flood(desk: Desk, tenant: str, count: int, now_s: float) -> None:
    for number in range(count):
        name = f"{tenant}-{now_s}-{number:03}"
        desk.arrive(request(name, tenant=tenant, pinned=True, arrived_s=now_s, give_up_s=5000.0), now_s)


def test_flood_of_one_caller_does_not_put_off_the_first_request_of_another() -> None:
    desk = full()
    flood(desk, "quiet", 1, 1000.0)
    flood(desk, "flood", 40, 1000.1)
    flood(desk, "newcomer", 1, 1000.5)
    order = served_in_order(desk, 1000.6)
    assert order.index("newcomer-1000.5-000") <= 2
    assert len(order) == 42


def test_request_of_a_caller_below_its_share_overtakes_an_earlier_flood() -> None:
    desk = full()
    flood(desk, "quiet", 1, 1000.0)
    flood(desk, "flood", 40, 1000.1)
    flood(desk, "quiet", 2, 1000.2)
    order = served_in_order(desk, 1000.6)
    assert max(order.index(f"quiet-1000.2-{number:03}") for number in range(2)) <= 6


def test_flood_while_alone_does_not_put_off_the_first_request_of_another() -> None:
    desk = full()
    flood(desk, "flood", 40, 1000.0)
    flood(desk, "newcomer", 1, 1000.5)
    order = served_in_order(desk, 1000.6)
    assert order.index("newcomer-1000.5-000") == 1


def test_alone_a_request_with_less_time_still_goes_before_its_caller_s_earlier_ones() -> None:
    desk = full()
    flood(desk, "flood", 40, 1000.0)
    tight = request("tight", tenant="flood", pinned=True, arrived_s=1000.1, ttft_budget_s=1.0, give_up_s=5000.0)
    desk.arrive(tight, 1000.1)
    assert served_in_order(desk, 1000.6)[0] == "tight"


def test_request_kept_past_its_deadline_is_settled_when_the_node_gives_it_up() -> None:
    desk = full(sequences_per_s=40.0, queue_doubt=0.05, ttft_doubt=0.05)
    desk.cloud = (replace(CLOUD, ttft_high_s=1.5),)
    desk.arrive(request("hopes", give_up_s=1010.0), 1000.0)
    asked = []
    while desk.waiting:
        at_s = desk.admission.next_wake_s()
        assert at_s is not None
        asked.append(at_s)
        desk.take(desk.admission.wake(at_s))
    assert asked[0] == pytest.approx(1000.4)
    assert asked[-1] == pytest.approx(1010.0)
    assert [at_s for at_s in asked if 1002.05 < at_s < 1010.0] == []
    assert len(asked) < 20
    assert (desk.decided["hopes"].target, desk.decided["hopes"].reason) == (Target.CLOUD, Reason.LAST_MOMENT)


def test_one_that_stayed_leaves_when_its_turn_no_longer_comes_in_time_and_the_cloud_still_may() -> None:
    desk = full(sequences_per_s=40.0, queue_doubt=0.05)
    desk.arrive(request("stayed"), 1000.0)
    at_s = desk.admission.next_wake_s()
    assert at_s is not None
    desk.take(desk.admission.wake(at_s))
    assert set(desk.waiting) == {"stayed"}
    desk.engine = replace(desk.engine, sequences_per_s=1.0)
    at_s = desk.admission.next_wake_s()
    assert at_s is not None
    desk.take(desk.admission.wake(at_s))
    assert desk.decided["stayed"].target is Target.CLOUD
    assert desk.decided["stayed"].was_kept
    assert at_s + CLOUD.ttft_likely_s < 1002.0


def test_pinned_request_that_is_late_already_lets_those_pass_that_can_still_be_in_time() -> None:
    desk = full()
    desk.arrive(request("late", pinned=True, give_up_s=5000.0), 1000.0)
    desk.take(desk.admission.wake(1002.0))
    desk.arrive(request("in time", pinned=True, arrived_s=1002.1, give_up_s=5000.0), 1002.1)
    assert served_in_order(desk, 1002.2)[:2] == ["in time", "late"]


def test_late_pinned_request_lets_nobody_pass_that_comes_half_a_minute_later() -> None:
    desk = full()
    desk.arrive(request("late", pinned=True, give_up_s=5000.0), 1000.0)
    desk.take(desk.admission.wake(1002.0))
    desk.arrive(request("newcomer", pinned=True, arrived_s=1031.0, give_up_s=5000.0), 1031.0)
    assert served_in_order(desk, 1031.1)[:2] == ["late", "newcomer"]


def test_while_the_cloud_is_away_one_that_is_late_already_lets_those_pass_that_can_still_be_in_time() -> None:
    desk = full()
    desk.cloud = (replace(CLOUD, available=False),)
    desk.arrive(request("late", give_up_s=5000.0), 1000.0)
    desk.take(desk.admission.wake(1002.0))
    desk.arrive(request("in time", arrived_s=1002.1, give_up_s=5000.0), 1002.1)
    desk.arrive(request("newcomer", arrived_s=1031.0, give_up_s=5000.0), 1031.0)
    assert [name for name in served_in_order(desk, 1002.2) if name in desk.decided][:3] == [
        "in time",
        "late",
        "newcomer",
    ]


def test_one_that_can_leave_does_not_take_the_cache_that_pinned_ones_are_about_to_need() -> None:
    small = replace(ENGINE, kv_tokens=20_000, kv_cache_usage=0.1, max_sequences=1000, tpot_s=0.1)
    desk = Desk(engine=small)
    for number in range(20):  # one in 0.1 s, each of which stays 25 s with 1,100 tokens: more than the cache holds
        pinned = request(f"pinned-{number}", pinned=True, prompt_tokens_estimate=1000, give_up_s=5000.0)
        desk.arrive(pinned, 1000.0 + number / 10)
    assert desk.arrive(request("can leave", arrived_s=1002.0), 1002.0).target is not Target.LOCAL
    assert desk.arrive(request("cannot", pinned=True, arrived_s=1002.0), 1002.0).target is Target.LOCAL


def test_alone_nobody_is_put_off() -> None:
    desk = full()
    for tenth in range(20):
        flood(desk, "flood", 2, 1000.0 + tenth / 10)
    order = served_in_order(desk, 1001.8)
    assert order == sorted(order, key=lambda name: (float(name.split("-")[1]), name))


def test_failed_backend_is_not_offered_again_after_a_wait() -> None:
    desk = full(sequences_per_s=None)
    decision, _ = desk.admission.arrive(request("again", pinned=False), 1000.0, frozenset({CLOUD.provider}))
    assert decision.target is Target.WAIT
    (placement,) = desk.admission.wake(1060.0)
    assert placement.decision.target is Target.REFUSE


# Any story: what must hold whatever happens in which order.


@dataclass(frozen=True)
class Arrive:
    pinned: bool
    tenant: str
    prompt_tokens: int
    choices: int
    ttft_budget_s: float
    cost_budget_nano_usd: int | None
    prefer_local: bool


@dataclass(frozen=True)
class Pass:
    """Time passes, and the engine is different after it."""

    seconds: float
    engine: EngineLoad
    available: bool


@dataclass(frozen=True)
class Finish:
    which: int


@dataclass(frozen=True)
class HangUp:
    which: int


engines = st.builds(
    EngineLoad,
    state=st.sampled_from([EngineState.READY] * 4 + [EngineState.SUSPECT, EngineState.DOWN]),
    capabilities=st.just(ENGINE.capabilities),
    context_tokens=st.just(4096),
    max_sequences=st.just(4),
    kv_cache_usage=st.none() | st.floats(0, 1),
    queued_prefill_tokens=st.integers(0, 3000),
    step=st.none()
    | st.builds(
        StepModel,
        base_s=st.floats(0.001, 0.1),
        per_decode_s=st.floats(0, 0.01),
        per_prefill_token_s=st.floats(0, 0.002),
    ),
    kv_tokens=st.none() | st.integers(500, 10_000),
    sequences_per_s=st.none() | st.floats(0, 20),
)
events = st.one_of(
    st.builds(
        Arrive,
        pinned=st.booleans(),
        tenant=st.sampled_from("abc"),
        prompt_tokens=st.integers(1, 3000),
        choices=st.integers(1, 6),
        ttft_budget_s=st.floats(0.01, 5),
        cost_budget_nano_usd=st.none() | st.integers(0, 10**6),
        prefer_local=st.booleans(),
    ),
    st.builds(Pass, st.floats(0, 2), engines, st.booleans()),
    st.builds(Finish, st.integers(0, 100)),
    st.builds(HangUp, st.integers(0, 100)),
)
limits = st.builds(
    Limits,
    max_queue_depth=st.none() | st.integers(1, 10),
    feed_ahead=st.integers(0, 4),
    feed_s=st.floats(0.01, 1),
    tpot_budget_s=st.none() | st.floats(0.001, 0.2),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(limits, engines, st.lists(events, max_size=60))
def test_whatever_happens_nothing_pinned_leaves_no_slot_is_lost_and_all_are_answered(
    limits: Limits, engine: EngineLoad, story: list[Arrive | Pass | Finish | HangUp]
) -> None:
    desk = Desk(engine=engine, limits=limits, counts_at_once=False)
    now_s, gone = 1000.0, set[str]()
    features: dict[str, Features] = {}

    def check() -> None:
        assert desk.admission.in_flight == sum(each.choices for each in desk.held.values())
        assert desk.admission.depth == len(desk.waiting)
        assert (desk.admission.next_wake_s() is None) == (not desk.waiting)

    def advance(to_s: float) -> None:
        nonlocal now_s
        while (at_s := desk.admission.next_wake_s()) is not None and at_s <= to_s:
            now_s = max(now_s, at_s)
            desk.take(desk.admission.wake(now_s))
            check()
        now_s = to_s

    for number, event in enumerate(story):
        if isinstance(event, Arrive):
            name = f"r{number}"
            features[name] = request(
                name,
                tenant=event.tenant,
                pinned=event.pinned,
                prompt_tokens_estimate=event.prompt_tokens,
                choices=event.choices,
                ttft_budget_s=event.ttft_budget_s,
                cost_budget_nano_usd=event.cost_budget_nano_usd,
                prefer_local=event.prefer_local,
                arrived_s=now_s,
                give_up_s=now_s + 10.0,
            )
            desk.arrive(features[name], now_s)
        elif isinstance(event, Pass):
            advance(now_s + event.seconds)
            desk.engine = event.engine
            desk.cloud = (replace(CLOUD, available=event.available),)
            desk.take(desk.admission.let_in(now_s))
        elif isinstance(event, Finish) and desk.held:
            desk.release(list(desk.held)[event.which % len(desk.held)], now_s)
        elif isinstance(event, HangUp) and desk.waiting:
            name = list(desk.waiting)[event.which % len(desk.waiting)]
            del desk.waiting[name]
            gone.add(name)
            desk.take(desk.admission.withdraw(name, now_s))
        check()

    for _ in range(200):  # what runs finishes, and nothing else happens
        desk.release_all(now_s)
        check()
        if not desk.waiting:
            break
        at_s = desk.admission.next_wake_s()
        assert at_s is not None
        advance(max(now_s, at_s))
    assert desk.admission.depth == 0
    assert desk.admission.in_flight == 0
    assert desk.decided.keys() | gone == features.keys()
    for name, decision in desk.decided.items():
        assert features[name].may_leave or decision.target is not Target.CLOUD
