"""What operators ask: alive, ready, how much, how loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from node.api.auth import Keyring
from node.errors import ModelNotFound, NotFound
from node.metrics import Metrics
from node.settings import is_loopback

Document = dict[str, Any]


def operator_router(
    *, ready: Callable[[], Document], models: Callable[[], Document], stats: Callable[[], Document],
    metrics: Metrics, keyring: Keyring,
) -> APIRouter:  # fmt: skip
    """The operator's routes, and the model list that every client may read."""
    router = APIRouter()

    @router.get("/livez", tags=["operator"])
    async def livez() -> Response:
        """200 while the process answers, also while it shuts down and however many connections there are."""
        return _json({"status": "alive"})

    @router.get("/readyz", tags=["operator"])
    async def readyz() -> Response:
        """200 when every served model has somewhere to go; else 503, with what is missing, and while it shuts down."""
        document = ready()
        return _json(document, 200 if document["ready"] else 503)

    @router.get("/metrics", tags=["operator"])
    async def metrics_text() -> Response:
        """Prometheus exposition."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @router.get("/admin/stats", tags=["operator"])
    async def admin_stats(request: Request) -> Response:
        """Counts, tokens, spend and savings since start. From this machine only."""
        if request.client is None or not is_loopback(request.client.host):
            raise NotFound("Not found.")
        return _json(stats())

    @router.get("/v1/models", tags=["openai"])
    async def list_models(request: Request) -> Response:
        """The models this node serves, as far as the key is good for them."""
        caller, document = keyring.authenticate(request.headers.raw), models()
        return _json({**document, "data": [each for each in document["data"] if caller.may_use(each["id"])]})

    @router.get("/v1/models/{model:path}", tags=["openai"])
    async def retrieve_model(request: Request, model: str) -> Response:
        """One of the models this node serves."""
        caller = keyring.authenticate(request.headers.raw)
        for entry in models()["data"]:
            if entry["id"] == model and caller.may_use(model):
                return _json(entry)
        raise ModelNotFound(f"The model `{model}` does not exist on this node.", param="model")

    return router


def _json(document: Document, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status_code=status, media_type="application/json")
