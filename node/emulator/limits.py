"""The emulated provider's rate limits: requests in the last minute and calls at once."""

from __future__ import annotations

import math
from collections import deque

from node.emulator.refusals import Refusal, rate_limited

WINDOW_S = 60.0


class RateLimits:
    """Counts calls. Limits of None never refuse; times are monotonic seconds."""

    def __init__(self, *, requests_per_minute: int | None, max_concurrent: int | None) -> None:
        self._per_minute = requests_per_minute
        self._at_once = max_concurrent
        self._recent: deque[float] = deque()
        self._active = 0

    def enter(self, now_s: float) -> Refusal | None:
        """Let a call in, to be given back with `leave()`; or say why not."""
        if self._at_once is not None and self._active >= self._at_once:
            return rate_limited(f"more than {self._at_once} calls at once", retry_after="1", retry_after_s=1.0)
        if self._per_minute is not None and self._used(now_s) >= self._per_minute:
            wait_s = self._reset_in_s(now_s)
            return rate_limited(
                f"more than {self._per_minute} requests per minute",
                retry_after=str(math.ceil(wait_s)),
                retry_after_s=round(wait_s, 1),
            )
        self._recent.append(now_s)
        self._active += 1
        return None

    def leave(self) -> None:
        """A call that was let in is over."""
        self._active -= 1

    def headers(self, now_s: float, epoch_s: float) -> dict[str, str]:
        """HolySheep's rate headers: limit, remaining, and the Unix time of the next reset."""
        if self._per_minute is None:
            return {}
        left = max(0, self._per_minute - self._used(now_s))
        return {
            "x-ratelimit-limit": str(self._per_minute),
            "x-ratelimit-remaining": str(left),
            "x-ratelimit-reset": str(math.ceil(epoch_s + self._reset_in_s(now_s))),
        }

    def _used(self, now_s: float) -> int:
        while self._recent and self._recent[0] <= now_s - WINDOW_S:
            self._recent.popleft()
        return len(self._recent)

    def _reset_in_s(self, now_s: float) -> float:
        return self._recent[0] + WINDOW_S - now_s if self._recent else WINDOW_S
