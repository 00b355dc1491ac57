"""Whether the event loop turns, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.watch.loop_watch import Pauses


class LoopMetrics(Collector):
    """Pauses of the loop, read when somebody scrapes."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses

    def collect(self) -> Iterable[Metric]:
        """The families as they stand; what the kernel does not tell is left out."""
        pauses = self._pauses
        yield CounterMetricFamily(
            "spillway_loop_pauses", "Times that the event loop stood still for over 50 ms.", value=pauses.long_ones
        )
        yield GaugeMetricFamily(
            "spillway_loop_longest_pause_seconds",
            "The longest pause of the event loop since start.",
            value=pauses.longest_s,
        )
        waited = CounterMetricFamily(
            "spillway_loop_cpu_wait_seconds",
            "Time in which the event loop could have run and the machine ran something else.",
        )
        if pauses.cpu_wait_s is not None:
            waited.add_metric([], pauses.cpu_wait_s)
        yield waited
