"""What becomes of requests when the engine dies: those it works on, those that wait, those that come after."""

import asyncio

import pytest

from node.errors import EngineAway, EngineDied
from node.routing.values import EngineState, Reason, Target
from tests.dispatch.doubles import HELLO, ROLE, WHOLE, House, ScriptedBackend, ScriptedEngine, Step, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle

DIED = EngineDied("it is dead", retry_after_s=17.0)


def house(*script: Step, slots: int = 1) -> House:
    engine = ScriptedEngine(ScriptedBackend("local", script), slots=slots)
    return House(engine, [ScriptedBackend("cloud", WHOLE)])


def state_is(home: House, state: EngineState) -> None:
    assert home.engine is not None
    home.engine.state = state
    home.lane.engine_changed()


@in_virtual_time
async def test_row_60_what_is_not_answered_and_may_leave_goes_to_the_cloud() -> None:
    home = house(ROLE, 0.5, DIED)
    answering = asyncio.create_task(home.answer(named("a")))
    await asyncio.sleep(0.4)
    assert home.engine is not None
    home.engine.state = EngineState.SUSPECT
    assert await read(await answering) == b"role;hello;end;"
    assert (home.outcome.backend, home.outcome.reason, home.outcome.attempts) == ("cloud", Reason.LOCAL_FAILED, 2)
    assert home.lane.in_flight == 0


@in_virtual_time
async def test_row_60_what_had_begun_ends_with_the_error_and_no_other_models_text() -> None:
    home = house(HELLO, DIED)
    answer = await home.answer(named("a"))
    with pytest.raises(EngineDied):
        await read(answer)
    assert home.clouds["cloud"].serves.opened == 0
    assert home.lane.in_flight == 0


@in_virtual_time
async def test_row_60_pinned_call_waits_for_the_next_engine() -> None:
    home = house(0.5, DIED)
    answering = asyncio.create_task(home.answer(named("a", pinned=True)))
    await asyncio.sleep(0.4)
    assert home.engine is not None
    home.engine.state = EngineState.STARTING
    await asyncio.sleep(10.0)
    home.engine.serves.script = WHOLE
    state_is(home, EngineState.READY)
    assert await read(await answering) == b"role;hello;end;"
    assert (home.outcome.backend, home.outcome.reason, home.outcome.attempts) == ("local", Reason.PINNED, 2)
    assert home.outcome.queue_s == pytest.approx(9.9, abs=0.2)


@in_virtual_time
async def test_row_62_pinned_call_is_told_when_to_come_back_where_no_engine_is_to_come() -> None:
    home = house(0.5, DIED)
    answering = asyncio.create_task(home.answer(named("a", pinned=True)))
    await asyncio.sleep(0.4)
    assert home.engine is not None
    home.engine.state = EngineState.DOWN
    with pytest.raises(EngineDied) as caught:
        await answering
    assert (caught.value.status, caught.value.retry_after_s) == (503, 17.0)


@in_virtual_time
async def test_an_engine_that_dies_of_the_call_again_is_not_given_it_a_third_time() -> None:
    home = house(0.5, DIED)
    with pytest.raises(EngineDied):
        await home.answer(named("a", pinned=True))
    assert home.engine is not None
    assert home.engine.serves.opened == 2


@in_virtual_time
async def test_everybody_who_waits_leaves_at_once_and_not_the_head_alone() -> None:
    home = house(100.0, slots=1)
    first = asyncio.create_task(home.answer(named("first", pinned=True)))
    await settle()
    pinned = asyncio.create_task(home.lane.place(named("p", pinned=True)))
    free = [asyncio.create_task(home.lane.place(named(f"f{each}"))) for each in range(3)]
    await settle()
    assert not any(task.done() for task in (pinned, *free))
    began_s = now_s()
    state_is(home, EngineState.SUSPECT)
    decisions = await asyncio.gather(*free)
    assert now_s() == began_s
    assert {(each.target, each.reason) for each in decisions} == {(Target.CLOUD, Reason.ENGINE_NOT_READY)}
    assert not pinned.done()
    first.cancel()
    pinned.cancel()
    await asyncio.gather(first, pinned, return_exceptions=True)
    assert (home.lane.in_flight, home.lane.depth) == (0, 0)


@in_virtual_time
async def test_pinned_call_that_waits_is_refused_at_once_when_the_engine_is_given_up() -> None:
    home = house(100.0, slots=1)
    first = asyncio.create_task(home.answer(named("first", pinned=True)))
    await settle()
    waiting = asyncio.create_task(home.answer(named("p", pinned=True)))
    await settle()
    state_is(home, EngineState.DOWN)
    with pytest.raises(EngineAway, match="and the engine is down") as caught:
        await waiting
    assert (caught.value.rule, caught.value.status) == (Reason.NO_PREMISES_CAPACITY, 503)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
