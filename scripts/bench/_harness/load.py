"""Load from Python, streaming or not: a closed loop of busy connections, or an open loop at given arrival times."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from _harness.sse import StreamMeter


@dataclass(frozen=True)
class Call:
    """One request to be sent: the whole URL, the JSON body as bytes, and whether an SSE stream is expected."""

    url: str
    body: bytes
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What happened to one request. Times run from its start (in an open loop: from its planned arrival)."""

    index: int
    start_s: float
    """Since the beginning of the load."""
    end_s: float
    ttft_s: float | None
    """To the first chunk with content; without streaming, to the whole answer; None when none came."""
    itl_s: tuple[float, ...]
    status: int | None
    """None when no HTTP answer came."""
    headers: Mapping[str, str]
    usage: Mapping[str, Any] | None
    error: str | None

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.error is None


@dataclass(frozen=True)
class Run:
    """All records of one load; `duration_s` is the time in which requests were started, to be divided by."""

    records: Sequence[Record]
    duration_s: float
    generator_cpu_share: float

    @property
    def completed_inside(self) -> int:
        """Good answers that were complete within `duration_s`: divided by it, they are the throughput."""
        return sum(r.ok and r.start_s + r.end_s <= self.duration_s for r in self.records)


async def closed_loop(
    call: Callable[[int], Call], *, connections: int, duration_s: float | None = None, requests: int | None = None
) -> Run:
    """`connections` clients, each sending its next request when its last one is answered.

    Ends after `requests` in all, or starts none after `duration_s`; every request begun is waited for.
    """
    if (duration_s is None) == (requests is None):
        raise ValueError("give a duration or a number of requests")
    indices = iter(range(requests)) if requests is not None else itertools.count()
    async with unlimited() as session:
        began_s, began_cpu_s = time.monotonic(), time.process_time()

        async def client() -> list[Record]:
            records = []
            for index in indices:
                records.append(await send(session, index, call(index), began_s, time.monotonic()))
                if duration_s is not None and time.monotonic() - began_s >= duration_s:
                    break
            return records

        done = await asyncio.gather(*(client() for _ in range(connections)))
        wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    records = sorted(itertools.chain(*done), key=lambda record: record.index)
    return Run(records, wall_s if duration_s is None else duration_s, cpu_s / wall_s)


async def open_loop(calls: Sequence[tuple[float, Call]]) -> Run:
    """Sends each call at its arrival time (seconds from the beginning), whatever became of those before it."""
    async with unlimited() as session:
        began_s, began_cpu_s = time.monotonic(), time.process_time()

        async def arrive(index: int, at_s: float, call: Call) -> Record:
            await asyncio.sleep(began_s + at_s - time.monotonic())
            return await send(session, index, call, began_s, began_s + at_s)

        records = await asyncio.gather(*(arrive(index, at_s, call) for index, (at_s, call) in enumerate(calls)))
        wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    return Run(records, wall_s, cpu_s / wall_s)


def unlimited() -> aiohttp.ClientSession:
    """A session for `send`. No limit: the load decides how many connections there are. No timeout: a slow answer is a
    result."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), trust_env=False
    )


async def send(session: aiohttp.ClientSession, index: int, call: Call, began_s: float, start_s: float) -> Record:
    """One request and what happened to it. `start_s` is when it was to be sent, `began_s` when the load began."""
    meter = StreamMeter()
    status: int | None = None
    headers: Mapping[str, str] = {}
    error: str | None = None
    try:
        sent = {"Content-Type": "application/json", **call.headers}
        async with session.post(call.url, data=call.body, headers=sent) as answer:
            status, headers = answer.status, dict(answer.headers)
            if call.stream and answer.content_type == "text/event-stream":
                async for data in answer.content.iter_any():
                    meter.feed(data, time.monotonic())
                error = meter.error or (None if meter.finished else "the stream ended without [DONE]")
            else:
                error = _take_whole(meter, await answer.read(), status)
    except (aiohttp.ClientError, OSError, ValueError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    return Record(
        index=index,
        start_s=start_s - began_s,
        end_s=time.monotonic() - start_s,
        ttft_s=None if meter.first_content_s is None else meter.first_content_s - start_s,
        itl_s=tuple(meter.gaps_s),
        status=status,
        headers=headers,
        usage=meter.usage,
        error=error,
    )


def _take_whole(meter: StreamMeter, body: bytes, status: int) -> str | None:
    """An answer in one piece: its usage goes to the meter; gives the error it holds, if any."""
    if status != 200:
        return body.decode(errors="replace")[:500]
    meter.first_content_s = time.monotonic()
    meter.usage = json.loads(body).get("usage")
    return None
