"""What became of requests: how many, how fast, for how much, and whether in time. Fed with each Outcome."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.dispatch.outcome import Ending, Outcome
from node.metrics.tally import Counts, Histogram
from node.money import NANO_PER_USD

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_LONG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_PER_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)


class Promise(StrEnum):
    """What became of the promise of a first token in time. `UNANSWERED`: it failed or was refused before there was one.

    What a client gave up before its first token is no promise kept or broken, and neither is an answer that does not
    stream.
    """

    KEPT = "kept"
    LATE = "late"
    UNANSWERED = "unanswered"


def promise_of(outcome: Outcome) -> Promise | None:
    """What became of its promise, None where there was none."""
    if outcome.ttft_s is not None:
        return Promise.KEPT if outcome.ttft_s <= outcome.ttft_budget_s else Promise.LATE
    return Promise.UNANSWERED if outcome.ending in (Ending.FAILED, Ending.REFUSED) else None


class RequestMetrics(Collector):
    """Every label is from a set that the operator or the code has fixed: models, providers, reasons, endings."""

    def __init__(self, models: Iterable[str]) -> None:
        self._models = tuple(models)
        self._requests = Counts(
            "spillway_requests",
            "Requests that were placed or refused, by who served them, the reason, and how they ended.",
            ("model", "backend", "reason", "ending"),
        )
        self._promises = Counts(
            "spillway_slo_requests",
            "Streamed answers by whether their first token came within its budget (kept, late), and requests that got "
            "none (unanswered). Attainment is kept / all.",
            ("model", "result"),
        )
        for model in self._models:  # present from the start: a rate over what appears later misses its first increase
            for result in Promise:
                self._promises.add((model, result.value), 0)
        self._tokens = Counts("spillway_tokens", "Tokens used.", ("model", "backend", "direction"))
        self._spend = Counts(
            "spillway_spend_usd", "Dollars spent, failed attempts included.", ("model", "backend"), scale=NANO_PER_USD
        )
        self._cloud_price = Counts(
            "spillway_cloud_price_usd",
            "Dollars that all answers would have cost at the model's first cloud equivalent.",
            ("model",),
            scale=NANO_PER_USD,
        )
        self._list_price = Counts(
            "spillway_list_price_usd",
            "Dollars that all answers would have cost at the model's list price.",
            ("model",),
            scale=NANO_PER_USD,
        )
        served = ("model", "backend")
        self._ttft = Histogram(
            "spillway_time_to_first_token_seconds",
            "From arrival to first content, streamed answers.",
            served,
            _SECONDS,
        )
        self._duration = Histogram(
            "spillway_request_duration_seconds", "From arrival to the last byte, whole answers.", served, _LONG_SECONDS
        )
        self._per_token = Histogram(
            "spillway_time_per_output_token_seconds",
            "(duration - time to first token) / (output tokens - 1), streamed whole answers.",
            served,
            _PER_TOKEN_SECONDS,
        )
        self._queue = Histogram(
            "spillway_queue_time_seconds", "In the node's own queue, every request.", ("model",), _SECONDS
        )
        self._predicted = Histogram(
            "spillway_ttft_predicted_seconds",
            "Time to first token as predicted when the request was given to the engine.",
            ("model",),
            _SECONDS,
        )
        self._measured = Histogram(
            "spillway_ttft_measured_seconds",
            "Time to first token as it came, from that moment on, of the same requests.",
            ("model",),
            _SECONDS,
        )

    def add(self, outcome: Outcome) -> None:
        """Take in one request."""
        model, backend, usage = outcome.model, outcome.backend or "none", outcome.usage
        self._requests.add((model, backend, outcome.reason or "none", outcome.ending))
        if (promise := promise_of(outcome)) is not None:
            self._promises.add((model, promise))
        served = (model, backend)
        if usage is not None:
            self._tokens.add((model, backend, "prompt"), usage.prompt_tokens)
            self._tokens.add((model, backend, "completion"), usage.completion_tokens)
        if outcome.cost_nano_usd:
            self._spend.add(served, outcome.cost_nano_usd)
        if outcome.cloud_nano_usd is not None:
            self._cloud_price.add((model,), outcome.cloud_nano_usd)
        if outcome.reference_nano_usd is not None:
            self._list_price.add((model,), outcome.reference_nano_usd)
        self._queue.add((model,), outcome.queue_s)
        if outcome.ttft_s is not None:
            self._ttft.add(served, outcome.ttft_s)
        if outcome.ending is Ending.DONE:
            self._duration.add(served, outcome.total_s)
            if outcome.ttft_s is not None and usage is not None and usage.completion_tokens > 1:
                self._per_token.add(served, (outcome.total_s - outcome.ttft_s) / (usage.completion_tokens - 1))
        for each in outcome.foreseen:
            if not each.queued:
                self._predicted.add((model,), each.predicted_s)
                self._measured.add((model,), each.took_s)

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        counts = (self._requests, self._promises, self._tokens, self._spend, self._cloud_price, self._list_price)
        histograms = (self._ttft, self._duration, self._per_token, self._queue, self._predicted, self._measured)
        for counted in counts:
            yield from counted.families()
        for histogram in histograms:
            yield from histogram.families()
        saved = GaugeMetricFamily(
            "spillway_saved_usd",
            "spillway_cloud_price_usd_total less spillway_spend_usd_total, since start. Below zero where a dearer "
            "provider was taken.",
            labels=["model"],
        )
        spent = dict.fromkeys(self._models, 0)
        for (model, _), nano_usd in self._spend.values.items():
            spent[model] = spent.get(model, 0) + nano_usd
        for model, nano_usd in spent.items():
            saved.add_metric([model], (self._cloud_price.values.get((model,), 0) - nano_usd) / NANO_PER_USD)
        yield saved
