"""Reads the dashboard's feed as a viewer would."""

from __future__ import annotations

from collections.abc import AsyncIterator

from _harness.feed import Event, viewing

from node.dashboard.feed import Hello, Tick

__all__ = ["hello", "tick", "viewing"]


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
