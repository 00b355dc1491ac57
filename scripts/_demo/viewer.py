"""What the node's own feed tells: the last second, and every change of an engine's or a breaker's state."""

import asyncio
import time

from _demo.told import Change
from node.dashboard.feed import EngineNow, Hello, Now, Point, Tick
from node.top.client import Away, Client
from node.top.target import Place, Target


class Viewer:
    """One viewer of the feed. Moments are Unix seconds, as in the feed."""

    def __init__(self) -> None:
        self.now: Now | None = None
        self.point: Point | None = None
        self.engine_changes: list[Change] = []
        self.breaker_changes: dict[str, list[Change]] = {}
        self._news = asyncio.Event()

    async def follow(self, url: str, key: str) -> None:
        """Read until cancelled; a node that is gone is asked for again."""
        target = Target(places=(Place(url=url, key=key),))
        async for event in Client(lambda: target).events():
            if not isinstance(event, Away):
                self._take(event)

    def _take(self, event: Hello | Tick) -> None:
        self.now = event.now
        if isinstance(event, Tick):
            self.point = event.point
        engine = self.engine
        known = self.engine_changes[-1].at_s if self.engine_changes else 0.0
        for each in engine.changes if engine else ():
            if each.at_s > known:
                self.engine_changes.append(Change(each.at_s, each.state, each.why))
        for provider in event.now.providers:
            changes = self.breaker_changes.setdefault(provider.name, [])
            if not changes or changes[-1].state != provider.breaker:
                changes.append(Change(time.time(), provider.breaker, provider.opened_by))
        self._news.set()

    @property
    def engine(self) -> EngineNow | None:
        """The demo model's, None before the first event."""
        return self.now.models[0].engine if self.now and self.now.models else None

    async def news(self, within_s: float) -> None:
        """Until the next event, or for so long."""
        self._news.clear()
        try:
            await asyncio.wait_for(self._news.wait(), within_s)
        except TimeoutError:
            return
