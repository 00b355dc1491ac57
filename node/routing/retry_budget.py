"""How many calls may be made again, and after how long: so that a sick provider meets no retry storm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_FIRST_S: Final = 0.1
_LONGEST_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLimits:
    """`share` of the recent calls may be made again, for whatever cause, and `at_least` of them where traffic is thin.

    A call counts half after `half_life_s`.
    """

    share: float = 0.2
    at_least: float = 3.0
    half_life_s: float = 10.0


class RetryBudget:
    """One budget for all providers and all causes, in fading counts. Times are monotonic seconds.

    Without it, what makes calls fail makes them more at the same time (Google SRE book, ch. 22, "Retry budget").
    A request's first call at any provider is no retry, whatever was tried before: the local engine's failing puts no
    load on them.
    """

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self._calls = self._retries = 0.0
        self._at_s = 0.0

    def called(self, now_s: float) -> None:
        """Count a request's first call at a provider."""
        self._fade(now_s)
        self._calls += 1.0

    def allows(self, now_s: float) -> bool:
        """Whether `take` would succeed."""
        self._fade(now_s)
        return self._retries + 1.0 <= max(self._limits.at_least, self._limits.share * self._calls)

    def take(self, now_s: float) -> bool:
        """Count one retry, if there is room for it: False says that it must not be made."""
        if not self.allows(now_s):
            return False
        self._retries += 1.0
        return True

    def _fade(self, now_s: float) -> None:
        if now_s > self._at_s:
            faded = 0.5 ** ((now_s - self._at_s) / self._limits.half_life_s)
            self._calls *= faded
            self._retries *= faded
            self._at_s = now_s


def backoff_s(retry: int, random: Callable[[], float], retry_after_s: float | None = None) -> float:
    """How long to wait before the `retry`-th retry (from 1) at the same provider, in seconds.

    Anything from nothing to 0.1 s, doubling, 2 s at most: "full jitter" (AWS Architecture Blog, *Exponential Backoff
    And Jitter*, 2015), on top of what the provider asked for. For when nobody else is free: another provider is called
    at once.
    """
    return (retry_after_s or 0.0) + random() * min(_LONGEST_S, _FIRST_S * 2.0 ** (retry - 1))
