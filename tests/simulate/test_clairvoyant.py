"""A schedule that knew the future: it keeps the promise, costs no less than the bound and no more than a start."""

import random
from dataclasses import replace
from decimal import Decimal

import pytest

from node.money import Price, Usage
from node.routing.profile import EngineProfile, StepModel
from node.simulate.clairvoyant import clairvoyant
from node.simulate.engine import Sequence
from node.simulate.optimum import lower_bound
from node.simulate.providers import Provider
from node.simulate.replay import Promise, summary
from node.simulate.schedule import ForkableEngine
from node.simulate.values import TraceRequest

PRICE = Price(Decimal(1), Decimal(4))
CLOUD = Provider(price=PRICE, ttft_median_s=0.3, ttft_sigma=0.1)
ENGINE = EngineProfile(
    name="made up",
    source="by hand",
    step=StepModel(base_s=0.01, per_decode_s=0.001, per_prefill_token_s=0.0001),
    max_sequences=8,
    max_batched_tokens=1_000,
    kv_tokens=10_000,
    context_tokens=4_000,
)


def cost(trace: list[TraceRequest], indices: set[int]) -> int:
    return sum(PRICE.cost_nano_usd(Usage(trace[i].prompt_tokens, trace[i].output_tokens)) for i in indices)


def burst(count: int, *, seed: int = 1, seconds: float = 10.0) -> list[TraceRequest]:
    dice = random.Random(seed)
    arrivals = sorted(dice.uniform(0, seconds) for _ in range(count))
    return [TraceRequest(at, dice.randint(50, 1500), dice.randint(1, 60)) for at in arrivals]


def pinned_of(trace: list[TraceRequest]) -> frozenset[int]:
    return frozenset(range(0, len(trace), 5))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kv_tokens", [10_000, 4_000])
def test_it_keeps_the_promise_and_costs_no_less_than_the_bound(seed: int, kv_tokens: int) -> None:
    trace, engine = burst(250, seed=seed), replace(ENGINE, kv_tokens=kv_tokens)
    promise = Promise(ttft_budget_s=1.0, pinned=pinned_of(trace))
    bound = lower_bound(trace, engine, PRICE, ttft_budget_s=1.0, pinned=promise.pinned)
    found = clairvoyant(trace, engine, CLOUD, promise, bound=bound, rounds=2)
    outcome = summary(trace, promise, found.replay)
    assert outcome.in_budget_share is not None
    assert outcome.in_budget_share >= 0.995
    assert found.pinned_late <= found.pinned_late_alone
    assert bound.spend_nano_usd <= found.spend_nano_usd == outcome.spend_nano_usd < bound.all_cloud_nano_usd
    assert found.spend_nano_usd == cost(trace, set(range(len(trace))) - found.local - promise.pinned)


def test_it_is_no_dearer_than_a_start_that_keeps_the_promise() -> None:
    trace = burst(250)
    promise = Promise(ttft_budget_s=1.0, pinned=pinned_of(trace))
    spillable = set(range(len(trace))) - promise.pinned
    good = clairvoyant(trace, ENGINE, CLOUD, promise, rounds=3)
    for start in (good.local, frozenset[int]()):
        again = clairvoyant(trace, ENGINE, CLOUD, promise, starts=(start,), rounds=0)
        assert again.spend_nano_usd <= cost(trace, spillable - start)


def test_rounds_make_it_no_dearer() -> None:
    trace = burst(250)
    spends = [
        clairvoyant(trace, ENGINE, CLOUD, Promise(ttft_budget_s=1.0), rounds=rounds).spend_nano_usd
        for rounds in (0, 1, 4)
    ]
    assert spends == sorted(spends, reverse=True)
    assert spends[-1] < spends[0]


def test_everything_stays_while_there_is_room() -> None:
    trace = burst(40, seconds=100.0)
    found = clairvoyant(trace, ENGINE, CLOUD, Promise(ttft_budget_s=1.0))
    assert (found.spend_nano_usd, len(found.local), found.late) == (0, 40, 0)


def test_everything_leaves_when_the_engine_is_too_slow() -> None:
    trace = burst(40)
    slow = replace(ENGINE, step=StepModel(base_s=2.0, per_decode_s=0.001, per_prefill_token_s=0.0001))
    found = clairvoyant(trace, slow, CLOUD, Promise(ttft_budget_s=1.0))
    assert (found.local, found.spend_nano_usd) == (frozenset(), cost(trace, set(range(40))))


def test_pinned_requests_never_leave_even_late() -> None:
    trace = burst(200, seconds=1.0)
    promise = Promise(ttft_budget_s=1.0, pinned=frozenset(range(0, 200, 2)))
    found = clairvoyant(trace, ENGINE, CLOUD, promise, rounds=1)
    fates = found.replay.fates
    assert {fate.target.value for i in promise.pinned if (fate := fates[i]) is not None} == {"local"}
    assert found.pinned_late_alone > 0


def test_the_replay_runs_as_the_search_foresaw() -> None:
    trace, tight = burst(250, seed=4), replace(ENGINE, kv_tokens=5_000)
    found = clairvoyant(trace, tight, CLOUD, Promise(ttft_budget_s=1.0), rounds=1)
    assert found.late == 0
    for i, at_s in found.policy.hand_over_s.items():
        fate = found.replay.fates[i]
        assert fate is not None
        assert fate.decided_s == pytest.approx(at_s, abs=1e-9)


def test_what_cannot_be_served_here_leaves() -> None:
    trace = [TraceRequest(0.0, 9_000, 10), TraceRequest(0.1, 100, 10)]
    assert clairvoyant(trace, ENGINE, CLOUD, Promise(ttft_budget_s=1.0)).local == {1}


def test_an_empty_trace_costs_nothing() -> None:
    assert clairvoyant([], ENGINE, CLOUD, Promise(ttft_budget_s=1.0)).spend_nano_usd == 0


def test_a_forked_engine_goes_on_as_the_first_does() -> None:
    small = replace(ENGINE, kv_tokens=3_000)  # so small that sequences are thrown out
    engine, ends = ForkableEngine(small), list[tuple[float, tuple[int, ...]]]()
    for i in range(30):
        engine.submit(Sequence(i, 100 + 37 * i, 100 + 37 * i, 200), 0.0)
    for _ in range(40):
        engine.step()
    fork = engine.fork()

    def run(each: ForkableEngine) -> None:
        ends.clear()
        while each.ends_s is not None:
            report = each.step()
            ends.append((report.at_s, tuple(report.finished)))

    run(engine)
    first, thrown_out = list(ends), engine.preemptions
    assert fork.preemptions < thrown_out
    run(fork)
    assert (ends, fork.preemptions, fork.busy_s) == (first, thrown_out, engine.busy_s)
