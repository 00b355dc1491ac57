"""Part one: `kill -9` under load, at random moments and at named failpoints, beside a cloud that keeps its own bill.

Every request is told from every other by its `max_tokens` and the length of its prompt, which the provider sees, the
bill's log keeps, and the ledger's row has too: so each call on the bill is looked up among the rows.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from _harness.emulator import Emulator
from _harness.process import CannotRun, free_port
from _ledger_forker import FAILPOINTS
from sqlalchemy import func, select

from node.store.database import Database, place_of
from node.store.schema import calls

_CLIENTS = 24
_FIRST_MAX_TOKENS, _MAX_TOKENS_KINDS = 16, 2000
_READY_WITHIN_S = 60
_LEAVES_EARLY = 0.1
ROOM_CALLS = 12
"""Each round the budget has room for about so many more calls: less than are made, so that its edge is always hit."""

Mark = tuple[int, int]
"""What tells requests apart: `max_tokens`, and the bytes of the prompt."""


@dataclass
class Findings:
    """What the campaign has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    over_limit_nano_usd: int = 0
    billed: int = 0
    billed_nano_usd: int = 0
    charged_nano_usd: int = 0
    states: Counter[str] = field(default_factory=Counter)
    billed_without_one_row: list[Mark] = field(default_factory=list)
    billed_above_row: list[tuple[Mark, int, int]] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)

    @property
    def at_failpoints(self) -> int:
        """Kills that came from a failpoint."""
        return self.kills.total() - self.kills["a random moment"]

    def document(self) -> dict[str, Any]:
        """All of it for a JSON file (`asdict` would count the pairs of each counter)."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


class Forker:
    """The process that forks nodes."""

    def __init__(self, env: dict[str, str]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_ledger_forker.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, process_group=0,
        )  # fmt: skip

    def ask(self, **order: Any) -> dict[str, Any]:
        """Its answer to one order."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)


@contextmanager
def forker(env: dict[str, str]) -> Iterator[Forker]:
    """A forker until the end of the block."""
    made = Forker(env)
    try:
        yield made
    finally:
        made.close()


class Campaign:
    """Rounds of: start, load, kill. `url` is the PostgreSQL server's, None for SQLite."""

    def __init__(self, emulator: Emulator, folder: Path, seed: int, url: str | None = None) -> None:
        self._emulator = emulator
        self._folder = folder
        self._random = random.Random(seed)
        self._place = place_of(folder / "data", url)
        self._url = url
        self._port = free_port()
        self._next = 0
        self.findings = Findings()

    def round(self, nodes: Forker, failpoint: str | None) -> None:
        """One node's life and death."""
        limit = self._configure()
        began_s = time.monotonic()
        order = {"config": str(self._folder / "spillway.yaml"), "log": str(self._folder / "node.log")}
        pid = nodes.ask(**order, failpoint=failpoint, after=self._random.randint(1, 15))["pid"]
        try:
            asyncio.run(self._load(began_s, None if failpoint else self._random.uniform(0.05, 1.2), pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            status = nodes.ask(wait=pid)["status"]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.findings.kills[failpoint or "a random moment"] += 1
        else:
            raise CannotRun(f"the node ended by itself ({status}):\n{(self._folder / 'node.log').read_text()[-2000:]}")
        over = self._spent_nano_usd() - limit
        self.findings.over_limit_nano_usd = max(self.findings.over_limit_nano_usd, over)

    def _configure(self) -> int:
        """Write the settings: room for a few more calls than are spent. Returns the limit in nano-dollars."""
        dearest_nano_usd = 420 * (_FIRST_MAX_TOKENS + _MAX_TOKENS_KINDS)
        limit = self._spent_nano_usd() + ROOM_CALLS * dearest_nano_usd
        store = f'store: {{url: "{self._url}"}}' if self._url else ""
        (self._folder / "spillway.yaml").write_text(f"""listen: {{port: {self._port}}}
cloud_only: true
providers:
  holysheep: {{base_url: "{self._emulator.service.url}/v1", api_key_env: BENCH_KEY}}
budget: {{month_usd: {limit / 1e9:.9f}}}
routing: {{max_wait_s: 3}}
{store}
""")
        return limit

    def _spent_nano_usd(self) -> int:
        if self._next == 0:
            return 0  # no node has been there yet
        database = Database(self._place)
        database.open_beside()
        try:
            with database.reading() as connection:
                return int(connection.scalar(select(func.coalesce(func.sum(calls.c.charged_nano_usd), 0))) or 0)
        finally:
            database.close()

    async def _load(self, began_s: float, kill_after_s: float | None, pid: int) -> None:
        url = f"http://127.0.0.1:{self._port}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session:
            while not await _is_ready(session, url):
                if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                    return  # at its failpoint, which was the first commit: that of its opening
                if time.monotonic() - began_s > _READY_WITHIN_S:
                    raise CannotRun(f"the node did not come up:\n{(self._folder / 'node.log').read_text()[-6000:]}")
                await asyncio.sleep(0.02)
            self.findings.restart_s.append(time.monotonic() - began_s)
            clients = [asyncio.create_task(self._client(session, url)) for _ in range(_CLIENTS)]
            try:
                if kill_after_s is not None:
                    await asyncio.wait(clients, timeout=kill_after_s, return_when=asyncio.FIRST_EXCEPTION)
                    os.kill(pid, signal.SIGKILL)
                await asyncio.wait(clients, timeout=8)
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, session: aiohttp.ClientSession, url: str) -> None:
        """Requests one after the other, until nobody answers any more."""
        while True:
            body, stream = self._request()
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                    self.findings.statuses[answer.status] += 1
                    if stream and self._random.random() < _LEAVES_EARLY:
                        await answer.content.readany()
                        continue  # hangs up in the middle
                    await answer.read()
                    if answer.status != 200:
                        await asyncio.sleep(0.03)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                return

    def _request(self) -> tuple[dict[str, Any], bool]:
        number, self._next = self._next, self._next + 1
        self.findings.sent += 1
        stream = self._random.random() < 0.7
        return {
            "model": "demo",
            "messages": [{"role": "user", "content": "x" * (20 + number // _MAX_TOKENS_KINDS)}],
            "max_tokens": _FIRST_MAX_TOKENS + number % _MAX_TOKENS_KINDS,
            "stream": stream,
            "spillway": {"cache": False, "ttft_budget_ms": 4000},
        }, stream

    def judge(self) -> None:
        """Compare the bill with the rows."""
        findings = self.findings
        database = Database(self._place)
        database.open_beside()
        rows: dict[Mark, list[tuple[str, int]]] = {}
        with database.reading() as connection:
            for row in connection.execute(select(calls)):
                mark = int(row.max_output_tokens), int(row.prompt_bytes)
                rows.setdefault(mark, []).append((row.state, int(row.charged_nano_usd)))
                findings.states[row.state] += 1
                findings.charged_nano_usd += int(row.charged_nano_usd)
        database.close()
        bytes_of_20 = min(mark[1] for mark in rows)
        asked = {line["request_id"].rsplit("_", 1)[1]: line for line in map(json.loads, self._emulator.log_lines())}
        bills: dict[Mark, list[int]] = {}
        for record in self._emulator.bill():
            line = asked[record["id"].rsplit("x", 1)[1]]
            mark = line["max_tokens"], len(line["prompts"][0]) - 20 + bytes_of_20
            bills.setdefault(mark, []).append(record["cost_nano_usd"])
            findings.billed += 1
            findings.billed_nano_usd += record["cost_nano_usd"]
        for mark, billed in bills.items():
            held = [charged for state, charged in rows.get(mark, ()) if state != "released"]
            if len(held) != len(billed):
                findings.billed_without_one_row.append(mark)
            elif sum(held) < sum(billed):
                findings.billed_above_row.append((mark, sum(billed), sum(held)))


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as answer:
            return bool(answer.status == 200)
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        return False


def failpoint_of(number: int) -> str | None:
    """Every other round a failpoint, one after the other; else a random moment."""
    names = list(FAILPOINTS)
    return None if number % 2 else names[number // 2 % len(names)]
