"""So much per minute: an allowance that is full at first, and comes back evenly.

The generic cell rate algorithm: all there is to remember is when it will be full again.
"""

from __future__ import annotations

import math

_MINUTE_S = 60.0
_ROUNDING = 1e-6  # of one: what adding and taking away times can be wrong by


class Allowance:
    """`per_minute` of something. Times are monotonic seconds."""

    __slots__ = ("_full_at_s", "_per_s", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._per_s = per_minute / _MINUTE_S
        self._full_at_s = -math.inf

    def full_in_s(self, now_s: float) -> float:
        """How long until all of it is there again, if nothing more is taken."""
        return max(0.0, self._full_at_s - now_s)

    def left(self, now_s: float) -> int:
        """How many whole ones are there, at least none."""
        return max(0, math.floor(self.per_minute - self.full_in_s(now_s) * self._per_s + _ROUNDING))

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until `amount`, which is no more than `per_minute`, is there: 0 if it is."""
        wait_s = self.full_in_s(now_s) - (self.per_minute - amount) / self._per_s
        return wait_s if wait_s * self._per_s > _ROUNDING else 0.0

    def take(self, amount: int, now_s: float) -> None:
        """Take it, there or not: less than none may be left. A negative amount is given back."""
        self._full_at_s = max(self._full_at_s, now_s) + amount / self._per_s
