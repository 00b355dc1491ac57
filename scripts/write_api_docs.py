#!/usr/bin/env python3
"""Write the tables of docs/api.md from routes, request types and errors, so that it cannot drift from the code."""

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Route

from node import errors
from node.api.body import MAX_CONTAINERS, MAX_DEPTH
from node.api.openapi import ANSWER_HEADERS, components
from node.api.schema_common import DEFAULT_LIMITS, REFUSED, VLLM_ONLY
from node.api.wishes import SpillwayFields
from node.app import Node
from node.errors import SpillwayError
from node.settings import ApiSettings, Settings

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
_WRITTEN = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COMMON = frozenset(components()["ChatRequest"]["properties"]) & frozenset(
    components()["CompletionRequest"]["properties"]
)
_WHERE = {
    "/": "The dashboard's page: [dashboard.md](dashboard.md).",
    "/dashboard/feed": "What the dashboard shows, as server-sent events: [dashboard.md](dashboard.md#the-feed).",
    "/dashboard/decisions": "A search among the last 5,000 requests: [dashboard.md](dashboard.md#the-feed).",
    "/openapi.json": "This surface as an OpenAPI document.",
}
_WISHES = {
    "require_local": "pinned: it never leaves the premises. `false` loosens nothing",
    "prefer_local": "stay, unless the engine cannot take it before the last safe moment",
    "cache": "`true`: an earlier answer to the same request will do, though sampling is random; `false`: never",
    "latency_budget_ms": "time to the whole answer",
    "ttft_budget_ms": "time to the first token",
    "cost_budget_usd": "the most it may cost in the cloud, dollars",
}
_NEVER_SENT = (errors.EgressRefused, errors.SettingsError, errors.BackendError, errors.Unaffordable)
_WHAT_TO_DO: dict[type[SpillwayError], str] = {
    SpillwayError: "A mistake of the node's. Its log has the traceback; please report it",
    errors.InvalidRequest: "Correct the field that `param` names",
    errors.ContextLengthExceeded: "Send a shorter prompt, or ask for less with `max_tokens`",
    errors.OutputTooLong: "Ask for less with `max_tokens`",
    errors.CostBudgetTooSmall: "Allow more with `cost_budget_usd`, or ask for less with `max_tokens`",
    errors.UnsupportedMedia: "Send images and sound as base64 within the request, to a model that takes them",
    errors.UnsupportedContentType: "Send `content-type: application/json`, uncompressed",
    errors.RequestTooLarge: "Send less; the limit is `api.max_body_bytes`",
    errors.HeadersTooLarge: "Send fewer or shorter headers: at most 64, of 32 KiB together",
    errors.RequestTimeout: "Send the whole request within 30 s, its headers within 10 s",
    errors.NotFound: "Correct the path: `/v1/...`",
    errors.MethodNotAllowed: "Use the method that `Allow` names",
    errors.ModelNotFound: "Ask `/v1/models` which there are",
    errors.AuthenticationFailed: "Send a key: `Authorization: Bearer KEY`",
    errors.PermissionDenied: "Use a key that is good for the model: `spillway keys list`",
    errors.ForeignOrigin: "Ask by address or as `localhost`; from another machine through SSH: "
    "[operations.md](operations.md#the-admin-api)",
    errors.PrivateNotServable: "Nothing on the premises can do what it asks for: ask for less, or take the pin off",
    errors.Refused: "Come back after `Retry-After`. `x-spillway-reason` names the rule: [route.md](route.md#reasons)",
    errors.RefusedBusy: "Come back after `Retry-After`; with a larger budget it would wait longer",
    errors.EngineAway: "Come back after `Retry-After`; [engine.md](engine.md)",
    errors.BudgetSpent: "Wait for the next hour, day or month (`Retry-After`), or raise the budget",
    errors.LedgerUnavailable: "The operator's: [operations.md](operations.md#the-ledger)",
    errors.RateLimited: "Come back after `Retry-After`",
    errors.MoreThanAMinute: "Ask for less with `max_tokens`",
    errors.KeysUnavailable: "The operator's: the database cannot be read. Come back after `Retry-After`",
    errors.TooManyConnections: "Open fewer; the limit is `api.max_connections`",
    errors.TooManyViewers: "Close a dashboard",
    errors.ShuttingDown: "Send it again, to whoever comes next",
    errors.HostExhausted: "Come back after `Retry-After`; [operations.md](operations.md#when-the-machine-runs-short)",
    errors.HostStrained: "Come back after `Retry-After`; [operations.md](operations.md#when-the-machine-runs-short)",
    errors.EngineUnavailable: "Come back after `Retry-After`; [engine.md](engine.md)",
    errors.EngineDied: "Send it again; a stream that had begun is not taken up",
    errors.RequestQuarantined: "Do not send it again: [engine.md](engine.md)",
    errors.EngineFailed: "Look into the node's log, which names the failure",
    errors.EngineBusy: "Come back after `Retry-After`",
    errors.UpstreamError: "Send it again; the node has tried what it may",
    errors.UpstreamConnect: "The operator's: name, address or network of the provider",
    errors.UpstreamPoolFull: "Raise `providers.NAME.max_connections`",
    errors.UpstreamTls: "The operator's: the provider's certificate, or `ca_file`",
    errors.UpstreamTimeout: "Send it again, or raise `providers.NAME.clocks`",
    errors.UpstreamConnectTimeout: "The operator's: address or network of the provider",
    errors.UpstreamTruncated: "Send it again",
    errors.UpstreamRateLimited: "Come back after `Retry-After`; another provider would share the load",
    errors.UpstreamQuota: "The operator's: pay the provider",
    errors.UpstreamAuth: "The operator's: the provider's key",
    errors.UpstreamRejected: "Read the message: it is what the provider said of the request",
}


def page(text: str) -> str:
    """`text` with its tables as they should be. Exits where it has not a place for each of them, once."""
    node = Node(Settings(), environ={"SPILLWAY_ADMIN_KEY": "only-to-build-the-node"})
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "endpoints": lambda: _endpoints(node),
        "admin-endpoints": lambda: _admin_endpoints(node),
        "wishes": _wishes,
        "common-fields": lambda: _fields("ChatRequest", _COMMON, vllm=False),
        "chat-fields": lambda: _fields("ChatRequest", _own("ChatRequest"), vllm=None),
        "completion-fields": lambda: _fields("CompletionRequest", _own("CompletionRequest"), vllm=None),
        "vllm-fields": lambda: _fields("ChatRequest", _COMMON, vllm=True),
        "refused-fields": _refused,
        "headers": _headers,
        "errors": _errors,
        "limits": _limits,
    }
    places = [found[2] for found in _WRITTEN.finditer(text)]
    if wrong := {name for name in {*tables, *places} if places.count(name) != 1 or name not in tables}:
        sys.exit(f"docs/api.md: exactly one `<!-- NAME -->` ... `<!-- end -->` is to be there for {sorted(wrong)}")
    return _WRITTEN.sub(lambda found: found[1] + "".join(f"{row}\n" for row in tables[found[2]]()) + found[3], text)


def _endpoints(node: Node) -> Iterator[str]:
    async def document() -> dict[str, Any]:
        transport = httpx.ASGITransport(node.asgi())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            found: dict[str, Any] = (await client.get("/openapi.json")).json()
            return found

    yield from ("| endpoint | what |", "|---|---|")
    for path, operations in sorted(
        asyncio.run(document())["paths"].items(), key=lambda each: not each[0].startswith("/v1")
    ):
        for method, operation in operations.items():
            what = operation.get("description") or f"{operation['summary']}. See below."
            yield f"| `{method.upper()} {path}` | {_line(what)} |"
    yield from (f"| `GET {path}` | {what} |" for path, what in _WHERE.items())


def _admin_endpoints(node: Node) -> Iterator[str]:
    yield from ("| endpoint | what |", "|---|---|")
    for route in node.admin_asgi().app.routes:
        assert isinstance(route, Route)
        if route.path in _WHERE or not route.path.startswith("/dashboard/"):
            (method,) = (route.methods or set()) - {"HEAD"}
            yield f"| `{method} {route.path}` | {_WHERE.get(route.path) or _line(route.endpoint.__doc__)} |"


def _wishes() -> Iterator[str]:
    yield from ("| in `spillway` | as a header | type | meaning |", "|---|---|---|---|")
    for name, schema in components()["SpillwayFields"]["properties"].items():
        yield f"| `{name}` | `x-spillway-{name.replace('_', '-')}` | {_type(schema)} | {_WISHES[name]} |"
    assert SpillwayFields.__struct_config__.forbid_unknown_fields, "the page says that others are refused"


def _own(name: str) -> frozenset[str]:
    return frozenset(components()[name]["properties"]) - _COMMON | {"logprobs", "echo"}


def _fields(name: str, which: frozenset[str], *, vllm: bool | None) -> Iterator[str]:
    yield from ("| field | type |", "|---|---|")
    schema = components()[name]
    for field, kind in schema["properties"].items():
        if field not in which or field == "spillway" or (vllm is not None and vllm != _is_vllms(field)):
            continue
        if vllm is not None and field in ("logprobs", "echo"):
            continue  # of another type at each of the two
        yield f"| `{field}`{', required' if field in schema.get('required', ()) else ''} | {_type(kind)} |"


def _is_vllms(field: str) -> bool:
    return field in VLLM_ONLY or field in ("prompt_logprobs", "structured_outputs")


def _refused() -> Iterator[str]:
    yield from ("| field | why |", "|---|---|")
    yield from (f"| `{name}` | {why} |" for name, why in REFUSED.items())


def _headers() -> Iterator[str]:
    yield from ("| header | what |", "|---|---|")
    yield from (f"| `{name}` | {what} |" for name, what in ANSWER_HEADERS.items())


def _errors() -> Iterator[str]:
    yield from ("| status | `code` | `type` | when | what to do |", "|---|---|---|---|---|")
    sent = [each for each in _family(SpillwayError) if each not in _NEVER_SENT]
    for each in sorted(sent, key=lambda kind: (kind.status, kind.code or "")):
        code = "null" if each.code is None else f"`{each.code}`"
        when = _line(each.__doc__).rstrip(".") if each is not SpillwayError else "The node failed on this request"
        again = (
            " (`x-should-retry: false`)" if each.should_retry is False and each.fault is not errors.Fault.CLIENT else ""
        )
        yield f"| {each.status} | {code} | `{each.type}` | {when} | {_WHAT_TO_DO[each]}{again} |"


def _limits() -> Iterator[str]:
    api = ApiSettings()
    yield from ("| what | at most |", "|---|---|")
    yield f"| the body (`api.max_body_bytes`) | {api.max_body_bytes >> 20} MiB |"
    yield f"| levels, and containers, of its JSON | {MAX_DEPTH}, and {MAX_CONTAINERS:,} |"
    limits = DEFAULT_LIMITS
    yield f"| images and sounds | {limits.max_media_parts}, of {limits.max_media_bytes >> 20} MiB each |"
    yield f"| answers to one prompt (`n`) | {DEFAULT_LIMITS.max_choices} |"
    yield f"| prompts of one completions request | {DEFAULT_LIMITS.max_prompts} |"


def _family(kind: type[SpillwayError]) -> Iterator[type[SpillwayError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _family(each)


def _line(text: str | None) -> str:
    """The first sentence or paragraph of a docstring on one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def _type(schema: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in schema:
        return f"{_object(schema['$ref'].rpartition('/')[2])}"
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"] if each is not None)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"] if each.get("type") != "null"))
    match schema.get("type"):
        case "array":
            items = schema.get("items", {})
            most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
            return f"list of {_type(items)}{most}" if items else f"list{most}"
        case "object":
            return "object"
        case "string":
            most = f", at most {schema['maxLength']:,} characters" if "maxLength" in schema else ""
            return f"string{most}"
        case "integer" | "number":
            return f"{schema['type']}{_range(schema)}"
        case str() as other:
            return other
    return "anything"


def _object(name: str) -> str:
    """A named type: its fields, if there are not many."""
    schema = components()[name]
    if "enum" in schema:
        return _type(schema)
    tag = schema.get("properties", {}).get("type", {}).get("enum") or schema.get("properties", {}).get("role", {}).get(
        "enum"
    )
    if tag:
        return f"object (`{tag[0]}`)"
    fields = ", ".join(f"`{field}`" for field in schema.get("properties", ()))
    return f"object: {fields}"


def _range(schema: dict[str, Any]) -> str:
    least, most, above = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMinimum")
    if least is not None and abs(least) >= 2**62:
        return " of 64 bits"
    if above is not None:
        return f" above {above:,g}" + (f", at most {most:,.0f}" if most is not None else "")
    if most is None:
        return f", at least {least:,g}" if least is not None else ""
    return f", {least:,.0f} to {most:,.0f}"


if __name__ == "__main__":
    before = _PAGE.read_text()
    after = page(before)
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if after == before else "docs/api.md is stale: run scripts/write_api_docs.py")
    _PAGE.write_text(after)
