"""What providers send, typed, and brought into the one form our clients get.

One set of structs reads chat and text completions, streamed or not: providers mix them up. Unknown fields are
dropped, and what is present, null or absent stays so (`UNSET` is not encoded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from node.backend import Kind

Text = str | None | UnsetType


class Malformed(Exception):
    """Bytes that are not JSON, or JSON in a form that nobody documents."""


class Function(msgspec.Struct, gc=False):
    """A function's name and its arguments as JSON text; some servers send them as an object."""

    name: Text = UNSET
    arguments: str | dict[str, Any] | UnsetType | None = UNSET


class ToolCall(msgspec.Struct, gc=False):
    """A tool call, or a piece of one."""

    index: int | UnsetType | None = UNSET
    id: Text = UNSET
    type: Text = UNSET
    function: Function | UnsetType | None = UNSET


class Message(msgspec.Struct, gc=False):
    """A message, or a piece of one. Content given as parts is joined by `tidy`."""

    role: Text = UNSET
    content: str | list[Any] | UnsetType | None = UNSET
    reasoning_content: Text = UNSET
    reasoning: Text = UNSET
    refusal: Text = UNSET
    tool_calls: list[ToolCall] | UnsetType | None = UNSET
    function_call: Function | UnsetType | None = UNSET


class Choice(msgspec.Struct):
    """One choice of a chunk (`delta`), of an answer (`message`) or of a text completion (`text`)."""

    index: int = 0
    delta: Message | UnsetType | None = UNSET
    message: Message | UnsetType | None = UNSET
    text: Text = UNSET
    logprobs: Any = None
    finish_reason: str | None = None


class Document(msgspec.Struct):
    """A chunk, an answer, an error, or an event of the Responses API (`type`, `delta`, `response`, `output`)."""

    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None
    type: Any = None
    delta: Any = None
    response: Any = None
    output: Any = None
    status: Any = None
    code: Any = None
    message: Any = None
    incomplete_details: Any = None


_decoder: Final = msgspec.json.Decoder(Document)
_encoder: Final = msgspec.json.Encoder()


def decode(data: bytes) -> Document:
    """One JSON document. Raises `Malformed`."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed from error


def encode_choices(choices: Sequence[Choice]) -> bytes:
    """The JSON array of `choices`."""
    return _encoder.encode(choices)


_FINISH: Final = {
    **{same: same for same in ("stop", "length", "tool_calls", "content_filter", "function_call")},
    "max_tokens": "length",
    "max_output_tokens": "length",
    "tool_use": "tool_calls",
    "safety": "content_filter",
    "recitation": "content_filter",
}


def tidy(choice: Choice, kind: Kind, *, streaming: bool) -> None:
    """Bring `choice` into the form of `kind`, in place: its text in the right field, an OpenAI finish reason."""
    if choice.finish_reason is not None:
        # Relays pass on Anthropic's and Google's words, or an empty string for "not yet".
        choice.finish_reason = _FINISH.get(choice.finish_reason.lower(), "stop") if choice.finish_reason else None
    message = choice.delta or choice.message or Message()
    if message.content is not UNSET and isinstance(message.content, list):
        message.content = "".join(_part_text(part) for part in message.content)
    if kind is Kind.COMPLETION:
        choice.text = choice.text or message.content or ""
        choice.delta = choice.message = UNSET
        return
    if choice.text:
        message.content = choice.text
    choice.text = UNSET
    if message.tool_calls:
        for position, call in enumerate(message.tool_calls):
            _tidy_tool_call(call, position, streaming=streaming)
    if streaming:
        choice.delta, choice.message = message, UNSET
        return
    message.role = "assistant"
    if message.content is UNSET:
        message.content = None
    choice.delta, choice.message = UNSET, message


def _tidy_tool_call(call: ToolCall, position: int, *, streaming: bool) -> None:
    if not streaming:
        call.index, call.type = UNSET, "function"
    elif not isinstance(call.index, int):
        call.index = position
    if call.function and isinstance(call.function.arguments, dict):
        call.function.arguments = _encoder.encode(call.function.arguments).decode()


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def content_bytes(choice: Choice) -> int:
    """UTF-8 bytes of everything the model generated in a tidied choice: text, reasoning, refusal, tool calls."""
    if choice.text:
        return _size(choice.text)
    message = choice.delta or choice.message
    if not message:
        return 0
    size = _size(message.content) if isinstance(message.content, str) else 0
    for text in (message.reasoning_content or message.reasoning, message.refusal):
        if text:
            size += _size(text)
    if message.tool_calls:
        size += sum(_function_size(call.function) for call in message.tool_calls)
    if message.function_call:
        size += _function_size(message.function_call)
    return size


def _function_size(function: Function | UnsetType | None) -> int:
    if not function:
        return 0
    arguments = function.arguments
    return (_size(function.name) if function.name else 0) + (_size(arguments) if isinstance(arguments, str) else 0)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
