"""Identical requests share one upstream call, and the last reader to leave stops it."""

import asyncio

import pytest

from node.backend import Chunk
from node.dispatch.outcome import Ending
from node.dispatch.sharing import SharedAnswer, Sharing
from node.errors import EngineFailed
from node.money import Usage
from node.store.cache import MemoryCache
from tests.dispatch.doubles import END, HELLO, ROLE, House, ScriptedBackend, ScriptedEngine, Step, call_for, named
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle

KEY = b"key"


class Desk:
    """A house with sharing in front of it, as the API uses it."""

    def __init__(self, *script: Step, ttl_s: float = 300.0) -> None:
        self.backend = ScriptedBackend("local", script)
        self.house = House(ScriptedEngine(self.backend))
        self.sharing = Sharing(MemoryCache(max_bytes=1000, max_entry_bytes=1000, ttl_s=ttl_s, clock=now_s))

    def join(self, name: str, key: bytes = KEY) -> SharedAnswer:
        request = named(name)
        return self.sharing.join(key, call_for(request), lambda: self.house.answer(request))


async def whole(shared: SharedAnswer) -> bytes:
    try:
        await shared.began()
        return b"".join([chunk.data async for chunk in shared])
    finally:
        await shared.aclose()


@in_virtual_time
async def test_identical_requests_share_one_call_and_one_outcome() -> None:
    desk = Desk(ROLE, 0.1, HELLO, 0.1, END)
    first, second = desk.join("a"), desk.join("b")
    assert (first.owner, second.owner) == (True, False)
    assert list(await asyncio.gather(whole(first), whole(second))) == [b"role;hello;end;"] * 2
    assert desk.backend.opened == 1
    assert desk.house.outcome.ending is Ending.DONE


@in_virtual_time
async def test_different_requests_share_nothing() -> None:
    desk = Desk(HELLO, END)
    await asyncio.gather(whole(desk.join("a")), whole(desk.join("b", b"other")))
    assert desk.backend.opened == 2


@in_virtual_time
async def test_latecomer_reads_from_the_start() -> None:
    desk = Desk(HELLO, 5.0, END)
    first = asyncio.create_task(whole(desk.join("a")))
    await asyncio.sleep(2)
    assert await whole(desk.join("b")) == b"hello;end;"
    assert now_s() == pytest.approx(1005)
    assert await first == b"hello;end;"


@in_virtual_time
async def test_each_reader_gets_its_own_response_id() -> None:
    content = Chunk(b'{"id":"chatcmpl-a"}', has_content=True, output_tokens=1, usage=Usage(1, 1))
    desk = Desk(0.1, content)
    answers = await asyncio.gather(whole(desk.join("a")), whole(desk.join("b")))
    assert list(answers) == [b'{"id":"chatcmpl-a"}', b'{"id":"chatcmpl-b"}']


@in_virtual_time
async def test_first_reader_leaving_does_not_stop_the_others() -> None:
    desk = Desk(HELLO, 5.0, END)
    first, second = desk.join("a"), desk.join("b")
    await first.began()
    await first.aclose()
    assert await whole(second) == b"hello;end;"
    assert desk.house.outcome.ending is Ending.DONE


@in_virtual_time
async def test_last_reader_leaving_stops_the_call_at_once() -> None:
    desk = Desk(HELLO, 60.0, END)
    first, second = desk.join("a"), desk.join("b")
    await first.began()
    await first.aclose()
    await first.aclose()
    assert desk.backend.closed == 0
    await second.aclose()
    assert (desk.backend.closed, desk.house.lane.in_flight, now_s()) == (1, 0, 1000.0)
    assert desk.house.outcome.ending is Ending.CLIENT_CLOSED
    assert desk.sharing.cached(KEY) is None


@in_virtual_time
async def test_last_reader_leaving_before_the_first_content_stops_the_call_too() -> None:
    desk = Desk(60.0, HELLO, END)
    only = desk.join("a")
    await settle()
    await only.aclose()
    assert (desk.backend.closed, desk.house.lane.in_flight) == (1, 0)
    assert desk.house.outcome.ending is Ending.CLIENT_CLOSED


@in_virtual_time
async def test_request_after_a_stopped_call_begins_a_new_one() -> None:
    desk = Desk(HELLO, 1.0, END)
    first = desk.join("a")
    await first.began()
    await first.aclose()
    again = desk.join("b")
    assert again.owner
    assert await whole(again) == b"hello;end;"


@in_virtual_time
async def test_whole_answer_is_kept_for_the_next_until_it_is_too_old() -> None:
    desk = Desk(HELLO, END, ttl_s=10)
    await whole(desk.join("a"))
    await settle()
    kept = desk.sharing.cached(KEY)
    assert kept is not None
    assert (kept.data, kept.usage, kept.served_model) == (b"hello;end;", END.usage, "local-model")
    await asyncio.sleep(10)
    assert desk.sharing.cached(KEY) is None


@in_virtual_time
async def test_failure_before_content_reaches_every_reader_and_is_not_kept() -> None:
    desk = Desk(0.1, EngineFailed("x"))
    ended = await asyncio.gather(whole(desk.join("a")), whole(desk.join("b")), return_exceptions=True)
    assert [type(each) for each in ended] == [EngineFailed, EngineFailed]
    assert desk.sharing.cached(KEY) is None
    assert desk.house.outcome.ending is Ending.FAILED


@in_virtual_time
async def test_failure_after_content_reaches_every_reader_and_is_not_kept() -> None:
    desk = Desk(HELLO, 0.1, EngineFailed("x"))
    readers = [desk.join("a"), desk.join("b")]
    for reader in readers:
        await reader.began()
    ended = await asyncio.gather(*(whole(reader) for reader in readers), return_exceptions=True)
    assert [type(each) for each in ended] == [EngineFailed, EngineFailed]
    assert desk.sharing.cached(KEY) is None


@in_virtual_time
async def test_failed_call_does_not_stand_in_the_way_of_the_next() -> None:
    desk = Desk(EngineFailed("x"))
    with pytest.raises(EngineFailed):
        await whole(desk.join("a"))
    await settle()
    desk.backend.script = (HELLO, END)
    assert await whole(desk.join("b")) == b"hello;end;"
