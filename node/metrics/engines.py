"""The engines: their state and life, their load, and the queue in front of each. Read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.dispatch.lane import Lane
from node.local.supervision import Supervision
from node.routing.values import EngineState


class EngineMetrics(Collector):
    """What is not known is left out, never 0. `lives` are the supervised engines by model."""

    def __init__(self, lanes: Mapping[str, Lane], lives: Mapping[str, Callable[[], Supervision]]) -> None:
        self._lanes = lanes
        self._lives = lives

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        yield from self._load()
        yield from self._life()

    def _load(self) -> Iterable[Metric]:
        model = ["model"]
        depth = GaugeMetricFamily("spillway_queue_depth", "Requests waiting in the node's own queue.", labels=model)
        in_flight = GaugeMetricFamily(
            "spillway_engine_in_flight_sequences", "Sequences given to the engine and not given back.", labels=model
        )
        running = GaugeMetricFamily(
            "spillway_engine_running_sequences", "Sequences in the engine's last step.", labels=model
        )
        waiting = GaugeMetricFamily(
            "spillway_engine_waiting_sequences", "Sequences in the engine's own queue.", labels=model
        )
        most = GaugeMetricFamily(
            "spillway_engine_max_sequences", "How many sequences the engine runs at once.", labels=model
        )
        prefill = GaugeMetricFamily(
            "spillway_engine_queued_prefill_tokens", "Prompt tokens given to the engine and not computed.", labels=model
        )
        usage = GaugeMetricFamily(
            "spillway_kv_cache_usage_ratio", "Used share of the engine's KV cache, 0 to 1.", labels=model
        )
        for name, lane in self._lanes.items():
            depth.add_metric([name], lane.depth)
            if lane.engine is None:
                continue
            load = lane.engine.load(lane.in_flight)
            in_flight.add_metric([name], load.in_flight)
            running.add_metric([name], load.running)
            waiting.add_metric([name], load.waiting)
            prefill.add_metric([name], load.queued_prefill_tokens)
            if load.state is EngineState.READY:
                most.add_metric([name], load.max_sequences)
            if load.kv_cache_usage is not None:
                usage.add_metric([name], load.kv_cache_usage)
        yield from (depth, in_flight, running, waiting, most, prefill, usage)

    def _life(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "spillway_engine_state", "1 for the state that the engine is in.", labels=["model", "state"]
        )
        starts = CounterMetricFamily("spillway_engine_starts", "Engines begun.", labels=["model"])
        deaths = CounterMetricFamily("spillway_engine_deaths", "Engines that failed, in any way.", labels=["model"])
        hangs = CounterMetricFamily(
            "spillway_engine_hangs", "Engines that were ended because they made no step.", labels=["model"]
        )
        given_up = GaugeMetricFamily(
            "spillway_engine_given_up", "1 when it failed too often and is not built anew any more.", labels=["model"]
        )
        for name, life in self._lives.items():
            now = life()
            for state in EngineState:
                states.add_metric([name, state], float(now.state is state))
            starts.add_metric([name], now.starts)
            deaths.add_metric([name], now.deaths)
            hangs.add_metric([name], now.hangs)
            given_up.add_metric([name], float(now.given_up))
        yield from (states, starts, deaths, hangs, given_up)
