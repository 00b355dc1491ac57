"""Answers as bytes: per-call templates for plain text, and reading the frames that vLLM's serving objects write."""

from __future__ import annotations

from typing import Any

import msgspec

from node.backend import Call, Kind
from node.money import Usage
from node.sse import encode, frame, usage_object

_text_encoder = msgspec.json.Encoder()
_PREFIX = "data: "


class Template:
    """The frames of one streamed plain-text answer. Only the text between fixed bytes is encoded per frame."""

    def __init__(self, call: Call) -> None:
        chat = call.kind is Kind.CHAT
        self._call = call
        head = _head(call) | {"choices": []}
        # `head` ends in "[]}"; the choice goes between the brackets.
        self._opening = frame(encode(head))[: -len(b"]}\n\n")] + b'{"index":0,'
        self._before_text = self._opening + (b'"delta":{"content":' if chat else b'"text":')
        self._end_of_text = b"}" if chat else b""
        self._after_text = self._end_of_text + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def role(self) -> bytes:
        """The first frame of a chat answer; nothing for a completion."""
        if self._call.kind is not Kind.CHAT:
            return b""
        return self._opening + b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'

    def text(self, text: str) -> bytes:
        """One frame of text."""
        return self._before_text + _text_encoder.encode(text) + self._after_text

    def last(self, text: str, finish_reason: str, stop_reason: int | str | None) -> bytes:
        """The frame that ends the choice, with what text was left."""
        return b"".join(
            (
                self._before_text,
                _text_encoder.encode(text),
                self._end_of_text,
                b',"logprobs":null,"finish_reason":',
                _text_encoder.encode(finish_reason),
                b',"stop_reason":',
                _text_encoder.encode(stop_reason),
                b"}]}\n\n",
            )
        )


def usage_frame(call: Call, usage: Usage, details: dict[str, Any] | None = None) -> bytes:
    """The last frame of a stream whose client asked for usage; nothing for one that did not. Local tokens are free."""
    if not call.include_usage:
        return b""
    return frame(encode(_head(call) | {"choices": [], "usage": usage_object(usage, 0, details)}))


def document(call: Call, text: str, finish_reason: str, stop_reason: int | str | None, usage: Usage) -> bytes:
    """A whole plain-text answer."""
    ending = {"logprobs": None, "finish_reason": finish_reason, "stop_reason": stop_reason}
    if call.kind is Kind.CHAT:
        choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}} | ending
    else:
        choice = {"index": 0, "text": text} | ending
    return encode(_head(call) | {"choices": [choice], "usage": usage_object(usage, 0)})


def _head(call: Call) -> dict[str, Any]:
    if call.kind is Kind.COMPLETION:
        kind = "text_completion"
    else:
        kind = "chat.completion.chunk" if call.stream else "chat.completion"
    return {"id": call.response_id, "object": kind, "created": call.created_s, "model": call.model}


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class WireUsage(msgspec.Struct, gc=False):
    """vLLM's usage object. The details are passed on as they came."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None

    def value(self, cached_tokens: int) -> Usage:
        """The counts, with one that is not among them."""
        return Usage(self.prompt_tokens, self.completion_tokens or 0, cached_tokens=cached_tokens)

    def details(self) -> dict[str, Any]:
        """What was reported beside the counts."""
        details = {
            "prompt_tokens_details": self.prompt_tokens_details,
            "completion_tokens_details": self.completion_tokens_details,
        }
        return {key: value for key, value in details.items() if value is not None}


class WireError(msgspec.Struct, gc=False):
    """vLLM's error object; `code` is an HTTP status."""

    message: str
    code: int
    param: str | None = None


class WireFrame(msgspec.Struct, gc=False):
    """As much of a frame as the node has to know."""

    choices: list[_Choice] = []
    created: int = 0
    model: str = ""
    usage: WireUsage | None = None
    error: WireError | None = None

    @property
    def has_content(self) -> bool:
        """Whether the frame holds generated text, reasoning or a tool call."""
        for choice in self.choices:
            delta = choice.delta
            if choice.text or (delta and (delta.content or delta.reasoning or delta.tool_calls)):
                return True
        return False

    @property
    def finish_reason(self) -> str | None:
        """The last finish reason in the frame."""
        return next((choice.finish_reason for choice in reversed(self.choices) if choice.finish_reason), None)


_frame_decoder = msgspec.json.Decoder(WireFrame)


def read(event: str) -> WireFrame | None:
    """The facts in one SSE event of vLLM's; None for ``[DONE]`` and for comments."""
    if not event.startswith(_PREFIX) or event.startswith("[DONE]", len(_PREFIX)):
        return None
    return _frame_decoder.decode(event[len(_PREFIX) :])


def relabel(event: str, wire: WireFrame, call: Call) -> bytes:
    """The event under our creation time and model name.

    vLLM writes ``id``, ``object``, ``created``, ``model`` and only then anything a client or model chose, so the first
    match is the field itself.
    """
    ours = f'"created":{call.created_s},"model":{_text_encoder.encode(call.model).decode()}'
    theirs = f'"created":{wire.created},"model":{_text_encoder.encode(wire.model).decode()}'
    return event.replace(theirs, ours, 1).encode()
