"""Each provider: whether it is used, what its breaker says, what calls came to. Read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.dispatch.providers import ProviderState
from node.routing.breaker import BreakerState


class ProviderMetrics(Collector):
    """`states` gives those that are configured now, `clock` monotonic seconds."""

    def __init__(self, states: Callable[[], Mapping[str, ProviderState]], clock: Callable[[], float]) -> None:
        self._states = states
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        now_s, name = self._clock(), ["provider"]
        available = GaugeMetricFamily(
            "spillway_provider_available",
            "1 while calls are sent to the provider: its breaker lets them through and it asked for no pause.",
            labels=name,
        )
        breaker = GaugeMetricFamily(
            "spillway_provider_breaker_state",
            "1 for the state that the provider's circuit breaker is in. isolated: it refused the key or wants money, "
            "or the operator said so.",
            labels=["provider", "state"],
        )
        in_flight = GaugeMetricFamily(
            "spillway_provider_calls_in_flight", "Calls at the provider at this moment.", labels=name
        )
        calls = CounterMetricFamily("spillway_provider_calls", "Calls made to the provider.", labels=name)
        errors = CounterMetricFamily(
            "spillway_provider_errors", "Calls to the provider that failed, by error code.", labels=["provider", "code"]
        )
        for provider, state in self._states().items():
            standing = state.standing
            available.add_metric([provider], float(standing.is_available(now_s)))
            current = standing.breaker.state(now_s)
            for each in BreakerState:
                breaker.add_metric([provider, each], float(each is current))
            in_flight.add_metric([provider], standing.in_flight)
            calls.add_metric([provider], standing.calls)
            for code, count in standing.errors.items():
                errors.add_metric([provider, code], count)
        yield from (available, breaker, in_flight, calls, errors)
