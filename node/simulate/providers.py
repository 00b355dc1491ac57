"""The simulated cloud: one provider or several, and which of them a request is shown first, as in the live node.

What is not simulated: circuit breakers (a failed call pauses its provider instead) and the retry budget.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from node.money import Price
from node.routing.balancer import Candidate, PeakEwma, choose
from node.routing.ttft import ProviderTtft
from node.routing.values import CloudOption, Zone
from node.simulate.baselines import CLOUD_TOKENS_PER_S
from node.simulate.values import TraceRequest

_OUTAGE_SHOWS_S = 0.05  # a connection that is refused, or a 503


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One simulated provider. TTFT is log-normal.

    `outages` are (from, to) in seconds of the trace: a call made in one fails after a moment. `calls_per_minute` is its
    rate limit: a call beyond it fails at once. None: no limit. After either failure the node leaves the provider alone
    for `pause_s`, as it does for a rate limit that says no time. `weight` and `zone` are as in the settings.
    """

    price: Price
    name: str = "cloud"
    weight: float = 1.0
    zone: Zone = Zone.CLOUD
    ttft_median_s: float = 0.35
    ttft_sigma: float = 0.35
    outages: tuple[tuple[float, float], ...] = ()
    calls_per_minute: int | None = None
    pause_s: float = 1.0
    seed: int = 0

    def ttft_s(self, index: int) -> float:
        """The time to first token of request `index`."""
        draw = random.Random(f"{self.seed}/{index}").gauss(0.0, self.ttft_sigma)
        return self.ttft_median_s * math.exp(draw)


class _Standing:
    """One provider as the node knows it: what its calls taught, what is under way, whether it is left alone."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.ttft = ProviderTtft(assumed_s=provider.ttft_median_s * 2)
        self.recent_ttft = PeakEwma()
        self._taken_s: deque[float] = deque()  # of the last minute
        self._ends_s: list[float] = []  # of the answers under way
        self._paused_until_s = 0.0

    def fails_after_s(self, now_s: float) -> float | None:
        """Seconds until a call made now fails; None: it does not, and counts towards the rate limit."""
        if any(from_s <= now_s < to_s for from_s, to_s in self.provider.outages):
            return _OUTAGE_SHOWS_S
        most, taken_s = self.provider.calls_per_minute, self._taken_s
        if most is not None:
            while taken_s and taken_s[0] <= now_s - 60.0:
                taken_s.popleft()
            if len(taken_s) >= most:
                return 0.0
            taken_s.append(now_s)
        return None

    def begin(self, ends_s: float) -> None:
        heapq.heappush(self._ends_s, ends_s)

    def began(self, ttft_s: float, now_s: float) -> None:
        self.ttft.add(ttft_s, now_s)
        self.recent_ttft.add(ttft_s, now_s)

    def failed(self, now_s: float) -> None:
        self._paused_until_s = now_s + self.provider.pause_s

    def is_available(self, now_s: float) -> bool:
        return now_s >= self._paused_until_s

    def candidate(self, now_s: float) -> Candidate:
        while self._ends_s and self._ends_s[0] <= now_s:
            heapq.heappop(self._ends_s)
        return Candidate(
            name=self.provider.name,
            weight=self.provider.weight,
            ttft_s=self.recent_ttft.value_s(now_s),
            in_flight=len(self._ends_s),
        )


class SimulatedProviders:
    """All of them, with distinct names. Times are seconds of the trace; chance comes from the first one's seed."""

    def __init__(self, providers: Sequence[Provider]) -> None:
        self._standings = {each.name: _Standing(each) for each in providers}
        self._random = random.Random(f"{providers[0].seed}/choice").random
        self._known: tuple[CloudOption, ...] | None = None
        self._next: str | None = None

    def __getitem__(self, name: str) -> Provider:
        return self._standings[name].provider

    def options(self, now_s: float, cloud_share: float, failed: frozenset[str]) -> tuple[CloudOption, ...]:
        """What routing is shown: the balancer's choice first. It stands until a call is made on it.

        Figures are as of the last call or first token. `failed` are those that have failed this request already.
        """
        if self._known is None:
            self._known = tuple(
                CloudOption(
                    provider=name,
                    model="simulated",
                    capabilities=frozenset(),
                    context_tokens=10**9,
                    max_output_tokens=None,
                    price=each.provider.price,
                    ttft_high_s=each.ttft.high_s(now_s, cloud_share),
                    ttft_likely_s=each.ttft.likely_s(now_s),
                    weight=each.provider.weight,
                    zone=each.provider.zone,
                )
                for name, each in self._standings.items()
            )
        shown = tuple(
            option
            if option.provider not in failed and self._standings[option.provider].is_available(now_s)
            else replace(option, available=False)
            for option in self._known
        )
        if len(shown) == 1:
            return shown
        first = self._choice({option.provider for option in shown if option.available}, now_s)
        return tuple(sorted(shown, key=lambda option: option.provider != first))

    def changed(self) -> None:
        """What routing is shown is to be reckoned anew."""
        self._known = None

    def call(self, name: str, index: int, request: TraceRequest, now_s: float) -> float | None:
        """A call is made. Seconds until it fails, None where its first token comes after `Provider.ttft_s`."""
        self._next = None
        standing = self._standings[name]
        fails_after_s = standing.fails_after_s(now_s)
        if fails_after_s is None:
            writes_s = request.output_tokens / CLOUD_TOKENS_PER_S
            standing.begin(now_s + standing.provider.ttft_s(index) + writes_s)
        return fails_after_s

    def began(self, name: str, index: int, now_s: float) -> None:
        """The first token of request `index` has come."""
        self._standings[name].began(self[name].ttft_s(index), now_s)
        self.changed()

    def failed(self, name: str, now_s: float) -> None:
        """A call has failed."""
        self._standings[name].failed(now_s)

    def _choice(self, available: set[str], now_s: float) -> str | None:
        if self._next not in available:
            self._next = choose([self._standings[each].candidate(now_s) for each in sorted(available)], self._random)
        return self._next
