"""A node whose engine, and then the node itself, is killed and stopped under load. One node for all tests, in order."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from node.emulator.config import EmulatorConfig
from node.emulator.server import Emulator
from node.local.processes import EngineProcess, start_ticks

pytestmark = pytest.mark.engine

_KEY = "test-provider-key"
_WITHIN_S = 240.0
_LONG = 900  # tokens: seconds of work, so that it still runs when the engine is killed
_POISON = "I was there both times"
_WORKER = "VLLM::Worker"  # the process that computes; the engine core starts it, and has nothing else below it


@dataclass
class SupervisedNode:
    """A `spillway serve` that can be started again, and what it leaves on disk."""

    folder: Path
    port: int
    emulator: Emulator
    process: subprocess.Popen[bytes] | None = None
    client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=_WITHIN_S))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node.cli", "serve", "--config", str(self.folder / "spillway.yaml")],
                stdout=output,
                stderr=output,
                env={**os.environ, "TEST_PROVIDER_KEY": _KEY, "XDG_RUNTIME_DIR": str(self.folder)},
                start_new_session=True,
            )

    def engine_processes(self) -> list[EngineProcess]:
        """As the node has noted them, the engine core first."""
        (path,) = (self.folder / "spillway").glob("*.json")
        noted = [EngineProcess(**each) for each in json.loads(path.read_text())["processes"]]
        return sorted(noted, key=lambda process: process.start_ticks)

    def last_start_s(self) -> float:
        return float(re.findall(r"demo: ready after ([\d.]+) s", self.log.read_text())[-1])

    async def life(self) -> dict[str, Any]:
        answer = await self.client.get(f"{self.url}/readyz")
        life: dict[str, Any] = answer.json()["models"]["demo"]["supervision"]
        return life

    async def ready(self) -> None:
        """Until the node answers, and then until the engine does: a pinned request waits for it."""
        async with asyncio.timeout(_WITHIN_S):
            while True:
                assert self.process is not None
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                try:
                    if (await self.client.get(f"{self.url}/livez")).status_code == 200:
                        break
                except httpx.ConnectError:
                    await asyncio.sleep(0.2)
        answer = await self.ask("Are you there?", pinned=True)
        assert answer.status_code == 200, answer.text

    async def ask(self, text: str, *, pinned: bool, tokens: int = 8) -> httpx.Response:
        return await self.client.post(f"{self.url}/v1/chat/completions", json=_chat(text, tokens, pinned=pinned))

    async def stream(self, text: str, begun: asyncio.Event, *, pinned: bool) -> str:
        """The whole text of a long stream; `begun` is set at its first bytes."""
        body = _chat(text, _LONG, pinned=pinned) | {"stream": True, "ignore_eos": True}
        async with self.client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            parts = []
            async for part in answer.aiter_text():
                parts.append(part)
                begun.set()
        return "".join(parts)


def _chat(text: str, tokens: int, *, pinned: bool) -> dict[str, Any]:
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "spillway": {"require_local": pinned},
    }


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SupervisedNode]:
    folder = tmp_path_factory.mktemp("node")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    async with Emulator(EmulatorConfig(api_key=_KEY, ttft_median_s=0.05, pace_s=0.0)) as emulator:
        (folder / "spillway.yaml").write_text(
            f"""
listen: {{port: {port}}}
admin: {{port: 0}}
engine: {{demo: {{max_num_seqs: 4, enforce_eager: true}}}}
routing: {{max_wait_s: {_WITHIN_S}}}
supervision: {{stall_s: 4}}
providers:
  holysheep: {{base_url: "{emulator.base_url}", api_key_env: TEST_PROVIDER_KEY, assumed_ttft_s: 0.5}}
"""
        )
        running = SupervisedNode(folder, port, emulator)
        running.start()
        assert running.process is not None
        try:
            await running.ready()
            yield running
        finally:
            await running.client.aclose()
            running.process.kill() if running.process.poll() is None else None
            running.process.wait()


@dataclass
class Load:
    """What is under way when the blow falls: streams that have begun, and calls that have not been answered."""

    begun: list[asyncio.Task[str]]
    pinned: list[asyncio.Task[httpx.Response]]
    free: list[asyncio.Task[httpx.Response]]


async def under_load(node: SupervisedNode, name: str, another_stream: str) -> Load:
    events = [asyncio.Event() for _ in range(2)]
    begun = [
        asyncio.create_task(node.stream(text, event, pinned=True))
        for text, event in zip((f"{name}: a stream", another_stream), events, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in events))
    free = [asyncio.create_task(node.ask(f"{name}: {each}", pinned=False, tokens=200)) for each in range(40)]
    pinned = [asyncio.create_task(node.ask(f"{name}: pinned {each}", pinned=True)) for each in range(8)]
    await node.client.get(f"{node.url}/livez")
    return Load(begun, pinned, free)


async def check(load: Load, node: SupervisedNode) -> None:
    """What had begun ends with an error that a client can see; all else is answered, what is pinned by the engine."""
    for text in await asyncio.gather(*load.begun):
        *_, error, done, rest = text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    free = await asyncio.gather(*load.free)
    assert [answer.status_code for answer in free] == [200] * len(free)
    assert "holysheep" in {answer.headers["x-spillway-backend"] for answer in free}
    for answer in await asyncio.gather(*load.pinned):
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-spillway-backend"] == "local"
    assert not any("pinned" in str(record) for record in node.emulator.log.records)


async def test_row_60_engine_core_killed_under_load(node: SupervisedNode) -> None:
    old = node.engine_processes()
    load = await under_load(node, "killed", _POISON)
    os.kill(old[0].pid, signal.SIGKILL)
    killed_s = time.monotonic()
    assert (await node.client.get(f"{node.url}/livez")).status_code == 200
    assert (await node.client.get(f"{node.url}/readyz")).status_code == 200, "the cloud stands in"
    spilled = await node.ask("after the blow", pinned=False)
    assert (spilled.status_code, spilled.headers["x-spillway-backend"]) == (200, "holysheep")
    back = await node.ask("after the blow", pinned=True)
    back_s = time.monotonic() - killed_s
    assert (back.status_code, back.headers["x-spillway-backend"]) == (200, "local")
    assert back_s < 1.5 * node.last_start_s(), "it is not put off"
    await check(load, node)
    print(f"local again {back_s:.1f} s after SIGKILL, of which the start took {node.last_start_s():.1f} s")
    assert [process for process in old if process.find()] == []
    life = await node.life()
    assert (life["state"], life["starts"], life["deaths"], life["hangs"]) == ("ready", 2, 1, 0)
    assert all(process.find() for process in node.engine_processes())


async def test_row_61_engine_core_that_hangs_under_load(node: SupervisedNode) -> None:
    old = node.engine_processes()
    load = await under_load(node, "stopped", _POISON)
    os.kill(old[0].pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    for text in await asyncio.gather(*load.begun):
        assert "engine_unavailable" in text
    noticed_s = time.monotonic() - stopped_s
    await check(load, node)
    # In its first minutes an engine has three times the limit; then it is killed, and vLLM tells its callers, on any
    # machine long before another one has started.
    assert noticed_s < 3 * 4 + node.last_start_s() / 2
    back_s = time.monotonic() - stopped_s
    print(f"hang ended after {noticed_s:.1f} s, local again after {back_s:.1f} s; start {node.last_start_s():.1f} s")
    assert [process for process in old if process.find()] == []
    life = await node.life()
    assert (life["starts"], life["deaths"], life["hangs"]) == (3, 2, 1)
    metrics = (await node.client.get(f"{node.url}/metrics")).text
    assert 'spillway_engine_hangs_total{model="demo"} 1.0' in metrics


async def test_row_66_request_that_ran_at_both_deaths_is_kept_from_the_engine(node: SupervisedNode) -> None:
    body = _chat(_POISON, _LONG, pinned=True) | {"ignore_eos": True}
    refused = await node.client.post(f"{node.url}/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "request_quarantined")
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["retry-after"]) > 3000
    other = await node.ask("harmless", pinned=True)
    assert other.status_code == 200


async def test_row_60_worker_alone_killed_under_load(node: SupervisedNode) -> None:
    """The engine core survives its worker, but not for long: without one it can do nothing."""
    core, *others = old = node.engine_processes()
    (worker,) = (found for each in others if (found := each.find()) and found.name() == _WORKER)
    load = await under_load(node, "worker", "worker: another stream")
    worker.kill()
    killed_s = time.monotonic()
    for text in await asyncio.gather(*load.begun):
        assert "engine_unavailable" in text
    noticed_s = time.monotonic() - killed_s
    await check(load, node)
    assert noticed_s < 1.5 * node.last_start_s()
    back_s = time.monotonic() - killed_s
    print(f"noticed after {noticed_s:.1f} s, local again after {back_s:.1f} s; start {node.last_start_s():.1f} s")
    assert [process for process in old if process.find()] == []
    life = await node.life()
    assert (life["state"], life["starts"], life["deaths"], life["hangs"]) == ("ready", 4, 3, 1)
    assert core not in node.engine_processes()
    assert all(process.find() for process in node.engine_processes())


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


async def test_row_69_node_killed_under_load_leaves_nothing_and_starts_again(node: SupervisedNode) -> None:
    old = node.engine_processes()
    assert node.process is not None
    ticks = start_ticks(node.process.pid)
    with _sleeper() as orphan:  # as one would be that the kernel has not ended
        note = node.folder / "spillway" / "another-node.json"
        (noted,) = note.parent.glob("*.json")
        begun = asyncio.Event()
        stream = asyncio.create_task(node.stream("for ever", begun, pinned=True))
        await begun.wait()
        node.process.kill()
        node.process.wait()
        with pytest.raises(httpx.HTTPError):
            await stream
        psutil.wait_procs([found for process in old if (found := process.find())], timeout=60)
        assert [process for process in old if process.find()] == []
        left = json.loads(noted.read_text())
        assert left["node"] == {"pid": node.process.pid, "start_ticks": ticks}
        left["processes"] = [{"pid": orphan.pid, "start_ticks": start_ticks(orphan.pid)}]
        note.write_text(json.dumps(left))
        node.start()
        await node.ready()
        assert orphan.wait(60) == -signal.SIGTERM
    assert not note.exists()
    assert not noted.exists()
    assert all(process.find() for process in node.engine_processes())
