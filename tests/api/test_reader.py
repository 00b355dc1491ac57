"""Reading a body: the limit holds before, during and exactly at it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.api.reader import ClientGone, discard_body, read_body
from node.errors import InvalidRequest, RequestTooLarge


class _Wire:
    """Delivers prepared ASGI messages and counts how many were asked for."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.asked = 0

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        return self.messages.pop(0)


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_pieces_are_joined() -> None:
    wire = _Wire(part(b"a", more=True), part(b"", more=True), part(b"b", more=False))
    assert await read_body(wire.receive, [], 2) == b"ab"


async def test_an_announced_oversize_is_refused_without_reading() -> None:
    wire = _Wire()
    with pytest.raises(RequestTooLarge):
        await read_body(wire.receive, [(b"content-length", b"11")], 10)
    assert wire.asked == 0


@pytest.mark.parametrize("length", [b"9" * 400, b"9" * 10_000])
async def test_an_absurd_length_is_refused_without_converting_it(length: bytes) -> None:
    with pytest.raises(RequestTooLarge):
        await read_body(_Wire().receive, [(b"content-length", length)], 10)


@pytest.mark.parametrize("length", [b"", b"-1", b"1.5", b"ten", b"\xb2"])
async def test_a_length_that_is_no_number_is_400(length: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await read_body(_Wire().receive, [(b"content-length", length)], 10)


async def test_reading_stops_at_the_piece_that_passes_the_limit() -> None:
    wire = _Wire(part(b"12345", more=True), part(b"678901", more=True), part(b"never", more=False))
    with pytest.raises(RequestTooLarge):
        await read_body(wire.receive, [], 10)
    assert wire.asked == 2


async def test_exactly_the_limit_passes() -> None:
    assert await read_body(_Wire(part(b"1234567890", more=False)).receive, [], 10) == b"1234567890"


async def test_a_client_that_hangs_up_mid_body_is_gone() -> None:
    wire = _Wire(part(b"half", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientGone):
        await read_body(wire.receive, [], 10)


async def test_the_rest_of_a_body_is_dropped_up_to_its_end() -> None:
    wire = _Wire(part(b"x", more=True), part(b"y", more=False), part(b"next", more=False))
    await discard_body(wire.receive)
    assert wire.asked == 2


async def test_a_rest_that_never_ends_is_waited_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.api.reader._LINGER_S", 0.01)

    async def endless() -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return part(b"x", more=True)

    await discard_body(endless)
