"""What a client can tell from one streamed answer: when content came, how far apart, and how it ended."""

import json
from dataclasses import dataclass, field
from typing import Any

_CONTENT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


@dataclass
class StreamMeter:
    """Fed with bytes as they arrive; a chunk is parsed only while its facts are still wanted.

    Times are seconds of the clock that `feed` is given. Frames that arrive in one read are 0 s apart.
    """

    first_content_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    error: str | None = None
    finished: bool = False
    """`[DONE]` was seen."""
    _rest: bytes = b""
    _last_s: float = 0.0

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes one read from the socket, which may end anywhere inside a frame."""
        *frames, self._rest = (self._rest + data.replace(b"\r", b"")).split(b"\n\n")
        for frame in frames:
            if frame.startswith(b"data:"):
                self._take(frame[5:].strip(), now_s)

    def _take(self, payload: bytes, now_s: float) -> None:
        if payload == b"[DONE]":
            self.finished = True
            return
        if self.first_content_s is not None and b'"usage"' not in payload and b'"error"' not in payload:
            self._content(now_s)  # the hot path: after the first one, a chunk without either key is content
            return
        chunk = json.loads(payload)
        if chunk.get("error"):
            self.error = json.dumps(chunk["error"])
        self.usage = chunk.get("usage") or self.usage
        if any(_has_content(choice) for choice in chunk.get("choices", ())):
            self._content(now_s)

    def _content(self, now_s: float) -> None:
        if self.first_content_s is None:
            self.first_content_s = now_s
        else:
            self.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s


def _has_content(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta.get(name) for name in _CONTENT_FIELDS)
