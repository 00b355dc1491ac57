"""The stage: a node with its engine and two emulated clouds, in a folder of their own that is thrown away."""

import hashlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml
from _harness.emulator import Emulator, start_emulator
from _harness.node import kill_engine, start_node
from _harness.process import CannotRun, Service, free_port

from _demo.day import CALLERS, DEAR_PROVIDER, PROVIDER

SEQUENCES = 4
"""The engine is held to so many at once: the demo model is tiny, and a burst is to be too much for it anywhere."""
FIRST_BUDGET_USD = Decimal(1)
_KEY_FILE = "admin.key"
_KEY_ENV = "DEMO_PROVIDER_KEY"
PATIENCE_S = 240.0
"""How long a request without a budget of its own waits: longer than an engine needs to come back on a slow machine."""
_MODELS = Path(__file__).resolve().parents[2] / "models"
_CLOUDS = {
    PROVIDER: ["--ttft-ms=280", "--answer-tokens=40", "--seed=1"],
    DEAR_PROVIDER: [
        "--ttft-ms=420",
        "--answer-tokens=40",
        "--seed=2",
        f"--prices={_MODELS / 'prices' / 'openai.yaml'}",
    ],
}
_WEIGHTS = {PROVIDER: 1.0, DEAR_PROVIDER: 0.15}
_STAND_IN = {
    "provider": DEAR_PROVIDER,
    "model": "gpt-4o-mini",
    "context_tokens": 128_000,
    "max_output_tokens": 16_384,
    "capabilities": [],
}


@dataclass(frozen=True)
class Stage:
    """All of it, running. `keys` are the callers', `operator` the header of the operator's."""

    node: Service
    admin_url: str
    admin_key: str
    keys: Mapping[str, str]
    clouds: Mapping[str, Emulator]
    folder: Path

    @property
    def operator(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.admin_key}"}

    @property
    def dashboard(self) -> str:
        """The page, with the key that it asks for. A browser keeps what comes after the # to itself."""
        return f"{self.node.url}/#key={self.admin_key}"

    @property
    def top(self) -> str:
        """The command that shows the same in a terminal."""
        spillway = Path(sys.executable).with_name("spillway")
        return f"{spillway} top --url {self.node.url} --key-file {self.folder / _KEY_FILE}"

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for the demo at this moment, but the demo itself."""
        return list(psutil.Process().children(recursive=True))

    def broken(self) -> str | None:
        """That the node is no more, with its last words; None while it lives."""
        if psutil.Process(self.node.pid).status() != psutil.STATUS_ZOMBIE:
            return None
        return f"the node has ended:\n{self._log()[-2000:]}"

    def kill_engine(self) -> None:
        """SIGKILL to its core."""
        kill_engine(self.node)

    def set_budget(self, day_usd: Decimal) -> None:
        """The node's budget of the day, from the next moment on: the settings are written anew and read again."""
        _write_config(self.folder, self.node.url, self.admin_url, self.keys, self.clouds, day_usd)
        os.kill(self.node.pid, signal.SIGHUP)

    def trips(self) -> dict[str, int]:
        """How often each provider's breaker has opened, which the node logs each time."""
        log = self._log()
        return {name: log.count(f"{name} keeps failing: left alone") for name in self.clouds}

    def _log(self) -> str:
        return (self.folder / "node.log").read_text(errors="replace")

    async def fail(self, session: aiohttp.ClientSession, provider: str, *, out: bool) -> None:
        """From now on the provider answers 503 to every call, or is well again."""
        url = f"{self.clouds[provider].service.url}/emulator/switches"
        async with session.put(url, json={"error_503": True} if out else {}) as answer:
            answer.raise_for_status()

    async def admin(self, session: aiohttp.ClientSession, path: str) -> Any:
        """A document of the admin API, money as exact as it comes."""
        async with session.get(f"{self.admin_url}{path}", headers=self.operator) as answer:
            answer.raise_for_status()
            return json.loads(await answer.text(), parse_float=Decimal, parse_int=int)


@contextmanager
def stage(folder: Path, port: int | None) -> Iterator[Stage]:
    """Everything that the demo needs, from the first answer of the node, whose engine still starts then.

    Raises `CannotRun` when it does not start.
    """
    if port is None:
        port = free_port()
    else:
        _check_is_free(port)
    node_url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    provider_key, admin_key = secrets.token_hex(16), f"sa-{secrets.token_hex(12)}"
    keys = {each.name: f"sk-{each.name}-{secrets.token_hex(8)}" for each in CALLERS}
    with ExitStack() as stack:
        clouds = {}
        for name, options in _CLOUDS.items():
            (folder / name).mkdir()
            starting = start_emulator(options, api_key=provider_key, directory=folder / name)
            clouds[name] = stack.enter_context(starting)
        (folder / _KEY_FILE).touch(mode=0o600)
        (folder / _KEY_FILE).write_text(admin_key)
        _write_catalogue(folder / "catalogue")
        config = _write_config(folder, node_url, admin_url, keys, clouds, FIRST_BUDGET_USD)
        environment = {_KEY_ENV: provider_key, "SPILLWAY_ADMIN_KEY": admin_key, "XDG_RUNTIME_DIR": str(folder)}
        node = stack.enter_context(
            start_node(config, environment, directory=folder, port=port, ready_path="/livez", ready_within_s=300)
        )
        yield Stage(node, admin_url, admin_key, keys, clouds, folder)


def _check_is_free(port: int) -> None:
    """A node that runs there already would be taken for ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise CannotRun(f"--port {port}: cannot listen there: {error}") from error


def _write_catalogue(folder: Path) -> None:
    """The shipped demo model, with a stand-in at the dearer provider that is only a little dearer."""
    folder.mkdir()
    (folder / "demo").symlink_to(_MODELS / "demo")
    entry = yaml.safe_load((_MODELS / "demo.yaml").read_text(encoding="utf-8"))
    cheapest = next(each for each in entry["cloud"] if each["provider"] == PROVIDER)
    (folder / "demo.yaml").write_text(yaml.safe_dump({**entry, "cloud": [cheapest, _STAND_IN]}))


def _write_config(
    folder: Path,
    node_url: str,
    admin_url: str,
    keys: Mapping[str, str],
    clouds: Mapping[str, Emulator],
    day_usd: Decimal,
) -> str:
    providers = [
        f'  {name}: {{base_url: "{cloud.service.url}/v1", api_key_env: {_KEY_ENV}, weight: {_WEIGHTS[name]}, '
        "assumed_ttft_s: 0.6, health_interval_s: 1, emulated: true}"
        for name, cloud in clouds.items()
    ]
    callers = [
        f"  - {{name: {each.name}, sha256: {hashlib.sha256(keys[each.name].encode()).hexdigest()}, "
        f"ttft_budget_ms: {each.budget_ms}, priority: {each.priority}}}"
        for each in CALLERS
    ]
    lines = [
        f"listen: {{port: {node_url.rpartition(':')[2]}}}",
        f"admin: {{port: {admin_url.rpartition(':')[2]}}}",
        "models: [demo]",
        f"catalogue: [{folder / 'catalogue'}]",
        # On a GPU that others use too, a fifth of it is plenty.
        f"engine: {{demo: {{max_num_seqs: {SEQUENCES}, gpu_memory_utilization: 0.2}}}}",
        "providers:",
        *providers,
        f"routing: {{max_wait_s: {PATIENCE_S}}}",
        "privacy: {content_rules: {detect: [email, iban]}}",
        f"budget: {{day_usd: {day_usd:f}}}",
        "keys:",
        *callers,
        "shutdown_grace_s: 3",
    ]
    text = "\n".join([*lines, ""])
    (folder / "spillway.yaml").write_text(text)
    return text
