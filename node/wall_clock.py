"""The date, for what is told or kept by it. Durations are measured with monotonic seconds, which it never is."""

from __future__ import annotations

import time


def wall_us() -> int:
    """The wall clock, in UTC microseconds since 1970."""
    return time.time_ns() // 1000
