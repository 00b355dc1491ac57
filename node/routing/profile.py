"""What an engine can do: how long its steps take and how much it holds. Measured by `spillway calibrate`, or given.

    step seconds ≈ base + per_decode · (decoding sequences) + per_prefill_token · (prompt tokens in the step)

The form is that of vLLM's continuous batching with chunked prefill: every step serves each decoding sequence once and
fills what is left of its token budget with prompt tokens, first come, first served.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Seconds one engine step takes, by what is in it. All three are at least 0, and `base_s` is more than 0."""

    base_s: float
    per_decode_s: float
    per_prefill_token_s: float

    def step_s(self, decoding: int, prefill_tokens: int) -> float:
        """Seconds for a step with `decoding` sequences and `prefill_tokens` prompt tokens in it."""
        return self.base_s + self.per_decode_s * decoding + self.per_prefill_token_s * prefill_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One engine with one model.

    `max_sequences` run at a time; a step holds at most `max_batched_tokens` tokens (decoding sequences count one
    each); the KV cache holds `kv_tokens`; a sequence (prompt and output) at most `context_tokens`. `source` says
    where the figures come from.
    """

    name: str
    source: str
    step: StepModel
    max_sequences: int
    max_batched_tokens: int
    kv_tokens: int
    context_tokens: int
