"""How much of the engine those want who cannot leave: what came of them lately, and what to keep free for them."""

from __future__ import annotations

import math

from node.routing.frozen import value
from node.routing.in_flight import InFlight, held_tokens
from node.routing.values import Features

_BURST_S = 2.0  # long against the gaps of a burst, short against its length
_STAY_S = 20.0  # about as long as answers take


@value(frozen=True, slots=True)
class Reserve:
    """What has to be left free for those who are expected and are not here yet."""

    sequences: float = 0.0
    kv_tokens: float = 0.0


NOTHING_RESERVED = Reserve()


class PinnedDemand:
    """Rates of arrival, fading: of the last seconds for what happens in a burst, of tens of seconds for what stays."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._sequences_per_s = 0.0
        self._prompt_tokens_per_s = 0.0
        self._staying_per_s = 0.0
        self._held_tokens_per_s = 0.0
        self._output_tokens_per_s = 0.0

    def came(self, features: Features, now_s: float) -> None:
        """Take in a request that cannot leave."""
        ago_s = now_s - self._at_s
        burst, stay = math.exp(-ago_s / _BURST_S), math.exp(-ago_s / _STAY_S)
        self._at_s = now_s
        choices = features.choices
        self._sequences_per_s = self._sequences_per_s * burst + choices / _BURST_S
        self._prompt_tokens_per_s *= burst
        self._prompt_tokens_per_s += choices * features.uncached_tokens_estimate / _BURST_S
        self._staying_per_s = self._staying_per_s * stay + choices / _STAY_S
        self._held_tokens_per_s = self._held_tokens_per_s * stay + choices * held_tokens(features) / _STAY_S
        self._output_tokens_per_s *= stay
        self._output_tokens_per_s += choices * features.output_tokens_estimate / _STAY_S

    def per_s(self, now_s: float) -> tuple[float, float]:
        """Sequences, and prompt tokens to compute, that came per second in the last seconds."""
        faded = math.exp((self._at_s - now_s) / _BURST_S)
        return self._sequences_per_s * faded, self._prompt_tokens_per_s * faded

    def reserve(self, in_flight: InFlight, tpot_s: float | None, now_s: float) -> Reserve:
        """What is expected beyond what is in the engine: as many are there as come while one stays (Little 1961)."""
        if tpot_s is None or not self._staying_per_s:
            return NOTHING_RESERVED
        stay_s = self._output_tokens_per_s / self._staying_per_s * tpot_s
        faded = math.exp((self._at_s - now_s) / _STAY_S)
        return Reserve(
            max(0.0, self._staying_per_s * faded * stay_s - in_flight.pinned_sequences),
            max(0.0, self._held_tokens_per_s * faded * stay_s - in_flight.pinned_kv_tokens),
        )
