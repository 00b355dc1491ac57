"""What operators ask: alive, ready, how much, how loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from node.api.auth import Keyring
from node.api.usage_query import parse_usage_query
from node.errors import ModelNotFound, NotFound
from node.metrics import Metrics
from node.settings import is_loopback
from node.store.moments import DAY_US
from node.store.usage import Question, Report
from node.store.usage_text import as_document

Document = dict[str, Any]

_USAGE_PARAMETERS: Final = ("by", "since", "until")
_USAGE_DAYS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorParts:
    """What these routes show; built in `node.app`."""

    ready: Callable[[], Document]
    models: Callable[[], Document]
    metrics: Metrics
    open_metrics: Callable[[], bool]
    keyring: Keyring
    usage: Callable[[Question], Awaitable[Report]]
    now_us: Callable[[], int]


def operator_router(parts: OperatorParts) -> APIRouter:
    """Probes and metrics, and what every client may read: the models, and its own usage."""
    router = APIRouter()

    @router.get("/livez", tags=["operator"])
    async def livez() -> Response:
        """200 while the process answers, also while it shuts down and however many connections there are."""
        return _json({"status": "alive"})

    @router.get("/readyz", tags=["operator"])
    async def readyz() -> Response:
        """200 when every served model has somewhere to go; else 503, with what is missing, and while it shuts down."""
        document = parts.ready()
        return _json(document, 200 if document["ready"] else 503)

    @router.get("/metrics", tags=["operator"])
    async def metrics_text(request: Request) -> Response:
        """Prometheus exposition. To this machine only, unless `api.open_metrics` is set."""
        if not parts.open_metrics() and (request.client is None or not is_loopback(request.client.host)):
            raise NotFound(f"There is no `{request.scope['path']}` here.")
        return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4")

    @router.get("/v1/usage", tags=["spillway"])
    async def own_usage(request: Request) -> Response:
        """What the caller's own key has used: `by` (model, backend, day), `since` (default: 30 days ago), `until`."""
        caller = parts.keyring.authenticate(request.headers.raw)
        now_us = parts.now_us()
        question = parse_usage_query(request.query_params.multi_items(), now_us, _USAGE_PARAMETERS)
        since_us = now_us - _USAGE_DAYS * DAY_US if question.since_us is None else question.since_us
        question = replace(question, caller=caller.tenant, since_us=since_us)
        return _json(as_document(await parts.usage(question)))

    @router.get("/v1/models", tags=["openai"])
    async def list_models(request: Request) -> Response:
        """The models this node serves, as far as the key is good for them."""
        caller, document = parts.keyring.authenticate(request.headers.raw), parts.models()
        return _json({**document, "data": [each for each in document["data"] if caller.may_use(each["id"])]})

    @router.get("/v1/models/{model:path}", tags=["openai"])
    async def retrieve_model(request: Request, model: str) -> Response:
        """One of the models this node serves."""
        caller = parts.keyring.authenticate(request.headers.raw)
        for entry in parts.models()["data"]:
            if entry["id"] == model and caller.may_use(model):
                return _json(entry)
        raise ModelNotFound(f"The model `{model}` does not exist on this node.", param="model")

    return router


def _json(document: Document, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status_code=status, media_type="application/json")
