"""Which of several providers takes the next call: power of two choices over peak-EWMA of TTFT, by weight.

Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing* (2001); the moving average that jumps up at once
and comes down slowly is Finagle's ("peak EWMA").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MEMORY_S = 10.0
_LEAST_S = 0.001  # so that targets about which nothing is known still compare by what is under way, and by weight


class PeakEwma:
    """A TTFT in seconds that believes the worst at once, and forgets in tens of seconds.

    It falls towards nothing while nothing is measured: so a target that was slow is tried again one day.
    """

    def __init__(self) -> None:
        self._ttft_s = 0.0
        self._at_s = -math.inf

    def add(self, ttft_s: float, now_s: float) -> None:
        """Take in one measured TTFT, or the time after which a call was given up."""
        kept = math.exp(-max(0.0, now_s - self._at_s) / _MEMORY_S)
        faded_s = self._ttft_s * kept
        self._ttft_s = ttft_s if ttft_s >= faded_s else faded_s + ttft_s * (1.0 - kept)
        self._at_s = now_s

    def value_s(self, now_s: float) -> float:
        """The average as of `now_s`; 0 for one that never had a value."""
        return self._ttft_s * math.exp(-max(0.0, now_s - self._at_s) / _MEMORY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One provider that could take a call: its weight, recent TTFT, and how many calls it has under way."""

    name: str
    weight: float
    ttft_s: float
    in_flight: int

    @property
    def cost(self) -> float:
        """What one more call costs there: seconds, times the calls that would be under way, per unit of weight."""
        return (self.ttft_s + _LEAST_S) * (self.in_flight + 1) / self.weight


def choose(candidates: Sequence[Candidate], random: Callable[[], float]) -> str | None:
    """The name of the one to take, None where there are none. `random` gives numbers from 0 up to 1.

    Two are drawn by weight, and the cheaper one is taken (the first, where they cost the same): so what is under way at
    each is in proportion to its weight over its TTFT, and no one is buried under calls because it looked best a
    moment ago.
    """
    if not candidates:
        return None
    first = _draw(candidates, random)
    others = [each for each in candidates if each is not first]
    if not others:
        return first.name
    second = _draw(others, random)
    return second.name if second.cost < first.cost else first.name


def _draw(candidates: Sequence[Candidate], random: Callable[[], float]) -> Candidate:
    left = random() * sum(each.weight for each in candidates)
    for each in candidates:
        left -= each.weight
        if left < 0.0:
            return each
    return candidates[-1]
