"""What the operator says about one OpenAI-compatible provider."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import httpx

from node.errors import SettingsError
from node.routing.values import Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerClocks:
    """How long an answer may take, in seconds.

    `first_content_s` runs from dispatch to the first generated token of a stream; `between_chunks_s` is the longest
    silence after it (keep-alive comments are silence); `total_s` bounds the whole answer, streamed or not.
    """

    first_content_s: float = 30.0
    between_chunks_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """One provider: where it is, how it is paid, how long it may take.

    `base_url` ends where ``/chat/completions`` begins. `connect_s` covers waiting for a free connection, DNS, TCP and
    TLS; `clocks` hold for every model but those in `model_clocks`, by the provider's own id. `ca_file` is a PEM bundle
    used instead of the public authorities. A provider in zone `premises` is only ever connected to at an address that
    is not a public one; one that is `emulated` is on this machine.
    An empty `api_key` sends no `Authorization`. `trace_context`: a traced request's `traceparent` goes with it.
    `max_tokens_field` is the name the provider's chat endpoint wants for the output cap.

    Raises `SettingsError` naming the key for a URL that is not absolute http(s), carries credentials, a query or
    a fragment, or would send the key over plain HTTP beyond loopback; and for a limit that is not positive.
    """

    name: str
    base_url: str
    api_key: str = field(repr=False)
    zone: Zone = Zone.CLOUD
    emulated: bool = False
    weight: float = 1.0
    connect_s: float = 5.0
    clocks: AnswerClocks = AnswerClocks()
    model_clocks: Mapping[str, AnswerClocks] = field(default_factory=dict)
    max_connections: int = 256
    ca_file: str | None = None
    trace_context: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def __post_init__(self) -> None:
        where = f"providers.{self.name}"
        limits = {key: getattr(self, key) for key in ("weight", "connect_s", "max_connections")}
        limits |= {f"clocks.{key}": value for key, value in asdict(self.clocks).items()}
        for model, clocks in self.model_clocks.items():
            limits |= {f"model_clocks.{model}.{key}": value for key, value in asdict(clocks).items()}
        for key, value in limits.items():
            if not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{where}.{key}: must be a positive number")
        if not self.api_key.isascii() or any(character <= " " for character in self.api_key):
            raise SettingsError(f"{where}.api_key: must be printable ASCII without spaces")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            raise SettingsError(f"{where}.base_url: not a URL") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise SettingsError(f"{where}.base_url: must start with https:// and name a host")
        if url.userinfo or url.query or url.fragment:
            raise SettingsError(f"{where}.base_url: must not carry credentials, a query or a fragment")
        if url.scheme == "http" and self.zone is Zone.CLOUD and not _is_loopback(url.host):
            raise SettingsError(f"{where}.base_url: a cloud provider beyond this machine needs https://")
        if self.zone is Zone.PREMISES and is_public_address(url.host):
            raise SettingsError(f"{where}.zone: {url.host} is a public address, which is not on the premises")
        if self.emulated and not _is_loopback(url.host):
            raise SettingsError(f"{where}.emulated: {url.host} is not this machine, where an emulator would be")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that `base_url` names."""
        url = httpx.URL(self.base_url)
        return url.host, url.port or (443 if url.scheme == "https" else 80)

    def clocks_for(self, model: str) -> AnswerClocks:
        """The clocks of an answer by `model`, named as the provider names it."""
        return self.model_clocks.get(model, self.clocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Beyond these an answer is not read on: bytes of one event, of one JSON document, of a stream, and events."""

    event_bytes: int = 1024 * 1024
    document_bytes: int = 32 * 1024 * 1024
    stream_bytes: int = 256 * 1024 * 1024
    events: int = 1_000_000


def is_public_address(host: str) -> bool:
    """Whether `host` is an IP address that the whole internet can reach; False for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_global


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
