"""What the emulator says: seeded words that own up to being emulated, tool calls and JSON that fit their schema.

One piece is one token: a word with the blank before it, or up to four characters of JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from random import Random
from typing import Any

from node.emulator.requests import Ask

_OPENING = (
    "Emulated answer — no model wrote this: it comes from Spillway's built-in cloud emulator. Words to fill it follow."
)
_SUBJECTS = ("The queue", "A busy card", "The scheduler", "Each request", "The naïve plan", "A late token", "The cloud")
_VERBS = ("waits for", "overtakes", "measures", "pays for", "remembers", "prefers", "forwards")
_OBJECTS = (
    "the next batch",
    "a shorter prompt",
    "its own deadline",
    "the café across the road",
    "every spare slot",
    "a quiet hour",
)
_ENDINGS = (
    "without complaint.",
    "before noon.",
    "at a fair price.",
    "while others watch.",
    "as Zürich sleeps.",
    "one step at a time.",
)
_JSON_PIECE_CHARS = 4
_MAX_DEPTH = 12
_MAX_VALUES = 1000


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice: its pieces in order, the function called (if any), and how it ends."""

    pieces: tuple[str, ...]
    function: str | None
    finish_reason: str

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that will be said to one request."""

    choices: tuple[Choice, ...]
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        """One per piece, over all choices."""
        return sum(len(choice.pieces) for choice in self.choices)

    @property
    def steps(self) -> int:
        """How many token times the longest choice takes; choices are generated side by side."""
        return max(len(choice.pieces) for choice in self.choices)


def write(ask: Ask, random: Random, *, median_tokens: float, sigma: float) -> Answer:
    """The answer to `ask`, the same for the same generator state."""
    return Answer(
        tuple(_choice(ask, random, median_tokens, sigma) for _ in range(ask.choices)),
        ask.prompt_tokens,
    )


def _choice(ask: Ask, random: Random, median_tokens: float, sigma: float) -> Choice:
    if ask.tool is not None:
        name, parameters = ask.tool
        return _cut(_split_json(json.dumps(sample(parameters or {"type": "object"}, random))), ask, name, "tool_calls")
    if ask.schema is not None:
        value = sample(ask.schema, random) if ask.schema else {"emulated": True, "answer": _sentence(random)}
        return _cut(_split_json(json.dumps(value, ensure_ascii=False)), ask, None, "stop")
    length = max(1, round(median_tokens * math.exp(sigma * random.gauss())))
    words = _OPENING.split()
    while len(words) < length:
        words += _sentence(random).split()
    text = " ".join(words[:length])
    ends = [at for at in (text.find(stop) for stop in ask.stop) if at >= 0]
    if ends:
        text = text[: min(ends)]
    first, *rest = text.split(" ")
    return _cut([first, *(f" {word}" for word in rest)], ask, None, "stop")


def _cut(pieces: list[str], ask: Ask, function: str | None, finish_reason: str) -> Choice:
    if len(pieces) > ask.max_tokens:
        return Choice(tuple(pieces[: ask.max_tokens]), function, "length")
    return Choice(tuple(pieces), function, finish_reason)


def _sentence(random: Random) -> str:
    return " ".join(random.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS))


def _split_json(text: str) -> list[str]:
    return [text[at : at + _JSON_PIECE_CHARS] for at in range(0, len(text), _JSON_PIECE_CHARS)]


def sample(schema: dict[str, Any], random: Random) -> Any:
    """A value that fits the usual parts of a JSON schema: types, enum, const, bounds, `$ref` within the document.

    A schema that makes no sense gets an empty object, and one without end is cut off with nulls.
    """
    try:
        return _Sampler(schema, random).value(schema, 0)
    except (TypeError, ValueError, LookupError, ArithmeticError):
        return {}


class _Sampler:
    def __init__(self, root: dict[str, Any], random: Random) -> None:
        self._root = root
        self._random = random
        self._left = _MAX_VALUES

    def value(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._left < 0:
            return None
        if "$ref" in schema:
            return self.value(self._resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._random.choice(schema["enum"])
        for combination in ("anyOf", "oneOf", "allOf"):
            if schema.get(combination):
                return self.value(schema[combination][0], depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = kind[0]
        if kind == "object":
            properties = schema.get("properties") or {}
            return {name: self.value(part, depth + 1) for name, part in properties.items()}
        if kind == "array":
            size = max(int(schema.get("minItems", 0)), min(2, int(schema.get("maxItems", 2))))
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(min(size, _MAX_VALUES))]
        if kind in ("integer", "number"):
            low = schema.get("minimum", 0)
            return self._random.randint(math.ceil(low), math.floor(schema.get("maximum", low + 9)))
        if kind == "boolean":
            return self._random.random() < 0.5
        return None if kind == "null" else f"emulated {self._random.choice(_OBJECTS)}"

    def _resolve(self, reference: Any) -> Any:
        found: Any = self._root
        for part in str(reference).removeprefix("#").strip("/").split("/"):
            found = found.get(part) if isinstance(found, dict) and part else found
        return found
