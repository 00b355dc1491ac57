"""Knowing at once that a client has hung up, without a task per request that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Scope

from node.api.reader import ClientGone

_KEY = "spillway.connection"


class Connection:
    """A client's connection as an endpoint sees it: one request at a time, and whether the client is still there."""

    def __init__(self) -> None:
        self._gone = False
        self._on_gone: Callable[[], object] | None = None

    def lost(self) -> None:
        """The protocol's word that the client has gone."""
        self._gone = True
        if self._on_gone is not None:
            self._on_gone()

    def put_into(self, scope: Any) -> None:
        """Hand this connection to whoever serves the request in `scope`."""
        scope.setdefault("extensions", {})[_KEY] = self

    @asynccontextmanager
    async def while_there(self) -> AsyncIterator[None]:
        """Run the block, and cancel it as soon as the client hangs up: then `ClientGone` is raised."""
        if self._gone:
            raise ClientGone
        task = asyncio.current_task()
        assert task is not None
        cancelled = False

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            task.cancel()

        self._on_gone = cancel
        try:
            yield
        except asyncio.CancelledError:
            if cancelled and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            self._on_gone = None


def connection_of(scope: Scope) -> Connection:
    """The connection the request in `scope` came in on."""
    connection: Connection = scope["extensions"][_KEY]
    return connection
