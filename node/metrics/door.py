"""The front: who is inside, who was not let in, how short the machine is. For Prometheus, read at the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.watch.strain import Level, Strain


class Counted(Protocol):
    """What is read when somebody scrapes: `node.api.door.Door`."""

    inside: int
    held_bytes: int
    turned_away: dict[str, int]


class DoorMetrics(Collector):
    """Requests being served, refusals by error code, the host's strain and connections that the guard refused."""

    def __init__(self, door: Counted, strain: Callable[[], Strain], refused_sockets: Callable[[], int]) -> None:
        self._door = door
        self._strain = strain
        self._refused_sockets = refused_sockets

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        yield GaugeMetricFamily("spillway_requests_in_flight", "Requests being served.", value=self._door.inside)
        yield GaugeMetricFamily(
            "spillway_request_body_bytes", "Bytes of request bodies held for them.", value=self._door.held_bytes
        )
        turned_away = CounterMetricFamily(
            "spillway_turned_away",
            "Requests refused before they were read (rate limit, strain, shutdown) or with their connection, by error "
            "code. They are not in spillway_requests_total.",
            labels=["code"],
        )
        for code, count in self._door.turned_away.items():
            turned_away.add_metric([code], count)
        yield turned_away
        level = self._strain().level
        strain = GaugeMetricFamily(
            "spillway_host_strain",
            "1 for how short the machine is of memory or file descriptors. strained: fewer requests are held; "
            "exhausted: none.",
            labels=["level"],
        )
        for each in Level:
            strain.add_metric([each], float(each is level))
        yield strain
        yield CounterMetricFamily(
            "spillway_stray_connections_refused",
            "Connections beyond this machine that something other than the egress gate tried to open. 0 is the only "
            "good number.",
            value=self._refused_sockets(),
        )
