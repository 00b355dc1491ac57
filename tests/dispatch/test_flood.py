"""Row 65: ten times what the queue takes. What may leave leaves, the rest is told to come back, nothing piles up."""

import asyncio

import pytest

from node.dispatch.dispatcher import Answer
from node.errors import RefusedBusy
from node.routing.values import Limits
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, call_for, named
from tests.dispatch.virtual_time import in_virtual_time, settle

_QUEUE = 50
_SLOTS = 2
_FLOOD = 10 * _QUEUE


def house() -> House:
    limits = Limits(feed_ahead=0, margin_s=0.0, max_queue_depth=_QUEUE)
    return House(ScriptedEngine(slots=_SLOTS), [ScriptedBackend("cloud")], limits)


async def flood(home: House, *, pinned: bool) -> list[asyncio.Task[Answer]]:
    requests = [named(f"r{number}", pinned=pinned) for number in range(_FLOOD)]
    asked = [asyncio.create_task(home.dispatcher.answer(call_for(each), each)) for each in requests]
    await settle()
    return asked


@in_virtual_time
async def test_row_65_flood_of_what_may_leave_overflows_and_the_queue_stays_bounded() -> None:
    home = house()
    asked = await flood(home, pinned=False)
    assert (home.lane.in_flight, home.lane.depth) == (_SLOTS, _QUEUE)
    left = [task for task in asked if task.done() and task.result().journey.backend == "cloud"]
    assert len(left) == _FLOOD - _QUEUE - _SLOTS
    for answer in await asyncio.gather(*asked):
        await answer.aclose()
    assert (home.lane.in_flight, home.lane.depth, len(home.outcomes)) == (0, 0, _FLOOD)


@in_virtual_time
async def test_row_65_flood_of_what_may_not_leave_is_429_and_the_queue_stays_bounded() -> None:
    home = house()
    asked = await flood(home, pinned=True)
    assert (home.lane.in_flight, home.lane.depth) == (_SLOTS, _QUEUE)
    refused = [task for task in asked if task.done() and task.exception() is not None]
    assert len(refused) == _FLOOD - _QUEUE - _SLOTS
    for task in refused:
        with pytest.raises(RefusedBusy) as refusal:
            task.result()
        assert (refusal.value.status, refusal.value.code) == (429, "overloaded")
    for task in asked:
        task.cancel()
    answers = [each for each in await asyncio.gather(*asked, return_exceptions=True) if isinstance(each, Answer)]
    for answer in answers:
        await answer.aclose()
    assert (home.lane.in_flight, home.lane.depth) == (0, 0)


@in_virtual_time
async def test_row_65_deciding_costs_the_same_however_many_have_come() -> None:
    """Counted in looks at the engine, which every decision takes: how long they take depends on the machine."""
    home = house()
    assert home.engine is not None
    await flood(home, pinned=True)
    assert home.engine.asked <= 2 * _FLOOD
