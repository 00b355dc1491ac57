"""Who is inside and who was not let in, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Counted(Protocol):
    """What is read when somebody scrapes: `node.api.door.Door`."""

    inside: int
    turned_away: dict[str, int]


class DoorMetrics(Collector):
    """Requests being served, and refusals by error code."""

    def __init__(self, door: Counted) -> None:
        self._door = door

    def collect(self) -> Iterable[Metric]:
        """The two families as they stand."""
        yield GaugeMetricFamily("spillway_requests_inside", "Requests being served.", value=self._door.inside)
        turned_away = CounterMetricFamily(
            "spillway_turned_away", "Refused before they were read, or with their connection.", labels=["code"]
        )
        for code, count in self._door.turned_away.items():
            turned_away.add_metric([code], count)
        yield turned_away
