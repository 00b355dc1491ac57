"""What is written in one turn of the loop leaves in one piece, in order, and nothing is lost on close."""

import asyncio
from typing import Any

from node.api.cork import CorkedTransport
from tests.dispatch.virtual_time import in_virtual_time


class Recorder:
    """The inner transport: remembers what was done to it."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return False


async def test_writes_of_one_turn_leave_together() -> None:
    inner = Recorder()
    corked = CorkedTransport(inner, asyncio.get_running_loop())  # type: ignore[arg-type]
    corked.write(b"head ")
    corked.write(b"body")
    assert inner.done == []
    await asyncio.sleep(0)
    corked.write(b"next")
    await asyncio.sleep(0)
    assert inner.done == [b"head body", b"next"]


async def test_closing_sends_what_is_held_first() -> None:
    inner = Recorder()
    corked = CorkedTransport(inner, asyncio.get_running_loop())  # type: ignore[arg-type]
    corked.write(b"last words")
    corked.close()
    await asyncio.sleep(0)
    assert inner.done == [b"last words", "closed"]


@in_virtual_time
async def test_client_that_does_not_take_the_rest_after_a_close_loses_the_connection() -> None:
    inner = Recorder()
    inner.unsent = 1000
    corked = CorkedTransport(inner, asyncio.get_running_loop(), 30.0)  # type: ignore[arg-type]
    corked.close()
    await asyncio.sleep(29)
    assert inner.done == ["closed"]
    await asyncio.sleep(2)
    assert inner.done == ["closed", "aborted"]


@in_virtual_time
async def test_client_that_is_gone_after_a_close_is_waited_for_no_longer() -> None:
    inner = Recorder()
    inner.unsent = 1000
    corked = CorkedTransport(inner, asyncio.get_running_loop(), 30.0)  # type: ignore[arg-type]
    corked.close()
    corked.lost()
    await asyncio.sleep(60)
    assert inner.done == ["closed"]


async def test_aborting_sends_nothing_more() -> None:
    inner = Recorder()
    corked = CorkedTransport(inner, asyncio.get_running_loop())  # type: ignore[arg-type]
    corked.write(b"never")
    corked.abort()
    await asyncio.sleep(0)
    assert inner.done == ["aborted"]
    assert not corked.is_closing()
