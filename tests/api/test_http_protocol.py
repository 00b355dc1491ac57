"""A real uvicorn server, raw sockets: what the protocol refuses before any application code sees it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import uvicorn

from node.api.http_protocol import GuardedHttpProtocol
from node.api.reader import ClientGone, read_body
from node.errors import RequestTooLarge, render


class _Impatient(GuardedHttpProtocol):
    header_timeout_s: ClassVar[float] = 0.3
    body_timeout_s: ClassVar[float] = 0.3


class _Narrow(GuardedHttpProtocol):
    max_connections: ClassVar[int] = 2


class _App:
    """Echoes the body and the number of headers. `/early` answers without reading, `/slow` waits to be released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.client_gone = threading.Event()
        self.scope_headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await self._answer(send, 200, b"early", [])
            return
        if scope["path"] == "/slow":
            await asyncio.get_running_loop().run_in_executor(None, self.release.wait, 10)
        try:
            body = await read_body(receive, scope["headers"], 1000)
        except ClientGone:
            self.client_gone.set()
            return
        except RequestTooLarge as error:
            status, _, document = render(error)
            await self._answer(send, status, document, [(b"connection", b"close")])
            return
        self.scope_headers = list(scope["headers"])
        await self._answer(send, 200, body, [])

    async def _answer(self, send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": body})


class _Node:
    def __init__(self, protocol: type[GuardedHttpProtocol]) -> None:
        self.app = _App()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = listener.getsockname()
        config = uvicorn.Config(
            self.app, http=protocol, ws="none", lifespan="off", loop="uvloop", log_level="error", access_log=False
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def exchange(self, *pieces: bytes) -> bytes:
        """Send, then read until the server closes the connection."""
        with self.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            return read_all(client)

    def server_ends(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def stop(self) -> None:
        self.app.release.set()
        self.server_ends()


def read_all(client: socket.socket) -> bytes:
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def read_answer(client: socket.socket) -> bytes:
    """One answer on a connection that stays open; returns its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)
    return body


def error_of(answer: bytes, status: int, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The OpenAI error in a refusal, whose head must say what every refusal says."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d" % status)
    assert b"content-type: application/json" in lines
    assert b"connection: close" in lines
    assert any(line.startswith(b"x-request-id: ") for line in lines)
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert isinstance(error, dict)
    return error


@pytest.fixture(scope="module")
def node() -> Iterator[_Node]:
    node = _Node(GuardedHttpProtocol)
    yield node
    node.stop()


@pytest.fixture
def narrow() -> Iterator[_Node]:
    node = _Node(_Narrow)
    yield node
    node.stop()


@pytest.fixture
def impatient() -> Iterator[_Node]:
    node = _Node(_Impatient)
    yield node
    node.stop()


def post(body: bytes = b"hello", *extra: bytes, path: bytes = b"/") -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", *extra, b"content-length: %d" % len(body), b"", b""]
    return b"\r\n".join(lines) + body


def test_an_ordinary_request_is_answered_and_the_connection_kept(node: _Node) -> None:
    with node.connect() as client:
        for body in (b"first", b"second", b"third"):
            client.sendall(post(body))
            assert read_answer(client) == body


def test_headers_up_to_the_limit_pass_and_one_more_is_431(node: _Node) -> None:
    fields = [b"x-%d: y" % i for i in range(62)]
    with node.connect() as client:
        client.sendall(post(b"64 fields", *fields))
        assert read_answer(client) == b"64 fields"
    answer = node.exchange(post(b"65 fields", *fields, b"x-more: y"))
    assert error_of(answer, 431)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"", b"x-long: " + b"y" * 33_000),
        b"GET /" + b"a" * 33_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        post(b"", *(b"x-%d: " % i + b"y" * 1100 for i in range(30))),
    ],
    ids=["one long field", "long target", "many fields"],
)
def test_more_than_32_kib_of_headers_is_431(node: _Node, request_bytes: bytes) -> None:
    assert error_of(node.exchange(request_bytes), 431)["code"] == "headers_too_large"


def test_a_header_that_never_ends_is_refused_before_it_fills_the_memory(node: _Node) -> None:
    with node.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nx-endless: " + b"y" * 2_000_000)
        assert error_of(read_all(client), 431)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloworld\r\n",
        b"POST / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"nonsense\r\n\r\n",
    ],
    ids=["cl+te", "te+cl", "two lengths", "negative length", "chunk size", "chunk end", "space", "tls", "nonsense"],
)
def test_malformed_http_is_400_and_the_connection_closed(node: _Node, request_bytes: bytes) -> None:
    assert error_of(node.exchange(request_bytes), 400)["code"] is None


@pytest.mark.parametrize("body", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"])
def test_a_body_with_a_wish_to_upgrade_is_400_and_never_the_next_request(node: _Node, body: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
    assert "upgrade" in error_of(node.exchange(head + body), 400)["message"]


def test_a_wish_to_upgrade_without_a_body_is_overlooked(node: _Node) -> None:
    with node.connect() as client:
        client.sendall(post(b"", b"connection: upgrade", b"upgrade: websocket"))
        assert read_answer(client) == b""


def test_a_bad_chunk_tells_the_application_that_the_client_is_gone(node: _Node) -> None:
    node.app.client_gone.clear()
    answer = node.exchange(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", b"zz\r\n")
    error_of(answer, 400)
    assert node.app.client_gone.wait(5)


def test_trailers_do_not_reach_the_application(node: _Node) -> None:
    body = b"5\r\nhello\r\n0\r\nx-spillway-require-local: false\r\n\r\n"
    with node.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body)
        assert read_answer(client) == b"hello"
    assert b"x-spillway-require-local" not in dict(node.app.scope_headers)


def test_endless_trailers_are_refused(node: _Node) -> None:
    head = b"POST /early HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    answer = node.exchange(head + b"".join(b"x-%d: y\r\n" % i for i in range(100)))
    error_of(answer, 431)


def test_announced_oversize_is_413_before_any_of_it_is_sent(node: _Node) -> None:
    answer = node.exchange(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


def test_chunked_oversize_is_413_mid_read_and_the_connection_closed(node: _Node) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = node.exchange(head, b"258\r\n" + b"a" * 600 + b"\r\n", b"258\r\n" + b"a" * 600 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "], ids=["method", "header"])
def test_headers_that_do_not_arrive_in_time_are_408(impatient: _Node, sent: bytes) -> None:
    assert error_of(impatient.exchange(sent), 408)["code"] == "request_timeout"


def test_a_trickle_of_header_bytes_does_not_reset_the_clock(impatient: _Node) -> None:
    with impatient.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        client.settimeout(0.05)
        received = b""
        for i in range(400):
            try:
                client.sendall(b"x-%d: y\r\n" % i)
                received += client.recv(65536)
                break
            except TimeoutError:
                continue
        client.settimeout(10)
        assert error_of(received + read_all(client), 408)["code"] == "request_timeout"


def test_headers_of_a_later_request_on_the_connection_are_timed_as_well(impatient: _Node) -> None:
    with impatient.connect() as client:
        client.sendall(post(b"first"))
        assert read_answer(client) == b"first"
        client.sendall(b"POST / HTTP/1.1\r\nhost:")
        error_of(read_all(client), 408)


def test_blank_lines_do_not_keep_an_idle_connection_open(impatient: _Node) -> None:
    with impatient.connect() as client:
        client.sendall(post(b"first"))
        assert read_answer(client) == b"first"
        client.sendall(b"\r\n")
        assert read_all(client) == b""


def test_a_body_that_does_not_arrive_in_time_is_408_and_the_application_let_go(impatient: _Node) -> None:
    answer = impatient.exchange(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhel")
    assert error_of(answer, 408)["code"] == "request_timeout"
    assert impatient.app.client_gone.wait(5)


def test_a_connection_that_never_speaks_is_closed_without_an_answer(impatient: _Node) -> None:
    assert impatient.exchange() == b""


def test_a_slow_answer_is_not_cut_by_the_clocks(impatient: _Node) -> None:
    with impatient.connect() as client:
        client.sendall(post(b"patience", path=b"/slow"))
        client.settimeout(0.6)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(10)
        impatient.app.release.set()
        assert read_answer(client) == b"patience"


def test_garbage_behind_a_request_does_not_take_the_place_of_its_answer(node: _Node) -> None:
    with node.connect() as client:
        client.sendall(post(b"good", path=b"/slow") + b"\x00garbage\r\n\r\n")
        node.app.release.set()
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"good")


def test_pipelined_requests_are_answered_in_order(node: _Node) -> None:
    with node.connect() as client:
        client.sendall(post(b"one") + post(b"two") + post(b"three", b"connection: close"))
        answer = read_all(client)
    assert answer.index(b"one") < answer.index(b"two") < answer.index(b"three")


def test_connections_beyond_the_cap_are_turned_away_and_told_when_to_come_back(narrow: _Node) -> None:
    with narrow.connect() as idle, narrow.connect() as busy:
        busy.sendall(post(b"first"))
        assert read_answer(busy) == b"first"
        for request in (post(b"third"), b"", b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"):
            answer = narrow.exchange(request)
            assert error_of(answer, 503, "server_error")["code"] == "too_many_connections"
            assert b"\r\nretry-after: 1\r\n" in answer.lower()
        busy.sendall(post(b"still served"))
        assert read_answer(busy) == b"still served"
        idle.sendall(post(b"idle no more"))
        assert read_answer(idle) == b"idle no more"


@pytest.mark.parametrize("path", [b"/livez", b"/readyz?verbose"])
def test_health_probes_are_answered_when_all_places_are_taken(narrow: _Node, path: bytes) -> None:
    with narrow.connect(), narrow.connect(), narrow.connect(), narrow.connect():
        answer = narrow.exchange(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\nconnection: close\r\n" in answer


def test_a_place_that_becomes_free_is_given_to_the_next(narrow: _Node) -> None:
    with narrow.connect():
        with narrow.connect() as leaving:
            leaving.sendall(post(b"here", b"connection: close"))
            assert read_all(leaving).endswith(b"here")
        # Those who were turned away take no place, however long they linger.
        with narrow.connect() as client, narrow.connect(), narrow.connect():
            client.sendall(post(b"in"))
            assert read_answer(client) == b"in"
        for _ in range(50):
            if (answer := narrow.exchange(post(b"next", b"connection: close"))).startswith(b"HTTP/1.1 200"):
                break
        assert answer.endswith(b"next")


def test_half_sent_body_does_not_hold_a_shutdown() -> None:
    node = _Node(GuardedHttpProtocol)
    with node.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        time.sleep(0.2)
        began_s = time.monotonic()
        node.stop()
        assert time.monotonic() - began_s < 5
        received = read_all(client)
    assert received.startswith(b"HTTP/1.1 503")
    assert b'"code":"shutting_down"' in received
    assert node.app.client_gone.is_set()


def test_request_being_answered_is_waited_for_at_a_shutdown() -> None:
    node = _Node(GuardedHttpProtocol)
    with node.connect() as client:
        client.sendall(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nall.")
        time.sleep(0.2)
        stopping = threading.Thread(target=node.server_ends)
        stopping.start()
        time.sleep(0.3)
        assert stopping.is_alive()
        node.app.release.set()
        received = read_all(client)
        stopping.join()
    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(b"all.")
