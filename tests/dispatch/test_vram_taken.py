"""Row 63: another process takes the GPU's memory while requests come. The engine is given less, and it passes."""

import asyncio
from dataclasses import dataclass

from node.routing.values import Limits
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, call_for, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle

_LIMITS = Limits(feed_ahead=0, margin_s=0.0, min_free_vram_bytes=1000)


@dataclass
class Card:
    """What NVML says is free; None where it says nothing."""

    free_bytes: int | None = 5000


def house(card: Card) -> House:
    return House(ScriptedEngine(slots=2), [ScriptedBackend("cloud")], _LIMITS, vram_free_bytes=lambda: card.free_bytes)


@in_virtual_time
async def test_row_63_while_memory_is_short_what_may_leave_goes_to_the_cloud_in_time() -> None:
    card = Card(free_bytes=999)
    home = house(card)
    request = named("r", arrived_s=now_s())
    answer = await home.dispatcher.answer(call_for(request), request)
    await read(answer)
    assert (answer.journey.backend, home.lane.in_flight, home.lane.depth) == ("cloud", 0, 0)
    assert now_s() - request.arrived_s <= request.ttft_budget_s
    card.free_bytes = 5000
    after = named("after", arrived_s=now_s())
    answer = await home.dispatcher.answer(call_for(after), after)
    await read(answer)
    assert answer.journey.backend == "local"


@in_virtual_time
async def test_row_63_pinned_request_waits_until_the_memory_is_given_back_though_nothing_else_happens() -> None:
    card = Card(free_bytes=999)
    home = house(card)
    pinned = named("pinned", pinned=True, arrived_s=now_s())
    asked = asyncio.create_task(home.dispatcher.answer(call_for(pinned), pinned))
    await settle()
    assert (home.lane.in_flight, home.lane.depth) == (0, 1)
    await asyncio.sleep(0.5)
    assert not asked.done()
    card.free_bytes = 5000
    answer = await asked
    await read(answer)
    assert answer.journey.backend == "local"
    assert (home.lane.in_flight, home.lane.depth) == (0, 0)


@in_virtual_time
async def test_row_64_memory_that_nobody_knows_holds_nothing_back() -> None:
    home = house(Card(free_bytes=None))
    request = named("r", arrived_s=now_s())
    answer = await home.dispatcher.answer(call_for(request), request)
    await read(answer)
    assert answer.journey.backend == "local"
