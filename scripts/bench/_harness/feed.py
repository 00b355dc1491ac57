"""The dashboard's feed as a viewer reads it: each event decoded by its type."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

import httpx
import msgspec

from node.dashboard.feed import Hello, Tick

Event = Hello | Tick | None
"""None stands for `bye`."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@asynccontextmanager
async def viewing(url: str, headers: Mapping[str, str] = _NOTHING) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of the node at `url`. Raises `httpx.HTTPError` when it is not there, or does not let in."""
    async with (
        httpx.AsyncClient(timeout=30, headers=headers, trust_env=False) as client,
        client.stream("GET", f"{url}/dashboard/feed") as answer,
    ):
        answer.raise_for_status()
        yield _events(answer)


async def _events(answer: httpx.Response) -> AsyncIterator[Event]:
    # A field that is missing or of another type is an error.
    name = ""
    async for line in answer.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data" and name == "hello":
            yield msgspec.json.decode(value, type=Hello)
        elif key == "data":
            yield None if name == "bye" else msgspec.json.decode(value, type=Tick)
