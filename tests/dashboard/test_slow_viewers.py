"""Row 39 for the live feed: who does not read is cut, who reads slowly misses seconds, and neither costs the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from node.api.dashboard import DashboardParts, dashboard_routes
from node.api.http_protocol import GuardedHttpProtocol
from node.dashboard.decisions import DecisionLog, as_row
from node.dashboard.feed import DecisionRow, Now, Point, Totals
from node.dashboard.reader import Reading
from node.dashboard.sampler import Sampler
from tests.dashboard.feed_client import hello, tick, viewing
from tests.dashboard.test_decisions import outcome
from tests.serve.node_process import until

_FAST_S = 0.005
_ROWS = tuple(as_row(1.0, outcome(number)) for number in range(40))
_SUMS = dict.fromkeys(Totals.__struct_fields__, 0)
_NOW = Now(
    uptime_s=1.0,
    ready=True,
    draining=False,
    inside=0,
    totals=Totals(**_SUMS),
    models=(),
    providers=(),
    budget=(),
    gpus=(),
)


class Busy:
    """A node in which much happens all the time."""

    def read(self) -> Reading:
        return Reading(point=Point(at_s=1.0), now=_NOW, decisions=_ROWS, skipped=0)

    def now(self) -> Now:
        return _NOW

    def newest(self, count: int) -> tuple[DecisionRow, ...]:
        return ()


def sampler(interval_s: float) -> Sampler:
    return Sampler(Busy(), unix_s=lambda: 0.0, interval_s=interval_s)


class Hasty(GuardedHttpProtocol):
    reader_stall_s = 0.5


@asynccontextmanager
async def serving(fast: Sampler) -> AsyncIterator[int]:
    parts = DashboardParts(
        sampler=fast,
        decisions=DecisionLog(lambda: 0.0),
        check=lambda scope: None,
        may_change=False,
        ending=lambda: False,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=dashboard_routes(parts)), http=Hasty, lifespan="off", log_config=None, ws="none"
        )
    )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        listener.bind(("127.0.0.1", 0))
        fast.start()
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            await fast.stop()
            server.should_exit = True
            await task


async def test_row_39_viewer_that_does_not_read_is_cut_and_the_others_see_every_tick() -> None:
    fast = sampler(_FAST_S)
    async with serving(fast) as port:
        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
            idle.connect(("127.0.0.1", port))
            idle.sendall(b"GET /dashboard/feed HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await until(lambda: fast.viewers == 1)
            async with viewing(f"http://127.0.0.1:{port}") as feed:
                await hello(feed)
                async with asyncio.timeout(60):
                    while fast.viewers > 1:  # until the idle one has lost its place
                        await tick(feed)
                for _ in range(3):
                    await tick(feed)
                assert fast.viewers == 1


async def test_slow_viewer_gets_the_newest_next_and_nothing_is_kept_for_it() -> None:
    slow = sampler(60.0)
    with slow.place():
        feed = slow.events(may_change=False, ending=lambda: False)
        await anext(feed)
        waiting = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
        slow.sample()
        assert b'"number":1' in await waiting
        for _ in range(1000):  # all of this while it still takes the first
            slow.sample()
        following = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
        slow.sample()
        assert b'"number":1002' in await following
        await feed.aclose()  # type: ignore[attr-defined]


async def test_nobody_watching_costs_no_encoding_and_the_last_minutes_are_there_for_who_comes() -> None:
    calm = sampler(1.0)
    for _ in range(400):
        calm.sample()
    with calm.place():
        feed = calm.events(may_change=False, ending=lambda: False)
        first = await anext(feed)
        assert first.count(b'"at_s"') == 300
        await feed.aclose()  # type: ignore[attr-defined]
