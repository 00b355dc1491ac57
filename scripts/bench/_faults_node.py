"""The node under test as its operator sees it: statistics, engine processes, descriptors, pauses of its loop."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from _harness.node import ADMIN_ENV
from _harness.process import CannotRun, Service

from node.local.processes import EngineProcess

_POLL_S = 1.0
_OPERATOR = {"Authorization": f"Bearer {ADMIN_ENV['SPILLWAY_ADMIN_KEY']}"}


@dataclass(frozen=True)
class Footprint:
    """What a node holds while it serves nobody.

    `descriptors` are without `pooled`: idle connections to providers and to the ledger, kept in pools with a bound.
    """

    descriptors: int
    pooled: int
    tasks: int
    processes: int

    def beyond(self, other: "Footprint") -> dict[str, int]:
        """By how much this is more than `other`, for what is."""
        more = {name: getattr(self, name) - getattr(other, name) for name in ("descriptors", "tasks", "processes")}
        return {name: count for name, count in more.items() if count > 0}


@dataclass(frozen=True)
class Pause:
    """One pause of the node's loop, and for how long of it the loop's own thread computed."""

    pause_s: float
    ran_s: float | None


@dataclass
class Pauses:
    """The pauses of the node's loop, as told while they were recent, by when they were, in monotonic seconds."""

    seen: dict[float, Pause] = field(default_factory=dict)

    def take(self, loop: dict[str, Any], now_s: float) -> None:
        """Take in what the statistics say at `now_s`."""
        for each in loop["recent_pauses"]:
            at_s = round(now_s - each["ago_s"], 1)
            near = [other for other in (at_s, round(at_s - 0.1, 1), round(at_s + 0.1, 1)) if other in self.seen]
            at_s = near[0] if near else at_s
            if at_s not in self.seen or self.seen[at_s].pause_s < each["pause_s"]:
                self.seen[at_s] = Pause(each["pause_s"], each["ran_s"])

    def longest(self, since_s: float, until_s: float) -> Pause | None:
        """The longest in that time; None when none was worth telling (20 ms)."""
        within = [pause for at_s, pause in self.seen.items() if since_s <= at_s <= until_s]
        return max(within, key=lambda pause: pause.pause_s, default=None)


class WatchedNode:
    """A running node. `admin_url` is where its admin API is, `providers` the ports of its providers."""

    def __init__(
        self, service: Service, admin_url: str, folder: Path, providers: Sequence[int], clients: aiohttp.ClientSession
    ) -> None:
        self.url = service.url
        self._admin_url = admin_url
        self.pid = service.pid
        self.pauses = Pauses()
        self.log = folder / "node.log"
        self._notes = folder / "spillway"
        self._providers = frozenset(providers)
        self._clients = clients

    async def stats(self) -> dict[str, Any]:
        """``/admin/stats``, of which the pauses are remembered."""
        found = await self._get(f"{self._admin_url}/admin/stats")
        self.pauses.take(found["loop"], time.monotonic())
        return found

    async def supervision(self, model: str) -> dict[str, Any]:
        """The life of the model's engine."""
        document = await self._get(f"{self.url}/readyz")
        life: dict[str, Any] = document["models"][model]["supervision"]
        return life

    async def watch(self) -> None:
        """Read the statistics again and again, so that no pause is missed, until cancelled."""
        while True:
            await self.stats()
            await asyncio.sleep(_POLL_S)

    def engine(self) -> list[EngineProcess]:
        """The engine's processes as the node has noted them, its core first; none while there is no engine."""
        notes = [json.loads(path.read_text()) for path in self._notes.glob("*.json")]
        noted = [EngineProcess(**each) for note in notes for each in note["processes"]]
        return sorted(noted, key=lambda process: process.start_ticks)

    def kill_engine(self) -> bool:
        """SIGKILL to the core of the engine; whether there was one."""
        found = [process for noted in self.engine()[:1] if (process := noted.find())]
        for process in found:
            process.kill()
        return bool(found)

    def load_times_s(self, model: str) -> list[float]:
        """How long each start of the model's engine has taken."""
        return [float(each) for each in re.findall(rf"{model}: ready after ([\d.]+) s", self.log.read_text())]

    async def engine_ready(self, model: str, within_s: float) -> None:
        """Until the model's engine is ready; raises `CannotRun` when it takes longer."""

        async def ready() -> bool:
            return bool((await self.supervision(model))["state"] == "ready")

        await until(ready, within_s, f"the engine of {model} is not ready")

    async def at_rest(self, within_s: float) -> dict[str, Any]:
        """The statistics once nobody is inside any more; raises `CannotRun` if somebody stays."""

        async def idle() -> bool:
            found = await self.stats()
            return (
                found["door"]["inside"] == 0
                and not any(found["queues"].values())
                and not any(each["in_flight"] for each in found["providers"].values())
                and not any(each["in_flight"] for each in found["engines"].values())
            )

        await until(idle, within_s, "requests are still inside")
        return await self.stats()

    async def footprint(self) -> Footprint:
        """What the node holds now."""
        stats = await self.stats()
        process = psutil.Process(self.pid)
        upstream = sum(
            each.status == psutil.CONN_ESTABLISHED and bool(each.raddr) and each.raddr.port in self._providers
            for each in process.net_connections("tcp")
        )
        descriptors = self.descriptors()
        pooled = upstream + sum("/ledger.db" in each for each in descriptors)
        return Footprint(
            descriptors=len(descriptors) - pooled,
            pooled=pooled,
            tasks=stats["loop"]["tasks"],
            processes=len(process.children(recursive=True)),
        )

    async def footprint_at_rest(self, before: Footprint, within_s: float) -> Footprint:
        """What it holds once it has let go of all it means to; what is beyond `before` after `within_s` is a leak."""
        await self.at_rest(60.0)
        give_up_s = time.monotonic() + within_s
        while True:
            found = await self.footprint()
            if not found.beyond(before) or time.monotonic() > give_up_s:
                return found
            await asyncio.sleep(1.0)

    def descriptors(self) -> list[str]:
        """What each open descriptor is, for the report of a leak."""
        sockets = {str(each.fd): self._who(each) for each in psutil.Process(self.pid).net_connections("inet")}
        folder = Path(f"/proc/{self.pid}/fd")
        return sorted(sockets.get(each.name) or str(each.readlink()) for each in folder.iterdir())

    def _who(self, connection: Any) -> str:
        if not connection.raddr:
            return f"listening at {connection.laddr.port}"
        outward = connection.raddr.port in self._providers
        return f"connection {'to a provider' if outward else 'of a client'} ({connection.status})"

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._clients.get(url, headers=_OPERATOR) as answer:
            document: dict[str, Any] = await answer.json()
            return document


async def until(
    condition: Callable[[], Awaitable[bool]], within_s: float, otherwise: str, *, every_s: float = 0.05
) -> None:
    """Ask `condition` again and again until it holds; raises `CannotRun`, saying `otherwise`, when it never does."""
    give_up_s = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > give_up_s:
            raise CannotRun(f"{otherwise} after {within_s:g} s")
        await asyncio.sleep(every_s)
