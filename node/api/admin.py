"""The admin API: a port of its own on loopback, and a key of its own, before anything else is looked at."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from node.api.app import error_response, on_bug, on_http_exception, on_our_error
from node.api.body import Headers
from node.api.origins import check_host, check_origin
from node.api.usage_query import parse_usage_query
from node.errors import AuthenticationFailed, NotFound, SpillwayError
from node.store.usage import Question, Report
from node.store.usage_text import as_document

_USAGE_PARAMETERS: Final = ("by", "since", "until", "key")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminParts:
    """What the admin API shows and changes; built in `node.app`. `isolate` and `restore` take a provider's name."""

    key: str
    host: str
    stats: Callable[[], Document]
    metrics: Callable[[], bytes]
    usage: Callable[[Question], Awaitable[Report]]
    keys: Callable[[], Awaitable[Document]]
    providers: Callable[[], Document]
    isolate: Callable[[str], None]
    restore: Callable[[str], None]
    now_us: Callable[[], int]


def build_admin(parts: AdminParts, dashboard: Sequence[BaseRoute] = (), pages: Collection[str] = ()) -> GuardedAdmin:
    """The ASGI application behind its guard. Holds no state of its own. `pages` are the paths that need no key."""
    app = FastAPI(title="Spillway admin", docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None)

    @app.get("/admin/stats")
    async def stats() -> Response:
        """Counts, tokens, spend and savings since start; queues, engines, GPUs."""
        return _json(parts.stats())

    @app.get("/admin/usage")
    async def usage(request: Request) -> Response:
        """What `spillway usage --json` shows, with the same parameters."""
        question = parse_usage_query(request.query_params.multi_items(), parts.now_us(), _USAGE_PARAMETERS)
        return _json(as_document(await parts.usage(question)))

    @app.get("/admin/keys")
    async def keys() -> Response:
        """The callers' keys, without what could be used as one."""
        return _json(await parts.keys())

    @app.get("/admin/providers")
    async def providers() -> Response:
        """How each provider stands."""
        return _json(parts.providers())

    @app.post("/admin/providers/{name}/isolate")
    async def isolate(name: str) -> Response:
        """Send nothing there until it is restored, or until a reload or restart."""
        return _json(_changed(name, parts.isolate))

    @app.post("/admin/providers/{name}/restore")
    async def restore(name: str) -> Response:
        """Use it again, whatever isolated it: one call at a time, until some have succeeded."""
        return _json(_changed(name, parts.restore))

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus exposition."""
        return Response(parts.metrics(), media_type="text/plain; version=0.0.4")

    def _changed(name: str, change: Callable[[str], None]) -> Document:
        if name not in parts.providers():
            raise NotFound(f"There is no provider {name!r}.")
        change(name)
        return {name: parts.providers()[name]}

    app.router.routes.extend(dashboard)
    app.add_exception_handler(SpillwayError, on_our_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)
    return GuardedAdmin(app, parts.key, parts.host, frozenset(pages))


class GuardedAdmin:
    """Lets through to `app` who has the key, and no page that a browser here has open. `pages` need no key."""

    def __init__(self, app: FastAPI, key: str, host: str, pages: frozenset[str]) -> None:
        self.app = app
        self._digest = hashlib.sha256(key.encode()).digest()
        self._host = host
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        try:
            if scope["path"] in self._pages:
                check_host(scope["headers"], self._host, "the admin API")
            else:
                check_origin(scope["headers"], self._host, "the admin API")
                self._check_key(scope["headers"])
        except SpillwayError as error:
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_key(self, headers: Headers) -> None:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        matches = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._digest)
        if scheme.lower() != b"bearer" or not matches:
            raise AuthenticationFailed("Missing or wrong admin key. Send it as `Authorization: Bearer <key>`.")


def _json(document: Document) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
