"""Slots and the queue in front of them: who waits, who goes first, who leaves when."""

import asyncio

import pytest

from node.routing.values import Decision, EngineState, Features, Limits, Reason, Target
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, named
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle


def house(*, slots: int = 1, cloud: bool = True, limits: Limits | None = None) -> House:
    return House(ScriptedEngine(slots=slots), [ScriptedBackend("cloud")] if cloud else [], limits)


async def later(home: House, request: Features) -> asyncio.Task[Decision]:
    placing = asyncio.create_task(home.lane.place(request))
    await settle()
    return placing


@in_virtual_time
async def test_free_slot_is_taken_at_once_and_counted() -> None:
    home = house(slots=3)
    decision = await home.lane.place(named("a", choices=2))
    assert decision.target is Target.LOCAL
    assert home.lane.in_flight == 2
    home.lane.release(named("a", choices=2))
    assert home.lane.in_flight == 0


@in_virtual_time
async def test_slot_that_opens_goes_to_the_one_who_waits() -> None:
    home = house()
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    assert home.lane.depth == 1
    home.lane.release(named("a"))
    assert (await waiting).reason is Reason.SLOT_OPENED
    assert (home.lane.depth, home.lane.in_flight) == (0, 1)


@in_virtual_time
async def test_pinned_request_goes_first_though_it_came_last() -> None:
    home = house()
    await home.lane.place(named("a"))
    spillable = await later(home, named("b"))
    pinned = await later(home, named("c", pinned=True))
    home.lane.release(named("a"))
    assert (await pinned).reason is Reason.PINNED
    assert not spillable.done()
    assert (await spillable).target is Target.CLOUD


@in_virtual_time
async def test_spillable_request_leaves_at_its_last_moment() -> None:
    home = house()
    await home.lane.place(named("a"))
    decision = await home.lane.place(named("b"))
    assert (decision.target, decision.reason) == (Target.CLOUD, Reason.LAST_MOMENT)
    assert now_s() == pytest.approx(1001.5)
    assert (home.lane.depth, home.lane.in_flight) == (0, 1)


@in_virtual_time
async def test_pinned_request_waits_until_it_is_given_up() -> None:
    home = house()
    await home.lane.place(named("a"))
    decision = await home.lane.place(named("b", pinned=True))
    assert (decision.target, decision.reason) == (Target.REFUSE, Reason.NO_PREMISES_CAPACITY)
    assert now_s() == pytest.approx(1060)
    assert home.lane.depth == 0


@in_virtual_time
async def test_client_that_hangs_up_leaves_the_queue_at_once() -> None:
    home = house()
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    waiting.cancel()
    await settle()
    assert (home.lane.depth, home.lane.in_flight, now_s()) == (0, 1, 1000.0)


@in_virtual_time
async def test_slot_given_to_a_client_in_the_tick_it_leaves_comes_back() -> None:
    home = house(cloud=False)
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    next_one = await later(home, named("c", arrived_s=1000.1))
    home.lane.release(named("a"))
    waiting.cancel()
    assert (await next_one).target is Target.LOCAL
    assert home.lane.in_flight == 1
    assert waiting.cancelled()


@in_virtual_time
async def test_slot_opening_right_after_a_client_left_goes_to_the_next() -> None:
    home = house(cloud=False)
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    next_one = await later(home, named("c", arrived_s=1000.1))
    waiting.cancel()
    home.lane.release(named("a"))
    assert (await next_one).target is Target.LOCAL
    assert (home.lane.in_flight, home.lane.depth) == (1, 0)


@in_virtual_time
async def test_one_release_lets_in_as_many_as_fit() -> None:
    home = house(slots=2, cloud=False)
    await home.lane.place(named("wide", choices=2))
    waiting = [await later(home, named(name, arrived_s=1000 + i)) for i, name in enumerate("abc")]
    home.lane.release(named("wide", choices=2))
    await settle()
    assert [task.done() for task in waiting] == [True, True, False]
    home.lane.release(named("a"))
    assert (await waiting[2]).target is Target.LOCAL


@in_virtual_time
async def test_engine_that_becomes_ready_is_noticed_without_anybody_releasing() -> None:
    home = house(cloud=False)
    assert home.engine is not None
    home.engine.state = EngineState.STARTING
    waiting = await later(home, named("a", pinned=True))
    home.engine.state = EngineState.READY
    assert (await waiting).target is Target.LOCAL
    assert now_s() < 1001


@in_virtual_time
async def test_provider_that_comes_back_takes_those_who_wait_for_it() -> None:
    home = house()
    home.providers.states["cloud"].standing.paused_until_s = 1001.7
    await home.lane.place(named("a"))
    decision = await home.lane.place(named("b"))
    assert decision.target is Target.CLOUD
    assert 1001.7 <= now_s() < 1002


@in_virtual_time
async def test_full_queue_sends_the_next_one_away_and_keeps_the_others() -> None:
    home = house(limits=Limits(feed_ahead=0, margin_s=0.0, max_queue_depth=1))
    await home.lane.place(named("a"))
    waiting = await later(home, named("b"))
    assert (await home.lane.place(named("c"))).reason is Reason.QUEUE_DEPTH
    assert not waiting.done()
    home.lane.release(named("a"))
    assert (await waiting).target is Target.LOCAL


@in_virtual_time
async def test_engine_that_failed_the_request_is_not_offered_again() -> None:
    home = house()
    assert (await home.lane.place(named("a"), frozenset({"local"}))).target is Target.CLOUD
    assert home.lane.in_flight == 0


@in_virtual_time
async def test_cloud_only_lane_never_waits() -> None:
    home = House(None, [ScriptedBackend("cloud")])
    assert (await home.lane.place(named("a"))).reason is Reason.CLOUD_ONLY_MODEL
    assert (await home.lane.place(named("b", pinned=True))).reason is Reason.PRIVATE_NOT_SERVABLE
