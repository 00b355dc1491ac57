"""uvicorn's HTTP/1.1 protocol with the bounds it lacks: connections, headers, and clocks for headers, body and answer.

uvicorn 0.54 accepts any number of connections, waits for ever for a request's headers and body and for a client that
does not read its answer, buffers a header of any length, adds trailer fields to the headers the application already
holds, loses the body of a request that also asks for an upgrade, and answers malformed HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from node.api.connection import Connection
from node.api.cork import CorkedTransport
from node.api.lobby import PROBES, Lobby
from node.errors import (
    HeadersTooLarge,
    InvalidRequest,
    RequestTimeout,
    ShuttingDown,
    SpillwayError,
    TooManyConnections,
    render,
)
from node.request_id import new_request_id

_log = logging.getLogger("spillway.http")


class _Phase(Enum):
    """What the client owes us at the moment."""

    NOTHING = auto()  # between requests: uvicorn's keep-alive clock, or our header clock before the first one
    HEADERS = auto()
    BODY = auto()


class _Refused(Exception):
    """Thrown through the parser to stop it; the reason is kept in the protocol."""


class GuardedHttpProtocol(HttpToolsProtocol):
    """Refuses with an OpenAI-shaped error and closes the connection when a request

    - has more than `max_headers` header fields or `max_header_bytes` of them, target and trailers included (431);
    - is not HTTP, says its length twice, or asks for another protocol and carries a body (400);
    - keeps us waiting longer than `header_timeout_s` for its headers or `body_timeout_s` for its body (408).

    One whose body is still on its way when the server shuts down gets a 503.

    A connection beyond `max_connections`, idle ones counted, gets a 503, unless it asks for a health probe at once. So
    does one whose file descriptor is above `max_descriptor` (the kernel gives the lowest free number, so a high one
    says how many are taken). One that never sends anything is closed after `header_timeout_s` without a word. If the
    answer to an earlier, pipelined request is still being written, the connection closes after that answer instead.

    A client that lets an answer wait for `reader_stall_s` loses its connection. What waits for it in this process is
    at most what asyncio buffers (64 KiB) and one chunk.

    Subclass to set other bounds; pass the class to uvicorn as `http`. Each subclass has a lobby of its own.
    """

    max_connections: ClassVar[int] = 4096
    max_descriptor: ClassVar[int | None] = None
    lobby: ClassVar[Lobby] = Lobby()
    lobby_timeout_s: ClassVar[float] = 1.0
    reader_stall_s: ClassVar[float] = 30.0
    max_headers: ClassVar[int] = 64
    max_header_bytes: ClassVar[int] = 32 * 1024
    header_timeout_s: ClassVar[float] = 10.0
    body_timeout_s: ClassVar[float] = 30.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "lobby" not in cls.__dict__:
            cls.lobby = Lobby()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase: _Phase = _Phase.NOTHING
        self._clock: asyncio.TimerHandle | None = None
        self._clock_runs_for: _Phase = _Phase.NOTHING
        self._header_count = 0
        self._header_bytes = 0
        self._unparsed_bytes = 0
        self._refusal: SpillwayError | None = None
        self._connection = Connection()
        self._has_place = True
        self._may_linger = True
        self._stall_clock: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request that has arrived, in whole or in part, is not answered yet."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request, or turn the connection away."""
        self._corked = CorkedTransport(transport, self.loop, self.reader_stall_s)
        above = self._descriptors_above_limit(transport)
        self._has_place = len(self.connections) < self.max_connections and above <= 0
        super().connection_made(self._corked)  # type: ignore[arg-type]
        self._start_clock(_Phase.HEADERS)
        if self._has_place:
            return
        self.connections.discard(self)
        if above > 2 * self.lobby.places:  # a newcomer and the one it pushes out hold one each for a moment
            self.turn_away()
        else:
            self.lobby.enter(self)

    def _descriptors_above_limit(self, transport: asyncio.Transport) -> int:
        connected = transport.get_extra_info("socket")
        if self.max_descriptor is None or connected is None:
            return 0
        return int(connected.fileno()) - self.max_descriptor

    def note_refusal(self, refusal: SpillwayError) -> None:
        """Called with every refusal; for a subclass to count them."""

    def turn_away(self) -> None:
        """Refuse a connection for which there is no place."""
        if self._refusal is None and not self.transport.is_closing():
            if self._phase is _Phase.NOTHING:
                self._may_linger = False  # nothing of it is unread, and its descriptor is wanted
            self._refuse(self._too_many())

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and whoever serves this connection."""
        self._stop_clock()
        self._stop_stall_clock()
        self.lobby.leave(self)
        self._corked.lost()
        super().connection_lost(exc)
        self._connection.lost()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then see to the clock: a request that arrives in one piece never needs one."""
        if self._refusal is not None:
            return
        in_headers = self._phase is _Phase.HEADERS
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            self._stop_clock()
            return
        if in_headers and self._phase is _Phase.HEADERS:
            # The parser shows a header only once it is complete, and would hold an endless one in memory.
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > self.max_header_bytes:
                self._refuse(self._headers_too_large())
                return
        expected = self._phase
        if expected is _Phase.NOTHING and (self.cycle is None or self.cycle.response_complete):
            expected = _Phase.HEADERS  # blank lines before a request stopped uvicorn's keep-alive clock
        if expected is _Phase.NOTHING:
            self._stop_clock()
        elif self._clock is None or self._clock_runs_for is not expected:
            self._start_clock(expected)

    def shutdown(self) -> None:
        """The node ends. A request that has not arrived yet is not waited for; one being answered is."""
        cycle = self.cycle
        if self._refusal is None and self._phase is _Phase.BODY and cycle is not None and not cycle.response_started:
            self._refuse(ShuttingDown("The node is shutting down, and the request had not arrived yet."))
        else:
            super().shutdown()

    def cut(self, why: SpillwayError) -> None:
        """End what this connection is busy with: the answer breaks off with `why`, and nothing more is read."""
        self.shutdown()
        self._connection.cut(why)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered. It has `reader_stall_s` to catch up."""
        super().pause_writing()
        self._stop_stall_clock()
        self._stall_clock = self.loop.call_later(self.reader_stall_s, self._reader_stalled)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stop_stall_clock()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._phase = _Phase.HEADERS
        self._header_count = self._header_bytes = self._unparsed_bytes = 0
        super().on_message_begin()
        self._connection.put_into(self.scope)

    def on_url(self, url: bytes) -> None:
        """Count the target among the header bytes."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count; trailers, which come after the body, are counted and dropped."""
        self._header_count += 1
        if self._header_count > self.max_headers:
            self._throw(self._headers_too_large())
        self._count_header_bytes(len(name) + len(value) + len(": \r\n"))
        if self._phase is _Phase.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application; from here on the body is awaited."""
        if self.parser.should_upgrade() and any(map(_announces_a_body, self.headers)):
            # Java's client does so by default. The parser would drop the body, or take it for the next request.
            self._throw(InvalidRequest("A request with a body cannot ask for an upgrade; send it as plain HTTP/1.1."))
        if not self._has_place:
            if self.url.partition(b"?")[0] not in PROBES:
                self._throw(self._too_many())
            self.lobby.leave(self)
        super().on_headers_complete()
        if not self._has_place:
            self.cycle.keep_alive = False
        self._phase = _Phase.BODY

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._phase = _Phase.NOTHING
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Nothing more to join: send. Close once the answer is out that a refusal had to wait for."""
        self._corked.flush()
        if self._refusal is None:
            super().on_response_complete()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up: because of us, or because this is not HTTP."""
        self._refuse(self._refusal or InvalidRequest("The request is not valid HTTP/1.1."))

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > self.max_header_bytes:
            self._throw(self._headers_too_large())

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request has more than {self.max_headers} header fields or {self.max_header_bytes} bytes of them."
        )

    def _too_many(self) -> TooManyConnections:
        return TooManyConnections(f"The node holds {len(self.connections)} connections, and takes no more.")

    def _reader_stalled(self) -> None:
        self._stall_clock = None
        _log.info("a client did not read its answer for %g s; cut", self.reader_stall_s)
        self.transport.abort()

    def _stop_stall_clock(self) -> None:
        if self._stall_clock is not None:
            self._stall_clock.cancel()
            self._stall_clock = None

    def _throw(self, refusal: SpillwayError) -> None:
        self._refusal = refusal
        raise _Refused

    def _start_clock(self, phase: _Phase) -> None:
        self._stop_clock()
        timeout_s = self.header_timeout_s if phase is _Phase.HEADERS else self.body_timeout_s
        if not self._has_place:
            timeout_s = self.lobby_timeout_s
        self._clock_runs_for = phase
        self._clock = self.loop.call_later(timeout_s, self._time_is_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _time_is_up(self) -> None:
        self._clock = None
        if self.transport.is_closing():
            return
        if not self._has_place:
            self.turn_away()
            return
        if self._phase is _Phase.NOTHING:
            self.transport.close()  # it never sent a request: there is nothing to answer
            return
        what = "headers" if self._phase is _Phase.HEADERS else "body"
        self._refuse(RequestTimeout(f"The request's {what} did not arrive in time."))

    def _refuse(self, refusal: SpillwayError) -> None:
        """Answer the request being read, unless an answer is already on the wire, and read no further."""
        _log.info("refused a request: %s", refusal.message)
        self.note_refusal(refusal)
        self._refusal = refusal
        self.lobby.leave(self)
        self._stop_clock()
        self._unset_keepalive_if_required()
        cycle, reading_body = self.cycle, self._phase is _Phase.BODY
        if self.pipeline or (cycle is not None and not reading_body and not cycle.response_complete):
            # An earlier request is still being answered, and our error would pass for its answer.
            self.flow.pause_reading()
            return
        if reading_body and cycle is not None:
            # The application learns of it as of a client that has gone; what it still sends is dropped.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self.transport.write(_encode(refusal))
        if self._may_linger and self.transport.can_write_eof():
            # Closing over unread input resets the connection, and the client might never see our answer.
            self.transport.write_eof()
            self._clock = self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()


_LINGER_S: Final = 1.0
_HOP: Final = b"connection: close\r\n"


def _announces_a_body(header: tuple[bytes, bytes]) -> bool:
    name, value = header
    return name == b"transfer-encoding" or (name == b"content-length" and value != b"0")


def _encode(error: SpillwayError) -> bytes:
    status, headers, body = render(error)
    fields = {**headers, "x-request-id": new_request_id(), "content-length": str(len(body))}
    lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in fields.items()]
    return b"".join([STATUS_LINE[status], *lines, _HOP, b"\r\n", body])
