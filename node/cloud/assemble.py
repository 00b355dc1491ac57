"""Streamed choices put together into whole ones, for a provider that streams where one document was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import UnsetType

from node.backend import Kind
from node.cloud.wire import Choice, Function, Message, ToolCall, tidy


def assemble(pieces: Iterable[Choice], kind: Kind) -> list[Choice]:
    """One whole choice per index, in order of index, from tidied streaming choices in order of arrival."""
    whole: dict[int, Choice] = {}
    for piece in pieces:
        choice = whole.setdefault(piece.index, Choice(index=piece.index, delta=Message(), text=""))
        if piece.text:
            choice.text = (choice.text or "") + piece.text
        if piece.delta and choice.delta:
            _join(choice.delta, piece.delta)
        if piece.logprobs is not None:
            choice.logprobs = _join_logprobs(choice.logprobs, piece.logprobs)
        choice.finish_reason = piece.finish_reason or choice.finish_reason
    choices = [whole[index] for index in sorted(whole)]
    for choice in choices:
        tidy(choice, kind, streaming=False)
    return choices


def _join(message: Message, piece: Message) -> None:
    for name in ("content", "reasoning_content", "reasoning", "refusal"):
        text = getattr(piece, name)
        if text:
            setattr(message, name, (getattr(message, name) or "") + text)
    for call in piece.tool_calls or ():
        calls = message.tool_calls = message.tool_calls or []
        _join_function(_call_at(calls, call), call.function)
    if piece.function_call:
        message.function_call = message.function_call or Function(name="", arguments="")
        _join_into(message.function_call, piece.function_call)


def _call_at(calls: list[ToolCall], piece: ToolCall) -> ToolCall:
    for call in calls:
        if call.index == piece.index and (not piece.id or call.id == piece.id):
            return call
    calls.append(ToolCall(index=piece.index, id=piece.id or None, function=Function(name="", arguments="")))
    return calls[-1]


def _join_function(call: ToolCall, piece: Function | UnsetType | None) -> None:
    if piece and call.function:
        _join_into(call.function, piece)


def _join_into(function: Function, piece: Function) -> None:
    if piece.name:
        function.name = function.name or piece.name  # some relays repeat it with every piece
    if isinstance(piece.arguments, str):
        function.arguments = (function.arguments if isinstance(function.arguments, str) else "") + piece.arguments


def _join_logprobs(before: Any, piece: Any) -> Any:
    """Log probabilities are objects of lists, one entry per token; the lists are laid end to end."""
    if not isinstance(before, dict) or not isinstance(piece, dict):
        return piece
    return {
        key: before[key] + value if isinstance(value, list) and isinstance(before.get(key), list) else value
        for key, value in (before | piece).items()
    }
