"""The mapping from the HTTP libraries' exceptions is complete."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from collections.abc import Iterator

import aiohttp
import httpx
import pytest
from aiohttp import client_exceptions, http_exceptions

from node.cloud.errors import FOREIGN, clean, from_exception, read_complaint
from node.errors import UpstreamConnect, UpstreamError, UpstreamTimeout, UpstreamTls, UpstreamTruncated

# Websocket clients, and misuse of cookies, which the gate has none of.
NOT_OURS = {aiohttp.WSMessageTypeError, httpx.CookieConflict}


def exceptions_of(module: object) -> Iterator[type[BaseException]]:
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, BaseException) and value not in NOT_OURS:
            yield value


EVERY = sorted(
    {
        *exceptions_of(httpx),
        *(each for each in exceptions_of(client_exceptions) if each.__module__.startswith("aiohttp")),
        *(each for each in exceptions_of(http_exceptions) if each.__module__.startswith("aiohttp")),
        OSError,
        ConnectionResetError,
        BrokenPipeError,
        TimeoutError,
        socket.gaierror,
        ssl.SSLError,
        ssl.SSLCertVerificationError,
        asyncio.IncompleteReadError,
    },
    key=lambda each: (each.__module__, each.__qualname__),
)
# Roots that are never raised themselves.
ROOTS = {aiohttp.ClientError, httpx.HTTPError, httpx.RequestError, httpx.TransportError}


def blank(kind: type[BaseException]) -> BaseException:
    """An instance made without arguments that only its library knows."""
    return kind.__new__(kind)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_every_exception_of_the_http_libraries_is_caught_and_named(kind: type[BaseException]) -> None:
    assert issubclass(kind, FOREIGN)
    for answering in (False, True):
        ours = from_exception(blank(kind), "holy", answering=answering)
        assert isinstance(ours, UpstreamError)
        assert (ours.message == "holy could not be used") == (kind in ROOTS)


@pytest.mark.parametrize(
    ("cause", "before", "after"),
    [
        (aiohttp.ClientConnectorCertificateError, UpstreamTls, UpstreamTls),
        (aiohttp.ClientConnectorSSLError, UpstreamTls, UpstreamTls),
        (aiohttp.ClientConnectorDNSError, UpstreamConnect, UpstreamConnect),
        (aiohttp.ClientConnectorError, UpstreamConnect, UpstreamConnect),
        (aiohttp.ConnectionTimeoutError, UpstreamTimeout, UpstreamTimeout),
        (aiohttp.ServerDisconnectedError, UpstreamError, UpstreamTruncated),
        (aiohttp.ClientOSError, UpstreamError, UpstreamTruncated),
        (aiohttp.ClientPayloadError, UpstreamError, UpstreamTruncated),
        (http_exceptions.TransferEncodingError, UpstreamError, UpstreamTruncated),
        (socket.gaierror, UpstreamConnect, UpstreamConnect),
        (httpx.ReadTimeout, UpstreamTimeout, UpstreamTimeout),
        (httpx.ReadError, UpstreamError, UpstreamTruncated),
    ],
)
def test_cause_decides_where_the_transport_says_connect_timeout(
    cause: type[BaseException], before: type[UpstreamError], after: type[UpstreamError]
) -> None:
    error = httpx.ConnectTimeout("as the transport calls every lost connection")
    error.__cause__ = blank(cause)
    assert type(from_exception(error, "holy", answering=False)) is before
    assert type(from_exception(error, "holy", answering=True)) is after


@pytest.mark.parametrize("document", [None, 5, "text", [], {}, {"error": 5}, {"error": {"code": True, "type": []}}])
def test_complaint_in_no_known_shape_is_empty(document: object) -> None:
    complaint = read_complaint(document)
    assert (complaint.code, complaint.type, complaint.message, complaint.status) == ("", "", "", None)


def test_cleaning_leaves_nothing_of_a_key_or_a_url() -> None:
    said = clean("bad key cr_abcdefghij; see postgres://u:p@db/x or sk-ab***cdef", "k3y")
    assert said == "bad key [redacted]; see [redacted] or [redacted]"
    assert clean("k3y is wrong", "k3y") == "[redacted] is wrong"
