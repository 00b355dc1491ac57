"""The one mapping from a provider's failures, and those of the HTTP libraries, to the node's error family.

Messages are ours. A provider's own words appear only where they help the caller to mend the request (400, 404,
422), and then cleaned: one short line, without keys, credentials in URLs, markup or tracebacks.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
import httpx
import msgspec
from aiohttp import http_exceptions

from node.errors import (
    UpstreamAuth,
    UpstreamConnect,
    UpstreamError,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamTruncated,
)

MAX_RETRY_AFTER_S: Final = 60.0
_MAX_TEXT: Final = 200

FOREIGN: Final = (
    aiohttp.ClientError,
    http_exceptions.HttpProcessingError,
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
)
"""Everything the HTTP stack raises on purpose; `from_exception` names each of them."""

# First match wins, so the narrow classes come first. The second class is for failures after the status line.
_BY_TYPE: Final[tuple[tuple[tuple[type[BaseException], ...], type[UpstreamError], type[UpstreamError], str], ...]] = (
    (
        (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError),
        UpstreamTls,
        UpstreamTls,
        "the TLS certificate of {} could not be verified",
    ),
    (
        (aiohttp.ClientConnectorError, httpx.ConnectError, httpx.ProxyError),
        UpstreamConnect,
        UpstreamConnect,
        "could not connect to {}",
    ),
    ((TimeoutError, httpx.TimeoutException), UpstreamTimeout, UpstreamTimeout, "{} did not answer in time"),
    (
        (
            aiohttp.ClientConnectionError,
            aiohttp.ClientPayloadError,
            aiohttp.UploadAbortedError,
            http_exceptions.PayloadEncodingError,
            httpx.NetworkError,
            asyncio.IncompleteReadError,
            ConnectionError,
        ),
        UpstreamError,
        UpstreamTruncated,
        "{} closed the connection before its answer was complete",
    ),
    (
        (
            aiohttp.ClientResponseError,
            http_exceptions.HttpProcessingError,
            httpx.ProtocolError,
            httpx.DecodingError,
            httpx.StreamError,
            httpx.TooManyRedirects,
            httpx.HTTPStatusError,
        ),
        UpstreamError,
        UpstreamTruncated,
        "{} did not answer in valid HTTP",
    ),
    (
        (
            aiohttp.InvalidURL,
            aiohttp.NonHttpUrlClientError,
            aiohttp.RedirectClientError,
            httpx.InvalidURL,
            httpx.UnsupportedProtocol,
        ),
        UpstreamConnect,
        UpstreamConnect,
        "the configured address of {} cannot be used",
    ),
    ((OSError,), UpstreamConnect, UpstreamConnect, "could not reach {}"),
)


def from_exception(error: BaseException, provider: str, *, answering: bool) -> UpstreamError:
    """Our error for one of the HTTP libraries' (`FOREIGN`).

    `answering` tells whether the provider's status line had arrived. The transport raises httpx errors from
    aiohttp ones and calls every lost connection a connect timeout, so the cause is looked at first.
    """
    for candidate in (error.__cause__, error):
        for types, before, after, text in _BY_TYPE:
            if isinstance(candidate, types):
                return (after if answering else before)(text.format(provider))
    return UpstreamError(f"{provider} could not be used")


class Complaint(msgspec.Struct, frozen=True):
    """What a provider's error document says, in whichever of the known shapes."""

    code: str = ""
    type: str = ""
    message: str = ""
    status: int | None = None
    retry_after_s: float | None = None


def read_complaint(document: object) -> Complaint:
    """The complaint in a decoded error document or error event; an empty one if it has no known shape.

    Known: ``{"error": {...}}``, ``{"error": "text"}``, ``{"type": "error", ...}`` and a bare
    ``{"message"|"detail": ...}``.
    """
    if not isinstance(document, Mapping):
        return Complaint()
    error = document.get("error") or document
    if isinstance(error, str):
        return Complaint(message=error)
    if not isinstance(error, Mapping):
        return Complaint()
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else None
    message = error.get("message") or error.get("detail")
    retry_after = error.get("retry_after", document.get("retry_after"))
    return Complaint(
        code=code if isinstance(code, str) else "",
        type=kind if isinstance(kind := error.get("type"), str) else "",
        message=message if isinstance(message, str) else "",
        status=status,
        retry_after_s=_seconds(retry_after),
    )


def from_complaint(
    status: int,
    complaint: Complaint,
    provider: str,
    *,
    api_key: str,
    headers: Mapping[str, str] | None = None,
    unix_s: float = 0.0,
) -> UpstreamError:
    """Our error for a failed answer.

    `status` is the HTTP status; for an error document under a 200 the complaint's own code and type decide.
    `headers` are looked through for a retry time, counted from the answer's own `Date` or else from `unix_s`.
    """
    status = complaint.status if status < 400 and complaint.status is not None else status
    words = f"{complaint.code} {complaint.type}".lower()
    retry_after_s = retry_after(headers or {}, complaint, unix_s)
    if status == 402 or any(word in words for word in ("quota", "balance", "billing", "payment", "credit")):
        return UpstreamQuota(f"{provider} wants payment before it goes on", retry_after_s=retry_after_s)
    if status == 429 or "rate_limit" in words or "too_many_requests" in words:
        return UpstreamRateLimited(f"{provider} is limiting our rate", retry_after_s=retry_after_s)
    if status in (401, 403) or any(word in words for word in ("api_key", "authentication", "permission")):
        return UpstreamAuth(f"{provider} refused the node's credentials")
    if status in (400, 404, 413, 422) or "invalid_request" in words or "not_found" in words:
        said = clean(complaint.message, api_key)
        return UpstreamRejected(f"{provider} rejected the request" + (f": {said}" if said else ""))
    if 300 <= status < 400:
        return UpstreamError(f"{provider} answered with a redirect, which is not followed")
    if status < 400:
        return UpstreamError(f"{provider} reported an error", retry_after_s=retry_after_s)
    return UpstreamError(f"{provider} answered with status {status}", retry_after_s=retry_after_s)


def retry_after(headers: Mapping[str, str], complaint: Complaint, unix_s: float) -> float | None:
    """Seconds to leave the provider alone: 0 to `MAX_RETRY_AFTER_S`, None where nothing sane was said.

    Looked for in ``retry-after-ms``, ``Retry-After`` (seconds or an HTTP date, RFC 9110 section 10.2.3), then the body.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
    text = headers.get("retry-after", "")
    seconds = _seconds(text)
    if seconds is None:
        moment, now = _unix_of_date(text), _unix_of_date(headers.get("date", ""))
        if moment is not None:
            seconds = _seconds(moment - (unix_s if now is None else now))
    if seconds is None:
        seconds = complaint.retry_after_s
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


def _seconds(value: Any) -> float | None:
    """A finite number of seconds, zero or more, from a number or its text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _unix_of_date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


_SECRETS: Final = re.compile(
    r"(?i)\bbearer\s+\S+"
    r"|\b(?:sk|cr|pk|rk|hs)[-_][\w*.\-]{6,}"  # provider keys, whole or half masked
    r"|\b[a-z][a-z0-9+.\-]*://\S+"  # any URL: it may hold credentials, and names hosts we do not
)
_MARKUP: Final = re.compile(r"<\s*[!/a-zA-Z][^>]{0,400}>")


def clean(text: str, api_key: str) -> str:
    """One short line of a provider's message that is safe to show; empty if none of it is."""
    if _MARKUP.search(text) or "Traceback (most recent call last)" in text:
        return ""
    if api_key:
        text = text.replace(api_key, "[redacted]")
    text = _SECRETS.sub("[redacted]", text[: 4 * _MAX_TEXT])
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
