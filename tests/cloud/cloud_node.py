"""A whole node without an engine, between an HTTP client and emulated providers on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from node.api.connection import Connection
from node.app import Node
from node.dispatch.outcome import Outcome
from node.dispatch.standing import Standing
from node.emulator import Emulator, Switch
from node.settings import Clocks, ProviderSettings, RoutingSettings, Settings
from tests.emulator.emulator_client import KEY, fast

MODEL = "gpt-4.1"
CLOCKS = Clocks(connect_s=5.0, first_content_s=5.0, between_chunks_s=0.5, total_s=20.0)
BUDGET_MS = 250.0


class _Node(Node):
    """Keeps the outcomes."""

    def __init__(self, settings: Settings, environ: dict[str, str]) -> None:
        self.outcomes: list[Outcome] = []
        super().__init__(settings, environ=environ)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        super()._on_outcome(outcome)


@dataclass(frozen=True)
class Answered:
    """What the client got."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error document, or the last event of a stream that carries one."""
        if self.body.startswith(b"data: "):
            return next(event["error"] for event in reversed(self.events) if "error" in event)
        found = json.loads(self.body)["error"]
        assert isinstance(found, dict)
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """The documents of a stream, which ends in [DONE] however it went."""
        frames = self.body.removesuffix(b"\n\n").split(b"\n\n")
        assert frames.pop() == b"data: [DONE]"
        return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]

    @property
    def text(self) -> str:
        """What the model said."""
        if not self.body.startswith(b"data: "):
            said = json.loads(self.body)["choices"][0]["message"]["content"]
            assert isinstance(said, str)
            return said
        deltas = [choice["delta"] for event in self.events for choice in event.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in deltas)


@dataclass
class CloudNode:
    """The node, the emulators behind its providers by name, and its one client."""

    node: _Node
    clouds: dict[str, Emulator]
    client: httpx.AsyncClient

    def arm(self, switch: Switch, at: str = "one", **options: Any) -> None:
        """Have a provider misbehave."""
        self.clouds[at].switches.arm(switch, **options)

    def standing(self, name: str = "one") -> Standing:
        """How a provider stands."""
        return self.node.providers.states[name].standing

    def asked(self, name: str = "one") -> int:
        """How many requests have arrived at a provider."""
        return len(self.clouds[name].log.records)

    @property
    def outcome(self) -> Outcome:
        """The last request's."""
        return self.node.outcomes[-1]

    async def ask(self, *, stream: bool = True, **changes: Any) -> Answered:
        """One chat request."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream, "max_tokens": 60}
        if stream:
            body["stream_options"] = {"include_usage": True}
        answer = await self.client.post("/v1/chat/completions", json=body | changes)
        return Answered(answer.status_code, answer.headers, answer.content)

    async def assert_clean(self) -> None:
        """Within 2 s nothing is left of what went before, and once the fault is gone the next request is a 200."""
        async with asyncio.timeout(2.0):
            while self._is_busy():  # noqa: ASYNC110 -- sockets have no event for being gone
                await asyncio.sleep(0.005)
        for name, cloud in self.clouds.items():
            cloud.switches.disarm()
            standing = self.standing(name)
            standing.paused_until_s = 0.0
            standing.isolate("test", 0.0)
            standing.restore(0.0)
        answer = await self.ask()
        assert answer.status == 200, answer.body

    def _is_busy(self) -> bool:
        under_way = sum(state.standing.in_flight for state in self.node.providers.states.values())
        lines = sum(line.in_flight for line in self.node.gate._lines.values())
        lanes = sum(lane.in_flight + lane.depth for lane in self.node.lanes.values())
        return under_way + lines + lanes > 0


@asynccontextmanager
async def cloud_node(
    folder: Path, *names: str, emulator: dict[str, Any] | None = None, **said: Any
) -> AsyncIterator[CloudNode]:
    """A node with the providers `names`, each an emulator; the first is taken unless it stands in the way.

    `said` are further settings of every provider, `emulator` those of every emulator.
    """
    _write_catalogue(folder, names)
    async with AsyncExitStack() as stack:
        clouds = {name: await stack.enter_async_context(Emulator(fast(**(emulator or {})))) for name in names}
        providers = {
            name: msgspec.convert(
                {
                    "base_url": cloud.base_url,
                    "api_key_env": "PROVIDER_KEY",
                    "weight": 1000.0 if index == 0 else 1.0,
                    "clocks": msgspec.to_builtins(CLOCKS),
                    "assumed_ttft_s": 0.1,
                }
                | said,
                ProviderSettings,
            )
            for index, (name, cloud) in enumerate(clouds.items())
        }
        settings = Settings(
            models=("m",),
            cloud_only=True,
            catalogue=(str(folder),),
            providers=providers,
            routing=RoutingSettings(ttft_budget_ms=BUDGET_MS),
        )
        node = _Node(settings, {"PROVIDER_KEY": KEY, "SPILLWAY_DATA": str(folder / "data")})
        await asyncio.to_thread(node.open)
        node.ledger.start()
        stack.push_async_callback(node.stop)
        transport = httpx.ASGITransport(app=_connected(node.asgi()))
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://node"))
        yield CloudNode(node, clouds, client)


def _connected(app: ASGIApp) -> ASGIApp:
    """The application, as on a connection of its own."""

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        Connection().put_into(scope)
        await app(scope, receive, send)

    return front


def _write_catalogue(folder: Path, names: tuple[str, ...]) -> None:
    (folder / "prices").mkdir(parents=True, exist_ok=True)
    equivalents = [
        {"provider": name, "model": MODEL, "context_tokens": 100_000, "capabilities": ["tools", "n"]} for name in names
    ]
    (folder / "m.yaml").write_text(json.dumps({"name": "m", "summary": "A test.", "cloud": equivalents}))
    for name in names:
        prices = {MODEL: {"input_usd_per_mtok": 3, "output_usd_per_mtok": 8}}
        (folder / "prices" / f"{name}.yaml").write_text(
            json.dumps({"provider": name, "as_of": "2026-11-01", "models": prices})
        )
