"""uvicorn's server, ending in steps: nobody new, let finish, break off, close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import socket

import uvicorn

from node.api.door import Door
from node.api.http_protocol import GuardedHttpProtocol
from node.errors import ShuttingDown

_log = logging.getLogger("spillway")

_LOOK_S = 0.05
# How long what was broken off may take to be told so; a client that does not read is not waited for.
_LAST_WORDS_S = 2.0


class QuietServer(uvicorn.Server):
    """Serves until `should_exit` is set. Signals are the caller's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


class DrainingServer(QuietServer):
    """Serves until `end()` is called.

    From then on the door is closed, so that new requests get a 503, but probes are still answered: whoever balances
    the load sees the node go. What runs has `grace_s()` seconds; what is left after that, or after a second `end()`,
    is broken off with an error the client can read.
    """

    def __init__(self, config: uvicorn.Config, door: Door, grace_s: Callable[[], float]) -> None:
        super().__init__(config)
        self._door = door
        self._grace_s = grace_s
        self._hurry = asyncio.Event()

    def end(self) -> None:
        """Begin to end; the second time: at once. To be called on the event loop."""
        if self.should_exit:
            self._hurry.set()
            return
        self.should_exit = True
        self._door.close()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Every step; returns when no connection is left, at the latest some seconds after the grace."""
        busy = self._busy()
        if busy:
            _log.info("shutting down: %d requests have %g s to finish", len(busy), self._grace_s())
        for connection in busy:
            connection.shutdown()  # its answer, when it comes, ends the connection
        await self._until_idle(self._grace_s(), self._hurry)
        left = self._busy()
        if left:
            _log.warning("shutting down: %d requests did not finish, and are broken off", len(left))
        for connection in left:
            connection.cut(ShuttingDown("The node is shutting down, and the answer was not complete in time."))
        await self._until_idle(_LAST_WORDS_S, asyncio.Event())
        for connection in self._busy():
            connection.transport.abort()
        await super().shutdown(sockets)

    def _busy(self) -> list[GuardedHttpProtocol]:
        connections = self.server_state.connections
        return [each for each in connections if isinstance(each, GuardedHttpProtocol) and each.is_busy]

    async def _until_idle(self, within_s: float, hurry: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + within_s
        while self._busy() and not hurry.is_set() and loop.time() < give_up_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), _LOOK_S)
