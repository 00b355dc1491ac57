"""Counts and histograms as plain numbers, made into families when somebody scrapes.

Not `prometheus_client`'s own: those take a lock and copy their labels for each update, which made ten microseconds per
request of what is one here. Everything here happens on the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

Labels = tuple[str, ...]


class Counts:
    """One counter by its labels. Money is kept in nano-dollars, as an integer, and divided at the scrape."""

    def __init__(self, name: str, help_text: str, labels: Labels, *, scale: float = 1.0) -> None:
        self._name, self._help, self._labels, self._scale = name, help_text, labels, scale
        self.values: dict[Labels, int] = {}

    def add(self, labels: Labels, amount: int = 1) -> None:
        """Add to one of them."""
        values = self.values
        values[labels] = values.get(labels, 0) + amount

    def families(self) -> Iterator[CounterMetricFamily]:
        """The family as it stands."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value / self._scale)
        yield family


class Histogram:
    """One histogram by its labels. `bounds` are the buckets' upper bounds, in the metric's unit."""

    def __init__(self, name: str, help_text: str, labels: Labels, bounds: Sequence[float]) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._bounds = tuple(bounds)
        self._texts = (*(str(float(bound)) for bound in bounds), "+Inf")
        self._values: dict[Labels, tuple[list[int], list[float]]] = {}

    def add(self, labels: Labels, value: float) -> None:
        """Take in one observation."""
        kept = self._values.get(labels)
        if kept is None:
            kept = self._values[labels] = ([0] * len(self._texts), [0.0])
        kept[0][bisect_left(self._bounds, value)] += 1
        kept[1][0] += value

    def families(self) -> Iterator[HistogramMetricFamily]:
        """The family as it stands."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, (counts, (total,)) in self._values.items():
            below, buckets = 0, []
            for text, count in zip(self._texts, counts, strict=True):
                below += count
                buckets.append((text, float(below)))
            family.add_metric(labels, buckets, total)
        yield family
