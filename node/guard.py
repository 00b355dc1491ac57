"""The socket guard: this process connects to nobody beyond this machine but through the egress gate.

Beside it there is one who may, to one address: who sends traces, to the collector that the operator named.

The gate refuses what has no permit; the guard is for what would go past the gate: a library that phones home, a line
that somebody adds one day. It stands where Python connects a socket, and where the event loop does. What it does not
see is in docs/privacy.md: libraries that open sockets in C, and the engine's own processes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import uvloop

_log = logging.getLogger("spillway.guard")

# Those of Python's audit events that come before a byte goes to an address. `send` needs a `connect` first.
_WATCHED: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_HERE: Final = frozenset(getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK") if hasattr(socket, name))


class StrayConnection(PermissionError):
    """Somebody other than the egress gate wanted to connect beyond this machine. An `OSError`, as if it had failed."""


class GateSocket(socket.socket):
    """A socket of the egress gate, good for one address: the only kind that leads beyond this machine."""

    def __init__(self, family: int, kind: int, protocol: int, to: tuple[Any, ...]) -> None:
        super().__init__(family, kind, protocol)
        self.to: Final = to


class SocketGuard:
    """What was refused so far, and the means to refuse. Nothing is watched before `install`, for good after it."""

    def __init__(self) -> None:
        self.refused = 0
        self.let_through = 0
        self._fetching = 0
        self._thread = threading.local()

    def install(self) -> None:
        """Watch every socket that Python connects in this process, from any thread. Cannot be undone."""

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _WATCHED:
                self.check(*arguments)

        sys.addaudithook(hook)

    def loop(self) -> asyncio.AbstractEventLoop:
        """A new event loop under this guard: uvloop connects in C, where Python's audit events do not reach."""
        return GuardedLoop(self)

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Let everybody through meanwhile, and count: for an engine whose model has to be fetched first."""
        self._fetching += 1
        try:
            yield
        finally:
            self._fetching -= 1

    @contextmanager
    def collecting(self, host: str, port: int) -> Iterator[None]:
        """Let the calling thread, and no other, connect to `host` and `port`: the operator's collector of traces."""
        self._thread.collector = host, port
        try:
            yield
        finally:
            self._thread.collector = None

    def check(self, opened: socket.socket, address: object) -> None:
        """Raise `StrayConnection` unless `opened` may connect, or send, to `address`."""
        if opened.family in _HERE or address is None:  # None: where it is connected to already
            return
        host = address[0] if isinstance(address, tuple) and address else None
        internet = opened.family in (socket.AF_INET, socket.AF_INET6)
        if internet and isinstance(host, str) and is_here(host):
            return
        if isinstance(opened, GateSocket) and isinstance(address, tuple) and address[:2] == opened.to[:2]:
            return
        if internet and self._is_collector(address):
            return
        self.stray(address)

    def _is_collector(self, address: object) -> bool:
        collector = getattr(self._thread, "collector", None)
        if collector is None or not isinstance(address, tuple) or address[1] != collector[1]:
            return False
        with suppress(OSError):
            host, port = collector
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return address[:2] in {each[4][:2] for each in found}
        return False

    def stray(self, address: object) -> None:
        """Refuse `address`, or let it through where something is being fetched."""
        if self._fetching:
            self.let_through += 1
            return
        self.refused += 1
        whence = _whence()
        _log.error("a connection to %s was refused: %s opened it, and only the egress gate may", address, whence)
        raise StrayConnection(f"only the egress gate connects beyond this machine, not {whence}")

    def document(self) -> dict[str, int]:
        """The counts, for `/admin/stats`."""
        return {"refused": self.refused, "let_through_while_fetching": self.let_through}


class GuardedLoop(uvloop.Loop):  # type: ignore[misc]
    """uvloop, whose own ways to open a connection ask the guard."""

    def __init__(self, guard: SocketGuard) -> None:
        super().__init__()
        self._guard = guard

    async def create_connection(
        self, protocol_factory: Any, host: str | None = None, port: Any = None, **more: Any
    ) -> Any:
        """As uvloop's. A socket that is given was connected before, under the audit hook."""
        if more.get("sock") is None and host is not None and not is_here(host):
            self._guard.stray((host, port))
        return await super().create_connection(protocol_factory, host, port, **more)

    async def create_datagram_endpoint(
        self, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **more: Any
    ) -> Any:
        """As uvloop's, to an address on this machine: an endpoint without one could send anywhere later."""
        if remote_addr is None or not (isinstance(remote_addr, str) or is_here(remote_addr[0])):
            self._guard.stray(remote_addr)
        return await super().create_datagram_endpoint(protocol_factory, local_addr, remote_addr, **more)


def is_here(host: str) -> bool:
    """Whether packets to `host` stay on this machine; of names only `localhost` is known to."""
    if host in ("localhost", ""):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    plain = getattr(address, "ipv4_mapped", None) or address
    return plain.is_loopback or plain.is_unspecified


def _whence() -> str:
    """The module and line that is connecting: the nearest one that is neither this one nor the standard library."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] not in sys.stdlib_module_names:
            return f"{module}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "nobody known"
