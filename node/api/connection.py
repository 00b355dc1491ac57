"""Ending a request at once, because its client has hung up or the node ends, without a task per request that waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Scope

from node.api.reader import ClientGone

_KEY = "spillway.connection"


class Connection:
    """A client's connection as an endpoint sees it: one request at a time, and whether it goes on being served."""

    def __init__(self) -> None:
        self._gone = False
        self._interrupt: Callable[[Exception], None] | None = None

    def lost(self) -> None:
        """The protocol's word that the client has gone."""
        self._gone = True
        self.cut(ClientGone())

    def cut(self, why: Exception) -> None:
        """End the request being served, if there is one: `why` is raised where it is served.

        What is cancelled for that is told `why` with the cancellation (`node.dispatch.journey: cancelled_by`).
        """
        if self._interrupt is not None:
            self._interrupt(why)

    def put_into(self, scope: Any) -> None:
        """Hand this connection to whoever serves the request in `scope`."""
        scope.setdefault("extensions", {})[_KEY] = self

    @asynccontextmanager
    async def while_there(self) -> AsyncIterator[None]:
        """Run the block, and cancel it as soon as the client hangs up: then `ClientGone` is raised.

        Raises what `cut` was given if the request is ended from our side.
        """
        if self._gone:
            raise ClientGone
        task = asyncio.current_task()
        assert task is not None
        reason: Exception | None = None

        def interrupt(why: Exception) -> None:
            nonlocal reason
            if reason is None:
                reason = why
                task.cancel(why)

        self._interrupt = interrupt
        try:
            yield
        except asyncio.CancelledError:
            if reason is not None and task.uncancel() == 0:
                raise reason from None
            raise
        finally:
            self._interrupt = None


def connection_of(scope: Scope) -> Connection:
    """The connection the request in `scope` came in on."""
    connection: Connection = scope["extensions"][_KEY]
    return connection
