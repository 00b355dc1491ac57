"""Rows 37, 38, 40, 41 and 74 on the process: too many clients, clients that leave, too little of the machine."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from node.emulator.server import Emulator
from node.watch.host import raise_descriptor_limit
from tests.serve.node_process import NodeProcess, chat, emulated, request_bytes, running, until

_IDLE = 5000
_CAP = 4096


@pytest.fixture(scope="module")
async def cloud() -> AsyncIterator[Emulator]:
    async with emulated(pace_s=0.02, answer_tokens_median=2000.0, answer_tokens_sigma=0.0) as emulator:
        yield emulator


@pytest.fixture(scope="module")
async def node(cloud: Emulator, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeProcess]:
    async with running(cloud, tmp_path_factory.mktemp("node")) as running_node:
        yield running_node


@contextmanager
def connected(node: NodeProcess, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, each having sent `first`."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=30)))
            clients[-1].sendall(first)
        yield clients


def reset(client: socket.socket) -> None:
    """Close with a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def refused(clients: list[socket.socket]) -> int:
    """How many of `clients` have been told that there is no place."""
    count = 0
    for client in clients:
        client.setblocking(False)
        try:
            count += client.recv(1000).startswith(b"HTTP/1.1 503")
        except BlockingIOError:
            continue
    return count


async def test_row_37_five_thousand_idle_connections_leave_health_and_the_others_alone(node: NodeProcess) -> None:
    limit = raise_descriptor_limit(_IDLE + 500)
    if limit is not None and limit < _IDLE + 500:
        pytest.skip(f"this process may open no more than {limit} files")
    before = node.descriptors()
    async with httpx.AsyncClient(timeout=30) as client:
        assert (await client.get(f"{node.url}/livez")).status_code == 200  # keeps its place from here on
        with connected(node, _IDLE) as idle:
            assert (await node.get("/livez")).status_code == 200
            assert (await node.get("/readyz")).status_code == 200
            assert (await node.chat()).status_code == 503
            assert (await client.post(f"{node.url}/v1/chat/completions", json=chat(max_tokens=1))).status_code == 200
            await until(lambda: node.descriptors() <= _CAP + before)
            assert refused(idle) >= _IDLE - _CAP
            turned_away = (await node.stats())["door"]["turned_away"]
            assert turned_away["too_many_connections"] >= _IDLE - _CAP
    await until(lambda: node.descriptors() <= before + 5)
    assert (await node.chat(max_tokens=1)).status_code == 200


@pytest.mark.parametrize("when", ["before the first token", "in the middle of a stream", "before a whole answer"])
async def test_row_38_client_that_hangs_up_cuts_the_cloud_call_and_counts_against_nobody(
    cloud: Emulator, node: NodeProcess, when: str
) -> None:
    before = (await node.stats())["by_ending"].get("client_closed", 0)
    stream = when != "before a whole answer"
    billed, arrived = len(cloud.bill.records), len(cloud.log.records)
    with connected(node, 1, request_bytes(chat(stream=stream, max_tokens=2000))) as (client,):
        await until(lambda: len(cloud.log.records) == arrived + 1)
        if when == "in the middle of a stream":
            assert b"200 OK" in await asyncio.to_thread(client.recv, 15)
    left_s = time.monotonic()
    await until(lambda: len(cloud.bill.records) > billed, within_s=5)
    assert cloud.bill.records[-1]["state"] == "client_closed"
    assert time.monotonic() - left_s < 1 + 2  # a second on a machine that has nothing else to do

    async def recorded() -> bool:
        return bool((await node.stats())["by_ending"].get("client_closed") == before + 1)

    await until(recorded)
    stats = await node.stats()
    assert stats["providers"]["holysheep"]["available"]
    assert stats["door"]["inside"] == 0


async def test_row_39_reader_that_stops_is_cut_and_the_others_are_served(tmp_path: Path) -> None:
    async with (
        emulated(answer_tokens_median=20_000.0, answer_tokens_sigma=0.0, pace_s=0.0001) as flood,
        running(flood, tmp_path, "api: {reader_stall_s: 0.5}") as node,
    ):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", node.port))
            # Eight answers side by side: more than all the buffers on the way hold, however slowly the machine cuts.
            client.sendall(request_bytes(chat(stream=True, n=8, max_tokens=20_000)))
            await until(lambda: "did not read its answer" in node.log_text())
            assert (await node.chat(max_tokens=1)).status_code == 200
        assert flood.bill.records[0]["state"] == "client_closed"
        assert (await node.stats())["by_ending"] == {"client_closed": 1, "done": 1}


async def test_row_40_after_two_hundred_clients_time_out_at_once_the_next_is_served(
    cloud: Emulator, node: NodeProcess
) -> None:
    before = node.descriptors()
    arrived = len(cloud.log.records)
    with connected(node, 200, request_bytes(chat(stream=True, max_tokens=2000))):
        await until(lambda: len(cloud.log.records) == arrived + 200)
    assert (await asyncio.wait_for(node.chat(max_tokens=1), 5)).status_code == 200

    async def all_gone() -> bool:
        return bool((await node.stats())["door"]["inside"] == 0)

    await until(all_gone)
    await until(lambda: node.descriptors() <= before + 5)


async def test_row_41_half_closed_and_reset_connections_leave_no_descriptor_behind(node: NodeProcess) -> None:
    before = node.descriptors()
    whole = request_bytes(chat(stream=True, max_tokens=2000))
    for first in (b"", b"GET /livez", whole[:-5], whole):
        for way in (reset, lambda client: client.shutdown(socket.SHUT_WR)):
            with connected(node, 50, first) as clients:
                for client in clients:
                    way(client)
    await until(lambda: node.descriptors() <= before + 5)
    assert (await node.chat(max_tokens=1)).status_code == 200


async def test_row_74_sixty_four_descriptors_mean_503_and_no_crash(cloud: Emulator, tmp_path: Path) -> None:
    limited = ("bash", "-c", 'ulimit -n 64; exec "$@"', "limited")
    async with running(cloud, tmp_path, before=limited) as node:
        with connected(node, 100) as idle:
            await until(lambda: refused(idle) > 0)
            for _ in range(5):
                assert (await node.get("/livez")).status_code == 200
            assert (await node.chat()).status_code == 503
        answer: httpx.Response | None = None

        async def served() -> bool:
            nonlocal answer
            answer = await node.chat(max_tokens=1)
            return answer.status_code == 200

        await until(served)
        assert "Traceback" not in node.log_text()
        node.send(signal.SIGTERM)
        assert await node.ended() == 0


async def test_row_74_beyond_its_memory_limit_the_node_sheds_and_says_when_to_come_back(
    cloud: Emulator, tmp_path: Path
) -> None:
    async with running(cloud, tmp_path, "host: {max_rss_bytes: 1000000}") as node:

        async def most_inside() -> int | None:
            most: int | None = (await node.stats())["door"]["strain"]["most_inside"]
            return most

        async def lets_one_in() -> bool:
            return await most_inside() == 1

        async def lets_nobody_in() -> bool:
            return await most_inside() == 0

        await until(lets_one_in)
        with connected(node, 1, request_bytes(chat(stream=True, max_tokens=2000))):
            await until(lets_nobody_in)
            answer = await node.chat()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "host_exhausted")
            assert answer.headers["retry-after"] == "5"
            assert (await node.get("/livez")).status_code == 200
            metrics = (await node.get("/metrics")).text
            assert 'spillway_turned_away_total{code="host_exhausted"} 1.0' in metrics
