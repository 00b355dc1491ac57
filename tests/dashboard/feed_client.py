"""Reads the dashboard's feed as a viewer would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

import httpx
import msgspec

from node.dashboard.feed import Hello, Tick

Event = Hello | Tick | None
"""None stands for `bye`."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


async def events(answer: httpx.Response) -> AsyncIterator[Event]:
    """What comes, each event decoded by its type: a field that is missing or of another type would be an error."""
    name = ""
    async for line in answer.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data" and name == "hello":
            yield msgspec.json.decode(value, type=Hello)
        elif key == "data":
            yield None if name == "bye" else msgspec.json.decode(value, type=Tick)


@asynccontextmanager
async def viewing(url: str, headers: Mapping[str, str] = _NOTHING) -> AsyncIterator[AsyncIterator[Event]]:
    """A viewer of the node at `url`."""
    async with (
        httpx.AsyncClient(timeout=30, headers=headers) as client,
        client.stream("GET", f"{url}/dashboard/feed") as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        yield events(answer)


async def hello(each: AsyncIterator[Event]) -> Hello:
    """The first event."""
    first = await anext(each)
    assert isinstance(first, Hello)
    return first


async def tick(each: AsyncIterator[Event]) -> Tick:
    """The next one."""
    following = await anext(each)
    assert isinstance(following, Tick)
    return following
