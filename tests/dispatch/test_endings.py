"""Ends that race with something else: joining a call that is being stopped, bugs, caps over several attempts."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from node.backend import Call, Chunk
from node.dispatch.dispatcher import Answer
from node.errors import UpstreamTimeout
from node.money import Usage
from tests.dispatch.doubles import END, HELLO, House, ScriptedBackend, ScriptedEngine, call_for, named
from tests.dispatch.test_sharing import KEY, Desk, whole
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle
from tests.routing.stories import REQUEST


class SlowToLetGo(ScriptedBackend):
    """Takes half a second to stop."""

    async def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        try:
            async for chunk in super().open(call):
                yield chunk
        finally:
            await asyncio.sleep(0.5)


@pytest.mark.parametrize("script", [(HELLO, 5.0, END), (3.0, HELLO, 5.0, END)])
@in_virtual_time
async def test_a_call_that_is_being_stopped_is_not_joined(script: tuple[Chunk | float, ...]) -> None:
    desk = Desk()
    assert desk.house.engine is not None
    desk.house.engine.serves = SlowToLetGo("local", script)
    first = desk.join("a")
    await settle()
    leaving = asyncio.create_task(first.aclose())
    await settle()
    assert await asyncio.wait_for(whole(desk.join("b")), 100) == b"hello;end;"
    await leaving


@in_virtual_time
async def test_leaving_before_the_call_has_begun_does_not_block_the_next_one() -> None:
    desk = Desk(HELLO, END)
    await desk.join("a").aclose()
    assert await asyncio.wait_for(whole(desk.join("b")), 100) == b"hello;end;"


@in_virtual_time
async def test_a_bug_in_the_call_reaches_its_readers() -> None:
    desk = Desk()

    async def start() -> Answer:
        raise ZeroDivisionError

    shared = desk.sharing.join(KEY, call_for(named("a")), start)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(shared.began(), 100)


@in_virtual_time
async def test_an_answer_after_a_billed_failure_is_free_from_the_cache_all_the_same() -> None:
    desk = Desk()
    answer = ScriptedBackend("other", (HELLO, Chunk(b'"cost_usd":0.000012', usage=END.usage)))
    desk.house = House(None, [ScriptedBackend("cloud", (UpstreamTimeout("x"),)), answer])
    await whole(desk.join("a"))
    await settle()
    kept = desk.sharing.cached(KEY)
    assert kept is not None
    assert kept.as_answer_to(call_for(named("z"))) == b'hello;"cost_usd":0.0'


@in_virtual_time
async def test_a_newcomer_with_an_earlier_last_moment_leaves_at_it() -> None:
    home = House(ScriptedEngine(slots=1), [ScriptedBackend("cloud")])
    await home.lane.place(named("a"))
    waiting = asyncio.create_task(home.lane.place(named("b")))
    await settle()
    await home.lane.place(replace(named("c"), ttft_budget_s=0.51))
    assert now_s() < 1000.02
    waiting.cancel()


@in_virtual_time
async def test_who_stood_behind_a_wide_request_gets_in_when_it_leaves() -> None:
    home = House(ScriptedEngine(slots=2))
    await home.lane.place(named("a"))
    wide = asyncio.create_task(home.lane.place(named("w", choices=2)))
    await settle()
    narrow = asyncio.create_task(home.lane.place(named("n", arrived_s=1000.1)))
    await settle()
    wide.cancel()
    await narrow
    assert now_s() == 1000.0


@in_virtual_time
async def test_a_cost_cap_holds_over_all_attempts() -> None:
    second = ScriptedBackend("other", (HELLO, Chunk(b"", usage=Usage(500, 100))))
    home = House(None, [ScriptedBackend("cloud", (0.1, UpstreamTimeout("x"))), second])
    with pytest.raises(UpstreamTimeout):
        await home.answer(replace(REQUEST, cost_budget_nano_usd=700_000))
    assert second.opened == 0
    assert home.outcome.cost_nano_usd <= 700_000
