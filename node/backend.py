"""The one seam between the node and whatever generates tokens: a request in, chunks out.

`open()` is an async generator; closing it (`aclose()`) aborts the work on the other side. The API never asks
which kind of backend it holds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from node.money import NO_BUDGET, Budget, Usage
from node.tracing import RequestTrace


class Kind(StrEnum):
    """Which OpenAI endpoint a call came in on."""

    CHAT = "chat"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One validated request, ready for any backend.

    `body` holds only known OpenAI (and vLLM) fields, already checked by `node.api`; Spillway's own fields are
    taken out. `model` is the catalogue name the client asked for, and is what answers are labelled with.
    `include_usage` tells whether a stream ends in a usage frame. `max_output_tokens` is the effective cap per
    choice (the client's, or the default put in its place). `created_s` is Unix time, `tenant` the caller's name,
    `budget` what its key may spend, `cache_salt` what keeps its prompts in the engine's prefix cache to itself.
    `trace` is None unless the request is traced, and `traceparent` names the attempt for a backend's own trace.
    """

    request_id: str
    kind: Kind
    model: str
    body: dict[str, Any]
    stream: bool
    include_usage: bool
    max_output_tokens: int
    created_s: int
    tenant: str
    budget: Budget = NO_BUDGET
    cache_salt: str | None = field(default=None, repr=False)
    trace: RequestTrace | None = field(default=None, repr=False, compare=False)
    traceparent: str | None = None

    @property
    def response_id(self) -> str:
        """The OpenAI object id of the answer."""
        return f"{'chatcmpl' if self.kind is Kind.CHAT else 'cmpl'}-{self.request_id}"


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Encoded bytes plus the few facts the node needs, so that nobody encodes or parses twice.

    For a stream `data` is zero or more whole SSE frames (``data: {...}\\n\\n``, never ``[DONE]``); for a call
    without streaming it is the one JSON document of the answer, and there is exactly one chunk.
    `has_content` is true when the data holds generated text, reasoning or a tool call: role-only, usage and empty
    frames are not content. `output_tokens` counts all tokens so far. `usage` is set on the last chunk, and
    only there; a stream that ends without it was cut short and must have raised instead.
    """

    data: bytes
    has_content: bool = False
    output_tokens: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None


class Backend(Protocol):
    """Something that can serve a call: the local engine, a cloud model bound to its permit, a test double."""

    @property
    def name(self) -> str:
        """What `x-spillway-backend` says: ``local``, or the provider's name."""

    @property
    def served_model(self) -> str:
        """The model that really answers, for `x-spillway-model`."""

    def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. Raises `node.errors.SpillwayError` subclasses only; closing aborts the work."""

    def usage_so_far(self) -> Usage | None:
        """What the call has used up to now, for settling one that was cut. None: the backend does not count."""
