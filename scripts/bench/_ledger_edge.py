"""Part two: sixty-four requests at once at the edge of a budget that has room for k: exactly k go out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from _harness.emulator import Emulator
from _harness.node import start_node
from _harness.process import free_port

REQUESTS = 64
_MAX_TOKENS = 1000


@dataclass(frozen=True)
class Edge:
    """What came of it. `room` is k; `out` were answered, `refused` got a 429 with `insufficient_quota`."""

    store: str
    room: int
    out: int
    refused: int
    billed: int

    @property
    def exact(self) -> bool:
        """Whether exactly k went out, and all others were told why."""
        return self.out == self.billed == self.room and self.refused == REQUESTS - self.room


def edge(emulator: Emulator, folder: Path, store: str, url: str | None, room: int) -> Edge:
    """One node, one burst. The emulator is slow enough that nothing is settled before all have asked."""
    folder.mkdir()
    port = free_port()
    reserved_usd = _worst_case_usd()
    config = f"""listen: {{port: {port}}}
cloud_only: true
providers:
  holysheep: {{base_url: "{emulator.service.url}/v1", api_key_env: BENCH_KEY}}
budget: {{day_usd: {reserved_usd * (room + 0.5):.9f}}}
{f'store: {{url: "{url}"}}' if url else ""}
"""
    before = len(emulator.bill())
    with start_node(
        config, {"BENCH_KEY": "bench", "SPILLWAY_DATA": str(folder / "data")}, directory=folder, port=port
    ) as service:
        told = asyncio.run(_burst(service.url))
    return Edge(
        store=store,
        room=room,
        out=sum(status == 200 for status, _ in told),
        refused=sum(status == 429 and code == "insufficient_quota" for status, code in told),
        billed=len(emulator.bill()) - before,
    )


def _worst_case_usd() -> float:
    """What one request reserves: its prompt's bound in tokens and `max_tokens`, at the emulator's prices."""
    prompt_bound = len(_PROMPT) + 64 + 16
    return (prompt_bound * 0.14 + _MAX_TOKENS * 0.42) / 1e6


_PROMPT = "edge"


async def _burst(url: str) -> list[tuple[int, str | None]]:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": _MAX_TOKENS,
        "spillway": {"cache": False},
    }

    async def one(session: aiohttp.ClientSession) -> tuple[int, str | None]:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            document = await answer.json()
            return answer.status, document.get("error", {}).get("code")

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        return list(await asyncio.gather(*(one(session) for _ in range(REQUESTS))))
