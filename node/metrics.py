"""Prometheus metrics, fed by Outcomes and read from the parts at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.dispatch.lane import Lane
from node.dispatch.outcome import Outcome
from node.money import NANO_PER_USD
from node.watch.values import GpuWatchState

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class Metrics:
    """The node's own metrics in a registry of their own."""

    def __init__(self, lanes: Mapping[str, Lane], gpus: Callable[[], GpuWatchState]) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "backend", "reason", "ending")
        self._requests = Counter("spillway_requests", "Requests by how they ended.", labels, registry=self.registry)
        self._tokens = Counter(
            "spillway_tokens", "Tokens by direction.", ("model", "backend", "direction"), registry=self.registry
        )
        self._spend = Counter("spillway_spend_usd", "Dollars spent.", ("model", "backend"), registry=self.registry)
        self._ttft = Histogram(
            "spillway_ttft_seconds",
            "Arrival to first content, streamed answers.",
            ("model", "backend"),
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self._queue = Histogram(
            "spillway_queue_seconds", "Time in the node's own queue.", ("model",), buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Live(lanes, gpus))

    def add(self, outcome: Outcome) -> None:
        """Take in one request."""
        backend = outcome.backend or "none"
        self._requests.labels(outcome.model, backend, outcome.reason or "none", outcome.ending).inc()
        if outcome.usage is not None:
            self._tokens.labels(outcome.model, backend, "prompt").inc(outcome.usage.prompt_tokens)
            self._tokens.labels(outcome.model, backend, "completion").inc(outcome.usage.completion_tokens)
        if outcome.cost_nano_usd:
            self._spend.labels(outcome.model, backend).inc(outcome.cost_nano_usd / NANO_PER_USD)
        if outcome.ttft_s is not None:
            self._ttft.labels(outcome.model, backend).observe(outcome.ttft_s)
        self._queue.labels(outcome.model).observe(outcome.queue_s)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _Live(Collector):
    """Gauges read when somebody scrapes. What is not known is left out, never 0."""

    def __init__(self, lanes: Mapping[str, Lane], gpus: Callable[[], GpuWatchState]) -> None:
        self._lanes = lanes
        self._gpus = gpus

    def collect(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("spillway_queue_depth", "Requests in the node's own queue.", labels=["model"])
        running = GaugeMetricFamily("spillway_engine_running", "Sequences running in the engine.", labels=["model"])
        usage = GaugeMetricFamily("spillway_kv_cache_usage_ratio", "Used share of the KV cache.", labels=["model"])
        ready = GaugeMetricFamily("spillway_engine_ready", "1 while the engine serves.", labels=["model"])
        for name, lane in self._lanes.items():
            depth.add_metric([name], lane.depth)
            if lane.engine is not None:
                load = lane.engine.load(lane.in_flight)
                running.add_metric([name], load.running)
                ready.add_metric([name], float(load.state == "ready"))
                if load.kv_cache_usage is not None:
                    usage.add_metric([name], load.kv_cache_usage)
        yield from (depth, running, usage, ready)
        used = GaugeMetricFamily("spillway_vram_used_bytes", "VRAM in use.", labels=["gpu"])
        free = GaugeMetricFamily("spillway_vram_free_bytes", "VRAM free.", labels=["gpu"])
        for gpu in self._gpus().gpus or ():
            if gpu.vram_used_bytes is not None:
                used.add_metric([str(gpu.index)], gpu.vram_used_bytes)
            if gpu.vram_free_bytes is not None:
                free.add_metric([str(gpu.index)], gpu.vram_free_bytes)
        yield from (used, free)
