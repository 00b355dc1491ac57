"""What a provider's time to first token is likely to be: a high percentile over a recent window."""

from __future__ import annotations

import math
from collections import deque

_HIGH_PERCENTILE = 0.99
_WINDOW_S = 600.0
_MAX_SAMPLES = 256
_MIN_SAMPLES = 32  # a 99th percentile of fewer is the luck of the first answers, and they come before the crowd


class TtftWindow:
    """A provider's recent TTFTs.

    Samples older than ten minutes no longer count, so a bad spell is forgotten even when nothing is sent. Until
    there are enough of them, `assumed_s` stands in, unless what was seen is already worse.
    """

    def __init__(self, assumed_s: float) -> None:
        self._assumed_s = assumed_s
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)
        self._high_s = assumed_s

    def add(self, ttft_s: float, now_s: float) -> None:
        """Take in one measured TTFT."""
        self._samples.append((now_s, ttft_s))
        self._refresh(now_s)

    def high_s(self, now_s: float) -> float:
        """The 99th percentile (nearest rank) of what is still fresh, or the assumption."""
        if self._samples and now_s - self._samples[0][0] > _WINDOW_S:
            while self._samples and now_s - self._samples[0][0] > _WINDOW_S:
                self._samples.popleft()
            self._refresh(now_s)
        return self._high_s

    def _refresh(self, now_s: float) -> None:
        values = sorted(ttft_s for _, ttft_s in self._samples)
        if len(values) < _MIN_SAMPLES:
            self._high_s = max([self._assumed_s, *values])
            return
        self._high_s = values[math.ceil(_HIGH_PERCENTILE * len(values)) - 1]
