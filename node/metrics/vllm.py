"""vLLM's own metrics under vLLM's names, labels and meanings, so that dashboards made for it work. Read at the scrape.

Those that cost nothing; docs/metrics.md says which are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.local.counts import EngineCounts

_LABELS = ("model_name", "engine")
_ENGINE = "0"

_GAUGES: tuple[tuple[str, str, Callable[[EngineCounts], float]], ...] = (
    ("vllm:num_requests_running", "Number of requests in model execution batches.", lambda each: each.running),
    (
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        lambda each: each.waiting + each.deferred,
    ),
    ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", lambda each: each.kv_cache_usage),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineCounts], float]], ...] = (
    (
        "vllm:prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        lambda each: each.prefix_cache_queries,
    ),
    (
        "vllm:prefix_cache_hits",
        "Prefix cache hits, in terms of number of cached tokens.",
        lambda each: each.prefix_cache_hits,
    ),
    ("vllm:prompt_tokens", "Number of prefill tokens processed.", lambda each: each.prompt_tokens),
    ("vllm:generation_tokens", "Number of generation tokens processed.", lambda each: each.output_tokens),
)


class VllmMetrics(Collector):
    """`counts` gives each model's, None while its engine does not serve: nothing is said of that one then."""

    def __init__(self, counts: Mapping[str, Callable[[], EngineCounts | None]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        now = [(name, counts) for name, read in self._counts.items() if (counts := read()) is not None]
        for name, help_text, read_gauge in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for model, counts in now:
                gauge.add_metric((model, _ENGINE), read_gauge(counts))
            yield gauge
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason: 'capacity', or 'deferred' by transient constraints.",
            labels=(*_LABELS, "reason"),
        )
        success = CounterMetricFamily(
            "vllm:request_success",
            "Count of successfully processed requests.",
            labels=(*_LABELS, "finished_reason"),
        )
        for model, counts in now:
            by_reason.add_metric((model, _ENGINE, "capacity"), counts.waiting)
            by_reason.add_metric((model, _ENGINE, "deferred"), counts.deferred)
            for reason, count in counts.finished.items():
                success.add_metric((model, _ENGINE, reason), count)
        yield from (by_reason, success)
        for name, help_text, read_counter in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=_LABELS)
            for model, counts in now:
                counter.add_metric((model, _ENGINE), read_counter(counts))
            yield counter
