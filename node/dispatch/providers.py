"""The cloud as the dispatcher sees it: providers, whether each is usable now, and how fast each answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from node.backend import Backend
from node.catalogue import CloudEquivalent, Model
from node.errors import SpillwayError, UpstreamAuth, UpstreamQuota, UpstreamRateLimited
from node.routing.permit import EgressPermit
from node.routing.ttft import HIGH_SHARE, ProviderTtft
from node.routing.values import CloudOption

_log = logging.getLogger("spillway.providers")

_DEFAULT_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0


class Provider(Protocol):
    """Something that turns an equivalent and a permit into a backend."""

    def bind(self, equivalent: CloudEquivalent, permit: EgressPermit, *, prompt_tokens_estimate: int) -> Backend:
        """A backend for one call under one permit; the estimate is charged where the provider reports no usage."""


@dataclass(slots=True)
class ProviderState:
    """One provider and what is known of it. `isolated_by` is the error after which it is left alone until reload."""

    provider: Provider
    weight: float
    ttft: ProviderTtft
    paused_until_s: float = 0.0
    isolated_by: str | None = None

    def is_available(self, now_s: float) -> bool:
        """Whether a call may be sent to it now."""
        return self.isolated_by is None and now_s >= self.paused_until_s

    def failed(self, error: SpillwayError, now_s: float) -> None:
        """Take in a failure: 429 pauses (for as long as it asks, within bounds); 401, 402 and 403 isolate."""
        if isinstance(error, UpstreamRateLimited):
            pause_s = min(error.retry_after_s or _DEFAULT_PAUSE_S, _MAX_PAUSE_S)
            self.paused_until_s = max(self.paused_until_s, now_s + pause_s)
        elif isinstance(error, UpstreamAuth | UpstreamQuota):
            self.isolated_by = error.code


class Providers:
    """All configured providers by name."""

    def __init__(self, states: Mapping[str, ProviderState]) -> None:
        self.states = states

    def failed(self, name: str, error: SpillwayError, now_s: float) -> None:
        """Take in a failure of the provider `name`. One that isolates it is logged once: only the operator can help."""
        state = self.states[name]
        was_isolated = state.isolated_by is not None
        state.failed(error, now_s)
        if state.isolated_by is not None and not was_isolated:
            _log.warning("%s is left alone until a reload (%s): %s", name, state.isolated_by, error.message)

    def document(self, now_s: float) -> dict[str, Any]:
        """Each provider's standing, for the statistics: whether it is used, for how long not, and for what error."""
        return {
            name: {
                "available": state.is_available(now_s),
                "paused_s": round(max(0.0, state.paused_until_s - now_s), 3),
                "isolated_by": state.isolated_by,
            }
            for name, state in self.states.items()
        }

    def options_for(
        self, model: Model, now_s: float, excluded: frozenset[str], high_share: float = HIGH_SHARE
    ) -> tuple[CloudOption, ...]:
        """The model's declared equivalents at configured providers, in the catalogue's order of preference.

        `excluded` names providers that have already failed this request. `high_share` of a provider's first tokens are
        to come within its `ttft_high_s`.
        """
        options = []
        for equivalent in model.cloud:
            state = self.states.get(equivalent.provider)
            if state is None:
                continue
            options.append(
                CloudOption(
                    provider=equivalent.provider,
                    model=equivalent.model,
                    capabilities=equivalent.capabilities,
                    context_tokens=equivalent.context_tokens,
                    max_output_tokens=equivalent.max_output_tokens,
                    price=equivalent.price,
                    ttft_high_s=state.ttft.high_s(now_s, high_share),
                    ttft_likely_s=state.ttft.likely_s(now_s),
                    available=state.is_available(now_s) and equivalent.provider not in excluded,
                    weight=state.weight,
                )
            )
        return tuple(options)
