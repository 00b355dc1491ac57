"""What becomes of requests that the node itself breaks off, because it ends: they have failed, nobody has hung up."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from node.api.connection import Connection
from node.dispatch.outcome import Ending, Outcome
from node.errors import ShuttingDown
from tests.cloud.cloud_node import CloudNode, cloud_node

_ALIKE: dict[str, Any] = {"spillway": {"cache": True, "ttft_budget_ms": 60_000}}  # such answers are shared
_SLOW_TO_BEGIN: dict[str, Any] = {"ttft_median_s": 60.0, "ttft_sigma": 0.0}
_SLOW: dict[str, Any] = {"pace_s": 0.4, "pace_sigma": 0.0}


class Client:
    """One request on a connection of its own; `reads` says whether what is sent to it is taken."""

    def __init__(self, app: ASGIApp, *, reads: bool = True, **changes: Any) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 60}
        self._body = json.dumps(body | {"spillway": {"ttft_budget_ms": 60_000}} | changes).encode()
        self._reads = reads
        self.connection = Connection()
        self.began = asyncio.Event()
        self.got = b""
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.connection.put_into(scope)
        self.served = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] != "http.response.body":
            return
        self.got += message["body"]
        first = not self.began.is_set()
        self.began.set()
        if first and not self._reads:
            await asyncio.Event().wait()


@asynccontextmanager
async def node(folder: Path, **emulator: Any) -> AsyncIterator[tuple[CloudNode, ASGIApp]]:
    async with cloud_node(folder, "one", emulator=emulator, clocks={"between_chunks_s": 30.0}) as running:
        yield running, running.node.asgi()


async def sent(running: CloudNode, calls: int = 1) -> None:
    async with asyncio.timeout(10):
        while running.asked() < calls:  # noqa: ASYNC110 -- the emulator has no event for it
            await asyncio.sleep(0.01)


async def cut(*clients: Client) -> None:
    for client in clients:
        client.connection.cut(ShuttingDown("The node is shutting down."))
    async with asyncio.timeout(5):
        await asyncio.gather(*(client.served for client in clients))


def endings(running: CloudNode) -> list[tuple[Ending, str | None]]:
    def of(outcome: Outcome) -> tuple[Ending, str | None]:
        return outcome.ending, outcome.error_code

    return [of(outcome) for outcome in running.node.outcomes]


SHUT = (Ending.FAILED, "shutting_down")


@pytest.mark.parametrize("stream", [True, False])
async def test_request_without_an_answer_yet(tmp_path: Path, stream: bool) -> None:
    async with node(tmp_path, **_SLOW_TO_BEGIN) as (running, app):
        client = Client(app, stream=stream, spillway={"cache": False, "ttft_budget_ms": 60_000})
        await sent(running)
        await cut(client)
        assert endings(running) == [SHUT]
        assert json.loads(client.got)["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("reads", [True, False])
async def test_stream_in_its_middle_whether_it_waits_for_the_provider_or_for_the_client(
    tmp_path: Path, reads: bool
) -> None:
    async with node(tmp_path, **_SLOW) as (running, app):
        client = Client(app, reads=reads)
        await client.began.wait()
        await cut(client)
        assert endings(running) == [SHUT]
        assert running.outcome.usage is not None, "what it used until then is accounted"
        assert running.standing().breaker.admits(0.0), "the provider has done nothing wrong"


async def test_everybody_who_shares_an_answer(tmp_path: Path) -> None:
    async with node(tmp_path, **_SLOW) as (running, app):
        first = Client(app, **_ALIKE)
        await first.began.wait()
        second = Client(app, **_ALIKE)
        await second.began.wait()
        assert running.asked() == 1
        await cut(first, second)
        assert endings(running) == [SHUT, SHUT]


async def test_client_that_hangs_up_is_another_matter(tmp_path: Path) -> None:
    async with node(tmp_path, **_SLOW) as (running, app):
        clients = Client(app), Client(app, **_ALIKE)
        for client in clients:
            await client.began.wait()
            client.connection.lost()
            await client.served
        assert endings(running) == [(Ending.CLIENT_CLOSED, None)] * 2
