"""Encoded OpenAI documents and events for one answer. Every piece is encoded once; nothing is parsed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from node.emulator.answers import Answer, Choice

DONE = b"data: [DONE]\n\n"


def encode(document: Any) -> bytes:
    """Compact JSON in UTF-8, non-ASCII characters unescaped."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def event(document: Any, *, name: str | None = None) -> bytes:
    """One SSE event around a JSON document."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode(document) + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """How answers to one call are written. The last four fields exist for switches that get them wrong."""

    id: str
    model: str
    created: int
    chat: bool
    object: str | None = None
    with_choices: bool = True
    with_finish: bool = True
    changing_ids: bool = False

    def role(self, answer: Answer) -> bytes:
        """The events before any text: a role for each choice (completions have none)."""
        if not self.chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._event(0, [self._delta(i, delta)]) for i in range(len(answer.choices)))

    def steps(self, answer: Answer) -> list[tuple[bytes, int]]:
        """The events of each token time and how many tokens they carry; choices advance side by side."""
        columns = [self._pieces(index, choice) for index, choice in enumerate(answer.choices)]
        rows = [[column[step] for column in columns if step < len(column)] for step in range(answer.steps)]
        return [(b"".join(row), len(row)) for row in rows]

    def finish(self, answer: Answer) -> bytes:
        """The events that carry each choice's finish reason."""
        return b"".join(
            self._event(choice_index + 1, [self._delta(choice_index, {}, self._reason(choice))])
            for choice_index, choice in enumerate(answer.choices)
        )

    def usage(self, usage: Mapping[str, Any] | None) -> bytes:
        """The usage event at the end of a stream."""
        return b"" if usage is None else self._event(-1, [], usage)

    def text_with_usage(self, text: str, usage: Mapping[str, Any]) -> bytes:
        """An event that has both text and usage."""
        return self._event(-2, [self._delta(0, {"content": text})], usage)

    def document(self, answer: Answer, usage: Mapping[str, Any] | None, latency_ms: int) -> bytes:
        """The whole answer as one JSON document."""
        document = self._envelope(0, streamed=False) | {"latency_ms": latency_ms}
        if self.with_choices:
            document["choices"] = [self._whole(index, choice) for index, choice in enumerate(answer.choices)]
        if usage is not None:
            document["usage"] = usage
        return encode(document)

    def _pieces(self, index: int, choice: Choice) -> list[bytes]:
        if self.changing_ids or not self.with_choices:
            return [
                self._event(step, [self._delta(index, self._content(piece, choice, step))])
                for step, piece in enumerate(choice.pieces)
            ]
        # All events of a choice differ in one string only, so the rest is encoded once.
        mark = "\0piece\0"
        template = self._event(1, [self._delta(index, self._content(mark, choice, 1))])
        before, after = template.split(encode(mark))
        encoded = [before + encode(piece) + after for piece in choice.pieces]
        if choice.function is not None:
            encoded[0] = self._event(0, [self._delta(index, self._content(choice.pieces[0], choice, 0))])
        return encoded

    def _content(self, piece: str, choice: Choice, step: int) -> dict[str, Any]:
        if choice.function is None:
            return {"content": piece}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": piece}}
        if step == 0:
            call = {"index": 0, "id": self._call_id(), "type": "function"} | {
                "function": {"name": choice.function, "arguments": piece}
            }
        return {"tool_calls": [call]}

    def _call_id(self) -> str:
        return f"call_{self.id.rpartition('-')[2]}"

    def _reason(self, choice: Choice) -> str | None:
        return choice.finish_reason if self.with_finish else None

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        if self.chat:
            return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {"index": index, "text": delta.get("content", ""), "logprobs": None, "finish_reason": reason}

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        if not self.chat:
            return self._delta(index, {"content": choice.text}, self._reason(choice))
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.function is not None:
            function = {"name": choice.function, "arguments": choice.text}
            message |= {"content": None}
            message["tool_calls"] = [{"id": self._call_id(), "type": "function", "function": function}]
        return {"index": index, "message": message, "logprobs": None, "finish_reason": self._reason(choice)}

    def _event(self, serial: int, choices: list[dict[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        document = self._envelope(serial, streamed=True)
        if self.with_choices:
            document["choices"] = choices
        if usage is not None:
            document["usage"] = usage
        return event(document)

    def _envelope(self, serial: int, *, streamed: bool) -> dict[str, Any]:
        usual = ("chat.completion.chunk" if streamed else "chat.completion") if self.chat else "text_completion"
        return {
            "id": f"{self.id}-{serial}" if self.changing_ids else self.id,
            "object": self.object or usual,
            "created": self.created,
            "model": self.model,
        }


def responses_events(frames: Frames, answer: Answer) -> list[tuple[bytes, int]]:
    """The answer as events of the Responses API, with the tokens each carries."""
    choice = answer.choices[0]
    envelope = {"id": frames.id, "object": "response", "model": frames.model}
    created = {"type": "response.created", "response": envelope | {"status": "in_progress", "output": []}}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": choice.text}]}
    usage = {
        "input_tokens": answer.prompt_tokens,
        "output_tokens": len(choice.pieces),
        "total_tokens": answer.prompt_tokens + len(choice.pieces),
    }
    completed = {
        "type": "response.completed",
        "response": envelope | {"status": "completed", "output": [message], "usage": usage},
    }
    deltas = [{"type": "response.output_text.delta", "output_index": 0, "delta": piece} for piece in choice.pieces]
    return [
        (event(created, name="response.created"), 0),
        *((event(delta, name="response.output_text.delta"), 1) for delta in deltas),
        (event(completed, name="response.completed"), 0),
    ]


def first_choice_only(answer: Answer) -> Answer:
    """The answer with one choice, for forms that cannot hold more."""
    return replace(answer, choices=answer.choices[:1])
