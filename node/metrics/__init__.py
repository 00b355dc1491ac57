"""Prometheus metrics: fed by Outcomes, and read from the parts when somebody scrapes. All of them: docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from node import __version__


class Metrics:
    """What all `collectors` say, beside the process's own CPU, memory and descriptors, in a registry of its own."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Build())
        for each in collectors:
            self.registry.register(each)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _Build(Collector):
    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("spillway_build", "The version that runs.", value={"version": __version__})
