"""What an engine can do: how long its steps take and how much it holds. Measured by `spillway calibrate`, or given.

    step seconds ≈ base + per_decode · (decoding sequences) + per_prefill_token · (prompt tokens in the step)
                   + per_kv_token · (tokens in the KV cache as it begins)
                   + per_prefill_pair · (prompt tokens in the step, each with all before it in its prompt)

The form is that of vLLM's continuous batching with chunked prefill: every step serves each decoding sequence once and
fills what is left of its token budget with prompt tokens, first come, first served. The last two are
attention, which reads all that came before. Where they are 0 (what the node learns as it goes, and the derived
profiles), that is part of `per_decode` and `per_prefill_token`, for sequences of their usual length.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Seconds one engine step takes, by what is in it. All terms are at least 0, and `base_s` is more than 0."""

    base_s: float
    per_decode_s: float
    per_prefill_token_s: float
    per_kv_token_s: float = 0.0
    per_prefill_pair_s: float = 0.0

    def step_s(self, decoding: int, prefill_tokens: int, kv_tokens: float = 0.0, prefill_pairs: float = 0.0) -> float:
        """Seconds for a step with `decoding` sequences and `prefill_tokens` prompt tokens in it."""
        return (
            self.base_s
            + self.per_decode_s * decoding
            + self.per_prefill_token_s * prefill_tokens
            + self.per_kv_token_s * kv_tokens
            + self.per_prefill_pair_s * prefill_pairs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One engine with one model.

    `max_sequences` run at a time; a step holds at most `max_batched_tokens` tokens (decoding sequences count one
    each); the KV cache holds `kv_tokens`; a sequence (prompt and output) at most `context_tokens`. With `steps_ahead`
    1 a step is put together while the one before it still runs, and what comes meanwhile misses it (vLLM's asynchronous
    scheduling, which it has on GPUs but not on CPUs). `source` says where the figures come from.
    """

    name: str
    source: str
    step: StepModel
    max_sequences: int
    max_batched_tokens: int
    kv_tokens: int
    context_tokens: int
    steps_ahead: int = 0
