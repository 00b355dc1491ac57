"""A provider made of raw bytes on a real socket, and the node's side of the line to it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.backend import Call, Chunk, Kind
from node.catalogue import CloudEquivalent
from node.cloud.gate import EgressGate, EgressRecord
from node.cloud.provider import CloudBackend, CloudProvider
from node.money import Price
from node.routing.permit import EgressPermit, grant
from node.routing.values import CloudOption, Decision, Reason, Target
from tests.routing.stories import REQUEST

API_KEY = "sk-node-0123456789abcdef"
PRICE = Price(Decimal(2), Decimal(8))


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; `connection` counts connections from 0."""

    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


Reply = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Upstream:
    """Answers each request with what `reply` writes; `arrived` and `hung_up` tell that a client has asked, has left."""

    port: int = 0
    reply: Reply | None = None
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    def sends(self, *writes: bytes, close: bool = False) -> None:
        """Answer every request with these bytes, each write on its own; then perhaps close the connection."""

        async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
            for data in writes:
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                writer.close()

        self.reply = reply

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection. The next request is awaited while one is answered, so a client that leaves is seen."""
        connection, self.connections = self.connections, self.connections + 1
        following = asyncio.create_task(self._request(connection, reader))
        while request := await following:
            self.received.append(request)
            self.arrived.set()
            following = asyncio.create_task(self._request(connection, reader))
            assert self.reply is not None
            with contextlib.suppress(ConnectionError):
                await self.reply(request, writer)
        writer.close()

    async def _request(self, connection: int, reader: asyncio.StreamReader) -> Received | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            pairs = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
            return None
        return Received(connection, method, path, headers, body)


def http(body: bytes | dict[str, Any], status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer with a length. Keyword names are headers, with `_` for `-`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}content-length: {len(content)}\r\n\r\n".encode() + content


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def part(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(*events: bytes | dict[str, Any], done: bool = True) -> bytes:
    """A whole streamed answer, properly ended; dictionaries become data events."""
    parts = [each if isinstance(each, bytes) else event(each) for each in events]
    if done:
        parts.append(b"data: [DONE]\n\n")
    return STREAM_HEAD + b"".join(part(each) for each in parts) + STREAM_END


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(content: str | None = None, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """A chat chunk as a provider sends it."""
    piece: dict[str, Any] = {} if content is None else {"content": content}
    return {
        "id": "up-1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "upstream-name",
        "choices": [{"index": 0, "delta": piece | extra, "finish_reason": finish}],
    }


def usage(prompt: Any = 7, completion: Any = 2) -> dict[str, Any]:
    """A usage chunk as a provider sends it."""
    return {"id": "up-1", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def completion(content: str | None = "Hello there", **usage_or_extra: Any) -> dict[str, Any]:
    """A chat answer as a provider sends it."""
    return {
        "id": "up-1",
        "object": "chat.completion",
        "created": 5,
        "model": "upstream-name",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    } | usage_or_extra


def make_permit(request_id: str = "r1", provider: str = "holy", model: str = "cloud-model") -> EgressPermit:
    """A permit as routing grants it."""
    option = CloudOption(
        provider=provider,
        model=model,
        capabilities=frozenset(),
        context_tokens=4096,
        max_output_tokens=None,
        price=PRICE,
        ttft_high_s=1.0,
        ttft_likely_s=0.5,
    )
    features = replace(
        REQUEST, request_id=request_id, prompt_tokens_estimate=7, prompt_tokens_bound=40, max_output_tokens=16
    )
    return grant(features, Decision(target=Target.CLOUD, reason=Reason.PREDICTED_LATE, cloud=option))


EQUIVALENT = CloudEquivalent(
    provider="holy",
    model="cloud-model",
    context_tokens=4096,
    max_output_tokens=None,
    capabilities=frozenset(),
    price=PRICE,
    priced_on=datetime.date(2026, 11, 1),
)


def make_call(**changes: Any) -> Call:
    """A chat call of the demo model, at most 16 tokens."""
    call = Call(
        request_id="r1",
        kind=Kind.CHAT,
        model="demo",
        body={"messages": [{"role": "user", "content": "Say hello, please."}]},
        stream=False,
        include_usage=True,
        max_output_tokens=16,
        created_s=1_700_000_000,
        tenant="t",
    )
    return replace(call, **changes)


STREAMING = make_call(stream=True)


@dataclass
class Cloud:
    """The node's side: gate and provider, and what the gate has counted."""

    provider: CloudProvider
    gate: EgressGate
    records: list[EgressRecord]

    def backend(self, **bind: Any) -> CloudBackend:
        return self.provider.bind(EQUIVALENT, make_permit(), **bind)

    async def ask(self, call: Call) -> list[Chunk]:
        """All chunks of one call."""
        return [chunk async for chunk in self.backend().open(call)]

    async def document(self, call: Call | None = None) -> dict[str, Any]:
        """The answer to a call that does not stream."""
        (chunk,) = await self.ask(call or make_call())
        document = json.loads(chunk.data)
        assert isinstance(document, dict)
        return document


def frames(chunks: list[Chunk]) -> list[dict[str, Any]]:
    """The documents in the frames of a stream, each checked to be one well-formed frame."""
    data = b"".join(chunk.data for chunk in chunks)
    assert data.endswith(b"\n\n")
    lines = data.removesuffix(b"\n\n").split(b"\n\n")
    assert all(line.startswith(b"data: {") and b"\n" not in line for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def text(chunks: list[Chunk]) -> str:
    """What a client of a chat stream reads."""
    return "".join(
        choice["delta"].get("content") or "" for document in frames(chunks) for choice in document["choices"]
    )


CloudMaker = Callable[..., Cloud]


def make_certificate(folder: Path, *, host: str = "127.0.0.1", valid_days: int = 1) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate as a PEM file, and a server context that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a provider")])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=valid_days)
    subject: x509.GeneralName
    try:
        subject = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(days=30))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    chain = folder / "provider.pem"
    chain.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + pem
    )
    authority = folder / "authority.pem"
    authority.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return authority, context
