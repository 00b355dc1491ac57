"""Quantiles of what was measured lately, in constant memory: a histogram on a logarithmic scale whose counts fade."""

from __future__ import annotations

import math

_PER_DOUBLING = 16  # buckets 4.4 % wide
_LEAST = 1e-4
_FORGOTTEN = 50.0  # e-foldings; days of silence would overflow
_BUCKETS = 24 * _PER_DOUBLING  # up to about 1,600 of whatever the unit is


class FadingQuantiles:
    """What share of recent values lies below which value.

    A value counts half after `half_life` of whatever the caller measures age in (seconds; or values, when nothing is
    said). Values outside the range count at its ends.
    """

    def __init__(self, half_life: float) -> None:
        self._decay = math.log(2) / half_life
        self._weights = [0.0] * _BUCKETS
        self._total = 0.0
        self._unit = 1.0  # what one new value weighs; grows, so that old ones need not be touched
        self._now = 0.0
        self._cached: dict[float, float] = {}

    def add(self, value: float, now: float | None = None) -> None:
        """Count one value. `now` is the present, as age is measured; left out, every value ages the others by one."""
        self._age(self._now + 1.0 if now is None else now)
        bucket = 0
        if value > _LEAST:
            bucket = min(_BUCKETS - 1, int(_PER_DOUBLING * math.log2(value / _LEAST)) + 1)
        self._weights[bucket] += self._unit
        self._total += self._unit
        self._cached.clear()

    @property
    def weight(self) -> float:
        """How many values are still remembered, the faded ones in part. As of the last `add`."""
        return self._total / self._unit

    def weight_at(self, now: float) -> float:
        """The same, as of `now`."""
        return self.weight * math.exp(-self._decay * max(0.0, now - self._now))

    def quantile(self, share: float) -> float | None:
        """The value that `share` of the remembered values do not exceed (the bucket's upper end), None without any."""
        if self._total <= 0.0:
            return None
        found = self._cached.get(share)
        if found is None:
            found = self._cached[share] = self._find(share)
        return found

    def _find(self, share: float) -> float:
        wanted, seen = share * self._total, 0.0
        last = 0
        for bucket, weight in enumerate(self._weights):
            if weight:
                seen += weight
                last = bucket
                if seen >= wanted:
                    break
        return _LEAST * math.exp2(last / _PER_DOUBLING)

    def _age(self, now: float) -> None:
        if now > self._now:
            faded = self._decay * (now - self._now)
            self._now = now
            if faded > _FORGOTTEN:
                self._weights = [0.0] * _BUCKETS
                self._total, self._unit = 0.0, 1.0
                return
            self._unit *= math.exp(faded)
            if self._unit > 1e12:
                self._weights = [weight / self._unit for weight in self._weights]
                self._total /= self._unit
                self._unit = 1.0
