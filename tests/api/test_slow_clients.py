"""Clients that send or read too slowly, in virtual time and with the bounds the node really has."""

from __future__ import annotations

import asyncio
from typing import Any

from node.api.connection import connection_of
from node.api.http_protocol import GuardedHttpProtocol
from node.api.reader import ClientGone, read_body
from tests.api.wire import HIGH_WATER_BYTES, Listener
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle

CHUNK = b"x" * 1000


class App:
    """Reads a body, then streams chunks for as long as the client is there."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.gone_at_s: float | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await read_body(receive, scope["headers"], 10_000)
            async with connection_of(scope).while_there():
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
                    self.sent_bytes += len(CHUNK)
                    await asyncio.sleep(0.01)
        except ClientGone:
            self.gone_at_s = now_s()


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@in_virtual_time
async def test_row_35_header_slowloris_is_closed_within_ten_seconds() -> None:
    wire = Listener(App()).connect()
    wire.send(b"GET / HTTP/1.1\r\n")
    for number in range(100):
        await asyncio.sleep(0.5)
        wire.send(b"x-%d: y\r\n" % number)
    assert wire.received.startswith(b"HTTP/1.1 408")
    assert wire.closed_at_s is not None
    assert wire.closed_at_s - 1000 <= 10 + 1.1  # and a second to be read


@in_virtual_time
async def test_row_36_body_at_a_byte_a_second_is_408_within_thirty_seconds() -> None:
    wire = Listener(App()).connect()
    wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n")
    answered_at_s = None
    for _ in range(60):
        await asyncio.sleep(1)
        wire.send(b"a")
        if answered_at_s is None and wire.received:
            answered_at_s = now_s()
    assert wire.received.startswith(b"HTTP/1.1 408")
    assert answered_at_s is not None
    assert answered_at_s - 1000 <= 31


@in_virtual_time
async def test_row_39_reader_at_a_kilobyte_a_second_has_a_bounded_buffer_and_is_cut_while_others_are_not() -> None:
    slow_app, quick_app = App(), App()
    slow, quick = Listener(slow_app).connect(reads=False), Listener(quick_app).connect()
    slow.send(GET)
    quick.send(GET)
    for _ in range(60):
        await asyncio.sleep(1)
        slow.take(1000)
    assert slow.aborted
    assert slow_app.gone_at_s is not None
    assert slow_app.gone_at_s - 1000 < 35
    assert slow.most_unsent <= HIGH_WATER_BYTES + 2 * len(CHUNK) + 200
    assert not quick.is_closing()
    assert quick_app.sent_bytes > 50 * slow_app.sent_bytes


@in_virtual_time
async def test_reader_that_catches_up_in_time_is_not_cut() -> None:
    app = App()
    wire = Listener(app).connect(reads=False)
    wire.send(GET)
    for _ in range(10):
        await asyncio.sleep(25)
        wire.take(1_000_000)
    assert not wire.is_closing()
    assert app.sent_bytes > 9 * HIGH_WATER_BYTES


@in_virtual_time
async def test_reader_that_stops_before_the_end_of_a_finished_answer_is_cut_too() -> None:
    async def whole(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"20000"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 20_000})

    wire = Listener(whole).connect(reads=False)
    wire.send(GET)
    await asyncio.sleep(1)
    assert wire.is_closing()
    assert not wire.aborted
    await asyncio.sleep(GuardedHttpProtocol.reader_stall_s)
    assert wire.aborted


@in_virtual_time
async def test_connection_that_needs_one_of_the_last_descriptors_is_refused_at_once() -> None:
    class Narrow(GuardedHttpProtocol):
        max_descriptor = 40

    listener = Listener(App(), Narrow)
    last, probe, beyond = (listener.connect(descriptor=number) for number in (40, 41, 41 + 2 * Narrow.lobby.places))
    await settle()
    assert last.received == probe.received == b""
    assert beyond.received.startswith(b"HTTP/1.1 503")
    assert beyond.is_closing()  # no lingering: its descriptor is wanted
    probe.send(GET)
    await settle()
    assert b'"too_many_connections"' in probe.received
    await asyncio.sleep(0.5)
    last.send(GET)
    await asyncio.sleep(0.5)
    assert last.received.startswith(b"HTTP/1.1 200")


@in_virtual_time
async def test_visitor_of_the_lobby_that_says_nothing_is_refused_after_a_second() -> None:
    class Full(GuardedHttpProtocol):
        max_connections = 0

    wire = Listener(App(), Full).connect()
    await asyncio.sleep(0.9)
    assert wire.received == b""
    await asyncio.sleep(0.2)
    assert wire.received.startswith(b"HTTP/1.1 503")


@in_virtual_time
async def test_newcomer_pushes_the_oldest_visitor_out_of_the_lobby() -> None:
    class Full(GuardedHttpProtocol):
        max_connections = 0

    listener = Listener(App(), Full)
    wires = [listener.connect() for _ in range(Full.lobby.places + 1)]
    await settle()
    assert wires[0].received.startswith(b"HTTP/1.1 503")
    assert all(wire.received == b"" for wire in wires[1:])
    wires[-1].send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.sleep(0.5)
    assert wires[-1].received.startswith(b"HTTP/1.1 200")
