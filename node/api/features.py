"""From a checked request to the two values the node works with: the call, and what routing may know of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from node.api.schema import ParsedRequest
from node.backend import Call
from node.caller import Caller
from node.dispatch.experience import Experience
from node.routing.values import CONTENT, Capability, Features, Residency
from node.settings import Settings
from node.tracing import RequestTrace

# What a chat template or a provider adds per prompt and per message, generously; part of the bound on money.
_BOUND_PER_PROMPT_TOKENS = 64
_BOUND_PER_MESSAGE_TOKENS = 16
_BOUND_PER_MEDIA_PART_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may go on to be served."""

    call: Call
    features: Features
    cacheable: bool


def pin_of(parsed: ParsedRequest, caller: Caller, settings: Settings) -> str | None:
    """Who pins the request to the premises, the first of settings, key, model and the request itself; None: nobody.

    They are OR-ed: nothing that one says can loosen another.
    """
    if settings.privacy.residency is Residency.PREMISES:
        return "settings"
    if caller.residency is Residency.PREMISES:
        return "key"
    if parsed.model in settings.privacy.pinned_models:
        return "model"
    return "request" if parsed.wishes.require_local else None


def is_unreadable(parsed: ParsedRequest) -> bool:
    """Whether there is something in the request that no content rule can look into: images, sound, token ids."""
    return parsed.media_parts > 0 or Capability.TOKEN_PROMPT in parsed.needs


def admit(
    parsed: ParsedRequest,
    caller: Caller,
    settings: Settings,
    experience: Experience,
    *,
    request_id: str,
    arrived_s: float,
    stay_with: str | None = None,
    content_rule: str | None = None,
    trace: RequestTrace | None = None,
) -> Admitted:
    """The call and its features. Key, then settings, give default budgets.

    `stay_with` names the backend in the middle of whose tool call the request comes, `content_rule` the content rule
    that it matches, `trace` its trace.
    """
    wishes, routing = parsed.wishes, settings.routing
    pinned_by = pin_of(parsed, caller, settings) or (None if content_rule is None else CONTENT + content_rule)
    max_output_tokens = parsed.max_tokens if parsed.max_tokens is not None else settings.api.default_max_tokens
    latency_budget_s = wishes.latency_budget_s
    if latency_budget_s is None and routing.latency_budget_ms is not None:
        latency_budget_s = routing.latency_budget_ms / 1000
    ttft_budget_s = wishes.ttft_budget_s
    if ttft_budget_s is None:
        ttft_budget_s = caller.ttft_budget_s
    if ttft_budget_s is None:
        ttft_budget_s = routing.ttft_budget_ms / 1000
    if wishes.latency_budget_s is not None:
        ttft_budget_s = min(ttft_budget_s, wishes.latency_budget_s)
    explicit = wishes.ttft_budget_s is not None or wishes.latency_budget_s is not None
    call = Call(
        request_id=request_id,
        kind=parsed.kind,
        model=parsed.model,
        body=parsed.body,
        stream=parsed.stream,
        include_usage=parsed.include_usage,
        max_output_tokens=max_output_tokens,
        created_s=int(time.time()),
        tenant=caller.tenant,
        budget=caller.budget,
        cache_salt=caller.cache_salt,
        trace=trace,
    )
    prompt_tokens = experience.prompt_tokens(parsed.prompt_bytes)
    features = Features(
        request_id=request_id,
        model=parsed.model,
        residency=Residency.ANY if pinned_by is None else Residency.PREMISES,
        prompt_bytes=parsed.prompt_bytes,
        prompt_tokens_estimate=prompt_tokens,
        prompt_tokens_bound=parsed.prompt_bytes
        + _BOUND_PER_PROMPT_TOKENS
        + _BOUND_PER_MESSAGE_TOKENS * parsed.messages
        + _BOUND_PER_MEDIA_PART_TOKENS * parsed.media_parts,
        max_output_tokens=max_output_tokens,
        choices=parsed.choices,
        needs=parsed.needs,
        prefer_local=wishes.prefer_local,
        ttft_budget_s=ttft_budget_s,
        latency_budget_s=latency_budget_s,
        cost_budget_nano_usd=wishes.cost_budget_nano_usd,
        arrived_s=arrived_s,
        give_up_s=arrived_s + (ttft_budget_s if explicit else routing.max_wait_s),
        tenant=caller.tenant,
        cached_tokens_estimate=experience.cached_tokens(caller.tenant, prompt_tokens),
        output_tokens_estimate=experience.output_tokens(caller.tenant, max_output_tokens),
        stay_with=stay_with,
        asks_output=parsed.max_tokens is not None,
        priority=caller.priority,
        pinned_by=pinned_by,
    )
    return Admitted(call, features, cacheable=parsed.deterministic if wishes.cache is None else wishes.cache)
