"""How long a request would take here: a look ahead over what runs and what waits, from the engine's own numbers.

    prefill = half a step if one is under way + steps · (base + per_decode · decoding) + per_prefill_token · T
    T       = prompt tokens handed to the engine and not computed (less half a fed step where others wait ahead)
              + those ahead in the node's queue + its own
    steps   = T / tokens per step, at least one: with others ahead in the queue what a step is fed (`feed_tokens`), else
              what one holds beside those that decode
    TTFT    = prefill, or if a sequence or KV cache has to be freed first the longer of prefill and wait + its own step
            + what a first token takes beside its steps (`first_token_s`: to the engine, back, and into text)
    wait    = the longer of: sequences missing / sequences finishing per second, and cache missing / cache freed per
              second, where a request may fill the cache up to its `kv_share`

The terms are those of vLLM's scheduler: prompts are computed first come, first served, in what a step's token budget
leaves. A term that has not been measured makes the whole answer unknown. This is the likely value: what is to be added
to be seldom wrong (the observer's slack, `Limits.wait_doubt`, work that overtakes) is the policy's part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.routing.values import EngineLoad, Features, Limits, QueueLoad

_LEAST_FEED_TOKENS = 512.0  # in a step however long it takes: below that the fixed part of steps eats the engine
_PINNED_LEAVES = 0.33  # of what others leave free in the KV cache, for what runs to grow into
_DEFAULTS = Limits()


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds from now to the first local token, the likely value.

    `wait_s` of them are for a sequence or KV cache to be freed.
    """

    ttft_s: float
    wait_s: float


def kv_share(features: Features, limits: Limits) -> float:
    """The share of the KV cache that may be filled, the request included.

    One that cannot leave may fill two thirds of what others have to leave free, too.
    """
    return limits.kv_share if features.may_leave else 1.0 - (1.0 - limits.kv_share) * _PINNED_LEAVES


def feed_tokens(engine: EngineLoad, limits: Limits) -> float:
    """Prompt tokens in a step that takes `limits.feed_s`, at least a few and at most what one holds."""
    most = float(max(1, engine.max_batched_tokens - engine.running))
    step = engine.step
    if step is None or step.per_prefill_token_s <= 0.0:
        return most
    room_s = limits.feed_s - step.step_s(engine.running, 0)
    return min(most, max(_LEAST_FEED_TOKENS, room_s / step.per_prefill_token_s))


def predict_ttft_s(
    features: Features, engine: EngineLoad, queue: QueueLoad, limits: Limits = _DEFAULTS
) -> Forecast | None:
    """When the request's first local token is likely to come.

    None while the engine is too cold to tell. `queue` is what stands before the request.
    """
    step = engine.step
    if step is None:
        return None
    wait_s = _wait_s(features, engine, queue, limits)
    if wait_s is None:
        return None
    handed = float(engine.queued_prefill_tokens + queue.entering_tokens)
    if queue.sequences_ahead:
        # What the step under way computes counts until it ends, and half of that is done on average.
        handed -= 0.5 * min(handed, feed_tokens(engine, limits))
    tokens = handed + queue.prompt_tokens_ahead + features.uncached_tokens_estimate * features.choices
    # What is computed ahead of it will decode beside it; half of them do so on average.
    decoding = min(engine.max_sequences, engine.running + queue.sequences_ahead / 2)
    per_step = feed_tokens(engine, limits) if queue.prompt_tokens_ahead else engine.max_batched_tokens - decoding
    steps = max(1, math.ceil(tokens / max(1.0, per_step)))
    # A step under way has to end first: half of one on average, if there is one.
    under_way_s = 0.5 * step.step_s(engine.running, 0) if engine.running else 0.0
    prefill_s = under_way_s + steps * (step.base_s + step.per_decode_s * decoding) + step.per_prefill_token_s * tokens
    if wait_s > 0.0:
        own_s = step.step_s(engine.running, features.uncached_tokens_estimate)
        return Forecast(max(prefill_s, wait_s + own_s) + engine.first_token_s, wait_s)
    return Forecast(prefill_s + engine.first_token_s, 0.0)


def _wait_s(features: Features, engine: EngineLoad, queue: QueueLoad, limits: Limits) -> float | None:
    """Until a sequence is free and the KV cache has room; None when that takes a finish and none was seen yet.

    The cache frees what the sequences that finish held (what one holds now on average, and half an answer more), less
    what the others grow by meanwhile: one token each per step.
    """
    running = max(1, engine.running)
    wait_s = 0.0
    missing = engine.in_flight + queue.sequences_ahead + features.choices - engine.max_sequences
    over = 0.0
    used = 0.0
    if engine.kv_tokens is not None and engine.kv_cache_usage is not None:
        used = engine.kv_cache_usage * engine.kv_tokens
        wanted = engine.queued_prefill_tokens + queue.entering_tokens + queue.kv_tokens_ahead
        over = used + wanted + features.prompt_tokens_estimate - engine.kv_tokens * kv_share(features, limits)
    if missing <= 0 and (over <= 0.0 or used <= 0.0):
        return 0.0
    if not engine.sequences_per_s or engine.step is None:
        return None
    if missing > 0:
        wait_s = missing / engine.sequences_per_s
    if over > 0.0 and used > 0.0:
        freed = engine.sequences_per_s * (used / running + features.output_tokens_estimate / 2)
        grown = running / engine.step.step_s(running, 0)
        wait_s = max(wait_s, over / max(freed - grown, 0.1 * freed))
    return wait_s


def predict_total_s(features: Features, engine: EngineLoad, ttft_s: float) -> float | None:
    """Seconds from now to the last local token: TTFT plus a step per token that is expected, up to its maximum."""
    if engine.step is None:
        return None
    tokens = min(features.max_output_tokens, features.output_tokens_estimate)
    return ttft_s + max(0.0, tokens - 1) * engine.step.step_s(max(1, engine.running), 0)


def prompt_work_s(features: Features, engine: EngineLoad) -> float | None:
    """Seconds the request's prompt is expected to take, in steps full of prompts; None while too cold to tell.

    That is what those behind it wait for. Its decoding goes on beside their prompts.
    """
    step = engine.step
    if step is None:
        return None
    room = max(1.0, engine.max_batched_tokens - engine.max_sequences / 2)
    return features.uncached_tokens_estimate * (step.per_prefill_token_s + step.base_s / room)


def local_work_s(features: Features, engine: EngineLoad) -> float | None:
    """Seconds of the engine's time the whole request is expected to take while the engine is full; None when too cold.

    Its prompt, and for each decode token its share of a step.
    """
    step, prompt_s = engine.step, prompt_work_s(features, engine)
    if step is None or prompt_s is None:
        return None
    output = features.choices * min(features.max_output_tokens, features.output_tokens_estimate)
    return prompt_s + output * (step.per_decode_s + step.base_s / max(1.0, engine.max_sequences / 2))
