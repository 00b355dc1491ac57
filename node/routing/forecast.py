"""How long a request would take here: a look ahead over what runs and what waits, from the engine's own numbers.

    prefill = what is left of the step under way + steps · (base + per_decode · decoding) + per_prefill_token · T
    T       = prompt tokens handed to the engine that the step under way does not compute + those ahead in the node's
              queue + its own (+ half of what is left of its own last step, where others wait: those behind it fill it)
    steps   = T / tokens per step, at least one, and at least one more where steps are put together ahead: with others
              ahead in the queue what a step is fed (`feed_tokens`), else what one holds beside those that decode
    prefill / (1 - share of the engine's time that prompts of those take who cannot leave), for one that waits and can
    TTFT    = prefill, or if a sequence or KV cache has to be freed first the longer of prefill and wait + its own step
            + what a first token takes beside its steps (`first_token_s`: to the engine, back, and into text)
    wait    = the longer of: sequences missing / sequences finishing per second, and cache missing / cache freed per
              second, where a request may fill the cache up to its `kv_limit`; of what is freed, those who cannot leave
              take theirs first

The terms are those of vLLM's scheduler: prompts are computed first come, first served, in what a step's token budget
leaves. A term that has not been measured makes the whole answer unknown. This is the likely value: what is to be added
to be seldom wrong (the observer's doubt, `Limits.wait_doubt`) is the policy's part.
"""

from __future__ import annotations

import math

from node.routing.frozen import value
from node.routing.values import EngineLoad, Features, Limits, QueueLoad

_LEAST_FEED_S, _MOST_FEED_S = 0.05, 0.6
_FEED_SHARE = 0.2  # of the TTFT budget: who comes while such a step is under way has four fifths left after it
_FEED_STEPS = 18.0  # times what a step takes without prompts: an 18th of the engine's time is the price of short ones
_LEAST_FEED_TOKENS = 512.0  # in a step however long it takes: below that the fixed part of steps eats the engine
_PINNED_LEAVES = 0.33  # of what others leave free in the KV cache, for what runs to grow into
_MOST_PINNED_SHARE = 0.5  # of the engine's time: beyond that, no forecast
_LEAST_LEFT = 0.1  # of what is freed, to those who are not pinned
_LEAST_PER_S = 1e-9  # sequences finishing: what takes longer than a life is not known to end
_DEFAULTS = Limits()


@value(frozen=True, slots=True)
class Forecast:
    """Seconds from now to the first local token, the likely value.

    `wait_s` of them are for a sequence or KV cache to be freed.
    """

    ttft_s: float
    wait_s: float


def kv_limit(features: Features, engine: EngineLoad, queue: QueueLoad, limits: Limits) -> float | None:
    """Tokens the KV cache may hold, the request's prompt included; None where the cache's size is not known.

    One that cannot leave may fill two thirds of what others have to leave free, too. One that can leaves room for those
    who are expected and cannot, for what runs to grow into, and for its own answer.
    """
    if engine.kv_tokens is None:
        return None
    pinned = engine.kv_tokens * (1.0 - (1.0 - limits.kv_share) * _PINNED_LEAVES)
    if not features.may_leave:
        return pinned
    most = engine.kv_tokens * limits.kv_share
    unreserved = pinned - queue.reserved_kv_tokens
    if unreserved < most:
        most = unreserved
    return most - queue.growth_tokens - 0.5 * features.output_tokens_estimate


def feed_tokens(features: Features, engine: EngineLoad, limits: Limits) -> float:
    """Prompt tokens to feed a step: at least a few and at most what one holds.

    Such a step takes a fixed multiple of one without prompts, so that their cost is a fixed share, but no longer than
    `limits.feed_s`, or else a fixed share of the TTFT budget: whoever comes while it is under way waits for all of it.
    """
    most = float(engine.max_batched_tokens - engine.running)
    if most < 1.0:
        most = 1.0
    step = engine.step
    if step is None or step.per_prefill_token_s <= 0.0:
        return most
    without_s = step.step_s(engine.running, 0)
    feed_s = _FEED_STEPS * without_s
    feed_s = feed_s if feed_s > _LEAST_FEED_S else _LEAST_FEED_S
    longest_s = limits.feed_s
    if longest_s is None:
        longest_s = _FEED_SHARE * features.ttft_budget_s
        longest_s = longest_s if longest_s < _MOST_FEED_S else _MOST_FEED_S
    feed_s = feed_s if feed_s < longest_s else longest_s
    tokens = (feed_s - without_s) / step.per_prefill_token_s
    tokens = tokens if tokens > _LEAST_FEED_TOKENS else _LEAST_FEED_TOKENS
    return tokens if tokens < most else most


def beyond_step(engine: EngineLoad, queue: QueueLoad) -> int:
    """Prompt tokens the engine has been handed that the step under way does not compute."""
    tokens = engine.queued_prefill_tokens + queue.entering_tokens - engine.stepping_tokens
    return tokens if tokens > 0 else 0


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
    left_s, before = 0.0, 0
    if engine.running or engine.stepping_tokens:
        left_s = step.step_s(engine.running, engine.stepping_tokens) - engine.stepping_s
        if left_s < 0.0:
            left_s = 0.0
        before = engine.steps_ahead
    own_tokens = features.uncached_tokens_estimate * features.choices
    tokens = float(beyond_step(engine, queue) + queue.prompt_tokens_ahead + own_tokens)
    # What is computed ahead of it will decode beside it; half of them do so on average.
    decoding = engine.running + queue.sequences_ahead / 2
    if decoding > engine.max_sequences:
        decoding = engine.max_sequences
    least_steps = 1 + before
    if queue.prompt_tokens_ahead:
        per_step = feed_tokens(features, engine, limits)
        steps = math.ceil(tokens / per_step)
        steps = steps if steps > least_steps else least_steps
        if steps * per_step > tokens:
            tokens = 0.5 * (tokens + steps * per_step)
    else:
        room = engine.max_batched_tokens - decoding
        steps = math.ceil(tokens / (room if room > 1.0 else 1.0))
        steps = steps if steps > least_steps else least_steps
    prefill_s = left_s + steps * (step.base_s + step.per_decode_s * decoding) + step.per_prefill_token_s * tokens
    if features.may_leave and queue.sequences_ahead:
        prefill_s /= 1.0 - min(_MOST_PINNED_SHARE, pinned_share(engine, queue))
    if wait_s > 0.0:
        own_s = step.step_s(engine.running, features.uncached_tokens_estimate)
        return Forecast(max(prefill_s, wait_s + own_s) + engine.first_token_s, wait_s)
    return Forecast(prefill_s + engine.first_token_s, 0.0)


def pinned_share(engine: EngineLoad, queue: QueueLoad) -> float:
    """The share of the engine's time that prompts of those who cannot leave lately asked for."""
    return 0.0 if engine.step is None else engine.step.per_prefill_token_s * queue.pinned_tokens_per_s


def _wait_s(features: Features, engine: EngineLoad, queue: QueueLoad, limits: Limits) -> float | None:
    """Until a sequence is free and the KV cache has room; None when that takes a finish and none was seen yet.

    The cache frees what the sequences that finish held (what one holds now on average, and half an answer more), less
    what the others grow by meanwhile: one token each per step, at the pace at which they lately went, which is also the
    pace at which they finish.
    """
    wait_s = 0.0
    missing = engine.in_flight + queue.sequences_ahead + features.choices - engine.max_sequences
    over = 0.0
    used = 0.0
    limit = kv_limit(features, engine, queue, limits)
    if limit is not None and engine.kv_tokens is not None and engine.kv_cache_usage is not None:
        used = engine.kv_cache_usage * engine.kv_tokens
        wanted = engine.queued_prefill_tokens + queue.entering_tokens + queue.kv_tokens_ahead
        over = used + wanted + features.prompt_tokens_estimate - limit
    if missing <= 0 and (over <= 0.0 or used <= 0.0):
        return 0.0
    if engine.sequences_per_s is None or engine.sequences_per_s < _LEAST_PER_S or engine.step is None:
        return None
    running = max(1, engine.running)
    overtaking = features.may_leave
    if missing > 0:
        per_s = engine.sequences_per_s
        left_per_s = per_s - (queue.pinned_per_s if overtaking else 0.0)
        wait_s = missing / max(left_per_s, _LEAST_LEFT * per_s)
    if over > 0.0 and used > 0.0:
        freed = engine.sequences_per_s * (used / running + features.output_tokens_estimate / 2)
        token_s = engine.step.step_s(running, 0) if engine.tpot_s is None else engine.tpot_s
        taken = running / token_s + (queue.pinned_tokens_per_s if overtaking else 0.0)
        wait_s = max(wait_s, over / max(freed - taken, _LEAST_LEFT * freed))
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
    room = engine.max_batched_tokens - engine.max_sequences / 2
    room = room if room > 1.0 else 1.0
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
