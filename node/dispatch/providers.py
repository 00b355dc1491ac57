"""The cloud as the dispatcher sees it: providers, whether each is usable now, and how fast each answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from node.backend import Backend
from node.catalogue import CloudEquivalent, Model
from node.dispatch.standing import OPERATOR, Standing
from node.routing.balancer import Candidate, choose
from node.routing.permit import EgressPermit, worst_case_nano_usd
from node.routing.ttft import HIGH_SHARE, ProviderTtft
from node.routing.values import CloudOption, Features, Zone

_log = logging.getLogger("spillway")


class Provider(Protocol):
    """Something that turns an equivalent and a permit into a backend."""

    def bind(
        self, equivalent: CloudEquivalent, permit: EgressPermit, *, prompt_tokens_estimate: int, spent_s: float
    ) -> Backend:
        """A backend for one call under one permit.

        The estimate is charged where the provider reports no usage; `spent_s` is what earlier attempts took of the
        request's clocks.
        """

    def first_content_s(self, model: str) -> float:
        """How long a request may wait for its first content from `model`, over all attempts."""


@dataclass(slots=True)
class ProviderState:
    """One provider, where it is, and what is known of it."""

    provider: Provider
    weight: float
    ttft: ProviderTtft
    standing: Standing
    zone: Zone = Zone.CLOUD
    emulated: bool = False


class Providers:
    """All configured providers by name. `random` gives numbers from 0 up to 1.

    Those in the cloud are available only while `may_spend` says so.
    """

    def __init__(
        self,
        states: Mapping[str, ProviderState],
        random: Callable[[], float],
        may_spend: Callable[[], bool] = lambda: True,
    ) -> None:
        self.states = states
        self._random = random
        self._may_spend = may_spend
        self._next: dict[str, str] = {}

    def options_for(
        self, model: Model, now_s: float, excluded: frozenset[str], high_share: float = HIGH_SHARE
    ) -> tuple[CloudOption, ...]:
        """The model's declared equivalents at configured providers: the balancer's choice first, then the catalogue's.

        The choice stands until a call is made on it (`chosen`), so that a request which waits is told the same each
        time it asks. `excluded` names providers that have already failed this request. `high_share` of a provider's
        first tokens are to come within its `ttft_high_s`.
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
                    available=state.standing.is_available(now_s)
                    and equivalent.provider not in excluded
                    and (state.zone is Zone.PREMISES or self._may_spend()),
                    weight=state.weight,
                    zone=state.zone,
                )
            )
        if len(options) > 1:
            first = self._choose(model, options, now_s)
            options.sort(key=lambda option: option.provider != first)
        return tuple(options)

    def chosen(self, model: Model) -> None:
        """A call is made on the present choice: the next one is drawn anew."""
        self._next.pop(model.name, None)

    def usable(
        self, model: Model, features: Features, now_s: float, excluded: frozenset[str] = frozenset()
    ) -> CloudOption | None:
        """The first option, at a provider that is not `excluded`, that could take the request now."""
        most_nano_usd = features.cost_budget_nano_usd
        for option in self.options_for(model, now_s, excluded):
            costs_nano_usd = worst_case_nano_usd(features, option)
            if (
                option.available
                and costs_nano_usd is not None
                and (most_nano_usd is None or costs_nano_usd <= most_nano_usd)
                and features.needs <= option.capabilities
                and features.prompt_tokens_estimate < option.context_tokens
                and (features.may_leave or option.zone is Zone.PREMISES)
            ):
                return option
        return None

    def reachable(self, model: Model, features: Features) -> tuple[CloudEquivalent, ...]:
        """The equivalents that the request's residency lets it go to, whatever they can do and however they stand."""
        return tuple(
            equivalent
            for equivalent in model.cloud
            if features.may_leave
            or ((state := self.states.get(equivalent.provider)) is not None and state.zone is Zone.PREMISES)
        )

    def away_for_s(self, model: Model, now_s: float) -> float | None:
        """How long until the first of the model's providers may be called again, as far as is known."""
        known = [
            away_s
            for equivalent in model.cloud
            if (state := self.states.get(equivalent.provider)) is not None
            and (away_s := state.standing.away_for_s(now_s)) is not None
        ]
        return min(known, default=None)

    def only_the_ledger_is_away(self, model: Model, now_s: float) -> bool:
        """Whether a provider of the model's in the cloud could be called, could it be written down."""
        return not self._may_spend() and any(
            state.zone is Zone.CLOUD and state.standing.is_available(now_s)
            for equivalent in model.cloud
            if (state := self.states.get(equivalent.provider)) is not None
        )

    def isolate(self, name: str, now_s: float) -> None:
        """The operator wants nothing to be sent to `name`."""
        self.states[name].standing.isolate(OPERATOR, now_s)
        _log.warning("%s is left alone: the operator wants it so", name)

    def restore(self, name: str, now_s: float) -> None:
        """The operator wants `name` to be used again, whatever isolated it."""
        self.states[name].standing.restore(now_s)
        _log.warning("%s is used again: the operator wants it so", name)

    def available(self, now_s: float) -> dict[str, bool]:
        """Which of them calls may be sent to now."""
        return {name: state.standing.is_available(now_s) for name, state in self.states.items()}

    def document(self, now_s: float) -> dict[str, Any]:
        """Each provider's standing, for the statistics: whether it is used, for how long not, and for what error."""
        return {name: _document(state, now_s) for name, state in self.states.items()}

    def _choose(self, model: Model, options: list[CloudOption], now_s: float) -> str | None:
        available = {option.provider for option in options if option.available}
        name = self._next.get(model.name)
        if name not in available:
            candidates = []
            for each in sorted(available):
                state = self.states[each]
                candidates.append(
                    Candidate(
                        name=each,
                        weight=state.weight,
                        ttft_s=state.standing.recent_ttft.value_s(now_s),
                        in_flight=state.standing.in_flight,
                    )
                )
            name = choose(candidates, self._random)
            if name is not None:
                self._next[model.name] = name
        return name


def _document(state: ProviderState, now_s: float) -> dict[str, Any]:
    standing, breaker = state.standing, state.standing.breaker
    tried_in_s = standing.away_for_s(now_s)
    return {
        "available": standing.is_available(now_s),
        "paused_s": round(max(0.0, standing.paused_until_s - now_s), 3),
        "isolated_by": standing.isolated_by,
        "breaker": breaker.state(now_s).value,
        "opened_by": breaker.opened_by,
        "not_closed_for_s": None
        if breaker.not_closed_since_s is None
        else round(now_s - breaker.not_closed_since_s, 1),
        "tried_in_s": None if tried_in_s is None else round(tried_in_s, 1),
        "in_flight": standing.in_flight,
        "zone": state.zone.value,
        "emulated": state.emulated,
        "weight": state.weight,
    }
