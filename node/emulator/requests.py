"""A request body as the emulator understands it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

DEFAULT_MAX_TOKENS = 4096


class BadRequest(Exception):
    """The body is not a request this server answers; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client wants. `prompts` are the texts it sent: one per message, or one per completion prompt.

    `tool` is the function that must be called (name and parameter schema); `schema` is set when JSON must be
    answered, and empty when any object will do.
    """

    chat: bool
    model: str
    prompts: tuple[str, ...]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    max_tokens: int
    choices: int
    stop: tuple[str, ...]
    tool: tuple[str, dict[str, Any]] | None
    schema: dict[str, Any] | None
    fields: tuple[str, ...]
    digest: str
    repeatable: bool


def parse(body: dict[str, Any], *, chat: bool) -> Ask:
    """Read a chat or completion request. Raises `BadRequest`."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model is required", "model")
    prompts = _messages(body) if chat else _prompts(body)
    n = _whole(body, "n", 1, 1, 128)
    limit_field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    stream = _flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise BadRequest("stream_options only goes with stream", "stream_options")
    return Ask(
        chat=chat,
        model=model,
        prompts=prompts,
        prompt_tokens=count_prompt_tokens(body, prompts),
        stream=stream,
        include_usage=bool(options and options.get("include_usage")),
        max_tokens=_whole(body, limit_field, DEFAULT_MAX_TOKENS, 1, 1_000_000),
        choices=n if chat else n * len(prompts),
        stop=_stop(body.get("stop")),
        tool=_tool(body) if chat else None,
        schema=_schema(body),
        fields=tuple(sorted(body)),
        digest=_digest(body),
        repeatable=body.get("seed") is not None or body.get("temperature") == 0,
    )


def count_prompt_tokens(body: dict[str, Any], prompts: tuple[str, ...]) -> int:
    """The emulator's rule: three tokens per prompt or message, and one per four bytes of its text, rounded up.

    Tool definitions and response schemas count as text: they are billed input everywhere.
    """
    declared = [json.dumps(body[name]) for name in ("tools", "response_format") if body.get(name)]
    return sum(3 + -(-len(text.encode("utf-8", "replace")) // 4) for text in (*prompts, *declared))


def _digest(body: dict[str, Any]) -> str:
    """What makes two requests the same one: everything but whether the answer is streamed."""
    asked = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _messages(body: dict[str, Any]) -> tuple[str, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a non-empty list", "messages")
    texts = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("a message is an object with a role", f"messages[{index}]")
        parts = [_text(message.get("content"))]
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"]))
        texts.append("".join(parts))
    return tuple(texts)


def _prompts(body: dict[str, Any]) -> tuple[str, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, str) for part in prompt):
            return tuple(prompt)
        if all(isinstance(part, int) for part in prompt):
            return (" ".join(map(str, prompt)),)
    raise BadRequest("prompt must be a text, texts or token ids", "prompt")


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part["text"] if isinstance(part, dict) and isinstance(part.get("text"), str) else json.dumps(part)
            for part in content
        )
    return json.dumps(content)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise BadRequest(f"{name} must be true or false", name)
    return bool(value)


def _whole(body: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}", name)
    return value


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest("stop must be a text or a list of texts", "stop")
    return tuple(stops)


def _tool(body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The function to call: the one `tool_choice` names, or the first when it says "required"."""
    choice = body.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return None
    try:
        functions = {tool["function"]["name"]: tool["function"] for tool in body.get("tools") or ()}
        name = next(iter(functions)) if choice == "required" else choice["function"]["name"]
        return name, functions[name].get("parameters") or {}
    except (TypeError, KeyError, AttributeError, StopIteration) as error:
        raise BadRequest("tool_choice names no function in tools", "tool_choice") from error


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        schema = wanted["json_schema"].get("schema")
        if isinstance(schema, dict):
            return schema
    raise BadRequest("response_format is not one this server knows", "response_format")
