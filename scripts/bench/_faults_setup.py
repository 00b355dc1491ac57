"""One node with a real engine and three emulated providers, each a process of its own with its own faults."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from _faults_clients import ELSEWHERE, HERE, Asked, ask, session
from _faults_node import WatchedNode
from _faults_weather import Armed
from _harness.emulator import Emulator, start_emulator
from _harness.node import start_node
from _harness.process import CannotRun, free_port

import node

PROVIDERS = ("north", "south", "east")
KEY_ENV, KEY = "BENCH_PROVIDER_KEY", "bench-provider-key"
STALL_S = 4.0
HEALTH_INTERVAL_S = 2.0
SEQUENCES = 2
_TTFT_MS, _PACE_MS, _ANSWER_TOKENS = 60, 1.5, 40
_START_WITHIN_S = 600.0  # half a minute, on a machine that has nothing else to do


class Cloud:
    """A provider that can be told to misbehave, killed, and started again where it was."""

    def __init__(self, name: str, folder: Path, seed: int, clients: aiohttp.ClientSession) -> None:
        self.name = name
        self.port = free_port()
        self._folder = folder
        self._seed = seed
        self._starts = 0
        self._clients = clients
        self._running = ExitStack()
        self._emulator: Emulator | None = None

    @property
    def emulator(self) -> Emulator:
        """The process of this moment."""
        assert self._emulator is not None
        return self._emulator

    def start(self) -> None:
        """Listen, on the same port each time, with a seed of its own: it is part of what names a call."""
        self._starts += 1
        self._folder.mkdir(exist_ok=True)
        options = [f"--ttft-ms={_TTFT_MS}", f"--pace-ms={_PACE_MS}", f"--answer-tokens={_ANSWER_TOKENS}"]
        options += [f"--seed={self._seed * 10 + self._starts}", "--bill-answers"]
        self._emulator = self._running.enter_context(
            start_emulator(options, api_key=KEY, directory=self._folder, port=self.port)
        )

    def kill(self) -> None:
        """As when its machine is gone: every connection is reset, new ones are refused."""
        os.kill(self.emulator.service.pid, signal.SIGKILL)
        self._running.close()

    def stop(self) -> None:
        """End it, if it runs."""
        self._running.close()

    async def arm(self, switches: Armed) -> None:
        """From now on these misbehaviours, and no others."""
        async with self._clients.put(f"{self.emulator.service.url}/emulator/switches", json=switches) as answer:
            if answer.status != 200:
                raise CannotRun(f"{self.name}: {await answer.text()}")


@dataclass(frozen=True)
class World:
    """All of it, running. `operator` is the session that the statistics are read over."""

    node: WatchedNode
    clouds: Mapping[str, Cloud]
    operator: aiohttp.ClientSession

    async def calm(self) -> None:
        """No provider misbehaves any more, and none is left alone for what it did."""
        for cloud in self.clouds.values():
            await cloud.arm({})
        await self.reload_if_isolated()

    async def reload_if_isolated(self) -> None:
        """What an operator does whose provider has refused the key, or wanted money: mends that, and reloads."""
        if any(each["isolated_by"] for each in (await self.node.stats())["providers"].values()):
            os.kill(self.node.pid, signal.SIGHUP)

    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """Every provider's log of arrivals."""
        return {name: cloud.emulator.log() for name, cloud in self.clouds.items()}

    def bills(self) -> dict[str, list[dict[str, Any]]]:
        """Every provider's bill."""
        return {name: cloud.emulator.bill() for name, cloud in self.clouds.items()}


@asynccontextmanager
async def world(folder: Path, seed: int) -> AsyncIterator[World]:
    """Everything started, warm, and ended with the block."""
    async with AsyncExitStack() as stack:
        # What a pool of the operator's keeps open would look like descriptors that the node leaks.
        operator = await stack.enter_async_context(session(keep_alive=False))
        clouds = {
            name: Cloud(name, folder / name, seed * 10 + number, operator) for number, name in enumerate(PROVIDERS)
        }
        for cloud in clouds.values():
            stack.callback(cloud.stop)
            await asyncio.to_thread(cloud.start)
        port, admin_port = free_port(), free_port()
        _write_catalogue(folder / "catalogue")
        config = _config(port, admin_port, folder / "catalogue", clouds)
        sync = stack.enter_context(ExitStack())
        environment = {KEY_ENV: KEY, "XDG_RUNTIME_DIR": str(folder)}
        starting = start_node(config, environment, directory=folder, port=port, ready_within_s=_START_WITHIN_S)
        service = await asyncio.to_thread(sync.enter_context, starting)
        watched = WatchedNode(
            service, f"http://127.0.0.1:{admin_port}", folder, [cloud.port for cloud in clouds.values()], operator
        )
        await watched.engine_ready(HERE, _START_WITHIN_S)
        made = World(watched, clouds, operator)
        await _warm_up(made)
        yield made


async def _warm_up(made: World) -> None:
    async with session() as clients:
        for number in range(24):
            wanted = Asked(f"warm-{number}", HERE if number % 2 else ELSEWHERE, number % 4 == 1, number % 3 == 0)
            heard = await ask(clients, made.node.url, wanted)
            if not heard.whole:
                raise CannotRun(f"the node does not answer: {heard}")
    await made.node.at_rest(10.0)


def _config(port: int, admin_port: int, catalogue: Path, clouds: Mapping[str, Cloud]) -> str:
    clocks = "clocks: {connect_s: 1, first_content_s: 2, between_chunks_s: 2, total_s: 8}"
    providers = "\n".join(
        f'  {name}: {{base_url: "http://127.0.0.1:{cloud.port}/v1", api_key_env: {KEY_ENV}, assumed_ttft_s: 0.3, '
        f"health_interval_s: {HEALTH_INTERVAL_S}, {clocks}}}"
        for name, cloud in clouds.items()
    )
    return f"""listen: {{port: {port}}}
admin: {{port: {admin_port}}}
models: [{HERE}, {ELSEWHERE}]
catalogue: ["{catalogue}"]
engine: {{{HERE}: {{max_num_seqs: {SEQUENCES}}}}}
routing: {{ttft_budget_ms: 1000, max_wait_s: 30}}
supervision: {{stall_s: {STALL_S}, rebuild_attempts: 50}}
cache: {{max_bytes: 0}}
providers:
{providers}
"""


def _write_catalogue(folder: Path) -> None:
    """Two models at three providers: the demo model under a name of its own, and one that has no engine."""
    (folder / "prices").mkdir(parents=True)
    source = Path(node.__file__).parent.parent / "models" / "demo"
    (folder / "demo").symlink_to(source)
    cloud = "cloud:\n" + "\n".join(
        f"  - {{provider: {name}, model: gpt-4.1, context_tokens: 100000, max_output_tokens: 8192, capabilities: []}}"
        for name in PROVIDERS
    )
    engine = "capabilities: [vllm_sampling], engine_args: {enforce_eager: true}"
    local = f"local: {{source: demo, context_tokens: 4096, {engine}}}"
    (folder / f"{HERE}.yaml").write_text(f"name: {HERE}\nsummary: the demo model\n{local}\n{cloud}\n")
    (folder / f"{ELSEWHERE}.yaml").write_text(f"name: {ELSEWHERE}\nsummary: only in the cloud\n{cloud}\n")
    for name in PROVIDERS:
        price = "gpt-4.1: {input_usd_per_mtok: 3.0, output_usd_per_mtok: 8.0}"
        (folder / "prices" / f"{name}.yaml").write_text(f"provider: {name}\nas_of: 2026-11-23\nmodels:\n  {price}\n")
