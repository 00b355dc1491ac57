"""The answer cache: exact match over the whole canonical request and its tenant, bounded in bytes and in age."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.backend import Call
from node.money import Usage
from node.routing.values import Residency


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A complete answer as it was sent: SSE frames without ``[DONE]``, or the JSON document.

    `response_id` is the id inside `data`; `cost_text` the ``cost_usd`` value inside it.
    """

    data: bytes
    response_id: str
    cost_text: str
    served_model: str
    usage: Usage

    def as_answer_to(self, call: Call) -> bytes:
        """The same answer under the id of `call`, at no cost.

        Plain byte replacement is safe: the id is random, and inside generated text quotes are escaped, so the
        bytes ``"cost_usd":`` occur only as our own key.
        """
        data = self.data.replace(self.response_id.encode(), call.response_id.encode())
        return data.replace(b'"cost_usd":' + self.cost_text.encode(), b'"cost_usd":0.0')


class ResponseCache(Protocol):
    """Where answers are kept."""

    def get(self, key: bytes) -> CachedAnswer | None:
        """The answer under `key`, if it is there and fresh."""

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep `answer`, if it is small enough."""


def cache_key(call: Call, residency: Residency) -> bytes:
    """SHA-256 over tenant, residency, endpoint, stream form and the body in canonical JSON.

    Residency is part of it so that a pinned request never shares a call in flight with one that may leave.
    """
    parts = (call.tenant, residency.value, call.kind.value, call.stream, call.include_usage, call.model)
    canonical = json.dumps([parts, call.body], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


class MemoryCache:
    """Least recently used out first; nothing older than `ttl_s`; at most `max_bytes` of answers in all."""

    def __init__(self, *, max_bytes: int, max_entry_bytes: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_entry_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, CachedAnswer]] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CachedAnswer | None:
        """The answer under `key`, if it is there and fresh."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires_s, answer = entry
        if self._clock() >= expires_s:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep `answer`, if it is small enough, and forget the least recently used ones that no longer fit."""
        if len(answer.data) > min(self._max_entry_bytes, self._max_bytes):
            return
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (self._clock() + self._ttl_s, answer)
        self.used_bytes += len(answer.data)
        while self.used_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        _, answer = self._entries.pop(key)
        self.used_bytes -= len(answer.data)
