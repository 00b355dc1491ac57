"""How long a request would take here: a first estimate from the engine's own numbers.

    TTFT ≈ (queued prefill + prompts ahead + own prompt) / prefill rate + one step + wait for a free sequence

The terms are those of llm-d's latency predictor and SMG's least-load score, reduced to what a node measures on
itself without training. A term that has not been measured makes the whole answer unknown.
"""

from __future__ import annotations

from node.routing.values import EngineLoad, Features, QueueLoad


def predict_ttft_s(features: Features, engine: EngineLoad, queue: QueueLoad, *, feed_ahead: int) -> float | None:
    """Seconds from now to the request's first local token, or None while the engine is too cold to tell.

    `queue` is what stands before this request. The wait for a slot is (sequences that must finish first) over
    the measured finishing rate; with a slot free it is zero.
    """
    if engine.prefill_tokens_per_s is None or engine.step_s is None:
        return None
    prefill_tokens = engine.queued_prefill_tokens + queue.prompt_tokens_ahead + features.prompt_tokens_estimate
    must_finish = engine.in_flight + queue.sequences_ahead + features.choices - (engine.max_sequences + feed_ahead)
    slot_wait_s = 0.0
    if must_finish > 0:
        if not engine.sequences_per_s:
            return None
        slot_wait_s = must_finish / engine.sequences_per_s
    return slot_wait_s + prefill_tokens / engine.prefill_tokens_per_s + engine.step_s


def predict_total_s(features: Features, engine: EngineLoad, ttft_s: float) -> float | None:
    """Seconds from now to the last local token if the answer runs to its cap: TTFT plus one step per token."""
    if engine.step_s is None:
        return None
    return ttft_s + (features.max_output_tokens - 1) * engine.step_s
