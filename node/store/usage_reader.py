"""Queries for a node that serves meanwhile: in a thread, one at a time, and few behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from sqlalchemy import Connection, select

from node.errors import LedgerUnavailable, RateLimited
from node.routing.values import Reason
from node.store.database import Database, Place, StoreUnavailable
from node.store.keys import StoredKey, stored_key
from node.store.schema import keys
from node.store.usage import Question, Report, read_usage

_MOST_WAITING: Final = 16
_RETRY_S: Final = 2.0
_Result = TypeVar("_Result")


class UsageReader:
    """Reads the ledger at `place` over connections of its own, which are opened when they are first wanted.

    Everything raises `LedgerUnavailable` (503) where it cannot be read, and `RateLimited` (429) when too many wait: a
    query over a long history takes seconds, and whoever may ask could ask often.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._database: Database | None = None  # only ever touched in the thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")
        self._waiting = 0

    async def usage(self, question: Question) -> Report:
        """What was used."""
        return await self._read(lambda connection: read_usage(connection, question))

    async def keys(self) -> list[StoredKey]:
        """The keys of the ledger."""
        return await self._read(_keys)

    async def close(self) -> None:
        """Close the connections, once the query that runs is over."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _read(self, query: Callable[[Connection], _Result]) -> _Result:
        if self._waiting >= _MOST_WAITING:
            raise RateLimited("Too many usage queries are waiting.", retry_after_s=_RETRY_S)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, query)
        except StoreUnavailable as error:
            raise LedgerUnavailable(
                f"The ledger cannot be read: {error}", rule=Reason.LEDGER_UNAVAILABLE, retry_after_s=_RETRY_S
            ) from error
        finally:
            self._waiting -= 1

    def _run(self, query: Callable[[Connection], _Result]) -> _Result:
        try:
            if self._database is None:
                self._database = Database(self._place)
                self._database.open_beside()
            with self._database.reading() as connection:
                return query(connection)
        except StoreUnavailable:
            self._close()  # the next time it may be another file
            raise

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _keys(connection: Connection) -> list[StoredKey]:
    query = select(keys).order_by(keys.c.name, keys.c.created_us)
    return [stored_key(row) for row in connection.execute(query).mappings()]
