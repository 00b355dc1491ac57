"""From spans to the operator's collector: OTLP over HTTP, in batches, from a thread of its own.

A request's end puts its spans into a queue and no more. The thread sends what is there every few seconds; what does
not fit into the queue is dropped, and so is what the collector does not take. Nothing waits for it but the node's own
end, and that for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from node import __version__
from node.backend import Kind
from node.traces.spans import RequestSpans, parent_of

_log = logging.getLogger("spillway.traces")

_PATH: Final = "/v1/traces"
_TIMEOUT_S: Final = 3.0
_END_WITHIN_S: Final = 3.0
_DELAY_MS: Final = 2000.0

Reach = Callable[[str, int], AbstractContextManager[None]]
"""Lets the calling thread connect to a host and port for the length of a block: `node.guard.SocketGuard.collecting`."""


class Traces:
    """Begins traces, and has them sent to `endpoint` (the collector's base URL). `sample_share` of those that no client
    has begun are kept; one that a client has begun is kept if the client keeps it.

    What OpenTelemetry's environment variables say of headers, certificates and the resource holds.
    """

    def __init__(self, endpoint: str, *, sample_share: float, reach: Reach) -> None:
        # Said once, in our words, instead of with each batch.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self.delivery = Delivery(endpoint, reach)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_share)),
            resource=Resource.create({"service.name": "spillway", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self.delivery, schedule_delay_millis=_DELAY_MS))
        self._tracer = self._provider.get_tracer("spillway", __version__)

    def begin(
        self, headers: Iterable[tuple[bytes, bytes]], kind: Kind, path: str, request_id: str, arrived_s: float
    ) -> RequestSpans:
        """The trace of a request that has just arrived."""
        return RequestSpans(self._tracer, parent_of(headers), kind, path, request_id, arrived_s, time.time_ns())

    async def stop(self) -> None:
        """Send what is left, as far as the collector takes it within a few seconds."""
        ending = asyncio.get_running_loop().call_later(_END_WITHIN_S, self.delivery.shutdown)
        await asyncio.to_thread(self._provider.shutdown)
        ending.cancel()


class Delivery(SpanExporter):
    """Sends batches, and says in the log when that fails and when it works again. `sent` and `lost` count spans."""

    def __init__(self, endpoint: str, reach: Reach) -> None:
        url = urlsplit(endpoint)
        assert url.hostname is not None
        self._host, self._port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._reach = reach
        session = requests.Session()
        session.trust_env = False  # no proxy, and no password from a file: to this address or nowhere
        address = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
        self._exporter = OTLPSpanExporter(address, timeout=_TIMEOUT_S, session=session)
        self._lock = threading.Lock()
        self._is_over = False
        self._fails = False
        self.sent = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch; called in the processor's thread, and blocks it."""
        if self._is_over:
            return SpanExportResult.FAILURE
        with self._reach(self._host, self._port):
            result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed:
            self.lost += len(spans)
        else:
            self.sent += len(spans)
        if failed != self._fails:
            self._fails = failed
            where = f"{self._host}:{self._port}"
            if failed:
                _log.warning("the collector at %s does not take traces, and they are dropped", where)
            else:
                _log.info("the collector at %s takes traces again", where)
        return result

    def shutdown(self) -> None:
        """Send no more, and give up what is being tried. May be called twice, in any thread."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True
