"""Joining what is written to a connection within one turn of the event loop into one system call."""

from __future__ import annotations

import asyncio
from typing import Any


class CorkedTransport:
    """A transport whose writes wait for the end of the event loop's turn.

    uvicorn writes the headers and the first bytes of the body one after the other, and uvloop sends each at once: two
    system calls, two packets, and two wake-ups of the client for one small answer. In a profile of the node under load
    those writes were its largest cost. Everything but writing and closing is the inner transport's.

    A client that does not take what is left within `linger_s` seconds of a close loses the connection: a transport
    waits for it without end, and holds a file descriptor.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, linger_s: float = 30.0) -> None:
        self._transport = transport
        self._loop = loop
        self._linger_s = linger_s
        self._held: list[bytes] = []
        self._lingering: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        """Hold `data` until the turn ends."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def close(self) -> None:
        """Send what is held, then close."""
        self.flush()
        self._transport.close()
        if self._lingering is None and self._transport.get_write_buffer_size() > 0:
            self._lingering = self._loop.call_later(self._linger_s, self._transport.abort)

    def write_eof(self) -> None:
        """Send what is held, then half-close."""
        self.flush()
        self._transport.write_eof()

    def abort(self) -> None:
        """Drop what is held and the connection."""
        self._held.clear()
        self._transport.abort()

    def lost(self) -> None:
        """The connection has gone: there is nothing left to wait for."""
        self._held.clear()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._transport.write(data)
