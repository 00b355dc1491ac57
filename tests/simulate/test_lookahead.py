"""The clairvoyant's search, shown only part of the future."""

import random
from decimal import Decimal

from node.money import Price
from node.routing.values import Target
from node.simulate.clairvoyant import clairvoyant
from node.simulate.lookahead import foresee
from node.simulate.profiles import find_profile
from node.simulate.providers import Provider
from node.simulate.replay import Promise, Replay
from node.simulate.values import TraceRequest

PROFILE = find_profile("gpu-medium")
CLOUD = Provider(price=Price(Decimal("0.8"), Decimal("2.5")), ttft_sigma=0.0)
PROMISE = Promise(ttft_budget_s=5.0)  # so long that there is one length of steps to choose from


def busy(seconds: float, seed: int = 1) -> list[TraceRequest]:
    """More than the engine can do, of short and long prompts."""
    rng, at_s, made = random.Random(seed), 0.0, list[TraceRequest]()
    while (at_s := at_s + rng.expovariate(60.0)) < seconds:
        made.append(TraceRequest(at_s, rng.choice((50, 100, 900)), rng.choice((2, 8))))
    return made


def kept(done: Replay) -> list[bool]:
    return [fate is not None and fate.target is Target.LOCAL for fate in done.fates]


def test_what_comes_later_than_it_can_see_changes_nothing_before() -> None:
    whole = busy(8.0)
    part = [each for each in whole if each.arrival_s < 6.5]
    settled = sum(each.arrival_s < 6.5 - 2.0 - 0.5 for each in part)
    found = [foresee(each, PROFILE, CLOUD, PROMISE, lookahead_s=2.0, decide_s=0.5).replay for each in (whole, part)]
    first, second = (kept(done)[:settled] for done in found)
    assert first == second
    assert not all(first)


def test_with_all_of_it_in_sight_it_is_about_as_good_as_the_clairvoyant() -> None:
    trace = busy(8.0)
    best = clairvoyant(trace, PROFILE, CLOUD, PROMISE, rounds=4)
    found = foresee(trace, PROFILE, CLOUD, PROMISE, lookahead_s=100.0, decide_s=1.0)
    assert best.late == found.late == 0
    assert best.spend_nano_usd > 0
    assert found.spend_nano_usd <= 1.1 * best.spend_nano_usd


def test_pinned_requests_stay_whatever_it_sees() -> None:
    trace = busy(6.0)
    pinned = frozenset(range(0, len(trace), 7))
    found = foresee(trace, PROFILE, CLOUD, Promise(ttft_budget_s=5.0, pinned=pinned), lookahead_s=0.5)
    here = kept(found.replay)
    assert all(here[index] for index in pinned)
