"""Requests as spans. The names of attributes are OpenTelemetry's (HTTP, GenAI) where it has one, else `spillway.…`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from node.backend import Kind
from node.dispatch.outcome import Ending, Outcome
from node.money import NANO_PER_USD, Usage
from node.routing.policy import LOCAL
from node.routing.values import Decision

_W3C: Final = TraceContextTextMapPropagator()
_OPERATIONS: Final = {Kind.CHAT: "chat", Kind.COMPLETION: "text_completion"}
_NO_CONTEXT: Final = Context()
_ENGINE: Final = "vllm"


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    """The trace that a client's `traceparent` and `tracestate` name; a new one where there is none that can be read."""
    carrier = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name in (b"traceparent", b"tracestate")
    }
    return _W3C.extract(carrier, _NO_CONTEXT) if carrier else _NO_CONTEXT


class RequestSpans:
    """A `RequestTrace`: the span of a request, and those below it. `wall_ns` is Unix time at `arrived_s`."""

    def __init__(
        self, tracer: Tracer, parent: Context, kind: Kind, path: str, request_id: str, arrived_s: float, wall_ns: int
    ) -> None:
        self._tracer = tracer
        self._operation = _OPERATIONS[kind]
        self._offset_ns = wall_ns - round(arrived_s * 1e9)
        self._span = tracer.start_span(
            f"POST {path}",
            parent,
            SpanKind.SERVER,
            {
                "http.request.method": "POST",
                "http.route": path,
                "url.path": path,
                "spillway.request_id": request_id,
            },
            start_time=wall_ns,
        )
        self._inside = set_span_in_context(self._span, _NO_CONTEXT)

    def placed(self, from_s: float, to_s: float, decision: Decision | None) -> None:
        """A span for the wait."""
        if not self._span.is_recording():
            return
        span = self._start("queue", self._inside, SpanKind.INTERNAL, {}, from_s)
        if decision is not None:
            span.set_attributes(_known({"spillway.target": decision.target.value, **_reasons(decision)}))
        span.end(self._ns(to_s))

    def attempt(self, backend: str, served_model: str, decision: Decision, at_s: float) -> AttemptSpans:
        """A span for the attempt."""
        local = backend == LOCAL
        attributes = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": _ENGINE if local else backend,
            "gen_ai.request.model": served_model,
            "spillway.backend": backend,
            **_reasons(decision),
        }
        kind = SpanKind.INTERNAL if local else SpanKind.CLIENT
        return AttemptSpans(
            self._start(f"{self._operation} {served_model}", self._inside, kind, _known(attributes), at_s),
            self._start,
            self._ns,
            served_model,
            at_s,
        )

    def came_to(self, outcome: Outcome) -> None:
        """Everything that an operator asks of one request."""
        if not self._span.is_recording():  # unsampled; or its client has gone, and others read what it had asked for
            return
        self._span.set_attributes(
            _known(
                {
                    "gen_ai.request.model": outcome.model,
                    "spillway.backend": outcome.backend,
                    "spillway.served_model": outcome.served_model,
                    "spillway.reason": outcome.reason,
                    "spillway.ending": outcome.ending,
                    "spillway.attempts": outcome.attempts,
                    "spillway.may_leave": outcome.may_leave,
                    "spillway.pinned_by": outcome.pinned_by,
                    "spillway.queue_s": outcome.queue_s,
                    "spillway.ttft_s": outcome.ttft_s,
                    "spillway.ttft_budget_s": outcome.ttft_budget_s,
                    "spillway.cost_usd": outcome.cost_nano_usd / NANO_PER_USD,
                    "error.type": outcome.error_code,
                }
            )
        )
        if outcome.ending is Ending.FAILED:
            self._span.set_status(_FAILED)

    def answered(self, at_s: float, status: int | None, error_code: str | None) -> None:
        """The end of the request's span."""
        self._span.set_attributes(_known({"http.response.status_code": status, "error.type": error_code}))
        if status is not None and status >= 500:
            self._span.set_status(_FAILED)
        self._span.end(self._ns(at_s))

    def _start(self, name: str, inside: Context, kind: SpanKind, attributes: Mapping[str, Any], at_s: float) -> Span:
        return self._tracer.start_span(name, inside, kind, attributes, start_time=self._ns(at_s))

    def _ns(self, at_s: float) -> int:
        return round(at_s * 1e9) + self._offset_ns


class AttemptSpans:
    """An `AttemptTrace`: the attempt's span, and the stream's below it."""

    def __init__(
        self, span: Span, start: Callable[..., Span], ns: Callable[[float], int], served_model: str, opened_s: float
    ) -> None:
        self._span = span
        self._start = start
        self._ns = ns
        self._served_model = served_model
        self._opened_s = opened_s
        self._stream: Span | None = None

    @property
    def traceparent(self) -> str:
        """The attempt's own context; what a client put into `tracestate` is not passed on."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def began(self, at_s: float, *, stream: bool) -> None:
        """The model has answered."""
        self._span.set_attribute("gen_ai.response.model", self._served_model)
        if stream:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", at_s - self._opened_s)
            self._stream = self._start(
                "stream", set_span_in_context(self._span, _NO_CONTEXT), SpanKind.INTERNAL, {}, at_s
            )

    def ended(self, at_s: float, usage: Usage | None, finish_reason: str | None, error_code: str | None) -> None:
        """The end of both."""
        span = self._span
        if self._stream is not None:
            self._stream.end(self._ns(at_s))
        if usage is not None:
            span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                }
            )
        if finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", (finish_reason,))
        if error_code is not None:
            span.set_attribute("error.type", error_code)
            span.set_status(_FAILED)
        span.end(self._ns(at_s))


_FAILED: Final = Status(StatusCode.ERROR)


def _reasons(decision: Decision) -> dict[str, Any]:
    return {
        "spillway.reason": decision.reason.value,
        "spillway.predicted_ttft_s": decision.predicted_ttft_s,
        "spillway.provider": decision.cloud.provider if decision.cloud is not None else None,
    }


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
