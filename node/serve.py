"""Run a node: bind, build, serve until told to stop, leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import msgspec
import uvicorn
from starlette.types import ASGIApp

from node import logs
from node.api.http_protocol import GuardedHttpProtocol
from node.api.lobby import Lobby
from node.api.server import DrainingServer, QuietServer
from node.app import Node
from node.embedded import EMULATED, EMULATOR_KEY_ENV, emulator
from node.errors import SettingsError, SpillwayError
from node.guard import SocketGuard
from node.local.scratch import Scratch
from node.reload import Reloader
from node.settings import HOLYSHEEP, ProviderSettings, Settings, admin_port
from node.store import admin_key
from node.watch.host import raise_descriptor_limit

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_ADMIN_CONNECTIONS = 32
_CLOSE_WITHIN_S = 3
# What the kernel holds of an answer for one client; without a bound it grows to megabytes for one that does not read.
_SEND_BUFFER_BYTES = 256 * 1024
_LONGEST_MS = 2**31 - 1
_PORT, _ADMIN_PORT = "--port", "admin.port or SPILLWAY_ADMIN_PORT"  # what chooses them
# Descriptors beside those of clients and providers: the engine's sockets, files, and what a library opens in passing.
_OTHER_DESCRIPTORS = 256
_LEAST_OTHER_DESCRIPTORS = 32

Load = Callable[[], Settings]


def serve(settings: Settings, *, load: Load, where: str | None) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP reads the settings again with `load`.

    `where` is the settings file, None when there is none; without a provider key either, an emulator stands in for the
    cloud. Raises `SettingsError` for anything that keeps the node from starting; by then nothing runs.
    """
    handler = logs.set_up()
    guard = SocketGuard()
    try:
        with ExitStack() as stack:
            listen, stall_s = settings.listen, settings.api.reader_stall_s
            listener = stack.enter_context(_bind("listen", listen.host, listen.port, _PORT, stall_s))
            host, port = settings.admin.host, admin_port(settings)
            admin_listener = stack.enter_context(_bind("admin", host, port, _ADMIN_PORT, stall_s))
            emulated = where is None and not settings.providers
            if emulated:
                key = os.environ[EMULATOR_KEY_ENV] = secrets.token_hex(16)
                base_url = stack.enter_context(emulator(key))
                settings, load = _with_emulator(settings, base_url), _then_with_emulator(load, base_url)
            folder = stack.enter_context(Scratch())
            os.environ.update(logs.for_the_engine(folder, os.environ))
            node = Node(settings, rename={HOLYSHEEP: EMULATED} if emulated else {}, guard=guard)
            node.open()
            _listen("listen", listener, _PORT)
            _listen("admin", admin_listener, _ADMIN_PORT)
            logs.say(_banner(node, listener, admin_listener, emulated=emulated))
            guard.install()
            with asyncio.Runner(loop_factory=guard.loop) as runner:
                runner.run(_run(node, listener, admin_listener, load, where))
    finally:
        handler.close()


def _then_with_emulator(load: Load, base_url: str) -> Load:
    return lambda: _with_emulator(load(), base_url)


def _with_emulator(settings: Settings, base_url: str) -> Settings:
    provider = ProviderSettings(base_url=base_url, api_key_env=EMULATOR_KEY_ENV, emulated=True)
    return msgspec.structs.replace(settings, providers={**settings.providers, EMULATED: provider})


def _bind(what: str, host: str, port: int, remedy: str, stall_s: float) -> socket.socket:
    """Bind it; nobody can connect before it listens. `remedy` names what chooses another port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bound_what_clients_hold(listener, stall_s)
        listener.bind(address)
    except socket.gaierror as error:
        raise SettingsError(f"{what}.host: {host} cannot be resolved: {error.strerror}") from error
    except OSError as error:
        raise _taken(what, f"{host}:{port}", error, remedy) from error
    listener.set_inheritable(False)
    return listener


def _listen(what: str, listener: socket.socket, remedy: str) -> None:
    """Let clients connect. Two may bind one port where neither listens yet, this node's own two among them; of the one
    that is second here uvloop says nothing."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _taken(what, f"{host}:{port}", error, remedy) from error


def _taken(what: str, where: str, error: OSError, remedy: str) -> SettingsError:
    return SettingsError(
        f"{what}: cannot listen on {where}: {error.strerror}. Is another node running? It takes two ports, "
        f"its own and for the admin API the next. Choose another port with {remedy}"
    )


def _bound_what_clients_hold(listener: socket.socket, stall_s: float) -> None:
    """Every accepted connection inherits these. A client that is gone without a word is found out by the kernel."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Counts for a window that stays closed too, also after the connection has been closed on our side.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(stall_s * 1000), _LONGEST_MS))


async def _run(
    node: Node, listener: socket.socket, admin_listener: socket.socket, load: Load, where: str | None
) -> None:
    settings = node.settings
    upstream = sum(each.max_connections for each in settings.providers.values())
    limit = raise_descriptor_limit(settings.api.max_connections + upstream + _OTHER_DESCRIPTORS)
    reserve = _OTHER_DESCRIPTORS if limit is None else max(_LEAST_OTHER_DESCRIPTORS, limit // 16)

    class Protocol(GuardedHttpProtocol):
        max_connections = settings.api.max_connections
        max_descriptor = None if limit is None else limit - reserve
        lobby = Lobby(min(Lobby.MOST_PLACES, reserve // 4))
        reader_stall_s = settings.api.reader_stall_s

        def note_refusal(self, refusal: SpillwayError) -> None:
            node.door.count(refusal)

    def on_reloaded(now: Settings) -> None:
        Protocol.max_connections = now.api.max_connections
        Protocol.reader_stall_s = now.api.reader_stall_s

    server = DrainingServer(_server_config(node.asgi(), Protocol), node.door, lambda: node.settings.shutdown_grace_s)
    admin = _admin_server(node)
    reloader = Reloader(node, load, where, on_reloaded)
    _on_signals(asyncio.get_running_loop(), end=server.end, reload=reloader.request)
    node.engines.on_hopeless = server.end
    await node.start()
    administering = asyncio.create_task(admin.serve(sockets=[admin_listener]), name="admin")
    gc.collect()
    gc.freeze()  # what start-up built lives as long as the process: no need to walk it again
    try:
        await server.serve(sockets=[listener])
    finally:
        node.sampler.end()
        admin.should_exit = True  # only now: how the end goes on can be watched there
        await asyncio.shield(_stop(node, reloader, administering))
    if node.engines.hopeless is not None:
        raise node.engines.hopeless


def _admin_server(node: Node) -> QuietServer:
    class Protocol(GuardedHttpProtocol):
        max_connections = _ADMIN_CONNECTIONS
        reader_stall_s = node.settings.api.reader_stall_s

    return QuietServer(_server_config(node.admin_asgi(), Protocol))


def _server_config(app: ASGIApp, protocol: type[GuardedHttpProtocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_WITHIN_S,
    )


async def _stop(node: Node, reloader: Reloader, administering: asyncio.Task[None]) -> None:
    await administering
    await reloader.stop()
    await node.stop()


def _on_signals(loop: asyncio.AbstractEventLoop, *, end: Callable[[], None], reload: Callable[[], None]) -> None:
    """Have the signals call these on the loop. The handlers stay when it is closed: by then they mean nothing.

    A terminal that is closed sends SIGHUP too, and means the end: it reads no log and can send no Ctrl-C any more.
    """
    from_terminal = _terminal_is_there()

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked_to_reload = number == signal.SIGHUP and (not from_terminal or _terminal_is_there())
        if not loop.is_closed():
            loop.call_soon_threadsafe(reload if asked_to_reload else end)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # As under nohup, which starts what it runs with SIGHUP ignored; a service manager that does so wants no reload.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)


def _terminal_is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _banner(node: Node, listener: socket.socket, admin_listener: socket.socket, *, emulated: bool) -> str:
    host, port = listener.getsockname()[:2]
    its_host, its_port = admin_listener.getsockname()[:2]
    key = admin_key.ENV if os.environ.get(admin_key.ENV) else node.place.folder / admin_key.FILE
    lines = [
        f"Spillway listens on http://{host}:{port}/v1",
        f"  admin API: http://{its_host}:{its_port}/admin, key: {key}",
        f"  dashboard: http://{host}:{port}/",
    ]
    for name, model in node.models.items():
        where = f"engine ({model.local.source})" if name in node.engines and model.local else "no engine here"
        cloud = ", ".join(f"{each.provider}/{each.model}" for each in model.cloud) or "never leaves the premises"
        lines.append(f"  {name}: {where}; cloud: {cloud}")
    if emulated:
        lines += [
            "  NO PROVIDER KEY: the cloud is a local emulator. Its answers are made up; nothing leaves this machine.",
            "  Set HOLYSHEEP_API_KEY, or write a spillway.yaml, for the real one.",
        ]
    if node.keyring.is_open:
        lines.append("  No keys configured: open to every process on this machine, and to nobody else.")
    elif node.key_watch.latest.stored is None:
        lines.append("  The database cannot be read: of the keys, only those in the settings are known.")
    elif node.keyring.lets_nobody_in:
        lines.append(
            "  NO GOOD KEY: every request is refused, as all keys were revoked or are over: spillway keys create NAME"
        )
    return "\n".join(lines)
