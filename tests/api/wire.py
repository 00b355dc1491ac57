"""A client's end of a connection without a socket: what the protocol under test sends it, and how it is ended."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from node.api.http_protocol import GuardedHttpProtocol

HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024


class Wire:
    """The transport given to a protocol. A client that has set `reads` takes everything at once, as most do.

    Otherwise it takes what `take` says, and the protocol is paused and resumed as by asyncio's own transports.
    """

    def __init__(self, protocol: GuardedHttpProtocol, *, reads: bool = True, descriptor: int = 10) -> None:
        self.protocol = protocol
        self.reads = reads
        self.received = bytearray()
        self.unsent = 0
        self.most_unsent = 0
        self.closed_at_s: float | None = None
        self.aborted = False
        self._paused = False
        self._descriptor = descriptor
        protocol.connection_made(self)  # type: ignore[arg-type]

    def send(self, data: bytes) -> None:
        """The client sends."""
        if self.closed_at_s is None:
            self.protocol.data_received(data)

    def take(self, size_bytes: int) -> None:
        """The client reads so many bytes."""
        self.unsent = max(0, self.unsent - size_bytes)
        if self._paused and self.unsent <= LOW_WATER_BYTES:
            self._paused = False
            self.protocol.resume_writing()
        if self.unsent == 0 and self.closed_at_s is not None:
            self._lost()

    def write(self, data: bytes) -> None:
        assert self.closed_at_s is None, "written to after the close"
        self.received += data
        if self.reads:
            return
        self.unsent += len(data)
        self.most_unsent = max(self.most_unsent, self.unsent)
        if self.unsent > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def close(self) -> None:
        if self.closed_at_s is None:
            self.closed_at_s = asyncio.get_running_loop().time()
            if self.unsent == 0:
                self._lost()

    def abort(self) -> None:
        self.aborted = True
        self.unsent = 0
        if self.closed_at_s is None:
            self.closed_at_s = asyncio.get_running_loop().time()
        self._lost()

    def _lost(self) -> None:
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed_at_s is not None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def fileno(self) -> int:
        return self._descriptor

    @property
    def family(self) -> int:
        return 2

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    getsockname = getpeername


class Listener:
    """Makes connections to one application, on the running loop."""

    def __init__(self, app: Any, protocol: type[GuardedHttpProtocol] = GuardedHttpProtocol) -> None:
        self._protocol = protocol
        self.state = ServerState()
        self._config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False)
        self._config.load()

    def connect(self, **how: Any) -> Wire:
        """A new connection."""
        loop = asyncio.get_running_loop()
        return Wire(self._protocol(self._config, self.state, {}, _loop=loop), **how)
