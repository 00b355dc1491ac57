"""What a provider's time to first token is likely to be: percentiles of what was measured lately."""

from __future__ import annotations

from node.routing.quantiles import FadingQuantiles

_HALF_LIFE_S = 300.0
_ENOUGH = 32.0  # a 99th percentile of fewer is the luck of the first answers, and they come before the crowd
HIGH_SHARE = 0.99


class ProviderTtft:
    """A provider's recent TTFTs, fading over minutes.

    Until there are enough of them `assumed_s` stands in, unless what was seen is already worse; after a long silence it
    does so again, so that a bad spell is forgotten even when nothing is sent.
    """

    def __init__(self, assumed_s: float) -> None:
        self._assumed_s = assumed_s
        self._seen = FadingQuantiles(_HALF_LIFE_S)

    def add(self, ttft_s: float, now_s: float) -> None:
        """Take in one measured TTFT."""
        self._seen.add(ttft_s, now_s)

    def high_s(self, now_s: float, share: float = HIGH_SHARE) -> float:
        """What `share` of its first tokens do not exceed, or the assumption."""
        weight = self._seen.weight_at(now_s)
        if weight < _ENOUGH:
            worst = self._seen.quantile(1.0) if weight > 0.5 else None
            return max(self._assumed_s, worst or 0.0)
        found = self._seen.quantile(share)
        assert found is not None
        return found

    def measured_s(self, now_s: float, share: float) -> float | None:
        """What `share` of the remembered first tokens do not exceed, however few they are; None without any."""
        return self._seen.quantile(share) if self._seen.weight_at(now_s) > 0.5 else None

    def likely_s(self, now_s: float) -> float:
        """What half of them do not exceed, or the assumption."""
        return self.high_s(now_s, 0.5)
