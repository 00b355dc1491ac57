"""How much work a trace offers an engine: 1.0 is as much as the engine can do when it is kept full.

    work of a request = c·p + a·q + o·(b + k·h + base/n) + base·p/(B - n)     seconds of engine time
    offered load      = work of all requests / time from the first arrival to the last

with p the prompt tokens not in the prefix cache, q = p·(P - p/2) those with all before them (P is the whole prompt,
cached or not), o the output tokens, h = P + o/2 what it holds in the KV cache while it decodes, base, b, c, k and a the
step model's coefficients, B `max_batched_tokens`, and n the sustained batch: as many sequences as run together when
there is always work,

    n = min(max_sequences, kv_tokens / r),     r = Σ o·h / Σ o

r being what a running sequence holds, averaged over the steps it runs. A decode token pays its own share of a step with
n sequences in it, a prompt token its share of a step filled up beside them. That charges the step's base twice where a
step does both, so an engine can take a little more than 1.0. Requests that no engine with this context takes are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.routing.profile import EngineProfile
from node.simulate.values import TraceRequest


def sustained_batch(requests: Sequence[TraceRequest], profile: EngineProfile) -> float:
    """How many sequences run together when there is always work; at least 1."""
    steps = sum(each.output_tokens for each in requests)
    if steps == 0:
        return float(profile.max_sequences)
    held = sum(each.output_tokens * (each.prompt_tokens + each.output_tokens / 2) for each in requests) / steps
    return max(1.0, min(profile.max_sequences, profile.kv_tokens / held))


def offered_load(requests: Sequence[TraceRequest], profile: EngineProfile) -> float:
    """The trace's work over its duration, see above; 0 for no work, infinite when all of it comes at once."""
    work_s = sum(each or 0.0 for each in works_s(requests, profile))
    if not work_s:
        return 0.0
    arrivals = [each.arrival_s for each in requests]
    duration_s = max(arrivals) - min(arrivals)
    return work_s / duration_s if duration_s > 0 else float("inf")


def works_s(requests: Sequence[TraceRequest], profile: EngineProfile) -> list[float | None]:
    """The work of each, see above; None for one that no engine with this context takes."""
    fits = [each.prompt_tokens + each.output_tokens <= profile.context_tokens for each in requests]
    batch = sustained_batch([each for each, does in zip(requests, fits, strict=True) if does], profile)
    step = profile.step
    per_prompt_token_s = step.per_prefill_token_s + step.base_s / max(1.0, profile.max_batched_tokens - batch)
    per_output_token_s = step.per_decode_s + step.base_s / batch
    found: list[float | None] = []
    for each, does in zip(requests, fits, strict=True):
        own, held = max(1, each.prompt_tokens - each.prefix_hit_tokens), each.prompt_tokens + each.output_tokens / 2
        work_s = per_prompt_token_s * own + step.per_prefill_pair_s * own * (each.prompt_tokens - own / 2)
        work_s += (per_output_token_s + step.per_kv_token_s * held) * each.output_tokens
        found.append(work_s if does else None)
    return found


def speed_for(requests: Sequence[TraceRequest], profile: EngineProfile, load: float) -> float:
    """The factor to divide arrival times by, so that the trace offers `load`.

    Raises ValueError when no factor does: the trace has no work, or all of it comes at once.
    """
    offered = offered_load(requests, profile)
    if not 0 < offered < float("inf"):
        raise ValueError(f"no speed gives load {load:g}: the trace offers {offered:g}")
    return load / offered
