"""Encoding of OpenAI answers shared by all backends: SSE frames, the usage object, error events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from node.money import Usage, nano_to_usd_text

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


def frame(document: bytes) -> bytes:
    """One SSE frame around an encoded JSON document."""
    return b"data: " + document + b"\n\n"


def usage_object(usage: Usage, cost_nano_usd: int, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The OpenAI `usage` object with Spillway's `cost_usd` in it.

    `details` adds what a backend reported beside the three counts (`prompt_tokens_details`, ...).
    `cost_usd` is written from integers, so no digit is lost.
    """
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        **(details or {}),
        "cost_usd": msgspec.Raw(nano_to_usd_text(cost_nano_usd).encode()),
    }


def encode(document: Mapping[str, Any]) -> bytes:
    """Compact JSON."""
    return _encoder.encode(document)
