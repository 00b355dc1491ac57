"""The answer cache, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.store.cache import MemoryCache


class CacheMetrics(Collector):
    """How full it is, read when somebody scrapes. Hits are `spillway_requests_total{backend="cache"}`."""

    def __init__(self, cache: MemoryCache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        yield GaugeMetricFamily("spillway_cache_entries", "Answers in the cache.", value=len(self._cache))
        yield GaugeMetricFamily(
            "spillway_cache_bytes", "Bytes of the answers in the cache.", value=self._cache.used_bytes
        )
