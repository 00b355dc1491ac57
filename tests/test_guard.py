"""The socket guard: what this process may connect to, and that nobody else's connection gets through."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from node.guard import GateSocket, GuardedLoop, SocketGuard, StrayConnection, is_here

# TEST-NET-1 of RFC 5737 and the documentation prefix of RFC 3849: nobody's.
ELSEWHERE = "192.0.2.1"
ELSEWHERE_V6 = "2001:db8::1"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),  # Linux connects to itself
        ("localhost", True),
        (ELSEWHERE, False),
        (ELSEWHERE_V6, False),
        ("::ffff:192.0.2.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("localhost.example", False),
        ("api.example", False),
    ],
)
def test_only_loopback_is_here(host: str, here: bool) -> None:
    assert is_here(host) is here


def test_the_gates_socket_connects_where_it_was_opened_for_and_nowhere_else() -> None:
    guard = SocketGuard()
    with GateSocket(socket.AF_INET, socket.SOCK_STREAM, 0, (ELSEWHERE, 443)) as opened:
        guard.check(opened, (ELSEWHERE, 443))
        with pytest.raises(StrayConnection):
            guard.check(opened, ("192.0.2.2", 443))
        with pytest.raises(StrayConnection):
            guard.check(opened, (ELSEWHERE, 25))
    assert guard.document() == {"refused": 2, "let_through_while_fetching": 0}


def test_unix_sockets_are_nobodys_business() -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        SocketGuard().check(opened, "/run/nothing")


def test_model_that_has_to_be_fetched_is_and_only_then() -> None:
    guard = SocketGuard()
    with socket.socket() as opened:
        with guard.fetching():
            guard.check(opened, (ELSEWHERE, 443))
        with pytest.raises(StrayConnection):
            guard.check(opened, (ELSEWHERE, 443))
    assert guard.document() == {"refused": 1, "let_through_while_fetching": 1}


def test_who_sends_traces_reaches_the_collector_and_nobody_else_and_nobody_else_reaches_it() -> None:
    guard = SocketGuard()
    elsewhere: list[bool] = []

    def meanwhile() -> None:
        with socket.socket() as theirs, pytest.raises(StrayConnection):
            guard.check(theirs, (ELSEWHERE, 4318))
        elsewhere.append(True)

    with socket.socket() as opened, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with guard.collecting(ELSEWHERE, 4318):
            guard.check(opened, (ELSEWHERE, 4318))
            for address in ((ELSEWHERE, 4317), ("192.0.2.2", 4318)):
                with pytest.raises(StrayConnection):
                    guard.check(opened, address)
            with pytest.raises(StrayConnection):
                guard.check(datagrams, (ELSEWHERE, 53))
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()
        with pytest.raises(StrayConnection):
            guard.check(opened, (ELSEWHERE, 4318))
    assert elsewhere == [True]


def test_collector_that_is_a_name_is_reached_where_the_name_leads() -> None:
    """`localhost` as a stand-in for one: the only name that leads somewhere on any machine."""
    guard = SocketGuard()
    with guard.collecting("localhost", 4318):
        assert guard._is_collector(("127.0.0.1", 4318))
        assert not guard._is_collector((ELSEWHERE, 4318))
    with guard.collecting("no-such-name.invalid", 4318):
        assert not guard._is_collector((ELSEWHERE, 4318))


@pytest.mark.parametrize(
    "opens",
    [
        lambda loop: loop.create_connection(asyncio.Protocol, ELSEWHERE, 443),
        lambda loop: loop.create_connection(asyncio.Protocol, "api.example", 443),
        lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(ELSEWHERE, 53)),
        lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)),
    ],
    ids=["address", "name", "datagrams", "datagrams to anywhere"],
)
def test_event_loop_opens_no_connection_of_its_own(opens: Callable[[Any], Any]) -> None:
    guard = SocketGuard()
    with asyncio.Runner(loop_factory=guard.loop) as runner:
        assert isinstance(runner.get_loop(), GuardedLoop)
        with pytest.raises(StrayConnection):
            runner.run(opens(runner.get_loop()))
    assert guard.refused == 1


def test_event_loop_connects_on_this_machine() -> None:
    async def both_ends(loop: asyncio.AbstractEventLoop) -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        transport.close()
        server.close()

    guard = SocketGuard()
    with asyncio.Runner(loop_factory=guard.loop) as runner:
        runner.run(both_ends(runner.get_loop()))
    assert guard.refused == 0


# An audit hook stays for good, so it is installed in a process of its own, which tells what each way out came to.
_WAYS_OUT = f"""
import asyncio, json, socket, sys, threading, urllib.error, urllib.request
import aiohttp, httpx, uvloop
from node.guard import GateSocket, SocketGuard, StrayConnection

guard = SocketGuard()
guard.install()
told = {{}}

def tells(name, way):
    try:
        way()
        told[name] = "let through"
    except BaseException as error:
        seen = error
        while seen is not None and not isinstance(seen, StrayConnection):
            seen = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        told[name] = "refused" if seen is not None else type(error).__name__

def udp():
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        opened.sendto(b"x", ("{ELSEWHERE}", 53))

def message():
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        opened.sendmsg([b"x"], [], 0, ("{ELSEWHERE}", 53))

def threaded():
    caught = []
    def connect():
        try:
            socket.create_connection(("{ELSEWHERE}", 443), 1)
        except OSError as error:
            caught.append(error)
    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    raise caught[0]

async def with_aiohttp():
    async with aiohttp.ClientSession() as session:
        await session.get("http://{ELSEWHERE}/")

async def with_httpx():
    async with httpx.AsyncClient() as client:
        await client.get("http://{ELSEWHERE}/")

def of_the_gate():
    with GateSocket(socket.AF_INET, socket.SOCK_STREAM, 0, ("{ELSEWHERE}", 443)) as opened:
        opened.setblocking(False)
        opened.connect(("{ELSEWHERE}", 443))

def listener():
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        here.listen()
        socket.create_connection(here.getsockname(), 1).close()

def run(coroutine):
    with asyncio.Runner(loop_factory=guard.loop) as runner:
        runner.run(coroutine)

tells("tcp", lambda: socket.create_connection(("{ELSEWHERE}", 443), 1))
tells("connect_ex", lambda: socket.socket().connect_ex(("{ELSEWHERE}", 443)))
tells("udp", udp)
tells("message", message)
tells("thread", threaded)
tells("urllib", lambda: urllib.request.urlopen("http://{ELSEWHERE}/", timeout=1))
tells("aiohttp", lambda: run(with_aiohttp()))
tells("httpx", lambda: run(with_httpx()))
tells("the gate", of_the_gate)
tells("loopback", listener)
print(json.dumps([told, guard.refused]))
"""


def test_installed_it_stops_every_way_out_but_the_gates() -> None:
    done = subprocess.run([sys.executable, "-c", _WAYS_OUT], capture_output=True, text=True, timeout=60, check=True)
    told, refused = json.loads(done.stdout)
    # Without a network the gate's attempt ends as the kernel has it; the guard was not what ended it.
    assert told.pop("the gate") in ("BlockingIOError", "OSError")
    assert told.pop("loopback") == "let through"
    assert told == dict.fromkeys(told, "refused")
    assert refused == len(told) == 8
    assert "__main__" in done.stderr  # the log says who it was
