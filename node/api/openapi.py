"""OpenAPI descriptions of the raw endpoints, from the same structs that check their requests."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec

from node.api.schema import ChatRequest, CompletionRequest
from node.backend import Kind

_REQUESTS: Final[dict[Kind, type[msgspec.Struct]]] = {Kind.CHAT: ChatRequest, Kind.COMPLETION: CompletionRequest}
_SUMMARIES: Final = {
    Kind.CHAT: "Answer a conversation",
    Kind.COMPLETION: "Continue a prompt",
}
_ERRORS: Final = {
    400: "The request is wrong; `param` names the field",
    401: "No key, or not one of ours",
    403: "The key may not do this, or the request is pinned and cannot be served on the premises",
    404: "Unknown model",
    408: "The request did not arrive in time",
    413: "The body is too large",
    415: "Not uncompressed JSON",
    429: "Busy: come back after `Retry-After` seconds",
    431: "Too many or too long headers",
    500: "The node or its engine failed",
    502: "The cloud provider failed",
    503: "No capacity: come back after `Retry-After` seconds",
    504: "The cloud provider took too long",
}
_ERROR_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_BOOLEAN_HEADER: Final = {"type": "string", "enum": ["true", "false"]}
_NUMBER_HEADER: Final = {"type": "string", "pattern": "^[1-9][0-9]{0,6}$"}
_HEADERS: Final = {
    "x-spillway-require-local": _BOOLEAN_HEADER,
    "x-spillway-prefer-local": _BOOLEAN_HEADER,
    "x-spillway-cache": _BOOLEAN_HEADER,
    "x-spillway-latency-budget-ms": _NUMBER_HEADER,
    "x-spillway-ttft-budget-ms": _NUMBER_HEADER,
    "x-spillway-cost-budget-usd": {"type": "string", "pattern": r"^[0-9]{1,5}(\.[0-9]{1,9})?$"},
}

ANSWER_HEADERS: Final = {
    "x-request-id": "the request's id, also in the log, the traces and the dashboard; on errors too",
    "x-spillway-backend": "who answered: `local`, `cache`, or the provider's name in the settings",
    "x-spillway-model": "the model that answered, as its backend calls it",
    "x-spillway-reason": "why it went there; on a refusal, the rule that said no",
    "x-spillway-queue-ms": "how long it waited to be placed",
    "x-spillway-pinned-by": "who pinned it to the premises: `settings`, `key`, `model`, `request` or `content:RULE`",
    "x-ignored-params": "request fields that the node does not know, and left out",
    "x-should-retry": "`false` where sending it again cannot help; OpenAI's SDKs heed it",
    "retry-after": "on every 429 and 503: seconds to wait, at least 1",
    "x-ratelimit-limit-requests": "what the key has per minute; the same with `-tokens`",
    "x-ratelimit-remaining-requests": "what is left of it; the same with `-tokens`",
    "x-ratelimit-reset-requests": "when all of it is there again, as `1m30s` or `20ms`; the same with `-tokens`",
}
"""Every header of our own that an answer may have, and what it says."""


@cache
def components() -> dict[str, Any]:
    """The entries for `components/schemas`: the request types with all they hold, and `Error`. Treat as read-only."""
    _, schemas = msgspec.json.schema_components(_REQUESTS.values(), ref_template="#/components/schemas/{name}")
    return {**schemas, "Error": _ERROR_SCHEMA}


def operation(kind: Kind) -> dict[str, Any]:
    """The OpenAPI operation object of an endpoint's POST. Its references need `components()` in the document."""
    name = _REQUESTS[kind].__name__
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "operationId": f"create_{kind.value}",
        "summary": _SUMMARIES[kind],
        "parameters": [
            {"name": header, "in": "header", "required": False, "schema": schema} for header, schema in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        },
        "responses": {
            "200": {
                "description": "The answer; a stream of server-sent events when `stream` is true",
                "headers": {
                    header: {"description": what, "schema": {"type": "string"}}
                    for header, what in ANSWER_HEADERS.items()
                    if header not in ("x-should-retry", "retry-after")
                },
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **{str(status): {"description": why, "content": error} for status, why in _ERRORS.items()},
        },
    }
