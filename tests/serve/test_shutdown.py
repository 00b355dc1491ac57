"""Row 68: SIGTERM lets what runs finish, tells the rest why it is cut, and ends with 0."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from node.emulator.server import Emulator
from tests.serve.node_process import NodeProcess, chat, emulated, running, until

LONG = 2.0  # seconds from a stream's first content to its end
_TOKENS = 40


@asynccontextmanager
async def node_with_a_stream(
    folder: Path, grace_s: float
) -> AsyncIterator[tuple[NodeProcess, AsyncIterator[str], Emulator]]:
    """A node, and the lines of an answer that has begun and takes `LONG` seconds."""
    async with (
        emulated(pace_s=LONG / _TOKENS, answer_tokens_median=1000.0) as cloud,
        running(cloud, folder, f"shutdown_grace_s: {grace_s}") as node,
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{node.url}/v1/chat/completions", json=chat(stream=True, max_tokens=_TOKENS)) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        await anext(lines)
        yield node, lines, cloud


async def rest_of(lines: AsyncIterator[str]) -> list[str]:
    return [line async for line in lines if line]


async def test_row_68_stream_finishes_while_nobody_new_is_let_in(tmp_path: Path) -> None:
    async with node_with_a_stream(tmp_path, grace_s=30) as (node, lines, _):
        node.send(signal.SIGTERM)

        async def draining() -> bool:
            return (await node.get("/readyz")).status_code == 503

        await until(draining)
        assert (await node.get("/readyz")).json()["draining"] is True
        assert (await node.get("/livez")).status_code == 200
        refused = await node.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        rest = await rest_of(lines)
        assert '"finish_reason":"length"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert await node.ended() == 0
        assert "broken off" not in node.log_text()


async def test_row_68_stream_longer_than_the_grace_ends_with_an_error_event(tmp_path: Path) -> None:
    async with node_with_a_stream(tmp_path, grace_s=0.3) as (node, lines, cloud):
        whole = asyncio.create_task(node.chat(max_tokens=_TOKENS))
        await until(lambda: len(cloud.log.records) == 2)
        node.send(signal.SIGTERM)
        rest = await rest_of(lines)
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert rest[-1] == "data: [DONE]"
        answer = await whole
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert await node.ended() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_row_68_second_signal_cuts_at_once(tmp_path: Path, second: signal.Signals) -> None:
    async with node_with_a_stream(tmp_path, grace_s=600) as (node, lines, _):
        node.send(signal.SIGTERM)
        await until(lambda: "have 600 s to finish" in node.log_text())
        node.send(second)
        rest = await rest_of(lines)
        assert "shutting_down" in rest[-2]
        assert await node.ended() == 0


async def test_row_68_idle_node_ends_with_0_and_its_connections_are_closed(tmp_path: Path) -> None:
    async with emulated() as cloud, running(cloud, tmp_path) as node, httpx.AsyncClient() as client:
        await client.get(f"{node.url}/livez")  # a connection that is kept
        assert psutil.Process(node.process.pid).children() == []
        node.send(signal.SIGTERM)
        assert await node.ended() == 0
