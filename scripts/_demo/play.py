"""Plays the day on the stage: sends what callers ask, does what happens to the node, keeps what became of it all."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import aiohttp
from _harness import load
from _harness.process import CannotRun

from _demo.books import total_spent_usd
from _demo.day import CALM, CHAPTERS, DEAR_PROVIDER, PROVIDER, Act, Chapter, Crowd, Request
from _demo.pace import Pace
from _demo.report import examples
from _demo.screen import Screen, moment, second
from _demo.stage import PATIENCE_S, SEQUENCES, Stage
from _demo.told import End, Told, told, unanswered
from _demo.viewer import Viewer

_START_WITHIN_S = 600.0
_BACK_WITHIN_S = 150.0
_STRETCH_S, _LOOK_AGAIN_S = 1.0, 4.0
_MEASURE_S = (2.0, 3.0)  # warming up, then measuring
_DRAIN_S, _DRAIN_WHEN_ENDED_S = PATIENCE_S + 15.0, 3.0
_BUDGET_FOR_S = 3.0
_LEAST_LEFT_USD = Decimal("0.0003")
_T = TypeVar("_T")


@dataclass
class Played:
    """What there is to report. Seconds of the day, unless said otherwise.

    `broken` says what broke in the middle of it; None for a day that came to its end, or was ended early.
    """

    began_unix_s: float
    told: list[Told] = field(default_factory=list)
    chapters: dict[str, tuple[float, float]] = field(default_factory=dict)
    engine_start_s: float | None = None
    capacity_per_s: float | None = None
    killed_s: float | None = None
    budget_usd: Decimal | None = None
    lasted_s: float = 0.0
    ended_early: bool = False
    broken: str | None = None


class Play:
    """One day. `stop` is set when whoever watches has had enough, and by the day itself when it cannot go on."""

    def __init__(
        self, stage: Stage, screen: Screen, viewer: Viewer, stop: asyncio.Event, day_s: float, seed: int
    ) -> None:
        self.played = Played(time.time())
        self._stage = stage
        self._screen = screen
        self._viewer = viewer
        self._stop = stop
        self._day_s = day_s
        self._rng = random.Random(seed)
        self._crowd = Crowd(self._rng)
        self._began_s = time.monotonic()
        self._open: dict[asyncio.Task[load.Record], tuple[str, Request, float]] = {}
        self._sent = 0
        self._pace = Pace(0.0)
        self._wanted = 0.0

    async def run(self) -> Played:
        """The start, the day, and until the last answer. Raises `CannotRun` when there is no day to be had.

        Once it has begun there is something to tell, and what breaks then is told in `Played.broken`.
        """
        try:
            async with load.unlimited() as session:
                if await self._until_ready() and await self._measure():
                    await self._day(session)
                await self._drain()
        finally:
            self.played.lasted_s = self._now_s
            self.played.ended_early = self._stop.is_set() and self.played.broken is None
        return self.played

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _pause_until(self, at_s: float) -> None:
        """Until that second of the day, or until it is enough."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(0.0, at_s - self._now_s))

    async def _until_ready(self) -> bool:
        began_s = time.monotonic()
        while not self._stop.is_set():
            if broken := self._stage.broken():
                raise CannotRun(broken)
            engine = self._viewer.engine
            took_s = time.monotonic() - began_s
            if engine is not None and engine.state == "ready":
                self.played.engine_start_s = took_s
                return True
            if (engine is not None and engine.given_up) or took_s > _START_WITHIN_S:
                why = engine.why if engine is not None else None
                raise CannotRun(f"the engine does not start: {why or 'it takes too long'}")
            self._screen.status(f"starting the engine: {took_s:.0f} s")
            await self._viewer.news(0.5)
        return False

    async def _measure(self) -> bool:
        """How much this engine takes here, as fast as it answers, so that the day is scaled to this machine."""
        self._screen.status("measuring how much it takes here")
        crowd = Crowd(random.Random(0))

        def call(index: int) -> load.Call:
            request = crowd.request(0.0)
            request.body["spillway"].update(require_local=True, cache=False)
            return self._call(request)

        for duration_s in _MEASURE_S:
            run = await self._unless_stopped(load.closed_loop(call, connections=SEQUENCES + 2, duration_s=duration_s))
            if run is None:
                return False
            if failed := [record for record in run.records if not record.ok]:
                raise CannotRun(f"the node does not answer: {failed[0].status} {failed[0].error}")
            self.played.capacity_per_s = run.completed_inside / run.duration_s
        self._pace = Pace(self.played.capacity_per_s or 0.0)
        self._screen.say(
            f"The engine was ready after {self.played.engine_start_s:.0f} s. Held to {SEQUENCES} sequences at once, "
            f"it takes {self.played.capacity_per_s:.0f} requests a second here; the day is scaled to that."
        )
        return True

    async def _unless_stopped(self, doing: Coroutine[Any, Any, _T]) -> _T | None:
        """What it comes to, None when it was enough before that."""
        done, ended = asyncio.create_task(doing), asyncio.create_task(self._stop.wait())
        await asyncio.wait([done, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if done.done():
            return done.result()
        done.cancel()
        await asyncio.wait([done])
        return None

    async def _day(self, session: aiohttp.ClientSession) -> None:
        self._began_s, self.played.began_unix_s = time.monotonic(), time.time()
        ticking = asyncio.create_task(self._tick())
        try:
            for chapter in CHAPTERS:
                from_s = self._now_s
                await self._chapter(session, chapter)
                self.played.chapters[chapter.name] = (from_s, self._now_s)
                if self._stop.is_set():
                    return
                for line in examples(self.played.told, chapter.name):
                    self._screen.say(line)
        finally:
            ticking.cancel()

    def _break(self, why: str) -> None:
        self.played.broken = why
        self._stop.set()

    async def _chapter(self, session: aiohttp.ClientSession, chapter: Chapter) -> None:
        lasts_s, from_s = chapter.lasts_s(self._day_s), self._now_s
        self._screen.head(f"{moment(from_s)}  {chapter.title}")
        self._screen.say(f"      {chapter.look}")
        offering = asyncio.create_task(
            self._offer(session, chapter.name, lambda at_s: chapter.load_at(at_s / lasts_s), from_s, lasts_s)
        )
        for event in chapter.events:
            await self._pause_until(from_s + event.at * lasts_s)
            if not self._stop.is_set():
                self._screen.say(f"{moment(self._now_s)}  {event.says}")
                try:
                    await self._do(session, event.act)
                except (aiohttp.ClientError, CannotRun) as error:  # the node or a provider is not there
                    self._break(self._stage.broken() or f"{event.act}: {error}")
        await self._pause_until(from_s + lasts_s)
        await offering
        if any(event.act is Act.KILL_ENGINE for event in chapter.events):
            await self._until_back(session, chapter.name)

    async def _offer(
        self,
        session: aiohttp.ClientSession,
        chapter: str,
        load_at: Callable[[float], float],
        from_s: float,
        lasts_s: float,
    ) -> None:
        """What arrives in `lasts_s`, in short stretches, because what the engine can take is learned meanwhile."""
        at_s = 0.0
        while at_s < lasts_s and not self._stop.is_set():
            stretch_s = min(_STRETCH_S, lasts_s - at_s)
            self._wanted = load_at(at_s)
            requests = self._crowd.requests(self._rate_at(load_at, at_s), stretch_s)
            await self._send(session, chapter, requests, from_s + at_s)
            at_s += stretch_s
            await self._pause_until(from_s + at_s)

    def _rate_at(self, load_at: Callable[[float], float], from_s: float) -> Callable[[float], float]:
        return lambda at_s: self._pace.per_s * load_at(from_s + at_s)

    async def _until_back(self, session: aiohttp.ClientSession, chapter: str) -> None:
        """The calm goes on until there is an engine again, and for a moment after."""
        give_up_s, more = self._now_s + _BACK_WITHIN_S, True
        while more and self._now_s < give_up_s and not self._stop.is_set():
            engine = self._viewer.engine
            more = engine is None or engine.state != "ready"
            await self._offer(session, chapter, lambda at_s: CALM, self._now_s, _LOOK_AGAIN_S)

    async def _do(self, session: aiohttp.ClientSession, act: Act) -> None:
        stage = self._stage
        match act:
            case Act.KILL_ENGINE:
                self.played.killed_s = self._now_s
                stage.kill_engine()
            case Act.PROVIDER_OUT:
                await stage.fail(session, PROVIDER, out=True)
            case Act.ALL_OUT:
                await stage.fail(session, DEAR_PROVIDER, out=True)
            case Act.ALL_BACK:
                await stage.fail(session, PROVIDER, out=False)
                await stage.fail(session, DEAR_PROVIDER, out=False)
            case Act.LOWER_BUDGET:
                spent_usd = total_spent_usd(await stage.admin(session, "/admin/usage"))
                self.played.budget_usd = spent_usd + self._soon_spent_usd()
                stage.set_budget(self.played.budget_usd)
                self._screen.say(
                    f"      ${spent_usd:.5f} is spent or reserved, the budget is now ${self.played.budget_usd:.5f}."
                )

    def _soon_spent_usd(self) -> Decimal:
        """What an overflow as large as what the engine takes spends within seconds."""
        costs = [each.cost_nano_usd for each in self.played.told if each.cost_nano_usd]
        mean_nano_usd = sum(costs) / len(costs) if costs else 0.0
        usd = mean_nano_usd * self._pace.per_s * _BUDGET_FOR_S / 1e9
        return max(_LEAST_LEFT_USD, Decimal(f"{usd:.5f}"))

    async def _send(
        self, session: aiohttp.ClientSession, chapter: str, requests: Sequence[Request], from_s: float
    ) -> None:
        for request in requests:
            at_s = from_s + request.at_s
            await self._pause_until(at_s)
            if self._stop.is_set():
                return
            self._sent += 1
            sending = load.send(session, self._sent, self._call(request), self._began_s, self._began_s + at_s)
            task = asyncio.create_task(sending)
            self._open[task] = (chapter, request, at_s)
            task.add_done_callback(self._heard)

    def _heard(self, task: asyncio.Task[load.Record]) -> None:
        chapter, request, at_s = self._open.pop(task)
        if task.cancelled():
            end = End.CUT if self._stop.is_set() else End.HUNG
            self.played.told.append(unanswered(chapter, request, at_s, self._now_s - at_s, end))
        else:
            self.played.told.append(told(chapter, request, task.result()))

    def _call(self, request: Request) -> load.Call:
        headers = {"authorization": f"Bearer {self._stage.keys[request.caller]}"}
        url = f"{self._stage.node.url}/v1/chat/completions"
        return load.Call(url, json.dumps(request.body).encode(), stream=True, headers=headers)

    async def _tick(self) -> None:
        while True:
            await self._viewer.news(2.0)
            if broken := self._stage.broken():
                self._break(broken)
                return
            now, point = self._viewer.now, self._viewer.point
            if now is not None and point is not None:
                engine, queued = self._viewer.engine, now.models[0].queued
                ready = engine is not None and engine.state == "ready"
                self._pace.second(local_per_s=point.local_per_s, queued=queued, ready=ready, wanted=self._wanted)
                self._screen.status(second(self._now_s, point, now))

    async def _drain(self) -> None:
        """Until the last answer; what is open long after that is hung, or cut where it was to end at once."""
        if not self._open:
            return
        self._screen.status(f"waiting for the last {len(self._open)} answers")
        ended = asyncio.create_task(self._stop.wait())
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while self._open and not ended.done():
                    await asyncio.wait([*self._open, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if self._open and self._stop.is_set():
            await asyncio.wait(self._open, timeout=_DRAIN_WHEN_ENDED_S)
        left = list(self._open)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
