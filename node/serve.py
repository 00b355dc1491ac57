"""Run a node: bind, build, serve until told to stop, leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from contextlib import ExitStack
from types import FrameType

import msgspec
import uvicorn
import uvloop

from node.api.http_protocol import GuardedHttpProtocol
from node.app import Node
from node.embedded import EMULATED, EMULATOR_KEY_ENV, emulator
from node.errors import SettingsError
from node.settings import HOLYSHEEP, ProviderSettings, Settings

_BACKLOG = 2048
_KEEP_ALIVE_S = 75


def serve(settings: Settings, *, configured: bool) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. `configured` is false when neither a file nor a provider key was given.

    Raises `SettingsError` for anything that keeps the node from starting; by then nothing runs.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with ExitStack() as stack:
        listener = stack.enter_context(_bind(settings))
        emulated = not configured and not settings.providers
        if emulated:
            os.environ[EMULATOR_KEY_ENV] = secrets.token_hex(16)
            settings = _with_emulator(settings, stack.enter_context(emulator(os.environ[EMULATOR_KEY_ENV])))
        node = Node(settings, rename={HOLYSHEEP: EMULATED} if emulated else {})
        print(_banner(node, listener, emulated=emulated), flush=True)
        uvloop.run(_run(node, listener))


def _with_emulator(settings: Settings, base_url: str) -> Settings:
    provider = ProviderSettings(base_url=base_url, api_key_env=EMULATOR_KEY_ENV)
    return msgspec.structs.replace(settings, providers={**settings.providers, EMULATED: provider})


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.listen.host, settings.listen.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except socket.gaierror as error:
        raise SettingsError(f"listen.host: {host} cannot be resolved: {error.strerror}") from error
    except OSError as error:
        raise SettingsError(
            f"listen: cannot listen on {host}:{port}: {error.strerror}. Is another node running? "
            "Choose another port with --port"
        ) from error
    listener.set_inheritable(False)
    return listener


async def _run(node: Node, listener: socket.socket) -> None:
    settings = node.settings

    class Protocol(GuardedHttpProtocol):
        max_connections = settings.api.max_connections

    config = uvicorn.Config(
        node.asgi(),
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.shutdown_grace_s),
    )
    server = uvicorn.Server(config)

    # uvicorn raises the signals that ended it once more when it is done, for whoever had a handler before. This one
    # makes that harmless, so that the engines are stopped in order and the exit code is 0.
    def on_signal(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, on_signal)
    await node.start()
    gc.collect()
    gc.freeze()  # what start-up built lives as long as the process: no need to walk it again
    try:
        await server.serve(sockets=[listener])
    finally:
        await asyncio.shield(node.stop())


def _banner(node: Node, listener: socket.socket, *, emulated: bool) -> str:
    host, port = listener.getsockname()[:2]
    lines = [f"Spillway listens on http://{host}:{port}/v1"]
    for name, model in node.models.items():
        where = f"engine ({model.local.source})" if name in node.engines and model.local else "no engine here"
        cloud = ", ".join(f"{each.provider}/{each.model}" for each in model.cloud) or "never leaves the premises"
        lines.append(f"  {name}: {where}; cloud: {cloud}")
    if emulated:
        lines += [
            "  NO PROVIDER KEY: the cloud is a local emulator. Its answers are made up; nothing leaves this machine.",
            "  Set HOLYSHEEP_API_KEY, or write a spillway.yaml, for the real one.",
        ]
    if not node.settings.keys:
        lines.append("  No keys configured: open to every process on this machine, and to nobody else.")
    return "\n".join(lines)
