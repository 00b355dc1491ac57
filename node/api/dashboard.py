"""The page at ``/``, its live feed, and who may read it.

The page itself is static and says nothing of the node: everybody may load it. What it shows comes from the feed, which
is the operator's: all tenants' requests, the money, the providers. On the admin port the guard there has asked for the
admin key already. On the public port `Viewers` decides:

1. Who brings a key needs the admin key; a caller's own is not enough.
2. Without one, only if the node has no keys at all and so is open to this machine, and then only to this machine: not
   to pages of other origins, and not to what a proxy passes on.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import msgspec
from fastapi import Request, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from node.api.app import error_response
from node.api.auth import Keyring
from node.api.body import Headers
from node.api.connection import connection_of
from node.api.origins import check_origin
from node.api.reader import ClientGone
from node.dashboard.decisions import DecisionLog, Query
from node.dashboard.feed import MOST_FOUND, MOST_TEXT, Decisions
from node.dashboard.sampler import Sampler
from node.errors import AuthenticationFailed, InvalidRequest, SpillwayError
from node.settings import is_loopback

_PAGE: Final = "index.html"
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing is loaded from elsewhere, nothing is sent elsewhere, and nobody frames it.
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_FEED_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
_QUERY: Final = ("backend", "reason", "ending", "text")

Check = Callable[[Scope], None]
"""Raises a `SpillwayError` for who may not see the feed."""


class Viewers:
    """Who may see the feed on the public port. `admin_key` is the operator's, `own_name` what the node listens as."""

    def __init__(self, admin_key: Callable[[], str], keyring: Keyring, own_name: Callable[[], str]) -> None:
        self._admin_key = admin_key
        self._keyring = keyring
        self._own_name = own_name

    def check(self, scope: Scope) -> None:
        """Return for who may. Raises `AuthenticationFailed`, and `ForeignOrigin` for a foreign page."""
        headers: Headers = scope["headers"]
        given = next((value for name, value in headers if name == b"authorization"), b"")
        if given:
            scheme, _, key = given.partition(b" ")
            wanted = hashlib.sha256(self._admin_key().encode()).digest()
            if hmac.compare_digest(hashlib.sha256(key.strip()).digest(), wanted) and scheme.lower() == b"bearer":
                return
            raise AuthenticationFailed("This is not the admin key, which the dashboard is shown to.")
        client = scope.get("client")
        proxied = any(name in _FORWARDED for name, _ in headers)
        if not self._keyring.is_open or proxied or client is None or not is_loopback(client[0]):
            raise AuthenticationFailed("The dashboard's figures are for the operator: send the admin key as a bearer.")
        check_origin(headers, self._own_name(), "the dashboard's feed")


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardParts:
    """What the dashboard shows on one port.

    `check` decides who may see it. `may_change` is true where the admin API is on the same port. `ending` says that
    viewers are to go, because the node ends.
    """

    sampler: Sampler
    decisions: DecisionLog
    check: Check
    may_change: bool
    ending: Callable[[], bool]


def dashboard_routes(parts: DashboardParts) -> list[BaseRoute]:
    """The page's files, the feed, and the search among the last decisions."""
    pages = [_file(path, _read(path, may_change=parts.may_change)) for path in page_files()]
    return [
        *pages,
        Route("/dashboard/feed", _Feed(parts), methods=["GET"], include_in_schema=False),
        Route("/dashboard/decisions", _search(parts), methods=["GET"], include_in_schema=False),
    ]


def page_files() -> dict[str, str]:
    """The paths that hold nothing of the node, and the packaged files behind them."""
    folder = files("node.dashboard") / "static"
    names = [each.name for each in folder.iterdir() if each.is_file()]
    names += [f"vendor/{each.name}" for each in (folder / "vendor").iterdir() if each.is_file()]
    served = [name for name in names if name.rpartition(".")[2] in _TYPES]
    return {"/" if name == _PAGE else f"/dashboard/{name}": name for name in sorted(served)}


def _read(path: str, *, may_change: bool) -> tuple[bytes, str]:
    name = page_files()[path]
    content = (files("node.dashboard") / "static" / name).read_bytes()
    if name == _PAGE and may_change:
        content = content.replace(b'data-port="public"', b'data-port="admin"')
    return content, _TYPES[name.rpartition(".")[2]]


def _file(path: str, content: tuple[bytes, str]) -> Route:
    body, media_type = content
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {**_HEADERS, "etag": etag}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    return Route(path, serve, methods=["GET"], include_in_schema=False)


class _Feed:
    """One viewer's stream. It is written as fast as the viewer reads; one that does not read is cut by the protocol."""

    def __init__(self, parts: DashboardParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the viewer leaves or the node ends."""
        parts = self._parts
        try:
            parts.check(scope)
            async with connection_of(scope).while_there():
                with parts.sampler.place():
                    events = parts.sampler.events(may_change=parts.may_change, ending=parts.ending)
                    await _send(send, events)
        except ClientGone:
            return
        except SpillwayError as error:
            await error_response(error)(scope, receive, send)


async def _send(send: Send, events: AsyncIterator[bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _FEED_HEADERS})
    async with aclosing(events):  # type: ignore[type-var]
        async for each in events:
            await send({"type": "http.response.body", "body": each, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _search(parts: DashboardParts) -> Callable[[Request], object]:
    async def search(request: Request) -> Response:
        parts.check(request.scope)
        asked = request.query_params.multi_items()
        for name, value in asked:
            if name not in _QUERY or len(value) > MOST_TEXT:
                raise InvalidRequest(f"Unknown parameter, or too long: `{name}`.", param=name)
        said = {name: value for name, value in asked if value}
        query = Query(
            backend=said.get("backend"),
            reason=said.get("reason"),
            ending=said.get("ending"),
            text=said.get("text"),
        )
        found = Decisions(searched=len(parts.decisions), decisions=parts.decisions.find(query, MOST_FOUND))
        return Response(
            msgspec.json.encode(found), media_type="application/json", headers={"cache-control": "no-store"}
        )

    return search
