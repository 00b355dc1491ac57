"""A node of its own to prove things on: the real engine with the demo model, and a cloud that keeps all it hears."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import psutil

from node.audit.canaries import FREE, MODEL, PINNED_KEY, Canary
from node.emulator.config import EmulatorConfig
from node.emulator.server import Emulator
from node.errors import SpillwayError
from node.settings import HOLYSHEEP, Settings
from node.store import admin_key

_PROVIDER_KEY_ENV: Final = "SPILLWAY_PROVE_PROVIDER_KEY"
_READY_WITHIN_S: Final = 300.0
_RELOADED_WITHIN_S: Final = 30.0
_ANSWERED_WITHIN_S: Final = 300.0
_LOOK_S: Final = 0.1
# So small that a few dozen requests are more than the engine can take at once.
_SEQUENCES: Final = 4


class CannotProve(SpillwayError):
    """The node to prove things on did not come up, or did not do as it was told."""


class Listener(Emulator):
    """The emulator, which keeps every byte of every request that arrives, whatever it answers."""

    def __init__(self, config: EmulatorConfig) -> None:
        super().__init__(config)
        self.heard = bytearray()

    def _note(self, request: Any, raw: bytes, *more: Any) -> None:
        self.heard += repr((request.raw_path, tuple(request.raw_headers))).encode() + raw + b"\n"
        super()._note(request, raw, *more)


class ProvingGround:
    """The running node. `answer` sends one canary, `change` the settings, `kill_engine` what its name says."""

    def __init__(self, settings: Settings, word: str, cloud: Listener, folder: Path) -> None:
        self.cloud = cloud
        self.folder = folder
        self.log = folder / "node.log"
        self._settings = settings
        self._word = word
        self._config = folder / "spillway.yaml"
        self._keys = {name: secrets.token_hex(16) for name in (FREE, PINNED_KEY)}
        self._port, self._admin_port = _free_port(), _free_port()
        self._admin_key = f"sa-{secrets.token_hex(16)}"
        self._reloads = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self._port}",
            timeout=_ANSWERED_WITHIN_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )

    def start(self, provider_key: str) -> None:
        """Start the node; its engine takes a while."""
        self._write({})
        kept = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG", "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV"}
        environ = {name: value for name, value in os.environ.items() if name in kept or name.startswith("VLLM_")}
        environ |= {"HOME": str(self.folder), "SPILLWAY_DATA": str(self.folder)}
        environ |= {_PROVIDER_KEY_ENV: provider_key, admin_key.ENV: self._admin_key}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "node.cli", "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )

    async def stop(self) -> None:
        """End it, and leave nothing behind."""
        await self._client.aclose()
        if self._process is None:
            return
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, 60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def until_engine_is_ready(self) -> None:
        """Wait for it. Raises `CannotProve`."""
        give_up_s = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < give_up_s:
            if self._process is None or self._process.poll() is not None:
                raise CannotProve(f"the node ended. Its log says:\n{self._log_end()}")
            try:
                said = (await self._client.get("/readyz")).json()
                if said["models"][MODEL]["engine"] == "ready":
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(_LOOK_S)
        raise CannotProve(f"the engine was not ready within {_READY_WITHIN_S:g} s. The log says:\n{self._log_end()}")

    async def change(self, changes: Mapping[str, Any]) -> None:
        """Have `changes` of the settings in force, and no earlier ones. Raises `CannotProve` if they are refused."""
        assert self._process is not None
        self._write(changes)
        self._process.send_signal(signal.SIGHUP)
        self._reloads += 1
        give_up_s = time.monotonic() + _RELOADED_WITHIN_S
        while self.log.read_text(errors="replace").count(f"reloaded {self._config}") < self._reloads:
            if time.monotonic() > give_up_s:
                raise CannotProve(f"the node did not take new settings up. Its log says:\n{self._log_end()}")
            await asyncio.sleep(_LOOK_S)

    async def until_inside(self, under_way: Sequence[asyncio.Task[None]]) -> None:
        """Wait until the node has taken in all of the requests that are `under_way`, or has answered them."""
        give_up_s = time.monotonic() + _RELOADED_WITHIN_S
        headers = {"authorization": f"Bearer {self._admin_key}"}
        url = f"http://127.0.0.1:{self._admin_port}/admin/stats"
        while time.monotonic() < give_up_s:
            inside = (await self._client.get(url, headers=headers)).json()["door"]["inside"]
            if inside >= sum(not each.done() for each in under_way):
                return
            await asyncio.sleep(_LOOK_S)
        raise CannotProve(f"the node did not take in all requests. Its log says:\n{self._log_end()}")

    def kill_engine(self) -> None:
        """SIGKILL the engine's core, as the kernel does when memory is short. Raises `CannotProve` if there is none."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children(recursive=True):
            if "EngineCore" in " ".join((child.name(), *child.cmdline())):
                child.kill()
                return
        raise CannotProve("there is no engine to kill")

    async def answer(self, canary: Canary) -> str:
        """Send it, read all of the answer; who gave it, by `x-spillway-backend`, or `refused`."""
        headers = {"authorization": f"Bearer {self._keys[canary.path.key]}", **dict(canary.path.headers)}
        answer = await self._client.post("/v1/chat/completions", json=canary.body, headers=headers)
        return answer.headers.get("x-spillway-backend", "refused") if answer.status_code == 200 else "refused"

    def _write(self, changes: Mapping[str, Any]) -> None:
        given = msgspec.to_builtins(self._settings)
        rules = given["privacy"]["content_rules"]
        settings = {
            "listen": {"host": "127.0.0.1", "port": self._port},
            "admin": {"port": self._admin_port},
            "models": [MODEL],
            "engine": {MODEL: {"max_num_seqs": _SEQUENCES}},
            "store": {"folder": str(self.folder)},
            "providers": {
                HOLYSHEEP: {
                    "base_url": self.cloud.base_url,
                    "api_key_env": _PROVIDER_KEY_ENV,
                    "assumed_ttft_s": 0.3,
                    "health_interval_s": 1.0,
                }
            },
            "keys": [
                {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
                | ({"residency": "premises"} if name == PINNED_KEY else {})
                for name, key in self._keys.items()
            ],
            "privacy": {"content_rules": {**rules, "words": [*rules["words"], self._word]}}
            | changes.get("privacy", {}),
            "routing": given["routing"] | changes.get("routing", {}),
        }
        self._config.write_text(json.dumps(settings))  # JSON is YAML

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@asynccontextmanager
async def proving_ground(settings: Settings, word: str, folder: Path) -> AsyncIterator[ProvingGround]:
    """A node under the content rules and the routing of `settings`, with the emulator for its cloud."""
    key = secrets.token_hex(16)
    async with Listener(EmulatorConfig(api_key=key, ttft_median_s=0.05, pace_s=0.001)) as cloud:
        ground = ProvingGround(settings, word, cloud, folder)
        try:
            ground.start(key)
            await ground.until_engine_is_ready()
            yield ground
        finally:
            await ground.stop()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
