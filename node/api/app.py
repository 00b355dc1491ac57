"""The HTTP surface: an allow-list of routes, everything else an OpenAI-shaped error."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from node import __version__
from node.api.completions import CompletionsEndpoint, Parts
from node.api.openapi import components, operation
from node.api.schema import parse_chat, parse_completion
from node.backend import Kind
from node.errors import InvalidRequest, MethodNotAllowed, NotFound, SpillwayError, render
from node.request_id import new_request_id

_log = logging.getLogger("spillway.api")


def build_app(parts: Parts, operator: APIRouter, dashboard: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The ASGI application. Holds no state of its own.

    The two endpoints that carry the load are reached without FastAPI's seven layers of middleware and routing; it
    still describes them, refuses other methods on their paths, and serves everything else.
    """
    app = FastAPI(
        title="Spillway", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None
    )
    app.include_router(operator)
    app.router.routes.extend(dashboard)
    endpoints = {
        "/v1/chat/completions": (Kind.CHAT, CompletionsEndpoint(parts, parse_chat, Kind.CHAT)),
        "/v1/completions": (Kind.COMPLETION, CompletionsEndpoint(parts, parse_completion, Kind.COMPLETION)),
    }
    for path, (_, endpoint) in endpoints.items():  # here for the other methods, which it answers with 405
        app.router.routes.append(Route(path, endpoint, methods=["POST"], include_in_schema=False))

    async def openapi_json(request: Request) -> Response:
        document: dict[str, Any] = app.openapi()
        for path, (kind, _) in endpoints.items():
            document["paths"][path] = {"post": operation(kind)}
        document.setdefault("components", {}).setdefault("schemas", {}).update(components())
        return Response(msgspec.json.encode(document), media_type="application/json")

    app.router.routes.append(Route("/openapi.json", openapi_json, methods=["GET"], include_in_schema=False))
    app.add_exception_handler(SpillwayError, on_our_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)
    direct = {path: ServerErrorMiddleware(endpoint, handler=on_bug) for path, (_, endpoint) in endpoints.items()}

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        chosen: ASGIApp = app
        if scope["type"] == "http" and scope["method"] == "POST":
            chosen = direct.get(scope["path"], app)
        await chosen(scope, receive, send)

    return front


def error_response(error: SpillwayError, more_headers: Mapping[str, str] | None = None) -> Response:
    """`error` in OpenAI's form, under a request id of its own."""
    status, headers, body = render(error)
    headers = {**headers, **(more_headers or {}), "x-request-id": new_request_id()}
    return Response(body, status_code=status, headers=headers)


async def on_our_error(request: Request, error: Exception) -> Response:
    """An error that says of itself how it is told."""
    assert isinstance(error, SpillwayError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: unknown path, wrong method (with `Allow`)."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]  # `request.url` is put together from the client's Host header
    if error.status_code == 404:
        return error_response(NotFound(f"There is no `{path}` here."))
    if error.status_code == 405:
        return error_response(MethodNotAllowed(f"`{request.method}` is not allowed on `{path}`."), error.headers)
    return error_response(InvalidRequest(str(error.detail)))


async def on_bug(request: Request, error: Exception) -> Response:
    """Our own mistake: logged with its traceback, told to the client without."""
    _log.error("unexpected error on %s", request.scope["path"], exc_info=error)
    return error_response(SpillwayError("The node failed on this request; its log says more."))
