"""Which backend made which tool call, so that a conversation in the middle of one goes on where it was.

Read off the answers as they pass: a tool call's id is the one thing in it that comes back in the next request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

_MOST = 4096
_KEEP_S = 600.0
_LONGEST_ID = 256
# Inside a generated text a quote is escaped, so this can only be the field itself.
_MARK = b'"tool_calls":[{'
_FRAME = b"data: "

Key = tuple[str, str, str]


class Conversations:
    """Tool calls not answered yet, by caller, model and id: the last 4,096, for ten minutes.

    Some models number their calls instead of drawing an id; of two conversations of one caller that then share one, the
    last to call decides for both, which costs a warm cache and nothing else.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._backends: dict[Key, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._backends)

    def remember(self, tenant: str, model: str, data: bytes, backend: str) -> None:
        """Note the tool calls in a piece of an answer by `backend`: whole SSE frames, or one document."""
        if _MARK not in data:
            return
        until_s = self._clock() + _KEEP_S
        for call_id in _call_ids(data):
            key = (tenant, model, call_id)
            self._backends.pop(key, None)
            self._backends[key] = (backend, until_s)
        while len(self._backends) > _MOST:
            del self._backends[next(iter(self._backends))]

    def backend_for(self, tenant: str, model: str, body: dict[str, Any]) -> str | None:
        """The name of the backend whose tool call this request brings the results of, None where it brings none."""
        messages = body.get("messages")
        if not messages or messages[-1].get("role") != "tool":
            return None
        known = self._backends.get((tenant, model, messages[-1].get("tool_call_id")))
        return known[0] if known is not None and self._clock() < known[1] else None


class _Call(msgspec.Struct, gc=False):
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Message | None = None
    message: _Message | None = None


class _Piece(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


_decoder = msgspec.json.Decoder(_Piece)


def _call_ids(data: bytes) -> list[str]:
    ids = []
    pieces = data.split(b"\n\n") if data.startswith(_FRAME) else [data]
    for piece in pieces:
        if _MARK not in piece:
            continue
        try:
            choices = _decoder.decode(piece.removeprefix(_FRAME)).choices
        except msgspec.DecodeError:
            continue  # passed on as it is; a conversation that may go anywhere is no reason to cut an answer
        for choice in choices:
            message = choice.delta or choice.message
            for call in (message.tool_calls if message else None) or ():
                if call.id and len(call.id) <= _LONGEST_ID:
                    ids.append(call.id)
    return ids
