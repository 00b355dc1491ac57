"""The Responses API's events and documents, read as chat choices: HolySheep sends them in answer to chat calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from node.cloud.wire import Choice, Function, Message, ToolCall

ENDINGS: Final = frozenset({"response.completed", "response.incomplete"})
FAILURES: Final = frozenset({"response.failed", "error"})


def delta_choice(kind: object, delta: object) -> Choice | None:
    """The choice that a delta event of this `type` adds to, or None for an event without text."""
    if not isinstance(delta, str):
        return None
    match kind:
        case "response.output_text.delta":
            return Choice(delta=Message(content=delta))
        case "response.refusal.delta":
            return Choice(delta=Message(refusal=delta))
        case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
            return Choice(delta=Message(reasoning_content=delta))
        case _:
            return None


def closing_choice(response: Mapping[str, Any], *, text_seen: bool) -> Choice:
    """The last choice, from a whole response: its tool calls, its text unless that has come in deltas, its end."""
    message = Message()
    items = [item for item in _list(response.get("output")) if isinstance(item, dict)]
    calls = [_tool_call(position, item) for position, item in enumerate(_of(items, "function_call"))]
    if calls:
        message.tool_calls = calls
    text = "".join(part["text"] for item in _of(items, "message") for part in _texts(item))
    if text and not text_seen:
        message.content = text
    finish = "tool_calls" if calls else "stop"
    why = response.get("incomplete_details")
    if response.get("status") == "incomplete" or isinstance(why, dict):
        reason = why.get("reason") if isinstance(why, dict) else None
        finish = "content_filter" if reason == "content_filter" else "length"
    return Choice(delta=message, finish_reason=finish)


def _of(items: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    return (item for item in items if item.get("type") == kind)


def _texts(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (p for p in _list(item.get("content")) if isinstance(p, dict) and isinstance(p.get("text"), str))


def _tool_call(position: int, item: dict[str, Any]) -> ToolCall:
    name, arguments, identity = item.get("name"), item.get("arguments"), item.get("call_id", item.get("id"))
    return ToolCall(
        index=position,
        id=identity if isinstance(identity, str) else None,
        type="function",
        function=Function(
            name=name if isinstance(name, str) else "",
            arguments=arguments if isinstance(arguments, str) else "{}",
        ),
    )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
