"""`spillway serve` as a process without an engine, in front of an emulated cloud: the edge as clients meet it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil

from node.emulator.config import EmulatorConfig
from node.emulator.server import Emulator

PROVIDER_KEY = "test-provider-key"
ADMIN_KEY = "sa-the-key-of-the-tests"
_WITHIN_S = 60.0
_NOTHING: Mapping[str, str] = MappingProxyType({})


def admin_port(port: int) -> int:
    """The admin API's, so far away that no other test is given it as a free one."""
    return 20000 + port % 10000


def config_text(emulator: Emulator, port: int, more: str = "") -> str:
    """Settings for a node that only the emulated cloud serves; `more` is YAML for the top level."""
    return f"""
listen: {{port: {port}}}
admin: {{port: {admin_port(port)}}}
cloud_only: true
providers:
  holysheep: {{base_url: "{emulator.base_url}", api_key_env: TEST_PROVIDER_KEY}}
{more}
"""


def chat(text: str = "Hello", **more: Any) -> dict[str, Any]:
    """A chat request whose answer nothing keeps."""
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "spillway": {"cache": False}, **more}


class NodeProcess:
    """One node, its settings file and its log."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self.emulator = emulator
        self.config = folder / "spillway.yaml"
        self.log = folder / "node.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{admin_port(self.port)}"
        self.process: subprocess.Popen[bytes]

    def configure(self, more: str = "") -> None:
        """Write the settings file."""
        self.config.write_text(config_text(self.emulator, self.port, more))

    def start(
        self, *, before: tuple[str, ...] = (), output: int | None = None, environ: Mapping[str, str] = _NOTHING
    ) -> None:
        """Start it; `before` is a command that starts it in turn, `output` a descriptor in the log's place.

        `environ` comes on top of this process's own.
        """
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "node.cli", "serve", "--config", str(self.config)],
                stdout=log if output is None else output,
                stderr=log if output is None else output,
                env={
                    **os.environ,
                    "SPILLWAY_DATA": str(self.config.parent / "data"),
                    "TEST_PROVIDER_KEY": PROVIDER_KEY,
                    "SPILLWAY_ADMIN_KEY": ADMIN_KEY,
                    **environ,
                },
                start_new_session=True,
            )

    async def until_ready(self, within_s: float = _WITHIN_S) -> None:
        """Wait until `/readyz` says so."""

        async def ready() -> bool:
            assert self.process.poll() is None, self.log_text()
            return (await self.get("/readyz")).status_code == 200

        await until(ready, within_s)

    async def get(self, path: str) -> httpx.Response:
        """One GET on a connection of its own; status 599 where nobody listens."""
        try:
            async with httpx.AsyncClient(timeout=30) as client:
                return await client.get(self.url + path)
        except httpx.TransportError:
            return httpx.Response(599)

    async def chat(self, **more: Any) -> httpx.Response:
        """One whole chat answer."""
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(f"{self.url}/v1/chat/completions", json=chat(**more))

    async def admin(self, path: str, method: str = "GET") -> httpx.Response:
        """One request to the admin API."""
        async with httpx.AsyncClient(timeout=30) as client:
            headers = {"authorization": f"Bearer {ADMIN_KEY}"}
            return await client.request(method, self.admin_url + path, headers=headers)

    async def stats(self) -> dict[str, Any]:
        """`/admin/stats`."""
        document: dict[str, Any] = (await self.admin("/admin/stats")).json()
        return document

    def log_text(self) -> str:
        """All it has logged."""
        return self.log.read_text(errors="replace")

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        count: int = psutil.Process(self.process.pid).num_fds()
        return count

    def send(self, number: signal.Signals) -> None:
        """Signal it, and it alone."""
        self.process.send_signal(number)

    def reload(self) -> None:
        """Have it read settings and keys again."""
        self.send(signal.SIGHUP)

    async def until_logged(self, text: str) -> None:
        """Wait until `text` is in its log."""
        await until(lambda: text in self.log_text())

    async def ended(self, within_s: float = 30.0) -> int:
        """Its exit code."""
        code: int = await asyncio.to_thread(self.process.wait, within_s)
        return code

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@asynccontextmanager
async def emulated(**more: Any) -> AsyncIterator[Emulator]:
    """A cloud that answers fast."""
    settings: dict[str, Any] = {"ttft_median_s": 0.02, "ttft_sigma": 0.0, "pace_s": 0.001, "pace_sigma": 0.0}
    async with Emulator(EmulatorConfig(api_key=PROVIDER_KEY, **{**settings, **more})) as emulator:
        yield emulator


@asynccontextmanager
async def running(emulator: Emulator, folder: Path, more: str = "", **how: Any) -> AsyncIterator[NodeProcess]:
    """A node that is ready."""
    node = NodeProcess(emulator, folder)
    node.configure(more)
    node.start(**how)
    try:
        await node.until_ready()
        yield node
    finally:
        node.kill()


async def until(holds: Callable[[], Any], within_s: float = _WITHIN_S) -> None:
    """Wait until `holds()`, or what it awaits, is true."""
    give_up_s = time.monotonic() + within_s
    while True:
        result = holds()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < give_up_s, "it never came true"
        await asyncio.sleep(0.02)


def request_bytes(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    """A POST as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
