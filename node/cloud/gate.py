"""The egress gate: the one object that owns every cloud socket.

    send()   needs an `EgressPermit` that names this request, this provider and this model; a pinned request's is
             good for a provider on the premises only
    probe()  lists a provider's models; carries no prompt, needs no permit

Hosts, keys and headers are fixed when the gate is built; a caller chooses among configured providers, never an
address. It speaks to httpx's transport interface over aiohttp's connection pool (httpx's own pool collapses at
64 connections) and uses no httpx client on top: so nothing here follows redirects, keeps cookies or reads
proxies from the environment, and the gate costs less than half the CPU per call.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aiohttp
import certifi
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport

from node import __version__
from node.backend import Kind
from node.cloud.answer import Answer, Trip
from node.cloud.config import ProviderConfig, is_public_address
from node.cloud.errors import FOREIGN, from_exception
from node.errors import (
    SettingsError,
    UpstreamConnectTimeout,
    UpstreamError,
    UpstreamPoolFull,
    UpstreamTimeout,
)
from node.guard import GateSocket
from node.routing.permit import EgressForbidden, EgressPermit
from node.routing.values import Residency, Zone
from node.sse import encode

MAX_LISTING_BYTES: Final = 4 * 1024 * 1024
_KEEPALIVE_S: Final = 30.0
_PATHS: Final = {Kind.CHAT: "/chat/completions", Kind.COMPLETION: "/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRecord:
    """What one use of the gate moved. Bytes are of bodies; headers are constant per provider.

    `request_id` and `model` are None for a probe, `status` is None when no status line came. `resent` says that the
    request was sent a second time because the kept-alive connection turned out to be dead.
    """

    request_id: str | None
    provider: str
    model: str | None
    rule: str
    bytes_out: int
    bytes_in: int
    status: int | None
    resent: bool


# aiohttp does not say whether a connection came from its pool. Its socket factory runs only for new ones, in the
# context of the request that needs it.
_trip: ContextVar[Trip] = ContextVar("spillway_egress_trip")


def _open_socket(zone: Zone, address: tuple[Any, ...]) -> socket.socket:
    _trip.get().opened = True
    family, kind, protocol, _, to = address
    if zone is Zone.PREMISES and is_public_address(to[0]):
        # Whatever DNS says today: what is pinned does not go there.
        raise OSError(f"{to[0]} is a public address, which is not on the premises")
    opened = GateSocket(family, kind, protocol, to)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


class _Prepared(httpx.Request):
    """A request made of ready parts: httpx's own constructor builds the same headers anew for every call."""

    def __init__(
        self, method: str, url: httpx.URL, headers: httpx.Headers, extensions: dict[str, Any], body: bytes
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.extensions = extensions
        self.stream = httpx.ByteStream(body)
        self._body = body

    @property
    def content(self) -> bytes:
        """The body."""
        return self._body


class _Line:
    """One provider: its addresses, headers and two pools, of which the second never reuses a connection."""

    def __init__(self, config: ProviderConfig) -> None:
        base = config.base_url.rstrip("/")
        self.config = config
        self.urls = {kind: httpx.URL(base + path) for kind, path in _PATHS.items()}
        self.models_url = httpx.URL(base + "/models")
        common = {
            "host": self.models_url.netloc.decode("ascii"),
            **({"authorization": f"Bearer {config.api_key}"} if config.api_key else {}),
            "accept-encoding": "identity",
            "user-agent": f"spillway/{__version__}",
        }
        self.get_headers = httpx.Headers(common | {"accept": "application/json"})
        posted = common | {"content-type": "application/json"}
        self.post_headers = {
            False: httpx.Headers(posted | {"accept": "application/json"}),
            True: httpx.Headers(posted | {"accept": "text/event-stream"}),
        }
        # `pool` is aiohttp's whole way to a usable connection: a free slot, DNS, TCP, TLS. Reads are timed above.
        self.extensions = {"timeout": {"connect": None, "read": None, "pool": config.connect_s}}
        self.in_flight = 0
        self._tls = _tls_context(self.models_url, config.ca_file)
        self.pooled = self._transport(force_close=False)
        self.fresh = self._transport(force_close=True)

    def _transport(self, *, force_close: bool) -> AiohttpTransport:
        def session() -> aiohttp.ClientSession:  # built on first use: aiohttp wants a running loop
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self.config.max_connections,
                    ssl=self._tls,
                    socket_factory=partial(_open_socket, self.config.zone),
                    **({"force_close": True} if force_close else {"keepalive_timeout": _KEEPALIVE_S}),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                requote_redirect_url=False,
            )

        return AiohttpTransport(verify=self._tls, trust_env=False, client=session)


def _tls_context(url: httpx.URL, ca_file: str | None) -> ssl.SSLContext:
    if url.scheme == "https":
        try:
            return ssl.create_default_context(cafile=ca_file or certifi.where())
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"ca_file {ca_file}: cannot be read as PEM certificates") from error
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and trusts nobody


class EgressGate:
    """Opens connections to the configured providers and nobody else, and counts what passes.

    `on_egress` is called once per use, when the answer is closed or the attempt has failed. Close the gate with
    `aclose()`. Raises `SettingsError` for two providers of one name.
    """

    def __init__(
        self, providers: Iterable[ProviderConfig], *, on_egress: Callable[[EgressRecord], None] | None = None
    ) -> None:
        self._lines: dict[str, _Line] = {}
        for config in providers:
            if config.name in self._lines:
                raise SettingsError(f"providers.{config.name}: defined twice")
            self._lines[config.name] = _Line(config)
        self._on_egress = on_egress

    @property
    def providers(self) -> tuple[str, ...]:
        """The names of the configured providers."""
        return tuple(self._lines)

    @property
    def in_flight(self) -> int:
        """Uses under way: the gate may be closed when there is none, without cutting anybody off."""
        return sum(line.in_flight for line in self._lines.values())

    async def send(
        self,
        permit: EgressPermit,
        *,
        request_id: str,
        provider: str,
        model: str,
        kind: Kind,
        fields: Mapping[str, Any],
        stream: bool,
        traceparent: str | None = None,
    ) -> Answer:
        """Send one request and return its answer as soon as the status line is here, whatever the status.

        `fields` is the body without `model`, which comes from the permit; `traceparent` goes into a header. Raises
        `EgressForbidden` unless `permit` names exactly this request, provider and model, and lets it go where that
        provider is, before anything is sent; `UpstreamError` subclasses for a connection that fails. One that fails
        because a kept-alive connection had died is tried once more on a new one: nothing was answered, and nothing was
        lost.
        """
        if not isinstance(permit, EgressPermit):
            raise EgressForbidden("nothing leaves without an EgressPermit")
        if (permit.request_id, permit.provider, permit.model) != (request_id, provider, model):
            raise EgressForbidden(f"the permit of {permit.request_id} does not cover this request")
        line = self._lines.get(provider)
        if line is None:
            raise EgressForbidden(f"{provider} is not a configured provider")
        if permit.residency is not Residency.ANY and line.config.zone is not Zone.PREMISES:
            raise EgressForbidden(f"{permit.request_id} is pinned to the premises, and {provider} is not on them")
        body = encode({**fields, "model": permit.model})
        headers = line.post_headers[stream]
        if traceparent is not None:
            headers = httpx.Headers([*headers.raw, (b"traceparent", traceparent.encode("ascii"))])
        request = _Prepared("POST", line.urls[kind], headers, line.extensions, body)
        return await self._transmit(line, request, Trip(request_id, model, permit.rule, len(body)))

    async def probe(self, provider: str, *, timeout_s: float = 10.0) -> tuple[str, ...]:
        """The model ids `provider` lists at ``/models``. Raises `UpstreamError` subclasses."""
        line = self._lines[provider]
        request = _Prepared("GET", line.models_url, line.get_headers, line.extensions, b"")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._transmit(line, request, Trip(None, None, "probe", 0))
                try:
                    if answer.status != 200:
                        raise await answer.failure(time.time())
                    listing = msgspec.json.decode(await answer.read_all(MAX_LISTING_BYTES), type=_Listing)
                finally:
                    await answer.aclose()
        except TimeoutError as error:
            raise UpstreamTimeout(f"{provider} did not list its models within {timeout_s:g} s") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamError(f"{provider} did not list its models in a form we know") from error
        return tuple(entry.id for entry in listing.data)

    async def _transmit(self, line: _Line, request: httpx.Request, trip: Trip) -> Answer:
        line.in_flight += 1
        _trip.set(trip)
        response = None
        try:
            try:
                response = await line.pooled.handle_async_request(request)
            except FOREIGN as error:
                if trip.opened or not _died_unanswered(error):
                    raise
                trip.resent = True
                trip.bytes_out += trip.body_bytes
                response = await line.fresh.handle_async_request(request)
        except FOREIGN as error:
            raise _connection_failure(error, line, trip) from error
        finally:
            if response is None:
                self._settle(line, trip)
        trip.status = response.status_code
        return Answer(response, line.config, trip, partial(self._settle, line))

    def _settle(self, line: _Line, trip: Trip) -> None:
        line.in_flight -= 1
        if self._on_egress is not None:
            self._on_egress(
                EgressRecord(
                    request_id=trip.request_id,
                    provider=line.config.name,
                    model=trip.model,
                    rule=trip.rule,
                    bytes_out=trip.bytes_out,
                    bytes_in=trip.bytes_in,
                    status=trip.status,
                    resent=trip.resent,
                )
            )

    async def aclose(self) -> None:
        """Close every connection."""
        for line in self._lines.values():
            await line.pooled.aclose()
            await line.fresh.aclose()


class _Entry(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Entry]


def _died_unanswered(error: BaseException) -> bool:
    """Whether the connection was lost before one byte of an answer; `error` comes from the transport.

    aiohttp hands over what it had parsed of an unfinished answer in place of its standard text.
    """
    cause = error.__cause__ or error
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return isinstance(cause.message, str)
    return isinstance(cause, aiohttp.ClientOSError | ConnectionError) and not isinstance(
        cause, aiohttp.ClientConnectorError
    )


def _connection_failure(error: BaseException, line: _Line, trip: Trip) -> UpstreamError:
    name, connect_s = line.config.name, line.config.connect_s
    if isinstance(error.__cause__, aiohttp.ConnectionTimeoutError):
        if not trip.opened and line.in_flight > line.config.max_connections:
            return UpstreamPoolFull(f"all connections to {name} were busy for {connect_s:g} s")
        return UpstreamConnectTimeout(f"could not connect to {name} within {connect_s:g} s")
    return from_exception(error, name, answering=False)
