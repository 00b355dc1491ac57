"""Looks at everything once a second, for all viewers; each is told as fast as it reads, and never waited for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from node import __version__
from node.dashboard.feed import FEED_VERSION, HISTORY_S, DecisionRow, Hello, Now, Point, Tick, event
from node.dashboard.reader import Reading
from node.errors import TooManyViewers
from node.routing.values import Zone

_log = logging.getLogger("spillway")

INTERVAL_S: Final = 1.0
MOST_VIEWERS: Final = 64
_FIRST_DECISIONS: Final = 100


class Looking(Protocol):
    """What a sampler needs of `node.dashboard.reader.Reader`."""

    def read(self) -> Reading:
        """What there was since the last time."""

    def now(self) -> Now:
        """How all stands."""

    def newest(self, count: int) -> tuple[DecisionRow, ...]:
        """The last decisions, newest first."""


class Sampler:
    """One for all viewers. `reader` is asked once per `interval_s`, and the answer encoded once, if anybody watches."""

    def __init__(
        self,
        reader: Looking,
        *,
        unix_s: Callable[[], float],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._reader = reader
        self._started_s = unix_s()
        self._interval_s = interval_s
        self._history: deque[Point] = deque(maxlen=round(HISTORY_S / interval_s))
        self._number = 0
        self._latest = b""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.viewers = 0
        self.ended = False

    def start(self) -> None:
        """Begin to look, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="dashboard")
        self._task.add_done_callback(_must_not_fail)

    def end(self) -> None:
        """Tell every viewer that it is over."""
        self.ended = True
        self._wake()

    async def stop(self) -> None:
        """Look no more."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def sample(self) -> None:
        """Look now, and tell whoever watches."""
        reading = self._reader.read()
        self._number += 1
        self._history.append(reading.point)
        if self.viewers:
            tick = Tick(
                number=self._number,
                point=reading.point,
                now=reading.now,
                decisions=reading.decisions,
                skipped=reading.skipped,
            )
            self._latest = event("tick", tick)
        self._wake()

    @contextmanager
    def place(self) -> Iterator[None]:
        """One viewer's, for the length of the block. Raises `TooManyViewers`."""
        if self.viewers >= MOST_VIEWERS:
            raise TooManyViewers(f"{self.viewers} are watching already, as many as may.")
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def events(self, *, may_change: bool, ending: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The feed for one viewer that has a `place`, until the node ends or `ending` says so.

        Whoever takes long over one event gets the newest one next, and not those between: nothing is kept for it.
        """
        yield event("hello", self._hello(may_change))
        while True:
            news = self._news
            await news.wait()
            if self.ended or ending():
                yield event("bye", {"why": "shutting_down"})
                return
            yield self._latest

    def _hello(self, may_change: bool) -> Hello:
        now = self._reader.now()
        clouds = [each.emulated for each in now.providers if each.zone == Zone.CLOUD]
        return Hello(
            feed=FEED_VERSION,
            node=__version__,
            interval_s=self._interval_s,
            started_s=self._started_s,
            emulated=bool(clouds) and all(clouds),
            may_change=may_change,
            history=tuple(self._history),
            now=now,
            decisions=self._reader.newest(_FIRST_DECISIONS),
        )

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + self._interval_s, loop.time())  # after a long pause: not several at once
            await asyncio.sleep(due_s - loop.time())
            self.sample()


def _must_not_fail(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the dashboard's feed has stopped: its figures stand still", exc_info=error)
